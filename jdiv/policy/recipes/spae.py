"""SPAE (arXiv:2601.03823): credit by the progress of each step.

Reconstructed: the two terms are known in words from the abstract, threshold and difference from the
released probe (code at 1f8c839); how they combine is inferred.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.types import PerRow, PerSequence, PerToken


def step_potential(correctness: ArrayLike, confidence: ArrayLike) -> Array:
    """SPAE's potential `3/2 a c + a/2 - c` of a step: 1 if sure and right, -1 if sure and wrong.

    Correctness a is the probability of the right answer and confidence c in [0, 1], both of answers
    forced at the end of the step; 0 for neither. Shapes: any, twice the same, to the same.

    >>> [float(step_potential(jnp.array(a), jnp.array(1.0))) for a in (1.0, 0.5, 0.0)]
    [1.0, 0.0, -1.0]

    Reference: SPAE (arXiv:2601.03823), code at 1f8c839.
    """
    correctness, confidence = checks.alike(
        correctness=checks.share("correctness", correctness),
        confidence=checks.share("confidence", confidence),
    )
    return 1.5 * correctness * confidence + 0.5 * correctness - confidence


def spae_advantages(
    advantages: PerSequence,
    potential: PerToken,
    *,
    saturation: PerRow = 0.9,
    damping: PerRow,
    shaping: PerRow,
) -> Array:
    """`A (1 - damping [saturated before]) + shaping (Phi_k - Phi_(k-1))` for each step.

    The outcome gives less credit once the potential has been above its saturation; a step's own
    share is what it adds to the potential, 0 for the first. Constants.
    Shapes: advantages `[...]`, potential `[..., steps]`, to `[..., steps]`.

    Reference: SPAE (arXiv:2601.03823), abstract, and its code at 1f8c839.
    """
    potential = checks.as_float("potential", potential)
    advantages = checks.as_float("advantages", advantages).astype(potential.dtype)
    if potential.ndim == 0 or advantages.shape != potential.shape[:-1]:
        raise ValueError(
            "advantages and potential must be of shapes [...] and [..., steps], got"
            f" {tuple(advantages.shape)} and {tuple(potential.shape)}"
        )
    saturation = checks.finite("saturation", saturation, rows=potential)
    damping = checks.share("damping", damping, rows=potential)
    shaping = checks.finite("shaping", shaping, rows=potential)
    before = jnp.concatenate([potential[..., :1], potential[..., :-1]], axis=-1)
    above = jnp.cumsum((potential > saturation).astype(jnp.int32), axis=-1)
    saturated = jnp.concatenate([jnp.zeros_like(above[..., :1]), above[..., :-1]], axis=-1) > 0
    kept = jnp.where(saturated, 1 - damping, 1)
    kept = checks.spread_nan(kept, saturation, damping)
    return jax.lax.stop_gradient(advantages[..., None] * kept + shaping * (potential - before))
