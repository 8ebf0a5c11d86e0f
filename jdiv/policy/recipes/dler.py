"""DLER (arXiv:2510.15110): truncation as the length penalty, batch-normalized advantages."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel
from jdiv.policy.advantages import grpo_advantages


def dler_rewards(rewards: ArrayLike, lengths: ArrayLike, *, limit: ArrayLike) -> Array:
    """0 for answers longer than the limit: cut off there, they have none.

    Shapes: any, twice the same.

    Reference: DLER (arXiv:2510.15110), abstract, for truncation as the penalty.
    """
    rewards = checks.as_float("rewards", rewards)
    return jnp.where(jnp.asarray(lengths) > limit, 0, rewards)


def dler_advantages(rewards: ArrayLike, *, axis_name: str | None = None) -> Array:
    """Rewards less their group's mean, over the standard deviation of that in the whole batch.

    The abstract has normalisation by the batch instead of the group; the formula is inferred. 0 if
    all groups have equal rewards. Shapes: `[groups, size]` to the same.

    Reference: DLER (arXiv:2510.15110), abstract.
    """
    rewards = checks.as_float("rewards", rewards)
    centred = grpo_advantages(rewards, scale=False)
    variance = parallel.mean_over(jnp.mean(centred**2), axis_name)
    return jnp.where(variance > 0, centred / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
