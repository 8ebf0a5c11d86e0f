"""Weights that follow student and teacher: forward against reverse KL, and what to train on.

`student_logits` and `teacher_logits` are `[..., n]`, `-inf` an exact zero; a temperature is divided
out of them by the caller. Losses are one number for each row, not averaged. The teacher is a
constant, and so are all weights: gradients go to the student through the divergences alone.
KL(teacher‖student) is the field's forward KL, `dv.reverse_kl(student, teacher)`, and
KL(student‖teacher) its reverse KL, `dv.kl(student, teacher)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, divergences, numerics
from jdiv.types import Categories, Logits, PerRow


class HeadAndTail(NamedTuple):
    """Weights of the two directions of KL, which sum to 1.

    Fields:
        head: `[...]` of the forward KL, `KL(teacher‖student)`.
        tail: `[...]` of the reverse KL, `KL(student‖teacher)`.
    """

    head: Array
    tail: Array


class Selection(NamedTuple):
    """Samples of a batch that are trained on.

    Fields:
        labels: `[n]` the teacher's most likely class.
        keep: `[n]` whether a sample is trained on.
        weight: `[n]` of its loss: the teacher's confidence times the student's entropy.
    """

    labels: Array
    keep: Array
    weight: Array


# ------------------------------------------------------------------------- forward against reverse


def head_and_tail(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    share: PerRow = 0.5,
    where: Categories | None = None,
) -> HeadAndTail:
    """Of `|student - teacher|` the share that lies in the teacher's head, and in its tail.

    The head are the teacher's most likely categories, as long as their sum is at most `share`, and
    always the first. Constants; 1/2 and 1/2 for a student that is the teacher. Zeros have no mass
    (the released code gives them that of a logit of 0). Shapes: `[..., n]` twice to `[...]`.

    >>> p, q = jnp.log(jnp.array([0.3, 0.3, 0.4])), jnp.log(jnp.array([0.45, 0.35, 0.2]))
    >>> print([f"{x:.3f}" for x in head_and_tail(p, q)])
    ['0.375', '0.625']

    Reference: Wu et al. 2024 (arXiv:2404.02657) and its released code.
    """
    student, teacher = _pair(*jax.lax.stop_gradient((student_logits, teacher_logits)), where)
    share = checks.share("share", share, rows=student)
    order = jnp.argsort(teacher, axis=-1, descending=True)
    mass = jnp.cumsum(_taken(jax.nn.softmax(teacher), order), axis=-1)
    rank = jax.lax.broadcasted_iota(jnp.int32, mass.shape, mass.ndim - 1)
    is_head = (mass <= share) | (rank == 0)
    gap = _taken(_gap(student, teacher), order)
    head, tail = (jnp.sum(jnp.where(x, gap, 0), axis=-1) for x in (is_head, ~is_head))
    total = checks.spread_nan(head + tail, share if share.ndim == 0 else share[..., 0])
    equal, safe = total == 0, jnp.where(total == 0, 1, total)
    return HeadAndTail(*(jnp.where(equal, 0.5, x / safe) for x in (head, tail)))


def akl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    share: PerRow = 0.5,
    where: Categories | None = None,
) -> Array:
    """AKL, `head KL(teacher‖student) + tail KL(student‖teacher)` with the weights `head_and_tail`.

    With p the student and q the teacher, its gradient by the student's logits is
    `head (p - q) + tail p (log p/q - KL(p‖q))`. A direction of weight 0 costs nothing, also where
    it is infinite. Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.3, 0.3, 0.4])), jnp.log(jnp.array([0.45, 0.35, 0.2]))
    >>> print(f"{akl(p, q):.4f}")
    0.1050

    Reference: Wu et al. 2024 (arXiv:2404.02657) and its released code.
    """
    weights = head_and_tail(student_logits, teacher_logits, share=share, where=where)
    return _mixed(student_logits, teacher_logits, where, *weights)


def balanced(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    share: PerRow = 0.75,
    where: Categories | None = None,
) -> Array:
    """BD-KD's loss: more forward KL for a student surer than its teacher, else more reverse KL.

    `s KL(teacher‖student) + (1 - s) KL(student‖teacher)` where the student's entropy is below the
    teacher's, with s and 1 - s exchanged where it is above, and half of each where they are equal.
    The gradient is that of `akl` with these weights. Shapes: `[..., n]` twice to `[...]`.

    >>> sure, unsure = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.6, 0.4]))
    >>> print(f"{balanced(sure, unsure):.4f} {balanced(unsure, sure):.4f}")
    0.2900 0.2900

    Reference: Amara et al. 2022 (arXiv:2212.12965), of which the abstract and a summary were read.
    Reconstructed: which direction is favoured by which sign of the difference, and the weight.
    """
    share = checks.share("share", share)
    student, teacher = _pair(*jax.lax.stop_gradient((student_logits, teacher_logits)), where)
    surer = jnp.sign(_entropy(teacher) - _entropy(student))
    forward = 0.5 + (jnp.asarray(share, surer.dtype) - 0.5) * surer
    return _mixed(student_logits, teacher_logits, where, forward, 1 - forward)


def forward_then_reverse(
    student_logits: Logits,
    teacher_logits: Logits,
    phase: PerRow,
    *,
    share: PerRow = 0.5,
    where: Categories | None = None,
) -> Array:
    """`KL(teacher‖student)` in the first `share` of the training, then `KL(student‖teacher)`.

    `phase` goes from 0 to 1; at `phase = share` it is the reverse KL already. The gradient is that
    of the direction in force. Shapes: `[..., n]` twice and `[]` or `[...]` to `[...]`.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print([f"{forward_then_reverse(p, q, phase):.4f}" for phase in (0.2, 0.8)])
    ['0.3681', '0.5108']

    Reference: Xu et al. 2026 (arXiv:2603.11178), the two-stage schedule.
    Reconstructed: where the schedule turns; the abstract has the order alone.
    """
    dtype = checks.as_float("student_logits", student_logits).dtype
    phase, share = (
        jnp.asarray(checks.share(name, x), dtype)
        for name, x in (("phase", phase), ("share", share))
    )
    forward = jnp.broadcast_to(jnp.where(phase < share, 1.0, 0.0), student_logits.shape[:-1])
    forward = checks.spread_nan(forward.astype(dtype), phase, share)
    return _mixed(student_logits, teacher_logits, where, forward, 1 - forward)


# ---------------------------------------------------------------------------- what to train on


def paced(accuracy: PerRow, *, a: PerRow = 1.0, b: PerRow = 1.0) -> Array:
    """PACED's weight of a problem, `p^a (1 - p)^b` at pass rate p; largest at `a / (a + b)`.

    A constant: no gradient. 0 at both ends for positive a and b; an exponent of 0 leaves its end
    at 1. `policy.recipes.difficulty.pass_rate` has the pass rates. Shapes: any, broadcast.

    >>> print(paced(jnp.array([0.0, 0.5, 1.0])))
    [0.   0.25 0.  ]

    Reference: Xu et al. 2026 (arXiv:2603.11178).
    Reconstructed: that both exponents are 1 by default.
    """
    accuracy = jax.lax.stop_gradient(_pass_rates(accuracy))
    a, b = (
        jnp.asarray(checks.not_negative(name, x), accuracy.dtype)
        for name, x in (("a", a), ("b", b))
    )
    return accuracy**a * (1 - accuracy) ** b


def signal_to_noise(accuracy: PerRow, baseline: PerRow) -> Array:
    """Squared signal-to-noise ratio of REINFORCE, `p (1 - p) / (1 - p - baseline)^2`.

    One problem that is solved with probability p for a reward of 1: the gradient of one sample by
    the logit of p is `(r - baseline)(r - p)`, its mean p (1 - p), its variance
    `p (1 - p) (1 - p - baseline)^2`. With baseline p the ratio vanishes at both ends, as `paced`
    has it; without one it is p / (1 - p), and does not vanish at 1. At the baseline 1 - p there is
    no noise: inf; 0 where p is 0 or 1. Shapes: any, broadcast.

    >>> [f"{signal_to_noise(p, baseline):.4f}" for p, baseline in ((0.1, 0.1), (0.1, 0.0))]
    ['0.1406', '0.1111']

    Reference: Xu et al. 2026 (arXiv:2603.11178), for the claim that it vanishes at both ends.
    """
    accuracy = _pass_rates(accuracy)
    baseline = jnp.asarray(checks.finite("baseline", baseline), accuracy.dtype)
    mean, difference = accuracy * (1 - accuracy), (1 - accuracy) - baseline
    exact = difference == 0
    ratio = mean / jnp.square(jnp.where(exact, 1, difference))
    return jnp.where(mean == 0, 0, jnp.where(exact, jnp.inf, ratio))


def llkd_selection(student_logits: Logits, teacher_logits: Logits) -> Selection:
    """LLKD's samples: the teacher is confident and the student uncertain, as their class goes.

    Kept is what has at least the mean confidence (the teacher's largest probability) and at least
    the mean uncertainty (the student's entropy) of the samples to which the teacher gives the same
    class. All are constants. Shapes: `[n, classes]` twice, a batch, to `[n]`.

    >>> student = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]]))
    >>> teacher = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]))
    >>> print(llkd_selection(student, teacher).keep)
    [ True False False]

    Reference: Li et al. 2024 (arXiv:2411.08028).
    Reconstructed: the thresholds by class are means of the batch, and the weight is a product; the
    abstract and a summary have two thresholds by class and a weighted loss.
    """
    student, teacher = _pair(*jax.lax.stop_gradient((student_logits, teacher_logits)), None)
    if student.ndim != 2:
        raise ValueError(f"student_logits must be [n, classes], a batch, got {student.shape}")
    labels = jnp.argmax(teacher, axis=-1)
    confidence, uncertainty = jnp.max(jax.nn.softmax(teacher), axis=-1), _entropy(student)
    keep = [_at_least_mean(x, labels, student.shape[1]) for x in (confidence, uncertainty)]
    return Selection(labels, keep[0] & keep[1], confidence * uncertainty)


def llkd(student_logits: Logits, teacher_logits: Logits) -> Array:
    """LLKD's loss, `-weight log student(label)` of the samples `llkd_selection` keeps, else 0.

    The gradient by the student's logits is `weight (student - label)`. The mean that it is compared
    with is over the batch, the loss is one number for each sample. Shapes: `[n, classes]` twice to
    `[n]`.

    >>> student = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> [f"{x:.4f}" for x in llkd(student, jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]])))]
    ['0.4324', '0.0000']

    Reference: Li et al. 2024 (arXiv:2411.08028).
    Reconstructed: as in `llkd_selection`; that the loss is the cross-entropy of the label.
    """
    labels, keep, weight = llkd_selection(student_logits, teacher_logits)
    student, _ = _pair(student_logits, teacher_logits, None)
    trained = keep & (weight > 0)
    log_p = numerics.log_softmax(jnp.where(trained[:, None], student, 0))
    loss = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return checks.spread_nan(jnp.where(trained, weight * loss, 0), weight)


# ----------------------------------------------------------------------------------------- parts


def _pair(student_logits: Array, teacher_logits: Array, where: Categories | None):
    """Logits in one precision, masked categories at `-inf`."""
    return checks.logits_pair(student_logits, teacher_logits, -1, where)


def _mixed(
    student_logits: Array,
    teacher_logits: Array,
    where: Categories | None,
    forward: Array,
    reverse: Array,
) -> Array:
    """`forward KL(teacher‖student) + reverse KL(student‖teacher)`, the teacher a constant."""
    student, teacher = _pair(student_logits, jax.lax.stop_gradient(teacher_logits), where)
    return _weighed(forward, divergences.reverse_kl, student, teacher) + _weighed(
        reverse, divergences.kl, student, teacher
    )


def _weighed(weight: Array, divergence: Callable, student: Array, teacher: Array) -> Array:
    """`weight D(student, teacher)`; without a weight the pair is twice the teacher, and D is 0."""
    student = jnp.where((weight == 0)[..., None], teacher, student)
    return weight.astype(student.dtype) * divergence(student, teacher)


def _gap(student: Array, teacher: Array) -> Array:
    """`|p - q|` of each category, relatively accurate also where they are nearly equal."""
    log_p, log_q, t = numerics.log_ratio(student, teacher)
    zero = (log_p == -jnp.inf) | (log_q == -jnp.inf)
    close = numerics.probability_difference(log_p, log_q, t)
    return jnp.abs(jnp.where(zero, jnp.exp(log_p) - jnp.exp(log_q), close))


def _taken(x: Array, order: Array) -> Array:
    return jnp.take_along_axis(x, order, axis=-1)


def _entropy(logits: Array) -> Array:
    """`-sum p log p`."""
    log_p = numerics.log_softmax(logits)
    return jnp.sum(numerics.weigh_all(log_p, -log_p), axis=-1)


def _at_least_mean(x: Array, labels: Array, classes: int) -> Array:
    """Whether x is at least its mean over the same label.

    Below the largest of the label, so that equal numbers do not miss their mean by its rounding.
    """
    below = x - jax.ops.segment_max(x, labels, classes)[labels]
    total = jax.ops.segment_sum(below, labels, classes)[labels]
    count = jax.ops.segment_sum(jnp.ones_like(x), labels, classes)[labels]
    return below >= total / count


def _pass_rates(accuracy: PerRow) -> Array:
    """Pass rates from 0 to 1 as an array of float32 or float64."""
    return checks.as_float("accuracy", checks.share("accuracy", accuracy))
