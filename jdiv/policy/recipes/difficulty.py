"""Online difficulty filtering (arXiv:2504.03380): questions by pass rate, KL to the optimum.

Reconstructed: the band .2 to .8 is from a note by others. The exact statement of the paper about
learnability is unknown; the KL and its limit are derived here.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, divergences
from jdiv.policy.advantages import grouped
from jdiv.types import Rewards, Scalar


def pass_rate(rewards: Rewards) -> Array:
    """Mean reward of each group. Shapes: `[groups, size]` to `[groups]`."""
    return jnp.mean(grouped(rewards), axis=-1)


def difficulty_filter(rewards: Rewards, *, low: Scalar = 0.2, high: Scalar = 0.8) -> Array:
    """Whether to keep a group: its pass rate is in [low, high].

    Groups without variance have no gradient, and any band within (0, 1) drops them. Shapes:
    `[groups, size]` to `[groups]`.

    Reference: online difficulty filtering (arXiv:2504.03380).
    """
    low = checks.share("low", low)
    high = checks.in_range("high", high, low, 1, "from low to 1", closed="both")
    accuracy = pass_rate(rewards)
    return (accuracy >= low) & (accuracy <= high)


def kl_to_optimum(accuracy: ArrayLike, beta: ArrayLike) -> Array:
    """`KL(pi_0‖pi*) = log(1 - p + p e^(1/beta)) - p/beta` at accuracy p and reward 0 or 1.

    pi* maximizes `E[r] - beta KL(pi‖pi_0)`. For large beta it is `p (1 - p) / (2 beta^2)`, which is
    no lower bound in general: see `learnability`. Shapes: any, broadcast; 0 at p = 0 and 1.

    >>> print(f"{kl_to_optimum(0.3, 1.0):.4f}")
    0.1157

    Reference: online difficulty filtering (arXiv:2504.03380), for the relation.
    """
    return divergences.kl(*_bernoulli(accuracy, beta))


def kl_from_optimum(accuracy: ArrayLike, beta: ArrayLike) -> Array:
    """`KL(pi*‖pi_0)`, the other direction of `kl_to_optimum`, from accuracy and beta.

    Shapes: any, broadcast; 0 at p = 0 and 1.
    """
    return divergences.kl(*_bernoulli(accuracy, beta)[::-1])


def _bernoulli(accuracy: ArrayLike, beta: ArrayLike) -> tuple[Array, Array]:
    """Logits of a wrong and a right answer, under pi_0 and under pi*."""
    accuracy = jnp.asarray(checks.share("accuracy", accuracy), jnp.result_type(float))
    beta = checks.positive("beta", beta)
    accuracy, gain = jnp.broadcast_arrays(accuracy, jnp.asarray(1 / beta, accuracy.dtype))
    logits = jnp.stack([jnp.log1p(-accuracy), jnp.log(accuracy)], axis=-1)
    return logits, logits + jnp.stack([jnp.zeros_like(gain), gain], axis=-1)


def learnability(accuracy: ArrayLike, beta: ArrayLike) -> Array:
    """`p (1 - p) / (2 beta^2)`, the limit of `kl_to_optimum` for large beta, from an accuracy p.

    At beta 1 it is less than that for p = .1 and .3, and more from .5 on: the next order is
    `p (1 - p) (1 - 2 p) / (6 beta^3)`. Shapes: any, broadcast.

    >>> print(f"{learnability(0.3, 1.0):.4f}")
    0.1050

    Reference: online difficulty filtering (arXiv:2504.03380).
    """
    accuracy = checks.share("accuracy", accuracy)
    return accuracy * (1 - accuracy) / (2 * checks.positive("beta", beta) ** 2)
