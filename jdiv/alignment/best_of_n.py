"""The best and the worst of n draws of a reference policy, with ties exact, and what bounds them.

`ref_logits` and laws are `[..., answers]`, -inf an exact zero; n is real and may be traced.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots
from jdiv.alignment.tilts import checked_answers
from jdiv.types import Logits, LogPolicy, PerSample, SequenceLogProbs, Values

# ---------------------------------------------------------------------------------- best of n draws


class Ranks(NamedTuple):
    """Reference mass of the answers no better than an answer, tied with it, and better.

    Fields:
        log_at_most: `[..., n]` `log P(r(z) <= r(y))`, relatively accurate where it is near 0, too.
        log_tied: `[..., n]` `log P(r(z) = r(y))`.
        log_above: `[..., n]` `log P(r(z) > r(y))`.
    """

    log_at_most: Array
    log_tied: Array
    log_above: Array


def ranks(rewards: Values, ref_logits: Logits) -> Ranks:
    """The place of each answer among draws of the reference.

    Only the order of rewards counts, and infinite ones are in order. Shapes: `[..., n]` twice.
    """
    each = jnp.vectorize(_ranks, signature="(n),(n)->(n),(n),(n)")
    return Ranks(*each(*checked_answers(ref_logits, rewards=rewards)))


def _ranks(rewards: Array, log_ref: Array) -> tuple[Array, Array, Array]:
    """`ranks` of one row, by cumulative sums in sorted order."""
    present = log_ref != -jnp.inf
    log_ref = jnp.where(jnp.any(present & jnp.isnan(rewards)), jnp.nan, log_ref)
    order = jnp.argsort(rewards)
    rising, mass = rewards[order], log_ref[order]
    first = jnp.searchsorted(rising, rewards, side="left")
    last = jnp.searchsorted(rising, rewards, side="right") - 1
    upwards = jax.lax.cumlogsumexp(mass)
    downwards = jax.lax.cumlogsumexp(mass, reverse=True)
    above = jnp.concatenate([downwards[1:], jnp.full_like(mass, -jnp.inf, shape=1)])[last]
    # P(r <= .) near 1 is one minus what is above.
    high = above < -jnp.log(2.0)
    at_most = jnp.where(high, jnp.log1p(-jnp.exp(jnp.where(high, above, -1))), upwards[last])
    most = jax.ops.segment_max(log_ref, first, num_segments=len(order))
    most = jnp.where(most != -jnp.inf, most, 0)
    total = jax.ops.segment_sum(jnp.exp(log_ref - most[first]), first, num_segments=len(order))
    return at_most, (most + jnp.log(total))[first], above


def best_of_n(rewards: Values, ref_logits: Logits, n: ArrayLike) -> LogPolicy:
    """Log-law of the best of n draws of the reference, `F^n - F_<^n` for F the law of rewards.

    Tied answers share it in proportion to the reference. With s the share of the tied answers in F
    it is `F^n (1 - (1 - s)^n)`, all in log space: neither `F^n` nor n may overflow. n is any real
    number of at least 1, and may be traced. Shapes: `[..., n]` twice and a number or `[...]`.

    >>> law = best_of_n(jnp.array([2.0, 1.0, 1.0]), jnp.log(jnp.array([0.5, 0.1, 0.4])), 2)
    >>> [f"{p:.4f}" for p in jnp.exp(law)]
    ['0.7500', '0.0500', '0.2000']

    Reference: Beirami et al. 2024 (arXiv:2401.01879); Sessa et al. 2024, BOND (arXiv:2407.14622),
    for the same law with ties.
    """
    of = ranks(rewards, ref_logits)
    rewards, log_ref = checked_answers(ref_logits, rewards=rewards)
    n = jnp.broadcast_to(_draws(n, rewards), rewards.shape[:-1])[..., None]
    present = log_ref != -jnp.inf
    at_most, tied = (jnp.where(present, x, 0) for x in (of.log_at_most, of.log_tied))
    drawn = _log_once(n, jnp.minimum(tied - at_most, 0))
    return jnp.where(present, log_ref - tied + n * at_most + drawn, -jnp.inf)


def worst_of_n(rewards: Values, ref_logits: Logits, n: ArrayLike) -> LogPolicy:
    """Log-law of the worst of n draws of the reference: `best_of_n` of the opposite rewards.

    Shapes: `[..., n]` twice and a number or `[...]`.
    """
    return best_of_n(-checks.as_float("rewards", rewards), ref_logits, n)


def _draws(n: ArrayLike, like: Array) -> Array:
    """The number of draws, of the dtype of `like`."""
    n = checks.in_range("n", n, 1, jnp.inf, "a finite number of at least 1", closed="low")
    return jnp.asarray(n).astype(like.dtype)


def _log_once(n: Array, log_s: Array) -> Array:
    """`log(1 - (1 - s)^n)`: something of probability s comes at least once in n draws.

    The complementary log-log `log(-log(1 - s))` turns n draws into a shift by log n, and both it
    and its inverse are the identity for small numbers.
    """
    small = log_s < -40
    log_rate = jnp.where(small, log_s, jnp.log(-jnp.log1p(-jnp.exp(jnp.where(small, -1, log_s)))))
    log_rate = jnp.log(n) + log_rate
    small = log_rate < -40
    return jnp.where(small, log_rate, jnp.log(-jnp.expm1(-jnp.exp(jnp.where(small, -1, log_rate)))))


def kl_bound(n: ArrayLike) -> Array:
    """`log n - (n - 1)/n`: `KL(best of n‖ref)` where no two draws tie, and above it where they do.

    >>> print(f"{kl_bound(4.0):.5f}")
    0.63629

    Reference: Beirami et al. 2024 (arXiv:2401.01879); Yang et al. 2024, Lemma 6, has `log n`.
    """
    return numerics.exp_residual(-jnp.log(_draws(n, jnp.zeros(()))))


def kl_estimate(ref_log_probs: SequenceLogProbs, n: ArrayLike) -> Array:
    """Estimate of `KL(best of n‖ref)` from answers drawn by best of n: take the mean over them.

    With e the probability of the answer under the reference and `a = (1 - e)^n`,
    `a (log n + (n - 1) log(1 - e) - (n - 1)/n) + (1 - a) log((1 - a)/e)`: the bound for answers
    that hardly come twice, -log e for those that always come. Shapes: any, broadcast.

    Reference: Beirami et al. 2024 (arXiv:2401.01879), the estimator next to the bound.
    """
    log_e = checks.as_float("ref_log_probs", ref_log_probs)
    allowed = "log-probabilities, at most 0"
    most = checks.NORMALIZED
    log_e = checks.in_range("ref_log_probs", log_e, -jnp.inf, most, allowed, closed="low")
    log_e = jnp.asarray(log_e)
    n = _draws(n, log_e)
    certain = log_e >= 0
    log_e = jnp.where(certain, -1, log_e)
    log_rest = jnp.where(log_e > -0.7, jnp.log(-jnp.expm1(log_e)), jnp.log1p(-jnp.exp(log_e)))
    log_once = _log_once(n, log_e)
    never = jnp.exp(n * log_rest) * (kl_bound(n) + (n - 1) * log_rest)
    return jnp.where(certain, 0, never + jnp.exp(log_once) * (log_once - log_e))


def pool_mean(proxy: PerSample, gold: PerSample, n: ArrayLike) -> Array:
    """Mean gold reward of the answer that the proxy likes best among n of a pool of M.

    The average over all subsets of n, which is unbiased for n independent draws: the i-th in rising
    order is the best of `C(i - 1, n - 1)` of the `C(M, n)` subsets, the share
    `n/i prod_(j > i) (1 - n/j)`. Tied answers count with their mean gold reward.
    Shapes: `[M]` twice and n of any shape, to the shape of n; NaN for a traced n above M.

    >>> proxy, gold = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 3.0, 2.0])
    >>> [f"{x:.4f}" for x in pool_mean(proxy, gold, jnp.array([1, 2, 3]))]
    ['2.0000', '2.3333', '2.0000']

    Reference: Nakano et al. 2021, WebGPT (arXiv:2112.09332), for the estimator; that for ties is
    derived here.
    """
    proxy, gold = checks.as_float("proxy", proxy), checks.as_float("gold", gold)
    checks.same_shape(proxy=proxy, gold=gold)
    size = len(proxy)
    allowed = f"from 1 to the size of the pool, {size}"
    n = checks.in_range("n", n, 1, size, allowed, closed="both")
    n = jnp.asarray(n).astype(gold.dtype)[..., None]
    order = jnp.argsort(proxy)
    rising, paid = proxy[order], gold[order]
    group = jnp.searchsorted(rising, rising, side="left")
    total, count = (
        jax.ops.segment_sum(x, group, num_segments=size) for x in (paid, jnp.ones_like(paid))
    )
    rank = jnp.arange(1, size + 1, dtype=gold.dtype)
    rank = jnp.broadcast_to(rank, (*n.shape[:-1], size))
    beyond = rank > n
    factor = jnp.where(beyond, jnp.log1p(-n / jnp.where(beyond, rank, n + 1)), -jnp.inf)
    survival = jax.lax.cumsum(factor, axis=factor.ndim - 1, reverse=True)
    survival = jnp.concatenate([survival[..., 1:], jnp.zeros_like(n)], axis=-1)
    weight = jnp.where(rank >= n, n / rank * jnp.exp(survival), 0)
    weight = jnp.where(jnp.isnan(n) | jnp.any(jnp.isnan(proxy)), jnp.nan, weight)
    return jnp.sum(weight * jnp.broadcast_to(total / count, rank.shape)[..., group], axis=-1)


# -------------------------------------------------------------------------------- optimal win rates


class WinRateOptimum(NamedTuple):
    """The policy with the best win rate at its divergence, for a reference without ties.

    Fields:
        c: `[...]` of the density `c e^(c u) / (e^c - 1)` on the quantiles u of the reward.
        win: `[...]` the probability to beat a draw of the reference.
        divergence: `[...]` `KL(pi‖ref)`.
        residual: `[...]` `|budget / divergence - 1|`; 0 where c was given.
        iterations: `[]` steps of the search for c; 0 where c was given.
        converged: `[...]` whether the residual is small; NaN has not converged.
    """

    c: Array
    win: Array
    divergence: Array
    residual: Array
    iterations: Array
    converged: Array


def win_rate_optimal(c: ArrayLike) -> WinRateOptimum:
    """Win rate and KL of the density `c e^(c u)/(e^c - 1)`, c > 0: no policy wins more at this KL.

    `win = 1/(1 - e^-c) - 1/c` and `KL = c win - log((e^c - 1)/c)`, which is `c^2/24` for small c:
    there from the series with Bernoulli's numbers. Best of n has `win = n/(n + 1)` at the KL of
    `kl_bound`, less by at most .0092. Shapes: any.

    Reference: Gui et al. 2024, BoNBoN (arXiv:2406.00832), the win-rate-optimal policy.
    """
    c = checks.positive("c", checks.as_float("c", c))
    return _win_rate_optimal(jnp.log(c), c)


def _win_rate_optimal(log_c: Array, c: Array) -> WinRateOptimum:
    """`win_rate_optimal` by log c, which is 1 more than the divergence where c is large."""
    far, near = log_c > 4, c < 0.25
    middle = jnp.where(near | far, 1, c)
    ratio = numerics.phi_2(-middle) / numerics.phi_1(-middle)
    plain = middle * (ratio - 1) - jnp.log(numerics.phi_1(-middle))
    small = jnp.where(near, c, 0)
    series = jnp.zeros_like(c)
    for coefficient in reversed(_BERNOULLI):
        series = series * small**2 + coefficient
    of_small = numerics.phi_2(-small) / numerics.phi_1(-small)
    residual = jnp.where(jnp.isnan(c), jnp.nan, 0).astype(c.dtype)
    return WinRateOptimum(
        c=c,
        win=jnp.where(far, 1 - jnp.exp(-log_c), jnp.where(near, of_small, ratio)),
        divergence=jnp.where(far, log_c - 1, jnp.where(near, series * small**2, plain)),
        residual=residual,
        iterations=jnp.zeros((), jnp.int32),
        converged=roots.small(residual),
    )


# B_2k/(2k)! (1 - 1/(2k)) for k = 1, 2, ...: KL = sum of these times c^(2k).
_BERNOULLI = (1 / 24, -1 / 960, 1 / 36288, -1 / 1382400, 1 / 53222400, -691 / 1426553856000)


def win_rate_optimal_to(budget: ArrayLike) -> WinRateOptimum:
    """The best win rate at `KL(pi‖ref) = budget`, by a bracketed Newton search for log c.

    `KL <= c^2/24` and `KL >= log c - 1` are the bracket. Shapes: any.

    >>> print(f"{win_rate_optimal_to(kl_bound(2.0)).win:.6f}")  # best of two: 2/3
    0.675907

    Reference: Gui et al. 2024, BoNBoN (arXiv:2406.00832), the win-rate-optimal policy.
    """
    budget = checks.positive("budget", checks.as_float("budget", budget))

    def excess(x: Array) -> Array:
        return jnp.log(_win_rate_optimal(x, jnp.exp(x)).divergence) - jnp.log(budget)

    low, high = jnp.log(24 * budget) / 2, budget + 1
    low, high = jax.lax.stop_gradient((low, high))
    x, residual, iterations, converged = roots.implicit(excess, low, low, high)
    return _win_rate_optimal(x, jnp.exp(x))._replace(
        residual=residual, iterations=iterations, converged=converged
    )


def bonbon_beta(n: ArrayLike) -> Array:
    """`1 / (2 (n - 1) sum_(k < n) 1/k)`: IPO's beta whose optimum on best against worst is BoN's.

    Shapes: any, n > 1.

    Reference: Gui et al. 2024, BoNBoN (arXiv:2406.00832), beta*_n.
    """
    n = checks.in_range("n", n, 1, jnp.inf, "a finite number above 1")
    n = jnp.asarray(n).astype(jnp.result_type(float))
    return 1 / (2 * (n - 1) * (digamma(n) + np.euler_gamma))
