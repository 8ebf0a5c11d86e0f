"""FG-ExPO (arXiv:2605.11403): weights of questions and a KL coefficient, by accuracy.

Reconstructed: the abstract has a Gaussian in the accuracy centered near .5 and a smooth increasing
coefficient; form, width and scale of both are inferred.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jdiv import checks, parallel
from jdiv.types import PerSample, Scalar


def fg_expo_weights(accuracy: PerSample, *, width: Scalar, axis_name: str | None = None) -> Array:
    """Weights of questions `exp(-(p - 1/2)^2 / (2 width^2))`, with mean 1 over the batch.

    p is the accuracy of a question. An infinite width weighs all alike. Shapes: `[n]` to the same.

    >>> fg_expo_weights(jnp.array([0.0, 0.5, 1.0]), width=0.25).round(2)
    Array([0.32, 2.36, 0.32], dtype=float32)

    Reference: FG-ExPO (arXiv:2605.11403), abstract.
    """
    accuracy = checks.as_float("accuracy", checks.share("accuracy", accuracy))
    width = checks.in_range(
        "width", width, 0, jnp.inf, "positive", closed="high", rows=accuracy.ravel()
    )
    exponent = -(((accuracy - 0.5) / width) ** 2) / 2
    # The largest is 1, however narrow the Gaussian.
    weights = jnp.exp(exponent - parallel.max_over(jnp.max(exponent), axis_name))
    return weights / parallel.mean_over(jnp.mean(weights), axis_name)


def fg_expo_coefficient(
    accuracy: PerSample, *, low: Scalar, high: Scalar, axis_name: str | None = None
) -> Array:
    """KL coefficient `low + (high - low) a^2 (3 - 2 a)` of the batch's mean accuracy a.

    It increases smoothly from `low` at accuracy 0 to `high` at 1.
    Shapes: `[n]` to `[]`.

    Reference: FG-ExPO (arXiv:2605.11403), abstract.
    """
    accuracy = checks.as_float("accuracy", checks.share("accuracy", accuracy))
    low = checks.not_negative("low", low)
    high = checks.in_range("high", high, low, jnp.inf, "finite and at least low", closed="low")
    mean = parallel.mean_over(jnp.mean(accuracy), axis_name)
    return low + (high - low) * mean**2 * (3 - 2 * mean)
