"""Tracing: where in the next frame a change of this one arrives, by the KL of what is predicted.

A predictor with a law of the token at every position of the next frame is asked twice, about a
frame and about the same frame with one patch changed. The patch went where the two laws differ
most. Measured by KL, a sure prediction that moves a little counts more than an unsure one whose
mean moves far.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jdiv import checks, divergences
from jdiv.types import Logits


class Trace(NamedTuple):
    """Where a change arrived, and what it did everywhere.

    Fields:
        position: `[...]` the index of the largest KL, the first of equals.
        kl: `[..., positions]` KL(changed‖clean) at each position.
    """

    position: Array
    kl: Array


def kl_trace(logits: Logits, ref_logits: Logits) -> Trace:
    """The position at which the laws of a changed and of a clean frame differ most, by KL.

    Shapes: `[..., positions, n]` twice, the predictions of the changed frame first and those of the
    clean one as the reference. What the change made possible is infinitely far away.

    >>> clean = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]]))
    >>> changed = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]))
    >>> print(kl_trace(changed, clean).position)
    1

    Reference: Kim et al. 2025 (arXiv:2507.09082).
    Reconstructed: the direction, of the changed law from the clean one.
    """
    logits, ref_logits = checks.alike(logits=logits, ref_logits=ref_logits)
    if logits.ndim < 2 or 0 in logits.shape[-2:]:
        raise ValueError(f"logits must be [..., positions, n], got {tuple(logits.shape)}")
    kl = divergences.kl(logits, ref_logits)
    return Trace(jnp.argmax(kl, axis=-1), kl)
