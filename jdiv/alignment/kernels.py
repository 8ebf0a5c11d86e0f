"""DPO-Kernels: a preference loss with similarities of embeddings, and a divergence beside it.

`log K(x, y)` of the embeddings of a prompt and of an answer, of which the loss takes the difference
between the chosen and the rejected answer. As released the loss has no margin around it, so that
the kernel, of embeddings that are not trained, is a constant: it has no gradient. With a margin an
answer's odds are divided by its kernel. The divergence is of the policy from the reference, in the
released code at the last token of the chosen answer alone: any function of `jdiv.divergences`, or
`transport.wasserstein_1`, which the released code has without a gradient.

Reference: DPO-Kernels (arXiv:2501.03271), from its released code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.alignment import margins
from jdiv.alignment.margins import Margin
from jdiv.types import Features, PerPair, PerSequence, Scalar


def log_polynomial(
    x: Features, y: Features, *, offset: Scalar = 1.0, degree: Scalar = 2.0
) -> PerSequence:
    """`degree log(x . y + offset)`; NaN where the sum is negative, for which there is no logarithm.

    Shapes: `[..., d]` twice to `[...]`.

    >>> print(f"{log_polynomial(jnp.array([1.0, 1.0]), jnp.array([1.0, 2.0])):.4f}")
    2.7726
    """
    x, y = _embeddings(x, y)
    degree = jnp.asarray(checks.positive("degree", degree), x.dtype)
    offset = jnp.asarray(checks.not_negative("offset", offset), x.dtype)
    return degree * jnp.log(jnp.sum(x * y, axis=-1) + offset)


def log_rbf(x: Features, y: Features, *, bandwidth: Scalar = 1.0) -> PerSequence:
    """`-|x - y|^2 / (2 bandwidth^2)`. Shapes: `[..., d]` twice to `[...]`."""
    x, y = _embeddings(x, y)
    bandwidth = jnp.asarray(checks.positive("bandwidth", bandwidth), x.dtype)
    return -jnp.sum(((x - y) / bandwidth) ** 2, axis=-1) / 2


def log_mahalanobis(x: Features, y: Features, *, precision: ArrayLike) -> PerSequence:
    """`-(x - y)' precision (x - y) / 2`. Shapes: `[..., d]` twice, and `[d, d]`, to `[...]`."""
    x, y = _embeddings(x, y)
    precision = checks.symmetric("precision", checks.as_float("precision", precision))
    difference = x - y
    return -jnp.sum((difference @ precision.astype(x.dtype)) * difference, axis=-1) / 2


def log_spectral(
    x: Features, y: Features, *, weights: ArrayLike, precision: ArrayLike
) -> PerSequence:
    """`log sum over k of weights_k exp(-precision_k |x - y|^2)`, a mixture of Gaussians.

    Shapes: `[..., d]` twice, and `[m]` twice, to `[...]`.
    """
    x, y = _embeddings(x, y)
    weights, precision = (
        jnp.atleast_1d(jnp.asarray(checks.positive(name, value), x.dtype))
        for name, value in (("weights", weights), ("precision", precision))
    )
    checks.same_shape(weights=weights, precision=precision)
    square = jnp.sum((x - y) ** 2, axis=-1, keepdims=True)
    by_part = jnp.expand_dims(precision, tuple(range(square.ndim - 1))) * square
    log_weights = jnp.expand_dims(jnp.log(weights), tuple(range(square.ndim - 1)))
    return jax.nn.logsumexp(log_weights - by_part, axis=-1)


def kernel_dpo(
    chosen: PerPair,
    rejected: PerPair,
    kernel: PerPair,
    divergence: PerPair,
    *,
    coefficient: ArrayLike,
    margin: Margin = margins.linear,
) -> PerPair:
    """`margin(log pi_w/pi_l + log K_w/K_l) + coefficient D`, as released without a margin, `-x`.

    Without a margin the loss of all pairs of some answers is `-sum of c log pi + coefficient D`, c
    the wins of each less its losses: no bound below for a divergence that is finite where the
    policy has a zero, as KL(pi‖ref), Jensen-Shannon, Renyi, Bhattacharyya and Wasserstein all are.
    With the logistic margin and coefficient 0 its minimizer is `e^r / K`, rewards r of
    Bradley-Terry. The kernel is the logarithm's difference. Shapes: `[...]` four times to `[...]`.

    >>> pair = jnp.array(-1.0), jnp.array(-2.0)
    >>> print(kernel_dpo(*pair, jnp.array(0.5), jnp.array(0.1), coefficient=2.0))
    -1.3

    Reference: DPO-Kernels (arXiv:2501.03271), from its released code.
    """
    chosen, rejected, kernel, divergence = checks.alike(
        chosen=chosen, rejected=rejected, kernel=kernel, divergence=divergence
    )
    coefficient = jnp.asarray(checks.not_negative("coefficient", coefficient), chosen.dtype)
    if (shape := coefficient.shape) not in ((), chosen.shape):
        raise ValueError(f"coefficient must be a number or of shape {chosen.shape}, got {shape}")
    return margin(chosen - rejected + kernel) + coefficient * divergence


def _embeddings(x: Features, y: Features) -> list[Array]:
    """Both in one precision and of one shape, with an axis."""
    x, y = checks.alike(x=x, y=y)
    if x.ndim == 0:
        raise ValueError("x and y must be embeddings [..., d], got scalars")
    return [x, y]
