"""ARLCP (arXiv:2602.12113): rewards less for length and for reflections."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.policy.advantages import grouped
from jdiv.types import Values


def arlcp_rewards(correct: Values, lengths: ArrayLike, reflections: ArrayLike) -> Array:
    """`1 - w sigmoid(z_reflections) - (.2 - w) sigmoid(z_lengths)` for right answers, else 0.

    z is standardized over the right answers of the group, with n - 1. Lengths and reflections are
    counts, the latter of words such as `wait`; w is .05 up to 40 reflections, .1 up to 80, .15
    beyond.
    Shapes: `[groups, size]` three times to the same.

    Reference: ARLCP (arXiv:2602.12113), code at c8ff44f.
    """
    correct = grouped(correct, "correct")
    lengths, reflections = (
        jnp.asarray(checks.not_negative(name, x), correct.dtype)
        for name, x in (("lengths", lengths), ("reflections", reflections))
    )
    checks.same_shape(correct=correct, lengths=lengths, reflections=reflections)
    right = correct > 0
    count = jnp.sum(right, axis=-1, keepdims=True).astype(correct.dtype)

    def standardized(x: Array) -> Array:
        kept = jnp.where(right, x, 0)
        centered = x - jnp.sum(kept, axis=-1, keepdims=True) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.where(right, centered**2, 0), axis=-1, keepdims=True)
        spread = jnp.sqrt(squares / jnp.maximum(count - 1, 1))
        return centered / jnp.where(spread > 0, spread, 1)

    weight = jnp.where(reflections <= 40, 0.05, jnp.where(reflections <= 80, 0.1, 0.15))
    weight = weight.astype(correct.dtype)
    of_reflections, of_lengths = (jax.nn.sigmoid(standardized(x)) for x in (reflections, lengths))
    rewards = jnp.where(right, 1 - weight * of_reflections - (0.2 - weight) * of_lengths, 0)
    return checks.spread_nan(rewards, jnp.sum(correct, axis=-1, keepdims=True))
