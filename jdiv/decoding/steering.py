"""Steering within a bound on KL: how far logits may move along a direction.

A vector v, added to the last hidden state with a strength s, adds `s d` to the logits: `d = W v`, W
the head. The steered law `p_s = p e^(s d) / Z` is an exponential family in s, whose divergence
from p grows like `s^2 Var_p(d) / 2` and, by any direction, never faster than `s^2 range(d)^2 / 8`.
So a strength that keeps a bound has a closed form, and the one that spends it is a root.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, divergences, numerics, roots
from jdiv.types import Logits, LogPolicy, PerRow, PerSequence, Values


class Strength(NamedTuple):
    """The strength that spends a bound on KL, with the evidence that it does.

    Fields:
        strength: `[...]` of the step along the direction; inf where no step reaches the bound.
        log_policy: `[..., n]` the steered law; at inf the model's, given the tokens of the largest
            direction.
        kl: `[...]` `KL(steered‖model)`.
        residual: `[...]` `|kl / budget - 1|`.
        iterations: `[]` steps of the solver; one number for the whole batch.
        converged: `[...]` whether the residual is small.
    """

    strength: Array
    log_policy: Array
    kl: Array
    residual: Array
    iterations: Array
    converged: Array


def steered(logits: Logits, direction: Values, *, strength: PerRow) -> LogPolicy:
    """The law of logits moved along a direction, `logits + strength direction`, normalized.

    Shapes: `[..., n]` twice to the same, strength a number or `[...]`. Tokens at -inf stay there,
    whatever their direction.

    >>> p = steered(jnp.zeros(2), jnp.array([1.0, 0.0]), strength=1.0)
    >>> print([f"{x:.4f}" for x in jnp.exp(p)])
    ['0.7311', '0.2689']
    """
    logits, direction = _checked(logits, direction)
    strength = checks.finite("strength", strength, rows=logits)
    return numerics.log_softmax(logits + strength * direction)


def safe_strength(logits: Logits, direction: Values, *, budget: PerRow) -> PerSequence:
    """`sqrt(8 budget) / range(direction)`: no step of this strength has more KL than the budget.

    Neither KL(steered‖model) nor KL(model‖steered): both are integrals of the variance of the
    direction along the step, which is at most a quarter of the squared range (Popoviciu). The range
    is that over the tokens that the model can say; of one that moves none of them it is 0 and the
    strength inf. Shapes: `[..., n]` twice to `[...]`; the budget, in nats, a number or `[...]`.

    >>> logits, direction = jnp.zeros(2), jnp.array([1.0, 0.0])
    >>> print(f"{safe_strength(logits, direction, budget=0.02):.4f}")
    0.4000

    Reference: Azizi, Baghaei Potraghloo and Pedram 2025 (arXiv:2507.04742), steering with a
    strength bounded by KL.
    Reconstructed: the closed form, of which the abstract says that there is one.
    """
    logits, direction = _checked(logits, direction)
    budget = checks.not_negative("budget", budget, rows=logits)
    possible = logits != -jnp.inf
    highest = jnp.max(jnp.where(possible, direction, -jnp.inf), axis=-1, keepdims=True)
    lowest = jnp.min(jnp.where(possible, direction, jnp.inf), axis=-1, keepdims=True)
    spread = highest - lowest
    safe = jnp.sqrt(8 * jnp.asarray(budget, logits.dtype)) / jnp.where(spread > 0, spread, 1)
    return jnp.where(spread == 0, jnp.inf, checks.spread_nan(safe, spread))[..., 0]


def quadratic_strength(logits: Logits, direction: Values, *, budget: PerRow) -> PerSequence:
    """`sqrt(2 budget / Var_p(direction))`: spends the budget to second order, and keeps no bound.

    Exact in the limit of small budgets; the KL it has is off by the third cumulant, either way.
    Shapes as of `safe_strength`; inf where the model sees no variance.

    >>> logits, direction = jnp.zeros(2), jnp.array([1.0, 0.0])
    >>> print(f"{quadratic_strength(logits, direction, budget=0.02):.4f}")
    0.4000
    """
    logits, direction = _checked(logits, direction)
    budget = checks.not_negative("budget", budget, rows=logits)
    variance = _variance(numerics.log_softmax(logits), direction)
    varies = variance > 0
    strength = jnp.sqrt(2 * jnp.asarray(budget, logits.dtype) / jnp.where(varies, variance, 1))
    return jnp.where(variance == 0, jnp.inf, checks.spread_nan(strength, variance))[..., 0]


def exact_strength(logits: Logits, direction: Values, *, budget: PerRow) -> Strength:
    """The strength at which `KL(steered‖model) = budget`, and the law there.

    The KL is `s mu'(s) - mu(s)` of `mu(s) = log E_p[e^(s d)]`, which rises with s to `-log` of the
    mass of the tokens whose direction is largest. A budget above that is not reached: the strength
    is inf and `converged` false. Shapes as of `safe_strength`, whose strength is a lower bound;
    the budget is positive. Differentiable in logits, direction and budget.

    >>> found = exact_strength(jnp.zeros(2), jnp.array([1.0, 0.0]), budget=0.02)
    >>> print(f"{found.strength:.4f} {found.kl:.4f}")
    0.4041 0.0200

    Reference: Azizi, Baghaei Potraghloo and Pedram 2025 (arXiv:2507.04742), the bound.
    """
    logits, direction = _checked(logits, direction)
    budget = checks.positive("budget", budget, rows=logits)
    budget = jnp.broadcast_to(jnp.asarray(budget, logits.dtype), (*logits.shape[:-1], 1))[..., 0]
    possible = logits != -jnp.inf
    log_p = numerics.log_softmax(logits)
    largest = jnp.max(jnp.where(possible, direction, -jnp.inf), axis=-1, keepdims=True)
    best = jnp.where(possible & (direction == largest), logits, -jnp.inf)
    reach = -jax.nn.logsumexp(jnp.where(best == -jnp.inf, -jnp.inf, log_p), axis=-1)
    reached = budget < reach
    # Where nothing is to be found a problem with a known answer stands in for it.
    moving = jnp.where(reached[..., None] & possible, direction - largest, 0)
    least = jax.lax.stop_gradient(
        safe_strength(logits, jnp.where(possible, direction, 0), budget=1.0)
    )
    least = jnp.where(reached, least * jnp.sqrt(budget), 1)

    def law(x):
        strength = least * jnp.exp(x)
        return strength, logits + strength[..., None] * moving

    def excess(x):
        _, moved = law(x)
        kl = divergences.kl(moved, logits)
        return jnp.where(reached, jnp.log(jnp.where(reached, kl, 1)) - jnp.log(budget), x)

    start = jnp.zeros_like(budget)
    high = jnp.full_like(budget, 0.4 * numerics.largest_exponent(budget))
    x, residual, iterations, converged = roots.implicit(excess, start, start, high)
    strength, moved = law(x)
    log_policy = numerics.log_softmax(jnp.where(reached[..., None], moved, best))
    kl = jnp.where(reached, divergences.kl(moved, logits), reach)
    short = jnp.abs(reach / budget - 1)
    return Strength(
        jnp.where(reached, strength, jnp.inf),
        log_policy,
        kl,
        jnp.where(reached, residual, short),
        iterations,
        jnp.where(reached, converged, roots.small(short)),
    )


def _checked(logits: Logits, direction: Values) -> tuple[Array, Array]:
    """Both in one precision; a token that is excluded has no direction."""
    logits, direction = checks.alike(logits=logits, direction=direction)
    checks.some_category("logits", logits)
    return logits, jnp.where(logits == -jnp.inf, 0, direction)


def _variance(log_p: Array, direction: Array) -> Array:
    """`[..., 1]`; exactly 0 of a constant."""
    p, below = jnp.exp(log_p), direction - jnp.max(direction, axis=-1, keepdims=True)
    mean = jnp.sum(p * below, axis=-1, keepdims=True)
    return jnp.sum(p * (below - mean) ** 2, axis=-1, keepdims=True)
