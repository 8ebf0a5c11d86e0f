"""Weights of the ratio pi/pi_old: PPO's clip, dual clip, GSPO, CISPO, VESPO, none (REINFORCE).

Shapes and masks are those of `jdiv.policy.tokens`; all losses are per token and to be averaged.
Bounds are numbers, or one for each sequence: `low` and `high` not negative, `ceiling` at least 1;
each may be inf.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.policy.tokens import Advantages, TokenLoss, masked
from jdiv.types import LogProbs, Mask, PerRow


class ClipDiagnostics(NamedTuple):
    """Ratios and where they were clipped, each `[..., T]`, 0 and False where masked.

    Fields:
        ratio: `pi/pi_old`.
        clipped: Whether a bound took the place of the ratio.
    """

    ratio: Array
    clipped: Array


def bounds(low: PerRow, high: PerRow, ceiling: PerRow, tokens: Array) -> tuple[Array, Array, Array]:
    """Checked bounds of ratios, to be broadcast against tokens `[..., T]`."""
    low = checks.in_range("low", low, 0, jnp.inf, "not negative", closed="both", rows=tokens)
    high = checks.in_range("high", high, 0, jnp.inf, "not negative", closed="both", rows=tokens)
    ceiling = checks.in_range(
        "ceiling", ceiling, 1, jnp.inf, "at least 1", closed="both", rows=tokens
    )
    return low, high, ceiling


def clipped_surrogate(
    log_ratio: Array,
    advantages: Array,
    *,
    low: PerRow,
    high: PerRow,
    ceiling: PerRow = jnp.inf,
) -> TokenLoss[ClipDiagnostics]:
    """`-min(w A, clip(w, 1 - low, 1 + high) A)`, and at most `-ceiling A` where A is negative.

    The core of every clip here, for a caller's own ratio. Where a bound counts, or the advantage is
    0, the ratio may overflow. Shapes: `[..., T]`, twice the same.

    >>> log_ratio = jnp.log(jnp.array([0.5, 1.1, 2.0]))
    >>> clipped_surrogate(log_ratio, jnp.ones(3), low=0.2, high=0.2).loss
    Array([-0.5, -1.1, -1.2], dtype=float32)
    """
    log_ratio, advantages = checks.alike(log_ratio=log_ratio, advantages=advantages)
    low, high, ceiling = bounds(low, high, ceiling, log_ratio)
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    most = jnp.where(advantages > 0, 1 + high, ceiling)
    above = ratio > most
    below = (ratio < 1 - low) & (advantages < 0)
    used = jnp.exp(jnp.where(above | below | (advantages == 0), 0, log_ratio))
    bounded = jnp.where(above, most, jnp.where(below, 1 - low, used))
    clipped = (above | below) & (advantages != 0)
    loss = checks.spread_nan(-bounded * advantages, log_ratio, low, high, ceiling)
    return TokenLoss(loss, ClipDiagnostics(ratio, clipped))


def ppo_clip(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    low: PerRow = 0.2,
    high: PerRow = 0.2,
) -> TokenLoss[ClipDiagnostics]:
    """PPO's loss per token, `-min(w A, clip(w, 1 - low, 1 + high) A)`, w = pi/pi_old.

    A bound that is not wanted is `low=1` or `high=inf`. Shapes: `[..., T]`, advantages also
    `[...]`, to `[..., T]`.

    Reference: Schulman et al. 2017 (arXiv:1707.06347), equation 7; two bounds as in DAPO
    (arXiv:2503.14476), which has .2 and .28.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    loss, (ratio, clipped) = clipped_surrogate(log_probs - old, advantages, low=low, high=high)
    return TokenLoss(loss, ClipDiagnostics(jnp.where(mask, ratio, 0), clipped))


def gspo(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    low: PerRow = 3e-4,
    high: PerRow = 4e-4,
) -> TokenLoss[ClipDiagnostics]:
    """PPO's loss with `(pi/pi_old)^(1/length)` of the whole sequence for the ratio of each token.

    The same value at all tokens, with the derivative by their own log-probabilities: after
    `sequence_mean` value and gradient are those of `-min(s A, clip(s) A)` per sequence.
    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Zheng et al. 2025 (arXiv:2507.18071), as GSPO-token.
    Reconstructed: formula and bounds are from memory of the paper.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    mean = _mean_over_sequence(log_probs - old, mask)
    log_ratio = jax.lax.stop_gradient(mean - log_probs) + log_probs
    loss, (ratio, clipped) = clipped_surrogate(log_ratio, advantages, low=low, high=high)
    return TokenLoss(loss, ClipDiagnostics(jnp.where(mask, ratio, 0), clipped))


def cispo(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    low: PerRow = 1.0,
    high: PerRow,
    by_sequence: bool = False,
) -> TokenLoss[ClipDiagnostics]:
    """`-stop_gradient(clip(w, 1 - low, 1 + high)) A log pi`: every token keeps a gradient.

    Where nothing is clipped its gradient is that of `-w A`. `by_sequence` takes the sequence's
    `(pi/pi_old)^(1/length)` for w, as GSPO does. Shapes: `[..., T]`, advantages also `[...]`, to
    `[..., T]`.

    Reference: MiniMax-M1 (arXiv:2506.13585): no lower bound, `high` tuned.
    Reconstructed: the formula is from memory of the paper.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    low, high, _ = bounds(low, high, jnp.inf, log_probs)
    log_ratio = log_probs - old
    log_ratio = _mean_over_sequence(log_ratio, mask) if by_sequence else log_ratio
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    weight = jnp.clip(ratio, 1 - low, 1 + high)
    evidence = ClipDiagnostics(jnp.where(mask, ratio, 0), mask & (weight != ratio))
    return TokenLoss(-weight * advantages * log_probs, evidence)


