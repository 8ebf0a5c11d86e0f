"""The contract of an f-divergence: what a row of the table provides, and what follows from it.

`D(p, q) = sum q f(p/q)`. A row is a class whose fields are its parameters (they may be traced, so a
sweep over alpha is a vmap) and whose methods are formulas in the logarithms of p and q and in
`t = log p/q`:

=================  ================================================================================
`perspective`      `q f(p/q)`, each term non-negative
`perspective_p`    `p f'(p/q)`, its derivative by log p
`perspective_q`    `q f(p/q) - p f'(p/q)`, its derivative by log q
`shift(t, step)`   the log-ratio at which the slope f' is `step` more than at t
`at_zero` ...      f(0), f'(0) and f'(inf), which settle every zero of p or q
=================  ================================================================================

Everything else in jdiv follows from these: the slope and its inverse, the convex conjugate, exact
divergences and gradients (`categorical`), estimators, regularized policies (`regularized`).
The generator of every row is the centered one, `f(u) - f'(1) (u - 1)`: it gives the same
divergence, is nowhere negative, and has f(1) = f'(1) = 0. `slope_at_one` is what was taken out:
f'(1) of the customary generator, which the docstring of each row states.

Your own divergence is a class in your own file, with nothing to register. Its f is enough: a
convex function of u with f(1) = f'(1) = 0, written in JAX, and its three ends.

>>> @row
... class Cubic(Generator):
...     '''f(u) = (u^3 - 3 u + 2) / 6.'''
...
...     at_zero, slope_at_zero, slope_at_infinity = 1 / 3, -0.5, jnp.inf
...
...     def f(self, u):
...         return (u**3 - 3 * u + 2) / 6
>>> from jdiv import divergences
>>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
>>> print(f"{divergences.f_divergence(Cubic(), p, q):.4f}")
1.9424
>>> jax.jit(Cubic().inverse_slope)(jnp.array(1.5)).round(4)  # u^2 = 1 + 2 * 1.5
Array(0.6931, dtype=float32)

So has `regularized.greedy(values, ref_logits, temperature, generator=Cubic())`, and whatever else
takes a row.

`generators.from_f` makes such a row of a function, and centers it. The slope follows by automatic
differentiation, `shift` by a search, and where p and q are close f is the integral of its second
derivative, so that nothing cancels. Beyond log-ratios of 87 (708 in double precision) u is no
number: there it counts as 0 or as infinity. A row that writes `perspective` itself has no such
limit, `perspective_p` and `perspective_q` then follow from it, and one that writes these and
`shift` too, as those of the table do, is faster and right to the last digits.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots


class Parameter(NamedTuple):
    """A parameter of a row: its default, its range, and a value that is no special case.

    Fields:
        default: Its value where none is given.
        low: The lower end of its open interval.
        high: The upper end.
        allowed: The open interval from low to high in words, for errors.
        example: A value that is no special case, for tests and tables.
    """

    default: float
    low: float
    high: float
    allowed: str
    example: float


def parameter(
    default: float, low: float, high: float, allowed: str, *, example: float
) -> dataclasses.Field:
    """The field of a row that holds a parameter; values outside of the range are refused."""
    known = Parameter(default, low, high, allowed, example)
    return dataclasses.field(default=default, metadata={"parameter": known})


def row(cls: type) -> type:
    """Decorator of a row: a frozen dataclass that is a pytree of its parameters.

    A field with the metadata `{"static": True}` is no parameter: it is a part of the structure.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    static = [field.name for field in fields if field.metadata.get("static")]
    names = [field.name for field in fields if field.name not in static]

    def flatten(generator):
        leaves = [(jax.tree_util.GetAttrKey(n), getattr(generator, n)) for n in names]
        return leaves, tuple(getattr(generator, n) for n in static)

    def unflatten(fixed, leaves):
        # Not by the constructor: leaves of a pytree may be anything, ranges hold for numbers.
        generator = object.__new__(cls)
        for name, leaf in zip((*names, *static), (*leaves, *fixed), strict=True):
            object.__setattr__(generator, name, leaf)
        return generator

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


