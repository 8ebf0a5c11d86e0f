"""Losses to a teacher of whom the k most probable tokens are known, or who has another vocabulary.

A teacher's server sends k log-probabilities. `divergences.sparse` has the three ways to compare
them with a whole distribution; here they are losses of a student, with its temperature and masks.
With a tail it is a lower bound of the whole divergence, of any row. The other two do not see all of
the student: it may leave the k tokens for nothing (`renormalized`), or it is paid for having more
on them than the teacher, in forward KL, or less, in reverse KL (`truncated`).

`TopK` is a teacher; `top_k` and `from_log_probs` of `divergences.sparse` make it. A temperature of
the teacher has to be there already, for the k probabilities do not tell what it does to the others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.distillation.token import Sides, sides
from jdiv.divergences import generators, sparse
from jdiv.divergences.generator import Generator
from jdiv.divergences.sparse import TopK
from jdiv.types import Categories, Logits, PerRow, PerSequence, RowMask


def with_tail(
    student_logits: Logits,
    teacher: TopK,
    *,
    generator: Generator,
    student_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`D(student, teacher)` of the k tokens and all others as one: at most the whole divergence.

    0 only if the student has the teacher's k probabilities, and never negative. What the others
    share among themselves is not taught.
    Gradient by a student's logit: S times the slope of its bucket, less the mean slope.
    Shapes: `[..., n]` and a `TopK` of `[..., k]` to `[...]`.

    >>> from jdiv import generators
    >>> teacher = sparse.top_k(jnp.log(jnp.array([0.6, 0.3, 0.1])), 1)
    >>> student = jnp.log(jnp.array([0.3, 0.3, 0.4]))
    >>> print(f"{with_tail(student, teacher, generator=generators.reverse_kl()):.4f}")
    0.1920

    Reference: `divergences.sparse.with_tail`.
    """
    both, teacher = _known(student_logits, teacher, student_temperature, mask, where)
    return jnp.where(both.counts, sparse.with_tail(generator, both.student, teacher), 0)


