"""Exact divergences between categorical distributions given by logits.

`D(p, q)` means D(p‖q). Inputs are unnormalized log-probabilities of any leading batch shape with
the categories on `axis`; `-inf` is an exact zero and `where` leaves categories out. Half precision
is widened to float32 and the result is float32; float64 stays float64.

Values are never negative, exactly 0 for identical logits, relatively accurate however close p and
q are, and `inf` exactly where the divergence is infinite. The gradient is right wherever the value
is finite, zeros included. A row that `where` empties gives 0; a row of `-inf` alone gives NaN.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jdiv import checks, numerics
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator, checked_row
from jdiv.types import Categories, Logits, PerSequence, Reduced, Scalar

# ----------------------------------------------------------------- the f-divergences of the table


def _values(generator: Generator, log_p: Array, log_q: Array, t: Array) -> Array:
    """`q f(p/q)` of each category: at a zero of p it is q f(0), at a zero of q p f'(inf)."""
    p_zero, q_zero, pair = _without_zeros(log_p, log_q, t)
    cost = jnp.where(p_zero, generator.at_zero, generator.slope_at_infinity)
    at_zero = numerics.weigh(pair[0], cost.astype(t.dtype))
    value = jnp.where(p_zero ^ q_zero, at_zero, generator.perspective(*pair))
    return jnp.where(p_zero & q_zero, 0, value)


def _derivatives(generator: Generator, log_p: Array, log_q: Array, t: Array) -> tuple[Array, Array]:
    """`p f'(p/q)` by log p and `q f(p/q) - p f'(p/q)` by log q, of each category."""
    return _derivative(0, generator, log_p, log_q, t), _derivative(1, generator, log_p, log_q, t)


def _derivative(side: int, generator: Generator, log_p: Array, log_q: Array, t: Array) -> Array:
    """The one by log p (side 0) or by log q (side 1)."""
    p_zero, q_zero, pair = _without_zeros(log_p, log_q, t)
    zero, other_zero = (q_zero, p_zero) if side else (p_zero, q_zero)
    by_log, end = (
        (generator.perspective_q(*pair), generator.at_zero)
        if side
        else (generator.perspective_p(*pair), generator.slope_at_infinity)
    )
    by_log = jnp.where(other_zero, numerics.weigh(pair[side], end), by_log)
    return jnp.where(zero, 0, by_log)


def _without_zeros(log_p: Array, log_q: Array, t: Array) -> tuple[Array, Array, list[Array]]:
    """Where p and q are zero, and the three with the other's logarithm there: twice the same mass.

    So its exponential is the one that the row takes, and no further one.
    """
    p_zero, q_zero = log_p == -jnp.inf, log_q == -jnp.inf
    neither = p_zero & q_zero
    log_p, log_q = jnp.where(p_zero, log_q, log_p), jnp.where(q_zero, log_p, log_q)
    return p_zero, q_zero, [jnp.where(neither, 0, log_p), jnp.where(neither, 0, log_q), t]


def _differentiated(values: Callable[..., Array], derivatives: Callable[..., tuple]) -> Callable:
    """`values(generator, log_p, log_q, t)` with these derivatives by log p and log q.

    `t` is log p - log q and no third input; parameters of the row are differentiated as they come.
    """

    def rule(primals, tangents):
        generator, log_p, log_q, t = primals
        dgenerator, *dlogs, _ = tangents
        dvalue = jnp.zeros_like(t)
        for x, by_log, dlog in zip((log_p, log_q), derivatives(*primals), dlogs, strict=True):
            if not isinstance(dlog, SymbolicZero):
                dvalue += by_log * jnp.where(x == -jnp.inf, 0, dlog)
        if not all(isinstance(x, SymbolicZero) for x in jax.tree.leaves(dgenerator)):
            of_parameters = lambda g: values(g, log_p, log_q, t)
            dvalue += _by_parameters(of_parameters, generator, dgenerator)
        return differentiated(*primals), dvalue

    differentiated = jax.custom_jvp(values)
    differentiated.defjvp(rule, symbolic_zeros=True)
    return differentiated


