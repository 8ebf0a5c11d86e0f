"""Low-rank factors: the first model to the bit, gradients by the chain rule, files."""

import functools

import jax
import numpy as np
import optax
import pytest

from jdiv import checkpoints, lm
from jdiv.lm import lora, train
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from tests.checks import refused

CONFIG = Config(vocabulary=13, width=6, layers=2, heads=2, key_heads=1, head_width=4, hidden=5)
STEP = 0.5
OPTIMIZER = optax.sgd(STEP)


@functools.cache
def model():
    return Transformer.random(CONFIG, jax.random.key(0))


def text():
    tokens = np.random.default_rng(0).integers(0, 13, (4, 6)).astype(np.int32)
    return train.Text(tokens, np.arange(6)[None] >= np.array([1, 3, 2, 5])[:, None])


@functools.cache
def steps():
    """One update of a state in which B is given, and the model's own update: one program each."""

    @jax.jit
    def low_rank(state, model):
        whole = functools.partial(lora.merged, model, alpha=3.0)
        return train.update(
            state, text(), train.sft, config=CONFIG, optimizer=OPTIMIZER, whole=whole
        )[0]

    full = functools.partial(
        train.update, batch=text(), loss=train.sft, config=CONFIG, optimizer=OPTIMIZER
    )
    return low_rank, jax.jit(lambda state: full(state)[0])


def arrays(model):
    return {name: np.asarray(x[...]) for name, x in model.tensors.items()}


def factors(rank=3, pattern=".*"):
    """As before training, as NumPy's arrays."""
    begun = lora.begin(model(), jax.random.key(1), rank=rank, pattern=pattern)
    return {name: np.asarray(x) for name, x in begun.items()}


def test_the_first_model_is_the_model_itself():
    begun = factors()
    assert {name.split(".")[0] for name in begun} == {
        "query", "key", "value", "output", "gate", "up", "down"
    }  # fmt: skip
    same = arrays(lora.merged(model(), begun, alpha=16.0))
    for name, x in arrays(model()).items():
        np.testing.assert_array_equal(same[name], x)
    assert list(factors(2, "query|value")) == ["query.a", "query.b", "value.a", "value.b"]
    assert factors(2)["down.a"].shape == (2, 2, 5)
    deviation = np.std(factors(400)["query.a"])
    np.testing.assert_allclose(deviation, 6**-0.5, rtol=0.05)


def test_the_gradient_is_the_chain_rule_of_the_models():
    """dA = s B'G and dB = s G A', G the gradient by the product, s = alpha/rank."""
    rng, begun = np.random.default_rng(2), factors()
    given = {k: rng.normal(size=x.shape).astype(np.float32) / 3 for k, x in begun.items()}
    low_rank, full = steps()
    whole = lora.merged(model(), given, alpha=3.0)
    before = arrays(whole)
    after = {k: np.asarray(x) for k, x in full(train.begin(whole, OPTIMIZER)).tensors.items()}
    changed = low_rank(train.begin(given, OPTIMIZER), model()).tensors
    for name in lora.adapted(CONFIG):
        a, b = given[f"{name}.a"].astype(float), given[f"{name}.b"].astype(float)
        w = arrays(model())[name] + np.einsum("lor,lri->loi", b, a)
        np.testing.assert_allclose(before[name], w, atol=1e-6)
        g = (before[name].astype(float) - after[name]) / STEP
        for part, wanted in (("a", np.einsum("lor,loi->lri", b, g)),
                             ("b", np.einsum("loi,lri->lor", g, a))):  # fmt: skip
            found = (given[f"{name}.{part}"] - np.asarray(changed[f"{name}.{part}"])) / STEP
            np.testing.assert_allclose(found, wanted, atol=2e-6, err_msg=f"{name}.{part}")
            assert np.abs(wanted).max() > 1e-4


def test_at_full_rank_a_step_is_the_models_own(tmp_path):
    """A the identity: B moves as the product does. Written to a file, it is that model."""
    low_rank, full = steps()
    begun = factors(3, "query|key")  # keys have 4 outputs of 6 inputs, so rank 6 is full for both
    full_rank = {
        name: np.broadcast_to(np.eye(6, dtype=np.float32), (2, 6, 6))
        if name.endswith("a")
        else np.zeros((*x.shape[:2], 6), np.float32)
        for name, x in begun.items()
    }
    # alpha is 3, so the scale of rank 6 is 1/2: twice the identity makes it 1 for the product, and
    # the step of B is 1/2 times twice the gradient.
    full_rank = {k: 2 * x for k, x in full_rank.items()}
    state = low_rank(train.begin(full_rank, OPTIMIZER), model())
    own = full(train.begin(model(), OPTIMIZER)).tensors
    made = lora.merged(model(), state.tensors, alpha=3.0)
    for name, x in arrays(made).items():
        wanted = own[name] if name in ("query", "key") else model().tensors[name][...]
        np.testing.assert_allclose(x, wanted, atol=1e-6, err_msg=name)
    lm.save(made, tmp_path)
    again, _ = lm.load(tmp_path)
    for name, x in arrays(made).items():
        np.testing.assert_array_equal(arrays(again)[name], x)


def test_a_checkpoint_holds_the_factors_alone(tmp_path):
    optimizer = optax.adamw(1e-2)
    state = train.begin(factors(pattern="value"), optimizer)
    checkpoints.save(tmp_path, 1, train.saved(state), keep=1)
    kept = checkpoints.restore(tmp_path)[1]
    assert sum(x.size for x in kept.values()) == 3 * 2 * (3 * 6 + 4 * 3) + 2
    again = train.restored(train.begin(factors(pattern="value"), optimizer), kept)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    with pytest.raises(ValueError, match="not of this state"):
        train.restored(train.begin(factors(), optimizer), kept)


def test_half_precision_stays_what_it_was():
    """The sum is made in single precision and rounded once."""
    half = Transformer(CONFIG, {k: x.astype("bfloat16") for k, x in arrays(model()).items()})
    given = {k: np.ones_like(x) / 64 for k, x in factors(pattern="up").items()}
    made = lora.merged(half, given, alpha=3.0)
    assert {str(x.dtype) for x in arrays(made).values()} == {"bfloat16"}
    wanted = arrays(half)["up"].astype(np.float32) + 3 / 64**2
    np.testing.assert_array_equal(arrays(made)["up"], wanted.astype("bfloat16"))


def test_what_is_refused():
    refused(ValueError, ["rank"], lambda: factors(0))
    refused(ValueError, ["pattern", "norm", "query"], lambda: factors(2, "norm"))
