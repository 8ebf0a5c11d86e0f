"""The examples do what they say, and the notebook runs."""

import functools
import importlib.util
import json
import pathlib

import jax
import matplotlib as mpl
import numpy as np
import optax
import pytest

from jdiv import lm
from jdiv.lm import train

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def as_a_reader_has_it():
    """Single precision, and casts as JAX makes them by itself."""
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dpo_step():
    before, after = example("dpo_step").main(steps=60)
    assert before < 0.6
    assert after > 0.9


def test_grpo_step():
    first, last, kl = example("grpo_step").main(steps=25)
    assert last > first + 1
    assert kl > 0


def test_distill_step():
    before, after = example("distill_step").main(steps=100)
    assert before > 1
    assert after < 0.1


def test_tunix_f_dpo():
    """Its loss and its batches in an update of our own: Tunix is no dependency."""
    module = example("tunix_f_dpo")
    config = lm.Config(vocabulary=8, **module.SIZES)
    ref, optimizer = lm.Transformer.random(config, jax.random.key(0)), optax.adam(1e-3)
    *batches, unseen = module.pairs(ref, 61)
    chosen, rejected = ((x.tokens[:, 3:] == 0).sum(axis=1) for x in unseen[:2])
    assert (chosen >= rejected).all()
    step = jax.jit(functools.partial(
        train.update, loss=module.loss, config=config, optimizer=optimizer
    ))  # fmt: skip
    state = train.begin(ref, optimizer)
    for batch in batches:
        state, _ = step(state, batch)
    accuracy = module.loss(lm.Transformer(config, state.tensors), unseen)[1]["accuracy"]
    assert accuracy > 0.7


def test_trl_batch():
    """Against the formulas with a loop over rows and tokens."""
    module = example("trl_batch")
    log_probs, batch = module.batch()
    value, gradient = module.main()
    old, ref = batch["old_per_token_logps"], batch["ref_per_token_logps"]
    mask, rewards = batch["completion_mask"], batch["rewards"]
    total = 0.0
    for row, reward in enumerate(rewards):
        group = rewards[row // 4 * 4 :][:4]
        advantage = (reward - group.mean()) / group.std()
        each = []
        for token in np.flatnonzero(mask[row]):
            ratio = np.exp(log_probs[row, token] - old[row, token])
            less = ref[row, token] - log_probs[row, token]
            clip = min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
            each.append(-clip + 0.04 * (np.exp(less) - less - 1))
        total += np.mean(each) / len(rewards)
    assert value == pytest.approx(total, rel=1e-5)
    assert np.all(gradient[mask == 0] == 0)


def test_own_process():
    weights, gaps = example("own_process").main()
    assert weights[0] == 0
    assert gaps[0] > 1
    assert gaps[-1] < 0.1


def test_quickstart():
    mpl.use("agg")
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    code = ["".join(x["source"]) for x in notebook["cells"] if x["cell_type"] == "code"]
    assert all(not x.get("outputs") for x in notebook["cells"])
    names = {}
    for cell in code:
        exec(compile(cell, "quickstart.ipynb", "exec"), names)
    mpl.pyplot.close("all")
    assert names["preference"]