def _by_parameters(of_parameters: Callable, generator: Generator, dgenerator: Generator) -> Array:
    """The derivative along tangents of the row's parameters, some of which are no arrays."""
    dgenerator = jax.tree.map(
        lambda x, dx: jnp.zeros_like(x) if isinstance(dx, SymbolicZero) else dx,
        generator,
        dgenerator,
    )
    return jax.jvp(of_parameters, (generator,), (dgenerator,))[1]


terms = _differentiated(_values, _derivatives)


class _Mean(NamedTuple):
    """The mean slope of a side, `[..., 1]` each: of its top category, and what the rest adds.

    The top has more than half of the mass; without one its slope counts as 0. The gradient there
    is minus the rest times p, and not a difference that rounds to 0 where p is nearly 1.
    """

    top: Array
    rest: Array


class _Sums(NamedTuple):
    """Sums over each row of categories, `[..., 1]`: what values and gradients are made of."""

    value: Array
    normalizers: numerics.Normalizers
    distant: Array | None
    means: tuple[_Mean | None, _Mean | None]


def _slopes(
    side: int, generator: Generator, p_logits: Array, q_logits: Array, sums: _Sums
) -> tuple[Array, Array]:
    """Probabilities of a side, and the derivatives of the sum by their logarithms.

    These are up to multiples of the probabilities, which normalized ones do not feel. Where the
    divergence is more than half of its largest value `f(0) + f'(inf)`, that end is taken out: else
    little is left of a gradient between distant pairs.
    """
    logs = numerics.normalized(p_logits, q_logits, sums.normalizers)
    by_log = _derivative(side, generator, *logs)
    p_zero, q_zero, pair = _without_zeros(*logs)
    if sums.distant is not None:
        rest = (generator.rest_p, generator.rest_q)[side](*pair)
        by_log = jnp.where(sums.distant, jnp.where(p_zero | q_zero, 0, rest), by_log)
    return jnp.where((p_zero, q_zero)[side], 0, jnp.exp(pair[side])), by_log


def _mean_slope(probabilities: Array, by_log: Array) -> _Mean:
    """The sum of the derivatives, the top category's apart."""
    is_top = probabilities > 0.5
    slope = jnp.where(is_top, by_log / jnp.where(is_top, probabilities, 1), 0)
    top = jnp.sum(slope, axis=-1, keepdims=True)
    rest = jnp.where(is_top, 0, by_log - probabilities * top)
    return _Mean(top, jnp.sum(rest, axis=-1, keepdims=True))


def _by_logits(probabilities: Array, by_log: Array, mean: _Mean) -> Array:
    """`p (slope - mean slope)`: derivatives by logits from those by log-probabilities."""
    is_top = probabilities > 0.5
    others = by_log - probabilities * (mean.top + mean.rest)
    return jnp.where(is_top, -probabilities * mean.rest, others)


def _sums(sides: tuple[int, ...], generator: Generator, p_logits: Array, q_logits: Array) -> _Sums:
    """Values, normalizers and mean slopes of the sides that are asked for."""
    dtype = checks.wide(p_logits.dtype)
    p_logits, q_logits = p_logits.astype(dtype), q_logits.astype(dtype)
    normalizers = numerics.log_normalizers(p_logits, q_logits)
    values = terms(generator, *numerics.normalized(p_logits, q_logits, normalizers))
    value = jnp.sum(values, axis=-1, keepdims=True)
    largest = generator.at_zero + generator.slope_at_infinity
    distant = None
    if isinstance(largest, jax.core.Tracer) or np.any(np.isfinite(largest)):
        largest = jnp.asarray(largest, dtype)
        distant = jnp.isfinite(largest) & (value > largest / 2)
    sums = _Sums(value, normalizers, distant, (None, None))
    means = [None, None]
    for side in sides:
        means[side] = _mean_slope(*_slopes(side, generator, p_logits, q_logits, sums))
    return sums._replace(means=tuple(means))


@jax.custom_jvp
def _divergence(generator: Generator, p_logits: Array, q_logits: Array) -> Array:
    """`sum q f(p/q)` of `[..., n]` logits, whose parameters broadcast against them."""
    sums = numerics.by_rows(functools.partial(_sums, ()), generator, p_logits, q_logits)
    return jnp.squeeze(sums.value, -1)


