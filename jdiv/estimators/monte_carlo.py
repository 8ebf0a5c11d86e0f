"""Divergences from log-probabilities at samples: one number per sample, whose mean is the estimate.

`kl_k1`, `kl_k2` and `kl_k3` are the customary three for KL(p‖q) with x ~ p. The other four take any
row of the table: from samples of p they average `f(u)/u`, from samples of q `f(u)`, u = p/q.
*Plain* is the customary f of the row's docstring (kl: u log u), *centered* is `f - f'(1) (u - 1)`.
The part taken out has mean zero (if p and q have the same zeros), so both have the same mean; the
centered value is nowhere negative and vanishes to second order at p = q. From p, plain KL is k1 and
centered KL is k3.

Samples of a third distribution are weighted: `log_weights` is the log-probability of p (from p) or
of q (from q) minus that of the third.

**Gradients.** With the samples held fixed, what does the mean of the gradient follow?

* By the side that the samples do not come from (from q by p's parameters, from p by q's): the
  divergence itself, for every row, plain and centered.
* From p by p's own parameters the score of the samples is missing. The mean is the gradient of
  *another* divergence, whose generator g has `g'(u) = f'(u) - f(u)/u`, that is
  `g(u) = f(u) - integral of f(v)/v from 1 to u`. From q by q's parameters it is the mirror image:
  g by the same rule from `u f(1/u)`, with p and q exchanged.

===========  ==================================================================================
centered f    gradient of its mean, x ~ p held fixed
===========  ==================================================================================
kl           KL(q‖p), not KL(p‖q)
reverse_kl   `sum q log(p/q)^2 / 2`, of a g that is not convex: it is concave where p > e q
alpha        `(1 - 1/a) D_a(p‖q) + KL(q‖p)/a`: half its own at a = 2, *against* it for 0 < a < 1
===========  ==================================================================================

The plain f adds `f'(1) log u` to g, with f'(1) of the plain f; for KL nothing is left, g = u - 1.
`g = f` needs f = 0: no row is its own g, none a multiple of it. But g''(1) = f''(1), so close to
p = q all of them point the same way, which is why the difference goes unnoticed.

To have the gradient of the divergence itself, make the weights carry the score:
`log_weights = log_p - stop_gradient(log_p)` on-policy, and `log_p - log_old` for samples of an
older policy (from q the same with log_q). Both are exact for every row, plain and centered; over
several steps the log-probabilities have to be those of whole sequences.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.divergences.generator import Generator, checked_row
from jdiv.types import PerSample, Reduced

# ------------------------------------------------------------------------------------ KL, x ~ p


def kl_k1(log_p: PerSample, log_q: PerSample) -> PerSample:
    """`log(p/q)` per sample x ~ p: the plain estimate of KL(p‖q).

    Unbiased. Of either sign, and noisy where p and q are close: between unit Gaussians a shift mu
    apart its standard deviation is 2/mu times the KL. Inside a reward it is right; as a loss it is
    useless, for the mean of its gradient with the samples held fixed is 0.
    Shapes: any, twice the same, to the same. Zeros: inf where q is zero.

    >>> kl_k1(jnp.array([-1.0, -1.0]), jnp.array([-2.0, -0.5]))
    Array([ 1. , -0.5], dtype=float32)

    Reference: Schulman 2020, Approximating KL divergence.
    """
    return numerics.sampled_log_ratio(*checks.alike(log_p=log_p, log_q=log_q))


def kl_k2(log_p: PerSample, log_q: PerSample) -> PerSample:
    """`log(p/q)^2 / 2` per sample x ~ p: a biased estimate of KL(p‖q) with the right gradient.

    Between unit Gaussians a shift mu apart it is mu^2/4 times the KL too large, with a standard
    deviation of sqrt(2 + mu^2) times the KL. With the samples held fixed the mean of its gradient
    is that of KL(p‖q), exactly, if log_p and log_q belong to the whole of what was sampled: one
    step, or the sum over a sequence. Taken token by token and summed it is not: what a token does
    to the KL of the later ones is missing.
    Shapes: any, twice the same, to the same. Zeros: inf where q is zero.

    >>> kl_k2(jnp.array([-1.0, -1.0]), jnp.array([-2.0, -0.5]))
    Array([0.5  , 0.125], dtype=float32)

    Reference: Schulman 2020, Approximating KL divergence.
    """
    t = numerics.sampled_log_ratio(*checks.alike(log_p=log_p, log_q=log_q))
    return t * t / 2


def kl_k3(log_p: PerSample, log_q: PerSample) -> PerSample:
    """`r - 1 - log r` with r = q/p per sample x ~ p: the centered estimate of KL(p‖q).

    Unbiased (where p is zero, mass of q goes unseen and is missing from it) and never negative.
    Between unit Gaussians a shift mu apart its standard deviation is
    `2 sqrt(e^(mu^2) - 1 - mu^2) / mu^2` times the KL: sqrt 2 for close ones, below that of k1 up to
    a shift of 1.12, and exploding beyond 2 (20 at a shift of 3, where k1 has 0.67), because r is
    unbounded. With the samples held fixed the mean of its gradient is that of KL(q‖p), the other
    direction.
    Shapes: any, twice the same, to the same. Zeros: inf where q is zero.

    >>> print(f"{kl_k3(jnp.array(-1.0), jnp.array(-2.0)):.4f}")
    0.3679

    Reference: Schulman 2020, Approximating KL divergence.
    """
    t = numerics.sampled_log_ratio(*checks.alike(log_p=log_p, log_q=log_q))
    infinite = jnp.isinf(t)
    return jnp.where(infinite, jnp.inf, numerics.exp_residual(jnp.where(infinite, 0, -t)))


# --------------------------------------------------------------------- any generator, four ways


def centered_from_p(
    generator: Generator,
    log_p: PerSample,
    log_q: PerSample,
    *,
    log_weights: PerSample | None = None,
) -> PerSample:
    """`f(u)/u`, u = p/q, f centered, per sample x ~ p: estimates `D(p, q) = sum q f(p/q)`.

    Unbiased, but for the mass of q where p is zero, which is never sampled: `f(0)` times it is
    missing. Never negative. Where p and q are close its standard deviation is of the order of the
    divergence itself (sqrt 2 times it between Gaussians); where q has heavier tails than p it
    explodes, as does the mean of `f(0)^2 (q/p)^2`. By p's parameters with the samples held fixed,
    its gradient follows another divergence (see the module), by q's this one.
    Shapes: any, twice or three times the same, to the same. Zeros: f'(inf) where q is zero, 0
    where the weight is; a sample of positive weight that p excludes gives inf.

    >>> from jdiv import generators
    >>> print(f"{centered_from_p(generators.kl(), jnp.array(-1.0), jnp.array(-2.0)):.4f}")
    0.3679

    Reference: Schulman 2020, Approximating KL divergence, for the control variate.
    """
    return _from_p(categorical.terms, generator, log_p, log_q, log_weights)


def plain_from_p(
    generator: Generator,
    log_p: PerSample,
    log_q: PerSample,
    *,
    log_weights: PerSample | None = None,
) -> PerSample:
    """`f(u)/u`, u = p/q, f as customary, per sample x ~ p: estimates `D(p, q) = sum q f(p/q)`.

    Unbiased, but for the mass of q where p is zero: the customary `f(0)` times it is missing, which
    is nothing for KL. Where p and q are close its standard deviation is of the order of the square
    root of the divergence, unless f'(1) = 0 and it is the centered one; where q has heavier tails
    than p it is the better one if the customary f(0) is 0 (kl, skew_kl, tsallis). By p's parameters
    with the samples held fixed, its gradient follows another divergence (see the module), by q's
    this one.
    Shapes: any, twice or three times the same, to the same. Zeros: f'(inf) where q is zero, 0
    where the weight is; a sample of positive weight that p excludes gives inf.

    >>> from jdiv import generators
    >>> plain_from_p(generators.kl(), jnp.array([-1.0, -1.0]), jnp.array([-2.0, -0.5]))
    Array([ 1. , -0.5], dtype=float32)

    Reference: Schulman 2020, Approximating KL divergence.
    """
    return _from_p(_customary_terms, generator, log_p, log_q, log_weights)


def centered_from_q(
    generator: Generator,
    log_p: PerSample,
    log_q: PerSample,
    *,
    log_weights: PerSample | None = None,
) -> PerSample:
    """`f(u)`, u = p/q, f centered, per sample x ~ q: estimates `D(p, q) = sum q f(p/q)`.

    Unbiased, but for the mass of p where q is zero, which is never sampled: `f'(inf)` times it is
    missing. Never negative. Where p and q are close its standard deviation is of the order of the
    divergence itself (sqrt 2 times it between Gaussians); where p has heavier tails than q it
    explodes, as does the mean of `f(p/q)^2`. By p's parameters with the samples held fixed, its
    gradient is that of the divergence, exactly.
    Shapes: any, twice or three times the same, to the same. Zeros: f(0) where p is zero, 0 where
    the weight is; a sample of positive weight that q excludes gives inf.

    >>> from jdiv import generators
    >>> print(f"{centered_from_q(generators.reverse_kl(), jnp.array(-2.0), jnp.array(-1.0)):.4f}")
    0.3679

    Reference: Schulman 2020, Approximating KL divergence, for the control variate.
    """
    return _from_q(categorical.terms, generator, log_p, log_q, log_weights)


def plain_from_q(
    generator: Generator,
    log_p: PerSample,
    log_q: PerSample,
    *,
    log_weights: PerSample | None = None,
) -> PerSample:
    """`f(u)`, u = p/q, f as customary, per sample x ~ q: estimates `D(p, q) = sum q f(p/q)`.

    Unbiased, but for the mass of p where q is zero: the customary `f'(inf)` times it is missing,
    which is nothing for reverse_kl. Where p and q are close its standard deviation is of the order
    of the square root of the divergence, unless f'(1) = 0 and it is the centered one; where p has
    heavier tails than q it is the better one if the customary f'(inf) is 0 (reverse_kl,
    squared_hellinger). By p's parameters with the samples held fixed, its gradient is that of the
    divergence, exactly.
    Shapes: any, twice or three times the same, to the same. Zeros: the customary f(0) where p is
    zero, 0 where the weight is; a sample of positive weight that q excludes gives inf.

    >>> from jdiv import generators
    >>> plain_from_q(generators.reverse_kl(), jnp.array([-2.0, -0.5]), jnp.array([-1.0, -1.0]))
    Array([ 1. , -0.5], dtype=float32)

    Reference: Schulman 2020, Approximating KL divergence.
    """
    return _from_q(_customary_terms, generator, log_p, log_q, log_weights)


def _from_p(terms, generator, log_p, log_q, log_weights):
    """`w f(u)/u`, which is `q f(p/q)` at p = w and q = w/u."""
    log_p, log_q, log_w, generator = _weighted(generator, log_p, log_q, log_weights)
    t = numerics.sampled_log_ratio(log_p, log_q)
    excluded = t == -jnp.inf
    t = jnp.where(excluded, 0, t)
    value = terms(generator, log_w, log_w - t, t)
    return jnp.where(excluded & (log_w != -jnp.inf), jnp.inf, value)


def _from_q(terms, generator, log_p, log_q, log_weights):
    """`w f(u)`, which is `q f(p/q)` at q = w and p = w u."""
    log_p, log_q, log_w, generator = _weighted(generator, log_p, log_q, log_weights)
    t = numerics.sampled_log_ratio(log_p, log_q)
    excluded = t == jnp.inf
    t = jnp.where(excluded, 0, t)
    value = terms(generator, log_w + t, log_w, t)
    return jnp.where(excluded & (log_w != -jnp.inf), jnp.inf, value)


def _weighted(generator, log_p, log_q, log_weights):
    """Everything in one precision; without weights they are 1."""
    if log_weights is None:
        log_p, log_q = checks.alike(log_p=log_p, log_q=log_q)
        log_w = jnp.zeros_like(log_p)
    else:
        log_p, log_q, log_w = checks.alike(log_p=log_p, log_q=log_q, log_weights=log_weights)
    return log_p, log_q, log_w, checked_row(generator, log_p.dtype)


def _customary_terms(generator: Generator, log_p: Array, log_q: Array, t: Array) -> Array:
    """`q f(p/q)` of the generator before centring, zeros included."""
    inside = (log_p != -jnp.inf) & (log_q != -jnp.inf)
    value = generator.customary(*(jnp.where(inside, x, 0) for x in (log_p, log_q, t)))
    # At a zero the centered value and f'(1) (p - q) add up, one of them an exact number.
    ends = [jnp.where(inside, 0, x) for x in (log_p, log_q, t)]
    slope = generator.slope_at_one
    difference = slope * numerics.probability_difference(*ends)
    at_ends = categorical.terms(generator, *ends) + jnp.where(slope == 0, 0, difference)
    return jnp.where(inside, value, at_ends)


# ----------------------------------------------------------------------------------- averages


def self_normalized_mean(values: PerSample, log_weights: PerSample, *, axis: int = -1) -> Reduced:
    """`sum w v / sum w` along an axis: importance weights known up to a factor.

    Biased by the order of 1/n, but always within the range of the values, however uneven the
    weights. Give it values that are not weighted yet.
    Shapes: `[..., n, ...]` twice, to the shape without the axis. A sample of weight zero does not
    count, whatever its value; NaN if all weights are zero.

    >>> self_normalized_mean(jnp.array([1.0, 4.0]), jnp.log(jnp.array([20.0, 10.0])))
    Array(2., dtype=float32)

    Reference: Owen 2013, Monte Carlo theory, methods and examples, chapter 9.
    """
    values, log_weights = checks.alike(values=values, log_weights=log_weights)
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis must be within shape {tuple(values.shape)}, got {axis}")
    counts = log_weights != -jnp.inf
    finite = jnp.isfinite(values)
    weights = jax.nn.softmax(log_weights, axis=axis)
    weighted = jnp.where(finite, weights * jnp.where(finite & counts, values, 0), values)
    empty = ~jnp.any(counts, axis=axis)
    return jnp.where(empty, jnp.nan, jnp.sum(jnp.where(counts, weighted, 0), axis=axis))