class Generator:
    """An f-divergence: what every row provides, and what follows. All arrays are elementwise."""

    name: ClassVar[str]
    """The class's name in lower case, as errors, figures and `generators.get` say it."""
    invertible: ClassVar[bool] = True
    """Whether the slope f' has an inverse, so that a reward can be read off a policy."""

    at_zero: ArrayLike
    """f(0); a zero of p under mass q costs q f(0)."""
    slope_at_zero: ArrayLike
    """f'(0); finite means that a regularized policy can drop actions."""
    slope_at_infinity: ArrayLike
    """f'(inf); mass p on a zero of q costs p f'(inf)."""
    slope_at_one: ArrayLike = 0.0
    """f'(1) of the customary generator, before centering."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def __new__(cls, *args: Any, **kwargs: Any) -> Generator:
        """Refuses a class that was not decorated: its fields would be no parameters."""
        if "__dataclass_fields__" not in vars(cls):
            raise TypeError(
                f"{cls.__name__} must be decorated with @row of jdiv.divergences.generator"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Refuses parameters out of range; traced ones become NaN.

        Where one parameter is an array the numbers among the others become arrays of its shape, so
        that `jax.vmap` over the row maps over all of them.
        """
        self._refuse_without_f()
        for name, known in self.parameters().items():
            value = checks.in_range(name, getattr(self, name), known.low, known.high, known.allowed)
            object.__setattr__(self, name, number_or_array(value))
        shape = max(map(np.shape, jax.tree.leaves(self)), key=len, default=())
        if shape:
            repeat = lambda x: jnp.broadcast_to(x, np.shape(x) or shape)
            for field in dataclasses.fields(self):
                value = jax.tree.map(repeat, getattr(self, field.name))
                object.__setattr__(self, field.name, value)

    def _refuse_without_f(self) -> None:
        """Refuses a row that gives neither f nor perspective, and an f that is not centered."""
        cls = type(self)
        if cls.perspective is not Generator.perspective:
            return
        if cls.f is Generator.f:
            raise TypeError(f"{cls.__name__} must have a method f or perspective")
        at_one = jax.jvp(self.f, (jnp.ones(()),), (jnp.ones(()),))
        for what, value in zip(("f(1)", "f'(1)"), at_one, strict=True):
            if not isinstance(value, jax.core.Tracer) and not np.all(np.abs(value) < 1e-5):
                raise ValueError(f"{what} must be 0 for {cls.__name__}, got {value}")

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """The parameters by name, with their ranges."""
        fields = dataclasses.fields(cls)
        return {f.name: f.metadata["parameter"] for f in fields if "parameter" in f.metadata}

    def astype(self, dtype: Any) -> Generator:
        """The same row with its parameters as arrays of this type.

        Their ranges are checked again: those of a row that is an argument of a program come from
        anywhere.
        """
        return dataclasses.replace(jax.tree.map(lambda x: jnp.asarray(x, dtype), self))

    def per_row(self, rows: Array) -> Generator:
        """The same row with its parameters to be broadcast against `[..., n]` rows of categories.

        Each is a number or of shape `[...]`, one for each of the rows, and becomes `[..., 1]`;
        other shapes are refused.
        """

        def expanded(path, x):
            name = jax.tree_util.keystr(path).removeprefix(".")
            return checks.per_row(name, x, rows)

        return jax.tree_util.tree_map_with_path(expanded, self.astype(rows.dtype))

    def f(self, u: Array) -> Array:
        """f(u) with `f(1) = f'(1) = 0`: what a row gives that does not give its `perspective`.

        Twice differentiable and convex. Not called where `perspective` is given.
        """
        raise NotImplementedError

    def perspective(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q)` for finite logarithms."""
        larger = jnp.exp(jnp.maximum(log_p, log_q))
        ends = numerics.weigh(log_q, self.at_zero), numerics.weigh(log_p, self.slope_at_infinity)
        return _of_f(t, lambda t: larger * _value_of(self, t), *ends)

    def perspective_p(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`p f'(p/q)` for finite logarithms."""
        if type(self).perspective is Generator.perspective:
            end = numerics.weigh(log_p, self.slope_at_infinity)
            return _of_f(t, lambda t: jnp.exp(log_p) * _slope_of(self, t), jnp.zeros_like(t), end)
        one, zero = jnp.ones_like(t), jnp.zeros_like(t)
        return jax.jvp(self.perspective, (log_p, log_q, t), (one, zero, one))[1]

    def perspective_q(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q) - p f'(p/q)` for finite logarithms."""
        if type(self).perspective is Generator.perspective:
            rest = lambda t: (
                jnp.exp(jnp.maximum(log_p, log_q)) * _value_of(self, t)
                - (jnp.exp(log_p) * _slope_of(self, t))
            )
            return _of_f(t, rest, numerics.weigh(log_q, self.at_zero), jnp.zeros_like(t))
        one, zero = jnp.ones_like(t), jnp.zeros_like(t)
        return jax.jvp(self.perspective, (log_p, log_q, t), (zero, one, -one))[1]

    def shift(self, t: Array, step: Array) -> Array:
        """The log-ratio whose slope is `slope(t) + step`: -inf below f'(0), inf above f'(inf).

        Shapes: t and step broadcast; `greedy` has `[..., 1]` and `[..., n]`.
        """
        return _shifted(self, *jnp.broadcast_arrays(t, step))

    def rise(self, t: Array, end: Array) -> Array:
        """`f'(e^end) - f'(e^t)`, which `shift` inverts."""
        return self.rise_from(t)(end)

    def rise_from(self, t: Array) -> Callable[[Array], Array]:
        """`rise` as a function of its end: what is of t alone is computed once.

        Beyond u = 1 it is the difference of what both lack to a finite f'(inf), if the row says
        that: the slopes themselves may be the same number.
        """
        slope = self.slope(t)
        if type(self).rest_p is Generator.rest_p:
            return lambda end: self.slope(end) - slope
        finite = jnp.isfinite(jnp.asarray(self.slope_at_infinity))

        def lack(t):
            saturated = finite & jnp.isfinite(t) & (t > 0)
            inside = jnp.where(saturated, t, 1)
            return saturated, self.rest_p(jnp.zeros_like(inside), -inside, inside)

        saturated, rest = lack(t)

        def to(end):
            too, end_rest = lack(end)
            return jnp.where(saturated & too, end_rest - rest, self.slope(end) - slope)

        return to

    def rest_p(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`p f'(p/q) - p f'(inf)`, for a finite f'(inf).

        A row overrides this where the first is nearly the second.
        """
        return self.perspective_p(log_p, log_q, t) - jnp.exp(log_p) * self.slope_at_infinity

    def rest_q(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q) - p f'(p/q) - q f(0)`, for a finite f(0).

        A row overrides this where what is left of f(0) is little.
        """
        return self.perspective_q(log_p, log_q, t) - jnp.exp(log_q) * self.at_zero

    def customary(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q)` before centering, for finite logarithms: what plain estimators average.

        A row overrides this sum where its customary f is much the smaller one, at 0 or at infinity.
        """
        difference = self.slope_at_one * numerics.probability_difference(log_p, log_q, t)
        return self.perspective(log_p, log_q, t) + difference

    def value(self, t: Array) -> Array:
        """`f(e^t)`."""
        return _at_ends(
            t, self.at_zero, jnp.inf, lambda t: self.perspective(t, jnp.zeros_like(t), t)
        )

    def slope(self, t: Array) -> Array:
        """`f'(e^t)`: the score of f-DPO, minus the pseudo-reward of f-DPG."""
        ends = self.slope_at_zero, self.slope_at_infinity
        t = _rounded(t) if type(self).perspective is Generator.perspective else t
        return _at_ends(t, *ends, lambda t: self.perspective_p(jnp.zeros_like(t), -t, t))

    def inverse_slope(self, s: Array) -> Array:
        """The log-ratio t with `f'(e^t) = s`; -inf below the range of f', inf above it."""
        return self.shift(jnp.zeros_like(s), s)

    def conjugate(self, s: Array) -> Array:
        """`f*(s) = max_u (s u - f(u))` over u >= 0."""
        t = self.inverse_slope(s)
        of_finite = lambda t: -self.perspective_q(t, jnp.zeros_like(t), t)
        return _at_ends(t, -jnp.asarray(self.at_zero), jnp.inf, of_finite)


# Gauss and Legendre's nodes and weights on [0, 1].
_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(10) + np.array([[1.0], [0.0]])) / 2


