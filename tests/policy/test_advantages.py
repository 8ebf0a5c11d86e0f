import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.lm import tabular
from jdiv.policy.advantages import (
    batch_advantages,
    grpo_advantages,
    mean_of_others,
    opo_advantages,
    optimal_token_advantages,
    pass_at_k_advantages,
    pass_at_k_grpo_advantages,
    pass_at_k_rewards,
    rloo_advantages,
    score_norms,
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


# ------------------------------------------------------------- pass@k, and least variance


def of_subsets(rewards, k, f):
    """For every answer the mean of f(own reward, the other k - 1) over all subsets with it."""
    n = len(rewards)
    return [
        np.mean([
            f(rewards[i], [rewards[j] for j in others])
            for others in itertools.combinations([j for j in range(n) if j != i], k - 1)
        ])
        for i in range(n)
    ]  # fmt: skip


def largest(own, others):
    return max([own, *others])


def gain(own, others):
    return max([own, *others]) - max(others)


@functools.partial(jax.jit, static_argnums=1)
def for_pass_at_k(rewards, k):
    return pass_at_k_rewards(rewards, k), pass_at_k_advantages(rewards, k)


baselined = jax.jit(optimal_token_advantages)


def test_pass_at_k_is_what_an_answer_adds_to_subsets():
    rewards = RNG.normal(size=(4, 5))
    rewards[1, 1:3], rewards[2] = rewards[1, 0], [1, 0, 0, 1, 0]
    for k in (1, 2, 3, 5):
        of_rewards, of_gains = for_pass_at_k(rewards, k)
        expected = [of_subsets(r, k, largest) for r in rewards]
        np.testing.assert_allclose(of_rewards, expected, atol=1e-14)
        expected = [k * np.array(of_subsets(r, k, gain)) for r in rewards] if k > 1 else None
        if k == 1:
            expected = rloo_advantages(rewards)
        np.testing.assert_allclose(of_gains, expected, atol=1e-14)
    # With the whole group only the best one, by its distance to the second: as verl has it.
    best, second = np.sort(rewards, axis=1)[:, [-1]], np.sort(rewards, axis=1)[:, [-2]]
    only = np.where(rewards == best, 5 * (best - second), 0)
    np.testing.assert_allclose(of_gains, only, atol=1e-14)


def test_pass_at_k_grpo():
    """Against `pass_at_k_rewards`, centered and scaled by the Bernoulli std of a subset."""
    n = 6
    correct = np.arange(n) < np.arange(n + 1)[:, None]
    for k in (1, 2, 4, n):
        found = pass_at_k_grpo_advantages(correct, k)
        of_k = np.asarray(pass_at_k_rewards(correct, k))
        mean = of_k.mean(axis=1, keepdims=True)
        std = np.sqrt(np.maximum(mean * (1 - mean), 0))
        expected = np.where(std > 1e-7, (of_k - mean) / np.where(std > 1e-7, std, 1), 0)
        np.testing.assert_allclose(found, expected, atol=1e-13)
    np.testing.assert_allclose(pass_at_k_grpo_advantages(correct, 1), grpo_advantages(correct))


def test_expected_gradient_is_that_of_pass_at_k():
    """All 81 groups of four answers out of three; one of the rewards is not 0 or 1."""
    logits, rewards, n, k = RNG.normal(size=3), np.array([1.0, 0.0, 0.4]), 4, 3
    answers = np.array(list(itertools.product(range(3), repeat=n)))
    p = np.exp(logits) / np.exp(logits).sum()
    chance = p[answers].prod(axis=1)
    score = np.eye(3)[answers] - p
    draws = np.array(list(itertools.product(range(3), repeat=k)))

    def mean_of_largest(logits):
        log_p = jax.nn.log_softmax(logits)
        return jnp.exp(log_p[draws].sum(axis=1)) @ rewards[draws].max(axis=1)

    true = jax.jit(jax.grad(mean_of_largest))(logits)
    of_rewards, of_gains = for_pass_at_k(rewards[answers], k)
    found = [
        np.einsum("g,gi,gia->a", chance, np.asarray(advantages), score) / n
        for advantages in (k * np.asarray(of_rewards), of_gains)
    ]
    np.testing.assert_allclose(found, [true, true], atol=1e-14)


def test_pass_at_k_in_single_precision():
    """Far rewards, equal ones, and a question with one wrong answer of 512."""
    equal = np.full((1, 49), 0.1, np.float32)
    assert (np.asarray(pass_at_k_advantages(equal, 4)) == 0).all()
    wide = np.array([[3e37, -3e37, 0.0, 1.0]], np.float32)
    found = pass_at_k_advantages(wide, 2)  # twice the mean over the three others
    np.testing.assert_allclose(found, [[8e37, 0, 2e37, 2e37]], rtol=1e-6)
    one_wrong = np.arange(512)[None] < 511
    np.testing.assert_allclose(
        pass_at_k_grpo_advantages(one_wrong, 1), grpo_advantages(one_wrong), rtol=1e-6
    )
    assert (np.asarray(pass_at_k_grpo_advantages(one_wrong, 2)) == 0).all()


def test_score_norms():
    logits = RNG.normal(size=(4, 3))
    scores = np.eye(3)[:, None] - np.asarray(jax.nn.softmax(logits))[None]
    found = np.stack([score_norms(logits, np.full(4, a)) for a in range(3)])
    np.testing.assert_allclose(found, (scores**2).sum(axis=2), atol=1e-15)
    sure = score_norms(np.array([0.0, -15.0, -np.inf], np.float32), np.array(0))
    np.testing.assert_allclose(sure, 2 * np.exp(-30), rtol=1e-5)


def packed_baselines(returns, weights, mask):
    """By lists of the tokens that count."""
    found = np.zeros_like(returns)
    for g, w, m, into in zip(returns, weights, mask, found, strict=True):
        own = [np.flatnonzero(row) for row in m]
        for i, row in enumerate(own):
            for t, place in enumerate(row):
                there = [(j, own[j][t]) for j in range(len(own)) if len(own[j]) > t]
                total = sum(w[x] for x in there)
                baseline = sum(w[x] * g[x] for x in there) / total if len(there) > 1 else 0
                into[i, place] = g[i, place] - baseline
    return found


def test_baselines_of_groups():
    rewards, lengths = RNG.normal(size=(3, 4)), RNG.integers(1, 9, (3, 4))
    baseline = (rewards * lengths).sum(axis=1, keepdims=True) / lengths.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(opo_advantages(rewards, lengths), rewards - baseline)
    np.testing.assert_array_equal(opo_advantages(rewards[:, :1], lengths[:, :1]), rewards[:, :1])
    returns, weights = RNG.normal(size=(2, 4, 5)), RNG.random((2, 4, 5))
    mask = RNG.random((2, 4, 5)) < 0.7
    mask[0, 0], mask[0, 1:, 3:], mask[1, 2] = True, False, False
    given = [np.where(mask, x, np.nan) for x in (returns, weights)]
    found = baselined(*given, mask)
    np.testing.assert_allclose(found, packed_baselines(returns, weights, mask), atol=1e-14)
    for value in (0.1, 0.7):
        equal = optimal_token_advantages(
            np.full((2, 4, 5), value), weights, np.full(mask.shape, True)
        )
        assert (np.asarray(equal) == 0).all()
    still = baselined(returns, 0 * weights, mask)
    np.testing.assert_array_equal(still, np.where(mask, returns, 0))


def test_least_variance_of_a_table():
    """Weights of the tokens' own scores: any other baseline of the same places has more."""
    logits = RNG.normal(size=tabular.table_shape(3))
    sequences = tabular.enumerate_sequences(logits.shape)
    rewards = RNG.normal(size=len(sequences.lengths))
    p = np.exp(np.asarray(tabular.sequence_log_probs(logits)))
    policy = np.asarray(jax.nn.softmax(logits))
    scores = np.zeros((*sequences.tokens.shape, *logits.shape))
    for i, t in np.argwhere(sequences.mask):
        row = sequences.prefixes[i, t]
        scores[i, t, row] = np.eye(3)[sequences.tokens[i, t]] - policy[row]
    returns = np.where(sequences.mask, rewards[:, None], 0.0)
    norms = score_norms(logits[sequences.prefixes], sequences.tokens * sequences.mask)
    advantages = baselined(
        returns[None], p[None, :, None] * np.asarray(norms)[None], sequences.mask[None]
    )[0]
    baseline = np.where(sequences.mask, returns - np.asarray(advantages), np.nan)
    baseline = np.nanmax(baseline, axis=0)

    def variance(baseline):
        gradient = np.einsum("st,stpv->spv", returns - baseline * sequences.mask, scores)
        mean = np.tensordot(p, gradient, 1)
        return p @ ((gradient - mean) ** 2).sum(axis=(1, 2)), mean

    least, mean = variance(baseline)
    plain, expected = variance(np.zeros(3))
    np.testing.assert_allclose(mean, expected, atol=1e-14)
    assert least < plain
    for t in range(3):
        for step in (-1e-3, 1e-3):
            assert variance(baseline + step * np.eye(3)[t])[0] > least


def test_refusals():
    flat = jnp.ones(6)
    for advantages in (grpo_advantages, rloo_advantages, varied):
        refused(ValueError, ("rewards.reshape", "(6,)"), lambda f=advantages: f(flat))
    refused(ValueError, ("rewards", "two"), lambda: mean_of_others(jnp.ones((3, 1))))
    for f in (pass_at_k_rewards, pass_at_k_advantages, pass_at_k_grpo_advantages):
        refused(ValueError, ("reshape", "(6,)"), lambda f=f: f(flat, 2))
        refused(ValueError, ("k", "1 to 3"), lambda f=f: f(jnp.ones((2, 3)), 4))
    refused(
        ValueError, ("correct", "0 and 1"),
        lambda: pass_at_k_grpo_advantages(np.array([[0.5, 1.0]]), 1),
    )  # fmt: skip
    refused(ValueError, ("lengths",), lambda: opo_advantages(np.ones((2, 3)), np.ones((2, 1))))
    flat = np.ones((2, 3))
    refused(ValueError, ("returns", "T"), lambda: optimal_token_advantages(flat, flat, flat > 0))
