"""Anchored Policy Optimization (arXiv:2602.05717): PPO anchored to the reference's support."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.tokens import TokenLoss, masked


def support(ref_logits: ArrayLike, *, size: int) -> Array:
    """The `size` likeliest tokens of the reference, and those equal to the last one.

    Shapes: `[..., V]` to booleans of the same.
    """
    ref_logits = checks.as_float("ref_logits", ref_logits)
    if not 1 <= size <= ref_logits.shape[-1]:
        raise ValueError(f"size must be from 1 to {ref_logits.shape[-1]}, got {size}")
    return ref_logits >= jax.lax.top_k(ref_logits, size)[0][..., -1:]


class AnchorDiagnostics(NamedTuple):
    """How far the policy has left the support."""

    ratio: Array
    """`[..., T]`"""
    coverage: Array
    """`[..., T]` probability of the support, over that of the old policy."""


def anchored_policy_optimization(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    log_coverage: ArrayLike,
    old_log_coverage: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    push: ArrayLike = 1.0,
    pull: ArrayLike = 0.1,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> TokenLoss:
    """PPO's loss; where A is negative `push` times it, `+ pull A M/M_old`, M the support's mass.

    A wrong token is pushed down and the reference's support, `log_coverage` being the logarithm of
    its probability, is pulled up. That there is a push and a pull, on errors only and towards the
    top tokens of the reference, is the authors' description; how they enter the ratio and both
    coefficients are inferred. With push 1 and pull 0 it is `ppo_clip`.
    Shapes: `[..., T]`, advantages `[...]` or `[..., T]`.

    Reference: APO (arXiv:2602.05717), abstract and the README of its code.
    """
    log_probs, mask, (old_log_probs, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    coverage, _, (old_coverage,) = masked(log_coverage, mask, old_log_coverage=old_log_coverage)
    parent = ppo_clip(log_probs, old_log_probs, advantages, mask, low=low, high=high)
    wrong = mask & (advantages < 0)
    relative = jnp.exp(jnp.where(wrong, coverage - old_coverage, 0))
    pulled = push * parent.loss + pull * jnp.where(wrong, advantages, 0) * relative
    return TokenLoss(
        jnp.where(wrong, pulled, parent.loss),
        AnchorDiagnostics(parent.aux.ratio, jax.lax.stop_gradient(relative)),
    )