def _rounded(t: Array) -> Array:
    """t as far as e^t is a number with a reciprocal, and infinite beyond."""
    limit = math.log(float(jnp.finfo(t.dtype).max)) - 1
    return jnp.where(t > limit, jnp.inf, jnp.where(t < -limit, -jnp.inf, t))


def _integral(generator: Generator, t: Array, weight: Callable) -> Array:
    """`int_0^1 weight(s) f''(1 + s (u - 1)) ds` for u near 1, which loses nothing."""
    excess = jnp.expm1(t)
    at = lambda s: weight(s) * _curvature(generator, 1 + s * excess)
    nodes, weights = jnp.asarray(_NODES, t.dtype), jnp.asarray(_WEIGHTS, t.dtype)
    return jnp.tensordot(weights, jax.vmap(at)(nodes), 1, precision="highest")


def _curvature(generator: Generator, u: Array) -> Array:
    """f''(u)."""
    derivative = lambda g: lambda u: jax.jvp(g, (u,), (jnp.ones_like(u),))[1]
    return derivative(derivative(generator.f))(u)


def _plain_value(generator: Generator, t: Array) -> Array:
    """`f(u)/max(u, 1)` of `u = e^t`: near 1 `(u - 1)^2 int (1 - s) f''(1 + s (u - 1)) ds`."""
    near = jnp.abs(t) < 0.5
    close, far = jnp.where(near, t, 0), jnp.where(near, 1, t)
    excess = jnp.expm1(close)
    value = excess * (excess * _integral(generator, close, lambda s: 1 - s))
    value = jnp.where(near, value, generator.f(jnp.exp(far)))
    return value * jnp.exp(-jnp.maximum(t, 0))


