"""The entropy mechanism, Cui et al. 2025 (arXiv:2505.22617): KL-Cov and Clip-Cov."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.selection import _count, _mean, _share_of, among_largest
from jdiv.policy.tokens import TokenLoss, masked


def predicted_entropy_change(log_policy: ArrayLike, change: ArrayLike) -> Array:
    """`-Cov_{a ~ pi}(log pi(a), dz(a))`: the change of entropy when logits change by dz.

    To first order; dz is `rate * pi * A` for the policy gradient and `rate * A` for the natural
    one. Shapes: `[..., A]` twice, normalised logarithms first, to `[...]`.

    Reference: Cui et al. 2025 (arXiv:2505.22617), the identity of its section on dynamics.
    """
    log_policy, change = checks.as_float("log_policy", log_policy), jnp.asarray(change)
    policy = jnp.exp(log_policy)
    log_policy = jnp.where(policy > 0, log_policy, 0)
    centred = change - jnp.sum(policy * change, axis=-1, keepdims=True)
    return -jnp.sum(policy * log_policy * centred, axis=-1)


class CovarianceDiagnostics(NamedTuple):
    """Which tokens were singled out, and by what."""

    ratio: Array
    """`[..., T]`"""
    covariance: Array
    """`[..., T]` `(A - mean A)(log pi - mean log pi)`, of which the mean is the covariance."""
    chosen: Array
    """`[..., T]` tokens that the method treats in its own way."""


class _Tokens(NamedTuple):
    mask: Array
    log_probs: Array
    old_log_probs: Array
    advantages: Array
    ratio: Array


def _tokens(
    log_probs: ArrayLike, old_log_probs: ArrayLike, advantages: ArrayLike, mask: ArrayLike
) -> _Tokens:
    log_probs, mask, (old_log_probs, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    ratio = jnp.exp(log_probs - old_log_probs)
    return _Tokens(mask, log_probs, old_log_probs, advantages, ratio)


def _covariance(x: _Tokens, axis_name: str | None) -> Array:
    parts = (x.advantages, x.log_probs)
    advantages, log_probs = (p - _mean(p, x.mask, axis_name) for p in parts)
    return jax.lax.stop_gradient(jnp.where(x.mask, advantages * log_probs, 0))


def kl_cov(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    share: ArrayLike = 0.002,
    coefficient: ArrayLike = 1.0,
    axis_name: str | None = None,
) -> TokenLoss:
    """`-A w`, and `+ coefficient |log w|` for the share of tokens with the largest covariance.

    No clip. At least one token is chosen, and all that are equal to the last one; the share is
    of the batch: .002 and .0002 in the paper. At ratio 1 the gradient is that of `-A w`; a ratio
    that is 1 but for rounding has the whole slope of |log w|, so the first step on a batch needs
    old log-probabilities that are the policy's own to the last digit.
    Shapes: as at the top of the module.

    Reference: Cui et al. 2025 (arXiv:2505.22617), KL-Cov, and its code.
    """
    x = _tokens(log_probs, old_log_probs, advantages, mask)
    covariance = _covariance(x, axis_name)
    count = _share_of(_count(x.mask, axis_name), share, x.ratio.dtype)
    chosen = among_largest(covariance, x.mask, count, axis_name=axis_name)
    log_ratio = x.log_probs - x.old_log_probs
    # The derivative of |x| at 0 is 0 here, and 1 for jnp.abs.
    penalty = coefficient * log_ratio * jax.lax.stop_gradient(jnp.sign(log_ratio))
    loss = -x.advantages * x.ratio + jnp.where(chosen, penalty, 0)
    return TokenLoss(
        jnp.where(x.mask, loss, 0),
        CovarianceDiagnostics(jax.lax.stop_gradient(x.ratio), covariance, chosen),
    )


def clip_cov(
    key: Array,
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    share: ArrayLike = 2e-4,
    lowest: ArrayLike = 1.0,
    highest: ArrayLike = 5.0,
    low: ArrayLike = 1.0,
    high: ArrayLike = 1.0,
    axis_name: str | None = None,
) -> TokenLoss:
    """PPO's loss without a random share of the tokens whose covariance is in (lowest, highest).

    Drawn uniformly from those that are not clipped already, at least one if there is any; their
    loss is 0. `low = high = 1` is the recipe's clip, which leaves no more than doubled ratios.
    With nothing in the band it is `ppo_clip`. Keys have to differ between devices.
    Shapes: as at the top of the module.

    Reference: Cui et al. 2025 (arXiv:2505.22617), Clip-Cov, and its code.
    """
    x = _tokens(log_probs, old_log_probs, advantages, mask)
    covariance = _covariance(x, axis_name)
    parent = ppo_clip(x.log_probs, x.old_log_probs, x.advantages, x.mask, low=low, high=high)
    inside = (covariance > lowest) & (covariance < highest)
    eligible = x.mask & inside & ~parent.aux.clipped
    scores = jax.random.uniform(key, covariance.shape, covariance.dtype)
    count = _share_of(_count(x.mask, axis_name), share, x.ratio.dtype)
    chosen = among_largest(scores, eligible, count, axis_name=axis_name)
    loss = jnp.where(chosen, 0, parent.loss)
    return TokenLoss(loss, CovarianceDiagnostics(parent.aux.ratio, covariance, chosen))
