"""Roots of scalar functions: a bracketed Newton iteration, and roots that are differentiable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike


class Root(NamedTuple):
    """A root and the evidence that it is one. The evidence carries no gradient.

    Fields:
        x: `[...]` the root, differentiable in everything that the function closes over.
        residual: `[...]` `|expm1(f(x))|`: f is the logarithm of what should be 1.
        iterations: `[]` steps of the slowest row of the batch.
        converged: `[...]` whether the residual is `small`.
    """

    x: Array
    residual: Array
    iterations: Array
    converged: Array


def small(residual: Array) -> Array:
    """Whether a residual is finite and small: all that `converged` means in this library.

    Small is 128 roundings of 1: 1.5e-5 in single precision, 2.8e-14 in double precision.

    >>> small(jnp.array([0.0, 1e-3, jnp.nan])).tolist()
    [True, False, False]
    """
    return residual <= 128 * jnp.finfo(residual.dtype).eps


def along(f: Callable[..., Any], x: Any, direction: Any) -> Any:
    """The derivative of `f(*x)` along a direction, for a rule with `symbolic_zeros=True`.

    By what is a symbolic zero f is not differentiated, which makes a smaller program.

    >>> along(lambda x, y: x * y, (2.0, 3.0), (1.0, 1.0)).item()
    5.0
    """
    leaves, tree = jax.tree.flatten(tuple(x))
    tangents = jax.tree.leaves(tuple(direction))
    moving = [i for i, one in enumerate(tangents) if not isinstance(one, SymbolicZero)]

    def moved(*values):
        here = list(leaves)
        for i, value in zip(moving, values, strict=True):
            here[i] = value
        return f(*jax.tree.unflatten(tree, here))

    return jax.jvp(moved, [leaves[i] for i in moving], [tangents[i] for i in moving])[1]


def implicit(f: Callable[[Array], Array], start: Array, low: Array, high: Array) -> Root:
    """The root of an increasing, elementwise f in [low, high], by the implicit function theorem.

    Shapes: `[...]` each. Differentiable to any order in what f closes over; `start` and the bracket
    carry no gradient.

    >>> square_root = lambda y: implicit(lambda x: x * x - y, *map(jnp.asarray, (1.0, 0.0, 9.0))).x
    >>> print(f"{square_root(4.0):.4f} {jax.grad(square_root)(4.0):.4f}")
    2.0000 0.2500
    """
    x, evidence = jax.lax.custom_root(
        f,
        start,
        lambda f, start: bracketed_newton(f, start, low, high),
        lambda g, y: y / g(jnp.ones_like(y)),
        has_aux=True,
    )
    residual, iterations = jax.lax.stop_gradient(evidence)
    return Root(x, residual, iterations.astype(jnp.int32), small(residual))


def bracketed_newton(
    f: Callable[[Array], Array], start: Array, low: Array, high: Array
) -> tuple[Array, tuple[Array, Array]]:
    """The root of an increasing f in [low, high]: Newton's step where it helps, else bisection.

    A step has to stay inside the bracket, and the one before must have halved |f|. All rows of
    the batch step together until the last one rests, within rounding of the root or of a bracket
    without one, or is not a number. For `jax.lax.custom_root` it returns the root and, as floats,
    `|expm1(f)|` there and the iterations.
    """
    resolution = 4 * jnp.finfo(start.dtype).eps

    def unfinished(state):
        *_, resting, iteration = state
        return ~jnp.all(resting) & (iteration < 200)

    def step(state):
        x, low, high, before, resting, iteration = state
        value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
        low, high = jnp.where(value < 0, x, low), jnp.where(value > 0, x, high)
        newton = x - value / slope
        scale = resolution * jnp.maximum(jnp.abs(x), 1)
        resting |= (jnp.abs(newton - x) <= scale) | (high - low <= scale) | jnp.isnan(value)
        usable = (newton > low - scale) & (newton < high + scale)
        usable &= jnp.abs(value) <= jnp.abs(before) / 2
        inner = jnp.clip(newton, low + scale / 2, high - scale / 2)
        moved = jnp.where(usable, inner, (low + high) / 2)
        # What rests, and the last step, stays where f is known.
        stays = resting | (iteration == 199)
        return jnp.where(stays, x, moved), low, high, value, resting, iteration + 1

    never = jnp.zeros(start.shape, bool)
    state = start, low, high, jnp.full_like(start, jnp.inf), never, jnp.zeros((), jnp.int32)
    x, _, _, value, _, iterations = jax.lax.while_loop(unfinished, step, state)
    return x, (jnp.abs(jnp.expm1(value)), iterations.astype(x.dtype))


def decreasing(
    f: Callable[[Array, Any], tuple[Array, Array, Any]],
    low: Array,
    high: Array | None,
    kept: Any = (),
    *,
    tolerance: ArrayLike,
    limit: int = 100,
) -> tuple[Array, Any]:
    """The root of a decreasing f of one number with a known slope; `low` where f is negative there.

    `f(x, kept)` is its value, its slope, and what to hand to the next call: a warm start, a count,
    a result. Newton's step is taken from `high`, where f is not positive, or from `low` if there is
    no high; from the right it does not pass a root where f is concave. Where a step leaves the
    bracket, or the one before did not halve |f|, the middle is taken; without a bracket it is
    `x + f(x)`, which does not pass a root where the slope is above -1. Not differentiable.
    Shapes: `[]` each.

    >>> f = lambda x, steps: (2 - x * x, -2 * x, steps + 1)
    >>> x, steps = decreasing(f, jnp.asarray(0.0), jnp.asarray(9.0), 0, tolerance=1e-6)
    >>> print(f"{x:.4f} in {steps} steps")
    1.4142 in 8 steps
    """
    bounded = high is not None

    def unfinished(state):
        *_, resting, count = state
        return ~resting & (count < limit)

    def step(state):
        x, kept, below, above, before, _, count = state
        value, slope, kept = f(x, kept)
        first = count == 0
        nowhere = first & (value <= 0)
        below, above = jnp.where(value > 0, x, below), jnp.where(value <= 0, x, above)
        newton = x - value / slope
        usable = (newton > below) & (newton < above) & (jnp.abs(value) <= before / 2)
        middle = (below + above) / 2
        following = jnp.where(jnp.isinf(middle), jnp.clip(x + value, below, above), middle)
        following = jnp.where(usable, newton, following)
        # The first was low, to see whether there is a root.
        following = jnp.where(first, high, following) if bounded else following
        before = jnp.where(first, jnp.inf, jnp.abs(value))
        resting = nowhere | (jnp.abs(value) <= tolerance) | (following == x)
        return jnp.where(resting, x, following), kept, below, above, before, resting, count + 1

    above = high if bounded else jnp.full_like(low, jnp.inf)
    start = low, kept, low, above, jnp.full_like(above, jnp.inf), jnp.zeros((), bool), 0
    x, kept, *_ = jax.lax.while_loop(unfinished, step, start)
    return x, kept


class Minimum(NamedTuple):
    """A minimum of a loss, with the evidence that it is one.

    Fields:
        x: `[n]` where it is.
        value: `[]` the loss there.
        slope: `[]` the largest derivative there, by size.
    """

    x: Array
    value: Array
    slope: Array


def minimize(loss: Callable[[Array], Array], start: Array, iterations: int) -> Minimum:
    """A local minimum of a smooth loss of logits, by Newton's method with a damping that adapts.

    No logit moves by more than 1 in a step, for nothing comes back from probability zero, where the
    slope is zero, too; what belongs there loses a factor e in each step. The absolute curvature
    leaves saddle points. Shapes: start `[n]`; the loss takes it to a number.
    """

    def everything(x):
        def gradient(x):
            value, slope = jax.value_and_grad(loss)(x)
            return slope, (value, slope)

        curvature, (value, slope) = jax.jacfwd(gradient, has_aux=True)(x)
        return value, slope, curvature

    def step(_, state):
        x, value, slope, curvature, damping = state
        sizes, directions = jnp.linalg.eigh(curvature)
        newton = directions @ ((directions.T @ slope) / (jnp.abs(sizes) + damping))
        newton = newton / jnp.maximum(jnp.max(jnp.abs(newton)), 1)
        moved = x - jnp.where(jnp.max(jnp.abs(slope)) > 1e-14, newton, 0)  # else it is rounding
        there = everything(moved)
        better = there[0] <= value + 1e-15
        kept = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (moved, *there),
            (x, value, slope, curvature),
        )
        return *kept, jnp.where(better, jnp.maximum(damping / 8, 1e-14), damping * 8)

    nothing = jnp.zeros_like(start)
    state = start, jnp.asarray(jnp.inf, start.dtype), nothing, jnp.diag(nothing)
    x, value, slope, *_ = jax.lax.fori_loop(
        0, iterations, step, (*state, jnp.ones((), start.dtype))
    )
    return Minimum(x, value, jnp.max(jnp.abs(slope)))


def damped_newton(
    newton: Callable[[Array], tuple[Array, Array, Array]], start: Array, *, limit: int = 200
) -> tuple[Array, Array, Array]:
    """The minimum of a convex loss by damped Newton steps that need no line search.

    `newton(x)` is the step, its distance d, and whether x is good enough: d is such that along the
    step the third derivative of the loss is at most d times the second, as in losses of
    exponential families, where d is how much the exponent varies: generalized self-concordance.
    `log(1 + d)/d` of the step then cannot go uphill, and is all of it near the minimum. A row that
    is good enough takes one more step and rests. Shapes: `[..., n]` to x `[..., n]`, whether it
    rests `[...]`, and the iterations of the slowest row `[]`. Not differentiable.

    >>> wins, losses = 3.0, 1.0  # of a coin: log odds log 3
    >>> def newton(x):
    ...     p = jax.nn.sigmoid(x[0])
    ...     step = (wins - (wins + losses) * p) / ((wins + losses) * p * (1 - p))
    ...     return step[None], jnp.abs(step), jnp.abs(step) < 1e-3
    >>> x, resting, _ = damped_newton(newton, jnp.zeros(1))
    >>> print(f"{x[0]:.4f}", resting)
    1.0986 True

    Reference: Bach 2010 (arXiv:0910.4627), Proposition 1; Sun and Tran-Dinh 2019
    (arXiv:1703.04599), Theorem 2, for the factor.
    """

    def unfinished(state):
        _, resting, iteration = state
        return ~jnp.all(resting) & (iteration < limit)

    def step(state):
        x, resting, iteration = state
        move, distance, enough = newton(x)
        safe = jnp.where(
            distance > 0, jnp.log1p(distance) / jnp.where(distance > 0, distance, 1), 1
        )
        x = jnp.where(resting[..., None], x, x + safe[..., None] * move)
        return x, resting | enough, iteration + 1

    state = start, jnp.zeros(start.shape[:-1], bool), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unfinished, step, state)
