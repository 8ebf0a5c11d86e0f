"""Advantages from groups of answers to one question: GRPO, RLOO, REINFORCE++, DAPO's filter.

Rewards are `[groups, size]`, a group the answers to one question. Advantages are constants. With
a loss of `jdiv.policy.clipped`, an average of `jdiv.policy.tokens` and a KL term of
`jdiv.policy.kl_terms` they make up the methods:

============  ==============================  ========================  =====================
method        advantages                      loss                      average
============  ==============================  ========================  =====================
GRPO          `grpo_advantages`               `ppo_clip`, `kl_penalty`  `sequence_mean`
Dr. GRPO      `grpo_advantages(scale=False)`  `ppo_clip`                `constant_mean`
DAPO          `grpo_advantages`               `ppo_clip(high=.28)`      `token_mean`
GSPO          `grpo_advantages`               `gspo`                    `sequence_mean`
CISPO         `grpo_advantages`               `cispo`                   `token_mean`
RLOO          `rloo_advantages`               `reinforce`               `constant_mean`
REINFORCE++   `batch_advantages`              `ppo_clip`                `token_mean`
============  ==============================  ========================  =====================

RLOO and REINFORCE++ have KL in the rewards: the sum of `kl_rewards` over a sequence, and their
`to_go`. DAPO leaves out groups that are not `varied`.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.policy.tokens import _mean_of_counted, masked


def _centered(rewards: ArrayLike) -> Array:
    """Rewards less the mean of their group, exactly 0 where all are equal."""
    rewards = jax.lax.stop_gradient(checks.as_float("rewards", rewards))
    # The mean of equal numbers may not be that number in floating point.
    relative = rewards - rewards[..., :1]
    return relative - jnp.mean(relative, axis=-1, keepdims=True)


def grpo_advantages(rewards: ArrayLike, *, scale: bool = True) -> Array:
    """`(r - mean)/std` of each group, 0 where all are equal; `scale=False` leaves out std.

    The standard deviation is that of the group (n, not n - 1). Shapes: `[groups, size]` to the
    same.

    >>> grpo_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0]]))
    Array([[ 1., -1., -1.,  1.]], dtype=float32)

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), section 4.1.2; without std Dr. GRPO (Liu
    et al. 2025, arXiv:2503.20783).
    """
    centred = _centered(rewards)
    if not scale:
        return centred
    spread = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True))
    return centred / jnp.where(spread > 0, spread, 1)


def rloo_advantages(rewards: ArrayLike) -> Array:
    """Reward less the mean of the others of the group, `n/(n - 1) (r - mean)`.

    A single answer has no others and keeps its reward. Shapes: `[groups, size]` to the same.

    >>> rloo_advantages(jnp.array([[3.0, 1.0, 2.0]]))
    Array([[ 1.5, -1.5,  0. ]], dtype=float32)

    Reference: Ahmadian et al. 2024 (arXiv:2402.14740), section 3.
    """
    rewards = jax.lax.stop_gradient(checks.as_float("rewards", rewards))
    size = rewards.shape[-1]
    return rewards if size == 1 else _centered(rewards) * (size / (size - 1))


def batch_advantages(returns: ArrayLike, mask: ArrayLike, *, axis_name: str | None = None) -> Array:
    """`(x - mean)/std` of tokens' returns over the whole batch, not the group; 0 where masked.

    0 if all are equal, by the resolution of the mean. Shapes: `[..., T]` twice to the same.

    Reference: REINFORCE++ (Hu et al. 2025, arXiv:2501.03262), from memory.
    """
    x, mask, _ = masked(jax.lax.stop_gradient(jnp.asarray(returns)), mask)
    counts = mask.astype(x.dtype)
    mean = _mean_of_counted(x, counts, axis_name)
    centred = jnp.where(mask, x - mean, 0)
    # The mean of equal numbers may not be that number: what is left then is rounding.
    spread = jnp.sqrt(_mean_of_counted(centred**2, counts, axis_name))
    resolution = 4 * jnp.finfo(x.dtype).eps * jnp.abs(mean)
    differs = spread > resolution
    return jnp.where(differs, centred / jnp.where(differs, spread, 1), 0)


def varied(rewards: ArrayLike) -> Array:
    """Which groups have different rewards: the others have no gradient, and DAPO samples anew.

    Shapes: `[groups, size]` to `[groups]`.

    >>> varied(jnp.array([[0.0, 1.0], [1.0, 1.0]]))
    Array([ True, False], dtype=bool)

    Reference: DAPO (arXiv:2503.14476), section 3.2, dynamic sampling.
    """
    rewards = checks.as_float("rewards", rewards)
    return jnp.any(rewards != rewards[..., :1], axis=-1)
