"""Proximal policy optimization with a KL penalty whose coefficient adapts.

PPO's clip is `jdiv.policy.clipped.ppo_clip`.
"""

from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.estimators import monte_carlo
from jdiv.policy.tokens import TokenLoss, masked


class PenaltyDiagnostics(NamedTuple):
    """Of a penalised loss, each `[..., T]`, 0 where masked."""

    ratio: Array
    """`pi/pi_old`; its mean over tokens of the old policy is 1."""
    kl: Array
    """Estimate of KL(old‖new), not negative."""


def ppo_kl(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    coefficient: ArrayLike,
) -> TokenLoss:
    """PPO with a penalty, per token `-w A + coefficient KL(old‖new)`, w = pi/pi_old.

    Of KL it takes the estimate k3 from tokens of the old policy, `w - 1 - log w`, whose gradient is
    that of KL without more weights. Shapes: `[..., T]`, advantages also `[...]`.

    Reference: Schulman et al. 2017 (arXiv:1707.06347), equation 8; k3 for the exact KL there.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    ratio = jnp.exp(log_probs - old)
    kl = monte_carlo.kl_k3(old, log_probs)
    loss = coefficient * kl - ratio * advantages
    kept = lambda x: jnp.where(mask, x, 0)
    return TokenLoss(kept(loss), PenaltyDiagnostics(*map(kept, jax.lax.stop_gradient((ratio, kl)))))


def adapt_coefficient(coefficient: ArrayLike, kl: ArrayLike, target: ArrayLike) -> Array:
    """Twice the coefficient where `kl > 1.5 target`, half of it where `kl < target / 1.5`.

    >>> adapt_coefficient(1.0, jnp.array([0.5, 1.0, 2.0]), 1.0)
    Array([0.5, 1. , 2. ], dtype=float32)

    Reference: Schulman et al. 2017 (arXiv:1707.06347), section 4.
    """
    kl = checks.as_float("kl", kl)
    change = jnp.where(kl > 1.5 * target, 2.0, jnp.where(kl < target / 1.5, 0.5, 1.0))
    return (coefficient * change).astype(kl.dtype)