def _divergence_jvp(primals, tangents):
    """`sum p (slope - mean slope) dlogits` of either side, in one formula of p and q."""
    generator, p_logits, q_logits = primals
    dgenerator, *dlogits = tangents
    sides = tuple(i for i, dx in enumerate(dlogits) if not isinstance(dx, SymbolicZero))
    sums = numerics.by_rows(functools.partial(_sums, sides), *primals)
    value = jnp.squeeze(sums.value, -1)
    dvalue = jnp.zeros_like(value)
    wide = [x.astype(value.dtype) for x in (p_logits, q_logits)]
    for side in sides:
        by = _by_logits(*_slopes(side, generator, *wide, sums), sums.means[side])
        zero = wide[side] == -jnp.inf
        dvalue += jnp.sum(by * jnp.where(zero, 0, dlogits[side].astype(by.dtype)), axis=-1)
    if not all(isinstance(x, SymbolicZero) for x in jax.tree.leaves(dgenerator)):
        logs = numerics.normalized(*wide, sums.normalizers)
        of_parameters = lambda g: jnp.sum(terms(g, *logs), axis=-1)
        dvalue += _by_parameters(of_parameters, generator, dgenerator)
    return value, dvalue


_divergence.defjvp(_divergence_jvp, symbolic_zeros=True)


