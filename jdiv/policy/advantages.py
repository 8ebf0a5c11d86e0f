"""Advantages from groups of answers to one question: GRPO, RLOO, REINFORCE++, DAPO's filter.

Rewards are `[groups, size]`, a group the answers to one question: numbers, or 0 and 1, which may
be booleans and integers. Flat ones `[n]` are refused, as they would be one group. Advantages are
constants. With a loss of `jdiv.policy.clipped`, an average of `jdiv.policy.tokens` and a KL term
of `jdiv.policy.kl_terms` they make up the methods:

============  ==============================  ========================  =====================
method        advantages                      loss                      average
============  ==============================  ========================  =====================
GRPO          `grpo_advantages`               `ppo_clip`, `kl_penalty`  `sequence_mean`
Dr. GRPO      `grpo_advantages(scale=False)`  `ppo_clip`                `constant_mean`
DAPO          `grpo_advantages`               `ppo_clip(high=.28)`      `token_mean`
GSPO          `grpo_advantages`               `gspo`                    `sequence_mean`
CISPO         `grpo_advantages`               `cispo`                   `token_mean`
VESPO         `grpo_advantages`               `vespo`                   `token_mean`
RLOO          `rloo_advantages`               `reinforce`               `constant_mean`, 1
REINFORCE++   `batch_advantages`              `ppo_clip`                `token_mean`
============  ==============================  ========================  =====================

RLOO and REINFORCE++ have KL in the rewards: the sum of `kl_rewards` over a sequence, and their
`to_go`. DAPO leaves out groups that are not `varied`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, parallel
from jdiv.policy.tokens import kept, masked_mean
from jdiv.types import Mask, PerToken, Rewards


def grouped(rewards: Rewards, name: str = "rewards") -> Array:
    """Checked rewards `[groups, size]`, or more axes before these; one axis is refused."""
    rewards = checks.as_rewards(name, rewards)
    if rewards.ndim < 2 or rewards.shape[-1] == 0:
        raise ValueError(
            f"{name} must be of shape [groups, size], such as {name}.reshape(-1, size), got"
            f" {tuple(rewards.shape)}"
        )
    return rewards


def _centered(rewards: Array) -> Array:
    """Rewards less the mean of their group, exactly 0 where all are equal."""
    # The mean of equal numbers may not be that number in floating point.
    relative = rewards - rewards[..., :1]
    return relative - jnp.mean(relative, axis=-1, keepdims=True)


def grpo_advantages(rewards: Rewards, *, scale: bool = True) -> Array:
    """`(r - mean)/std` of each group, 0 where all are equal; `scale=False` leaves out std.

    The standard deviation is that of the group (n, not n - 1). Shapes: `[groups, size]` to the
    same.

    >>> grpo_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0]]))
    Array([[ 1., -1., -1.,  1.]], dtype=float32)

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), section 4.1.2; without std Dr. GRPO (Liu
    et al. 2025, arXiv:2503.20783).
    """
    centered = _centered(jax.lax.stop_gradient(grouped(rewards)))
    if not scale:
        return centered
    # In units of the largest no square over- or underflows.
    largest = jnp.max(jnp.abs(centered), axis=-1, keepdims=True)
    centered = centered / jnp.where(largest == 0, 1, largest)
    spread = jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True))
    return centered / jnp.where(spread == 0, 1, spread)


def mean_of_others(rewards: Rewards) -> Array:
    """The mean reward of the other answers of the group: a baseline independent of the answer.

    A mean that includes the answer itself makes the gradient (n - 1)/n of what it should be.
    No reward is added and taken off again, so a large one leaves its own baseline exact.
    Shapes: `[..., size]` to the same, size > 1.

    >>> mean_of_others(jnp.array([[3.0, 1.0, 2.0]]))
    Array([[1.5, 2.5, 2. ]], dtype=float32)

    Reference: Ahmadian et al. 2024 (arXiv:2402.14740), section 3.
    """
    rewards = checks.as_rewards("rewards", rewards)
    if rewards.ndim == 0 or rewards.shape[-1] < 2:
        raise ValueError(f"rewards must have at least two samples, got shape {rewards.shape}")
    last = rewards.ndim - 1
    before = jax.lax.cumsum(rewards, axis=last)[..., :-1]
    after = jax.lax.cumsum(rewards, axis=last, reverse=True)[..., 1:]
    none = jnp.zeros_like(rewards[..., :1])
    sums = jnp.concatenate([none, before], axis=-1) + jnp.concatenate([after, none], axis=-1)
    mean = sums / (rewards.shape[-1] - 1)
    # The mean of equal numbers may not be that number in floating point.
    equal = jnp.all(rewards == rewards[..., :1], axis=-1, keepdims=True)
    return mean + jax.lax.stop_gradient(jnp.where(equal, rewards - mean, 0))


def _less_others(rewards: Array) -> Array:
    """`r - mean_of_others(r) = n/(n - 1) (r - mean)`."""
    return _centered(rewards) * (rewards.shape[-1] / (rewards.shape[-1] - 1))


def rloo_advantages(rewards: Rewards) -> Array:
    """Reward less `mean_of_others`, `n/(n - 1) (r - mean)`.

    A single answer has no others and keeps its reward. Shapes: `[groups, size]` to the same.

    >>> rloo_advantages(jnp.array([[3.0, 1.0, 2.0]]))
    Array([[ 1.5, -1.5,  0. ]], dtype=float32)

    Reference: Ahmadian et al. 2024 (arXiv:2402.14740), section 3.
    """
    rewards = jax.lax.stop_gradient(grouped(rewards))
    return rewards if rewards.shape[-1] == 1 else _less_others(rewards)


def batch_advantages(returns: PerToken, mask: Mask, *, axis_name: str | None = None) -> Array:
    """`(x - mean)/std` of tokens' returns over the whole batch, not the group; 0 where masked.

    0 if all are equal, by the resolution of the mean. Shapes: `[..., T]` twice to the same.

    >>> batch_advantages(jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]]))
    Array([[-1.,  1.,  0.]], dtype=float32)

    Reference: REINFORCE++ (Hu et al. 2025, arXiv:2501.03262).
    Reconstructed: the formula is from memory of the paper.
    """
    x, mask = kept("returns", jax.lax.stop_gradient(jnp.asarray(returns)), mask)
    mean = masked_mean(x, mask, axis_name)
    centered = jnp.where(mask, x - mean, 0)
    # In units of the largest no square over- or underflows.
    largest = parallel.max_over(jnp.max(jnp.abs(centered)), axis_name)
    unit = jnp.where(largest == 0, 1, largest)
    spread = jnp.sqrt(masked_mean((centered / unit) ** 2, mask, axis_name))
    # The mean of equal numbers may not be that number: what is left then is rounding.
    equal = spread * unit <= 4 * jnp.finfo(x.dtype).eps * jnp.abs(mean)
    return jnp.where(mask & ~equal, centered / unit / jnp.where(equal, 1, spread), 0)


def varied(rewards: Rewards) -> Array:
    """Whether a group has different rewards: the others have no gradient, and DAPO samples anew.

    Shapes: `[groups, size]` to `[groups]`.

    >>> varied(jnp.array([[0.0, 1.0], [1.0, 1.0]]))
    Array([ True, False], dtype=bool)

    Reference: DAPO (arXiv:2503.14476), section 3.2, dynamic sampling.
    """
    rewards = grouped(rewards)
    return jnp.any(rewards != rewards[..., :1], axis=-1)
