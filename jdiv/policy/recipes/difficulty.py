"""Online difficulty filtering (arXiv:2504.03380): questions by pass rate, KL to the optimum."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, divergences


def pass_rate(rewards: ArrayLike) -> Array:
    """Mean reward of each group. Shapes: `[..., size]` to `[...]`."""
    return jnp.mean(checks.as_float("rewards", rewards), axis=-1)


def difficulty_filter(rewards: ArrayLike, *, low: ArrayLike = 0.2, high: ArrayLike = 0.8) -> Array:
    """Which groups to keep: those with a pass rate in [low, high].

    The band .2 to .8 is from a note by others. Without variance in a group there is no gradient:
    any band within (0, 1) drops those. Shapes: `[..., size]` to `[...]`.

    Reference: online difficulty filtering (arXiv:2504.03380).
    """
    rate = pass_rate(rewards)
    return (rate >= low) & (rate <= high)


def kl_to_optimum(rate: ArrayLike, beta: ArrayLike) -> Array:
    """`KL(pi_0‖pi*) = log(1 - p + p e^(1/beta)) - p/beta` for a pass rate p and reward 0 or 1.

    pi* maximises `E[r] - beta KL(pi‖pi_0)`. For large beta it is `p (1 - p) / (2 beta^2)`, which is
    no lower bound in general: see `learnability`. Shapes: any, broadcast; 0 at p = 0 and 1.

    >>> print(f"{kl_to_optimum(0.3, 1.0):.4f}")
    0.1157

    Reference: derived; online difficulty filtering (arXiv:2504.03380) for the relation.
    """
    return divergences.kl(*_bernoulli(rate, beta))


def kl_from_optimum(rate: ArrayLike, beta: ArrayLike) -> Array:
    """`KL(pi*‖pi_0)`, the other direction of `kl_to_optimum`. Shapes: any, broadcast."""
    return divergences.kl(*_bernoulli(rate, beta)[::-1])


def _bernoulli(rate: ArrayLike, beta: ArrayLike) -> tuple[Array, Array]:
    """Logits of wrong and right, of pi_0 and of pi*."""
    rate = jnp.asarray(rate, jnp.result_type(float))
    rate, gain = jnp.broadcast_arrays(rate, jnp.asarray(1 / beta, rate.dtype))
    logits = jnp.stack([jnp.log1p(-rate), jnp.log(rate)], axis=-1)
    return logits, logits + jnp.stack([jnp.zeros_like(gain), gain], axis=-1)


def learnability(rate: ArrayLike, beta: ArrayLike) -> Array:
    """`p (1 - p) / (2 beta^2)`: what `kl_to_optimum` is for large beta.

    At beta 1 it is below it for p = .1 and .3, and above it from .5 on: the next order is
    `p (1 - p) (1 - 2 p) / (6 beta^3)`. Shapes: any, broadcast.

    Reference: online difficulty filtering (arXiv:2504.03380), whose exact statement is unknown.
    """
    return rate * (1 - rate) / (2 * beta**2)
