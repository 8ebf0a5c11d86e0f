"""Kullback-Leibler from two sets of samples, through distances to nearest neighbours."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jdiv import checks
from jdiv.estimators import kernels
from jdiv.types import OtherSamples, Samples, Scalar


def knn_kl(x: Samples, y: OtherSamples, k: int = 5, *, chunk_size: int = 256) -> Scalar:
    """`(d/n) sum_i log(nu_k(i)/rho_k(i)) + log(m/(n - 1))` for KL(p‖q), x ~ p and y ~ q.

    rho_k(i) is the distance of x_i to its k-th nearest other x, nu_k(i) to its k-th nearest y: the
    densities are k over the volume of the ball. x and y have to be independent. Consistent for any
    k; a larger one lowers the variance and raises the bias, which pulls a large divergence down,
    the more the higher d is. It may be negative.

    Repeated points: if the k-th neighbour of x_i is at distance 0, in x or in y, then the point is
    an atom, and no ball around it has a density. Its share is the log-ratio of frequencies,
    `log((N_x/n) / (N_y/m))`, N_x the copies of x_i in x (itself among them) and N_y those in y. So
    samples of discrete distributions give the plug-in KL: inf if y lacks a point that x has more
    than k times. Without repeated points a sample of any size may be far away; one that is not
    finite makes the estimate NaN.

    Shapes: samples `[n, d]` and `[m, d]` to `[]`; k at most n - 1 and m. Distances are held for
    chunk_size rows at a time, `chunk_size (n + m)` numbers. Differentiable in x and y.

    >>> x = jnp.array([[0.0], [1.0], [3.0]])
    >>> knn_kl(x, jnp.array([[0.5], [2.0]]), k=1)  # mean log(.5/1, .5/1, 1/2) + log(2/2)
    Array(-0.6931472, dtype=float32)

    Reference: Wang, Kulkarni and Verdu 2009, Divergence estimation for multidimensional densities
    via k-nearest-neighbor distances.
    """
    x, y = kernels.sample_pair(x, y)
    (n, d), m = x.shape, y.shape[0]
    if n < 2:
        raise ValueError(f"x must have at least 2 samples, got {n}")
    most = min(n - 1, m)
    k = checks.whole("k", k, 1, most, f"from 1 to {most} (n - 1 = {n - 1} and m = {m})")
    chunk_size = min(checks.whole("chunk_size", chunk_size, 1, 2**31 - 1, "at least 1"), n)

    def share(x_i):
        to_x, to_y = (kernels.distances(x_i[None, :], z)[0] for z in (x, y))
        # The nearest x is x_i itself; max keeps top_k from becoming a full sort.
        rho = jnp.max(-jax.lax.top_k(-to_x, k + 1)[0])
        nu = jnp.max(-jax.lax.top_k(-to_y, k)[0])
        atom = (rho == 0) | (nu == 0)
        rho, nu = jnp.where(atom, 1, rho), jnp.where(atom, 1, nu)
        by_volume = d * (jnp.log(nu) - jnp.log(rho)) + math.log(m / (n - 1))
        copies_x, copies_y = (jnp.sum(to == 0).astype(x.dtype) for to in (to_x, to_y))
        return jnp.where(atom, jnp.log(copies_x / n) - jnp.log(copies_y / m), by_volume)

    # The order of neighbours says nothing of samples that are not finite.
    undefined = [jnp.where(jnp.isfinite(samples), 0, jnp.nan).sum() for samples in (x, y)]
    return checks.spread_nan(jnp.mean(jax.lax.map(share, x, batch_size=chunk_size)), *undefined)