def _plain_slope(generator: Generator, t: Array) -> Array:
    """`f'(u)` of `u = e^t`: near 1 `(u - 1) int f''(1 + s (u - 1)) ds`."""
    near = jnp.abs(t) < 0.5
    close, far = jnp.where(near, t, 0), jnp.exp(jnp.where(near, 1, t))
    value = jnp.expm1(close) * _integral(generator, close, jnp.ones_like)
    return jnp.where(near, value, jax.jvp(generator.f, (far,), (jnp.ones_like(far),))[1])


def _by_hand(plain: Callable, derivative: Callable) -> Callable:
    """`plain(generator, t)` with its derivative by t: that of the integral would be dear."""

    def rule(primals, tangents):
        (generator, t), (dgenerator, dt) = primals, tangents
        _, by_generator = jax.jvp(lambda g: plain(g, t), (generator,), (dgenerator,))
        return differentiated(generator, t), by_generator + derivative(generator, t) * dt

    differentiated = jax.custom_jvp(plain)
    differentiated.defjvp(rule)
    return differentiated


_slope_of = _by_hand(_plain_slope, lambda g, t: jnp.exp(t) * _curvature(g, jnp.exp(t)))
_value_of = _by_hand(
    _plain_value,
    lambda g, t: (
        _slope_of(g, t) * jnp.exp(jnp.minimum(t, 0)) - jnp.where(t > 0, _value_of(g, t), 0)
    ),
)


def _of_f(t: Array, inside: Callable, low: Array, high: Array) -> Array:
    """A function of t, and what it is where u is no number any more."""
    ends = _rounded(t)
    value = inside(jnp.where(jnp.isinf(ends), 0, t))
    return jnp.where(ends == -jnp.inf, low, jnp.where(ends == jnp.inf, high, value))


