"""Linear equations known by a function alone: the matrix is never made.

>>> found = solve(lambda x: x / 2, jnp.array([1.0, 4.0]))
>>> found.solution.tolist(), bool(found.converged)
([2.0, 8.0], True)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


class Solved(NamedTuple):
    """A solution of `A x = b` and the evidence that it is one.

    Fields:
        solution: `[n]` x.
        residual: `[]` `max |b - A x|`, computed afresh from x.
        iterations: `[]` steps of the solver, with one or two products with A each.
        converged: `[]` whether the residual is finite and down to rounding of b and x.
    """

    solution: Array
    residual: Array
    iterations: Array
    converged: Array


class _Krylov(NamedTuple):
    """State of the method between two steps."""

    x: Array
    rest: Array
    direction: Array
    rho: Array
    count: Array


def solve(
    f: Callable[[Array], Array], b: Array, start: ArrayLike = 0.0, *, limit: int = 20_000
) -> Solved:
    """The x with `f(x) = b` where f is the identity minus a linear contraction.

    By BiCGSTAB that starts again from the residual, in rounds to a thousandth, so that what a round
    loses the next one mends. A round that does not halve the residual is followed by `SWEEPS` plain
    sweeps `x + b - f(x)`, which converge always, if slowly. Ends when `max |b - f(x)|` is at most
    32 roundings of the largest entry of b and x, or after `limit` steps.

    Reference: van der Vorst 1992, Bi-CGSTAB.
    """
    eps = jnp.finfo(b.dtype).eps

    def slack(x):
        return 32 * eps * jnp.maximum(jnp.max(jnp.abs(b)), jnp.max(jnp.abs(x)))

    def unfinished(state):
        x, rest, _, count = state
        return (jnp.max(jnp.abs(rest)) > slack(x)) & (count < limit)

    def accelerated(state):
        x, rest, _, count = state
        step, more = _round(f, rest)
        after = b - f(x + step)
        size, old_size = jnp.max(jnp.abs(after)), jnp.max(jnp.abs(rest))
        better = size < old_size
        x, rest = jnp.where(better, x + step, x), jnp.where(better, after, rest)
        return x, rest, ~(size < old_size / 2), count + more

    def plain(state):
        x, rest, _, count = state
        x = jax.lax.fori_loop(0, SWEEPS, lambda _, x: x + (b - f(x)), x + rest)
        return x, b - f(x), jnp.array(False), count + SWEEPS

    x = jnp.broadcast_to(jnp.asarray(start, b.dtype), b.shape)
    state = x, b - f(x), jnp.array(False), jnp.zeros((), jnp.int32)
    x, rest, _, count = jax.lax.while_loop(
        unfinished, lambda state: jax.lax.cond(state[2], plain, accelerated, state), state
    )
    residual = jnp.max(jnp.abs(rest))
    return Solved(x, residual, count, residual <= slack(x))


SWEEPS = 200
"""Plain sweeps after a round of BiCGSTAB that stalled."""


def _round(f: Callable[[Array], Array], b: Array) -> tuple[Array, Array]:
    """`f(x) = b` from zero, to a thousandth or for 200 steps, and the number of steps."""
    goal = 1e-3 * jnp.linalg.norm(b)

    def unfinished(at):
        left = jnp.linalg.norm(at.rest)
        return (left > goal) & (at.rho != 0) & (at.count < 200)

    def step(at):
        image = f(at.direction)
        alpha = at.rho / jnp.vdot(b, image)
        half = at.rest - alpha * image
        second = f(half)
        length = jnp.vdot(second, second)
        omega = jnp.where(length == 0, 0, jnp.vdot(second, half) / length)
        rest = half - omega * second
        x = at.x + alpha * at.direction + omega * half
        rho = jnp.vdot(b, rest)
        beta = (rho / at.rho) * (alpha / omega)
        direction = rest + beta * (at.direction - omega * image)
        whole = jnp.all(jnp.isfinite(x))
        # Where the method breaks down, the round ends with what it has.
        return _Krylov(
            jnp.where(whole, x, at.x), rest, direction,
            jnp.where(whole & jnp.all(jnp.isfinite(direction)), rho, 0), at.count + 1,
        )  # fmt: skip

    zero = jnp.zeros_like(b)
    start = _Krylov(zero, b, b, jnp.vdot(b, b), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(unfinished, step, start)
    return end.x, end.count
