"""ACE (arXiv:2602.21420): advantages of wrong answers weighted by confidence."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks


def ace_advantages(
    advantages: ArrayLike,
    log_ratio: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    scale: Callable[[Array], Array] = jax.nn.softplus,
) -> Array:
    """`A (1 + alpha scale(c))` where A is negative, `c = log pi/pi_ref` of the sequence; else A.

    Wrong answers that the policy has become surer of are pushed down harder. The structure is the
    abstract's; softplus is from one secondary source, `jax.nn.relu` with alpha .5 to 2 from
    another; whether c is divided by the length is unknown. Shapes: any, twice the same.

    Reference: ACE (arXiv:2602.21420), abstract.
    """
    advantages, confidence = checks.alike(advantages=advantages, log_ratio=log_ratio)
    factor = jnp.where(advantages < 0, 1 + alpha * scale(confidence), 1)
    return jax.lax.stop_gradient(advantages * factor)