@jax.custom_jvp
def _shifted(generator: Generator, t: Array, step: Array) -> Array:
    """The end of a rise of the slope by `step` from t: a bracket by doubling, then its root.

    A step that leads out of the range of the slope leads to -inf or inf.
    """
    start = jnp.where(jnp.isinf(t), 0, t)
    sign = jnp.where(step < 0, -1, jnp.ones_like(step))
    end = lambda distance: start + sign * distance
    rise = generator.rise_from(start)
    short = lambda distance: sign * (rise(end(distance)) - step) < 0

    def unfinished(state):
        _, is_short, count = state
        return jnp.any(is_short) & (count < 21)

    def double(state):
        distance, is_short, count = state
        distance = jnp.where(is_short, 2 * distance, distance)
        return distance, short(distance), count + 1

    # From 1 on, which the loop makes of 1/2: so the rise is written into the program once.
    half, never = jnp.full_like(start, 0.5), jnp.ones(start.shape, bool)
    distance, beyond, _ = jax.lax.while_loop(unfinished, double, (half, never, 0))
    ends = end(distance), jnp.where(distance > 1, end(distance / 2), start)
    low, high = jnp.minimum(*ends), jnp.maximum(*ends)
    rest = lambda x: jnp.where(beyond, x - low, rise(x) - step)
    root, (residual, _) = roots.bracketed_newton(rest, (low + high) / 2, low, high)
    lost = jnp.isnan(t + step) | jnp.isnan(residual)
    found = jnp.where(lost, jnp.nan, jnp.where(beyond, sign * jnp.inf, root))
    return jnp.where(jnp.isinf(t), t, found)


def _shifted_jvp(primals, tangents):
    """`f''(t') dt' = f''(t) dt + dstep`, less what the parameters add to the rise."""
    generator, t, _ = primals
    end = _shifted(*primals)
    inside = jnp.isfinite(end) & jnp.isfinite(t)
    to = jnp.where(inside, end, 0)

    def missing(generator, t, step):
        return step - generator.rise(jnp.where(inside, t, 0), to)

    rise = generator.rise_from(jnp.where(inside, t, 0))
    slope = jax.jvp(rise, (to,), (jnp.ones_like(to),))[1]
    change = roots.along(missing, primals, tangents) / slope
    stays = 0 if isinstance(tangents[1], SymbolicZero) else jnp.where(jnp.isinf(t), tangents[1], 0)
    return end, jnp.where(inside, change, stays)


_shifted.defjvp(_shifted_jvp, symbolic_zeros=True)


def _at_ends(t: Array, at_minus_inf: ArrayLike, at_inf: ArrayLike, f: Callable) -> Array:
    """`f(t)` with given values at t = -inf and t = inf; f sees finite numbers only."""
    inside = f(jnp.where(jnp.isinf(t), 0, t))
    at_minus_inf, at_inf = (jnp.asarray(x, t.dtype) for x in (at_minus_inf, at_inf))
    return jnp.where(t == -jnp.inf, at_minus_inf, jnp.where(t == jnp.inf, at_inf, inside))


def number_or_array(x: ArrayLike) -> ArrayLike:
    """A parameter as it is, or an array if it is a list."""
    return x if np.ndim(x) == 0 else jnp.asarray(x)


def checked_row(generator: Generator, dtype: Any = None, *, invertible: bool = False) -> Generator:
    """The row with its parameters in this precision; what is no row is refused.

    `invertible=True` refuses a row whose slope has no inverse, too.

    >>> from jdiv import generators
    >>> checked_row(generators.total_variation(), invertible=True)
    Traceback (most recent call last):
    TypeError: generator must have a slope with an inverse, got total_variation
    """
    if not isinstance(generator, Generator):
        found = checks.short(generator)
        raise TypeError(f"generator must be a row such as generators.kl(), got {found}")
    if invertible and not generator.invertible:
        raise TypeError(f"generator must have a slope with an inverse, got {generator.name}")
    return generator if dtype is None else generator.astype(dtype)
