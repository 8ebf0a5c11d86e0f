"""DOT (arXiv:2601.03969): the longest answers to solved questions are cut off."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.policy.advantages import grouped
from jdiv.types import Scalar, Values


def truncated_lengths(
    correct: Values, lengths: ArrayLike, *, scale: Scalar = 3.0, margin: Scalar = 32.0
) -> Array:
    """`floor(mean + scale std)` for answers that are longer by the margin; else their lengths.

    Only in groups where every answer is right: an answer that is cut off loses its reward, and so
    the group has a gradient again. Mask the tokens behind the length and judge anew. The standard
    deviation is of n - 1. Of n numbers none is further than `(n - 1)/sqrt(n)` of these from their
    mean: three are too many for a group of ten or fewer, which is never cut.
    Shapes: `[groups, size]` twice to the same.

    >>> lengths = jnp.array([[5.0, 5.0, 5.0, 95.0]])
    >>> truncated_lengths(jnp.ones((1, 4)), lengths, scale=1.0, margin=1.0)
    Array([[ 5.,  5.,  5., 72.]], dtype=float32)

    Reference: DOT (arXiv:2601.03969), its code (`apply_length_truncation`).
    """
    correct = checks.share("correct", grouped(correct, "correct"))
    lengths = jnp.asarray(checks.not_negative("lengths", lengths), correct.dtype)
    checks.same_shape(correct=correct, lengths=lengths)
    scale = checks.not_negative("scale", scale, rows=lengths.ravel())
    margin = checks.not_negative("margin", margin, rows=lengths.ravel())
    mean = jnp.mean(lengths, axis=-1, keepdims=True)
    squares = jnp.sum((lengths - mean) ** 2, axis=-1, keepdims=True)
    limit = jnp.floor(mean + scale * jnp.sqrt(squares / max(1, lengths.shape[-1] - 1)))
    solved = jnp.all(correct == 1, axis=-1, keepdims=True)
    cut = solved & (lengths > limit) & (lengths - limit >= margin)
    unknown = jnp.sum(correct, axis=-1, keepdims=True)
    return checks.spread_nan(jnp.where(cut, limit, lengths), limit, margin, unknown)
