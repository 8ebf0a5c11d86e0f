"""Laws over the answers to a prompt, exactly and in log space, that tilt a reference policy.

* `argmax E[r] - beta D(pi‖ref)` (`tilted`), or the one at a given divergence (`tilted_to`); with KL
  the tilt is `ref exp(r / beta)`, the preference target of f-DPG and the optimum of RLHF;
* energy-based models `ref(x) b(x)` (`pointwise`; `tilted` with KL has `b = exp(r / beta)`) and
  `ref(x) exp(lambda . phi(x))` with given moments (`with_moments`).

`log_policy` and `ref_logits` are `[..., answers]`, -inf an exact zero. The divergence of any of
these laws is `divergences.kl(law, ref)`. The cumulant generating function `log sum ref e^(t r)` of
the reward is `t * tilted(r, ref, 1/t, kl).normalizer`; its derivatives at t are the
`asymptotics.cumulants` of that tilt.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots
from jdiv.divergences import categorical
from jdiv.divergences.generator import Generator, checked_row
from jdiv.regularized import Greedy, greedy, with_log_ratio
from jdiv.types import Categories, Logits, LogPolicy, Values

# ------------------------------------------------------------------------------------------- tilts


def tilted(
    rewards: Values,
    ref_logits: Logits,
    beta: ArrayLike,
    *,
    generator: Generator,
    where: Categories | None = None,
) -> Greedy:
    """The policy that maximizes `E[r] - beta D(pi‖ref)`, which has `f'(pi/ref) = (r - c)/beta`.

    Shapes: rewards and ref_logits `[..., n]`, beta a positive number or `[...]`. With KL, the
    field's reverse KL, it is `ref exp(r/beta)`. This is `regularized.greedy` in the words of
    alignment, for finite rewards; an answer to be excluded belongs into the reference or `where`.

    >>> from jdiv import generators
    >>> target = tilted(jnp.array([1.0, 0.0]), jnp.zeros(2), 0.5, generator=generators.kl())
    >>> [f"{p:.4f}" for p in jnp.exp(target.log_policy)]
    ['0.8808', '0.1192']

    Reference: Go et al. 2023 (arXiv:2302.08215), preference targets, for KL; Wang et al. 2024
    (arXiv:2309.16240), Theorem 1, for any generator.
    """
    rewards = checks.finite("rewards", checks.as_float("rewards", rewards))
    beta = checks.positive("beta", beta)
    return greedy(rewards, ref_logits, beta, generator=generator, where=where)


class BudgetedTilt(NamedTuple):
    """The tilt that spends a given divergence, with the evidence that it does.

    Fields:
        log_policy: `[..., n]` log-probabilities.
        beta: `[...]` the temperature of the tilt.
        divergence: `[...]` `D(pi‖ref)`, found close to the budget.
        residual: `[...]` `|budget / divergence - 1|`.
        iterations: `[]` steps of the search in log beta; one number for the whole batch.
        converged: `[...]` whether the residual is small; not, with the limit beta -> 0, if the
            budget is out of reach.
    """

    log_policy: Array
    beta: Array
    divergence: Array
    residual: Array
    iterations: Array
    converged: Array


def tilted_to(
    rewards: Values, ref_logits: Logits, budget: ArrayLike, *, generator: Generator
) -> BudgetedTilt:
    """The best policy within a divergence: `max E[r]` subject to `D(pi‖ref) <= budget`.

    Shapes: rewards and ref_logits `[..., n]`, budget a positive number or `[...]`. The divergence
    of the tilt falls with beta: a bracketed Newton search for log beta, in log D. No tilt has more
    than all mass on the best answers, and a budget above that has `converged` false. Not for total
    variation, whose tilts jump. Differentiable in rewards, reference and budget.

    >>> from jdiv import generators
    >>> chi2 = generators.pearson_chi2()
    >>> target = tilted_to(jnp.array([1.0, 0.0]), jnp.zeros(2), 0.25, generator=chi2)
    >>> [f"{p:.4f}" for p in jnp.exp(target.log_policy)], f"{target.beta:.4f}"
    (['0.7500', '0.2500'], '0.5000')

    Reference: Yang et al. 2024 (arXiv:2404.01730), the tilt phi_Delta, for KL and reward log q.
    """
    checked_row(generator, invertible=True)
    rewards = checks.finite("rewards", checks.as_float("rewards", rewards))
    budget = checks.positive("budget", budget, rows=rewards)
    rewards, log_ref = checked_answers(ref_logits, rewards=rewards)
    budget = jnp.broadcast_to(budget.astype(rewards.dtype), (*rewards.shape[:-1], 1))[..., 0]
    spread = jax.lax.stop_gradient(_deviation(rewards, log_ref))

    def tilt(x: Array) -> tuple[Array, Array]:
        """Log-policy and divergence."""
        beta = spread * jnp.exp(x)
        found, log_ratio, log_mass = with_log_ratio(rewards, log_ref, beta, generator=generator)
        # What the sum of a policy close to the reference misses is a sum of small differences.
        gained = numerics.probability_difference(found.log_policy, log_mass, log_ratio)
        missed = jnp.sum(jnp.where(log_mass == -jnp.inf, 0, gained), axis=-1, keepdims=True)
        log_ratio -= jax.lax.stop_gradient(jnp.log1p(missed))
        log_ratio = jnp.where(log_mass == -jnp.inf, 0, log_ratio)
        rows = generator.per_row(rewards)
        return found.log_policy, jnp.sum(
            categorical.terms(rows, found.log_policy, log_mass, log_ratio), axis=-1
        )

    # The limit is representable; the start is exact where beta is large, D = variance / (2 beta^2).
    limit = jnp.full_like(budget, 0.4 * np.log(jnp.finfo(rewards.dtype).max))
    start = jax.lax.stop_gradient(jnp.clip(-jnp.log(2 * budget) / 2, -limit, limit))
    excess = lambda x: jnp.log(budget) - jnp.log(tilt(x)[1])
    x, residual, iterations, converged = roots.implicit(excess, start, -limit, limit)
    log_policy, divergence = tilt(x)
    return BudgetedTilt(
        log_policy, spread * jnp.exp(x), divergence, residual, iterations, converged
    )


def checked_answers(ref_logits: Logits, **named: Values) -> tuple[Array, Array]:
    """A number for each answer, and the normalized reference, in one precision.

    Refuses different shapes, no answers at all, and NaN. The number goes by its name, which errors
    repeat: `checked_answers(ref_logits, rewards=rewards)`. Shapes: `[..., n]` twice to the same.
    """
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


def pointwise(ref_logits: Logits, log_scores: Values) -> LogPolicy:
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
    log_scores, log_ref = checked_answers(ref_logits, log_scores=log_scores)
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


class MomentFit(NamedTuple):
    """The law `ref exp(coefficients . features)` of given moments, with the evidence for it.

    Fields:
        log_policy: `[n]` log-probabilities.
        coefficients: `[k]` the lambda of each feature; one choice of many if features depend on
            each other.
        divergence: `[]` `KL(p‖ref)`: no law with these moments has less.
        residual: `[]` the largest `|E phi - moments|`.
        iterations: `[]` Newton steps.
        converged: `[]` whether the residual is rounding; false if no law on the support has these
            moments.
    """

    log_policy: Array
    coefficients: Array
    divergence: Array
    residual: Array
    iterations: Array
    converged: Array


def with_moments(ref_logits: Logits, features: ArrayLike, moments: ArrayLike) -> MomentFit:
    """The law closest to the reference with `E phi = moments`, `p ∝ ref(x) exp(lambda . phi(x))`.

    Shapes: ref_logits `[n]`, features `[n, k]`, moments `[k]`; vmap for more. Newton's method on
    the convex `log sum ref exp(lambda . (phi - moments))`, with the damping of
    `roots.damped_newton`: the distance of a step is how much its exponent varies over the answers.

    >>> female = jnp.array([[0.0], [1.0], [1.0]])
    >>> fitted = with_moments(jnp.log(jnp.array([0.9, 0.08, 0.02])), female, jnp.array([0.5]))
    >>> [f"{p:.4f}" for p in jnp.exp(fitted.log_policy)], f"{fitted.coefficients[0]:.4f}"
    (['0.5000', '0.4000', '0.1000'], '2.1972')

    Reference: Go et al. 2023 (arXiv:2302.08215), distributional targets.
    """
    log_ref, centered = _centered_features(ref_logits, features, moments)
    present = (log_ref > -jnp.inf)[:, None]
    lowest = jnp.min(jnp.where(present, centered, jnp.inf), axis=0)
    highest = jnp.max(jnp.where(present, centered, -jnp.inf), axis=0)
    tolerance = 64 * jnp.finfo(centered.dtype).eps * (highest - lowest)

    def law(coefficients: Array) -> tuple[Array, Array]:
        """The law, and by how much it misses the moments."""
        log_policy = numerics.log_softmax(log_ref + centered @ coefficients)
        return log_policy, jnp.exp(log_policy) @ centered

    def newton(coefficients: Array) -> tuple[Array, Array, Array]:
        log_policy, missed = law(coefficients)
        deviation = jnp.where(present, centered - missed[None], 0)
        covariance = (jnp.exp(log_policy)[:, None] * deviation).T @ deviation
        variance = jnp.diagonal(covariance)
        scale = jnp.where(variance > 0, 1 / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
        correlation = scale[:, None] * covariance * scale[None]
        move = -scale * (jnp.linalg.pinv(correlation, hermitian=True) @ (scale * missed))
        exponent = centered @ move
        highest = jnp.max(jnp.where(present[:, 0], exponent, -jnp.inf))
        lowest = jnp.min(jnp.where(present[:, 0], exponent, jnp.inf))
        return move, highest - lowest, jnp.all(jnp.abs(missed) <= tolerance)

    start = jnp.zeros(centered.shape[-1], centered.dtype)
    coefficients, _, iterations = roots.damped_newton(newton, start, limit=100)
    log_policy, missed = law(coefficients)
    return MomentFit(
        log_policy=log_policy,
        coefficients=coefficients,
        divergence=categorical.kl(log_policy, log_ref),
        residual=jnp.max(jnp.abs(missed)),
        iterations=iterations,
        converged=jnp.all(jnp.abs(missed) <= tolerance),
    )


def _centered_features(
    ref_logits: Logits, features: ArrayLike, moments: ArrayLike
) -> tuple[Array, Array]:
    """The normalized reference, and features less the moments, 0 where it has no mass."""
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
    return log_ref, jnp.where(present, features - moments[None], 0)
