"""DLER (arXiv:2510.15110): truncation as the length penalty, advantages normalized over the batch.

Reconstructed: the abstract has truncation as the penalty and normalization by the batch instead of
the group; both formulas are inferred.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel
from jdiv.policy.advantages import grpo_advantages
from jdiv.types import Scalar, Values


def dler_rewards(rewards: Values, lengths: ArrayLike, *, limit: Scalar) -> Array:
    """The rewards, but 0 for answers longer than the limit, where they are cut off.

    Shapes: any, twice the same, to the same.

    Reference: DLER (arXiv:2510.15110), abstract.
    """
    rewards = checks.as_rewards("rewards", rewards)
    lengths = jnp.asarray(checks.not_negative("lengths", lengths), rewards.dtype)
    checks.same_shape(rewards=rewards, lengths=lengths)
    limit = checks.positive("limit", limit, rows=rewards.ravel())
    return checks.spread_nan(jnp.where(lengths > limit, 0, rewards), rewards, lengths, limit)


def dler_advantages(rewards: Values, *, axis_name: str | None = None) -> Array:
    """Rewards less their group's mean, over the standard deviation of that in the whole batch.

    0 if all groups have equal rewards. Shapes: `[groups, size]` to the same.

    Reference: DLER (arXiv:2510.15110), abstract.
    """
    centered = grpo_advantages(rewards, scale=False)
    # In units of the largest no square over- or underflows.
    largest = parallel.max_over(jnp.max(jnp.abs(centered)), axis_name)
    centered = centered / jnp.where(largest == 0, 1, largest)
    variance = parallel.mean_over(jnp.mean(centered**2), axis_name)
    return centered / jnp.sqrt(jnp.where(variance == 0, 1, variance))
