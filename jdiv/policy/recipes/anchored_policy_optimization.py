"""Anchored Policy Optimization (arXiv:2602.05717): PPO anchored to the reference's support.

Asymmetric Policy Optimization (arXiv:2506.21655), which is called APO as well, is another method.

Reconstructed: a push and a pull, on errors only and towards the top tokens of the reference, are
the authors' description (abstract and README of the code); how they enter the ratio and both
coefficients are inferred.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.tokens import Advantages, TokenLoss, masked
from jdiv.types import Logits, LogProbs, Mask, PerRow


def support(ref_logits: Logits, *, size: int) -> Array:
    """Whether a token is among the `size` likeliest of the reference, or equal to the last.

    Shapes: `[..., V]` to booleans of the same.

    >>> support(jnp.array([0.0, 3.0, 1.0, 2.0]), size=2).tolist()
    [False, True, False, True]
    """
    ref_logits = checks.as_float("ref_logits", ref_logits)
    if ref_logits.ndim == 0:
        raise ValueError("ref_logits must have an axis of tokens, got a scalar")
    tokens = ref_logits.shape[-1]
    size = checks.whole("size", size, 1, tokens, f"from 1 to {tokens}")
    return ref_logits >= jax.lax.top_k(ref_logits, size)[0][..., -1:]


class AnchorDiagnostics(NamedTuple):
    """Ratios, and the change of the support's probability where the answer is wrong.

    Fields:
        ratio: `[..., T]` `pi/pi_old`, 0 where masked.
        coverage: `[..., T]` the support's probability over its old one; 1 where nothing is pulled.
    """

    ratio: Array
    coverage: Array


def anchored_policy_optimization(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    log_coverage: LogProbs,
    old_log_coverage: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    push: PerRow = 1.0,
    pull: PerRow = 0.1,
    low: PerRow = 0.2,
    high: PerRow = 0.2,
) -> TokenLoss[AnchorDiagnostics]:
    """PPO's loss; where A is negative `push` times it, `+ pull A M/M_old`, M the support's mass.

    A wrong token is pushed down, and the reference's support is pulled up: `log_coverage` is the
    logarithm of its probability. With push 1 and pull 0 it is `ppo_clip`. Shapes: `[..., T]`,
    advantages also `[...]`, to `[..., T]`.

    Reference: Anchored Policy Optimization (arXiv:2602.05717), abstract and README of its code.
    """
    log_probs, mask, (old_log_probs, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    coverage, _, (old_coverage,) = masked(log_coverage, mask, old_log_coverage=old_log_coverage)
    parent = ppo_clip(log_probs, old_log_probs, advantages, mask, low=low, high=high)
    push = checks.not_negative("push", push, rows=log_probs)
    pull = checks.not_negative("pull", pull, rows=log_probs)
    wrong = mask & (advantages < 0)
    relative = jnp.exp(jnp.where(wrong, coverage - old_coverage, 0))
    pulled = push * parent.loss + pull * jnp.where(wrong, advantages, 0) * relative
    loss = jnp.where(wrong, pulled, parent.loss)
    return TokenLoss(
        checks.spread_nan(loss, coverage, old_coverage, push, pull),
        AnchorDiagnostics(parent.aux.ratio, jax.lax.stop_gradient(relative)),
    )
