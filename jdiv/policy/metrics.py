"""What is reported beside a loss: pass@k, maj@k, entropy, sample size, mismatch, shares of tokens.

Pure functions without derivatives. pass@k, max@k and maj@k are those of k answers drawn without
replacement from the n that there are, exactly: the mean over all subsets, which has no bias.
`k`, like n, is a size and no array.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiv import checks, numerics, parallel
from jdiv.estimators import monte_carlo
from jdiv.policy.tokens import kept, masked, masked_mean
from jdiv.types import Indices, Logits, LogProbs, Mask, PerSequence, PerToken, Rewards

# ---------------------------------------------------------------------------------- k of n answers


def _sizes(name: str, x: Array, k: int) -> tuple[int, int]:
    """n of an array `[..., n]`, and k, from 1 to n."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must be of shape [..., n], got {tuple(x.shape)}")
    n = x.shape[-1]
    return n, checks.whole("k", k, 1, n, f"from 1 to {n}, the answers")


@functools.cache
def chances_of_largest(n: int, k: int) -> np.ndarray:
    """Chances `[n]` that the i-th smallest of n is the largest of k, `C(i - 1, k - 1)/C(n, k)`.

    In double precision, by NumPy. Times n/k they are the chances that the k - 1 others of k are
    among the i - 1 smallest.

    >>> print(chances_of_largest(4, 2) * 6)
    [0. 1. 2. 3.]
    """
    # C(i - 2, k - 1)/C(i - 1, k - 1) = (i - k)/(i - 1), from the largest down: no large number.
    place = np.arange(n, 1, -1, dtype=np.float64)
    falling = np.cumprod(np.concatenate([[k / n], np.maximum(place - k, 0) / (place - 1)]))
    return falling[::-1]


def pass_at_k(correct: Rewards, k: int) -> PerSequence:
    """The chance that one of k is correct, `1 - C(n - c, k)/C(n, k)` with c of n correct.

    Answers `correct` are 0 and 1, or booleans. Exactly 0 without a correct one, and exactly 1 where
    fewer than k are wrong. Its mean over n samples of a policy is pass@k of the policy,
    `1 - (1 - p)^k`. Shapes: `[..., n]` to `[...]`.

    >>> [f"{x:.4f}" for x in pass_at_k(jnp.array([[True, False, False, True], [False] * 4]), 2)]
    ['0.8333', '0.0000']

    Reference: Chen et al. 2021 (arXiv:2107.03374), equation 1.
    """
    correct = checks.zeros_and_ones("correct", correct)
    n, k = _sizes("correct", correct, k)
    # All n + 1 values, in double precision; their sum need not be 1 where it has to be.
    table = np.concatenate([[0], np.cumsum(chances_of_largest(n, k)[::-1])])
    table[n - k + 1 :] = 1
    which = jnp.sum(correct == 1, axis=-1, dtype=jnp.int32)
    # NaN stays NaN.
    return jnp.asarray(table, correct.dtype)[which] + 0 * jnp.sum(correct, axis=-1)


def max_at_k(rewards: Rewards, k: int) -> PerSequence:
    """The mean of the largest reward of k answers, pass@k of rewards that are any numbers.

    `sum C(i - 1, k - 1)/C(n, k)` times the i-th smallest. Shapes: `[..., n]` to `[...]`.

    >>> print(f"{max_at_k(jnp.array([0.0, 3.0, 1.0]), 2):.4f}")  # of 3, 3 and 1
    2.3333

    Reference: Walder and Karkhanis 2025 (arXiv:2505.15201), for "maxg@k".
    """
    rewards = jax.lax.stop_gradient(checks.as_rewards("rewards", rewards))
    n, k = _sizes("rewards", rewards, k)
    return jnp.sort(rewards, axis=-1) @ jnp.asarray(chances_of_largest(n, k), rewards.dtype)


