"""What distillation is judged by: fidelity to the teacher, calibration, mass on its top k."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.divergences import categorical, sparse
from jdiv.types import Categories, Indices, Logits, Reduced, RowMask


class Fidelity(NamedTuple):
    """How closely a student follows its teacher, row by row.

    Fields:
        kl: `[...]` KL(teacher‖student), from 0 to inf.
        agreement: `[...]` 1 where both have the same most probable category, else 0.
    """

    kl: Array
    agreement: Array


def fidelity(
    student_logits: Logits, teacher_logits: Logits, *, where: Categories | None = None
) -> Fidelity:
    """`KL(teacher‖student)` and whether their most probable categories agree, of each row.

    Accuracy may rise while both fall: a student may be right where its teacher is wrong.
    Shapes: `[..., n]` logits twice to `[...]` each. Among equals the first category counts.

    >>> a, b = jnp.log(jnp.array([0.6, 0.4])), jnp.log(jnp.array([0.4, 0.6]))
    >>> print(fidelity(a, b).agreement)
    0.0

    Reference: Stanton et al. 2021, Does Knowledge Distillation Really Work?, section 3.
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits, -1, where)
    same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    return Fidelity(categorical.TABLE["reverse_kl"](student, teacher), same.astype(student.dtype))


def calibration_error(
    logits: Logits, labels: Indices, *, bins: int = 15, mask: RowMask | None = None
) -> Reduced:
    """Expected calibration error, `sum_m n_m/n |accuracy_m - confidence_m|` over bins m.

    The bins of the confidence, which is the largest probability, are equally wide, each with its
    upper end. A mean over all rows that count: 0 if none does. It depends on the number of bins,
    and is biased upwards where they hold few rows.
    Shapes: `[..., n]` and `[...]` to `[]`. Range: 0 to 1.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]]))
    >>> print(calibration_error(logits, jnp.array([0, 1])).round(4))
    0.25

    Reference: Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv:1706.04599),
    equation 3.
    """
    logits, labels = checks.as_float("logits", logits), checks.as_integers("labels", labels)
    mask = jnp.ones(labels.shape, bool) if mask is None else checks.as_mask("mask", mask)
    checks.same_shape(labels=labels, mask=mask)
    bins = checks.whole("bins", bins, 1, 2**20, "from 1 to 2^20")
    log_p = numerics.log_softmax(jnp.where(mask[..., None], logits, 0))
    confidence = jnp.exp(jnp.max(log_p, axis=-1)).ravel()
    right = (jnp.argmax(log_p, axis=-1) == labels).ravel()
    kept = mask.ravel()
    place = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)
    # One sum of the differences: a bin's share and its count cancel.
    excess = jnp.where(kept, right.astype(confidence.dtype) - confidence, 0)
    gaps = jnp.abs(jax.ops.segment_sum(excess, place, bins))
    return jnp.sum(gaps) / jnp.maximum(jnp.sum(kept), 1).astype(confidence.dtype)


def retained_mass(student_logits: Logits, teacher_logits: Logits, k: int) -> Reduced:
    """The student's probability of the teacher's k most probable categories.

    Near 0 for a student that left them, which losses of these categories alone may not see.
    Shapes: `[..., n]` logits twice to `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.2, 0.3, 0.5])), jnp.array([2.0, 1.0, 0.0])
    >>> print(retained_mass(student, teacher, 2).round(4))
    0.5
    """
    student, teacher = checks.alike(student_logits=student_logits, teacher_logits=teacher_logits)
    return sparse.retained_mass(student, sparse.top_k(teacher, k).indices)
