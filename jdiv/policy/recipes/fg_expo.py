"""FG-ExPO (arXiv:2605.11403): weights of questions and a KL coefficient by accuracy."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel


def fg_expo_weights(rate: ArrayLike, *, width: ArrayLike, axis_name: str | None = None) -> Array:
    """Weights of questions `exp(-(p - 1/2)^2 / (2 width^2))`, with mean 1 over the batch.

    The abstract has a Gaussian in the accuracy centred near .5; form, width and scale are inferred.
    An infinite width weighs all alike. Shapes: `[n]` to the same.

    Reference: FG-ExPO (arXiv:2605.11403), abstract.
    """
    rate = checks.as_float("rate", rate)
    exponent = -(((rate - 0.5) / width) ** 2) / 2
    # The largest is 1, however narrow the Gaussian.
    weights = jnp.exp(exponent - parallel.max_over(jnp.max(exponent), axis_name))
    return weights / parallel.mean_over(jnp.mean(weights), axis_name)


def fg_expo_coefficient(
    rate: ArrayLike, *, low: ArrayLike, high: ArrayLike, axis_name: str | None = None
) -> Array:
    """KL coefficient `low + (high - low) a^2 (3 - 2 a)` of the batch's mean accuracy a.

    The abstract has a smooth increasing function; which one is unknown, and this one is inferred.
    Shapes: `[n]` to `[]`.

    Reference: FG-ExPO (arXiv:2605.11403), abstract.
    """
    mean = parallel.mean_over(jnp.mean(checks.as_float("rate", rate)), axis_name)
    return low + (high - low) * mean**2 * (3 - 2 * mean)
