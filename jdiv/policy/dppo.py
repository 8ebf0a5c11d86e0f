"""DPPO: a divergence from the old policy as the trust region of a token, in place of a clip.

PPO drops a token when its ratio leaves a range: a rare token soon, at a divergence of nearly
nothing, and a common one late. Here a token is dropped when the divergence of the two policies at
its position is above a threshold and its ratio has moved with its advantage. The divergence is any
row of the table, of the whole vocabulary, `divergences.f_divergence(logits, old_logits,
generator=row)`, or of the sampled token against the rest, which needs no logits and is never more.

Reference: DPPO (arXiv:2602.04879).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jdiv import checks, divergences
from jdiv.divergences.generator import Generator
from jdiv.policy.clipped import ClipDiagnostics, scored
from jdiv.policy.ratio_weights import bounds
from jdiv.policy.tokens import Advantages, TokenLoss, masked
from jdiv.types import LogProbs, Mask, PerRow, PerToken


def binary_divergence(
    log_probs: LogProbs, old_log_probs: LogProbs, *, generator: Generator
) -> Array:
    """`D((pi, 1 - pi) || (old, 1 - old))`: of the sampled token against all others together.

    At most the divergence of the whole vocabulary, and equal to it for two tokens. With
    `total_variation` it is |pi - old|, with `reverse_kl` the KL(old‖pi) of DPPO. A log-probability
    that rounding took above 0 counts as 0. Shapes: `[..., T]`, twice the same, to the same.

    >>> from jdiv import generators
    >>> new, old = jnp.log(jnp.array([0.5, 0.02])), jnp.log(jnp.array([0.25, 0.01]))
    >>> print(binary_divergence(new, old, generator=generators.total_variation()))
    [0.25 0.01]

    Reference: DPPO (arXiv:2602.04879), its binary form; other rows than TV and KL are our own.
    """
    log_probs, old = checks.alike(log_probs=log_probs, old_log_probs=old_log_probs)
    return divergences.f_divergence(_two(log_probs), _two(old), generator=generator)


def _two(log_probs: Array) -> Array:
    """Log-probabilities `[..., T, 2]` of the token and of all others, accurate for small ones."""
    log_probs = jnp.minimum(log_probs, 0)
    common = log_probs > -jnp.log(2.0).astype(log_probs.dtype)
    of_common = jnp.log(-jnp.expm1(jnp.where(common, log_probs, -1)))
    of_rare = jnp.log1p(-jnp.exp(jnp.where(common, -1, log_probs)))
    return jnp.stack([log_probs, jnp.where(common, of_common, of_rare)], axis=-1)


def dppo(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    divergence: PerToken,
    *,
    threshold: PerRow,
    ceiling: PerRow = 20.0,
) -> TokenLoss[ClipDiagnostics]:
    """`-stop_gradient(min(w, ceiling)) A log pi`, 0 where the divergence is above the threshold and
    w has moved with A, above 1 for a positive one and below 1 for a negative one.

    `divergence` is that of the token's position, a constant: `binary_divergence`, or the one of the
    logits. In the diagnostics clipped is what is dropped. Shapes: `[..., T]`, advantages also
    `[...]`, to `[..., T]`.

    Reference: DPPO (arXiv:2602.04879), with the ceiling of verl 0.9.
    Reconstructed: mask and ceiling are those of verl.
    """
    log_probs, mask, (old, advantages, divergence) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages, divergence=divergence
    )
    log_ratio = log_probs - old
    limits = {"threshold": threshold, "ceiling": ceiling}
    weight = dppo_weight(log_ratio, advantages, divergence, **limits)
    threshold = checks.per_row("threshold", threshold, log_probs)
    dropped = _outside(log_ratio, advantages, divergence, threshold)
    return scored(log_probs, weight, log_ratio, mask, dropped)


def _outside(log_ratio: Array, advantages: Array, divergence: Array, threshold: Array) -> Array:
    """Whether a token is far away, in the direction that its advantage takes it."""
    moved = (advantages > 0) & (log_ratio > 0) | (advantages < 0) & (log_ratio < 0)
    return moved & (divergence > threshold)


def dppo_weight(
    log_ratio: PerToken,
    advantages: PerToken,
    divergence: PerToken,
    *,
    threshold: PerRow,
    ceiling: PerRow = 20.0,
) -> Array:
    """`min(w, ceiling) A`, and 0 where `divergence > threshold` and w has moved with A.

    Shapes: `[..., T]`, three times the same, to the same.

    >>> log_ratio, far = jnp.log(jnp.array([2.0, 2.0, 0.5])), jnp.array([0.3, 0.1, 0.3])
    >>> print(dppo_weight(log_ratio, jnp.ones(3), far, threshold=0.2))
    [0.  2.  0.5]

    Reference: as `dppo`.
    """
    log_ratio, advantages, divergence = checks.alike(
        log_ratio=log_ratio, advantages=advantages, divergence=divergence
    )
    threshold = checks.in_range(
        "threshold", threshold, 0, jnp.inf, "not negative", closed="both", rows=log_ratio
    )
    _, _, ceiling = bounds(1.0, jnp.inf, ceiling, log_ratio)
    ratio = jnp.exp(jnp.where(advantages == 0, 0, log_ratio))
    outside = _outside(log_ratio, advantages, divergence, threshold)
    weight = jnp.where(outside, 0, jnp.minimum(ratio, ceiling))
    return checks.spread_nan(weight * advantages, log_ratio, divergence, threshold, ceiling)
