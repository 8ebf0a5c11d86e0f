"""Reward models: scores at the last token, the loss by hand, an order that is learned, files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
from safetensors.numpy import load_file

from jdiv import lm
from jdiv.lm import data, reward_model, rewards, train
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from tests.checks import refused

CONFIG = Config(
    vocabulary=7, width=8, layers=1, heads=2, key_heads=1, head_width=4, hidden=8, longest=16,
    rotary_base=None,
)  # fmt: skip


@functools.cache
def model():
    """In double precision, for differences."""
    made = Transformer.random(CONFIG, jax.random.key(0), jnp.float64)
    return reward_model.begin(made, jax.random.key(1))


def text(seed):
    """Answers that end in the middle of their rows."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 7, (5, 6)).astype(np.int32)
    place, start = np.arange(6)[None], np.array([1, 2, 1, 4, 1])[:, None]
    last = np.array([5, 2, 3, 4, 1])[:, None] - seed % 2
    return train.Text(tokens, (place >= start) & (place <= np.maximum(last, start)))


def tensors(model):
    return {name: x[...] for name, x in model.tensors.items()}


def test_the_loss_is_its_formula_and_the_gradient_its_difference():
    """Of hidden states at the last answered token, by NumPy; along a random direction."""
    batch = reward_model.Compared(text(0), text(1), np.array([0.0, 0.5, 1.0, 0.0, 2.0]))
    rng = np.random.default_rng(2)
    given = {name: np.asarray(x) for name, x in tensors(model()).items()}
    way = {name: rng.normal(size=x.shape) for name, x in given.items()}

    @jax.jit
    def everything(tensors, h):
        of = lambda tensors: reward_model.bradley_terry(Transformer(made.config, tensors), batch)
        moved = lambda sign: jax.tree.map(lambda x, v: x + sign * h * v, tensors, way)
        hidden = [Transformer(made.config, tensors)(x.tokens)[0] for x in batch[:2]]
        grads = jax.grad(lambda x: of(x)[0])(tensors)
        along = sum(jnp.vdot(grads[name], way[name]) for name in way)
        return of(tensors), hidden, along, (of(moved(1.0))[0] - of(moved(-1.0))[0]) / (2 * h)

    made = model()
    (loss, metrics), hidden, along, difference = everything(given, 1e-5)
    last = [[5, 2, 3, 4, 1], [4, 2, 2, 4, 1]]
    of = [np.asarray(h)[range(5), at] @ given["score"][0]
          for h, at in zip(hidden, last, strict=True)]  # fmt: skip
    x = of[0] - of[1] - batch.lead
    np.testing.assert_allclose(loss, np.log1p(np.exp(-x)).mean(), rtol=1e-12)
    assert float(metrics["accuracy"]) == np.mean(of[0] > of[1])
    assert float(metrics["weight"]) == 5
    np.testing.assert_allclose(along, difference, rtol=1e-7)
    assert abs(float(along)) > 1e-2


def pairs():
    """Pairs of sequences of the brackets, the longer one preferred: to learn from, and of others.

    No sequence is in both.
    """
    sampled = data.sample(data.brackets(), jax.random.key(7), count=1024, max_tokens=16)
    tokens, mask = np.asarray(sampled.tokens), np.asarray(sampled.mask)
    once = np.unique(tokens, axis=0, return_index=True)[1]
    rng = np.random.default_rng(8)
    once = rng.permutation(once[mask[once].sum(1) < 10])
    found = []
    for part, count in ((once[40:], 256), (once[:40], 64)):
        rows = rng.choice(part, (2, 4 * count))
        lengths = mask[rows].sum(2)
        rows = np.take_along_axis(rows, np.argsort(-lengths, axis=0), axis=0)
        rows = rows[:, lengths[0] != lengths[1]][:, :count]
        found.append(reward_model.Compared(*[train.Text(tokens[x], mask[x]) for x in rows]))
    return found


def test_the_order_by_length_is_learned():
    """On pairs that were not trained on, all are right; before training they are not."""
    optimizer = optax.adamw(0.03, weight_decay=0.1)
    start = reward_model.begin(
        Transformer.random(CONFIG, jax.random.key(3), jnp.float32), jax.random.key(4)
    )
    batch, held_out = pairs()
    assert len(held_out.chosen.tokens) == 64

    @jax.jit
    def learned(state, batch, held_out):
        def step(state, _):
            return train.update(
                state, batch, reward_model.bradley_terry, config=start.config, optimizer=optimizer
            )

        judged = lambda x: reward_model.bradley_terry(Transformer(start.config, x), held_out)[1]
        after, metrics = jax.lax.scan(step, state, None, 60)
        return judged(state.tensors), judged(after.tensors), metrics["loss"]

    before, after, losses = learned(train.begin(start, optimizer), batch, held_out)
    assert float(before["accuracy"]) < 0.9
    assert float(after["accuracy"]) == 1.0
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"rotary_base": 1e4, "tied": False}),
        ("gpt2", {"norm": "layer", "gated": False, "activation": "gelu_tanh", "key_heads": 2,
                  "attention_bias": True, "other_biases": True}),
    ],
)  # fmt: skip
def test_it_is_saved_as_a_model_for_classification(architecture, changes, tmp_path):
    language = Transformer.random(dataclasses.replace(CONFIG, **changes), jax.random.key(5))
    made = reward_model.begin(language, jax.random.key(6))
    lm.save(made, tmp_path, architecture=architecture)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"][0].endswith("ForSequenceClassification")
    assert written["id2label"] == {"0": "LABEL_0"}
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["score.weight"].shape == (1, 8)
    assert "lm_head.weight" not in stored
    again, _ = lm.load(tmp_path)
    assert again.config == made.config
    for name, x in tensors(made).items():
        np.testing.assert_array_equal(tensors(again)[name], x)
    assert set(tensors(made)) - {"score"} == set(tensors(language)) - {"head"}
    for call in (lambda: made.head, lambda: lm.logits(made, text(0).tokens)):
        refused(ValueError, ["scores", "logits"], call)
    refused(ValueError, ["one score"], lambda: reward_model.scores(language, text(0)))


def test_a_folder_is_a_reward_of_texts(tmp_path):
    """Of prompt, answer and end, whatever fills up the row."""
    words = {"good": 0, "bad": 1, "what": 2, "?": 3, "<end>": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    kind = dataclasses.replace(CONFIG, rotary_base=1e4)
    language = Transformer.random(kind, jax.random.key(5))
    made = reward_model.begin(language, jax.random.key(6))
    lm.save(made, tmp_path / "scores", lm.Tokenizer(inner, None, 4))
    lm.save(language, tmp_path / "logits", lm.Tokenizer(inner, None, 4))
    found = rewards.found(str(tmp_path / "scores"))
    row = np.array([[2, 3, 0, 1, 4]], np.int32)
    wanted = jax.jit(reward_model.scores)(made, train.Text(row, np.arange(5)[None] == 4))
    np.testing.assert_allclose(found("what ?", "good bad"), float(wanted[0]), rtol=1e-5)
    assert found("what ?", "good bad") != found("what ?", "bad good")
    refused(ValueError, ["reward model"], lambda: rewards.found(str(tmp_path / "logits")))
