"""Floating-point building blocks: the only place that deals with rounding, overflow and zeros.

Probabilities are kept as logarithms and `-inf` is an exact zero. Two ideas carry the accuracy:

* the log-ratio `t = log p/q` is computed from the difference of the logits, which is exact for
  nearly equal logits, and never from two rounded log-probabilities (`log_ratio`);
* differences of exponentials are divided differences, which do not cancel (`phi_1`, `phi_2`,
  `exp_difference`, `exp_difference_2`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# ------------------------------------------------------------------------------ log-probabilities


@jax.custom_jvp
def log_softmax(logits: Array) -> Array:
    """Log-probabilities of `[..., n]` logits.

    The derivative is taken relative to the mode: `1 - p_mode` is the sum of the other
    probabilities and not a difference, so gradients of 1e-30 come out right. A row without a
    finite entry is no distribution and gives NaN.
    """
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))


@log_softmax.defjvp
def _log_softmax_jvp(primals, tangents):
    (logits,), (dlogits,) = primals, tangents
    log_p = log_softmax(logits)
    is_mode = logits == jnp.max(logits, axis=-1, keepdims=True)
    modes = jnp.sum(jnp.where(is_mode, 1, jnp.zeros_like(logits)), axis=-1, keepdims=True)
    at_mode = jnp.sum(jnp.where(is_mode, dlogits, 0), axis=-1, keepdims=True)
    relative = dlogits - at_mode / jnp.maximum(modes, 1)
    return log_p, relative - jnp.sum(jnp.exp(log_p) * relative, axis=-1, keepdims=True)


def _exact_difference(a: Array, b: Array) -> tuple[Array, Array]:
    """`a - b` as a rounded number and what was rounded away (Knuth's sum of two numbers)."""
    difference = a - b
    back = difference + b
    lost = (a - back) + ((back - difference) - b)
    return difference, jnp.where(jnp.isfinite(lost), lost, 0)


def log_ratio(p_logits: Array, q_logits: Array) -> tuple[Array, Array, Array]:
    """`(log p, log q, log p/q)` of two `[..., n]` arrays of logits; the last is 0 outside both.

    With weights a = exp(p_logits - max), b = exp(q_logits - max) the ratio is `log a/b + k`. Here
    `d = log a/b` is a difference of logits below their maxima, to which their rounding is added, so
    that it depends on no offset and is exact for close ones; `k = log(sum b / sum a)` is
    `log1p(sum a expm1(-d) / sum a)`: no rounded log-probabilities are subtracted. So log p/q keeps
    its relative accuracy however small it is, and is exactly 0 for identical logits.
    """
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    both = (log_p != -jnp.inf) & (log_q != -jnp.inf)
    p_below, p_lost = _exact_difference(p_logits, jnp.max(p_logits, axis=-1, keepdims=True))
    q_below, q_lost = _exact_difference(q_logits, jnp.max(q_logits, axis=-1, keepdims=True))
    d, d_lost = _exact_difference(*(jnp.where(both, x, 0) for x in (p_below, q_below)))
    d += jnp.where(both, d_lost + (p_lost - q_lost), 0)
    a, b = jnp.exp(p_below), jnp.exp(q_below)
    close = both & (jnp.abs(d) < 1)
    excess = jnp.where(close, a * jnp.expm1(jnp.where(close, -d, 0)), b - a)
    a_sum, b_sum, excess = (jnp.sum(x, axis=-1, keepdims=True) for x in (a, b, excess))
    small = jnp.abs(excess) < a_sum / 2
    k = jnp.where(
        small, jnp.log1p(jnp.where(small, excess / a_sum, 0)), jnp.log(b_sum) - jnp.log(a_sum)
    )
    # The derivative is that of the plain difference; only the rounding error is taken out.
    plain = jnp.where(both, log_p - log_q, 0)
    t = jax.lax.stop_gradient(jnp.where(both, d + k, 0)) + (plain - jax.lax.stop_gradient(plain))
    return log_p, log_q, t


def _log_mixture_over_q(t: Array, weight: ArrayLike, other: ArrayLike) -> Array:
    """`log(weight e^t + other)`, the mixture's logarithm over q; the weights sum to 1.

    The sum itself where little of both is left, else what it has more than 1.
    """
    far, little = t > 60, (t < -0.7) & (jnp.asarray(weight) > 0.5)
    middle = jnp.log1p(weight * jnp.expm1(jnp.where(far | little, 0, t)))
    low = jnp.log(other + weight * jnp.exp(jnp.where(little, t, 0)))
    high = t + jnp.log(weight + other * jnp.exp(-jnp.where(far, t, 0)))
    return jnp.where(far, high, jnp.where(little, low, middle))


def log_mixture(
    log_p: Array, log_q: Array, t: Array, weight: ArrayLike, other: ArrayLike
) -> tuple[Array, Array, Array]:
    """`(log m, log p/m, log q/m)` of `m = weight p + other q`; `t = log p/q`.

    The weights sum to 1; both are given, for a small one is lost in the difference of the other
    from 1.
    """
    over_p, over_q = _log_mixture_over_q(-t, other, weight), _log_mixture_over_q(t, weight, other)
    return jnp.where(t > 0, log_p + over_p, log_q + over_q), -over_p, -over_q


def sampled_log_ratio(log_p: Array, log_q: Array) -> Array:
    """`log p/q` of log-probabilities at samples; 0 where both are `-inf`."""
    neither = (log_p == -jnp.inf) & (log_q == -jnp.inf)
    return jnp.where(neither, 0, log_p) - jnp.where(neither, 0, log_q)


def probability_difference(log_p: Array, log_q: Array, t: Array) -> Array:
    """`p - q`, relatively accurate also where p and q are nearly equal; `t = log p/q`."""
    close = jnp.abs(t) < 1
    return jnp.where(
        close, jnp.exp(log_q) * jnp.expm1(jnp.where(close, t, 0)), jnp.exp(log_p) - jnp.exp(log_q)
    )


def weigh(log_mass: Array, cost: ArrayLike) -> Array:
    """`mass * cost` for a positive mass that may have underflowed, and a cost that may be inf."""
    cost = jnp.asarray(cost, log_mass.dtype)
    finite = jnp.isfinite(cost)
    return jnp.where(finite, jnp.exp(log_mass) * jnp.where(finite, cost, 0), cost)


# --------------------------------------------------------- differences of exponentials without loss


def _terms(dtype) -> int:
    """Taylor terms of e^x that matter for |x| <= 1."""
    return 10 if jnp.finfo(dtype).eps > 1e-10 else 19


def phi_2(x: Array) -> Array:
    """`(e^x - 1 - x) / x^2`, with value 1/2 at 0."""
    near = jnp.abs(x) < 1
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    series = jnp.zeros_like(x)
    for k in reversed(range(_terms(x.dtype))):
        series = series * small + 1 / math.factorial(k + 2)
    # expm1(x)/x - 1 first: x^2 may overflow where the quotient does not.
    return jnp.where(near, series, (jnp.expm1(large) / large - 1) / large)


@jax.custom_jvp
def phi_1(x: Array) -> Array:
    """`(e^x - 1) / x`, with value 1 at 0."""
    zero = x == 0
    return jnp.where(zero, 1, jnp.expm1(x) / jnp.where(zero, 1, x))


@phi_1.defjvp
def _phi_1_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    value = phi_1(x)
    return value, (value - phi_2(x)) * dx


def exp_residual(x: Array) -> Array:
    """`e^x - 1 - x >= 0`, relatively accurate near 0."""
    return x * (x * phi_2(x))


@jax.custom_jvp
def exp_residual_root(r: Array) -> Array:
    """The `x <= 0` with `e^x - 1 - x = r`, for `r >= 0`."""
    positive = ~(r <= 0)  # NaN stays NaN
    safe = jnp.where(positive, r, 1)

    def newton(_, x):
        return x - (exp_residual(x) - safe) / jnp.expm1(x)

    # A convex function, and a start left of the root: Newton's method is monotone.
    x = jax.lax.fori_loop(0, 8, newton, -safe - jnp.sqrt(2 * safe))
    return jnp.where(positive, x, 0)


@exp_residual_root.defjvp
def _exp_residual_root_jvp(primals, tangents):
    (r,), (dr,) = primals, tangents
    x = exp_residual_root(r)
    return x, dr / jnp.expm1(x)


def exp_difference(a: Array, b: Array) -> Array:
    """First divided difference of exp, `(e^a - e^b) / (a - b)`; `e^a` where a = b."""
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    return jnp.where(high == jnp.inf, jnp.inf, jnp.exp(high) * phi_1(low - high))


def exp_difference_2(a: Array, b: Array, c: Array, times: ArrayLike = 1.0) -> Array:
    """Second divided difference of exp at three points: positive, symmetric, `e^a / 2` at a=b=c.

    `e^a/((a-b)(a-c)) + e^b/((b-a)(b-c)) + e^c/((c-a)(c-b))`, times a factor, with which it does
    not underflow on the way.
    """
    high = jnp.maximum(jnp.maximum(a, b), c)
    low = jnp.minimum(jnp.minimum(a, b), c)
    middle = jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))
    near = high - low < 1
    # e^high * sum_k h_k(a - high, b - high, c - high) / (k+2)!, h_k the complete homogeneous
    # polynomial; any constant would do for high, and as one it leaves the derivatives right.
    center = jax.lax.stop_gradient(high)
    x, y, z = (jnp.where(near, point - center, 0) for point in (a, b, c))
    of_x, of_xy, of_xyz = jnp.ones_like(x), jnp.ones_like(x), jnp.ones_like(x)
    series = jnp.full_like(x, 0.5)
    for k in range(1, _terms(x.dtype)):
        of_x = of_x * x
        of_xy = of_xy * y + of_x
        of_xyz = of_xyz * z + of_xy
        series = series + of_xyz / math.factorial(k + 2)
    spread = jnp.where(near, 1, high - low)
    upper = phi_1(jnp.where(near, 0, middle - high))
    lower = jnp.exp(jnp.where(near, 0, middle - high)) * phi_1(jnp.where(near, 0, low - middle))
    far = jnp.exp(high) * ((upper - lower) / spread * times)
    value = jnp.where(near, jnp.exp(center) * (series * times), far)
    return jnp.where(high == jnp.inf, jnp.inf, value)


