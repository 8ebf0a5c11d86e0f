"""TPO (arXiv:2604.06159): a policy fitted over each group to its old one, tilted by utilities."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.types import Values


def tpo_target(old_log_probs: Values, utilities: Values) -> Array:
    """`log q`, `q_i ∝ p_i^old e^(u_i)` over the group of sequences.

    Shapes: log-probabilities of sequences and utilities `[..., G]` to the same.

    Reference: TPO (arXiv:2604.06159).
    """
    old, utilities = checks.alike(old_log_probs=old_log_probs, utilities=utilities)
    return numerics.log_softmax(old + utilities)


def group_forward_kl(log_probs: Values, log_target: Values) -> Array:
    """KL(q‖p) of each group, q normalized and p the softmax of its sequences' log-probabilities.

    A loss per group, already summed over the group and to be averaged over groups. Its gradient by
    a log-probability is `p - q`, 0 at the target; 0 for a group without target, all -inf. Shapes:
    `[..., G]` twice to `[...]`.

    >>> target = jnp.log(jnp.array([0.5, 0.5]))
    >>> log_probs = jnp.log(jnp.array([0.01, 0.03]))  # sequences are unlikely, one thrice the other
    >>> print(f"{group_forward_kl(log_probs, target):.4f}")
    0.1438
    >>> jax.grad(group_forward_kl)(log_probs, target).round(4)
    Array([-0.25,  0.25], dtype=float32)

    Reference: TPO (arXiv:2604.06159).
    """
    log_probs, log_target = checks.alike(log_probs=log_probs, log_target=log_target)
    log_p = numerics.log_softmax(log_probs)
    inside = log_target != -jnp.inf
    none = ~jnp.any(inside, axis=-1, keepdims=True)
    even = jnp.where(none, -math.log(max(1, log_target.shape[-1])), log_target)
    log_q = jnp.where(inside, checks.log_probabilities("log_target", even), 0)
    log_q = jax.lax.stop_gradient(log_q)
    return jnp.sum(jnp.where(inside, jnp.exp(log_q) * (log_q - log_p), 0), axis=-1)
