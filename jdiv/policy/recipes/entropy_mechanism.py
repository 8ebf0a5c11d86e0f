"""The entropy mechanism, Cui et al. 2025 (arXiv:2505.22617): KL-Cov and Clip-Cov.

A step lowers the entropy by the covariance of log-probabilities and advantages; both methods single
out the tokens with the largest share of that covariance.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.selection import among_largest, share_of
from jdiv.policy.tokens import Advantages, TokenLoss, count, masked, masked_mean
from jdiv.types import LogPolicy, LogProbs, Mask, PerRow, RandomKey, Scalar, Values


def predicted_entropy_change(log_policy: LogPolicy, change: Values) -> Array:
    """`-Cov_{a ~ pi}(log pi(a), dz(a))`: the change of entropy when logits change by dz.

    To first order; dz is `step_size * pi * A` for the policy gradient and `step_size * A` for the
    natural one. Shapes: normalized log_policy and change `[..., A]` to `[...]`.

    >>> policy, change = jnp.array([0.8, 0.2]), jnp.array([1.0, 0.0])  # more of the likely action
    >>> print(f"{predicted_entropy_change(jnp.log(policy), change):.4f}")
    -0.2218

    Reference: Cui et al. 2025 (arXiv:2505.22617), the identity of its section on dynamics.
    """
    log_policy, change = checks.alike(log_policy=log_policy, change=change)
    log_policy = checks.log_probabilities("log_policy", log_policy)
    policy = jnp.exp(log_policy)
    log_policy = jnp.where(policy > 0, log_policy, 0)
    centered = change - jnp.sum(policy * change, axis=-1, keepdims=True)
    return -jnp.sum(policy * log_policy * centered, axis=-1)


class CovarianceDiagnostics(NamedTuple):
    """The tokens that were singled out, and the covariance by which they were.

    Fields:
        ratio: `[..., T]` `pi/pi_old`.
        covariance: `[..., T]` `(A - mean A)(log pi - mean log pi)`, whose mean is the covariance.
        chosen: `[..., T]` the tokens that the method treats in its own way.
    """

    ratio: Array
    covariance: Array
    chosen: Array


def _covariance(log_probs: Array, advantages: Array, mask: Array, axis_name: str | None) -> Array:
    centered = [x - masked_mean(x, mask, axis_name) for x in (advantages, log_probs)]
    return jax.lax.stop_gradient(jnp.where(mask, centered[0] * centered[1], 0))


def kl_cov(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    share: Scalar = 0.002,
    coefficient: PerRow = 1.0,
    axis_name: str | None = None,
) -> TokenLoss[CovarianceDiagnostics]:
    """`-A w`, and `+ coefficient |log w|` for the share of tokens with the largest covariance.

    No clip. At least one token is chosen, and all that are equal to the last one; the share is
    of the batch: .002 and .0002 in the paper. At ratio 1 the gradient is that of `-A w`; a ratio
    that is 1 but for rounding has the whole slope of |log w|, so the first step on a batch needs
    old log-probabilities that are the policy's own to the last digit.
    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Cui et al. 2025 (arXiv:2505.22617), KL-Cov, and its code.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    share = checks.share("share", share, rows=log_probs.ravel())
    coefficient = checks.not_negative("coefficient", coefficient, rows=log_probs)
    log_ratio = log_probs - old
    ratio = jnp.exp(log_ratio)
    covariance = _covariance(log_probs, advantages, mask, axis_name)
    number = share_of(count(mask, axis_name), share, ratio.dtype)
    chosen = among_largest(covariance, mask, number, axis_name=axis_name)
    # The derivative of |x| at 0 is 0 here, and 1 for jnp.abs.
    penalty = coefficient * log_ratio * jax.lax.stop_gradient(jnp.sign(log_ratio))
    loss = jnp.where(mask, -advantages * ratio + jnp.where(chosen, penalty, 0), 0)
    loss = checks.spread_nan(loss, share, coefficient)
    return TokenLoss(loss, CovarianceDiagnostics(jax.lax.stop_gradient(ratio), covariance, chosen))


def clip_cov(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    key: RandomKey,
    *,
    share: Scalar = 2e-4,
    lowest: Scalar = 1.0,
    highest: Scalar = 5.0,
    low: Scalar = 1.0,
    high: PerRow = 1.0,
    axis_name: str | None = None,
) -> TokenLoss[CovarianceDiagnostics]:
    """PPO's loss without a random share of the tokens whose covariance is in (lowest, highest).

    Drawn uniformly from those that are not clipped already, at least one if there is any; their
    loss is 0. `low = high = 1` is the recipe's clip, which leaves no more than doubled ratios.
    With nothing in the band it is `ppo_clip`. Keys have to differ between devices.
    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Cui et al. 2025 (arXiv:2505.22617), Clip-Cov, and its code.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    share = checks.share("share", share, rows=log_probs.ravel())
    lowest = checks.in_range("lowest", lowest, -jnp.inf, jnp.inf, "below inf", closed="low")
    highest = checks.in_range("highest", highest, lowest, jnp.inf, "at least lowest", closed="both")
    covariance = _covariance(log_probs, advantages, mask, axis_name)
    parent = ppo_clip(log_probs, old, advantages, mask, low=low, high=high)
    inside = (covariance > lowest) & (covariance < highest)
    eligible = mask & inside & ~parent.aux.clipped
    scores = jax.random.uniform(key, covariance.shape, covariance.dtype)
    number = share_of(count(mask, axis_name), share, covariance.dtype)
    chosen = among_largest(scores, eligible, number, axis_name=axis_name)
    loss = checks.spread_nan(jnp.where(chosen, 0, parent.loss), share, lowest, highest)
    return TokenLoss(loss, CovarianceDiagnostics(parent.aux.ratio, covariance, chosen))
