"""Trust-region policy optimization: the natural gradient within a radius, by a line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.types import Scalar


class TrpoStep(NamedTuple):
    """A step inside the trust region, and the evidence of the line search.

    Fields:
        parameters: A pytree like the one that was given; the same one if no length was accepted.
        gain: `[]` of the surrogate.
        divergence: `[]` at most the radius.
        length: `[]` the share of the full step that was taken; 0 if none was.
        residual: `[]` `|F x - g| / |g|` of the direction.
    """

    parameters: Any
    gain: Array
    divergence: Array
    length: Array
    residual: Array


def trpo_step(
    surrogate: Callable[[Any], Array],
    divergence: Callable[[Any], Array],
    parameters: Any,
    radius: Scalar,
    *,
    damping: Scalar = 0.0,
    iterations: int = 10,
    shrink: float = 0.8,
    backtracks: int = 15,
) -> TrpoStep:
    """Maximizes a surrogate where `divergence <= radius`: `sqrt(2 radius/(x'F x)) x`, `x = F^-1 g`.

    F is the Hessian of the divergence, which is 0 at the parameters, and x comes from conjugate
    gradients on `F + damping`. The first of `shrink^k`, k = 0, ..., backtracks, times the step that
    keeps within the radius and does not lose is taken. Both functions map a pytree of parameters to
    a number: `E_old[w A]`, and the mean of KL(old‖new) over states.

    Reference: Schulman et al. 2015 (arXiv:1502.05477), section 6 and appendix C; the sizes of the
    line search are ours.
    """
    checks.in_range("shrink", shrink, 0, 1, "in (0, 1)")
    checks.whole("iterations", iterations, 1, 2**31 - 1, "at least 1")
    checks.whole("backtracks", backtracks, 0, 2**31 - 1, "at least 0")
    flat, unravel = jax.flatten_util.ravel_pytree(parameters)
    radius = checks.positive("radius", radius, rows=flat)
    damping = checks.not_negative("damping", damping, rows=flat)
    now, gradient = jax.value_and_grad(lambda x: surrogate(unravel(x)))(flat)
    _, hessian = jax.linearize(jax.grad(lambda x: divergence(unravel(x))), flat)

    def product(x: Array) -> Array:
        return hessian(x) + damping * x

    x = conjugate_gradients(product, gradient, iterations)
    image = product(x)
    square, steepest = x @ image, jnp.sqrt(gradient @ gradient)
    flatness = steepest == 0
    scale = jnp.sqrt(2 * radius / jnp.where(square > 0, square, 1))
    full = jnp.where(square > 0, scale, 0) * x

    def tried(length: Array) -> tuple[Array, Array]:
        there = unravel(flat + length * full)
        return surrogate(there) - now, divergence(there)

    lengths = shrink ** jnp.arange(backtracks + 1, dtype=flat.dtype)
    gains, distances = jax.vmap(tried)(lengths)
    good = (gains >= 0) & (distances <= radius)
    first, found = jnp.argmax(good), jnp.any(good)
    # Where nothing is accepted the step may be NaN. Where the surrogate is, so is what comes out.
    start = checks.spread_nan(flat, now, steepest, radius, damping)
    there = jnp.where(found, start + lengths[first] * full, start)
    gain, distance, length = (jnp.where(found, x[first], 0) for x in (gains, distances, lengths))
    error = jnp.linalg.norm(image - gradient) / jnp.where(flatness, 1, steepest)
    return TrpoStep(unravel(there), gain, distance, length, error)


def conjugate_gradients(product: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """`F^-1 b` for `product(x) = F x`, from 0.

    It rests where the residual is down to rounding and along directions that F does not see, where
    further steps would go astray.

    Reference: Hestenes and Stiefel 1952.
    """
    rounding = (64 * jnp.finfo(b.dtype).eps) ** 2 * (b @ b)

    def step(_, state):
        x, residual, direction, square = state
        image = product(direction)
        curvature = direction @ image
        going = (square > rounding) & (curvature > 0)
        length = jnp.where(going, square / jnp.where(going, curvature, 1), 0)
        residual = residual - length * image
        following = residual @ residual
        turned = residual + jnp.where(going, following / jnp.where(going, square, 1), 0) * direction
        return x + length * direction, residual, jnp.where(going, turned, direction), following

    return jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b, b @ b))[0]
