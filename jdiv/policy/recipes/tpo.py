"""TPO (arXiv:2604.06159): a group's policy tilted by utilities."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.policy.tokens import TokenLoss


class Target(NamedTuple):
    """What a group is fitted to, and by what."""

    log_target: Array
    """`[..., G]`"""
    log_policy: Array
    """`[..., G]` softmax of the sequence log-probabilities over the group."""


def tpo_target(old_sequence_log_probs: ArrayLike, utilities: ArrayLike) -> Array:
    """`log q`, `q_i ∝ p_i^old e^(u_i)` over the group. Shapes: `[..., G]` twice to the same.

    Reference: TPO (arXiv:2604.06159).
    """
    old, utilities = checks.alike(
        old_sequence_log_probs=old_sequence_log_probs, utilities=utilities
    )
    return numerics.log_softmax(old + utilities)


def group_forward_kl(sequence_log_probs: ArrayLike, log_target: ArrayLike) -> TokenLoss:
    """`q_i log(q_i/p_i)` per sample, summing to KL(q‖p): p is softmax of the log-probabilities.

    Its gradient by a log-probability is `p - q`, 0 at the target; nothing for a group without
    target. That the policy is normalised over the group is TPO's, and inferred for DMPO.
    Shapes: `[..., G]` twice to the same.

    Reference: DMPO (arXiv:2605.19461), abstract; TPO (arXiv:2604.06159).
    """
    log_probs, log_target = checks.alike(
        sequence_log_probs=sequence_log_probs, log_target=log_target
    )
    log_p = numerics.log_softmax(log_probs)
    inside = log_target > -jnp.inf
    log_q = jax.lax.stop_gradient(jnp.where(inside, log_target, 0))
    loss = jnp.where(inside, jnp.exp(log_q) * (log_q - log_p), 0)
    return TokenLoss(loss, Target(log_target, jax.lax.stop_gradient(log_p)))
