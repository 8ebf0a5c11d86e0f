"""Losses whose token weighs a function of the ratio w = pi/pi_old: PPO's clip and its successors.

Each is per token, to be averaged, and minus its derivative by the log-probability is the function
of the same name in `ratio_weights`, which has the table of them; `TABLE` puts both side by side. A
divergence in place of the ratio is in `dppo`. Shapes and masks are those of `jdiv.policy.tokens`.
Bounds are numbers, or one for each sequence: `low` and `high` not negative, `ceiling` at least 1;
each may be inf. Where A is 0 the ratio may overflow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.policy import ratio_weights
from jdiv.policy.awr import awr, awr_weights
from jdiv.policy.tokens import Advantages, TokenLoss, masked
from jdiv.types import LogProbs, Mask, PerRow, PerToken


class ClipDiagnostics(NamedTuple):
    """Ratios and where they were clipped, each `[..., T]`, 0 and False where masked.

    Fields:
        ratio: `pi/pi_old`.
        clipped: Whether a bound took the place of the ratio.
    """

    ratio: Array
    clipped: Array


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
    low, high, ceiling = ratio_weights.bounds(low, high, ceiling, log_ratio)
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    most = jnp.where(advantages > 0, 1 + high, ceiling)
    above = ratio > most
    below = (ratio < 1 - low) & (advantages < 0)
    used = jnp.exp(jnp.where(above | below | (advantages == 0), 0, log_ratio))
    bounded = jnp.where(above, most, jnp.where(below, 1 - low, used))
    clipped = (above | below) & (advantages != 0)
    loss = checks.spread_nan(-bounded * advantages, log_ratio, low, high, ceiling)
    return TokenLoss(loss, ClipDiagnostics(ratio, clipped))


def scored(
    log_probs: LogProbs,
    weight: PerToken,
    log_ratio: PerToken,
    mask: Mask,
    where: Mask | bool = False,
) -> TokenLoss[ClipDiagnostics]:
    """`-stop_gradient(weight) log pi`, 0 where the weight is 0 and the policy never says this.

    The core of every loss that is nothing but its weight; `where` says where a bound counts.
    Shapes: `[..., T]`, all the same, to the same; the ratio of a whole sequence may be `[..., 1]`.
    """
    weight = jax.lax.stop_gradient(jnp.where(mask, weight, 0))
    said = jnp.where((weight == 0) & (log_probs == -jnp.inf), 0, log_probs)
    ratio = jax.lax.stop_gradient(jnp.where(mask, jnp.exp(log_ratio), 0))
    return TokenLoss(-weight * said, ClipDiagnostics(ratio, mask & where))


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
    log_ratio = _of_sequence(ratio_weights.mean_over_sequence(log_probs - old, mask), log_probs)
    loss, (ratio, clipped) = clipped_surrogate(log_ratio, advantages, low=low, high=high)
    return TokenLoss(loss, ClipDiagnostics(jnp.where(mask, ratio, 0), clipped))


def luspo(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    low: PerRow = 3e-4,
    high: PerRow = 4e-4,
) -> TokenLoss[ClipDiagnostics]:
    """GSPO's loss times the length of the sequence, for `sequence_mean`: no bias to short answers.

    So averaged it is `gspo` after `constant_mean` with length 1. Shapes: `[..., T]`, advantages
    also `[...]`, to `[..., T]`.

    Reference: LUSPO (arXiv:2602.05261), as in TRL 1.16.
    Reconstructed: formula and bounds are TRL's for sequences, not read in the paper.
    """
    found = gspo(log_probs, old_log_probs, advantages, mask, low=low, high=high)
    return found._replace(
        loss=found.loss * ratio_weights.length(checks.as_mask("mask", mask), found.loss)
    )


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
    log_ratio = log_probs - old
    if by_sequence:
        log_ratio = jnp.broadcast_to(
            ratio_weights.mean_over_sequence(log_ratio, mask), log_probs.shape
        )
    weight = ratio_weights.cispo(log_ratio, advantages, low=low, high=high)
    low, high, _ = ratio_weights.bounds(low, high, jnp.inf, log_probs)
    ratio = jnp.exp(log_ratio)
    return scored(log_probs, weight, log_ratio, mask, (ratio < 1 - low) | (ratio > 1 + high))


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

    Reference: VESPO (arXiv:2602.10693), as in TRL 1.16; its clamps of the logarithms are left out.
    Reconstructed: the formula is that of TRL, not read in the paper.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    log_ratio = log_probs - old
    weight = ratio_weights.vespo(log_ratio, advantages, mask, positive=positive, negative=negative)
    return scored(log_probs, weight, jnp.sum(log_ratio, axis=-1, keepdims=True), mask)


def sapo(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    positive: float = 1.0,
    negative: float = 1.05,
    by_sequence: bool = False,
) -> TokenLoss[ClipDiagnostics]:
    """`-(4/t) sigmoid(t (w - 1)) A`, t by the sign of A: a gate that closes slowly, and no clip.

    Its slope is that of `-w A` at w = 1 and goes to 0 on both sides, sooner for a larger t.
    `by_sequence` takes the sequence's `(pi/pi_old)^(1/length)` for w. Shapes: `[..., T]`,
    advantages also `[...]`, to `[..., T]`.

    Reference: SAPO (arXiv:2511.20347), as in TRL 1.16 and verl 0.9.
    Reconstructed: the formula is theirs, not read in the paper; they have t = negative where A = 0.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    rise = ratio_weights.by_sign(advantages, positive, negative)
    log_ratio = log_probs - old
    if by_sequence:
        log_ratio = _of_sequence(ratio_weights.mean_over_sequence(log_ratio, mask), log_probs)
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    # A ratio beyond all floats has gone through the gate, and the derivative is 0 and not 0 * inf.
    beyond = jnp.isinf(ratio)
    gate = jax.nn.sigmoid(rise * (jnp.exp(jnp.where(beyond, 0, log_ratio)) - 1))
    loss = -4 / rise * jnp.where(beyond, 1, gate) * advantages
    return TokenLoss(loss, ClipDiagnostics(jnp.where(mask, ratio, 0), jnp.zeros_like(mask)))


