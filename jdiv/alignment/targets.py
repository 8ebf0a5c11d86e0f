"""Targets of alignment on finite answer sets, exactly and in log space.

Three families of laws over the answers to a prompt, all relative to a reference policy:

* tilts, `argmax E[r] - beta D(pi‖ref)` (`tilted`), or the one at a given divergence (`tilted_to`);
  with KL the tilt is `ref exp(r / beta)`, the preference target of f-DPG and the optimum of RLHF;
* energy-based models `ref(x) b(x)` (`pointwise`; `tilted` with KL has `b = exp(r / beta)`) and
  `ref(x) exp(lambda . phi(x))` with given moments (`with_moments`);
* the best and the worst of n draws (`best_of_n`, `worst_of_n`), with ties exact.

`log_policy` and `ref_logits` are `[..., answers]`, -inf an exact zero. The divergence of any of
these laws is `divergences.kl(law, ref)`. The cumulant generating function `log sum ref e^(t r)` of
the reward is `t * tilted(r, ref, 1/t, kl).normaliser`; its derivatives at t are the `cumulants` of
that tilt.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots
from jdiv.divergences import categorical
from jdiv.divergences.generators import Generator, TotalVariation
from jdiv.regularized import Greedy, greedy

# ------------------------------------------------------------------------------------------- tilts


def tilted(
    rewards: ArrayLike, ref_logits: ArrayLike, beta: ArrayLike, generator: Generator
) -> Greedy:
    """The policy that maximises `E[r] - beta D(pi‖ref)`, which has `f'(pi/ref) = (r - c)/beta`.

    Shapes: rewards and ref_logits `[..., n]`, beta a positive number or `[...]`. With KL, the
    field's reverse KL, it is `ref exp(r/beta)`. This is `regularized.greedy` in the words of
    alignment, for finite rewards; an answer to be excluded belongs into the reference.

    >>> from jdiv import generators
    >>> target = tilted(jnp.array([1.0, 0.0]), jnp.zeros(2), 0.5, generators.kl())
    >>> [f"{p:.4f}" for p in jnp.exp(target.log_policy)]
    ['0.8808', '0.1192']

    Reference: Go et al. 2023 (arXiv:2302.08215), preference targets, for KL; Wang et al. 2024
    (arXiv:2309.16240), Theorem 1, for any generator.
    """
    rewards = checks.as_float("rewards", rewards)
    checks.in_range("rewards", rewards, -jnp.inf, jnp.inf, "finite")
    checks.positive("beta", beta)
    return greedy(rewards, ref_logits, beta, generator)


class Budgeted(NamedTuple):
    """The tilt of each row that spends a given divergence, with the evidence that it does."""

    log_policy: Array
    """`[..., n]` log-probabilities."""
    beta: Array
    """`[...]` the temperature of the tilt."""
    divergence: Array
    """`[...]` `D(pi‖ref)`, found close to the budget."""
    residual: Array
    """`[...]` `|budget / divergence - 1|`."""
    iterations: Array
    """Steps of the search in log beta; one number for the whole batch."""
    converged: Array
    """`[...]` false above all, with the limit beta -> 0, if the budget is out of reach."""


def tilted_to(
    rewards: ArrayLike, ref_logits: ArrayLike, budget: ArrayLike, generator: Generator
) -> Budgeted:
    """The best policy within a divergence: `max E[r]` subject to `D(pi‖ref) <= budget`.

    Shapes: rewards and ref_logits `[..., n]`, budget a positive number or `[...]`. The divergence
    of the tilt falls with beta: a bracketed Newton search for log beta, in log D. No tilt has more
    than all mass on the best answers, and a budget above that has `converged` false. Not for total
    variation, whose tilts jump. Differentiable in rewards, reference and budget.

    >>> from jdiv import generators
    >>> target = tilted_to(jnp.array([1.0, 0.0]), jnp.zeros(2), 0.25, generators.pearson_chi2())
    >>> [f"{p:.4f}" for p in jnp.exp(target.log_policy)], f"{target.beta:.4f}"
    (['0.7500', '0.2500'], '0.5000')

    Reference: Yang et al. 2024 (arXiv:2404.01730), the tilt phi_Delta, for KL and reward log q.
    """
    if isinstance(generator, TotalVariation):
        raise TypeError("generator must be strictly convex, got total_variation, whose tilts jump")
    rewards = checks.as_float("rewards", rewards)
    checks.in_range("rewards", rewards, -jnp.inf, jnp.inf, "finite")
    checks.positive("budget", budget)
    rewards, log_ref = _answers(ref_logits, rewards=rewards)
    dtype = rewards.dtype
    budget = jnp.broadcast_to(jnp.asarray(budget, dtype), rewards.shape[:-1])
    spread = jax.lax.stop_gradient(_deviation(rewards, log_ref))

    def tilt(x: Array) -> Array:
        return greedy(rewards, log_ref, spread * jnp.exp(x), generator).log_policy

    def excess(x: Array) -> Array:
        divergence = categorical.f_divergence(generator, tilt(x), log_ref)
        return jnp.log(budget) - jnp.log(divergence)

    # What is representable; the start is exact where beta is large, D = variance / (2 beta^2).
    limit = jnp.full_like(budget, 0.4 * np.log(jnp.finfo(dtype).max))
    start = jax.lax.stop_gradient(jnp.clip(-jnp.log(2 * budget) / 2, -limit, limit))
    x, residual, iterations, converged = roots.implicit(excess, start, -limit, limit)
    log_policy = tilt(x)
    # Log-ratios are rounded absolutely, and a small divergence is their mean square.
    rounding = 1000 * jnp.finfo(dtype).eps * (1 + 1 / jnp.sqrt(budget))
    return Budgeted(
        log_policy=log_policy,
        beta=spread * jnp.exp(x),
        divergence=categorical.f_divergence(generator, log_policy, log_ref),
        residual=residual,
        iterations=iterations,
        converged=converged & (residual <= rounding),
    )


def _answers(ref_logits: ArrayLike, **named: ArrayLike) -> tuple[Array, Array]:
    """A number for each answer and log-probabilities of the reference, of one dtype."""
    ((name, values),) = named.items()
    values, ref_logits = (
        checks.as_float(name, values),
        checks.as_float("ref_logits", ref_logits),
    )
    checks.same_shape(**{name: values, "ref_logits": ref_logits})
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one answer, got shape {values.shape}")
    if not isinstance(values, jax.core.Tracer) and np.isnan(values).any():
        raise ValueError(f"{name} must be numbers, got NaN")
    dtype = jnp.promote_types(values.dtype, ref_logits.dtype)
    return values.astype(dtype), numerics.log_softmax(ref_logits.astype(dtype))


def _deviation(rewards: Array, log_ref: Array) -> Array:
    """Standard deviation under the reference, 1 where it is 0."""
    present = log_ref > -jnp.inf
    mass = jnp.exp(log_ref)
    mean = jnp.sum(mass * jnp.where(present, rewards, 0), axis=-1, keepdims=True)
    square = jnp.sum(mass * jnp.where(present, rewards - mean, 0) ** 2, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 1)


# ------------------------------------------------------------------------------ energy-based models


def pointwise(ref_logits: ArrayLike, log_scores: ArrayLike) -> Array:
    """Log-probabilities of `p ∝ ref(x) b(x)` for scores `b = exp(log_scores)` of every answer.

    A score of 0 is -inf and forbids the answer. A score on an answer that the reference never gives
    is refused, for the target could not have it; under jit such answers get no mass. With
    `log_scores = r / beta` it is `tilted` with KL. Shapes: `[..., n]` twice to the same.

    >>> has_word = jnp.array([True, False, True])
    >>> target = pointwise(jnp.log(jnp.array([0.1, 0.7, 0.2])), jnp.where(has_word, 0, -jnp.inf))
    >>> [f"{p:.4f}" for p in jnp.exp(target)]
    ['0.3333', '0.0000', '0.6667']

    Reference: Go et al. 2023 (arXiv:2302.08215), pointwise targets.
    """
    log_scores, log_ref = _answers(ref_logits, log_scores=log_scores)
    log_target = log_ref + jnp.where(log_ref > -jnp.inf, log_scores, 0)
    if not isinstance(log_target, jax.core.Tracer):
        if np.any((np.asarray(log_ref) == -np.inf) & (np.asarray(log_scores) > -np.inf)):
            raise ValueError("log_scores must be -inf where the reference has no mass")
        most = np.max(log_target, axis=-1)
        if not (most < np.inf).all():
            raise ValueError("log_scores must be below infinity where the reference has mass")
        if not (most > -np.inf).all():
            raise ValueError("log_scores must leave the reference some answer with mass")
    return numerics.log_softmax(log_target)


class Moments(NamedTuple):
    """The law `ref exp(coefficients . features)` of given moments, with the evidence for it."""

    log_policy: Array
    """`[n]` log-probabilities."""
    coefficients: Array
    """`[k]` the lambda of each feature; one choice of many if features depend on each other."""
    divergence: Array
    """`[]` `KL(p‖ref)`: no law with these moments has less."""
    residual: Array
    """`[]` the largest `|E phi - moments|`."""
    iterations: Array
    """Newton steps."""
    converged: Array
    """`[]` whether the residual is rounding; false if no law on the support has these moments."""


def with_moments(ref_logits: ArrayLike, features: ArrayLike, moments: ArrayLike) -> Moments:
    """The law closest to the reference with `E phi = moments`, `p ∝ ref(x) exp(lambda . phi(x))`.

    Shapes: ref_logits `[n]`, features `[n, k]`, moments `[k]`; vmap for more. Newton's method on
    the convex `log sum ref exp(lambda . (phi - moments))`. Along a step whose exponent varies by d
    over the answers, the third derivative is at most d times the second; so `log(1 + d)/d` of the
    step is the safe part of it, and no search is needed.

    >>> female = jnp.array([[0.0], [1.0], [1.0]])
    >>> fitted = with_moments(jnp.log(jnp.array([0.9, 0.08, 0.02])), female, jnp.array([0.5]))
    >>> [f"{p:.4f}" for p in jnp.exp(fitted.log_policy)], f"{fitted.coefficients[0]:.4f}"
    (['0.5000', '0.4000', '0.1000'], '2.1972')

    Reference: Go et al. 2023 (arXiv:2302.08215), distributional targets; Sun and Tran-Dinh
    2019, generalised self-concordance, for the damping.
    """
    features = checks.as_float("features", features)
    checks.in_range("features", features, -jnp.inf, jnp.inf, "finite")
    checks.in_range("moments", moments, -jnp.inf, jnp.inf, "finite")
    dtype = features.dtype
    log_ref = numerics.log_softmax(checks.as_float("ref_logits", ref_logits).astype(dtype))
    moments = jnp.asarray(moments, dtype)
    if features.shape != log_ref.shape + moments.shape or features.ndim != 2:
        raise ValueError(
            "features must be [answers, moments], got ref_logits, features and moments of shapes"
            f" {log_ref.shape}, {features.shape} and {moments.shape}"
        )
    present = (log_ref > -jnp.inf)[:, None]
    centred = jnp.where(present, features - moments[None], 0)
    lowest = jnp.min(jnp.where(present, centred, jnp.inf), axis=0)
    highest = jnp.max(jnp.where(present, centred, -jnp.inf), axis=0)
    tolerance = 64 * jnp.finfo(dtype).eps * (highest - lowest)

    def at(coefficients: Array) -> tuple[Array, Array]:
        """The law, and by how much it misses the moments."""
        log_policy = numerics.log_softmax(log_ref + centred @ coefficients)
        return log_policy, jnp.exp(log_policy) @ centred

    def unfinished(state):
        _, missed, iteration = state
        return jnp.any(jnp.abs(missed) > tolerance) & (iteration < 100)

    def step(state):
        coefficients, missed, iteration = state
        log_policy, _ = at(coefficients)
        deviation = jnp.where(present, centred - missed[None], 0)
        covariance = (jnp.exp(log_policy)[:, None] * deviation).T @ deviation
        variance = jnp.diagonal(covariance)
        scale = jnp.where(variance > 0, 1 / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
        correlation = scale[:, None] * covariance * scale[None]
        newton = -scale * (jnp.linalg.pinv(correlation, hermitian=True) @ (scale * missed))
        exponent = centred @ newton
        d = jnp.max(jnp.where(present[:, 0], exponent, -jnp.inf))
        d -= jnp.min(jnp.where(present[:, 0], exponent, jnp.inf))
        safe = jnp.where(d > 0, jnp.log1p(d) / jnp.where(d > 0, d, 1), 1)
        coefficients = coefficients + safe * newton
        return coefficients, at(coefficients)[1], iteration + 1

    start = jnp.zeros_like(moments)
    state = start, at(start)[1], jnp.zeros((), jnp.int32)
    coefficients, missed, iterations = jax.lax.while_loop(unfinished, step, state)
    log_policy, _ = at(coefficients)
    return Moments(
        log_policy=log_policy,
        coefficients=coefficients,
        divergence=categorical.kl(log_policy, log_ref),
        residual=jnp.max(jnp.abs(missed)),
        iterations=iterations,
        converged=jnp.all(jnp.abs(missed) <= tolerance),
    )


# ---------------------------------------------------------------------------------- best of n draws


class Ranks(NamedTuple):
    """Reference mass of answers no better than an answer, tied with it, and better."""

    log_at_most: Array
    """`[..., n]` `log P(r(z) <= r(y))`, relatively accurate where it is near 0, too."""
    log_tied: Array
    """`[..., n]` `log P(r(z) = r(y))`."""
    log_above: Array
    """`[..., n]` `log P(r(z) > r(y))`."""


def ranks(rewards: ArrayLike, ref_logits: ArrayLike) -> Ranks:
    """Where each answer stands among draws of the reference.

    Only the order of rewards counts, and infinite ones are in order. Shapes: `[..., n]` twice.
    """
    each = jnp.vectorize(_ranks, signature="(n),(n)->(n),(n),(n)")
    return Ranks(*each(*_answers(ref_logits, rewards=rewards)))


def _ranks(rewards: Array, log_ref: Array) -> tuple[Array, Array, Array]:
    """`ranks` of one row, by cumulative sums in sorted order."""
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
    most = jnp.where(most > -jnp.inf, most, 0)
    total = jax.ops.segment_sum(jnp.exp(log_ref - most[first]), first, num_segments=len(order))
    return at_most, (most + jnp.log(total))[first], above


def best_of_n(rewards: ArrayLike, ref_logits: ArrayLike, n: ArrayLike) -> Array:
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
    rewards, log_ref = _answers(ref_logits, rewards=rewards)
    n = jnp.broadcast_to(_draws(n, rewards), rewards.shape[:-1])[..., None]
    present = log_ref > -jnp.inf
    at_most, tied = (jnp.where(present, x, 0) for x in (of.log_at_most, of.log_tied))
    drawn = _log_once(n, jnp.minimum(tied - at_most, 0))
    return jnp.where(present, log_ref - tied + n * at_most + drawn, -jnp.inf)


def worst_of_n(rewards: ArrayLike, ref_logits: ArrayLike, n: ArrayLike) -> Array:
    """Log-law of the worst of n draws: `best_of_n` of the opposite rewards."""
    return best_of_n(-checks.as_float("rewards", rewards), ref_logits, n)


def _draws(n: ArrayLike, like: Array) -> Array:
    """The number of draws, of the dtype of `like`."""
    checks.in_range("n", n, 1, jnp.inf, "a finite number of at least 1", closed="low")
    return jnp.asarray(n).astype(like.dtype)


def _log_once(n: Array, log_s: Array) -> Array:
    """`log(1 - (1 - s)^n)`, that something of probability s comes once in n draws or more often.

    The complementary log-log `log(-log(1 - s))` turns n draws into a shift by log n, and both it
    and its inverse are the identity for small numbers.
    """
    small = log_s < -40
    log_rate = jnp.where(small, log_s, jnp.log(-jnp.log1p(-jnp.exp(jnp.where(small, -1, log_s)))))
    log_rate = jnp.log(n) + log_rate
    small = log_rate < -40
    return jnp.where(small, log_rate, jnp.log(-jnp.expm1(-jnp.exp(jnp.where(small, -1, log_rate)))))


def best_of_n_bound(n: ArrayLike) -> Array:
    """`log n - (n - 1)/n`: `KL(best of n‖ref)` where no two draws tie, and above it where they do.

    >>> print(f"{best_of_n_bound(4.0):.5f}")
    0.63629

    Reference: Beirami et al. 2024 (arXiv:2401.01879); Yang et al. 2024, Lemma 6, has `log n`.
    """
    return numerics.exp_residual(-jnp.log(_draws(n, jnp.zeros(()))))


def best_of_n_estimate(log_prob: ArrayLike, n: ArrayLike) -> Array:
    """What one answer drawn by best of n says about `KL(best of n‖ref)`: the mean is the estimate.

    With e the probability of the answer under the reference and `a = (1 - e)^n`,
    `a (log n + (n - 1) log(1 - e) - (n - 1)/n) + (1 - a) log((1 - a)/e)`: the bound for answers
    that hardly come twice, -log e for those that always come. Shapes: any, broadcast.

    Reference: Beirami et al. 2024 (arXiv:2401.01879), the estimator next to the bound.
    """
    log_prob = checks.as_float("log_prob", log_prob)
    n = _draws(n, log_prob)
    certain = log_prob == 0
    log_e = jnp.where(certain, -1, log_prob)
    log_rest = jnp.where(log_e > -0.7, jnp.log(-jnp.expm1(log_e)), jnp.log1p(-jnp.exp(log_e)))
    log_once = _log_once(n, log_e)
    never = jnp.exp(n * log_rest) * (best_of_n_bound(n) + (n - 1) * log_rest)
    return jnp.where(certain, 0, never + jnp.exp(log_once) * (log_once - log_e))


def best_of_n_mean(proxy: ArrayLike, gold: ArrayLike, n: ArrayLike) -> Array:
    """Mean gold reward of the answer that the proxy likes best among n of a pool of M.

    The average over all subsets of n, which is unbiased for n independent draws: the i-th in rising
    order is the best of `C(i - 1, n - 1)` of the `C(M, n)` subsets, the share
    `n/i prod_(j > i) (1 - n/j)`. Tied answers count with their mean gold reward.
    Shapes: `[M]` twice and n of any shape, to the shape of n; NaN for a traced n above M.

    >>> proxy, gold = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 3.0, 2.0])
    >>> [f"{x:.4f}" for x in best_of_n_mean(proxy, gold, jnp.array([1, 2, 3]))]
    ['2.0000', '2.3333', '2.0000']

    Reference: Nakano et al. 2021, WebGPT (arXiv:2112.09332), for the estimator; ties are ours.
    """
    proxy, gold = checks.as_float("proxy", proxy), checks.as_float("gold", gold)
    checks.same_shape(proxy=proxy, gold=gold)
    size = len(proxy)
    allowed = f"from 1 to the size of the pool, {size}"
    checks.in_range("n", n, 1, size, allowed, closed="both")
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
    mean = jnp.sum(weight * jnp.broadcast_to(total / count, rank.shape)[..., group], axis=-1)
    return jnp.where(n[..., 0] <= size, mean, jnp.nan)


# -------------------------------------------------------------------------------- optimal win rates


class WinRate(NamedTuple):
    """The policy with the best win rate at its divergence, for a reference without ties."""

    c: Array
    """The density on the quantiles u of the reward is `c e^(c u) / (e^c - 1)`."""
    win: Array
    """The probability to beat a draw of the reference."""
    divergence: Array
    """`KL(pi‖ref)`."""
    residual: Array
    """`|budget / divergence - 1|`; 0 where c was given."""
    iterations: Array
    """Steps of the search for c; 0 where c was given."""
    converged: Array
    """Whether it came to rest."""


def win_rate_optimal(c: ArrayLike) -> WinRate:
    """Win rate and KL of the density `c e^(c u)/(e^c - 1)`, c > 0: no policy wins more at this KL.

    `win = 1/(1 - e^-c) - 1/c` and `KL = c win - log((e^c - 1)/c)`, which is `c^2/24` for small c:
    there from the series with Bernoulli's numbers. Best of n has `win = n/(n + 1)` at the KL of
    `best_of_n_bound`, less by at most .0092. Shapes: any.

    Reference: Gui et al. 2024, BoNBoN (arXiv:2406.00832), the win-rate-optimal policy.
    """
    checks.positive("c", c)
    c = checks.as_float("c", c)
    mean_rest = numerics.phi_2(-c) / numerics.phi_1(-c)
    near = c < 0.25
    large = jnp.where(near, 1, c)
    plain = large * (numerics.phi_2(-large) / numerics.phi_1(-large) - 1)
    plain -= jnp.log(numerics.phi_1(-large))
    square = jnp.where(near, c, 0) ** 2
    series = jnp.zeros_like(c)
    for coefficient in reversed(_BERNOULLI):
        series = series * square + coefficient
    return WinRate(
        c=c,
        win=mean_rest,
        divergence=jnp.where(near, series * square, plain),
        residual=jnp.zeros_like(c),
        iterations=jnp.zeros((), jnp.int32),
        converged=jnp.ones(c.shape, bool),
    )


# B_2k/(2k)! (1 - 1/(2k)) for k = 1, 2, ...: KL = sum of these times c^(2k).
_BERNOULLI = (1 / 24, -1 / 960, 1 / 36288, -1 / 1382400, 1 / 53222400, -691 / 1426553856000)


def win_rate_optimal_to(budget: ArrayLike) -> WinRate:
    """The best win rate at `KL(pi‖ref) = budget`, by a bracketed Newton search for log c.

    `KL <= c^2/24` and `KL >= log c - 1` are the bracket. Shapes: any.

    >>> print(f"{win_rate_optimal_to(best_of_n_bound(2.0)).win:.6f}")  # best of two: 2/3
    0.675907

    Reference: Gui et al. 2024, BoNBoN (arXiv:2406.00832), the win-rate-optimal policy.
    """
    checks.positive("budget", budget)
    budget = checks.as_float("budget", budget)

    def excess(x: Array) -> Array:
        return jnp.log(win_rate_optimal(jnp.exp(x)).divergence) - jnp.log(budget)

    low, high = jnp.log(24 * budget) / 2, budget + 1
    low, high = jax.lax.stop_gradient((low, high))
    x, residual, iterations, converged = roots.implicit(excess, low, low, high)
    return win_rate_optimal(jnp.exp(x))._replace(
        residual=residual, iterations=iterations, converged=converged
    )


def bonbon_beta(n: ArrayLike) -> Array:
    """`1 / (2 (n - 1) sum_(k < n) 1/k)`: IPO's beta whose optimum on best against worst is BoN's.

    Shapes: any, n > 1.

    Reference: Gui et al. 2024, BoNBoN (arXiv:2406.00832), beta*_n.
    """
    checks.in_range("n", n, 1, jnp.inf, "a finite number above 1")
    n = jnp.asarray(n).astype(jnp.result_type(float))
    return 1 / (2 * (n - 1) * (digamma(n) + np.euler_gamma))


# -------------------------------------------------------------------------------------- asymptotics


def cumulants(rewards: ArrayLike, log_policy: ArrayLike) -> Array:
    """The first four cumulants of the reward: mean, variance, `m3`, `m4 - 3 m2^2`.

    Those of the tilt `ref exp(t r)` are the derivatives by t of `log sum ref e^(t r)`.
    Shapes: `[..., n]` twice to `[..., 4]`.

    Reference: Yang et al. 2024 (arXiv:2404.01730), cumulants and Rényi cross-entropy.
    """
    rewards, log_policy = _answers(log_policy, rewards=rewards)
    mass = jnp.exp(log_policy)
    rewards = jnp.where(mass > 0, rewards, 0)
    mean = jnp.sum(mass * rewards, axis=-1, keepdims=True)
    second, third, fourth = (jnp.sum(mass * (rewards - mean) ** k, axis=-1) for k in (2, 3, 4))
    return jnp.stack([mean[..., 0], second, third, fourth - 3 * second**2], axis=-1)


def renyi_cross_entropy(p_logits: ArrayLike, q_logits: ArrayLike, order: ArrayLike) -> Array:
    """`H_t(p‖q) = log(sum p q^(t-1)) / (1 - t)`; the cross-entropy `-sum p log q` at t = 1.

    With reward log q, `-H_(1+rho)(p‖q)` is `log E_p[e^(rho r)] / rho`, the reward's normalised
    cumulant. inf where p has mass on a zero of q and t <= 1. Shapes: `[..., n]` twice, t a number
    or `[...]`, to `[...]`.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> [f"{renyi_cross_entropy(p, q, order):.4f}" for order in (1.0, 2.0)]
    ['1.2040', '0.6931']

    Reference: Yang et al. 2024 (arXiv:2404.01730), cumulants and Rényi cross-entropy.
    """
    checks.in_range("order", order, -jnp.inf, jnp.inf, "finite")
    q_logits = numerics.log_softmax(checks.as_float("q_logits", q_logits))
    log_q, log_p = _answers(p_logits, q_logits=q_logits)
    s = jnp.broadcast_to(jnp.asarray(order, log_p.dtype) - 1, log_p.shape[:-1])
    both = (log_p > -jnp.inf) & (log_q > -jnp.inf)
    missing = jnp.any((log_p > -jnp.inf) & (log_q == -jnp.inf), axis=-1)
    safe = jnp.where(both, log_q, 0)
    log_sum = jax.nn.logsumexp(jnp.where(both, log_p + s[..., None] * safe, -jnp.inf), axis=-1)
    # Near order 1 the sum is near 1: log(1 + s x) / s with x = sum p (q^s - 1)/s.
    near = (jnp.abs(log_sum) < 0.5) & ~missing
    power = numerics.scaled_expm1(jnp.where(near[..., None], safe, 0), s[..., None])
    by_power = numerics.scaled_log1p(jnp.sum(jnp.exp(log_p) * power, axis=-1), s)
    value = -jnp.where(near, by_power, log_sum / jnp.where(s == 0, 1, s))
    return jnp.where(missing & (s <= 0), jnp.inf, value)


def rate(rewards: ArrayLike, ref_logits: ArrayLike, level: ArrayLike) -> Moments:
    """Cramér's rate function of the mean reward of independent draws: `.divergence` is J(level).

    `P(mean of m rewards beyond level)` falls like `e^(-m J)` with J the least `KL(pi‖ref)` of a
    policy with `E r = level`, a tilt: `with_moments` of one feature. With reward log q and a tilted
    reference this is J of the paper at the cross-entropy `-level`. Shapes: `[n]` twice and `[]`.

    Reference: Yang et al. 2024 (arXiv:2404.01730), J(t) of the large deviations principle.
    """
    rewards = checks.as_float("rewards", rewards)
    return with_moments(ref_logits, rewards[:, None], jnp.asarray(level, rewards.dtype)[None])
