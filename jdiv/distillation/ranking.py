"""Losses of a ranking: the student's logits as choices one after another, Plackett and Luce's law.

The law of a ranking is to draw a category by softmax, then one of those left, and so on:
`PL(ranking) = prod_k softmax(x[ranking_k ...])_k`. A loss is `-sum_k w_k log` of these factors:

=================  ===============================================================================
`plackett_luce`    any ranking and any weights; `w = (1, 0, ...)` is cross-entropy
`pld`              the label, then the teacher's order; the weights are its probabilities
`list_mle`         the same ranking, all weights 1/n
`p_list_mle`       the same ranking, weights that halve from place to place
=================  ===============================================================================

All are convex in the logits and do not change when a number is added to all of them. The gradient
by the logit in place r is `sum_{k <= r} w_k softmax(x[ranking_k ...])_r - w_r`, which sums to 0.
A zero of the student in a place of weight makes the loss infinite if a category behind it has mass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.distillation.token import Sides, sides
from jdiv.types import Categories, Indices, Logits, PerRow, PerSequence, RowMask, Values


def plackett_luce(
    student_logits: Logits,
    ranking: Indices,
    weights: Values,
    *,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`sum_k w_k (log sum_{l >= k} exp x_l - x_k)`, with the logits x in the ranking's order.

    Each term is softplus of what is left less the logit, relatively accurate where one logit leads.
    Shapes: logits, ranking and weights `[..., n]`, weights by place, to `[...]`.

    >>> student, ranking = jnp.log(jnp.array([0.2, 0.5, 0.3])), jnp.array([1, 0, 2])
    >>> print(f"{plackett_luce(student, ranking, jnp.array([1.0, 1.0, 1.0])):.4f}")  # -log(.5 * .4)
    1.6094

    Reference: Plackett 1975; Luce 1959.
    """
    both = sides(student_logits, student_logits, mask=mask, where=where)
    ranking = checks.categories("ranking", ranking, both.student.shape[-1])
    weights = checks.not_negative("weights", weights)
    weights = jnp.broadcast_to(jnp.asarray(weights, both.student.dtype), both.student.shape)
    if ranking.shape != both.student.shape:
        shapes = f"ranking {tuple(ranking.shape)}, student_logits {tuple(both.student.shape)}"
        raise ValueError(f"ranking must have all categories, got {shapes}")
    if where is not None:
        left = jnp.broadcast_to(checks.as_mask("where", where), both.student.shape)
        weights = jnp.where(jnp.take_along_axis(left, ranking, axis=-1), weights, 0)
    return _ranked_loss(both, ranking, jnp.log(weights))


