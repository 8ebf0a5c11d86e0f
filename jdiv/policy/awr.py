"""Advantage-weighted regression: exponential weights at a temperature that is given."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.policy.tokens import Advantages, TokenLoss, masked
from jdiv.types import LogProbs, Mask, Scalar


class RegressionDiagnostics(NamedTuple):
    """The weights of a weighted log-likelihood.

    Fields:
        weight: `[..., T]` factors of the log-probabilities, 0 where masked.
    """

    weight: Array


def awr_weights(advantages: Advantages, temperature: Scalar, *, limit: float = 20.0) -> Array:
    """`min(exp(A/temperature), limit)`, elementwise, as constants; never overflows.

    Without limit, and normalized, they are the weights of `mpo.e_step` at the same temperature.
    Shapes: `[..., n]` to the same; a temperature or one for each row `[...]`, and so the limit.

    >>> awr_weights(jnp.array([0.0, 1000.0]), 1.0)
    Array([ 1., 20.], dtype=float32)

    Reference: Peng et al. 2019 (arXiv:1910.00177), algorithm 1; 20 is its limit.
    """
    advantages = checks.as_float("advantages", advantages)
    temperature = checks.positive("temperature", temperature, rows=advantages)
    limit = checks.in_range("limit", limit, 0, jnp.inf, "positive", closed="high", rows=advantages)
    exponent = jnp.minimum(advantages / temperature, jnp.log(limit))
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(exponent), limit))


def awr(
    log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    temperature: Scalar,
    limit: float = 20.0,
) -> TokenLoss[RegressionDiagnostics]:
    """Advantage-weighted regression, per token `-min(exp(A/temperature), limit) log pi`.

    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Peng et al. 2019 (arXiv:1910.00177), equation 9 and algorithm 1.
    """
    log_probs, mask, (advantages,) = masked(log_probs, mask, advantages=advantages)
    weight = awr_weights(advantages, temperature, limit=limit)
    weight = jnp.where(mask, weight, 0)
    return TokenLoss(-weight * log_probs, RegressionDiagnostics(weight))
