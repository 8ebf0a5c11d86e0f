"""What samples of a teacher teach, input by input: four learners in closed form.

From n samples of inputs s and labels a of the teacher, `counts[s, a]` of them, and from what the
teacher shows of its probabilities: nothing (`ce_single`), that of the sampled label (`ce_partial`,
`sel_partial`), or all at each sampled input (`ce_full`). Each is the policy that minimizes a loss
over all policies, those of inputs that were not sampled being uniform. Policies are returned as
log-probabilities, `-inf` for an exact zero, so that `dv.total_variation(learned, teacher)` of each
input is the error. Shapes: counts and teacher `[..., inputs, n]` to the same.

The worst error of each over all teachers, for A labels and S inputs, is of order `sqrt(S A / n)`
for `ce_single`, `S A / n` for `sel_partial` and `S / n` for `ce_full`; `ce_partial` does not
converge to the teacher.

Reference: Zhao and Zhu 2023 (arXiv:2310.07838), sections 3 to 6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, estimators, numerics
from jdiv.types import Counts, Logits, LogProbs


def ce_single(counts: Counts) -> Array:
    """Cross-entropy with the sampled labels: `log counts(s, a) / counts(s)`.

    Unbiased, and the slowest. Shapes: `[..., n]` to the same.

    >>> print(jnp.exp(ce_single(jnp.array([[3.0, 1.0], [0.0, 0.0]]))))
    [[0.75 0.25]
     [0.5  0.5 ]]

    Reference: Zhao and Zhu 2023 (arXiv:2310.07838).
    """
    counts = _as_counts(counts)
    return _normalized(jnp.log(counts), counts)


def ce_partial(counts: Counts, teacher_logits: Logits) -> Array:
    """Cross-entropy weighted by the label's probability: the policy in proportion to `counts pi*`.

    Biased: with ever more samples it goes to `pi*^2` over its sum, not to the teacher. It minimizes
    `ce_partial_loss`. Shapes: `[..., n]` twice to the same.

    >>> learned = ce_partial(jnp.array([3.0, 1.0]), jnp.log(jnp.array([0.75, 0.25])))
    >>> [f"{x:.3f}" for x in jnp.exp(learned)]
    ['0.900', '0.100']

    Reference: Zhao and Zhu 2023 (arXiv:2310.07838).
    """
    counts, log_teacher = _counted(counts, teacher_logits)
    return _normalized(jnp.log(counts) + log_teacher, counts)


def sel_partial(counts: Counts, teacher_logits: Logits) -> Array:
    """Squared error of logarithms: the teacher's own probability of every label that was seen.

    What is missing to 1 is spread evenly over the labels not seen. It minimizes
    `sel_partial_loss`. The missing mass is the sum of what was not seen, and no difference from 1.
    Shapes: `[..., n]` twice to the same.

    >>> teacher = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    >>> print(jnp.exp(sel_partial(jnp.array([5.0, 0.0, 0.0]), teacher)).round(3))
    [0.6 0.2 0.2]

    Reference: Zhao and Zhu 2023 (arXiv:2310.07838).
    """
    counts, log_teacher = _counted(counts, teacher_logits)
    seen = counts > 0
    unseen = jnp.sum(~seen, axis=-1, keepdims=True).astype(counts.dtype)
    missing = jnp.sum(jnp.where(seen, 0, jnp.exp(log_teacher)), axis=-1, keepdims=True)
    each = jnp.log(missing) - jnp.log(jnp.maximum(unseen, 1))
    return checks.spread_nan(jnp.where(seen, log_teacher, each), counts)


def ce_full(counts: Counts, teacher_logits: Logits) -> Array:
    """Cross-entropy with all of the teacher's probabilities: the teacher, at inputs that were seen.

    The error left is that of the inputs not seen. Shapes: `[..., n]` twice to the same.

    >>> teacher = jnp.log(jnp.array([[0.6, 0.4], [0.9, 0.1]]))
    >>> print(jnp.exp(ce_full(jnp.array([[1.0, 0.0], [0.0, 0.0]]), teacher)).round(3))
    [[0.6 0.4]
     [0.5 0.5]]

    Reference: Zhao and Zhu 2023 (arXiv:2310.07838).
    """
    counts, log_teacher = _counted(counts, teacher_logits)
    return _normalized(log_teacher, counts)


def ce_partial_loss(log_probs: LogProbs, teacher_log_probs: LogProbs) -> Array:
    """`-pi*(a) log pi(a)` of sampled labels, the loss of `ce_partial`; the teacher is a constant.

    Its gradient by log pi is -pi*(a). 0 where the teacher has no mass. Shapes: any, twice the same.

    >>> print(f"{ce_partial_loss(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.2])))[0]:.4f}")
    0.1386

    Reference: Zhao and Zhu 2023 (arXiv:2310.07838).
    """
    log_probs, log_teacher = _constant_teacher(log_probs, teacher_log_probs)
    return jnp.where(log_teacher == -jnp.inf, 0, -jnp.exp(log_teacher) * log_probs)


def sel_partial_loss(log_probs: LogProbs, teacher_log_probs: LogProbs) -> Array:
    """`(log pi(a) - log pi*(a))^2 / 2` of sampled labels, the loss of `sel_partial`.

    It is `estimators.kl_k2`, on the teacher's samples; the teacher is a constant. Its gradient by
    log pi is log pi/pi*. 0 where neither has mass, inf where one has none. Shapes: any, twice the
    same.

    >>> print(f"{sel_partial_loss(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.2])))[0]:.4f}")
    0.4198

    Reference: Zhao and Zhu 2023 (arXiv:2310.07838).
    """
    return estimators.kl_k2(*_constant_teacher(log_probs, teacher_log_probs))


# ----------------------------------------------------------------------------------------- parts


def _as_counts(counts: Counts) -> Array:
    """Counts as float32 or float64; integers are."""
    counts = jnp.asarray(checks.not_negative("counts", counts))
    whole = jnp.issubdtype(counts.dtype, jnp.integer)
    return checks.as_float("counts", counts.astype(float) if whole else counts)


def _counted(counts: Counts, teacher_logits: Logits) -> tuple[Array, Array]:
    """Counts and the teacher's log-probabilities in one precision."""
    teacher = checks.as_float("teacher_logits", teacher_logits)
    counts, teacher = checks.alike(counts=_as_counts(counts), teacher_logits=teacher)
    return counts, numerics.log_softmax(teacher)


def _normalized(logits: Array, counts: Array) -> Array:
    """Log-probabilities of logits; uniform where the input was not seen, or nothing is left."""
    some = [jnp.any(x, axis=-1, keepdims=True) for x in (counts > 0, logits > -jnp.inf)]
    log_policy = numerics.log_softmax(jnp.where(some[0] & some[1], logits, 0))
    return checks.spread_nan(log_policy, counts)


def _constant_teacher(log_probs: LogProbs, teacher_log_probs: LogProbs) -> list[Array]:
    """Both in one precision and shape, the teacher's as a constant."""
    teacher = jax.lax.stop_gradient(teacher_log_probs)
    return checks.alike(log_probs=log_probs, teacher_log_probs=teacher)
