"""Divergences between two sets of samples through a kernel or a distance on their space.

Samples are `[n, d]` and `[m, d]`; the kernel is Gaussian, `exp(-|x - y|^2 / (2 bandwidth^2))`. All
pairs are held at once, `n m` numbers. Batches by `vmap`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.types import OtherSamples, Samples, Scalar


def sample_pair(x: Samples, y: OtherSamples) -> tuple[Array, Array]:
    """Two checked sets of samples, `[n, d]` and `[m, d]`, in one precision."""
    x, y = checks.as_float("x", x), checks.as_float("y", y)
    for name, samples in (("x", x), ("y", y)):
        if samples.ndim != 2 or 0 in samples.shape:
            raise ValueError(f"{name} must be samples [n, d], got shape {tuple(samples.shape)}")
    if x.shape[1] != y.shape[1]:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x and y must have the same dimension, got shapes {shapes}")
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype)


def squared_distances(x: Array, y: Array) -> Array:
    """`|x_i - y_j|^2`, `[n, m]`; from the differences, so that it is exactly 0 for equal points."""
    return jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), axis=-1)


def distances(x: Array, y: Array) -> Array:
    """`|x_i - y_j|`, `[n, m]`; no square of a large or a small difference over- or underflows.

    The derivative of a distance 0 is 0.
    """
    differences = x[:, None, :] - y[None, :, :]
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(differences), axis=-1))
    coincide = largest == 0
    # A power of two, so that nothing is rounded.
    unit = jnp.where(coincide, 1, jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1] - 1))
    square = jnp.sum(jnp.square(differences / unit[..., None]), axis=-1)
    return jnp.where(coincide, 0, unit * jnp.sqrt(jnp.where(coincide, 1, square)))


def _log_kernels(x: ArrayLike, y: ArrayLike, bandwidth: ArrayLike) -> tuple[Array, Array, Array]:
    """`log K` within x, within y, and between them."""
    x, y = sample_pair(x, y)
    bandwidth = checks.positive("bandwidth", bandwidth, rows=x.ravel())
    scaled_x, scaled_y = x / bandwidth, y / bandwidth
    pairs = ((scaled_x, scaled_x), (scaled_y, scaled_y), (scaled_x, scaled_y))
    within_x, within_y, between = (-squared_distances(*pair) / 2 for pair in pairs)
    return within_x, within_y, between


def squared_mmd_biased(x: Samples, y: OtherSamples, *, bandwidth: Scalar = 1.0) -> Scalar:
    """Squared maximum mean discrepancy, `mean K_xx + mean K_yy - 2 mean K_xy`, diagonals included.

    A V-statistic, the value of the two empirical distributions: never negative (to rounding), 0
    for equal sets, and on average too high by `(1 - E K(x, x'))/n + (1 - E K(y, y'))/m`.
    Shapes: samples `[n, d]` and `[m, d]` to `[]`. Range: 0 to 2.

    >>> squared_mmd_biased(jnp.zeros((3, 1)), jnp.zeros((2, 1)))
    Array(0., dtype=float32)

    Reference: Gretton et al. 2012, A kernel two-sample test, section 2.
    """
    within_x, within_y, between = map(jnp.exp, _log_kernels(x, y, bandwidth))
    return jnp.mean(within_x) + jnp.mean(within_y) - 2 * jnp.mean(between)


def squared_mmd_unbiased(x: Samples, y: OtherSamples, *, bandwidth: Scalar = 1.0) -> Scalar:
    """Squared maximum mean discrepancy, `mean K_xx + mean K_yy - 2 mean K_xy` without diagonals.

    The means within a set leave out i = j (a U-statistic), so it is unbiased, and may be negative.
    Shapes: samples `[n, d]` and `[m, d]`, n and m at least 2, to `[]`.

    >>> squared_mmd_unbiased(jnp.zeros((3, 1)), jnp.zeros((2, 1)))
    Array(0., dtype=float32)

    Reference: Gretton et al. 2012, A kernel two-sample test, lemma 6.
    """
    within_x, within_y, between = map(jnp.exp, _log_kernels(x, y, bandwidth))
    within = _mean_off_diagonal("x", within_x) + _mean_off_diagonal("y", within_y)
    return within - 2 * jnp.mean(between)


def _mean_off_diagonal(name: str, matrix: Array) -> Array:
    """The mean without the diagonal of the `[n, n]` matrix of the samples of this name."""
    n = matrix.shape[0]
    if n < 2:
        raise ValueError(f"{name} must have at least 2 samples, got {n}")
    return jnp.sum(jnp.where(jnp.eye(n, dtype=bool), 0, matrix)) / (n * (n - 1))


def cauchy_schwarz(x: Samples, y: OtherSamples, *, bandwidth: Scalar = 1.0) -> Scalar:
    """Cauchy-Schwarz divergence, `log mean K_xx + log mean K_yy - 2 log mean K_xy`.

    `-log (int p q)^2 / (int p^2 int q^2)` of two kernel density estimates, with s/sqrt 2 as their
    bandwidth when K has s; diagonals included. Sums in place of means give the same for any n and
    m, since the sizes cancel. It targets the divergence of the smoothed densities, between unit
    Gaussians D apart `D^2 / (2 (1 + s^2/2))` and not D^2/2. All in logarithms: samples far apart
    give a large number and a gradient also where every K is too small to be represented.
    Shapes: samples `[n, d]` and `[m, d]` to `[]`. Range: 0 (to rounding) to inf.

    >>> cauchy_schwarz(jnp.zeros((3, 1)), 4 * jnp.ones((2, 1)))
    Array(16., dtype=float32)

    Reference: Jenssen, Principe, Erdogmus and Eltoft 2006; Yu et al. 2024, Cauchy-Schwarz
    divergence information bottleneck.
    """
    within_x, within_y, between = (
        jax.nn.logsumexp(log_kernel) - math.log(log_kernel.size)
        for log_kernel in _log_kernels(x, y, bandwidth)
    )
    return within_x + within_y - 2 * between


def energy_distance(x: Samples, y: OtherSamples) -> Scalar:
    """Energy distance, `2 mean |x - y| - mean |x - x'| - mean |y - y'|`; no root is taken.

    A V-statistic, the value of the two empirical distributions: never negative (to rounding), 0
    for equal sets, and on average too high by `E|x - x'|/n + E|y - y'|/m`. No bandwidth; in one
    dimension it is `2 int (F - G)^2` of the distribution functions.
    Shapes: samples `[n, d]` and `[m, d]` to `[]`. Range: 0 to inf. Its gradient takes 0 where two
    samples coincide.

    >>> energy_distance(jnp.zeros((3, 1)), jnp.ones((2, 1)))
    Array(2., dtype=float32)

    Reference: Szekely and Rizzo 2013.
    """
    x, y = sample_pair(x, y)
    return 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)


def _mean_distance(x: Array, y: Array) -> Array:
    """`mean |x_i - y_j|`."""
    return jnp.mean(distances(x, y))