def gmpo(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    low: PerRow = 0.4,
    high: PerRow = 0.4,
) -> TokenLoss[ClipDiagnostics]:
    """`-(prod of clipped w)^(1/length) A`: the geometric mean of ratios, each bounded by itself.

    Where A > 0 a token's log w is at most `high`, where A < 0 it is at least `-low`: bounds of
    logarithms here. The same value at all tokens, with the derivative by their own
    log-probabilities, for `sequence_mean`. Shapes: `[..., T]`, advantages also `[...]`, to
    `[..., T]`.

    Reference: GMPO (arXiv:2507.20673), as in TRL 1.16 and verl 0.9, with the paper's bounds.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    log_ratio = log_probs - old
    kept, clipped = ratio_weights.bounded_logarithm(log_ratio, advantages, mask, low, high)
    mean = _of_sequence(
        ratio_weights.mean_over_sequence(kept, mask), jnp.where(clipped, 0, log_probs)
    )
    loss = jnp.where(mask, -jnp.exp(jnp.where(advantages == 0, 0, mean)) * advantages, 0)
    ratio = jnp.where(mask, jnp.exp(jax.lax.stop_gradient(log_ratio)), 0)
    return TokenLoss(loss, ClipDiagnostics(ratio, clipped))


def dro(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    beta: PerRow = 0.1,
) -> TokenLoss[ClipDiagnostics]:
    """`beta/2 (log w)² - A log pi`: a square in place of the ratio holds the policy at the old one.

    Up to what has no gradient `(A - beta log w)² / (2 beta)`, a regression of log w on A/beta.
    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Richemond et al. 2024 (arXiv:2405.19107), per token as in verl 0.9.
    Reconstructed: the token form is verl's; beta is chosen here.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    beta = checks.positive("beta", beta, rows=log_probs)
    log_ratio = log_probs - old
    loss = beta / 2 * log_ratio**2 - advantages * log_probs
    ratio = jnp.where(mask, jnp.exp(jax.lax.stop_gradient(log_ratio)), 0)
    evidence = ClipDiagnostics(ratio, jnp.zeros_like(mask))
    return TokenLoss(jnp.where(mask, loss, 0), evidence)


