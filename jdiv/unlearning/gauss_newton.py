"""K-FADE: a few Gauss-Newton steps uphill on the forgotten, each within a bound on retained KL.

Among all steps that change the retained outputs by so much KL, `G^-1 g` raises the forget loss
most, G the Gauss-Newton matrix of KL on retained inputs and g the gradient of the forget loss. So a
bound on outputs becomes one on weights, and the step is the one of a trust region whose surrogate
is the forget loss.

Reference: K-FADE (McKinney et al. 2026, arXiv:2602.10568).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import Array

from jdiv import checks, divergences
from jdiv.policy import trpo
from jdiv.types import Logits, Samples, Scalar


class Factors(NamedTuple):
    """Two matrices whose Kronecker product is about the Gauss-Newton matrix of a linear layer.

    Fields:
        inputs: `[width, width]` `E[x x']`.
        outputs: `[n, n]` `E[diag(p) - p p']`.
    """

    inputs: Array
    outputs: Array


class Step(NamedTuple):
    """A step uphill, and what was measured of it.

    Fields:
        parameters: A pytree like the one that was given.
        gain: `[]` of the forget loss.
        kl: `[]` mean KL(before‖after) of the retained outputs, at most the radius.
        length: `[]` the share of the full step that was taken.
    """

    parameters: Any
    gain: Array
    kl: Array
    length: Array


def uphill(
    loss: Callable[[Any], Array],
    outputs: Callable[[Any], Array],
    parameters: Any,
    *,
    radius: Scalar,
    damping: Scalar = 0.0,
    iterations: int = 10,
) -> Step:
    """One step up the forget loss along `(G + damping)^-1 g`, with at most `radius` of output KL.

    `loss` maps parameters to the forget loss, `outputs` to the retained inputs' logits `[..., n]`,
    over which the mean of KL(before‖after) is taken. Its Hessian at the parameters is G, of which
    products are taken, never the matrix; `iterations` are those of conjugate gradients. The step x
    becomes `sqrt(2 radius/(x'G x)) x`, shortened by a fifth until it keeps within the radius. A
    damping far above G makes it gradient ascent; without any, what G does not see is left alone.

    >>> inputs = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> forget = lambda w: -jax.nn.log_sigmoid(w @ jnp.array([1.0, 1.0]))
    >>> outputs = lambda w: jnp.stack([inputs @ w, jnp.zeros(2)], axis=-1)
    >>> step = uphill(forget, outputs, jnp.array([2.0, 0.5]), radius=0.01)
    >>> print(f"{step.gain:.3f} for {step.kl:.4f}")
    0.060 for 0.0069

    Reference: K-FADE (McKinney et al. 2026, arXiv:2602.10568).
    Reconstructed: that a bound on KL sets the step's length, and the backtracking.
    """
    checks.whole("iterations", iterations, 1, 2**31 - 1, "at least 1")
    flat, unravel = jax.flatten_util.ravel_pytree(parameters)
    radius = checks.positive("radius", radius, rows=flat)
    damping = checks.not_negative("damping", damping, rows=flat)
    before = jax.lax.stop_gradient(checks.as_float("outputs", outputs(parameters)))

    def kl(x: Array) -> Array:
        return jnp.mean(divergences.kl(before, outputs(unravel(x)))).astype(flat.dtype)

    now, gradient = jax.value_and_grad(lambda x: loss(unravel(x)))(flat)
    _, curved = jax.linearize(jax.grad(kl), flat)
    x = trpo.conjugate_gradients(lambda x: curved(x) + damping * x, gradient, iterations)
    square = x @ curved(x)
    scale = jnp.sqrt(2 * radius / jnp.where(square > 0, square, 1))
    full = jnp.where(square > 0, scale, 0) * x

    def too_far(state: tuple[Array, Array]) -> Array:
        length, there = state
        return (there > radius) & (length > 1e-3)

    def shorter(state: tuple[Array, Array]) -> tuple[Array, Array]:
        length = 0.8 * state[0]
        return length, kl(flat + length * full)

    one = jnp.ones((), flat.dtype)
    length, there = jax.lax.while_loop(too_far, shorter, (one, kl(flat + full)))
    near = there <= radius
    # A NaN stays one: nothing is within the radius then, and nothing beyond it.
    length = jnp.where(near | jnp.isnan(there), length, 0)
    moved = unravel(flat + length * full)
    return Step(moved, loss(moved) - now, jnp.where(length > 0, there, 0), length)


def kronecker_factors(features: Samples, logits: Logits) -> Factors:
    """`E[x x']` and `E[diag(p) - p p']`, whose product stands for `E[x x' ⊗ (diag(p) - p p')]`.

    Exact where inputs and probabilities are uncorrelated, such as for logits that are all alike.
    Shapes: features `[samples, width]`, logits `[samples, n]`.

    Reference: K-FAC (Martens and Grosse 2015, arXiv:1503.05671), for one layer.
    """
    features, logits = checks.as_float("features", features), checks.as_float("logits", logits)
    if features.ndim != 2 or logits.ndim != 2 or len(features) != len(logits):
        raise ValueError(
            "features must be [samples, width] and logits [samples, n], got"
            f" {tuple(features.shape)} and {tuple(logits.shape)}"
        )
    p = jax.nn.softmax(logits)
    count = jnp.asarray(len(features), features.dtype)
    return Factors(features.T @ features / count, jnp.diag(jnp.mean(p, axis=0)) - p.T @ p / count)


def kronecker_step(
    gradient: Array, factors: Factors, *, radius: Scalar, damping: Scalar = 0.0
) -> Array:
    """`(A ⊗ S + damping)^-1 g`, as long as `radius` of KL allows by the factored curvature.

    Directions without curvature, such as one number for all logits, are left alone where there is
    no damping. Shapes: gradient `[width, n]` to the same.

    >>> factors = Factors(jnp.eye(1), jnp.array([[0.25, -0.25], [-0.25, 0.25]]))
    >>> step = kronecker_step(jnp.array([[1.0, -1.0]]), factors, radius=0.125)
    >>> print([f"{x:.4f}" for x in step[0]])
    ['0.5000', '-0.5000']

    Reference: K-FADE (McKinney et al. 2026, arXiv:2602.10568).
    Reconstructed: that the damping is added to the product; the length by a bound on KL.
    """
    gradient = checks.as_float("gradient", gradient)
    if gradient.shape != (len(factors.inputs), len(factors.outputs)):
        raise ValueError(f"gradient must be [width, n] of the factors, got {tuple(gradient.shape)}")
    radius = jnp.asarray(checks.positive("radius", radius), gradient.dtype)
    damping = jnp.asarray(checks.not_negative("damping", damping), gradient.dtype)
    (sizes, u), (other_sizes, v) = (jnp.linalg.eigh(factor) for factor in factors)
    curvature = jnp.maximum(sizes, 0)[:, None] * jnp.maximum(other_sizes, 0)[None]
    rounding = gradient.size * jnp.finfo(gradient.dtype).eps * jnp.max(curvature)
    damped = curvature + damping
    seen = damped > rounding
    inside = jnp.where(seen, (u.T @ gradient @ v) / jnp.where(seen, damped, 1), 0)
    square = jnp.sum(curvature * inside**2)
    scale = jnp.where(square > 0, jnp.sqrt(2 * radius / jnp.where(square > 0, square, 1)), 0)
    return scale * (u @ inside @ v.T)