def renormalized(
    student_logits: Logits,
    teacher: TopK,
    *,
    generator: Generator,
    student_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """`D(student, teacher)`, both given that it is one of the k tokens.

    Never negative, but blind to the student's mass on others, of which no logit has a gradient.
    Gradient by a student's logit: `S^ (slope - mean slope)` of the conditional S^.
    Shapes: `[..., n]` and a `TopK` of `[..., k]` to `[...]`.

    >>> from jdiv import generators
    >>> teacher = sparse.top_k(jnp.log(jnp.array([0.6, 0.3, 0.1])), 2)
    >>> student = jnp.log(jnp.array([0.02, 0.01, 0.97]))
    >>> print(f"{renormalized(student, teacher, generator=generators.reverse_kl()):.4f}")
    0.0000

    Reference: `divergences.sparse.renormalized`.
    """
    both, teacher = _known(student_logits, teacher, student_temperature, mask, where)
    return jnp.where(both.counts, sparse.renormalized(generator, both.student, teacher), 0)


def truncated(
    student_logits: Logits,
    teacher: TopK,
    *,
    generator: Generator,
    student_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """The k terms of `D(student, teacher)` alone: `sum T log T/S` of forward KL.

    No divergence: negative where the student has more than the teacher's mass M on them. The least
    forward KL is `M log M`, of a student with all of its mass there; the least reverse KL is -M/e,
    of one that has left with all but M/e of it. Both have the teacher's proportions.
    Gradient by a student's logit: S times `slope - mean`, with 0 for the slope of the others.
    Shapes: `[..., n]` and a `TopK` of `[..., k]` to `[...]`.

    >>> from jdiv import generators
    >>> teacher = sparse.top_k(jnp.log(jnp.array([0.6, 0.3, 0.1])), 2)
    >>> student = jnp.log(jnp.array([0.7, 0.3, 0.0]))
    >>> print(f"{truncated(student, teacher, generator=generators.reverse_kl()):.4f}")
    -0.0925

    Reference: `divergences.sparse.truncated`.
    """
    both, teacher = _known(student_logits, teacher, student_temperature, mask, where)
    return jnp.where(both.counts, sparse.truncated(generator, both.student, teacher), 0)


def _known(
    student_logits: Logits,
    teacher: TopK,
    student_temperature: PerRow,
    mask: RowMask | None,
    where: Categories | None,
) -> tuple[Sides, TopK]:
    """The student as it is compared, and a teacher that does no harm where nothing counts."""
    if not isinstance(teacher, TopK):
        raise TypeError(f"teacher must be a TopK, got {checks.short(type(teacher).__name__)}")
    both = sides(
        student_logits,
        student_logits,
        student_temperature=student_temperature,
        mask=mask,
        where=where,
    )
    counts = both.counts[..., None]
    log_probs, log_rest = (
        checks.as_float(name, x).astype(both.student.dtype)
        for name, x in (("teacher.log_probs", teacher.log_probs), ("log_rest", teacher.log_rest))
    )
    indices = checks.as_integers("teacher.indices", teacher.indices)
    first = jax.lax.broadcasted_iota(indices.dtype, indices.shape, indices.ndim - 1)
    return both, TopK(
        jnp.where(
            counts, log_probs, -jnp.log(jnp.asarray(indices.shape[-1] + 1.0, log_probs.dtype))
        ),
        jnp.where(counts, indices, first),
        jnp.where(both.counts, log_rest, 0),
    )


def kl_top(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    k: int,
    tail: bool = False,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """KL-Top, forward KL of the teacher's k most probable tokens: renormalized, or with the tail.

    For a quantized student with few samples to fit it on: what a full teacher's tail has of noise
    is left out. The others' logits have no gradient without the tail, which makes them one.
    Gradient by a student's logit: `(S^ - T^) / student_temperature` of the conditionals.
    Shapes: `[..., n]` twice to `[...]`.

    >>> student, teacher = jnp.log(jnp.array([[0.5, 0.4, 0.1], [0.7, 0.2, 0.1]]))
    >>> print(*(f"{kl_top(student, teacher, k=2, tail=tail):.4f}" for tail in (False, True)))
    0.1077 0.0969

    Reference: OSTQuant (Hu et al. 2025, arXiv:2501.13987).
    Reconstructed: that both sides are softmaxes of the k logits; the tail is an addition of ours.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    compare = sparse.with_tail if tail else sparse.renormalized
    return compare(generators.reverse_kl(), both.student, sparse.top_k(both.teacher, k))


def uld(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
) -> PerSequence:
    """Universal logit distillation, `sum_i |S_(i) - T_(i)|` of probabilities sorted by size.

    For a teacher of another tokenizer: which token has a probability does not matter, so that a
    permutation of either side changes nothing, and 0 does not mean that they agree. The smaller
    vocabulary is filled up with zeros, and zeros change nothing, so padded columns are -inf. From 0
    to 2; the Wasserstein-1 distance of the sorted values as points, times their number.
    Gradient by a student's logit: `S (sign - sum S sign) / student_temperature`, with the sign of
    `S_(i) - T_(i)`.
    Shapes: `[..., n]` and `[..., m]` to `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.4, 0.6]))
    >>> print(f"{uld(student, teacher):.2f}")  # .1 + .1 + .2
    0.40

    Reference: ULD (Boizard et al. 2024, arXiv:2402.12030), equation 4.
    """
    sizes, scaled = [], []
    for name, logits, temperature in (
        ("student_logits", student_logits, student_temperature),
        ("teacher_logits", teacher_logits, teacher_temperature),
    ):
        logits = checks.as_float(name, logits)
        both = sides(logits, logits, student_temperature=temperature, mask=mask)
        scaled.append(_sorted(both.student))
        sizes.append(logits.shape[-1])
    student, teacher = (_padded(x, max(sizes)) for x in scaled)
    student, teacher = checks.alike(student_logits=student, teacher_logits=teacher)
    return jnp.where(both.counts, jnp.sum(jnp.abs(student - teacher), axis=-1), 0)


def _sorted(logits: Array) -> Array:
    """Probabilities, the largest first; sorted before they are summed, so that order is nothing."""
    return jnp.exp(numerics.log_softmax(-jnp.sort(-logits, axis=-1)))


def _padded(x: Array, size: int) -> Array:
    """Zeros behind, up to a size."""
    zeros = jnp.zeros((*x.shape[:-1], size - x.shape[-1]), x.dtype)
    return jnp.concatenate([x, zeros], axis=-1)
