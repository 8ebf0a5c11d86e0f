"""Asymmetric Policy Optimization (arXiv:2506.21655): right and wrong answers regularized apart.

Right answers have a KL weight by difficulty (DADS, `dads_weights`), wrong ones a factor for length
(STCR, `stcr_advantages`). Anchored Policy Optimization (arXiv:2602.05717), which is called APO as
well, is another method.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.policy.advantages import grouped
from jdiv.types import Scalar, Values


def dads_weights(correct: Values) -> Array:
    """`1 - exp(-e accuracy)` for the right answers of a group, 1 for the wrong ones.

    Weights of each answer's KL penalty: a right answer to a hard question is free to move, one to
    an easy question is held. 1 where all answers are right, too, which have no advantage.
    Constants. Shapes: `[groups, size]` of 0 and 1, to the same.

    >>> correct = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    >>> [f"{weight:.4f}" for weight in dads_weights(correct)[:, 0]]
    ['0.4932', '0.8698']

    Reference: Asymmetric Policy Optimization (arXiv:2506.21655), its code at 917ec74.
    """
    correct = jax.lax.stop_gradient(grouped(correct, "correct"))
    correct = checks.share("correct", correct)
    accuracy = jnp.mean(correct, axis=-1, keepdims=True)
    held = -jnp.expm1(-math.e * accuracy)
    free = (correct > 0) & (accuracy < 1)
    return checks.spread_nan(jnp.where(free, held, 1), accuracy)


def stcr_advantages(
    advantages: Values, correct: Values, lengths: ArrayLike, *, coefficient: Scalar = 1e-5
) -> Array:
    """`A (2 - (1 + coefficient)^(-excess))` for wrong answers longer than the mean right one.

    The excess is in tokens, so that the factor is between 1 and 2; other answers, and all in a
    group without a right one, keep their advantage. Constants. Shapes: `[groups, size]` three times
    to the same.

    >>> correct, lengths = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[2.0, 3.0, 1.0]])
    >>> stcr_advantages(2 * correct - 1, correct, lengths, coefficient=1.0)
    Array([[ 1. , -1.5, -1. ]], dtype=float32)

    Reference: Asymmetric Policy Optimization (arXiv:2506.21655), its code at 917ec74.
    """
    correct = checks.share("correct", grouped(correct, "correct"))
    advantages = checks.as_float("advantages", advantages)
    lengths = jnp.asarray(checks.not_negative("lengths", lengths), correct.dtype)
    checks.same_shape(advantages=advantages, correct=correct, lengths=lengths)
    coefficient = checks.not_negative("coefficient", coefficient, rows=correct.ravel())
    right = jnp.sum(correct, axis=-1, keepdims=True)
    of_right = jnp.sum(correct * lengths, axis=-1, keepdims=True) / jnp.where(right > 0, right, 1)
    excess = jnp.where((correct < 1) & (right > 0), jnp.maximum(lengths - of_right, 0), 0)
    factor = 1 - jnp.expm1(-excess * jnp.log1p(coefficient))
    return jax.lax.stop_gradient(advantages * checks.spread_nan(factor, correct, lengths))
