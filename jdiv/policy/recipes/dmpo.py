"""DMPO (arXiv:2605.19461): a target over a group in proportion to rewards."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks


def dmpo_target(rewards: ArrayLike) -> Array:
    """`log(R_i / sum R)`: -inf for no reward, and everywhere in a group without any.

    Shapes: `[..., G]` rewards that are not negative, to the same; a negative one has no logarithm
    and counts as no reward.

    Reference: DMPO (arXiv:2605.19461), abstract: a target proportional to the reward.
    """
    rewards = checks.as_float("rewards", rewards)
    rewards = jnp.maximum(rewards, 0)
    total = jnp.sum(rewards, axis=-1, keepdims=True)
    share = rewards / jnp.where(total > 0, total, 1)
    return jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1)), -jnp.inf)
