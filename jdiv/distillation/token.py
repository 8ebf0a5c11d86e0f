"""Losses between a teacher's law of the next token and a student's, position by position.

`student_logits` and `teacher_logits` are unnormalized, `[..., vocabulary]`, and `-inf` is an exact
zero. Out comes one number for each position, `[...]`, not averaged. D(p, q) has the student for p
and the teacher for q, so the row `kl` is KL(student‖teacher), what this field calls reverse KL, and
`reverse_kl` is KL(teacher‖student), forward KL.

`where` leaves categories out, such as the columns of a padded vocabulary; `mask` leaves positions
out, which give 0, and what stands there, NaN included, has no influence. A position of which no
category is left gives 0, too. With S and T for the two laws and x for the student's logits before
the division by its temperature s, the derivative of D by x is `S (f'(S/T) - mean of it) / s`; of
forward KL that is `(S - T) / s`.

Derivatives flow to both sides where a docstring does not say that the teacher is a constant: a
teacher that is made of the student's own parameters goes through `jax.lax.stop_gradient` first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiv import checks, numerics
from jdiv.divergences import categorical, sparse
from jdiv.divergences.generator import Generator, checked_row
from jdiv.types import Categories, Indices, Logits, PerRow, PerSequence, RowMask, Scalar


class Sides(NamedTuple):
    """Both sides of a loss as they are compared.

    Fields:
        student: `[..., n]` logits divided by the temperature, -inf where `where` leaves out.
        teacher: `[..., n]` the same of the teacher.
        counts: `[...]` True for positions that are not masked and have a category left. The others
            have logits 0 on both sides.
    """

    student: Array
    teacher: Array
    counts: Array

    def categories(self, labels: Indices) -> Array:
        """Labels: 0 where nothing counts, and n where they are no categories, which gives NaN."""
        labels = checks.as_integers("labels", labels)
        if labels.shape != self.counts.shape:
            shapes = f"labels {tuple(labels.shape)}, student_logits {tuple(self.student.shape)}"
            raise ValueError(f"labels must have one label for each position, got {shapes}")
        outside = self.student.shape[-1]
        return jnp.where(self.counts, jnp.where(labels < 0, outside, labels), 0)


def sides(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> Sides:
    """Both sides in one precision, divided by their temperatures, without what is left out.

    What every loss of this package starts with.
    Shapes: `[..., n]` twice; temperatures are numbers or `[...]`, `mask` is `[...]`, `where`
    broadcasts against `[..., n]`.

    >>> both = sides(jnp.array([[2.0, 4.0, 9.0]]), jnp.zeros((1, 3)), student_temperature=2.0,
    ...              where=jnp.array([[True, True, False]]))
    >>> print(both.student)
    [[  1.   2. -inf]]
    """
    student, teacher = checks.alike(student_logits=student_logits, teacher_logits=teacher_logits)
    if student.ndim == 0:
        raise ValueError("student_logits must be [..., n], got a scalar")
    counts = jnp.full(student.shape[:-1], True)
    if where is not None:
        where = checks.as_mask("where", where)
        try:
            where = jnp.broadcast_to(where, student.shape)
        except ValueError:
            shapes = f"{tuple(student.shape)}, got {tuple(where.shape)}"
            raise ValueError(f"where must broadcast to shape {shapes}") from None
        counts = jnp.any(where, axis=-1)
        student, teacher = (jnp.where(where, x, -jnp.inf) for x in (student, teacher))
    if mask is not None:
        mask = checks.as_mask("mask", mask)
        if mask.shape != counts.shape:
            shapes = f"mask {tuple(mask.shape)}, student_logits {tuple(student.shape)}"
            raise ValueError(f"mask must have one entry for each position, got {shapes}")
        counts &= mask
    student, teacher = (jnp.where(counts[..., None], x, 0) for x in (student, teacher))
    return Sides(
        _divided(student, "student_temperature", student_temperature),
        _divided(teacher, "teacher_temperature", teacher_temperature),
        counts,
    )


def _divided(logits: Array, name: str, temperature: PerRow) -> Array:
    """`logits / temperature`; a zero stays one, and is no factor of a derivative."""
    zero = logits == -jnp.inf
    temperature = checks.positive(name, temperature, rows=logits)
    return jnp.where(zero, -jnp.inf, jnp.where(zero, 0, logits) / temperature)


def divergence(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    generator: Generator,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`D(student, teacher)` of any row: `kl` is reverse KL here, `reverse_kl` forward KL.

    Infinite where the row's divergence is; 0 with the derivative 0 for equal sides.
    Shapes: `[..., n]` twice to `[...]`; parameters of the row are numbers or `[...]`.

    >>> from jdiv import generators
    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{divergence(student, teacher, generator=generators.reverse_kl()):.4f}")
    0.3681

    Reference: Hinton, Vinyals and Dean 2015 (arXiv:1503.02531) for forward KL; f-distill (Wen et
    al. 2023, arXiv:2307.15190) for other rows.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    return categorical.f_divergence(checked_row(generator), both.student, both.teacher)


# --------------------------------------------------------------------- between the two directions


def gkd(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: PerRow = 0.5,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`b KL(T‖M) + (1 - b) KL(S‖M)` with `M = b T + (1 - b) S`; KL(T‖S) at 0, KL(S‖T) at 1.

    As GKD and TRL have it: between the ends it is a Jensen-Shannon divergence, which goes to 0
    there like b KL(T‖S) and (1 - b) KL(S‖T); the ends themselves are the two KLs by definition.
    So it jumps there, and a small b is a small weight; `gkd_continuous` does not.
    Gradient by a student's logit inside: `S w - S sum(S w)` of `w = (1 - b) log S/M`.
    Shapes: `[..., n]` twice to `[...]`; beta is a number or `[...]`, from 0 to 1.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(gkd(student, teacher, beta=0.0).round(4), gkd(student, teacher, beta=0.01).round(4))
    0.3681 0.0036

    Reference: GKD (Agarwal et al. 2023, arXiv:2306.13649), equation 1; TRL's `GKDTrainer` for the
    ends.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    beta = jnp.asarray(checks.share("beta", beta), both.student.dtype)
    inside = (beta > 0) & (beta < 1)
    weight = jnp.where(inside, beta, 0.5)
    between = lambda s, t: categorical.jensen_shannon(t, s, weight=weight)
    losses = (beta == 0, categorical.reverse_kl), (inside, between), (beta == 1, categorical.kl)
    return checks.spread_nan(_chosen(both, *losses), beta)


def gkd_continuous(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: PerRow = 0.5,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`(1 - b) KL(T‖M) + b KL(S‖M)` with `M = b T + (1 - b) S`: from KL(T‖S) to KL(S‖T).

    The weights of `gkd` the other way around, so that the ends are limits: nothing jumps. Finite
    inside whatever the supports, 0 for equal sides alone, equal to `gkd` at 1/2.
    Gradient by a student's logit: `S w - S sum(S w)`, `w = b log S/M - (1 - b)((1 - b) T + b S)/M`.
    Shapes: `[..., n]` twice to `[...]`; beta is a number or `[...]`, from 0 to 1.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> [f"{gkd_continuous(student, teacher, beta=beta):.4f}" for beta in (0.0, 0.01)]
    ['0.3681', '0.3581']

    Reference: the definition that ms-swift's issue 10078 proposes.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    beta = jnp.asarray(checks.share("beta", beta), both.student.dtype)
    at_zero = 1 - beta == 1  # so near to it that the rest is rounded away
    inside = (beta < 1) & ~at_zero & ~jnp.isnan(beta)
    weight = jnp.where(inside, beta, 0.5)

    def between(s, t):
        of_teacher = categorical.skew_kl(t, s, skew=1 - weight)
        return (1 - weight) * of_teacher + weight * categorical.skew_kl(s, t, skew=weight)

    losses = (at_zero, categorical.reverse_kl), (inside, between), (beta == 1, categorical.kl)
    return checks.spread_nan(_chosen(both, *losses), beta)


def _chosen(both: Sides, *losses: tuple[Array, Callable]) -> Array:
    """Of several losses the one that is chosen, for each position; they are 0 for equal sides.

    What is not chosen gets the student for its teacher: it adds 0, and no derivative that is not
    finite. What is known to be chosen nowhere is not computed.
    """
    total = jnp.zeros(both.counts.shape, both.student.dtype)
    for chosen, loss in losses:
        if isinstance(chosen, jax.core.Tracer) or np.any(chosen):
            rows = checks.per_row("beta", chosen, both.student)
            total += loss(both.student, jnp.where(rows != 0, both.teacher, both.student))
    return total


def skew_forward_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    skew: PerRow = 0.9,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`KL(T‖(1 - s) T + s S)`, 0 < s < 1: forward KL to a student that is helped by the teacher.

    At most -log(1 - s), also where the student has a zero. s is the student's weight: DistiLLM's
    alpha of .1 is the teacher's, `skew=0.9` here.
    Gradient by a student's logit: `S w - S sum(S w)` of
    `w = -s T/M`, which is never below -s/(1 - s).
    Shapes: `[..., n]` twice to `[...]`; the skew is a number or `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{skew_forward_kl(student, teacher):.4f}")
    0.3071

    Reference: DistiLLM (Ko et al. 2024, arXiv:2402.03898), equation 4.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    return categorical.skew_kl(both.teacher, both.student, skew=skew)


def skew_reverse_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    skew: PerRow = 0.9,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`KL(S‖(1 - s) S + s T)`, 0 < s < 1: reverse KL to a teacher that is helped by the student.

    The row `skew_kl`. At most -log(1 - s), also where the teacher has a zero. s is the teacher's
    weight: DistiLLM's alpha of .1 is the student's, `skew=0.9` here.
    Gradient by a student's logit: `S w - S sum(S w)` of `w = log S/M - (1 - s) S/M`.
    Shapes: `[..., n]` twice to `[...]`; the skew is a number or `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{skew_reverse_kl(student, teacher):.4f}")
    0.3653

    Reference: DistiLLM (Ko et al. 2024, arXiv:2402.03898), equation 5.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    return categorical.skew_kl(both.student, both.teacher, skew=skew)


# ------------------------------------------------------------------ the label's category and others


def decoupled(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Indices,
    *,
    alpha: PerRow = 1.0,
    beta: PerRow = 8.0,
    temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """Decoupled KD, `t^2 (a KL(b_T‖b_S) + b KL(T^‖S^))`, of forward KL's two parts.

    b is the pair of the label's probability and the rest's, T^ and S^ are conditioned on the other
    categories. With a = 1 and `beta = 1 - T_label` it is `t^2` times forward KL (its chain rule);
    a constant b teaches what the others share also where the teacher is sure. For two categories
    the second part is 0. It is 0 too where the teacher has nothing but the label.
    Gradient by a student's logit: `t (a (S_y - T_y) (1 or -S^_i) + b (S^_i - T^_i))`, the 1 and no
    second part for the label y. The teacher is a constant.
    Shapes: `[..., n]` twice and labels `[...]` to `[...]`; numbers or `[...]` for the rest.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{decoupled(student, teacher, jnp.array(0)):.4f}")  # KL(T‖S)
    0.3681

    Reference: Zhao et al. 2022 (arXiv:2203.08679), equation 7; the square of the temperature and
    the defaults of the weights are those of the released code.
    """
    both = sides(
        student_logits,
        jax.lax.stop_gradient(teacher_logits),
        student_temperature=temperature,
        teacher_temperature=temperature,
        mask=mask,
        where=where,
    )
    labels = both.categories(labels)
    alpha, beta = (
        jnp.asarray(checks.not_negative(name, x), both.student.dtype)
        for name, x in (("alpha", alpha), ("beta", beta))
    )
    binary = categorical.reverse_kl(
        *(sparse.coarsened(x, labels[..., None]) for x in (both.student, both.teacher))
    )
    others = categorical.reverse_kl(*_of_others(both.student, both.teacher, labels))
    return jnp.square(jnp.asarray(temperature, binary.dtype)) * (alpha * binary + beta * others)


def nkd(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Indices,
    *,
    gamma: PerRow = 1.5,
    temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """Normalized KD, `-T_y log S_y - g t^2 sum_{i != y} T^_i log S^_i` for the label y.

    T^ and S^ are conditioned on the other categories, at the temperature t; T_y and S_y are at 1.
    Forward KL has `(1 - T_y)` for g and `T_y` is what it is there: KL(T‖S) = KL(b_T‖b_S) +
    (1 - T_y) KL(T^‖S^). Not 0 for equal sides, but least there up to the first term.
    Gradient by a student's logit: `T_y (S - e_y)`, and `g t (S^ - T^)` for the others. The teacher
    is a constant.
    Shapes: `[..., n]` twice and labels `[...]` to `[...]`; numbers or `[...]` for the rest.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{nkd(student, teacher, jnp.array(0)):.4f}")  # .9 log 2: one other, nothing to share
    0.6238

    Reference: Yang et al. 2023 (arXiv:2303.13005).
    """
    both = sides(student_logits, jax.lax.stop_gradient(teacher_logits), mask=mask, where=where)
    labels = both.categories(labels)
    gamma = jnp.asarray(checks.not_negative("gamma", gamma), both.student.dtype)
    log_t, log_s = (_at(x, labels) for x in (both.teacher, both.student))
    of_label = numerics.weigh_all(log_t, -log_s)
    student, teacher = (
        _divided(x, "temperature", temperature) for x in (both.student, both.teacher)
    )
    others = _cross_entropy(*_of_others(student, teacher, labels))
    square = jnp.square(jnp.asarray(temperature, others.dtype))
    return jnp.where(both.counts, of_label + gamma * square * others, 0)


def uskd(
    student_logits: Logits,
    weak_logits: Logits,
    labels: Indices,
    *,
    share: PerRow = 1.0,
    alpha: PerRow = 1.0,
    beta: PerRow = 0.1,
    weak_weight: PerRow = 0.005,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """Universal self-KD: `-a P log S_y - b sum_{i != y} Z_i log S^_i - w sum_i Y_i log W_i`.

    No teacher: W is a weak head of the same network, on an earlier layer. The label's soft target
    is `P = S_y^2 + share - mean S_y^2`, with the mean over all positions that count, so that a loss
    is of a whole batch by its nature. The others' targets are Zipf's, Z proportional to 1/rank, by
    the rank of `W^ + S^`, both conditioned on the others. Y is the label smoothed by .1. All
    targets are constants, and no derivative flows from one head's logits to the other's.
    Infinite where the student has a zero that `where` does not leave out.
    The released code adds log S^ to W^ in the rank, by a name that was used twice; here it is what
    the paper says, a sum of two probabilities.
    Gradient by a student's logit: `a P (S - e_y)`, and `b (S^ - Z)` for the others; by a weak one
    `w (W - Y)`.
    Shapes: `[..., n]` twice and labels `[...]` to `[...]`; the share is the label's value, 1 where
    labels are not mixed.

    >>> logits = jnp.log(jnp.array([[0.5, 0.5]]))
    >>> print(uskd(logits, logits, jnp.array([0]), weak_weight=0.0).round(4))  # log 2
    [0.6931]

    Reference: Yang et al. 2023 (arXiv:2303.13005).
    """
    both = sides(student_logits, weak_logits, mask=mask, where=where)
    labels = both.categories(labels)
    dtype = both.student.dtype
    share = jnp.asarray(checks.share("share", share), dtype)
    alpha, beta, weak_weight = (
        jnp.asarray(checks.not_negative(name, x), dtype)
        for name, x in (("alpha", alpha), ("beta", beta), ("weak_weight", weak_weight))
    )
    log_s = _at(both.student, labels)
    squares = jnp.where(both.counts, jnp.exp(2 * jax.lax.stop_gradient(log_s)), 0)
    mean = jnp.sum(squares) / jnp.maximum(jnp.sum(both.counts, dtype=dtype), 1)
    soft = jnp.where(share > 0, squares + share - mean, 0)
    exists = (both.student != -jnp.inf) | (both.teacher != -jnp.inf)
    zipf = _zipf(both.student, both.teacher, labels, exists)
    of_others = _cross_entropy(*_of_others(both.student, zipf, labels))
    loss = alpha * numerics.weigh_all(jnp.log(soft), -log_s) + beta * of_others
    loss += weak_weight * _smoothed_cross_entropy(both.teacher, labels, exists)
    return jnp.where(both.counts, loss, 0)


def _is_label(logits: Array, labels: Array) -> Array:
    """`[..., n]` True at the label."""
    return (
        jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    )


def _at(logits: Array, labels: Array) -> Array:
    """Log-probabilities of the labels."""
    log_p = numerics.log_softmax(logits)
    return jnp.take_along_axis(log_p, labels[..., None], axis=-1, mode="fill")[..., 0]


def _of_others(student: Array, teacher: Array, labels: Array) -> tuple[Array, Array]:
    """Logits of both sides, given that it is not the label.

    A side that is nothing but the label stays there: a student like that is infinitely far from a
    teacher that has others, and a teacher like that has nothing to tell, to whatever student.
    """
    label = _is_label(student, labels)
    student_others, teacher_others = (jnp.where(label, -jnp.inf, x) for x in (student, teacher))
    none = lambda x: jnp.max(x, axis=-1, keepdims=True) == -jnp.inf
    alone = jnp.where(label, jnp.zeros_like(student), -jnp.inf)
    silent = none(teacher_others)
    return (
        jnp.where(silent | none(student_others), alone, student_others),
        jnp.where(silent, alone, teacher_others),
    )


def _cross_entropy(student: Array, teacher: Array) -> Array:
    """`-sum T log S = KL(T‖S) - sum T log T`, of which the first term alone has a gradient."""
    log_t = numerics.log_softmax(jax.lax.stop_gradient(teacher))
    entropy = jnp.sum(numerics.weigh_all(log_t, -log_t), axis=-1)
    return categorical.reverse_kl(student, jax.lax.stop_gradient(teacher)) + entropy


def _zipf(student: Array, weak: Array, labels: Array, exists: Array) -> Array:
    """`-log rank` of the others by `W^ + S^`, constants; -inf for the label and what is no more."""
    given = jax.lax.stop_gradient(_of_others(student, weak, labels))
    score = jnp.logaddexp(*(numerics.log_softmax(x) for x in given))  # nothing underflows to a tie
    ranked = exists & ~_is_label(student, labels)
    order = jnp.argsort(jnp.where(ranked, -score, jnp.inf), axis=-1)
    rank = jnp.argsort(order, axis=-1).astype(student.dtype)
    return jnp.where(ranked, -jnp.log1p(rank), -jnp.inf)


SMOOTHING = 0.1
"""What the weak head's target has of the uniform distribution."""


