"""Adaptive entropy regularization, AER (arXiv:2510.10959): an entropy bonus held at a target."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks


def aer_coefficients(accuracy: ArrayLike, scale: ArrayLike, *, rho: ArrayLike) -> Array:
    """Entropy coefficient `scale max(0, rho - accuracy)` of each question: more for the harder.

    Inferred: of AER its abstract is known, a coefficient by difficulty and one for all. Shapes: any
    to the same; 0 from the accuracy rho on.

    Reference: adaptive entropy regularisation (arXiv:2510.10959), abstract.
    """
    return scale * jnp.maximum(rho - checks.as_float("accuracy", accuracy), 0)


def aer_scale(
    scale: ArrayLike,
    entropy: ArrayLike,
    initial_entropy: ArrayLike,
    *,
    target: ArrayLike = 0.4,
    rate: ArrayLike,
) -> Array:
    """`max(0, scale + rate (target H_0 - H))`: rests where the entropy is its target.

    That the target is a share of the initial entropy is the abstract's; the integral control is
    inferred, and .4 is from a summary by others. Shapes: any, broadcast.

    Reference: adaptive entropy regularisation (arXiv:2510.10959), abstract.
    """
    entropy = checks.as_float("entropy", entropy)
    return jnp.maximum(scale + rate * (target * initial_entropy - entropy), 0)
