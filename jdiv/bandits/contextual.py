"""Contextual bandits by inverse gap weighting: predicted losses become probabilities.

SquareCB and FastCB, played against a table of Bernoulli losses. The bandit next to a reference
policy, that of RLHF, is `jdiv.alignment.gshf`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.types import PerRow, RandomKey, Samples, Scalar, Values

# --------------------------------------------------------------------------- inverse gap weighting


def square_cb(losses: Values, step_size: PerRow) -> Array:
    """`p_a = 1 / (K + step_size (y_a - y_b))` for all but the best arm b, which has the rest.

    Shapes: predicted losses `[..., K]` to probabilities `[..., K]`.

    >>> square_cb(jnp.array([0.25, 0.75]), 4.0).tolist()
    [0.75, 0.25]

    Reference: Foster and Rakhlin 2020 (arXiv:2002.04926), Algorithm 1; Abe and Long 1999.
    """
    losses = _losses(losses)
    step_size = checks.positive("step_size", step_size, rows=losses)
    return _rest_to_best(losses, 1 / (losses.shape[-1] + step_size * _gaps(losses)))


def fast_cb(losses: Values, step_size: PerRow) -> Array:
    """`p_a = y_b / (K y_b + step_size (y_a - y_b))` for all but the best arm b, which has the rest.

    The smaller the best loss is, the less it explores. Losses must not be negative.
    Shapes: predicted losses `[..., K]` to probabilities `[..., K]`.

    >>> fast_cb(jnp.array([0.25, 0.75]), 3.0).tolist()
    [0.875, 0.125]

    Reference: Foster and Krishnamurthy 2021 (arXiv:2107.02237), Algorithm 1.
    """
    losses = checks.not_negative("losses", _losses(losses))
    step_size = checks.positive("step_size", step_size, rows=losses)
    best = jnp.min(losses, axis=-1, keepdims=True)
    scale = losses.shape[-1] * best + step_size * _gaps(losses)
    # Best arms of loss 0 are equal, and share as they do for any other loss.
    even = scale == 0
    p = jnp.where(even, 1 / losses.shape[-1], best / jnp.where(even, 1, scale))
    return _rest_to_best(losses, p)


def greedy(losses: Values) -> Array:
    """The first of the best arms, as probabilities `[..., K]` of losses `[..., K]`.

    >>> greedy(jnp.array([0.75, 0.25])).tolist()
    [0.0, 1.0]
    """
    losses = _losses(losses)
    least = jnp.min(losses, axis=-1, keepdims=True)
    return _rest_to_best(losses, checks.spread_nan(jnp.zeros_like(losses), least))


def _losses(losses: ArrayLike) -> Array:
    losses = checks.as_float("losses", losses)
    if losses.ndim == 0 or losses.shape[-1] == 0:
        raise ValueError(f"losses must have at least one arm, got shape {tuple(losses.shape)}")
    return losses


def _gaps(losses: Array) -> Array:
    return losses - jnp.min(losses, axis=-1, keepdims=True)


def _rest_to_best(losses: Array, p: Array) -> Array:
    """Probability 1 in all, what is missing for it at the first of the best arms."""
    best = jax.nn.one_hot(jnp.argmin(losses, axis=-1), losses.shape[-1], dtype=bool)
    others = jnp.where(best, 0, p)
    return jnp.where(best, 1 - jnp.sum(others, axis=-1, keepdims=True), others)


def square_cb_step_size(arms: int, horizon: Scalar, oracle: Scalar) -> Array:
    """`sqrt(K T / oracle)`: SquareCB's step size by the regret of its oracle in squared loss.

    >>> square_cb_step_size(5, 2000, 4.0).item()
    50.0

    Reference: Foster and Rakhlin 2020 (arXiv:2002.04926), Theorem 1, up to constants.
    """
    arms = checks.whole("arms", arms, 1, 2**31 - 1, "at least 1")
    horizon, oracle = checks.positive("horizon", horizon), checks.positive("oracle", oracle)
    return jnp.sqrt(arms * horizon / oracle)


def fast_cb_step_size(arms: int, horizon: Scalar, oracle: Scalar, best_loss: Scalar = 0.0) -> Array:
    """`max(sqrt(K L* / (3 oracle)), 10 K)`: FastCB's step size, its oracle in log loss.

    `L* = best_loss * horizon` bounds the loss of the best policy.

    Reference: Foster and Krishnamurthy 2021 (arXiv:2107.02237), Theorem 1.
    """
    arms = checks.whole("arms", arms, 1, 2**31 - 1, "at least 1")
    horizon, oracle = checks.positive("horizon", horizon), checks.positive("oracle", oracle)
    best_loss = checks.not_negative("best_loss", best_loss)
    return jnp.maximum(jnp.sqrt(arms * best_loss * horizon / (3 * oracle)), 10 * arms)


def play(policy: Callable[[Array], Array], means: Samples, horizon: int, key: RandomKey) -> Array:
    """Regret `[horizon]` of a policy on Bernoulli losses, with a table of counts for its oracle.

    Contexts are uniform; `policy` maps predicted losses `[arms]` to probabilities `[arms]`. The
    prediction for a context and an arm is Laplace's `(1 + losses) / (2 + pulls)`.
    Shapes: means `[contexts, arms]`.

    >>> play(greedy, jnp.array([[0.0, 1.0]]), 50, jax.random.key(0)).shape
    (50,)
    """
    means = checks.share("means", checks.as_float("means", means))
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"means must be of shape [contexts, arms], got {tuple(means.shape)}")
    horizon = checks.whole("horizon", horizon, 1, 2**31 - 1, "at least 1")

    def pull(state, uniforms):
        pulls, losses = state
        x = (uniforms[0] * means.shape[0]).astype(int)
        arm = drawn(policy((1 + losses[x]) / (2 + pulls[x])), uniforms[1])
        loss = (uniforms[2] < means[x, arm]).astype(means.dtype)
        state = pulls.at[x, arm].add(1), losses.at[x, arm].add(loss)
        return state, means[x, arm] - jnp.min(means[x])

    none = jnp.zeros_like(means)
    uniforms = jax.random.uniform(key, (horizon, 3), means.dtype)
    return jnp.cumsum(jax.lax.scan(pull, (none, none), uniforms)[1])


def drawn(p: Array, uniform: Array) -> Array:
    """The place of `uniform` among cumulative probabilities: `[..., K]` and `[...]` to `[...]`."""
    return jnp.sum(uniform[..., None] >= jnp.cumsum(p, axis=-1)[..., :-1], axis=-1)
