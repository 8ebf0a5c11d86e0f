"""Roots of scalar functions: a bracketed Newton iteration, and roots that are differentiable."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Root(NamedTuple):
    """A root and the evidence that it is one. The evidence carries no gradient."""

    x: Array
    """`[...]` the root, differentiable in everything that the function closes over."""
    residual: Array
    """`[...]` `|expm1(f(x))|`: f is the logarithm of what should be 1."""
    iterations: Array
    """`[]` steps of the slowest row of the batch."""
    converged: Array
    """`[...]` whether the iteration came to rest within rounding of the root."""


def implicit(f: Callable[[Array], Array], start: Array, low: Array, high: Array) -> Root:
    """The root of an increasing, elementwise f in [low, high], by the implicit function theorem.

    Shapes: `[...]` each. Differentiable to any order in what f closes over; `start` and the bracket
    carry no gradient.

    >>> square_root = lambda y: implicit(lambda x: x * x - y, *map(jnp.asarray, (1.0, 0.0, 9.0))).x
    >>> print(f"{square_root(4.0):.4f} {jax.grad(square_root)(4.0):.4f}")
    2.0000 0.2500
    """
    x, (residual, iterations, resting) = jax.lax.custom_root(
        f,
        start,
        lambda f, start: bracketed_newton(f, start, low, high),
        lambda g, y: y / g(jnp.ones_like(y)),
        has_aux=True,
    )
    residual, iterations, resting = jax.lax.stop_gradient((residual, iterations, resting))
    return Root(x, residual, iterations.astype(jnp.int32), resting > 0)


def bracketed_newton(f: Callable[[Array], Array], start: Array, low: Array, high: Array):
    """The root of an increasing f in [low, high]: Newton's step where it helps, else bisection.

    A step has to stay inside the bracket, and the one before must have halved |f|. All rows of
    the batch step together until the last one rests. For `jax.lax.custom_root` it returns the root
    and, as floats, `|expm1(f)|` there, the iterations, and which rows came to rest.
    """
    resolution = 4 * jnp.finfo(start.dtype).eps

    def unfinished(state):
        *_, resting, iteration = state
        return ~jnp.all(resting) & (iteration < 200)

    def step(state):
        x, low, high, previous, resting, iteration = state
        value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
        low, high = jnp.where(value < 0, x, low), jnp.where(value > 0, x, high)
        newton = x - value / slope
        scale = resolution * jnp.maximum(jnp.abs(x), 1)
        resting |= (jnp.abs(newton - x) <= scale) | (high - low <= scale)
        usable = (newton > low - scale) & (newton < high + scale)
        usable &= jnp.abs(value) <= previous / 2
        inner = jnp.clip(newton, low + scale / 2, high - scale / 2)
        moved = jnp.where(usable, inner, (low + high) / 2)
        return jnp.where(resting, x, moved), low, high, jnp.abs(value), resting, iteration + 1

    never = jnp.zeros(start.shape, bool)
    state = start, low, high, jnp.full_like(start, jnp.inf), never, jnp.zeros((), jnp.int32)
    x, *_, resting, iterations = jax.lax.while_loop(unfinished, step, state)
    return x, (jnp.abs(jnp.expm1(f(x))), iterations.astype(x.dtype), resting.astype(x.dtype))


def decreasing(
    f: Callable[[Array], tuple[Array, Array, Any]],
    low: Array,
    high: Array,
    tolerance: float,
    kept: Any = (),
) -> tuple[Array, Any]:
    """The root of a decreasing f in [low, high]; `low` where f is negative there already.

    `f(x)` returns its value, its slope, and something to keep from the last x, for which `kept` has
    the shapes; f is not positive at `high`. From the right Newton's step does not pass a root where
    f is concave; where it leaves the bracket, or the one before did not halve |f|, the middle is
    taken. Shapes: `[]`. Not differentiable.

    >>> def f(x):
    ...     return 2.0 - x * x, -2 * x, ()
    >>> x, _ = decreasing(f, jnp.asarray(0.0), jnp.asarray(9.0), 1e-6)
    >>> print(f"{x:.4f}")
    1.4142
    """

    def unfinished(state):
        *_, resting, count = state
        return ~resting & (count < 100)

    def step(state):
        x, _, below, above, before, _, count = state
        value, slope, kept = f(x)
        nowhere = (count == 0) & (value <= 0)
        below, above = jnp.where(value > 0, x, below), jnp.where(value <= 0, x, above)
        newton = x - value / slope
        usable = (newton > below) & (newton < above) & (jnp.abs(value) <= before / 2)
        following = jnp.where(usable, newton, (below + above) / 2)
        # The first was low, to see whether there is a root; the second is high.
        following = jnp.where(count == 0, high, following)
        before = jnp.where(count == 0, jnp.inf, jnp.abs(value))
        resting = nowhere | (jnp.abs(value) <= tolerance) | (following == x)
        return jnp.where(resting, x, following), kept, below, above, before, resting, count + 1

    start = low, kept, low, high, jnp.full_like(high, jnp.inf), jnp.zeros((), bool), 0
    x, kept, *_ = jax.lax.while_loop(unfinished, step, start)
    return x, kept