def pld(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Indices,
    *,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """Plackett-Luce distillation: the label, then the teacher's order, by its probabilities.

    `sum_k T_{r_k} (log sum_{l >= k} exp x_l - x_k)`. A teacher that is sure of the label makes it
    cross-entropy. The temperature changes the weights and not the order. The teacher is a constant.
    Shapes: `[..., n]` twice and labels `[...]` to `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.2, 0.5, 0.3])), jnp.log(jnp.array([0.6, 0.3, 0.1]))
    >>> print(f"{pld(student, teacher, jnp.array(0)):.4f}")  # -.6 log .2 - .3 log .5/.8
    1.1067

    Reference: PLD (Bassam, Zhu and Bian 2025, arXiv:2506.12542).
    """
    both, ranking = _ranking(student_logits, teacher_logits, labels, mask, where)
    temperature = checks.positive("teacher_temperature", teacher_temperature, rows=both.teacher)
    zero = both.teacher == -jnp.inf
    log_t = numerics.log_softmax(
        jnp.where(zero, -jnp.inf, jnp.where(zero, 0, both.teacher) / temperature)
    )
    return _ranked_loss(both, ranking, jnp.take_along_axis(log_t, ranking, axis=-1))


def list_mle(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Indices,
    *,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`-log PL / n` of the label, then the teacher's order: every place counts the same.

    n is the number of categories that `where` leaves. The teacher is a constant.
    Shapes: `[..., n]` twice and labels `[...]` to `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.2, 0.5, 0.3])), jnp.log(jnp.array([0.6, 0.3, 0.1]))
    >>> print(f"{list_mle(student, teacher, jnp.array(0)):.4f}")  # -log(.2 * .5/.8) / 3
    0.6931

    Reference: Xia et al. 2008.
    """
    both, ranking = _ranking(student_logits, teacher_logits, labels, mask, where)
    place, count = _places(both, where)
    log_weights = jnp.where(place <= count, -jnp.log(count), -jnp.inf)
    return _ranked_loss(both, ranking, log_weights)


def p_list_mle(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Indices,
    *,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`-sum_k (2^-k - 2^-n) log` of the factors of the label, then the teacher's order: top first.

    The published weights, `2^(n - k) - 1` of places k = 1 to n, are these times `2^n`, which for a
    vocabulary is no number. n as in `list_mle`. The teacher is a constant.
    Shapes: `[..., n]` twice and labels `[...]` to `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.2, 0.5, 0.3])), jnp.log(jnp.array([0.6, 0.3, 0.1]))
    >>> loss = p_list_mle(student, teacher, jnp.array(0))
    >>> print(f"{8 * loss:.4f}")  # -3 log .2 - 1 log .5/.8
    5.2983

    Reference: Lan et al. 2014.
    """
    both, ranking = _ranking(student_logits, teacher_logits, labels, mask, where)
    place, count = _places(both, where)
    left = jnp.where(place < count, count - place, 1)
    halves = jnp.log1p(-jnp.exp2(-left)) - place * jnp.log(jnp.asarray(2, count.dtype))
    return _ranked_loss(both, ranking, jnp.where(place < count, halves, -jnp.inf))


def _ranking(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Indices,
    mask: RowMask | None,
    where: Categories | None,
) -> tuple[Sides, Array]:
    """Both sides, and the label followed by the other categories, by the teacher's logit."""
    both = sides(student_logits, jax.lax.stop_gradient(teacher_logits), mask=mask, where=where)
    labels = both.categories(labels)[..., None]
    category = jax.lax.broadcasted_iota(labels.dtype, both.teacher.shape, both.teacher.ndim - 1)
    key = jnp.where(category == labels, -jnp.inf, -both.teacher)
    none = labels >= both.teacher.shape[-1]  # no label, no ranking: out of range, which gives NaN
    return both, jnp.where(none, labels, jnp.argsort(key, axis=-1).astype(labels.dtype))


def _places(both: Sides, where: Categories | None) -> tuple[Array, Array]:
    """The place of each of a ranking, from 1, and how many categories there are."""
    dtype, shape = both.student.dtype, both.student.shape
    place = 1 + jax.lax.broadcasted_iota(dtype, shape, len(shape) - 1)
    if where is None:
        return place, jnp.full((*shape[:-1], 1), shape[-1], dtype)
    left = jnp.broadcast_to(checks.as_mask("where", where), shape)
    return place, jnp.sum(left, axis=-1, keepdims=True, dtype=dtype)


def _ranked_loss(both: Sides, ranking: Array, log_weights: Array) -> Array:
    """`sum_k w_k softplus(log of what is left - x_k)`; 0 where nothing counts."""
    x = jnp.take_along_axis(both.student, ranking, axis=-1, mode="fill")
    zero = x == -jnp.inf
    # So low that it adds nothing, and finite, so that differences of two are numbers.
    lowest = jnp.finfo(x.dtype).min / 4
    x = jnp.where(zero, lowest, x)
    last = jnp.full_like(x[..., :1], lowest)
    left = jax.lax.cumlogsumexp(jnp.concatenate([x[..., 1:], last], -1), x.ndim - 1, reverse=True)
    nothing = left < lowest / 2
    cost = jnp.where(zero, jnp.where(nothing, 0, jnp.inf), jax.nn.softplus(left - x))
    return jnp.where(both.counts, jnp.sum(numerics.weigh_all(log_weights, cost), axis=-1), 0)
