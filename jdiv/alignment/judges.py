"""A judge that selects among k samples: a model of inference-time scaling that can be solved.

Bayesian linear regression stands for the language model: its answer to a question is a draw of the
posterior predictive law, a Gaussian. The judge is another linear model, which rewards an answer y
by `-(y - center)^2`, center being what it would say itself; of k answers one is selected by a
softmax of rewards over a temperature (`select`), or the best one. What is left is the squared
distance of the selected answer from the target, the teacher's: exact integrals here, for any k.

Reconstructed: the formulas follow from the model of the abstract; the paper has them for many
dimensions, by deterministic equivalents.
Reference: Halder and Pehlevan 2025 (arXiv:2512.19905).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.types import LogPolicy, PerRow, Samples, Scalar, Values


class Prediction(NamedTuple):
    """A Gaussian law of the answer to each question.

    Fields:
        mean: `[...]`
        variance: `[...]` of the answer, noise included.
    """

    mean: Array
    variance: Array


class Posterior(NamedTuple):
    """A Gaussian law of weights, and the noise of answers.

    Fields:
        mean: `[d]`
        covariance: `[d, d]`
        variance: `[]` of the noise.
    """

    mean: Array
    covariance: Array
    variance: Array

    def predict(self, features: Array) -> Prediction:
        """The predictive law of the answer to questions `[..., d]`."""
        spread = jnp.sum((features @ self.covariance) * features, axis=-1)
        return Prediction(features @ self.mean, self.variance + spread)


def posterior(
    features: Samples, targets: ArrayLike, *, variance: Scalar, ridge: Scalar
) -> Posterior:
    """The law of weights given answers with noise of this variance, prior `N(0, variance / ridge)`.

    Mean `S X'y` and covariance `variance S`, `S = (X'X + ridge I)^-1`. Shapes: features `[n, d]`,
    targets `[n]`; without data it is the prior.

    >>> found = posterior(jnp.ones((3, 1)), jnp.array([1.0, 2.0, 3.0]), variance=1.0, ridge=1.0)
    >>> print(f"{found.mean[0]:.2f} {found.covariance[0, 0]:.2f}")
    1.50 0.25
    """
    variance, ridge = checks.positive("variance", variance), checks.positive("ridge", ridge)
    features, targets = checks.as_float("features", features), checks.as_float("targets", targets)
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            "features and targets must be of shapes [n, d] and [n], got"
            f" {features.shape} and {targets.shape}"
        )
    variance, ridge = (jnp.asarray(x, features.dtype) for x in (variance, ridge))
    eye = jnp.eye(features.shape[1], dtype=features.dtype)
    factor = jax.scipy.linalg.cho_factor(features.T @ features + ridge * eye)
    solve = lambda b: jax.scipy.linalg.cho_solve(factor, b)
    return Posterior(solve(features.T @ targets), variance * solve(eye), variance)


def select(rewards: Values, *, temperature: PerRow) -> LogPolicy:
    """`log softmax(rewards / temperature)`: which of k samples is taken; at 0 the best of them.

    Samples that share the best reward share the probability at 0. Shapes: `[..., k]` to the same,
    the temperature a number or `[...]`.

    >>> print(jnp.exp(select(jnp.array([0.0, -1.0, 0.0]), temperature=0.0)))
    [0.5 0.  0.5]
    """
    rewards = checks.as_float("rewards", rewards)
    temperature = checks.not_negative("temperature", temperature, rows=rewards)
    below = rewards - jnp.max(rewards, axis=-1, keepdims=True)
    soft = below / jnp.where(temperature > 0, temperature, 1)
    best = jnp.where(below < 0, -jnp.inf, below)
    return numerics.log_softmax(jnp.where(temperature > 0, soft, best))


# --------------------------------------------------------------------- what is left by selection


def best_error(mean: Scalar, variance: Scalar, center: Scalar, target: Scalar, k: Scalar) -> Array:
    """`E (y - target)^2` of the one among k answers that is nearest to the judge's center.

    Where center and target are the same it tends to `pi s^2 e^(d^2/s^2) / k^2`, d their distance
    from the mean and s^2 the variance of answers; else to `(center - target)^2`. An integral over
    the distance to the center, by the trapezoidal rule in its logarithm. Shapes: numbers; vmap for
    more.

    >>> [f"{k * k * best_error(0.0, 1.0, 0.0, 0.0, k):.3f}" for k in (1.0, 10.0, 1000.0)]
    ['1.000', '2.470', '3.132']
    """
    mean, variance, center, target, k = _numbers(mean, variance, center, target, k)
    s = jnp.sqrt(variance)
    far = jnp.log(jnp.abs(center - mean) / s + 12)
    x = jnp.linspace(jnp.log(jnp.finfo(s.dtype).eps / k), far, 800, dtype=s.dtype)
    u = s * jnp.exp(x)
    low, high = (center - u - mean) / s, (center + u - mean) / s
    # From the nearer tail, where the difference does not cancel.
    mirrored = low > 0
    nearer = norm.cdf(jnp.where(mirrored, -low, high)) - norm.cdf(jnp.where(mirrored, -high, low))
    of_others = _power_below(nearer, k - 1)
    at_low = norm.pdf(low) * (center - u - target) ** 2
    at_high = norm.pdf(high) * (center + u - target) ** 2
    return jnp.sum(k * (at_low + at_high) * of_others * jnp.exp(x)) * (x[1] - x[0])


def softmax_error(
    mean: Scalar,
    variance: Scalar,
    center: Scalar,
    target: Scalar,
    k: Scalar,
    *,
    temperature: Scalar,
) -> Array:
    """`E (y - target)^2` of one of k answers, selected by a softmax of `-(y - center)^2 / T`.

    With `1/S = int e^(-l S) dl` it is `k int E[w e e^(-l w)] E[e^(-l w)]^(k - 1) dl`, of the weight
    w and the error e of one answer. For k to infinity the selected answer has the law of `tilts`
    with KL and beta = T. By the trapezoidal rule in y and log l, to 1e-8 for temperatures above .2
    variances and a center within 2 deviations of the mean. Shapes: numbers; vmap for more.

    >>> [f"{softmax_error(0.0, 1.0, 0.0, 0.0, k, temperature=1.0):.3f}" for k in (1.0, 2.0, 1e4)]
    ['1.000', '0.522', '0.333']
    """
    temperature = checks.positive("temperature", temperature)
    mean, variance, center, target, k = _numbers(mean, variance, center, target, k)
    z = jnp.linspace(-7, 7, 401, dtype=mean.dtype)
    y = mean + jnp.sqrt(variance) * z
    mass = norm.pdf(z) * (z[1] - z[0])
    log_w = -((y - center) ** 2) / jnp.asarray(temperature, mean.dtype)
    # Below there is no weight yet, and above the smallest one is used up.
    x = jnp.linspace(-45, 5 - jnp.min(log_w), 1024, dtype=mean.dtype)
    together = x[:, None] + log_w[None]
    own = jnp.exp(together - jnp.exp(together)) @ (mass * (y - target) ** 2)
    of_others = _power_below(-jnp.expm1(-jnp.exp(together)) @ mass, k - 1)
    return jnp.sum(k * own * of_others) * (x[1] - x[0])


def _numbers(
    mean: Scalar, variance: Scalar, center: Scalar, target: Scalar, k: Scalar
) -> list[Array]:
    """All in one precision; the variance positive, and k at least 1."""
    variance = checks.positive("variance", variance)
    k = checks.in_range("k", k, 1, jnp.inf, "at least 1", closed="low")
    found = checks.alike(mean=mean, variance=variance, center=center, target=target)
    found.append(jnp.asarray(k, found[0].dtype))
    if any(x.ndim for x in found):
        raise ValueError(f"mean to k must be numbers (vmap for more), got {found[0].shape}")
    return found


def _power_below(x: Array, k: Array) -> Array:
    """`(1 - x)^k` for x from 0 to 1, accurate for a small x, also for k = 0."""
    some = x < 1
    return jnp.where(some, jnp.exp(k * jnp.log1p(-jnp.where(some, x, 0))), (k == 0).astype(x.dtype))
