"""Adaptive entropy regularization, AER (arXiv:2510.10959): an entropy bonus held at a target.

Reconstructed: the abstract has a coefficient by difficulty, one for all, and a target that is a
share of the initial entropy. Both formulas are inferred; .4 is from a summary by others.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.types import Scalar


def aer_coefficients(accuracy: ArrayLike, scale: ArrayLike, *, rho: Scalar) -> Array:
    """Entropy coefficient `scale max(0, rho - accuracy)` of each question: more for the harder.

    Shapes: any to the same; 0 from the accuracy rho on.

    >>> aer_coefficients(jnp.array([0.25, 0.75, 1.0]), 2.0, rho=1.0)
    Array([1.5, 0.5, 0. ], dtype=float32)

    Reference: AER (arXiv:2510.10959), abstract.
    """
    accuracy = checks.as_float("accuracy", checks.share("accuracy", accuracy))
    scale = jnp.asarray(checks.not_negative("scale", scale), accuracy.dtype)
    rho = checks.not_negative("rho", rho, rows=accuracy.ravel())
    return scale * jnp.maximum(rho - accuracy, 0)


def aer_scale(
    scale: ArrayLike,
    entropy: ArrayLike,
    initial_entropy: Scalar,
    *,
    target: Scalar = 0.4,
    step_size: ArrayLike,
) -> Array:
    """`max(0, scale + step_size (target H_0 - H))`: rests where the entropy is its target.

    An integral control of the coefficient that all questions share, never negative. Shapes: any,
    broadcast.

    Reference: AER (arXiv:2510.10959), abstract.
    """
    entropy = checks.as_float("entropy", entropy)
    scale, initial_entropy, target, step_size = (
        jnp.asarray(x, entropy.dtype)
        for x in (
            checks.not_negative("scale", scale),
            checks.not_negative("initial_entropy", initial_entropy),
            checks.not_negative("target", target),
            checks.not_negative("step_size", step_size),
        )
    )
    return jnp.maximum(scale + step_size * (target * initial_entropy - entropy), 0)