@functools.cache
def _binomials(n: int, k: int) -> np.ndarray:
    """Chances `[n + 1, k + 1]` of v successes among c draws, each of chance k/n."""
    share = k / n
    table = np.zeros((n + 1, k + 1))
    table[0, 0] = 1
    for c in range(n):
        table[c + 1] = (1 - share) * table[c]
        table[c + 1, 1:] += share * table[c, :-1]
    return table


def _votes_won(counts: Array, own: Array, k: int) -> Array:
    """The chance that the answer with `own` of the n samples has the majority of k.

    Counts `[n]` are those of the other answers. n draws that each happen with chance k/n are k
    without replacement, given that there are k: all terms are positive and none is large. The
    answer has j votes; another then has fewer, or as many and, with chance y, lower priority. A
    priority uniform in (0, 1) breaks ties evenly: the integral over y is a polynomial's, exact by
    Gauss's rule.
    """
    n = counts.shape[0]
    table = jnp.asarray(_binomials(n, k), float)
    nodes, weights = np.polynomial.legendre.leggauss((k + 1) // 2)
    lower = jnp.asarray((nodes + 1) / 2, table.dtype)[None, :, None]
    votes = jnp.arange(k + 1)
    own_votes = jnp.arange(1, k + 1)[:, None, None]

    def add(state: Array, count: Array) -> tuple[Array, None]:
        """One more answer; the state is `[j, y, votes so far]`."""

        def of_votes(v: Array, total: Array) -> Array:
            kept = jnp.where(v < own_votes, 1, jnp.where(v == own_votes, lower, 0))
            before = jnp.where(votes >= v, jnp.roll(state, v, axis=2), 0)
            return total + kept * table[count, v] * before

        return jax.lax.fori_loop(0, k + 1, of_votes, jnp.zeros_like(state)), None

    start = jnp.where(votes[None, None] == own_votes, table[own][None, None], 0)
    start = jnp.broadcast_to(start, (k, len(nodes), k + 1))
    state, _ = jax.lax.scan(add, start, counts)
    by_priority = jnp.sum(state[:, :, k], axis=0)
    return by_priority @ jnp.asarray(weights / 2, table.dtype) / table[n, k]


def maj_at_k(labels: Indices, target: Indices, k: int) -> PerSequence:
    """The chance that the answer `target` has most votes of k; ties are broken evenly at random.

    `labels` say which answers are the same. With k = 1 it is the share of correct ones, with k = n
    what all samples vote for. In the order of n k^4 operations for each question.
    Shapes: labels `[..., n]`, target `[...]`, to `[...]`.

    >>> share = maj_at_k(jnp.array([7, 7, 5, 3]), jnp.array(7), 3)
    >>> print(f"{share:.4f}")  # of 7 7 5, 7 7 3 and, a third of it, 7 5 3 twice
    0.6667

    Reference: Wang et al. 2022 (arXiv:2203.11171), for the vote.
    """
    labels, target = checks.as_integers("labels", labels), checks.as_integers("target", target)
    n, k = _sizes("labels", labels, k)
    if target.shape != labels.shape[:-1]:
        raise ValueError(
            f"target must be of shape {tuple(labels.shape[:-1])}, got {tuple(target.shape)}"
        )

    def of_question(labels: Array, target: Array) -> Array:
        same = labels[:, None] == labels[None, :]
        place = jnp.arange(n)
        first = ~jnp.any(same & (place[None, :] < place[:, None]), axis=1)
        own = labels == target
        counts = jnp.where(first & ~own, jnp.sum(same, axis=1), 0)
        return _votes_won(counts, jnp.sum(own), k)

    found = jax.vmap(of_question)(labels.reshape(-1, n), target.reshape(-1))
    return found.reshape(target.shape)


# ---------------------------------------------------------------------------- policies and weights


def token_entropy(logits: Logits, mask: Mask, *, axis_name: str | None = None) -> Array:
    """The mean entropy of the next token, in nats, over the places that count; 0 if none does.

    Shapes: logits `[..., T, n]`, mask `[..., T]`, to `[]`.

    >>> print(f"{token_entropy(jnp.zeros((1, 2, 4)), jnp.array([[True, False]])):.4f}")  # log 4
    1.3863
    """
    log_p = numerics.log_softmax(checks.as_float("logits", logits))
    entropy = -jnp.sum(numerics.weigh_all(log_p, log_p), axis=-1)
    return jax.lax.stop_gradient(masked_mean(*kept("entropy", entropy, mask), axis_name))


def effective_sample_size(log_weights: PerToken, mask: Mask) -> PerSequence:
    """`(sum w)^2 / sum w^2`: how many samples of equal weight are worth as much.

    From 1 to the number of samples that count; 0 if none does, or all weights are 0. For weights of
    whole sequences give the sums of their log-ratios. Shapes: `[..., n]` twice to `[...]`.

    >>> log_weights = jnp.log(jnp.array([2.0, 1.0, 1.0, 9.0]))
    >>> size = effective_sample_size(log_weights, jnp.array([True, True, True, False]))
    >>> print(f"{size:.4f}")  # 4^2 / (4 + 1 + 1)
    2.6667

    Reference: Kish 1965, Survey sampling, section 11.7.
    """
    log_weights, mask = kept("log_weights", jax.lax.stop_gradient(log_weights), mask)
    log_weights = jnp.where(mask, log_weights, -jnp.inf)
    largest = jnp.max(log_weights, axis=-1, keepdims=True, initial=-jnp.inf)
    # In units of the largest no square overflows.
    weights = jnp.exp(log_weights - jnp.where(largest == -jnp.inf, 0, largest))
    squares = jnp.sum(weights**2, axis=-1)
    return jnp.sum(weights, axis=-1) ** 2 / jnp.where(squares == 0, 1, squares)


class Mismatch(NamedTuple):
    """How far the policy that is trained is from the one that sampled, over all tokens that count.

    Fields:
        k1: The mean of `log(sampler/pi)`, which estimates KL(sampler‖pi) and may be negative.
        k3: The mean of `pi/sampler - 1 - log(pi/sampler)`, which is nowhere negative.
        largest: `max |log(pi/sampler)|`; the largest ratio is its exponential.
    """

    k1: Array
    k3: Array
    largest: Array


def sampler_mismatch(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    mask: Mask,
    *,
    axis_name: str | None = None,
) -> Mismatch:
    """What the engine that sampled gave its tokens, against what the policy gives them.

    The two should be the same policy: `old_log_probs` are the sampler's. All are 0 if no token
    counts. Shapes: `[..., T]` three times to `[]`.

    >>> new, old = jnp.log(jnp.array([[0.5, 0.1]])), jnp.log(jnp.array([[0.25, 0.1]]))
    >>> print(f"{sampler_mismatch(new, old, jnp.full((1, 2), True)).largest:.4f}")
    0.6931

    Reference: Schulman 2020, Approximating KL divergence.
    """
    log_probs, mask, (old,) = masked(
        jax.lax.stop_gradient(log_probs), mask, old_log_probs=old_log_probs
    )
    largest = jnp.max(jnp.abs(numerics.sampled_log_ratio(log_probs, old)), initial=0)
    return Mismatch(
        masked_mean(monte_carlo.kl_k1(old, log_probs), mask, axis_name),
        masked_mean(monte_carlo.kl_k3(old, log_probs), mask, axis_name),
        parallel.max_over(largest, axis_name),
    )


def token_share(where: Mask, mask: Mask, *, axis_name: str | None = None) -> Array:
    """The share of the tokens that count of which `where` is True; 0 if none counts.

    For what a loss says of its tokens, as `loss.aux.clipped`, or `kl_terms.saturated`.
    Shapes: `[..., T]` twice to `[]`.

    >>> print(token_share(jnp.array([True, False, True]), jnp.array([True, True, False])))
    0.5
    """
    where, mask = checks.as_mask("where", where), checks.as_mask("mask", mask)
    checks.same_shape(where=where, mask=mask)
    return masked_mean(where.astype(float), mask, axis_name)
