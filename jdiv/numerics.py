"""Floating-point building blocks: the only place that deals with rounding, overflow and zeros.

Probabilities are kept as logarithms and `-inf` is an exact zero. Two ideas carry the accuracy:

* the log-ratio `t = log p/q` is computed from the difference of the logits, which is exact for
  nearly equal logits, and never from two rounded log-probabilities (`log_ratio`);
* differences of exponentials are divided differences, which do not cancel (`phi_1`, `phi_2`,
  `exp_difference`, `exp_difference_2`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
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
    log_p = log_softmax(*primals)
    return log_p, _log_softmax_tangent(log_p, *primals, *tangents)


def _log_softmax_tangent(log_p: Array, logits: Array, dlogits: Array) -> Array:
    """What log p changes by when logits do: relative to the mode, so that nothing cancels there."""
    is_mode = logits == jnp.max(logits, axis=-1, keepdims=True)
    modes = jnp.sum(jnp.where(is_mode, 1, jnp.zeros_like(logits)), axis=-1, keepdims=True)
    at_mode = jnp.sum(jnp.where(is_mode, dlogits, 0), axis=-1, keepdims=True)
    relative = dlogits - at_mode / jnp.maximum(modes, 1)
    return relative - jnp.sum(jnp.exp(log_p) * relative, axis=-1, keepdims=True)


def _exact_difference(a: Array, b: Array) -> tuple[Array, Array]:
    """`a - b` as a rounded number and what was rounded away (Knuth's sum of two numbers)."""
    difference = a - b
    back = difference - a
    return difference, (a - (difference - back)) - (b + back)


class Normalizers(NamedTuple):
    """What turns two `[..., n]` arrays of logits into probabilities, `[..., 1]` each.

    Fields:
        p_max: The largest logit of p.
        q_max: The largest logit of q.
        p_log_sum: `log sum exp(p_logits - p_max)`.
        q_log_sum: The same of q.
        log_ratio: `q_log_sum - p_log_sum`, without cancellation.
    """

    p_max: Array
    q_max: Array
    p_log_sum: Array
    q_log_sum: Array
    log_ratio: Array


def log_normalizers(p_logits: Array, q_logits: Array) -> Normalizers:
    """The normalizers of two `[..., n]` arrays of logits, as constants.

    With weights a = exp(p_logits - max), b = exp(q_logits - max) and d = log a/b, the ratio
    `log(sum b / sum a)` is `log1p(sum a expm1(-d) / sum a)`: no rounded numbers are subtracted.
    """
    p_logits, q_logits = jax.lax.stop_gradient((p_logits, q_logits))
    p_max, q_max = (jnp.max(x, axis=-1, keepdims=True) for x in (p_logits, q_logits))
    a, b = jnp.exp(p_logits - p_max), jnp.exp(q_logits - q_max)
    a_sum, b_sum = (jnp.sum(x, axis=-1, keepdims=True) for x in (a, b))
    plain = jnp.log(b_sum) - jnp.log(a_sum)
    d = _difference_below(p_logits, q_logits, p_max, q_max)
    close = jnp.abs(d) < 1
    excess = jnp.where(close, a * _expm1_near(jnp.where(close, -d, 0)), b - a)
    excess = jnp.sum(excess, axis=-1, keepdims=True)
    small = jnp.abs(excess) < a_sum / 2
    ratio = jnp.where(small, jnp.log1p(jnp.where(small, excess / a_sum, 0)), plain)
    return Normalizers(p_max, q_max, jnp.log(a_sum), jnp.log(b_sum), ratio)


def _difference_below(p_logits: Array, q_logits: Array, p_max: Array, q_max: Array) -> Array:
    """`(p_logits - p_max) - (q_logits - q_max)`, rounded once however large the logits are."""
    offset, offset_lost = _exact_difference(p_max, q_max)
    difference, lost = _exact_difference(p_logits, q_logits)
    exact = (difference - offset) + (lost - offset_lost)
    # Not finite at zeros, and for logits whose difference overflows.
    return jnp.where(jnp.isfinite(exact), exact, (p_logits - p_max) - (q_logits - q_max))


@jax.custom_jvp
def normalized(
    p_logits: Array, q_logits: Array, normalizers: Normalizers
) -> tuple[Array, Array, Array]:
    """`(log p, log q, log p/q)` of logits with their normalizers; the last is 0 outside both.

    The derivatives are those of functions of the logits alone.
    """
    log_p = (p_logits - normalizers.p_max) - normalizers.p_log_sum
    log_q = (q_logits - normalizers.q_max) - normalizers.q_log_sum
    both = (log_p != -jnp.inf) & (log_q != -jnp.inf)
    t = (
        _difference_below(p_logits, q_logits, normalizers.p_max, normalizers.q_max)
        + normalizers.log_ratio
    )
    return log_p, log_q, jnp.where(both, t, 0)


def _normalized_jvp(primals, tangents):
    *logits, _ = primals
    *logs, t = normalized(*primals)
    dlogs = [
        jnp.zeros_like(t)
        if isinstance(dlogits, SymbolicZero)
        else _log_softmax_tangent(log_p, logits, dlogits)
        for log_p, logits, dlogits in zip(logs, logits, tangents[:2], strict=True)
    ]
    both = (logs[0] != -jnp.inf) & (logs[1] != -jnp.inf)
    return (*logs, t), (*dlogs, jnp.where(both, dlogs[0] - dlogs[1], 0))


normalized.defjvp(_normalized_jvp, symbolic_zeros=True)


def log_ratio(p_logits: Array, q_logits: Array) -> tuple[Array, Array, Array]:
    """`(log p, log q, log p/q)` of two `[..., n]` arrays of logits; the last is 0 outside both.

    The ratio is the difference of the logits below their maxima, which depends on no offset and is
    exact for close ones, and the logarithm of the ratio of their normalizers: no rounded
    log-probabilities are subtracted. So log p/q keeps its relative accuracy however small it is,
    and is exactly 0 for identical logits.
    """
    return normalized(p_logits, q_logits, log_normalizers(p_logits, q_logits))


@jax.custom_jvp
def mixture_over(t: Array, weight: ArrayLike, other: ArrayLike) -> tuple[Array, Array]:
    """`(log m/p, log m/q)` of `m = weight p + other q`; `t = log p/q`.

    The weights sum to 1; both are given, for a small one is lost in the difference of the other
    from 1. m is `log1p(w expm1(s))` from the one of larger weight, w the smaller weight and s the
    other's log-ratio to it; from that other one it is s less, until m is nothing but that.
    """
    p_is_larger, small = jnp.asarray(weight > other), jnp.minimum(weight, other)
    log_small = jnp.log(small)
    s = jnp.where(p_is_larger, -t, t)
    far = s > largest_exponent(t)
    near = jnp.abs(s) < 1
    excess = jnp.where(near, _expm1_near(jnp.where(near, s, 0)), jnp.exp(jnp.where(far, 0, s)) - 1)
    over_larger = jnp.log1p(small * excess)
    over_larger = jnp.where(far, s + log_small, over_larger)
    alone = s > -math.log(jnp.finfo(t.dtype).eps) - log_small
    over_smaller = jnp.where(alone, log_small, over_larger - s)
    return (
        jnp.where(p_is_larger, over_larger, over_smaller),
        jnp.where(p_is_larger, over_smaller, over_larger),
    )


@mixture_over.defjvp
def _mixture_over_jvp(primals, tangents):
    """`dm = w p dt` next to q and `-(1 - w) q dt` next to p, and `(p - q) dw` next to both."""
    (t, weight, other), (dt, dweight, _) = primals, tangents
    over_p, over_q = mixture_over(*primals)
    by_weight = probability_difference(-over_p, -over_q, t) * dweight
    return (over_p, over_q), (
        by_weight - other * jnp.exp(-over_q) * dt,
        by_weight + weight * jnp.exp(-over_p) * dt,
    )


def largest_exponent(x: Array) -> float:
    """The largest x with a finite e^x, less 1."""
    return math.log(float(jnp.finfo(x.dtype).max)) - 1


def sampled_log_ratio(log_p: Array, log_q: Array) -> Array:
    """`log p/q` of log-probabilities at samples; 0 where both are `-inf`."""
    neither = (log_p == -jnp.inf) & (log_q == -jnp.inf)
    return jnp.where(neither, 0, log_p) - jnp.where(neither, 0, log_q)


def probability_difference(log_p: Array, log_q: Array, t: Array) -> Array:
    """`p - q`, relatively accurate also where p and q are nearly equal; `t = log p/q`."""
    close = jnp.abs(t) < 1
    near = jnp.exp(log_q) * _expm1_near(jnp.where(close, t, 0))
    return jnp.where(close, near, jnp.exp(log_p) - jnp.exp(log_q))


def weigh(log_mass: Array, cost: ArrayLike) -> Array:
    """`mass * cost` for a positive mass that may have underflowed, and a cost that may be inf."""
    cost = jnp.asarray(cost, log_mass.dtype)
    finite = jnp.isfinite(cost)
    return jnp.where(finite, jnp.exp(log_mass) * jnp.where(finite, cost, 0), cost)


def weigh_all(log_mass: Array, cost: ArrayLike) -> Array:
    """`weigh` of masses that may be exactly 0: those cost nothing, whatever the cost is."""
    return jnp.where(log_mass == -jnp.inf, 0, weigh(log_mass, cost))


# --------------------------------------------------------- differences of exponentials without loss


def _terms(dtype, ends: float = 1.0) -> int:
    """Taylor terms of e^x that matter for |x| <= 1, or 1/2."""
    single = jnp.finfo(dtype).eps > 1e-10
    return (10 if single else 19) if ends == 1.0 else (8 if single else 14)


def _phi_1_near(x: Array) -> Array:
    """`(e^x - 1) / x` for |x| <= 1, as a series: a fraction of the time of `expm1` on a CPU."""
    series = jnp.zeros_like(x)
    for k in reversed(range(_terms(x.dtype))):
        series = series * x + 1 / math.factorial(k + 1)
    return series


def _expm1_near(x: Array) -> Array:
    """`e^x - 1` for |x| <= 1."""
    return x * _phi_1_near(x)


def _phi_2_near(x: Array) -> Array:
    """`(e^x - 1 - x) / x^2` for |x| <= 1/2, as a series."""
    series = jnp.zeros_like(x)
    for k in reversed(range(_terms(x.dtype, 0.5))):
        series = series * x + 1 / math.factorial(k + 2)
    return series


def phi_2(x: Array) -> Array:
    """`(e^x - 1 - x) / x^2`, with value 1/2 at 0."""
    near = jnp.abs(x) < 0.5
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    # expm1(x)/x - 1 first: x^2 may overflow where the quotient does not.
    return jnp.where(near, _phi_2_near(small), (jnp.expm1(large) / large - 1) / large)


@jax.custom_jvp
def phi_1(x: Array) -> Array:
    """`(e^x - 1) / x`, with value 1 at 0."""
    near = jnp.abs(x) < 1
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    return jnp.where(near, _phi_1_near(small), (jnp.exp(large) - 1) / large)


@phi_1.defjvp
def _phi_1_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    value = phi_1(x)
    return value, (value - phi_2(x)) * dx


def exp_residual(x: Array) -> Array:
    """`e^x - 1 - x >= 0`, relatively accurate near 0."""
    near = jnp.abs(x) < 0.5
    return jnp.where(near, exp_residual_near(jnp.where(near, x, 0)), jnp.expm1(x) - x)


def exp_residual_near(x: Array) -> Array:
    """`e^x - 1 - x` for |x| <= 1/2."""
    return x * (x * _phi_2_near(x))


@jax.custom_jvp
def exp_residual_root(r: Array) -> Array:
    """The `x <= 0` with `e^x - 1 - x = r`, for `r >= 0`."""
    positive = ~(r <= 0)  # NaN stays NaN
    safe = jnp.where(positive, r, 1)

    # Starts within 2 %: the series in sqrt(2 r), or e^x from x without it. Each step squares that.
    s = jnp.sqrt(2 * safe)
    x = jnp.where(s < 1.5, -s * (1 + s * (1 / 6 + s / 36)), jnp.exp(-1 - safe) - 1 - safe)
    newton = lambda _, x: x - (exp_residual(x) - safe) / jnp.expm1(x)
    return jnp.where(positive, jax.lax.fori_loop(0, _steps(x.dtype), newton, x), 0)


def _steps(dtype) -> int:
    """Newton's steps from a start within 5 %, where each halves the square of the error."""
    return 3 if jnp.finfo(dtype).eps > 1e-10 else 4


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
    c = jnp.asarray(c, jnp.result_type(x))
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

    # Starts within .05: the series at 1, and a step from x or from log x beyond it.
    log_x, from_1 = jnp.log(jnp.maximum(x, 3)), x - 1
    low = x - jax.nn.sigmoid(jnp.minimum(x, -1))
    y = jnp.where(x > 3, log_x - log_x / (1 + x), from_1 / 2 - from_1 * (from_1 / 16))
    newton = lambda _, y: y - (y + jnp.exp(y) - x) / (1 + jnp.exp(y))
    return jax.lax.fori_loop(0, _steps(y.dtype), newton, jnp.where(x < -1, low, y))


@log_wright_omega.defjvp
def _log_wright_omega_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = log_wright_omega(x)
    return y, dx / (1 + jnp.exp(y))


# ------------------------------------------------------------------------------------ large arrays

BLOCK = 2**18
"""Numbers in a block of rows: with what is computed from it, it stays in a processor's cache."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def by_rows(f: Callable, *args: Any) -> Any:
    """`f(*args)` of arrays `[..., n]` or `[..., 1]` and numbers, to arrays `[..., 1]`.

    Each row of the result is a function of those of the arguments. On a CPU many rows are taken a
    block at a time, for memory that is not in its cache costs more than all the arithmetic. The
    derivatives are those of f itself, of all rows at once.
    """
    leaves, tree = jax.tree.flatten(args)
    *batch, n = max((x.shape for x in leaves), key=lambda shape: (math.prod(shape), len(shape)))
    rows = math.prod(batch)
    size = max(BLOCK // n, 4)
    if rows <= 2 * size:
        return f(*args)

    def in_blocks(*leaves):
        by_row = [x.reshape(rows, x.shape[-1]) if x.ndim else None for x in leaves]

        def of_row(row):
            whole = (x if part is None else part for x, part in zip(leaves, row, strict=True))
            return f(*tree.unflatten(whole))

        found = jax.lax.map(of_row, by_row, batch_size=size)
        return jax.tree.map(lambda x: x.reshape(*batch, 1), found)

    whole = lambda *leaves: f(*tree.unflatten(leaves))
    return jax.lax.platform_dependent(*leaves, cpu=in_blocks, default=whole)


@by_rows.defjvp
def _by_rows_jvp(f, primals, tangents):
    return jax.jvp(f, primals, tangents)
