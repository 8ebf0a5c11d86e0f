"""Datamodel matching, and KLoM: how far unlearned models are from those trained without some data.

What a model would say had it never seen some of its data is predicted first, and the model is
fitted to that prediction, the forgotten points included: their targets are known, where gradient
ascent only knows a direction. For linear models with a ridge the prediction is a Newton step on
what is retained, exact for squared loss. KLoM compares, point by point, the margins of many
unlearned models with those of many retrained ones.

Reference: Attribute-to-Delete (Georgiev et al. 2025, arXiv:2410.23232).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.types import Indices, Logits, PerSample, Reduced, RowMask, Samples, Scalar


def leave_out(
    features: Samples, residual: PerSample, curvature: PerSample, mask: RowMask, *, ridge: Scalar
) -> Array:
    """`(sum of c x x' over the retained + ridge)^-1` times the sum of `r x` over the forgotten.

    The change of the weights w of `sum loss(x'w) + ridge |w|^2/2` when the points of the mask
    leave, by one Newton step: r and c are the first and second derivative of each loss at the
    optimum of all points. Exact for squared loss, where r = x'w - y and c = 1.
    Shapes: features `[samples, width]`, the others `[samples]`, to `[width]`.

    >>> x, y = jnp.ones((3, 1)), jnp.array([1.0, 2.0, 6.0])
    >>> w = jnp.array([3.0])  # their mean
    >>> last = jnp.array([False, False, True])
    >>> print(w + leave_out(x, x @ w - y, jnp.ones(3), last, ridge=0.0))
    [1.5]

    Reference: Pregibon 1981 (Annals of Statistics 9), for one point; the prediction that datamodel
    matching starts from.
    """
    features, residual, curvature, mask = _points(features, residual, curvature, mask)
    ridge = jnp.asarray(checks.not_negative("ridge", ridge), features.dtype)
    retained = jnp.where(mask, 0, curvature)
    hessian = (features.T * retained[None]) @ features + ridge * jnp.eye(features.shape[1])
    return jnp.linalg.solve(hessian, jnp.where(mask, residual, 0) @ features)


def datamodel(
    features: Samples,
    residual: PerSample,
    curvature: PerSample,
    points: Samples,
    *,
    ridge: Scalar,
) -> Array:
    """Attributions `[samples, points]`: what a prediction changes by when one sample joins.

    `-z'H^-1 x r/(1 - c x'H^-1 x)`, `leave_out` of each alone with the sign turned. Predictions
    without a set are about those of all less the attributions of the set, which is exact for
    squared loss and one point; what two points do together is missing.
    Shapes: features `[samples, width]`, points `[points, width]`, the others `[samples]`.

    Reference: Datamodels (Ilyas et al. 2022, arXiv:2202.00622), for the sum over a set.
    Reconstructed: that a single leave-one-out stands for a regression on many random subsets.
    """
    features, residual, curvature, _ = _points(features, residual, curvature)
    points = checks.as_float("points", points)
    ridge = jnp.asarray(checks.not_negative("ridge", ridge), features.dtype)
    hessian = (features.T * curvature[None]) @ features + ridge * jnp.eye(features.shape[1])
    spread = jnp.linalg.solve(hessian, features.T)
    leverage = curvature * jnp.sum(features.T * spread, axis=0)
    return -(residual / (1 - leverage))[:, None] * (points @ spread).T


def _points(
    features: Array, residual: Array, curvature: Array, mask: Array | None = None
) -> list[Array]:
    """Checked arrays, one row for each sample."""
    features, residual, curvature = (
        checks.as_float(name, x)
        for name, x in (("features", features), ("residual", residual), ("curvature", curvature))
    )
    mask = jnp.zeros(residual.shape, bool) if mask is None else checks.as_mask("mask", mask)
    if features.ndim != 2:
        raise ValueError(f"features must be [samples, width], got {tuple(features.shape)}")
    rows = {"residual": residual, "curvature": curvature, "mask": mask}
    checks.same_shape(**{"rows of features": features[:, 0]}, **rows)
    return [features, residual, curvature, mask]


def datamodel_matching(values: PerSample, target: PerSample) -> PerSample:
    """`(value - target)^2/2`, of outputs of the model and those predicted for a retrained one.

    On forgotten and retained points alike. No gradient reaches the target. Shapes: `[...]` twice.

    Reference: Attribute-to-Delete (Georgiev et al. 2025, arXiv:2410.23232).
    Reconstructed: that outputs are compared by the squared error.
    """
    values, target = checks.alike(values=values, target=jax.lax.stop_gradient(target))
    return (values - target) ** 2 / 2


def margin(logits: Logits, labels: Indices) -> Reduced:
    """`z_label - log sum of e^z over the others`: the log-odds of the label.

    inf where the others have no mass, -inf where the label has none.
    Shapes: logits `[..., n]`, labels `[...]` to the latter.

    >>> print(f"{margin(jnp.log(jnp.array([0.8, 0.15, 0.05])), jnp.array(0)):.4f}")
    1.3863

    Reference: Attribute-to-Delete (Georgiev et al. 2025, arXiv:2410.23232), in its released code.
    """
    logits, labels = checks.as_float("logits", logits), checks.as_integers("labels", labels)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels must be {tuple(logits.shape[:-1])}, one for each row of logits, got"
            f" {tuple(labels.shape)}"
        )
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
    return jnp.sum(jnp.where(own, logits, 0), axis=-1) - others


def klom(
    margins: Samples,
    ref_margins: Samples,
    *,
    bins: int = 20,
    clip: Scalar = 100.0,
    lowest: Scalar = 0.0,
) -> Array:
    """KL(unlearned‖retrained) of the histograms of margins, for each point.

    Margins are clipped to ±clip; the bins are of one width, from the smallest to the largest
    margin of a point in either set. inf where a bin of the unlearned is empty in the retrained,
    unless `lowest` is given: the least share that such a bin is taken to have before all are
    normalized, 1e-5 in the released code. 0 where all margins are one number. Few models give
    noise, of a size that two sets of retrained models show. Without a gradient.
    Shapes: `[models, points]` and `[others, points]` to `[points]`.

    >>> x = jnp.array([[0.0], [1.0], [1.0], [2.0]])
    >>> print(f"{klom(x, x, bins=2)[0]:.4f} {klom(x[1:], x, bins=2)[0]:.4f}")
    0.0000 0.2877

    Reference: Attribute-to-Delete (Georgiev et al. 2025, arXiv:2410.23232); bins, clipping and
    direction from its released code, whose largest margin of all falls out of the last bin.
    """
    margins, ref_margins = (
        checks.as_float(name, x) for name, x in (("margins", margins), ("ref_margins", ref_margins))
    )
    if margins.ndim != 2 or ref_margins.ndim != 2 or margins.shape[1] != ref_margins.shape[1]:
        raise ValueError(
            "margins and ref_margins must be [models, points] of the same points, got"
            f" {tuple(margins.shape)} and {tuple(ref_margins.shape)}"
        )
    dtype = jnp.promote_types(margins.dtype, ref_margins.dtype)
    margins, ref_margins = margins.astype(dtype), ref_margins.astype(dtype)
    bins = checks.whole("bins", bins, 1, 2**20, "at least 1")
    clip = jnp.asarray(checks.positive("clip", clip), dtype)
    lowest = jnp.asarray(checks.share("lowest", lowest), dtype)
    both = [jnp.clip(x, -clip, clip) for x in (margins, ref_margins)]
    low = jnp.minimum(*(jnp.min(x, axis=0) for x in both))
    width = jnp.maximum(*(jnp.max(x, axis=0) for x in both)) - low

    def shares(x: Array) -> Array:
        place = jnp.floor((x - low[None]) / jnp.where(width > 0, width, 1)[None] * bins)
        place = jnp.clip(place, 0, bins - 1)[..., None]
        return jnp.mean(place == jnp.arange(bins, dtype=x.dtype)[None, None], axis=0, dtype=x.dtype)

    p, q = (shares(x) for x in both)
    here = p > 0
    q = jnp.where(here, jnp.maximum(q, lowest), q)
    log_ratio = jnp.log(jnp.where(here, p, 1)) - jnp.log(q / jnp.sum(q, axis=-1, keepdims=True))
    terms = jnp.where(here, p * log_ratio, 0)
    return checks.spread_nan(jnp.sum(terms, axis=-1), width)
