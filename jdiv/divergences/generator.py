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

Your own divergence is a class in your own file, with nothing to register:

>>> @row
... class Cubic(Generator):
...     '''f(u) = (u^3 - 3 u + 2) / 6.'''
...
...     at_zero, slope_at_zero, slope_at_infinity = 1 / 3, -0.5, jnp.inf
...
...     def perspective(self, log_p, log_q, t):
...         return jnp.exp(log_q) * (jnp.exp(t) - 1) ** 2 * (jnp.exp(t) + 2) / 6
...
...     def perspective_p(self, log_p, log_q, t):
...         return jnp.exp(log_p) * jnp.expm1(2 * t) / 2
...
...     def perspective_q(self, log_p, log_q, t):
...         return self.perspective(log_p, log_q, t) - self.perspective_p(log_p, log_q, t)
...
...     def shift(self, t, step):
...         square = jnp.exp(2 * t) + 2 * step
...         return jnp.where(square > 0, jnp.log(jnp.where(square > 0, square, 1)) / 2, -jnp.inf)
>>> from jdiv import divergences, regularized
>>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
>>> print(f"{divergences.f_divergence(Cubic(), p, q):.4f}")
1.9424
>>> best = regularized.greedy(jnp.array([1.0, 0.0]), jnp.zeros(2), 1.0, generator=Cubic())
>>> [f"{x:.4f}" for x in jnp.exp(best.log_policy)]
['0.7500', '0.2500']
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics


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
    """Decorator of a row: a frozen dataclass that is a pytree of its parameters."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]

    def flatten(generator):
        return [(jax.tree_util.GetAttrKey(n), getattr(generator, n)) for n in names], None

    def unflatten(_, leaves):
        # Not by the constructor: leaves of a pytree may be anything, ranges hold for numbers.
        generator = object.__new__(cls)
        for name, leaf in zip(names, leaves, strict=True):
            object.__setattr__(generator, name, leaf)
        return generator

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


class Generator(abc.ABC):
    """An f-divergence: what every row provides, and what follows. All arrays are elementwise."""

    name: ClassVar[str]
    """The class's name in lower case, as errors, figures and `generators.get` say it."""
    invertible: ClassVar[bool] = True
    """Whether the slope f' has an inverse, so that a reward can be read off a policy."""
    unbounded: ClassVar[bool] = False
    """Whether the slope takes every value from -inf to inf, whatever the parameters are."""

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
        for name, known in self.parameters().items():
            value = checks.in_range(name, getattr(self, name), known.low, known.high, known.allowed)
            object.__setattr__(self, name, number_or_array(value))
        shape = max(map(np.shape, jax.tree.leaves(self)), key=len, default=())
        if shape:
            repeat = lambda x: jnp.broadcast_to(x, np.shape(x) or shape)
            for field in dataclasses.fields(self):
                value = jax.tree.map(repeat, getattr(self, field.name))
                object.__setattr__(self, field.name, value)

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

    @abc.abstractmethod
    def perspective(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q)` for finite logarithms."""

    @abc.abstractmethod
    def perspective_p(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`p f'(p/q)` for finite logarithms."""

    @abc.abstractmethod
    def perspective_q(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q) - p f'(p/q)` for finite logarithms."""

    @abc.abstractmethod
    def shift(self, t: Array, step: Array) -> Array:
        """The log-ratio whose slope is `slope(t) + step`: -inf below f'(0), inf above f'(inf)."""

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
        return _at_ends(t, *ends, lambda t: self.perspective_p(jnp.zeros_like(t), -t, t))

    def inverse_slope(self, s: Array) -> Array:
        """The log-ratio t with `f'(e^t) = s`; -inf below the range of f', inf above it."""
        return self.shift(jnp.zeros_like(s), s)

    def conjugate(self, s: Array) -> Array:
        """`f*(s) = max_u (s u - f(u))` over u >= 0."""
        t = self.inverse_slope(s)
        of_finite = lambda t: -self.perspective_q(t, jnp.zeros_like(t), t)
        return _at_ends(t, -jnp.asarray(self.at_zero), jnp.inf, of_finite)


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
        raise TypeError(f"generator must be a row such as generators.kl(), got {generator!r}")
    if invertible and not generator.invertible:
        raise TypeError(f"generator must have a slope with an inverse, got {generator.name}")
    return generator if dtype is None else generator.astype(dtype)
