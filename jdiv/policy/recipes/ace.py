"""ACE (arXiv:2602.21420): wrong answers that the policy has grown surer of are pushed harder.

Reconstructed: the structure is the abstract's; softplus with alpha 1 is one summary's,
`jax.nn.relu` with alpha .5 to 2 another's; whether the confidence is divided by the length is
unknown.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.types import PerSequence, Scalar


def ace_advantages(
    advantages: PerSequence,
    log_ratio: PerSequence,
    *,
    alpha: Scalar = 1.0,
    scale: Callable[[Array], Array] = jax.nn.softplus,
) -> Array:
    """`A (1 + alpha scale(c))` where A is negative, `c = log pi/pi_ref` of the sequence; else A.

    Constants. Shapes: any, twice the same, to the same.

    >>> ace_advantages(jnp.array([1.0, -1.0]), jnp.array([2.0, 2.0]), scale=jax.nn.relu)
    Array([ 1., -3.], dtype=float32)

    Reference: ACE (arXiv:2602.21420), abstract.
    """
    advantages, confidence = checks.alike(advantages=advantages, log_ratio=log_ratio)
    alpha = checks.not_negative("alpha", alpha, rows=advantages.ravel())
    factor = jnp.where(advantages < 0, 1 + alpha * scale(confidence), 1)
    return jax.lax.stop_gradient(advantages * checks.spread_nan(factor, confidence, alpha))
