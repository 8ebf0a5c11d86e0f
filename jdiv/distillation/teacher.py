"""Teachers made for their students: conditional mutual information given the class (MCMI).

How much an answer tells about the input beyond its class is `I(X; Y^ | Y)`, the mean KL divergence
of the answers from the centroid of their class. A teacher that keeps more of it has more to teach.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.types import Centroids, Indices, Logits, PerSequence, RowMask, Scalar


def _rows(logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None) -> tuple[Array, ...]:
    """Checked logits `[b, n]` with 0 where masked, labels, and the mask `[b]`."""
    logits, labels = checks.as_float("logits", logits), checks.as_integers("labels", labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"logits and labels must be [rows, n] and [rows], got {shapes}")
    mask = jnp.ones(labels.shape, bool) if mask is None else checks.as_mask("mask", mask)
    checks.same_shape(labels=labels, mask=mask)
    return jnp.where(mask[:, None], logits, 0), labels, mask


def centroids(
    logits: Logits, labels: Indices, classes: int, *, mask: RowMask | None = None
) -> Centroids:
    """`log Q_y`, the logarithm of the mean of the probabilities of each class's rows.

    Sums are taken of logarithms: what is too small to be a probability counts too.
    Shapes: `[b, n]` and `[b]` to `[classes, n]`. A class without rows has no distribution: -inf.

    >>> rows = jnp.log(jnp.array([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]]))
    >>> [f"{p:.2f}" for p in jnp.exp(centroids(rows, jnp.array([0, 0, 1]), 2)).ravel()]
    ['0.30', '0.70', '1.00', '0.00']
    """
    logits, labels, mask = _rows(logits, labels, mask)
    classes = checks.whole("classes", classes, 1, 2**31 - 1, "at least 1")
    log_p, labels = numerics.log_softmax(logits), jnp.where(mask, labels, classes)
    top = jax.ops.segment_max(jax.lax.stop_gradient(log_p), labels, classes)
    top = jnp.where(top == -jnp.inf, 0, top)
    # The rows that are left out are beyond the classes, and dropped.
    below = jnp.exp(log_p - top[jnp.minimum(labels, classes - 1)])
    total = jax.ops.segment_sum(below, labels, classes)
    count = jax.ops.segment_sum(mask.astype(log_p.dtype), labels, classes)[:, None]
    some = total > 0
    log_mean = jnp.log(jnp.where(some, total, 1)) + top - jnp.log(jnp.maximum(count, 1))
    return jnp.where(some, log_mean, -jnp.inf)


def moved_centroids(
    centroid_logits: Centroids,
    logits: Logits,
    labels: Indices,
    *,
    share: Scalar = 1e-4,
    mask: RowMask | None = None,
) -> Centroids:
    """`(1 - share) Q_y + share mean p` in logarithms: the centroids after one batch more.

    Classes without rows in the batch stay where they are; `1 - share` is .9999 in the released
    code. No gradient flows.
    Shapes: `[classes, n]`, `[b, n]` and `[b]` to `[classes, n]`.

    >>> old, rows = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.1, 0.9]]))
    >>> new = moved_centroids(old, rows, jnp.array([0]), share=0.5)
    >>> [f"{p:.2f}" for p in jnp.exp(new[0])]
    ['0.30', '0.70']

    Reference: Ye et al. 2024, Bayes Conditional Distribution Estimation for Knowledge Distillation
    Based on Conditional Mutual Information (arXiv:2401.08732), and its released code.
    Reconstructed: that the average takes one step for a batch.
    """
    old = numerics.log_softmax(checks.as_float("centroid_logits", centroid_logits))
    share = jnp.asarray(checks.share("share", share), old.dtype)
    new = centroids(logits, labels, old.shape[0], mask=mask).astype(old.dtype)
    seen = jnp.any(new != -jnp.inf, axis=-1, keepdims=True)
    moved = jnp.logaddexp(jnp.log1p(-share) + old, jnp.log(share) + new)
    return jax.lax.stop_gradient(jnp.where(seen, moved, old))


def conditional_information(
    logits: Logits,
    labels: Indices,
    classes: int,
    *,
    centroid_logits: Centroids | None = None,
    mask: RowMask | None = None,
) -> PerSequence:
    """`KL(p_x‖Q_y)` of each row from the centroid of its class; the mean is `I(X; Y^ | Y)`.

    Without centroids they are the batch's own, and the mean over the batch is then the Jensen gap
    `sum_y P(y) (H(Q_y) - mean H(p_x))`: 0 if and only if the answers are constant in each class.
    Given ones, a moving average, make it larger: the own centroid is where the mean is smallest.
    Centroids are constants. For the own ones that changes nothing of the mean's gradient, because
    they are at that minimum.
    Shapes: `[b, n]` and `[b]` to `[b]`, 0 where masked. Range: 0 to inf.

    >>> rows = jnp.log(jnp.array([[0.5, 0.5], [0.1, 0.9]]))
    >>> print(f"{conditional_information(rows, jnp.array([0, 0]), 1).mean():.4f}")
    0.1017

    Reference: Ye et al. 2024, Bayes Conditional Distribution Estimation for Knowledge Distillation
    Based on Conditional Mutual Information (arXiv:2401.08732).
    """
    logits, labels, mask = _rows(logits, labels, mask)
    if centroid_logits is None:
        centroid_logits = centroids(logits, labels, classes, mask=mask)
    centers = checks.as_float("centroid_logits", centroid_logits)
    if centers.shape != (classes, logits.shape[1]):
        shape = (classes, logits.shape[1])
        raise ValueError(f"centroid_logits must be {shape}, got {tuple(centers.shape)}")
    centers = jax.lax.stop_gradient(centers)[jnp.where(mask, labels, 0)]
    centers = jnp.where(mask[:, None], centers.astype(logits.dtype), 0)
    return categorical.TABLE["kl"](logits, centers)


def mcmi(
    logits: Logits,
    labels: Indices,
    centroid_logits: Centroids,
    *,
    coefficient: Scalar,
    mask: RowMask | None = None,
) -> PerSequence:
    """`-log p_y - coefficient KL(p_x‖Q_y)`: a teacher's loss, which rewards what it tells of x.

    The released code ends training of a teacher with it; a coefficient of 0 is cross-entropy. The
    centroids are constants, so the gradient by the logits is
    `p - e_y - coefficient p (log p/Q_y - KL)`.
    Shapes: `[b, n]`, `[b]` and `[classes, n]` to `[b]`, 0 where masked. inf where p_y is 0.

    >>> rows = jnp.log(jnp.array([[0.5, 0.5]]))
    >>> print(mcmi(rows, jnp.array([0]), rows, coefficient=0.2).round(4))
    [0.6931]

    Reference: Ye et al. 2024, Bayes Conditional Distribution Estimation for Knowledge Distillation
    Based on Conditional Mutual Information (arXiv:2401.08732).
    """
    logits, labels, mask = _rows(logits, labels, mask)
    coefficient = jnp.asarray(checks.not_negative("coefficient", coefficient), logits.dtype)
    information = conditional_information(
        logits, labels, jnp.shape(centroid_logits)[0], centroid_logits=centroid_logits, mask=mask
    )
    log_p = numerics.log_softmax(logits)
    at_label = jnp.take_along_axis(log_p, jnp.where(mask, labels, 0)[:, None], axis=1)[:, 0]
    return jnp.where(mask, -at_label - coefficient * information, 0)
