import jax
import jax.numpy as jnp
import numpy as np

from jdiv import parallel
from jdiv.policy.advantages import batch_advantages
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.tokens import (
    AVERAGES,
    bnpo_weights,
    constant_mean,
    constant_weights,
    sequence_mean,
    sequence_weights,
    to_go,
    token_mean,
    token_weights,
)
from tests.checks import refused

RNG = np.random.default_rng(0)
N, T = 16, 5
OLD = RNG.normal(size=(N, T)) - 2
NEW = OLD + 0.4 * RNG.normal(size=(N, T))
MASK = np.arange(T) < RNG.integers(0, T + 1, N)[:, None]
MASK[:3] = [[False] * T, [True] * T, [True] + [False] * (T - 1)]


def hidden(x, with_=np.nan):
    """What a caller might have behind the end."""
    return np.where(MASK, x, with_)


def averages(x, mask, axis_name=None):
    return jnp.stack([
        token_mean(x, mask, axis_name=axis_name),
        sequence_mean(x, mask, axis_name=axis_name),
        constant_mean(x, mask, 7.0, axis_name=axis_name),
    ])  # fmt: skip


def test_averages():
    rows = [NEW[i][MASK[i]] for i in range(N) if MASK[i].any()]
    expected = [
        np.concatenate(rows).mean(),
        np.mean([row.mean() for row in rows]),
        np.mean([row.sum() / 7 for row in rows]),
    ]
    np.testing.assert_allclose(averages(hidden(NEW), MASK), expected)
    np.testing.assert_array_equal(averages(hidden(NEW), np.zeros_like(MASK)), 0)
    assert averages(np.ones((0, T)), np.ones((0, T), bool)).tolist() == [0, 0, 0]


def test_a_divided_batch_has_the_same_averages_and_gradients():
    whole = jax.jit(jax.jacrev(averages))(NEW, MASK)

    def of_part(x, mask):
        gradient = jax.jacrev(lambda x: averages(x, mask, parallel.BATCH))(x)
        # Of a parameter that all devices share the mean is taken; x here is each device's own.
        advantages = batch_advantages(x, mask, axis_name=parallel.BATCH)
        return averages(x, mask, parallel.BATCH), gradient, advantages

    parts = (x.reshape(8, N // 8, T) for x in (NEW, MASK))
    values, gradients, advantages = jax.pmap(of_part, axis_name=parallel.BATCH)(*parts)
    np.testing.assert_allclose(values, np.broadcast_to(averages(NEW, MASK), (8, 3)))
    joined = np.moveaxis(np.asarray(gradients), 1, 0).reshape(3, N, T)
    np.testing.assert_allclose(joined / 8, whole, atol=1e-15)
    np.testing.assert_allclose(advantages.reshape(N, T), batch_advantages(NEW, MASK), atol=1e-12)


def test_share_of_the_gradient_by_length():
    length = MASK.sum(axis=1)
    loss = jax.jit(
        jax.jacrev(
            lambda new: averages(ppo_clip(new, NEW, np.ones(N), MASK).loss, MASK)
        ))  # fmt: skip
    share = np.asarray(loss(NEW)).sum(axis=2)
    flat = (length > 0) / (length > 0).sum()
    for found, expected in zip(
        share, (length / length.sum(), flat, flat * length / 7), strict=True
    ):
        np.testing.assert_allclose(-found, expected)


def weights(mask, axis_name=None):
    return jnp.stack([
        token_weights(mask, axis_name=axis_name),
        sequence_weights(mask, axis_name=axis_name),
        constant_weights(mask, 7.0, axis_name=axis_name),
    ])  # fmt: skip


def test_weights_of_an_average_are_its_derivative():
    value, slope = jax.jit(lambda x: (averages(x, MASK), jax.jacrev(averages)(x, MASK)))(NEW)
    found = np.asarray(weights(MASK))
    np.testing.assert_allclose(found, slope, rtol=1e-15)
    np.testing.assert_allclose((found * NEW).sum(axis=(1, 2)), value, rtol=1e-13)
    assert not np.asarray(weights(np.zeros_like(MASK))).any()
    by_hand = {
        "GRPO": (found[1], found[1]),
        "DAPO": (found[0], found[0]),
        "Dr. GRPO": (7 / T * found[2],) * 2,
        "LUSPO": (7 * found[2],) * 2,
        "SAPO and GMPO, verl": (found[1], found[0]),
    }
    for name, average in AVERAGES.items():
        of_both = average.loss(MASK), average.kl(MASK)
        np.testing.assert_allclose(of_both, by_hand[name], rtol=1e-15, err_msg=name)


def test_weights_of_a_divided_batch():
    parts = MASK.reshape(8, N // 8, T)
    divided = jax.pmap(lambda mask: weights(mask, parallel.BATCH), axis_name=parallel.BATCH)(parts)
    joined = np.moveaxis(np.asarray(divided), 1, 0).reshape(3, N, T)
    np.testing.assert_allclose(joined, weights(MASK), rtol=1e-15)
    x = NEW.reshape(parts.shape)
    each = [x[i][parts[i]].mean() if parts[i].any() else 0 for i in range(8)]
    np.testing.assert_allclose(np.sum(bnpo_weights(parts) * x), np.mean(each))


def test_refusals():
    ones, mask = jnp.ones((2, 3)), jnp.full((2, 3), True)
    refused(TypeError, ("mask", "boolean"), lambda: token_mean(ones, ones))
    refused(ValueError, ("token_rewards", "mask"), lambda: to_go(ones, mask[:1]))