def _generator_by_name(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function(generator, p, q)`, which may be called as `function(p, q, generator=...)`, too.

    Most functions take their row by name; Python alone would say "multiple values" here.
    """

    @functools.wraps(function)
    def called(*arguments, **options):
        if "generator" in options and len(arguments) > 1:
            arguments = (options.pop("generator"), *arguments)
        return function(*arguments, **options)

    return called


@_generator_by_name
def f_divergence(
    generator: Generator,
    p_logits: Logits,
    q_logits: Logits,
    *,
    axis: int = -1,
    where: Categories | None = None,
) -> Reduced:
    """`sum_i q_i f(p_i / q_i)` for any row, of the table or of your own.

    Shapes: `[..., n, ...]` twice, categories on `axis`, to the shape without it. A zero of p costs
    q f(0), a zero of q costs p f'(inf). Parameters are numbers, or one for each row of categories.
    `f_divergence(p_logits, q_logits, generator=row)` is the same.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{f_divergence(generators.get('alpha', alpha=1.0), p, q):.4f}")
    0.5108

    Reference: Csiszar 1967; Cichocki and Amari 2010 for the table.
    """
    generator = checked_row(generator)
    p_logits, q_logits = checks.narrow_logits_pair(p_logits, q_logits, axis, where)
    rows = jax.ShapeDtypeStruct(p_logits.shape, checks.wide(p_logits.dtype))
    generator = generator.per_row(rows)
    return _divergence(generator, p_logits, q_logits)


def _named(make: type[Generator]) -> Callable[..., Array]:
    """The divergence of a row of the table as a function: its name, signature and documentation."""

    def divergence(
        p_logits: Logits,
        q_logits: Logits,
        *,
        axis: int = -1,
        where: Categories | None = None,
        **parameters: PerSequence | Scalar,
    ) -> Reduced:
        generator = generators.get(make.name, **parameters)
        return f_divergence(generator, p_logits, q_logits, axis=axis, where=where)

    signature = inspect.signature(divergence)
    p_logits, q_logits, *options, _ = signature.parameters.values()
    own = [
        inspect.Parameter(
            name, options[0].kind, default=known.default, annotation="PerSequence | Scalar"
        )
        for name, known in make.parameters().items()
    ]
    divergence.__name__ = divergence.__qualname__ = make.name
    divergence.__doc__ = inspect.getdoc(make).replace(
        "\n\n>>>", "\nShapes: `[..., n]` twice to `[...]`.\n\n>>>", 1
    )
    divergence.__signature__ = signature.replace(parameters=[p_logits, q_logits, *own, *options])
    divergence.__annotations__ |= {parameter.name: "PerSequence | Scalar" for parameter in own}
    return divergence


TABLE: dict[str, Callable[..., Array]] = {
    name: _named(make) for name, make in generators.TABLE.items()
}
"""The divergences of the table by name, which are functions of this module too."""

globals().update(TABLE)


# ------------------------------------------------------------------------ beyond the f-divergences


def renyi(
    p_logits: Logits,
    q_logits: Logits,
    *,
    alpha: PerSequence | Scalar = 2.0,
    axis: int = -1,
    where: Categories | None = None,
) -> Reduced:
    """Renyi, `log(sum p^a q^(1-a)) / (a - 1)` with order a > 0.

    Equals KL(p‖q) at a = 1. Infinite for disjoint supports, and for a >= 1 on a zero of q. Where
    the sum is near 1 it is `log1p(a (a - 1) D) / (a - 1)` of the alpha divergence D, which does
    not cancel; elsewhere it is taken in log space, which does not overflow.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{renyi(p, q, alpha=2.0):.4f}")
    1.0217

    Reference: van Erven and Harremoes 2014, equation 1.
    """
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    alpha = jnp.asarray(checks.positive("alpha", alpha), p_logits.dtype)
    by_row = checks.per_row("alpha", alpha, p_logits)
    log_sum = _log_power_sum(by_row, p_logits, q_logits)
    near = jnp.abs(log_sum) < 0.5
    # Where the sum is far from 1 the pair is replaced by (q, q): no overflow, no NaN gradient.
    near_p = jnp.where(near[..., None], p_logits, q_logits)
    power = f_divergence(generators.alpha(alpha), near_p, q_logits)
    by_alpha = numerics.scaled_log1p(alpha * power, alpha - 1)
    return jnp.where(near, by_alpha, log_sum / jnp.where(near, 1, alpha - 1))


def _log_power_sum(alpha: Array, p_logits: Array, q_logits: Array) -> Array:
    """`log sum p^a q^(1-a)`; inf where a >= 1 and q is zero under p, also at a = 1."""
    log_p, log_q = numerics.log_softmax(p_logits), numerics.log_softmax(q_logits)
    p_zero, q_zero = log_p == -jnp.inf, log_q == -jnp.inf
    inside = ~p_zero & ~q_zero
    log_p, log_q = (jnp.where(inside, x, 0) for x in (log_p, log_q))
    exponent = jnp.where(inside, alpha * log_p + (1 - alpha) * log_q, -jnp.inf)
    infinite = jnp.any(q_zero & ~p_zero & (alpha >= 1), axis=-1)
    empty = ~jnp.any(inside, axis=-1)
    log_sum = jax.nn.logsumexp(jnp.where(empty[..., None], 0, exponent), axis=-1)
    return jnp.where(infinite, jnp.inf, jnp.where(empty, -jnp.inf, log_sum))


def bhattacharyya(
    p_logits: Logits, q_logits: Logits, *, axis: int = -1, where: Categories | None = None
) -> Reduced:
    """Bhattacharyya distance, `-log sum sqrt(p q)`: half the Renyi divergence of order 1/2.

    Symmetric; infinite for disjoint supports only.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{bhattacharyya(p, q):.4f}")
    0.1116

    Reference: Bhattacharyya 1943.
    """
    return renyi(p_logits, q_logits, alpha=0.5, axis=axis, where=where) / 2


def cauchy_schwarz(
    p_logits: Logits, q_logits: Logits, *, axis: int = -1, where: Categories | None = None
) -> Reduced:
    """Cauchy-Schwarz divergence, `-log((sum p q)^2 / (sum p^2 sum q^2))`.

    With p2 and q2 proportional to p^2 and q^2 the ratio is `(sum sqrt(p2 q2))^2`, so this is the
    Renyi divergence of order 1/2 between those. Symmetric; infinite for disjoint supports only.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{cauchy_schwarz(p, q):.4f}")
    0.4947

    Reference: Jenssen, Principe, Erdogmus and Eltoft 2006.
    """
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    return renyi(2 * p_logits, 2 * q_logits, alpha=0.5)


def bregman(
    p_logits: Logits,
    q_logits: Logits,
    *,
    alpha: PerSequence | Scalar = 2.0,
    axis: int = -1,
    where: Categories | None = None,
) -> Reduced:
    """Bregman divergence of the potential `x^a / (a (a - 1))`, for any real a.

    `sum phi(p) - phi(q) - phi'(q) (p - q)`, which is `sum q^a f_a(p/q)` with f_a of Cressie-Read:
    half the squared Euclidean distance at a = 2, KL(p‖q) at a = 1, Itakura-Saito at a = 0.
    Zeros: those of p cost q^a f_a(0); those of q alone cost p^a / (a (a - 1)) for a > 1, else inf.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{bregman(p, q, alpha=2.0):.4f}")
    0.1600

    Reference: Bregman 1967; Noarov et al. 2025 (arXiv:2505.19371) for its use in decoding.
    """
    generator = generators.alpha(alpha)
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    generator = generator.per_row(p_logits)
    return jnp.sum(_bregman_terms(generator, *numerics.log_ratio(p_logits, q_logits)), axis=-1)


def _bregman_logs(log_p: Array, log_q: Array, t: Array, a: Array) -> tuple[Array, list[Array]]:
    """Where p and q are different and not zero; there `t` and the logs of q^a, p q^(a-1) and p^a.

    Where p = q, for which all is 0, these powers may overflow. Logits of -1e38, used in place of
    -inf, overflow on the way to a finite result: clipped.
    """
    inside = (log_p != -jnp.inf) & (log_q != -jnp.inf) & (t != 0)
    log_p, log_q, t = (jnp.clip(jnp.where(inside, x, 0), -1e15, 1e15) for x in (log_p, log_q, t))
    return inside, [t, a * log_q, log_p + (a - 1) * log_q, a * log_p]


def _bregman_ends(log_p: Array, log_q: Array, at_p_zero: Array, at_q_zero: Array) -> Array:
    """One of two values at a zero of p or q alone, and 0 elsewhere."""
    p_zero, q_zero = log_p == -jnp.inf, log_q == -jnp.inf
    return jnp.where(p_zero, jnp.where(q_zero, 0, at_p_zero), jnp.where(q_zero, at_q_zero, 0))


def _bregman_powers(log_p: Array, log_q: Array, a: Array) -> tuple[Array, Array]:
    """`p^a / (a - 1)` or inf for a <= 1, and `log q^a`, of what is not zero."""
    log_p, log_q = (jnp.where(x == -jnp.inf, 0, x) for x in (log_p, log_q))
    above = a > 1
    return jnp.where(above, jnp.exp(a * log_p) / jnp.where(above, a - 1, 1), jnp.inf), a * log_q


def _bregman_values(generator: Generator, log_p: Array, log_q: Array, t: Array) -> Array:
    """`q^a f(p/q)`; at a zero of p `q^a f(0)`, at a zero of q `p^a / (a (a - 1))` or inf."""
    a = generator.exponent
    inside, (t, *logs) = _bregman_logs(log_p, log_q, t, a)
    power, log_power = _bregman_powers(log_p, log_q, a)
    power /= jnp.where(a > 1, a, 1)
    ends = _bregman_ends(log_p, log_q, numerics.weigh(log_power, generator.at_zero), power)
    return jnp.where(inside, numerics.exp_difference_2(*logs, t * t), ends) + 0 * (t + a)


def _bregman_derivatives(
    generator: Generator, log_p: Array, log_q: Array, t: Array
) -> tuple[Array, Array]:
    """`p (phi'(p) - phi'(q))` by log p and `-q^(a-1) (p - q)` by log q."""
    a = generator.exponent
    inside, (t, q_power, product, p_power) = _bregman_logs(log_p, log_q, t, a)
    power, log_power = _bregman_powers(log_p, log_q, a)
    by_log_p = t * numerics.exp_difference(product, p_power)
    by_log_q = -numerics.probability_difference(product, q_power, t)
    zero = jnp.zeros_like(t)
    return (
        jnp.where(inside, by_log_p, _bregman_ends(log_p, log_q, zero, power)),
        jnp.where(inside, by_log_q, _bregman_ends(log_p, log_q, jnp.exp(log_power), zero)),
    )


_bregman_terms = _differentiated(_bregman_values, _bregman_derivatives)
