"""A model that is its own teacher: progressive self-knowledge distillation (PS-KD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import sparse
from jdiv.types import Indices, Logits, PerRow, PerSequence, RowMask, Scalar


def share_at(step: Scalar, *, steps: Scalar, share: Scalar = 0.8) -> Scalar:
    """`share step/steps`: how far the model trusts what it said an epoch ago.

    .8 at the last epoch in the released code.

    >>> print(f"{share_at(150, steps=300):.2f}")
    0.40

    Reference: Kim et al. 2021, Self-Knowledge Distillation with Progressive Refinement of Targets
    (arXiv:2006.12000).
    """
    share = checks.share("share", share)
    return share * (checks.not_negative("step", step) / checks.positive("steps", steps))


def _rows(
    student_logits: ArrayLike, old_logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
    """Log-probabilities of now and an epoch ago, labels one of the categories, and the mask."""
    student, old = checks.alike(student_logits=student_logits, old_logits=old_logits)
    labels = checks.as_integers("labels", labels)
    if labels.shape != student.shape[:-1]:
        shapes = f"{tuple(student.shape[:-1])}, got {tuple(labels.shape)}"
        raise ValueError(f"labels must have shape {shapes}")
    mask = jnp.ones(labels.shape, bool) if mask is None else checks.as_mask("mask", mask)
    checks.same_shape(labels=labels, mask=mask)
    student, old = (jnp.where(mask[..., None], x, 0) for x in (student, old))
    old = numerics.log_softmax(jax.lax.stop_gradient(old))
    return numerics.log_softmax(student), old, jnp.where(mask, labels, 0), mask


def progressive(
    student_logits: Logits,
    old_logits: Logits,
    labels: Indices,
    *,
    share: PerRow,
    mask: RowMask | None = None,
) -> PerSequence:
    """PS-KD, cross-entropy with the target `(1 - share) e_y + share old`, which is a constant.

    `old` is what the model itself answered an epoch ago and `share` grows with the epochs
    (`share_at`). The gradient by the logits is `p - target`.
    Shapes: `[..., n]` logits twice and labels `[...]` to `[...]`, 0 where masked. Range: the
    entropy of the target to inf, which it is where the target has mass and the model none.

    >>> now, old = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.8, 0.2]))
    >>> [f"{x:.2f}" for x in jax.grad(progressive)(now, old, jnp.array(0), share=0.5)]
    ['-0.40', '0.40']

    Reference: Kim et al. 2021, Self-Knowledge Distillation with Progressive Refinement of Targets
    (arXiv:2006.12000).
    """
    log_p, log_old, labels, mask = _rows(student_logits, old_logits, labels, mask)
    share = checks.share("share", share, rows=log_p)
    is_label = jax.nn.one_hot(labels, log_p.shape[-1], dtype=log_p.dtype)
    target = (1 - share) * is_label + share * jnp.exp(log_old)
    loss = -jnp.sum(target * jnp.where(target > 0, log_p, 0), axis=-1)
    return jnp.where(mask, loss, 0)


def rescaling(
    student_logits: Logits,
    old_logits: Logits,
    labels: Indices,
    *,
    share: PerRow,
    mask: RowMask | None = None,
) -> PerSequence:
    """`1 - share (1 - old_y)/(1 - p_y)`, by which PS-KD scales the gradient at the label's logit.

    Where an epoch ago the model was further from the label than it is now, this is small: examples
    that have become easy count less than hard ones. It is negative where the model is surer than
    the target. Not differentiated by anybody: a constant. 1 where p_y is 1 and old_y is, -inf where
    p_y is 1 alone.
    Shapes: `[..., n]` logits twice and labels `[...]` to `[...]`, 0 where masked.

    >>> now, old = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.8, 0.2]))
    >>> print(rescaling(now, old, jnp.array(0), share=0.5))
    0.8

    Reference: Kim et al. 2021, Self-Knowledge Distillation with Progressive Refinement of Targets
    (arXiv:2006.12000).
    Reconstructed: the ratio at the label's logit, for which it is exact; from memory.
    """
    log_p, log_old, labels, mask = _rows(student_logits, old_logits, labels, mask)
    share = checks.share("share", share, rows=log_p)
    share = share[..., 0] if share.ndim else share
    # Logarithms of the mass of all others, which is no difference from 1.
    of_now, of_old = (sparse.coarsened(x, labels[..., None])[..., 1] for x in (log_p, log_old))
    none = (of_old == -jnp.inf) | (share == 0)
    ratio = jnp.where(none, 0, share * jnp.exp(jnp.where(none, 0, of_old - of_now)))
    return jax.lax.stop_gradient(jnp.where(mask, 1 - ratio, 0))