def scaled_expm1(x: Array, c: ArrayLike) -> Array:
    """`expm1(c x) / c`, with its limit x at c = 0: the deformed logarithm of e^x."""
    return x * phi_1(c * x)


def scaled_log1p(x: Array, c: ArrayLike) -> Array:
    """`log1p(c x) / c`, with its limit x at c = 0; `-inf / c` where `c x <= -1`."""
    x, c = jnp.broadcast_arrays(x, jnp.asarray(c, jnp.result_type(x)))
    z = c * x
    tiny = jnp.abs(z) < 1e-3
    inside = ~(z <= -1)  # NaN stays NaN
    small, safe = jnp.where(tiny, z, 0), jnp.where(tiny | ~inside, 1, z)
    series = jnp.zeros_like(z)
    for k in reversed(range(1, 8)):
        series = series * small + (-1) ** (k + 1) / k
    usual = jnp.log1p(safe) / jnp.where(tiny, 1, c)
    # Constants beyond the domain: -inf / c would have NaN for its derivative by c.
    beyond = jnp.where(c > 0, -jnp.inf, jnp.inf)
    return jnp.where(tiny, x * series, jnp.where(inside, usual, beyond))


# ---------------------------------------------------------------------------------------- inverses


def log_expm1(x: Array) -> Array:
    """`log(e^x - 1)` for x > 0, the inverse of softplus; `-inf` at 0."""
    return x + jnp.log(-jnp.expm1(-x))


@jax.custom_jvp
def log_wright_omega(x: Array) -> Array:
    """The y with `y + e^y = x`, so that e^y is Lambert's W of e^x; no overflow for large x."""

    def newton(_, y):
        return y - (y + jnp.exp(y) - x) / (1 + jnp.exp(y))

    # A convex function, and a start right of the root: Newton's method is monotone.
    return jax.lax.fori_loop(0, 8, newton, jnp.where(x < 1, x, jnp.log(jnp.maximum(x, 1))))


@log_wright_omega.defjvp
def _log_wright_omega_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = log_wright_omega(x)
    return y, dx / (1 + jnp.exp(y))
