"""Augmentations that a student learns most from: those where it and its teacher differ most."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jdiv import checks
from jdiv.divergences import categorical
from jdiv.types import Categories, Logits, Reduced


def hard(
    student_logits: Logits, teacher_logits: Logits, *, where: Categories | None = None
) -> Reduced:
    """HARD, `max_a KL(teacher(a x)‖student(a x))` over the augmentations a of an input x.

    The augmentation is chosen adversarially, where teacher and student disagree most; the teacher
    answers to the augmented input, so a symmetry that it has is passed on. KL is the field's
    forward KL, `dv.reverse_kl`. The gradient is that of the chosen one, the first among equals: the
    student's and the teacher's probabilities there, `student - teacher`. The teacher is a constant.
    Shapes: `[augmentations, ..., n]` logits twice to `[...]`. Range: 0 to inf.

    >>> student = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]]))
    >>> teacher = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> print(f"{hard(student, teacher):.4f}")
    0.3681

    Reference: Nielsen et al. 2023, HARD: Hard Augmentations for Robust Distillation
    (arXiv:2305.14890).
    Reconstructed: the choice among given augmentations, in place of a learned generator of them.
    """
    student, teacher = checks.alike(student_logits=student_logits, teacher_logits=teacher_logits)
    if student.ndim < 2:
        shape = tuple(student.shape)
        raise ValueError(f"student_logits must be [augmentations, ..., n], got {shape}")
    losses = categorical.TABLE["reverse_kl"](student, jax.lax.stop_gradient(teacher), where=where)
    chosen = jnp.argmax(jax.lax.stop_gradient(losses), axis=0)
    return jnp.take_along_axis(losses, chosen[None], axis=0)[0]
