"""Proximal policy optimization with a KL penalty whose coefficient adapts.

PPO's clip is `jdiv.policy.clipped.ppo_clip`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.estimators import monte_carlo
from jdiv.policy.tokens import Advantages, TokenLoss, masked
from jdiv.types import LogProbs, Mask, PerRow


class PenaltyDiagnostics(NamedTuple):
    """Ratio and divergence at each token, `[..., T]`, 0 where masked.

    Fields:
        ratio: `pi/pi_old`; its mean over tokens of the old policy is 1.
        kl: Estimate of KL(old‖new), not negative.
    """

    ratio: Array
    kl: Array


def ppo_kl(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    coefficient: PerRow,
) -> TokenLoss[PenaltyDiagnostics]:
    """PPO with a penalty, per token `-w A + coefficient KL(old‖new)`, w = pi/pi_old.

    KL is estimated by k3 from tokens of the old policy, `w - 1 - log w`, whose gradient is that of
    KL without more weights. Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Schulman et al. 2017 (arXiv:1707.06347), equation 8; k3 for the exact KL there.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    coefficient = checks.not_negative("coefficient", coefficient, rows=log_probs)
    ratio = jnp.exp(log_probs - old)
    kl = monte_carlo.kl_k3(old, log_probs)
    loss = coefficient * kl - ratio * advantages
    loss, ratio, kl = (jnp.where(mask, x, 0) for x in (loss, ratio, kl))
    return TokenLoss(loss, PenaltyDiagnostics(*jax.lax.stop_gradient((ratio, kl))))


def adapt_coefficient(coefficient: ArrayLike, kl: ArrayLike, target: ArrayLike) -> Array:
    """Twice the coefficient where `kl > 1.5 target`, half of it where `kl < target / 1.5`.

    Shapes: any, broadcast, to that of kl.

    >>> adapt_coefficient(1.0, jnp.array([0.5, 1.0, 2.0]), 1.0)
    Array([0.5, 1. , 2. ], dtype=float32)

    Reference: Schulman et al. 2017 (arXiv:1707.06347), section 4.
    """
    kl = checks.as_float("kl", kl)
    coefficient = jnp.asarray(checks.not_negative("coefficient", coefficient), kl.dtype)
    target = jnp.asarray(checks.positive("target", target), kl.dtype)
    change = jnp.where(kl > 1.5 * target, 2, jnp.where(kl < target / 1.5, 0.5, 1))
    return coefficient * checks.spread_nan(change.astype(kl.dtype), kl, target)
