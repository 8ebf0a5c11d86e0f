"""Ignore the KL Penalty! (Vassoyan et al. 2025, arXiv:2502.06533): KL where the reference is sure.

Tokens at which a pretrained model hesitates are those that exploration has to change; a penalty
that is weighted by the model's confidence leaves them free and holds all others.

Reconstructed: the confidence and the power are those of the authors' code, as others noted them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.types import Logits, PerToken, Scalar


def confidence(ref_logits: Logits) -> Array:
    """`1 + log max p / log V`: 1 where the reference has no doubt, 0 where it is uniform.

    V is the size of the vocabulary, of at least two tokens. Shapes: `[..., V]` to `[...]`.

    >>> print(confidence(jnp.log(jnp.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0]]))))
    [0. 1.]

    Reference: Vassoyan et al. 2025 (arXiv:2502.06533).
    """
    ref_logits = checks.as_float("ref_logits", ref_logits)
    if ref_logits.ndim == 0 or ref_logits.shape[-1] < 2:
        raise ValueError(f"ref_logits must be [..., V], V at least 2, got {ref_logits.shape}")
    best = jnp.max(numerics.log_softmax(ref_logits), axis=-1)
    # Rounding takes a uniform law below 0.
    return jnp.maximum(1 + best / jnp.log(jnp.asarray(ref_logits.shape[-1], best.dtype)), 0)


def prioritized_weights(confidence: PerToken, *, power: Scalar = 150.0) -> Array:
    """`confidence^power`, the weight of each token's KL: .22 at a confidence of .99, 5e-4 at .95.

    Power 0 is the plain penalty. The weights are constants. Shapes: `[..., T]` to the same.

    >>> [f"{w:.4f}" for w in prioritized_weights(jnp.array([0.0, 0.95, 0.99, 1.0]))]
    ['0.0000', '0.0005', '0.2215', '1.0000']

    Reference: Vassoyan et al. 2025 (arXiv:2502.06533), which tries powers from 10 to 10,000.
    """
    confidence = checks.as_float("confidence", checks.share("confidence", confidence))
    power = checks.not_negative("power", power)
    return jax.lax.stop_gradient(confidence ** jnp.asarray(power, confidence.dtype))
