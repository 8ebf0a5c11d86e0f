"""Models from files: reference logits of five architectures, and every damage by its name."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiv import lm
from jdiv.lm import weights
from tests.checks import refused

CHECKPOINTS = pathlib.Path(__file__).parents[1] / "data" / "checkpoints"
NAMES = sorted(path.name for path in CHECKPOINTS.iterdir())
LOGITS = jax.jit(lm.logits)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name, tmp_path):
    """To 1e-4 on every position; saved and loaded again every bit is the same."""
    model, _ = lm.load(CHECKPOINTS / name)
    expected = np.load(CHECKPOINTS / name / "expected.npz")
    np.testing.assert_allclose(LOGITS(model, expected["ids"]), expected["logits"], atol=1e-4)
    lm.save(model, tmp_path, architecture=name)
    # `transformers` refuses a number of another type.
    written, given = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path, CHECKPOINTS / name)
    )
    kinds = {key: type(x) for key, x in given.items() if key in written and x is not None}
    assert {key: type(written[key]) for key in kinds} == kinds
    again, _ = lm.load(tmp_path)
    assert again.config == model.config
    stored, before = load_file(tmp_path / "model.safetensors"), _arrays(name)
    assert set(stored) == set(before)
    assert all(np.array_equal(stored[key], before[key]) for key in stored)
    assert weights.count(model.config) == sum(x.size for x in before.values())


def _arrays(name):
    return load_file(CHECKPOINTS / name / "model.safetensors")


def damaged(name, folder, change):
    """The checkpoint with other arrays in its file."""
    shutil.copy(CHECKPOINTS / name / "config.json", folder)
    arrays = _arrays(name)
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_that_is_missing_or_too_many_or_transposed_is_named(name):
    """One at a time; square ones look the same to a shape when they are transposed."""
    arrays = _arrays(name)
    kind, config = _kind(name)
    for key, array in arrays.items():
        others = {other: x for other, x in arrays.items() if other != key}
        read = lambda arrays: lambda: weights.from_stored(kind, config, arrays)
        refused(ValueError, [f"{key} is missing"], read(others))
        refused(ValueError, [f"{key}.more is not known"], read(arrays | {f"{key}.more": array}))
        if array.ndim == 2 and array.shape[0] != array.shape[1]:
            turned = others | {key: array.T}
            words = [f"{key} must be of shape", str(array.T.shape)]
            refused(ValueError, words, read(turned))


def _kind(name):
    from jdiv.lm.architectures import ARCHITECTURES

    given = json.loads((CHECKPOINTS / name / "config.json").read_text())
    return ARCHITECTURES[name], ARCHITECTURES[name].read(given)


def test_all_faults_are_told_together(tmp_path):
    """Missing, left over and misshapen in one line."""

    def change(arrays):
        del arrays["model.norm.weight"]
        arrays["model.layers.0.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        arrays["model.extra"] = np.zeros(1, np.float32)

    folder = damaged("llama", tmp_path, change)
    words = ["3 wrong tensors", "model.norm.weight is missing", "model.extra is not known",
             "model.layers.0.mlp.up_proj.weight must be of shape (96, 64), got (2, 2)"]  # fmt: skip
    refused(ValueError, words, lambda: lm.load(folder))


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    def tie(arrays, scale=1.0):
        arrays["lm_head.weight"] = scale * arrays["model.embed_tokens.weight"]

    lm.load(damaged("qwen2", tmp_path, tie))
    other = damaged("qwen2", tmp_path, lambda arrays: tie(arrays, 2.0))
    refused(ValueError, ["lm_head.weight", "ties"], lambda: lm.load(other))


def test_tensors_in_several_files(tmp_path):
    """As large models are stored, with an index."""
    arrays = _arrays("llama")
    shutil.copy(CHECKPOINTS / "llama" / "config.json", tmp_path)
    places = {}
    for i, keys in enumerate((sorted(arrays)[::2], sorted(arrays)[1::2])):
        save_file({key: arrays[key] for key in keys}, tmp_path / f"part-{i}.safetensors")
        places |= dict.fromkeys(keys, f"part-{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    model, _ = lm.load(tmp_path)
    whole, _ = lm.load(CHECKPOINTS / "llama")
    assert all(
        np.array_equal(a[...], b[...])
        for a, b in zip(model.tensors.values(), whole.tensors.values(), strict=True)
    )


def test_unknown_things_are_refused(tmp_path):
    given = json.loads((CHECKPOINTS / "llama" / "config.json").read_text())
    for change, words in (
        ({"model_type": "lama"}, ["model_type", "llama"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["yarn"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"hidden_act": "relu"}, ["hidden_act", "relu"]),
        ({"num_key_value_heads": 3}, ["key_heads"]),
    ):
        (tmp_path / "config.json").write_text(json.dumps(given | change))
        refused(ValueError, words, lambda: lm.load(tmp_path))
    refused(FileNotFoundError, ["smollm2"], lambda: lm.load(tmp_path / "nothing"))


def test_half_precision_is_saved_as_it_is(tmp_path):
    model, _ = lm.load(CHECKPOINTS / "llama", dtype="bfloat16")
    lm.save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again, _ = lm.load(tmp_path, dtype="bfloat16")
    assert again.head.dtype == "bfloat16"
    assert np.array_equal(np.asarray(again.head), np.asarray(model.head))
