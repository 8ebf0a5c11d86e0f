"""DMPO (arXiv:2605.19461): a policy fitted over each group to a target in proportion to rewards.

The loss is `jdiv.policy.recipes.tpo.group_forward_kl` to `dmpo_target`.

Reconstructed: the target is the abstract's; that the policy is normalized over the group, as in
TPO, is inferred.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.types import Values


def dmpo_target(rewards: Values) -> Array:
    """`log(R_i / sum R)`: -inf for no reward, and everywhere in a group without any.

    Shapes: `[..., G]` rewards that are not negative, to the same.

    >>> jnp.exp(dmpo_target(jnp.array([3.0, 1.0, 0.0]))).round(2)
    Array([0.75, 0.25, 0.  ], dtype=float32)

    Reference: DMPO (arXiv:2605.19461), abstract.
    """
    rewards = checks.not_negative("rewards", checks.as_rewards("rewards", rewards))
    largest = jnp.max(rewards, axis=-1, keepdims=True)
    share = rewards / jnp.where(largest == 0, 1, largest)
    total = jnp.where(largest == 0, 1, jnp.sum(share, axis=-1, keepdims=True))
    none = share == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, share)) - jnp.log(total))
