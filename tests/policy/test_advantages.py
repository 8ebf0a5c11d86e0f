import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.advantages import (
    batch_advantages,
    grpo_advantages,
    mean_of_others,
    rloo_advantages,
    varied,
)
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.tokens import sequence_mean
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


def test_advantages():
    rewards = RNG.normal(size=(6, 4))
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(grpo_advantages(rewards, scale=False), centred, atol=1e-15)
    np.testing.assert_allclose(
        grpo_advantages(rewards), centred / rewards.std(axis=1, keepdims=True)
    )
    others = [[r[i] - np.delete(r, i).mean() for i in range(4)] for r in rewards]
    np.testing.assert_allclose(rloo_advantages(rewards), others)
    np.testing.assert_allclose(mean_of_others(rewards), rewards - np.array(others))
    kept = NEW[MASK]
    expected = np.zeros_like(NEW)
    expected[MASK] = (kept - kept.mean()) / kept.std()
    np.testing.assert_allclose(batch_advantages(hidden(NEW), MASK), expected, atol=1e-14)
    assert varied(rewards).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_rewards_and_single_answers(dtype):
    # Numbers whose mean is another number.
    for value in (0.1, 0.7, 1e-30, 1e30):
        equal = np.full((2, 49), value, dtype)
        assert not varied(equal).any()
        for advantages in (grpo_advantages, rloo_advantages):
            assert (np.asarray(advantages(equal)) == 0).all()
        assert (np.asarray(batch_advantages(equal, np.full((2, 49), True))) == 0).all()
    single = np.array([[0.3], [2.0]], dtype)
    assert (np.asarray(grpo_advantages(single)) == 0).all()
    np.testing.assert_array_equal(rloo_advantages(single), single)
    tiny = np.array([[1e-12, 3e-12]], dtype)
    np.testing.assert_allclose(grpo_advantages(tiny), [[-1, 1]], rtol=1e-6)


def test_expected_gradients_by_enumeration_of_groups():
    """All 27 groups of three answers out of three: RLOO is unbiased, GRPO's mean too small."""
    logits, rewards = RNG.normal(size=3), np.array([1.0, 0.0, 0.4])
    answers = np.array(list(itertools.product(range(3), repeat=3)))
    p = np.exp(logits) / np.exp(logits).sum()
    chance = p[answers].prod(axis=1)

    def gradient(advantages):
        score = np.eye(3)[answers] - p
        return np.einsum("g,gi,gia->a", chance, np.asarray(advantages), score) / 3

    true = p * (rewards - p @ rewards)
    np.testing.assert_allclose(gradient(rloo_advantages(rewards[answers])), true)
    unscaled = grpo_advantages(rewards[answers], scale=False)
    np.testing.assert_allclose(gradient(unscaled), true * 2 / 3)
    # Without the other answers' mean, too, but for variance.
    np.testing.assert_allclose(gradient(rewards[answers]), true)
    assert gradient(grpo_advantages(rewards[answers])) @ true > 0


def test_wide_rewards_in_single_precision():
    """Squares that overflow, and a reward next to which the others are lost."""
    wide = jnp.array([[1e30, -1e30, 0.0], [1e-30, -1e-30, 0.0]], jnp.float32)
    expected = np.array([1.5**0.5, -(1.5**0.5), 0])
    np.testing.assert_allclose(grpo_advantages(wide), [expected, expected], atol=2e-7)
    batch = batch_advantages(wide, jnp.array([[True] * 3, [False] * 3]))
    np.testing.assert_allclose(batch, [expected, 0 * expected], atol=2e-7)
    others = mean_of_others(jnp.array([[1e8, 1.0, 2.0], [0.1, 0.1, 0.1]], jnp.float32))
    np.testing.assert_array_equal(others[0], np.float32([1.5, 5e7, 5e7]))
    np.testing.assert_array_equal(others[1], np.float32([0.1] * 3))


def test_rewards_may_be_0_and_1_of_any_type():
    plain = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    for given in (plain.astype(int), plain.astype(bool), plain.astype(np.uint8)):
        for advantages in (grpo_advantages, rloo_advantages, mean_of_others, varied):
            np.testing.assert_array_equal(advantages(given), advantages(plain))


def test_conflicts_cancel_at_a_shared_prefix():
    """Two answers with the same first token and opposite rewards."""
    logits = jnp.array([0.3, -0.1])
    advantages = grpo_advantages(jnp.array([[1.0, 0.0]]))[0]

    def loss(logits, second):
        first = jnp.full((2,), jax.nn.log_softmax(logits)[0])
        log_probs = jnp.stack([first, jax.nn.log_softmax(second)], axis=1)
        old, mask = jax.lax.stop_gradient(log_probs), jnp.full((2, 2), True)
        return sequence_mean(ppo_clip(log_probs, old, advantages, mask).loss, mask)

    shared, own = jax.grad(loss, argnums=(0, 1))(logits, jnp.array([0.0, 0.0]))
    np.testing.assert_allclose(shared, 0, atol=1e-16)
    assert own[0] < 0 < own[1]


def test_refusals():
    flat = jnp.ones(6)
    for advantages in (grpo_advantages, rloo_advantages, varied):
        refused(ValueError, ("rewards.reshape", "(6,)"), lambda f=advantages: f(flat))
    refused(ValueError, ("rewards", "two"), lambda: mean_of_others(jnp.ones((3, 1))))
