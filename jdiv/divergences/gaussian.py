"""Divergences between Gaussians in closed form, under the names of the categorical ones.

`D(p, q)` means D(p‖q) and both arguments are of one kind: `Gaussian`, with the Cholesky factor of
a full covariance, or `Diagonal`, with standard deviations. Any leading batch shape, the same for
both. Half precision is widened to float32; float64 stays float64.

Total variation, Jensen-Shannon, skew KL and Le Cam have no closed form and are absent: estimate
them from samples.

Everything is computed where q is the standard normal: p has covariance `(I + E)(I + E)'` there, and
`E = Lq^-1 (Lp - Lq)` is taken from the difference of the factors. Values are therefore never
negative, exactly 0 for identical arguments, relatively accurate however close p and q are, and
`inf` exactly where the divergence is infinite; there the gradient is 0. No formula differentiates
an eigenvalue, so gradients and Hessians hold for equal Gaussians and repeated eigenvalues too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.types import PerSequence, Reduced, Scalar


class Gaussian(NamedTuple):
    """Normal distributions with full covariances `scale_tril scale_tril'`.

    Fields:
        mean: `[..., d]`.
        scale_tril: `[..., d, d]`, lower triangular with a positive diagonal. Other known values are
            refused. Of traced ones what is above the diagonal is not read.
    """

    mean: ArrayLike
    scale_tril: ArrayLike


class Diagonal(NamedTuple):
    """Normal distributions with independent coordinates.

    Fields:
        mean: `[..., d]`.
        scale: `[..., d]`, positive: standard deviations, not variances.
    """

    mean: ArrayLike
    scale: ArrayLike


def from_covariance(mean: ArrayLike, covariance: ArrayLike) -> Gaussian:
    """The `Gaussian` of a `[..., d]` mean and a `[..., d, d]` positive definite covariance.

    >>> from_covariance(jnp.zeros(2), jnp.array([[4.0, 0.0], [0.0, 9.0]])).scale_tril
    Array([[2., 0.],
           [0., 3.]], dtype=float32)
    """
    mean, covariance = checks.as_float("mean", mean), checks.as_float("covariance", covariance)
    _refuse_shape("covariance", covariance, (*mean.shape, *mean.shape[-1:]))
    covariance = checks.symmetric("covariance", covariance)
    scale_tril = jnp.linalg.cholesky(covariance)
    if not isinstance(scale_tril, jax.core.Tracer) and not np.all(np.isfinite(scale_tril)):
        raise ValueError("covariance must be positive definite")
    return Gaussian(mean, scale_tril)


# ------------------------------------------------------------------------------------------ inputs


def _refuse_shape(name: str, x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")


def _checked(name: str, x: Gaussian | Diagonal) -> Gaussian | Diagonal:
    if not isinstance(x, Gaussian | Diagonal):
        raise TypeError(f"{name} must be a Gaussian or a Diagonal, got {type(x).__name__}")
    full, (_, field) = isinstance(x, Gaussian), x._fields
    mean, scale = (
        checks.as_float(f"{name}.mean", x[0]),
        checks.as_float(f"{name}.{field}", x[1]),
    )
    if mean.ndim == 0 or mean.shape[-1] == 0:
        raise ValueError(f"{name}.mean must have at least one dimension, got shape {mean.shape}")
    _refuse_shape(f"{name}.{field}", scale, mean.shape + mean.shape[-1:] * full)
    if not isinstance(scale, jax.core.Tracer):
        known = np.asarray(scale)
        if full and np.any(np.triu(known, 1) != 0):
            raise ValueError(f"{name}.{field} must be lower triangular; see from_covariance")
        if not np.all((np.diagonal(known, axis1=-2, axis2=-1) if full else known) > 0):
            raise ValueError(f"{name}.{field} must be positive{' on its diagonal' if full else ''}")
        return type(x)(mean, scale)
    if not full:
        return type(x)(mean, jnp.where(scale > 0, scale, jnp.nan))
    positive = jnp.diagonal(scale, axis1=-2, axis2=-1)[..., None, :] > 0
    return type(x)(mean, jnp.tril(jnp.where(positive, scale, jnp.nan)))


def _pair(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> tuple:
    """Both arguments checked, of one kind, one shape and one dtype."""
    p, q = _checked("p", p), _checked("q", q)
    if type(p) is not type(q):
        raise TypeError(
            f"p and q must be of one kind, got {type(p).__name__} and {type(q).__name__}"
        )
    checks.same_shape(**{"p.mean": p.mean, "q.mean": q.mean})
    dtype = np.result_type(*(x.dtype for x in (*p, *q)))
    return jax.tree.map(lambda x: x.astype(dtype), (p, q))


# ----------------------------------------------------------------------------------- linear algebra


def _matmul(a: Array, b: Array) -> Array:
    """`a b` in full precision on every device."""
    return jnp.matmul(a, b, precision="highest")


def _transpose(a: Array) -> Array:
    return jnp.swapaxes(a, -1, -2)


def _eye_like(a: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)


def _solve_lower(lower: Array, x: Array) -> Array:
    """`lower^-1 x` for matrices x."""
    return jax.lax.linalg.triangular_solve(lower, x, left_side=True, lower=True)


class _Whitened(NamedTuple):
    """p where q is the standard normal: mean `shift`, covariance `(I + E)(I + E)'`."""

    shift: Array  # [..., d]
    excess: Array  # E: [..., d, d] lower triangular, or its diagonal [..., d]
    log_scale: Array  # [..., d], the logarithm of the diagonal of I + E


def _whiten(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> _Whitened:
    difference, scale_difference = p.mean - q.mean, p[1] - q[1]
    if isinstance(p, Diagonal):
        shift, excess = difference / q.scale, scale_difference / q.scale
        diagonal, p_scale, q_scale = excess, p.scale, q.scale
    else:
        columns = jnp.concatenate([scale_difference, difference[..., None]], axis=-1)
        solved = _solve_lower(q.scale_tril, columns)
        shift, excess = solved[..., -1], jnp.tril(solved[..., :-1])
        diagonal, p_scale, q_scale = (
            jnp.diagonal(x, axis1=-2, axis2=-1) for x in (excess, p.scale_tril, q.scale_tril)
        )
    near = jnp.abs(diagonal) < 0.5  # else 1 + diagonal may have lost a small scale of p
    log_scale = jnp.where(
        near, jnp.log1p(jnp.where(near, diagonal, 0)), jnp.log(p_scale) - jnp.log(q_scale)
    )
    return _Whitened(shift, excess, log_scale)


def _split(factor: Array, like: Array) -> tuple[Array, ArrayLike]:
    """The diagonal of a lower factor, and the sum of squares below it (0 for a diagonal one)."""
    if factor.ndim == like.ndim:
        return factor, 0
    below = jnp.sum(jnp.tril(factor, -1) ** 2, axis=(-2, -1))
    return jnp.diagonal(factor, axis1=-2, axis2=-1), below


def _stretched_root(s: Array, c: Array) -> tuple[Array, Array, Array]:
    """The h with `(1 + c h)^2 = 1 + c s`, the root `1 + c h`, and whether they are real."""
    positive = ~(1 + c * s <= 0)
    s = jnp.where(positive, s, 0)
    root = jnp.sqrt(1 + c * s)
    return s / (1 + root), root, positive


@jax.custom_jvp
def _stretched_cholesky(b: Array, c: Array) -> tuple[Array, Array]:
    """The lower H with `(I + c H)(I + c H)' = I + c B`, and whether that is positive definite.

    H is smooth in c and relatively accurate: it is half of B, on the diagonal, at c = 0. Cholesky's
    algorithm, column by column, for the difference from the identity. Not definite: H = 0.
    """
    index = jnp.arange(b.shape[-1])

    def column(j, carry):
        h, definite = carry
        rest = b[..., j] - c * _matmul(h, h[..., j, :, None])[..., 0]
        # I + B is positive, so are its Schur complements: below -1 there is only rounding.
        h_jj, root, positive = _stretched_root(jnp.maximum(rest[..., j], -1), c)
        below = jnp.where(index > j, rest / root[..., None], 0)
        return h.at[..., j].set(jnp.where(index == j, h_jj[..., None], below)), definite & positive

    start = jnp.zeros_like(b), jnp.ones(b.shape[:-2], bool)
    h, definite = jax.lax.fori_loop(0, b.shape[-1], column, start)
    return jnp.where(definite[..., None, None], h, 0), definite


@_stretched_cholesky.defjvp
def _stretched_cholesky_jvp(primals, tangents):
    (b, c), (db, dc) = primals, tangents
    h, definite = _stretched_cholesky(b, c)
    root = _eye_like(h) + c * h
    change = _solve_lower(root, db - dc * _matmul(h, _transpose(h)))
    change = jnp.tril(_solve_lower(root, _transpose(change)))
    dh = _matmul(root, change - _eye_like(h) * change / 2)
    return (h, definite), (dh, np.zeros(definite.shape, jax.dtypes.float0))


# ------------------------------------------------------------------------------ Kullback-Leibler


def kl(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """Kullback-Leibler, `(tr Q^-1 P - d - log det Q^-1 P + |Lq^-1 (mu_p - mu_q)|^2) / 2`.

    With `M = I + E = Lq^-1 Lp` the first part is `sum_i (m_ii^2 - 1 - 2 log m_ii)` and the squares
    of M below its diagonal. With p a policy and q its reference this is the field's reverse KL.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf.

    >>> kl(Diagonal(jnp.zeros(3), jnp.ones(3)), Diagonal(jnp.full(3, 2.0), jnp.ones(3)))
    Array(6., dtype=float32)

    Reference: Kullback 1959, chapter 9.
    """
    return _kl(*_pair(p, q))


def _kl(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Array:
    shift, excess, log_scale = _whiten(p, q)
    _, below = _split(excess, log_scale)
    return (jnp.sum(numerics.exp_residual(2 * log_scale) + shift**2, axis=-1) + below) / 2


def reverse_kl(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """Reverse Kullback-Leibler, KL(q‖p).

    With p a policy and q its reference this is the field's forward KL.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf.

    >>> reverse_kl(Diagonal(jnp.zeros(1), jnp.ones(1)), Diagonal(jnp.ones(1), jnp.ones(1)))
    Array(0.5, dtype=float32)

    Reference: Kullback 1959, chapter 9.
    """
    p, q = _pair(p, q)
    return _kl(q, p)


def jeffreys(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """Jeffreys, `KL(p‖q) + KL(q‖p)`.

    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf. Symmetric.

    >>> jeffreys(Diagonal(jnp.zeros(1), jnp.ones(1)), Diagonal(jnp.full(1, 2.0), jnp.ones(1)))
    Array(4., dtype=float32)

    Reference: Jeffreys 1946.
    """
    p, q = _pair(p, q)
    return _kl(p, q) + _kl(q, p)


# ----------------------------------------------------------------------------- the power families


def _renyi_of_order(
    p: Gaussian | Diagonal, q: Gaussian | Diagonal, order: Array, c: Array
) -> Array:
    """Renyi of an order of at least 1/2, with `c = 1 - order`; inf where it does not exist.

    Where q is the standard normal and p has the covariance `I + B`, with H from `I + c B`:
    `order/2 |(I + c H)^-1 shift|^2 + (log det(I + c B)/c - log det(I + B))/2`. The second part is
    a difference of residuals `tr B - log det(I + B)` and the same of c B, over c.
    """
    shift, excess, log_scale = _whiten(p, q)
    if isinstance(p, Diagonal):
        factor, root, positive = _stretched_root(excess * (2 + excess), c)
        definite, shift = jnp.all(positive, axis=-1), shift / root
    else:
        b = excess + _transpose(excess) + _matmul(excess, _transpose(excess))
        factor, definite = _stretched_cholesky(b, c)
        shift = _solve_lower(_eye_like(b) + c * factor, shift[..., None])[..., 0]
    (_, below), (stretched, stretched_below) = (_split(x, log_scale) for x in (excess, factor))
    x, w = 2 * log_scale, 2 * numerics.scaled_log1p(stretched, c)  # log dets of I + B and I + c B
    residual = jnp.sum(numerics.exp_residual(x), axis=-1) + below
    close = residual - c * (jnp.sum(w * (w * numerics.phi_2(c * w)), axis=-1) + stretched_below)
    # Far apart the residuals are traces that cancel: the logarithms alone are better.
    is_close = residual <= jnp.sum(jnp.abs(w) + jnp.abs(x), axis=-1)
    spread = jnp.where(is_close, close, jnp.sum(w - x, axis=-1))
    value = (order * jnp.sum(shift**2, axis=-1) + spread) / 2
    return jnp.where(definite, value, jnp.inf)


def _renyi_from_half(
    p: Gaussian | Diagonal, q: Gaussian | Diagonal, alpha: Array
) -> tuple[Array, Array, Array]:
    """`(D, order, c)` of D_alpha(p‖q), or of D_{1 - alpha}(q‖p) for alpha < 1/2.

    Skew symmetry, `(1 - a) D_a(p‖q) = a D_{1-a}(q‖p)`, leaves orders that do not cancel.
    """
    swapped = alpha < 0.5
    order, c = jnp.where(swapped, 1 - alpha, alpha), jnp.where(swapped, alpha, 1 - alpha)
    first = jax.tree.map(lambda x, y: jnp.where(swapped, y, x), p, q)
    second = jax.tree.map(lambda x, y: jnp.where(swapped, x, y), p, q)
    return _renyi_of_order(first, second, order, c), order, c


def _with_order(
    of: Callable[..., Array], name: str, p: Gaussian | Diagonal, q: Gaussian | Diagonal, x: Array
) -> Array:
    """`of(p, q, order)` for an order that is a number or one for each pair of the batch."""
    p, q = _pair(p, q)
    x = jnp.asarray(x, p.mean.dtype)
    checks.per_row(name, x, p.mean)
    for _ in range(x.ndim):
        of = jax.vmap(of)
    return of(p, q, x)


def renyi(
    p: Gaussian | Diagonal, q: Gaussian | Diagonal, *, alpha: PerSequence | Scalar = 2.0
) -> Reduced:
    """Renyi of order a > 0, `log(int p^a q^(1-a)) / (a - 1)`.

    `a/2 |S^-1/2 (mu_p - mu_q)|^2 - log(det S / (det P^(1-a) det Q^a)) / (2 (a - 1))` with
    `S = a Q + (1 - a) P`; KL(p‖q) at a = 1. Infinite where S is not positive definite, which
    happens for a > 1 only.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf.

    >>> renyi(Diagonal(jnp.zeros(1), jnp.ones(1)), Diagonal(jnp.ones(1), jnp.ones(1)), alpha=3.0)
    Array(1.5, dtype=float32)
    >>> renyi(Diagonal(jnp.zeros(1), jnp.full(1, 2.0)), Diagonal(jnp.zeros(1), jnp.ones(1)))
    Array(inf, dtype=float32)

    Reference: Gil, Alajaji and Linder 2013, table 2.
    """
    return _with_order(_renyi, "alpha", p, q, checks.positive("alpha", alpha))


def _renyi(p: Gaussian | Diagonal, q: Gaussian | Diagonal, alpha: Array) -> Array:
    value, *_ = _renyi_from_half(p, q, alpha)
    swapped = alpha < 0.5
    return jnp.where(swapped, alpha / jnp.where(swapped, 1 - alpha, 1), 1) * value


def alpha(
    p: Gaussian | Diagonal, q: Gaussian | Diagonal, *, alpha: PerSequence | Scalar = 0.5
) -> Reduced:
    """Cressie-Read alpha divergence, `(int p^a q^(1-a) - 1) / (a (a - 1))`, any real a.

    `expm1((a - 1) D) / (a (a - 1))` of the Renyi divergence D. KL(p‖q) at a = 1, KL(q‖p) at a = 0.
    Infinite where `a Q + (1 - a) P` is not positive definite, outside of [0, 1] only.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf, or 1/(a (1 - a)) for 0 < a < 1.

    >>> p = Diagonal(jnp.zeros(1), jnp.ones(1))
    >>> round(float(alpha(p, Diagonal(jnp.full(1, 9.0), jnp.ones(1)), alpha=0.5)), 4)
    3.9998

    Reference: Cressie and Read 1984.
    """
    alpha = checks.in_range("alpha", alpha, -jnp.inf, jnp.inf, "a finite number")
    return _with_order(_alpha, "alpha", p, q, alpha)


def _alpha(p: Gaussian | Diagonal, q: Gaussian | Diagonal, alpha: Array) -> Array:
    value, order, c = _renyi_from_half(p, q, alpha)
    infinite = (value == jnp.inf) | (jnp.expm1(-c * value) == jnp.inf)
    value = jnp.where(infinite, 0, value)
    return jnp.where(infinite, jnp.inf, value * numerics.phi_1(-c * value) / order)


def tsallis(
    p: Gaussian | Diagonal, q: Gaussian | Diagonal, *, index: PerSequence | Scalar = 2.0
) -> Reduced:
    """Tsallis relative entropy, `(int p^k q^(1-k) - 1) / (k - 1)` with index k > 0.

    KL(p‖q) at index 1, Pearson's chi2 at 2. Infinite where `k Q + (1 - k) P` is not positive
    definite, for an index above 1 only.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf, or to 1/(1 - index) below 1.

    >>> p = Diagonal(jnp.zeros(1), jnp.ones(1))
    >>> tsallis(p, Diagonal(jnp.ones(1), jnp.ones(1)), index=1.0)
    Array(0.5, dtype=float32)

    Reference: Tsallis 1998.
    """
    index = checks.positive("index", index)
    return _with_order(lambda p, q, k: k * _alpha(p, q, k), "index", p, q, index)


def pearson_chi2(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """Pearson's chi2, `int (p - q)^2 / q`: twice the alpha divergence at 2.

    Infinite unless `2 Q - P` is positive definite.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf.

    >>> p = Diagonal(jnp.zeros(1), jnp.ones(1))
    >>> round(float(pearson_chi2(p, Diagonal(jnp.ones(1), jnp.ones(1)))), 4)  # e - 1
    1.7183

    Reference: Pearson 1900; Nielsen and Nock 2014 for Gaussians.
    """
    return 2 * alpha(p, q, alpha=2.0)


def neyman_chi2(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """Neyman's chi2, `int (p - q)^2 / p`, which is Pearson's chi2(q‖p).

    Infinite unless `2 P - Q` is positive definite.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf.

    >>> neyman_chi2(Diagonal(jnp.zeros(1), jnp.ones(1)), Diagonal(jnp.zeros(1), jnp.full(1, 2.0)))
    Array(inf, dtype=float32)

    Reference: Neyman 1949; Nielsen and Nock 2014 for Gaussians.
    """
    return 2 * alpha(p, q, alpha=-1.0)


def squared_hellinger(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """Squared Hellinger, `1 - int sqrt(p q)`: a quarter of the alpha divergence at 1/2.

    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to 1. Symmetric.

    >>> p = Diagonal(jnp.zeros(1), jnp.ones(1))
    >>> round(float(squared_hellinger(p, Diagonal(jnp.full(1, 2.0), jnp.ones(1)))), 4)
    0.3935

    Reference: Hellinger 1909; Pardo 2006 for Gaussians.
    """
    return alpha(p, q, alpha=0.5) / 4


def bhattacharyya(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """Bhattacharyya distance, `-log int sqrt(p q)`: half the Renyi divergence of order 1/2.

    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf. Symmetric.

    >>> bhattacharyya(Diagonal(jnp.zeros(1), jnp.ones(1)), Diagonal(jnp.full(1, 2.0), jnp.ones(1)))
    Array(0.5, dtype=float32)

    Reference: Bhattacharyya 1943.
    """
    return renyi(p, q, alpha=0.5) / 2


def cauchy_schwarz(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """Cauchy-Schwarz divergence, `-log((int p q)^2 / (int p^2 int q^2))`.

    The densities proportional to p^2 and q^2 have half the covariances, and the ratio is the square
    of the integral of `sqrt(p2 q2)`: the Renyi divergence of order 1/2 between those. To halve both
    covariances is to move the means apart by `sqrt 2`.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf. Symmetric.

    >>> p = Diagonal(jnp.zeros(1), jnp.ones(1))
    >>> round(float(cauchy_schwarz(p, Diagonal(jnp.full(1, 2.0), jnp.ones(1)))), 6)
    2.0

    Reference: Jenssen, Principe, Erdogmus and Eltoft 2006; Kampa, Hasanbelliu and Principe 2011.
    """
    p, q = _pair(p, q)
    squared_p = p._replace(mean=2**0.5 * (p.mean - q.mean))
    squared_q = q._replace(mean=jnp.zeros_like(q.mean))
    return renyi(squared_p, squared_q, alpha=0.5)


# -------------------------------------------------------------------------------------- Wasserstein


@jax.custom_jvp
def _rotation_excess(lp: Array, lq: Array) -> Array:
    """`U - I` with U the orthogonal polar factor of `N = Lq' Lp = U P`, the nearest Lq U to Lp.

    The factor from a singular value decomposition has an absolute error. Near the identity split
    `U - I = A + B` into its skew and its symmetric part: B, of second order, is
    `-(U - I)(U - I)'/2` since U is orthogonal, and `A P + P A = N - N' - (B P - P B)` since P is
    symmetric.
    """
    away = _matmul(_transpose(lq), lp - lq)
    left, s, right = jnp.linalg.svd(_matmul(_transpose(lq), lp))
    rough = _matmul(left, right) - _eye_like(lp)
    b = -_matmul(rough, _transpose(rough)) / 2
    p = _matmul(_transpose(right) * s[..., None, :], right)
    skew = away - _transpose(away) - _matmul(b, p) + _matmul(p, b)
    accurate = _solve_lyapunov(_transpose(right), s, skew) + b

    def largest(x):
        return jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)

    near = (largest(rough) < 0.1) & (largest(accurate - rough) < 1e-3)
    return jnp.where(largest(away) == 0, 0, jnp.where(near, accurate, rough))


def _solve_lyapunov(vectors: Array, values: Array, skew: Array) -> Array:
    """The A with `A P + P A = skew` of a P given by eigenvectors and values >= 0."""
    total = values[..., :, None] + values[..., None, :]
    rotated = _matmul(_matmul(_transpose(vectors), skew), vectors)
    rotated = jnp.where(total > 0, rotated / jnp.where(total > 0, total, 1), 0)
    return _matmul(_matmul(vectors, rotated), _transpose(vectors))


@_rotation_excess.defjvp
def _rotation_excess_jvp(primals, tangents):
    """`dU = U A` with the skew `A P + P A = U' dN - dN' U`."""
    (lp, lq), (dlp, dlq) = primals, tangents
    excess = _rotation_excess(lp, lq)
    u = excess + _eye_like(excess)
    _, s, right = jnp.linalg.svd(_matmul(_transpose(lq), lp))
    change = _matmul(_transpose(dlq), lp) + _matmul(_transpose(lq), dlp)
    change = _matmul(_transpose(u), change)
    skew = _solve_lyapunov(_transpose(right), s, change - _transpose(change))
    return excess, _matmul(u, skew)


@jax.custom_jvp
def _squared_bures(lp: Array, lq: Array) -> Array:
    """`min_U |Lp - Lq U|^2` over orthogonal U: the squared Bures distance of the covariances."""
    return jnp.sum((lp - lq - _matmul(lq, _rotation_excess(lp, lq))) ** 2, axis=(-2, -1))


@_squared_bures.defjvp
def _squared_bures_jvp(primals, tangents):
    """At the minimum U counts as fixed, by the envelope theorem."""
    (lp, lq), (dlp, dlq) = primals, tangents
    excess = _rotation_excess(lp, lq)
    residual = lp - lq - _matmul(lq, excess)
    change = dlp - dlq - _matmul(dlq, excess)
    return jnp.sum(residual**2, axis=(-2, -1)), 2 * jnp.sum(residual * change, axis=(-2, -1))


def squared_wasserstein_2(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """The square of the Wasserstein distance of order 2, `|mu_p - mu_q|^2 + min_U |Lp - Lq U|^2`.

    The minimum over orthogonal U is `tr(P + Q - 2 (Q^1/2 P Q^1/2)^1/2)`, as a sum of squares.
    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf. Symmetric.

    >>> p = Diagonal(jnp.zeros(2), jnp.ones(2))
    >>> squared_wasserstein_2(p, Diagonal(jnp.zeros(2), jnp.full(2, 3.0)))
    Array(8., dtype=float32)

    Reference: Dowson and Landau 1982; Bhatia, Jain and Lim 2019 for the minimum.
    """
    p, q = _pair(p, q)
    means = jnp.sum((p.mean - q.mean) ** 2, axis=-1)
    if isinstance(p, Diagonal):
        return means + jnp.sum((p.scale - q.scale) ** 2, axis=-1)
    return means + _squared_bures(p.scale_tril, q.scale_tril)


def wasserstein_2(p: Gaussian | Diagonal, q: Gaussian | Diagonal) -> Reduced:
    """The Wasserstein distance of order 2 itself, the root of `squared_wasserstein_2`.

    Shapes: batches `[...]` of p and q to `[...]`. Range: 0 to inf. A metric. It has a kink at
    p = q, where its gradient is taken to be 0.

    >>> wasserstein_2(Diagonal(jnp.zeros(1), jnp.ones(1)), Diagonal(jnp.full(1, 2.0), jnp.ones(1)))
    Array(2., dtype=float32)

    Reference: Dowson and Landau 1982.
    """
    square = squared_wasserstein_2(p, q)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
