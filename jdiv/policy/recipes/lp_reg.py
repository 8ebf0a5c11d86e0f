"""Lp-Reg (arXiv:2510.03222): protection of rare tokens that a min-p proxy keeps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, estimators, numerics
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.recipes.entropy_mechanism import _tokens
from jdiv.policy.selection import _count, _share_of, among_largest
from jdiv.policy.tokens import TokenLoss, masked


def min_p_proxy(logits: ArrayLike, *, kappa: ArrayLike = 0.02) -> Array:
    """Log-probabilities without the tokens below `kappa max p`, renormalised.

    What is dropped has -inf; kappa 0 drops nothing. Shapes: `[..., V]` to the same.

    Reference: Lp-Reg (arXiv:2510.03222), code.
    """
    log_p = numerics.log_softmax(checks.as_float("logits", logits))
    least = jnp.log(jnp.asarray(kappa, log_p.dtype)) + jnp.max(log_p, axis=-1, keepdims=True)
    return numerics.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))


class RareTokenDiagnostics(NamedTuple):
    """Which tokens were protected."""

    ratio: Array
    """`[..., T]`"""
    chosen: Array
    """`[..., T]` rare tokens of negative advantage that the proxy keeps."""
    penalty: Array
    """`[..., T]` k3 of those, 0 of the others."""


def lp_reg(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    proxy_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    share: ArrayLike = 0.01,
    coefficient: ArrayLike = 1.0,
    low: ArrayLike = 1.0,
    high: ArrayLike = 9.0,
    axis_name: str | None = None,
) -> TokenLoss:
    """PPO's loss, but `-A w + coefficient k3` for rare tokens of negative advantage.

    Rare is the given share, by log-probability, of the tokens of negative advantage (at least one),
    if the proxy (of `min_p_proxy`, 0 gradient) gives them more: what the proxy drops is left to
    PPO. `k3 = e^d - 1 - d` at `d = log proxy/pi`, at most 10; its gradient always raises the token.
    With coefficient 0 and ratios within the clip it is `ppo_clip`. That the share is of the tokens
    of negative advantage is one reading. Shapes: as at the top of the module.

    Reference: Lp-Reg (arXiv:2510.03222), code.
    """
    x = _tokens(log_probs, old_log_probs, advantages, mask)
    _, _, (proxy,) = masked(log_probs, mask, proxy_log_probs=proxy_log_probs)
    negative = x.mask & (x.advantages < 0)
    count = _share_of(_count(negative, axis_name), share, x.ratio.dtype)
    rare = among_largest(-x.log_probs, negative, count, axis_name=axis_name)
    chosen = rare & (x.log_probs < proxy)
    # k3 is beyond its bound from 2.62 on: a constant there, without overflow.
    log_ratio = jnp.clip(jnp.where(chosen, proxy - x.log_probs, 0), None, 3.0)
    k3 = jnp.minimum(estimators.kl_k3(jnp.zeros_like(log_ratio), log_ratio), 10.0)
    parent = ppo_clip(x.log_probs, x.old_log_probs, x.advantages, x.mask, low=low, high=high)
    # Only its own branch may overflow where it is not taken.
    ratio = jnp.exp(jnp.where(chosen, x.log_probs - x.old_log_probs, 0))
    loss = jnp.where(chosen, -x.advantages * ratio + coefficient * k3, parent.loss)
    return TokenLoss(
        loss, RareTokenDiagnostics(parent.aux.ratio, chosen, jax.lax.stop_gradient(k3))
    )