def vespo(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> TokenLoss[ClipDiagnostics]:
    """`-stop_gradient(w^k e^(l (1 - w))) A log pi` with the ratio w of the whole sequence.

    No clip: the weight is 1 at w = 1, largest at `k/l`, and goes to 0 on both sides. (k, l) is
    `positive` where the advantage is not negative and `negative` elsewhere; w is the product over
    the tokens, and no mean. Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    >>> new, old = jnp.log(jnp.array([[0.4]])), jnp.log(jnp.array([[0.2]]))
    >>> loss = vespo(new, old, jnp.ones(1), jnp.ones((1, 1), bool)).loss
    >>> print(f"{loss.item():.4f}")  # -(2^2 e^(3 - 6)) log .4
    0.1825

    Reference: VESPO, as in TRL 1.16; its clamps of the logarithms are left out.
    Reconstructed: the formula is that of TRL, not read in the paper.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    pairs = [
        [checks.positive(name, x) for x in pair]
        for name, pair in (("positive", positive), ("negative", negative))
    ]
    power, fall = (
        jnp.where(advantages >= 0, a, b).astype(log_probs.dtype)
        for a, b in zip(*pairs, strict=True)
    )
    log_ratio = jax.lax.stop_gradient(jnp.sum(log_probs - old, axis=-1, keepdims=True))
    ratio = jnp.where(mask, jnp.exp(log_ratio), 0)
    weight = jnp.exp(power * log_ratio + fall * (1 - jnp.exp(log_ratio)))
    loss = jnp.where(mask & (weight != 0), -weight * advantages * log_probs, 0)
    return TokenLoss(loss, ClipDiagnostics(ratio, jnp.zeros_like(mask)))


def off_policy_mask(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    threshold: PerRow,
) -> Mask:
    """Tokens to keep, `[..., T]`: not of bad sequences that the policy has gone far away from.

    Dropped is a sequence of negative advantage with a mean of `log pi_old/pi` above the threshold.
    For a loss multiply by it, so that averages still count what is dropped, as in TRL and
    DeepSeek-V3.2. Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    >>> old, new = jnp.log(jnp.array([[0.5], [0.5]])), jnp.log(jnp.array([[0.4], [0.4]]))
    >>> every, gain = jnp.ones((2, 1), bool), jnp.array([1.0, -1.0])
    >>> print(off_policy_mask(new, old, gain, every, threshold=0.1))
    [[ True]
     [False]]

    Reference: DeepSeek-V3.2, off-policy sequence masking.
    Reconstructed: the formula is that of TRL 1.16.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    threshold = checks.not_negative("threshold", threshold, rows=log_probs)
    gone = _mean_over_sequence(old - jax.lax.stop_gradient(log_probs), mask)
    return mask & ((advantages >= 0) | (gone <= threshold))


def _mean_over_sequence(x: Array, mask: Array) -> Array:
    """`[..., 1]` the mean of what is not masked, of x that is 0 where masked; 0 of nothing."""
    length = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(x.dtype)
    return jnp.sum(x, axis=-1, keepdims=True) / length


def reinforce(
    log_probs: LogProbs, advantages: Advantages, mask: Mask
) -> TokenLoss[ClipDiagnostics]:
    """`-A log pi` for samples of the policy itself: no ratio, and none in its diagnostics but 1.

    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Williams 1992.
    """
    log_probs, mask, (advantages,) = masked(log_probs, mask, advantages=advantages)
    one = mask.astype(log_probs.dtype)
    return TokenLoss(-advantages * log_probs, ClipDiagnostics(one, jnp.zeros_like(mask)))


def dual_clip(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    low: PerRow = 0.2,
    high: PerRow = 0.28,
    ceiling: PerRow = 3.0,
) -> TokenLoss[ClipDiagnostics]:
    """PPO's loss, where A is negative at most `-ceiling A`: no ratio makes it explode.

    `max(-w A, -clip(w, 1 - low, 1 + high) A)`, and for A < 0 the minimum of that and `-ceiling A`.
    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: RPG (arXiv:2505.17508), its dual clip; bounds as there, ceiling as in its code.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    loss, (ratio, clipped) = clipped_surrogate(
        log_probs - old, advantages, low=low, high=high, ceiling=ceiling
    )
    return TokenLoss(loss, ClipDiagnostics(jnp.where(mask, ratio, 0), clipped))
