"""What the methods of lm/align are given, and what a run leaves behind."""

import json

import jax
import numpy as np
import pytest

from experiments.lab import models, records, settings
from experiments.lab.files import Refused
from experiments.lm import align
from jdiv import lm
from tests.checks import refused


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(records.ROOT)
    return settings.load("configs/lm/align.py:smoke")


def test_batches_of_the_methods(config):
    """Groups of four answers, of five tokens after a prompt of two."""
    rng = np.random.default_rng(0)
    text = lm.train.Text(np.arange(56).reshape(8, 7), np.arange(7)[None].repeat(8, 0) > 1)
    scores = {name: -rng.random((8, 6)) for name in ("log_probs", "ref_log_probs")}
    reward = np.array([1.0, 4.0, 2.0, 3.0, 0.0, 0.0, 5.0, -1.0])

    def batch(method):
        return align._batch(settings.overridden(config, {"method": method}), text, scores, reward)

    gain = batch("kl_rl").advantages
    others = [(reward[:4].sum() - x) / 3 for x in reward[:4]]
    np.testing.assert_allclose(gain[:4], reward[:4] - others, rtol=1e-6)
    grpo = batch("grpo").advantages.reshape(2, 4)
    np.testing.assert_allclose(grpo.mean(1), 0, atol=1e-6)
    assert (np.argsort(grpo[1]) == np.argsort(reward[4:])).all()
    pairs = batch("f_dpo")
    np.testing.assert_array_equal(pairs.chosen.tokens, text.tokens[[1, 6]])
    np.testing.assert_array_equal(pairs.rejected.tokens, text.tokens[[0, 7]])
    np.testing.assert_allclose(pairs.ref_chosen, scores["ref_log_probs"].sum(1)[[1, 6]])
    scores["kl"] = rng.random(8)
    judged = batch("kto")
    assert judged.desirable.tolist() == [False, True, False, True, False, False, True, False]
    np.testing.assert_allclose(judged.kl, scores["kl"].mean())
    np.testing.assert_allclose(judged.ref_log_probs, scores["ref_log_probs"].sum(1))
    target = batch("f_dpg")
    log_ref, log_p = scores["ref_log_probs"].sum(1), scores["log_probs"].sum(1)
    tilt = target.log_target - log_ref - reward / config.beta  # -log Z, one for each group
    np.testing.assert_allclose(tilt.reshape(2, 4), tilt.reshape(2, 4)[:, :1].repeat(4, 1))
    # The target has mass 1 by the samples themselves, which is what its normalizer is.
    weights = np.exp(target.log_target - log_p).reshape(2, 4)
    np.testing.assert_allclose(weights.mean(1), 1, rtol=1e-5)


def test_what_is_left_can_be_loaded(config, tmp_path):
    with jax.enable_x64(False):
        align.keep(config, {"seed": 0}, align.init(config, {"seed": 0}, None), tmp_path)
    model, tokenizer = lm.load(tmp_path / "model")
    for name, x in align.programs(config).ref.tensors.items():
        np.testing.assert_array_equal(model.tensors[name][...], x[...])
    written = (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["prompt"] for line in lines] == list(align.programs(config).texts)
    for line in lines:  # nothing was trained: the same keys, the same answers
        assert line["before"] == line["after"]
        assert line["reward_before"] == line["reward_after"] == len(line["after"])
        assert tokenizer.decode(tokenizer.encode(line["after"])) == line["after"]


def test_factors_of_low_rank_learn_from_a_teacher(config):
    """The reference stands still, whatever the state does; the teacher's divergence is the loss."""
    changes = {"method": "distill", "teacher": "random", "generator": "jensen_shannon",
               "lora_rank": 2, "learning_rate": 0.03}  # fmt: skip
    config = settings.overridden(config, changes)
    align.validate(config, {"seed": 0})
    point, found = {"seed": 0}, []
    with jax.enable_x64(False):
        made, key = align.programs(config), jax.random.key(0)
        before = {name: np.asarray(x[...]) for name, x in made.ref.tensors.items()}
        state = align.init(config, point, key)
        assert {name[-2:] for name in state.tensors} == {".a", ".b"}
        for _ in range(6):
            state, out = align.step(config, point, state, key)
            found.append(out)
        after = align._model(config, state)
    assert float(found[0]["kl"]) == 0 < float(found[1]["kl"])
    assert max(float(out["sampler_apart"]) for out in found) < 1e-4
    assert found[-1]["loss"] < 0.97 * found[0]["loss"]
    for name, x in made.ref.tensors.items():
        np.testing.assert_array_equal(x[...], before[name])
        moved = np.abs(np.asarray(after.tensors[name][...]) - before[name]).max()
        assert (moved > 0) == (name in lm.lora.adapted(made.ref.config)), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "random"}, ["config.teacher", "kl_rl"]),
        ({"method": "distill"}, ["config.teacher", "distill"]),
        ({"method": "distill", "teacher": "nowhere"}, ["config.teacher", "nowhere"]),
    ],
)
def test_a_teacher_is_of_distillation(config, changes, words):
    changed = settings.overridden(config, changes)
    refused(ValueError, words, lambda: align.validate(changed, {"seed": 0}))


def test_ranks_and_vocabularies_that_do_not_fit_are_refused(config, monkeypatch):
    too_much = settings.overridden(config, {"lora_rank": 17})
    refused(Refused, ["config.lora_rank", "at most 8"], lambda: align.init(too_much, {}, None))
    model, tokenizer = models.load("random")
    other = models.load("random", seed=1)[1]
    other.inner.add_tokens(["more"])
    loaded = lambda name, seed=0: (model, other if seed else tokenizer)
    monkeypatch.setattr(models, "load", loaded)
    changes = {"method": "distill", "teacher": "random", "beta": 0.2}
    changed = settings.overridden(config, changes)
    refused(Refused, ["config.teacher", "vocabulary"], lambda: align.programs(changed))
