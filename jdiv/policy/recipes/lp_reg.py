"""Lp-Reg (arXiv:2510.03222): protection of rare tokens that a min-p proxy keeps.

Reconstructed: from the released code; that the share is of the tokens of negative advantage is one
reading of it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, estimators, numerics
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.selection import among_largest, share_of
from jdiv.policy.tokens import Advantages, TokenLoss, count, masked
from jdiv.types import Logits, LogProbs, Mask, PerRow, Scalar


def min_p_proxy(logits: Logits, *, kappa: PerRow = 0.02) -> Array:
    """Log-probabilities without the tokens below `kappa max p`, normalized again.

    Dropped tokens have -inf; kappa 0 drops nothing. Shapes: `[..., V]` to the same.

    >>> proxy = jnp.exp(min_p_proxy(jnp.log(jnp.array([0.5, 0.25, 0.25 / 2])), kappa=0.3))
    >>> [f"{p:.4f}" for p in proxy]
    ['0.6667', '0.3333', '0.0000']

    Reference: Lp-Reg (arXiv:2510.03222), code.
    """
    log_p = numerics.log_softmax(checks.as_float("logits", logits))
    least = jnp.log(checks.share("kappa", kappa, rows=log_p)) + jnp.max(
        log_p, axis=-1, keepdims=True
    )
    return numerics.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))


class RareTokenDiagnostics(NamedTuple):
    """The tokens that were protected.

    Fields:
        ratio: `[..., T]` `pi/pi_old`, 0 where masked.
        chosen: `[..., T]` rare tokens of negative advantage that the proxy keeps.
        penalty: `[..., T]` k3 of the chosen ones, 0 elsewhere.
    """

    ratio: Array
    chosen: Array
    penalty: Array


def lp_reg(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    proxy_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    share: Scalar = 0.01,
    coefficient: PerRow = 1.0,
    low: PerRow = 1.0,
    high: PerRow = 9.0,
    axis_name: str | None = None,
) -> TokenLoss[RareTokenDiagnostics]:
    """PPO's loss, but `-A w + coefficient k3` for rare tokens of negative advantage.

    Rare is the given share of the tokens of negative advantage, by log-probability and at least
    one, if the proxy (of `min_p_proxy`, a constant) gives them more; a token that the proxy drops
    is left to PPO. `k3 = e^d - 1 - d` at `d = log proxy/pi`, at most 10; its gradient always raises
    the token. With coefficient 0 and ratios within the clip it is `ppo_clip`. Shapes: `[..., T]`,
    advantages also `[...]`, to `[..., T]`.

    Reference: Lp-Reg (arXiv:2510.03222), code.
    """
    log_probs, mask, (old, proxy, advantages) = masked(
        log_probs,
        mask,
        old_log_probs=old_log_probs,
        proxy_log_probs=proxy_log_probs,
        advantages=advantages,
    )
    share = checks.share("share", share, rows=log_probs.ravel())
    coefficient = checks.not_negative("coefficient", coefficient, rows=log_probs)
    negative = mask & (advantages < 0)
    number = share_of(count(negative, axis_name), share, log_probs.dtype)
    rare = among_largest(-log_probs, negative, number, axis_name=axis_name)
    chosen = rare & (log_probs < proxy)
    # k3 is beyond its bound from 2.62 on: a constant there, without overflow.
    log_ratio = jnp.clip(jnp.where(chosen, proxy - log_probs, 0), None, 3.0)
    k3 = jnp.minimum(estimators.kl_k3(jnp.zeros_like(log_ratio), log_ratio), 10.0)
    parent = ppo_clip(log_probs, old, advantages, mask, low=low, high=high)
    # Only its own branch may overflow where it is not taken.
    ratio = jnp.exp(jnp.where(chosen, log_probs - old, 0))
    loss = jnp.where(chosen, -advantages * ratio + coefficient * k3, parent.loss)
    loss = checks.spread_nan(loss, proxy, share, coefficient)
    k3 = jax.lax.stop_gradient(k3)
    return TokenLoss(loss, RareTokenDiagnostics(parent.aux.ratio, chosen, k3))