def importance(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    ceiling: PerRow = jnp.inf,
) -> TokenLoss[ClipDiagnostics]:
    """`-stop_gradient(min(W, ceiling)) A log pi`, W the product of the ratios of the sequence.

    Without a ceiling its mean over the old policy's sequences is the policy gradient, however far
    away the policy is; its variance is what the other methods avoid. Shapes: `[..., T]`,
    advantages also `[...]`, to `[..., T]`.

    Reference: Ionides 2008 for the ceiling (truncated importance sampling).
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    log_ratio = log_probs - old
    weight = ratio_weights.importance(log_ratio, advantages, mask, ceiling=ceiling)
    _, _, ceiling = ratio_weights.bounds(1.0, jnp.inf, ceiling, log_probs)
    whole = jnp.sum(log_ratio, axis=-1, keepdims=True)
    return scored(log_probs, weight, whole, mask, jnp.exp(whole) > ceiling)


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

    Reference: DeepSeek-V3.2 (arXiv:2512.02556), off-policy sequence masking.
    Reconstructed: the formula is that of TRL 1.16.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    threshold = checks.not_negative("threshold", threshold, rows=log_probs)
    gone = ratio_weights.mean_over_sequence(old - jax.lax.stop_gradient(log_probs), mask)
    return mask & ((advantages >= 0) | (gone <= threshold))


def off_policy_masked(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    threshold: PerRow = 0.1,
    low: PerRow = 0.2,
    high: PerRow = 0.2,
) -> TokenLoss[ClipDiagnostics]:
    """`ppo_clip` without the sequences that `off_policy_mask` drops, which still count in averages.

    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: DeepSeek-V3.2 (arXiv:2512.02556), as `off_policy_mask`; the threshold is chosen here.
    """
    sampled = log_probs, old_log_probs, advantages, mask
    loss, evidence = ppo_clip(*sampled, low=low, high=high)
    keep = off_policy_mask(*sampled, threshold=threshold)
    threshold = checks.not_negative("threshold", threshold, rows=loss)
    return TokenLoss(checks.spread_nan(jnp.where(keep, loss, 0), loss, threshold), evidence)


def reinforce(
    log_probs: LogProbs, advantages: Advantages, mask: Mask
) -> TokenLoss[ClipDiagnostics]:
    """`-A log pi` for samples of the policy itself: no ratio, and none in its diagnostics but 1.

    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Williams 1992.
    """
    log_probs, mask, (advantages,) = masked(log_probs, mask, advantages=advantages)
    return scored(log_probs, advantages, jnp.zeros_like(log_probs), mask)


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
    With a ceiling above `1 + high` it is the two-sided clip of INTELLECT-2
    (arXiv:2505.07291) and TRL's `delta`.
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


# ------------------------------------------------------------------------- over a sequence


def _of_sequence(mean: Array, log_probs: Array) -> Array:
    """The mean at every token, with the derivative 1 by the token's own log-probability.

    Not by one of `-inf`, for which the mean is that, too, and its exponential has no slope.
    """
    own = jnp.where(log_probs == -jnp.inf, 0, log_probs)
    return jax.lax.stop_gradient(mean - own) + own


# --------------------------------------------------------------------------------- the table


class Row(NamedTuple):
    """A method: its weight, and the loss that has minus it for its derivative by log pi.

    Fields:
        weight: Of log_ratio, advantages and mask, `[..., T]` each, to the same.
        loss: Of log_probs, old_log_probs, advantages and mask, to a `TokenLoss`.
        by: What a weight depends on: "token" alone, or all of its "sequence".
    """

    weight: Callable[[Array, Array, Array], Array]
    loss: Callable[..., TokenLoss]
    by: str


def _of_token(weight: Callable, loss: Callable, **options: float) -> Row:
    """A row whose weight looks at one token, and at no mask."""

    def of_all(log_ratio: Array, advantages: Array, mask: Array) -> Array:
        log_ratio, mask, (advantages,) = masked(log_ratio, mask, advantages=advantages)
        return jnp.where(mask, weight(log_ratio, advantages, **options), 0)

    return Row(of_all, functools.partial(loss, **options), "token")


def _of_all(weight: Callable, loss: Callable, **options: float) -> Row:
    """A row whose weight looks at the sequence."""
    return Row(functools.partial(weight, **options), functools.partial(loss, **options), "sequence")


TABLE = {
    "reinforce": _of_token(
        lambda log_ratio, advantages: advantages,
        lambda log_probs, old_log_probs, advantages, mask: reinforce(log_probs, advantages, mask),
    ),
    "importance": _of_all(ratio_weights.importance, importance),
    "truncated": _of_all(ratio_weights.importance, importance, ceiling=2.0),
    "ppo": _of_token(ratio_weights.clipped, ppo_clip, low=0.2, high=0.2),
    "dual_clip": _of_token(ratio_weights.clipped, dual_clip, low=0.2, high=0.28, ceiling=3.0),
    "two_sided": _of_token(ratio_weights.clipped, dual_clip, low=0.2, high=0.2, ceiling=4.0),
    "cispo": _of_token(ratio_weights.cispo, cispo, high=2.0),
    "sapo": _of_token(ratio_weights.sapo, sapo),
    "dro": _of_token(ratio_weights.dro, dro),
    "awr": _of_token(
        lambda log_ratio, advantages: awr_weights(advantages, 1.0),
        lambda log_probs, old_log_probs, advantages, mask: awr(
            log_probs, advantages, mask, temperature=1.0
        ),
    ),
    "gspo": _of_all(ratio_weights.gspo, gspo),
    "luspo": _of_all(ratio_weights.luspo, luspo),
    "gmpo": _of_all(ratio_weights.gmpo, gmpo),
    "vespo": _of_all(ratio_weights.vespo, vespo),
    "off_policy_mask": _of_all(ratio_weights.off_policy_masked, off_policy_masked),
}
"""Methods by name, with the bounds of their papers or of the trainers that ship them."""
