"""DMPO (arXiv:2605.19461): the policy of a group is fitted to a target made of its rewards.

The target is the group's own, and no reference enters; the loss is added to GRPO's. As a forward KL
in place of squares the fit is `jdiv.policy.recipes.tpo.group_forward_kl`.

Reconstructed: the formulas are from notes by others and an implementation by others for TRL; that
answers without tokens are left out is inferred.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.policy.tokens import kept
from jdiv.types import LogProbs, Mask, Scalar, Values


def dmpo_target(rewards: Values, *, temperature: Scalar) -> Array:
    """`log p`, `p_i ∝ exp(r_i / temperature)` over the group: even where rewards are equal.

    Shapes: `[..., G]` to the same.

    >>> jnp.exp(dmpo_target(jnp.log(jnp.array([3.0, 1.0])), temperature=1.0)).round(2)
    Array([0.75, 0.25], dtype=float32)

    Reference: DMPO (arXiv:2605.19461).
    """
    rewards = checks.as_rewards("rewards", rewards)
    if rewards.ndim == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"rewards must be of shape [..., G], got {tuple(rewards.shape)}")
    temperature = checks.positive("temperature", temperature, rows=rewards.ravel())
    return numerics.log_softmax(jax.lax.stop_gradient(rewards) / temperature)


def dmpo_loss(log_probs: LogProbs, rewards: Values, mask: Mask, *, temperature: Scalar) -> Array:
    """`mean_i (p_i - q_i)^2`, q the softmax over the group of mean log-probabilities of tokens.

    A loss per group, to be averaged over groups; p is `dmpo_target`'s. Its gradient is bounded,
    unlike a KL's. Answers without tokens are left out of both laws and of the mean; a group without
    tokens has 0. Shapes: `[..., G, T]`, rewards `[..., G]`, to `[...]`.

    >>> log_probs = jnp.log(jnp.array([[0.9, 0.4], [0.12, 1.0]]))  # means .6 and .346, geometric
    >>> print(f"{dmpo_loss(log_probs, jnp.zeros(2), jnp.full((2, 2), True), temperature=1.0):.4f}")
    0.0179

    Reference: DMPO (arXiv:2605.19461).
    """
    log_probs, mask = kept("log_probs", log_probs, mask)
    rewards = checks.as_rewards("rewards", rewards, log_probs.dtype).astype(log_probs.dtype)
    if mask.ndim < 2 or rewards.shape != mask.shape[:-1]:
        raise ValueError(
            "rewards and mask must be of shapes [..., G] and [..., G, T], got"
            f" {tuple(rewards.shape)} and {tuple(mask.shape)}"
        )
    length = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    inside = length > 0
    count = jnp.sum(inside, axis=-1, keepdims=True, dtype=jnp.int32)
    # A group without tokens keeps all of them, all alike, and its loss is 0.
    inside = inside | (count == 0)
    mean = jnp.sum(log_probs, axis=-1) / jnp.maximum(length, 1).astype(log_probs.dtype)
    rewards = jnp.where(count == 0, 0, rewards)
    temperature = checks.positive("temperature", temperature, rows=rewards.ravel())
    p, q = (
        jnp.exp(numerics.log_softmax(jnp.where(inside, x, -jnp.inf)))
        for x in (jax.lax.stop_gradient(rewards) / temperature, mean)
    )
    return jnp.sum((p - q) ** 2, axis=-1) / jnp.maximum(count[..., 0], 1).astype(p.dtype)
