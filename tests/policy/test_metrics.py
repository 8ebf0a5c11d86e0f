"""Against the mean over all subsets, by itertools, and integers without rounding."""

import collections
import fractions
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.policy import metrics
from tests.checks import refused

RNG = np.random.default_rng(0)
N = 6


def majority(votes, target):
    """The share of the answers with most votes that the target is."""
    found = collections.Counter(votes)
    most = [answer for answer, count in found.items() if count == max(found.values())]
    return (target in most) / len(most)


def over_subsets(f, x, k):
    return np.mean([f(list(chosen)) for chosen in itertools.combinations(x, k)])


@functools.partial(jax.jit, static_argnames="k")
def of_k(correct, rewards, labels, target, k):
    return (
        metrics.pass_at_k(correct, k),
        metrics.max_at_k(rewards, k),
        metrics.maj_at_k(labels, target, k),
    )


def test_of_k_are_the_means_over_subsets():
    correct = RNG.random((7, N)) < np.linspace(0, 1, 7)[:, None]
    rewards, labels = RNG.normal(size=(7, N)), RNG.integers(0, 4, (7, N))
    labels[0], labels[1], labels[2, :4] = 2, np.arange(N), [1, 1, 2, 2]
    target = np.array([2, 3, 1, 0, 1, 5, 2])
    for k in (1, 2, 3, 4, N):
        found = np.asarray(of_k(correct, rewards, labels, target, k))
        for i in range(7):
            expected = (
                over_subsets(any, correct[i], k),
                over_subsets(max, rewards[i], k),
                over_subsets(functools.partial(majority, target=target[i]), labels[i].tolist(), k),
            )
            np.testing.assert_allclose(found[:, i], expected, atol=1e-14, err_msg=f"{k} {i}")


def test_exact_for_many_samples_in_single_precision():
    for n, k, c in ((10_000, 1000, 3), (10_000, 1000, 9001), (4096, 1, 7), (2000, 64, 150)):
        correct = (np.arange(n) < c)[None]
        expected = 1 - fractions.Fraction(math.comb(n - c, k), math.comb(n, k))
        with jax.enable_x64(False):
            found = metrics.pass_at_k(correct, k)
            mean = metrics.max_at_k(correct, k)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, float(expected), rtol=1e-7)
        np.testing.assert_allclose(mean, float(expected), rtol=1e-6)
        assert (found[0] == 1) == (n - c < k)
    assert metrics.pass_at_k(np.zeros(9), 3) == 0
    # In double precision the sums of chances are not 1 for some of these.
    assert [metrics.pass_at_k(np.arange(27) > k - 2, k) for k in range(2, 9)] == [1] * 7


def test_majority_of_two_answers_in_single_precision():
    """128 samples, of which 70 are right: the votes of k have a hypergeometric law."""
    n, c, k = 128, 70, 16
    labels = np.where(np.arange(n) < c, 4, 9)
    chances = [math.comb(c, v) * math.comb(n - c, k - v) for v in range(k + 1)]
    won = sum(chances[k // 2 + 1 :]) + fractions.Fraction(chances[k // 2], 2)
    with jax.enable_x64(False):
        found = metrics.maj_at_k(labels, np.array(4), k)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, float(won / math.comb(n, k)), rtol=2e-6)


def test_unbiased_over_all_samples_of_a_policy():
    """All 3^4 groups of four answers, each by its chance: pass@k and the majority of k."""
    p, right, k = np.array([0.2, 0.5, 0.3]), 0, 3
    groups = np.array(list(itertools.product(range(3), repeat=4)))
    chance = p[groups].prod(axis=1)
    rewards = np.array([1.0, -2.0, 0.5])[groups]
    found = of_k(groups == right, rewards, groups, np.full(len(groups), right), k)
    draws = np.array(list(itertools.product(range(3), repeat=k)))
    law = p[draws].prod(axis=1)
    largest = np.array([1.0, -2.0, 0.5])[draws].max(axis=1)
    wins = [majority(votes.tolist(), right) for votes in draws]
    expected = 1 - (1 - p[right]) ** k, law @ largest, law @ wins
    np.testing.assert_allclose([chance @ x for x in found], expected, atol=1e-14)


@jax.jit
def of_tokens(logits, log_weights, counted, new, old, mask):
    return (
        metrics.token_entropy(logits, mask),
        metrics.effective_sample_size(log_weights, counted),
        metrics.sampler_mismatch(new, old, mask),
        metrics.token_share(old < -2, mask),
    )


def test_entropy_weights_and_mismatch():
    logits, mask = RNG.normal(size=(2, 3, 5)), np.array([[True, True, False], [True, False, False]])
    logits[0, 0] = [0, -np.inf, -np.inf, -np.inf, 0]
    logits[~mask] = np.nan
    log_weights = np.array([[800, 800, np.nan], [-900, -900 + np.log(3), np.nan], [-np.inf] * 3])
    counted = np.array([[True, True, False], [True, True, False], [True] * 3])
    old = RNG.normal(size=(2, 3)) - 2
    new = old + np.where(mask, RNG.normal(size=(2, 3)), np.nan)
    entropy, size, mismatch, share = of_tokens(logits, log_weights, counted, new, old, mask)

    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = np.mean([-np.sum(x[x > 0] * np.log(x[x > 0])) for x in p[mask]])
    np.testing.assert_allclose(entropy, expected)
    np.testing.assert_allclose(size, [2, 16 / 10, 0])
    t = (new - old)[mask]
    np.testing.assert_allclose(mismatch, [-t.mean(), (np.exp(t) - 1 - t).mean(), abs(t).max()])
    np.testing.assert_allclose(share, np.mean(old[mask] < -2))
    nothing = of_tokens(logits, log_weights, counted & False, new, old, mask & False)
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))


def test_half_precision_and_far_log_probabilities():
    far = np.array([[0.0, -1e4]], jnp.bfloat16)
    found = jax.jit(metrics.sampler_mismatch)(far, 0 * far, np.full((1, 2), True))
    total = -float(far[0, 1])
    np.testing.assert_allclose(found, [total / 2, (total - 1) / 2, total])
    assert found.k1.dtype == np.float32


def test_refusals():
    for f in (metrics.pass_at_k, metrics.max_at_k):
        refused(ValueError, ("k", "1 to 3"), lambda f=f: f(np.ones(3), 4))
        refused(TypeError, ("k",), lambda f=f: f(np.ones(3), 1.5))
        refused(ValueError, ("[..., n]",), lambda f=f: f(np.ones(()), 1))
    refused(ValueError, ("correct", "0 and 1"), lambda: metrics.pass_at_k(np.array([0.5, 1]), 1))
    refused(ValueError, ("target",), lambda: metrics.maj_at_k(np.ones((2, 3), int), np.array(1), 1))
    refused(TypeError, ("labels",), lambda: metrics.maj_at_k(np.ones(3), np.array(1), 1))
    refused(
        ValueError, ("where", "mask"),
        lambda: metrics.token_share(np.full(2, True), np.full(3, True)),
    )  # fmt: skip
    found = jax.jit(metrics.pass_at_k, static_argnums=1)(np.array([[0.5, 1], [0, 1]]), 1)
    np.testing.assert_array_equal(found, [np.nan, 0.5])
