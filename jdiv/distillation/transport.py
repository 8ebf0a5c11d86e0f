"""Optimal transport between the answers of a student and of a teacher to one batch.

The points that mass moves between are the rows of a batch, not the categories: the cost of a pair
is how far apart two rows of probabilities are. Distances between categories are an argument of
`jdiv.divergences.transport`, whose functions compare one row with one row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.divergences import categorical, transport
from jdiv.divergences.transport import SinkhornDivergence
from jdiv.types import Categories, Logits, Reduced, RowMask, Scalar


def _rows(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike,
    mask: ArrayLike | None,
    where: ArrayLike | None,
) -> tuple[Array, Array, Array]:
    """Both sides over the temperature, the teacher a constant, and which rows count, `[..., b]`."""
    student, teacher = checks.alike(student_logits=student_logits, teacher_logits=teacher_logits)
    if student.ndim < 2:
        raise ValueError(f"student_logits must be [..., rows, n], got {tuple(student.shape)}")
    temperature = jnp.asarray(checks.positive("temperature", temperature), student.dtype)
    kept = jnp.ones(student.shape[:-1], bool)
    if mask is not None:
        mask = checks.as_mask("mask", mask)
        checks.same_shape(student_rows=kept, mask=mask)
        kept = mask
    if where is not None:
        where = jnp.broadcast_to(checks.as_mask("where", where), student.shape)
        kept &= jnp.any(where, axis=-1)
    student, teacher = (jnp.where(kept[..., None], x, 0) for x in (student, teacher))
    student, teacher = checks.logits_pair(student, teacher, -1, where)
    return student / temperature, jax.lax.stop_gradient(teacher) / temperature, kept


def _costs(first: Array, second: Array) -> Array:
    """`|p_i - q_j|_1` of rows `[..., b, n]` and `[..., c, n]`, `[..., b, c]`: from 0 to 2."""
    *batch, b, n = first.shape
    shape = (*batch, b, second.shape[-2], n)
    first = jnp.broadcast_to(first[..., :, None, :], shape)
    second = jnp.broadcast_to(second[..., None, :, :], shape)
    return 2 * categorical.TABLE["total_variation"](first, second)


def sinkd(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Scalar = 2.0,
    epsilon: Scalar = 0.1,
    iterations: int = 20,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> Reduced:
    """SinKD, `sum_ij P_ij |p_i - q_j|_1` of rows of student and teacher, P from Sinkhorn's steps.

    P begins as `exp(-cost/epsilon)`; each iteration makes its rows sum to 1, then its columns. So
    it has the mass b of the batch, and the loss is a sum over the batch, from 0 to 2b. The released
    code adds .0008 of it to the other losses.
    Shapes: `[..., b, n]` logits twice to `[...]`; mask `[..., b]`, where it is False a row is left
    out of both sides. Memory is `[..., b, b, n]`.

    Two things to know. The loss does not see which teacher row belongs to which sample: it is the
    same after any permutation of them. And it is not 0 for student = teacher, since P spreads over
    all pairs: `debiased_sinkd` is.
    The gradient is that of this formula, through all iterations; that of an absolute value is 0
    where probabilities agree. The teacher is a constant. It is finite for all supports.

    >>> far = jnp.array([[0.0, -jnp.inf], [0.0, -jnp.inf]])
    >>> sinkd(far, far[:, ::-1])
    Array(4., dtype=float32)

    Reference: Cui et al. 2024, Sinkhorn Distance Minimization for Knowledge Distillation.
    """
    student, teacher, kept = _rows(student_logits, teacher_logits, temperature, mask, where)
    epsilon = jnp.asarray(checks.positive("epsilon", epsilon), student.dtype)
    iterations = checks.whole("iterations", iterations, 1, 2**31 - 1, "at least 1")
    costs = _costs(student, teacher)
    both = kept[..., :, None] & kept[..., None, :]
    # A row that is left out keeps to itself, at no cost: no row or column is without mass.
    alone = jnp.broadcast_to(jnp.eye(kept.shape[-1], dtype=bool), both.shape)
    log_kernel = jnp.where(both, -costs / epsilon, jnp.where(alone, 0, -jnp.inf))

    def step(log_plan: Array, _: None) -> tuple[Array, None]:
        for axis in (-1, -2):
            total = jax.nn.logsumexp(log_plan, axis=axis, keepdims=True)
            log_plan = log_plan - total
        return log_plan, None

    log_plan, _ = jax.lax.scan(step, log_kernel, length=iterations)
    return jnp.sum(jnp.where(both, jnp.exp(log_plan) * costs, 0), axis=(-2, -1))


def debiased_sinkd(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Scalar = 2.0,
    epsilon: Scalar = 0.1,
    threshold: float = 1e-5,
    max_iterations: int = 2000,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> SinkhornDivergence:
    """The Sinkhorn divergence of the rows of student and teacher, with SinKD's cost.

    `OT(s, t) - OT(s, s)/2 - OT(t, t)/2` of the two sets of b rows, each with the mass 1/b: by
    `jdiv.divergences.transport.sinkhorn`, solved until it converges. 0 where the sets of rows are
    equal, in any order, and so a mean over the batch that a student can bring to its end.
    Shapes: `[b, n]` logits twice; mask `[b]`. The evidence of the solver comes along.
    The gradient keeps the plans fixed, by the envelope theorem; the teacher is a constant.

    >>> rows = jnp.array([[0.0, 1.0], [3.0, 0.0]])
    >>> print(jax.jit(debiased_sinkd)(rows, rows).value)
    0.0

    Reference: Feydy et al. 2019, equation 3, with the cost of Cui et al. 2024.
    """
    if jnp.ndim(student_logits) != 2:
        raise ValueError(f"student_logits must be [rows, n], got {jnp.shape(student_logits)}")
    student, teacher, kept = _rows(student_logits, teacher_logits, temperature, mask, where)
    rows = jnp.concatenate([student, teacher])
    costs = _costs(rows, rows)
    out = jnp.full(kept.shape, -jnp.inf, rows.dtype)
    mass = jnp.where(kept, jnp.zeros_like(out), out)
    some = jnp.any(kept)  # where nothing counts, both sides are everywhere: the same
    of_student, of_teacher = (
        jnp.where(some, jnp.concatenate(sides), 0) for sides in ((mass, out), (out, mass))
    )
    return transport.sinkhorn(
        of_student, of_teacher, costs,
        epsilon=epsilon, threshold=threshold, max_iterations=max_iterations,
    )  # fmt: skip