def _smoothed_cross_entropy(weak: Array, labels: Array, exists: Array) -> Array:
    """`-sum Y log W` of labels smoothed over the categories that there are."""
    count = jnp.sum(exists, axis=-1, keepdims=True, dtype=weak.dtype)
    target = jnp.where(_is_label(weak, labels), 1 - SMOOTHING, jnp.zeros_like(weak))
    target = jnp.where(exists, target + SMOOTHING / count, 0)
    return jnp.sum(numerics.weigh_all(jnp.log(target), -numerics.log_softmax(weak)), axis=-1)


# ------------------------------------------------------------------------------- parts of a teacher


def clipped(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    low: PerRow = 0.0,
    high: PerRow = 1.0,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """Clipped KL, `KL(T'‖S)` with T' the teacher given that `low <= T_i <= high`.

    The student is not conditioned, so that mass outside costs. Forward KL without bounds; 0 where
    no category is between them.
    Gradient by a student's logit: `(S - T') / student_temperature`.
    Shapes: `[..., n]` twice to `[...]`; bounds from 0 to 1 are numbers or `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{clipped(student, teacher, low=0.2):.4f}")  # the first alone: log 2
    0.6931

    Reference: DAC-KL (Liu et al. 2024, arXiv:2407.10068) for the idea.
    Reconstructed: the formula. There a network on the student's states proposes the bounds; here
    they are given.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    low, high = (
        checks.per_row(name, checks.share(name, x), both.student)
        for name, x in (("low", low), ("high", high))
    )
    p = jnp.exp(numerics.log_softmax(both.teacher))
    return checks.spread_nan(
        _given_kept(both, (low <= p) & (p <= high)),
        *(x[..., 0] if x.ndim else x for x in (low, high)),
    )


def latent_sft(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    k: int | None = None,
    temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`t^2 KL(T‖S)` at the temperature t on both sides: the square keeps the gradient's size.

    With k the teacher is conditioned on its k most probable categories; the student keeps its whole
    vocabulary.
    Gradient by a student's logit: `t (S - T)`.
    Shapes: `[..., n]` twice to `[...]`; the temperature is a number or `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{latent_sft(student, teacher, k=1):.4f}")  # log 2
    0.6931

    Reference: Latent-SFT, released code (`modeling_stage2.py`); the square is Hinton's
    (arXiv:1503.02531).
    Reconstructed: with k the teacher's k probabilities sum to 1.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=temperature,
        teacher_temperature=temperature,
        mask=mask,
        where=where,
    )
    square = jnp.square(jnp.asarray(temperature, both.student.dtype))
    if k is None:
        return square * categorical.reverse_kl(both.student, both.teacher)
    size = both.teacher.shape[-1]
    k = checks.whole("k", k, 1, size, f"from 1 to {size}, the categories")
    indices = jax.lax.top_k(both.teacher, k)[1]
    kept = jnp.put_along_axis(
        jnp.zeros_like(both.teacher, bool), indices, True, axis=-1, inplace=False
    )
    return square * _given_kept(both, kept | ~both.counts[..., None])


def _given_kept(both: Sides, kept: Array) -> Array:
    """KL of the teacher, given that it is one of these, to the student; 0 if these are none."""
    teacher = jnp.where(kept, both.teacher, -jnp.inf)
    empty = jnp.max(teacher, axis=-1, keepdims=True) == -jnp.inf
    return categorical.reverse_kl(both.student, jnp.where(empty, both.student, teacher))


def temperature_schedule(
    step: Scalar, steps: Scalar, *, high: Scalar = 4.0, low: Scalar = 1.0
) -> Array:
    """The temperature of a step: from `high` on a line to `low`, reached at `steps` and kept.

    A soft teacher first, the teacher itself in the end. Shapes: `[]` to `[]`.

    >>> print(*(temperature_schedule(step, 10) for step in (0, 5, 20)))
    4.0 2.5 1.0

    Reference: Annealing KD (Jafari et al. 2021, arXiv:2104.07163), algorithm 1.
    Reconstructed: the end is a parameter, and steps need not be epochs.
    """
    high, low = checks.positive("high", high), checks.positive("low", low)
    part = jnp.asarray(step, float) / jnp.asarray(checks.positive("steps", steps), float)
    return high + (low - high) * jnp.clip(part, 0, 1)
