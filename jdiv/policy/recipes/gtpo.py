"""GTPO (arXiv:2508.03772): conflicting tokens, and completions of high entropy.

Reconstructed: whether the entropy of a completion is differentiated is not stated; here it is not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.policy.tokens import TokenLoss, masked
from jdiv.types import LogProbs, Mask, PerRow, PerSequence, PerToken

LOG_2 = math.log(2)


def conflict_weights(
    tokens: ArrayLike, advantages: PerSequence, mask: Mask, *, runs: bool = False
) -> Array:
    """2 and 0 for conflicting tokens in completions of positive and negative advantage, else 1.

    Tokens conflict that are equal and at equal places in completions of both signs. With `runs` it
    is the released code: only conflicts of the unbroken run from the start count, times the same
    for the run to the end with completions aligned there, so that 4 is possible. Masks then have to
    be prefixes. Shapes: tokens and mask `[..., G, T]`, advantages `[..., G]` to `[..., G, T]`.

    >>> tokens = jnp.array([[3, 1, 4], [3, 1, 5]])
    >>> conflict_weights(tokens, jnp.array([1.0, -1.0]), jnp.full((2, 3), True))
    Array([[2., 2., 1.],
           [0., 0., 1.]], dtype=float32)

    Reference: GTPO (arXiv:2508.03772), and its code.
    """
    tokens, mask = jnp.asarray(tokens), checks.as_mask("mask", mask)
    advantages = _of_completions(advantages, mask)
    checks.same_shape(tokens=tokens, mask=mask)

    def conflicts(tokens: Array, mask: Array) -> Array:
        equal = tokens[..., :, None, :] == tokens[..., None, :, :]
        both = mask[..., :, None, :] & mask[..., None, :, :]
        opposite = advantages[..., :, None] * advantages[..., None, :] < 0
        return jnp.any(equal & both & opposite[..., None], axis=-2)

    def weights(conflict: Array) -> Array:
        sided = jnp.where(advantages[..., None] > 0, 2.0, 0.0)
        weights = jnp.where(conflict, sided, 1.0).astype(advantages.dtype)
        return checks.spread_nan(weights, jnp.where(mask, advantages[..., None], 0))

    if not runs:
        return weights(conflicts(tokens, mask))
    length = tokens.shape[-1]
    place = jnp.arange(length).reshape((1,) * (tokens.ndim - 1) + (length,))
    shift = length - jnp.sum(mask, axis=-1, keepdims=True)
    right = (place - shift) % length
    ending = conflicts(*(jnp.take_along_axis(x, right, axis=-1) for x in (tokens, mask)))
    ending = jnp.flip(jnp.cumprod(jnp.flip(ending, -1).astype(jnp.int32), axis=-1), -1)
    back = (place + shift) % length
    starting = jnp.cumprod(conflicts(tokens, mask).astype(jnp.int32), axis=-1)
    return weights(starting > 0) * weights(jnp.take_along_axis(ending, back, axis=-1) > 0)


def _of_completions(advantages: PerSequence, mask: Array) -> Array:
    """Checked advantages `[..., G]` for a mask `[..., G, T]`."""
    advantages = checks.as_float("advantages", advantages)
    if mask.ndim < 2 or advantages.shape != mask.shape[:-1]:
        raise ValueError(
            "advantages and mask must be of shapes [..., G] and [..., G, T], got"
            f" {tuple(advantages.shape)} and {tuple(mask.shape)}"
        )
    return advantages


class ConflictDiagnostics(NamedTuple):
    """Ratios, and the weights of tokens and completions.

    Fields:
        ratio: `[..., G, T]` `pi/pi_old`, 1 where masked.
        weights: `[..., G, T]` 0, 1 or 2 (4 for runs) for each token.
        kept: `[..., G]` completions that are not dropped for their entropy.
    """

    ratio: Array
    weights: Array
    kept: Array


def gtpo(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    entropy: PerToken,
    advantages: PerSequence,
    weights: PerToken,
    mask: Mask,
    *,
    initial_entropy: ArrayLike,
    coefficient: PerRow = 0.1,
    threshold: PerRow = LOG_2,
) -> TokenLoss[ConflictDiagnostics]:
    """`-keep (A - coefficient <H>) w weight`, to be reduced by `sequence_mean`.

    `<H>` is a completion's mean entropy, a constant. A completion is kept if it is at most the
    threshold, or if the initial entropy was above it: any distribution with `max p <= 1/2` has at
    least log 2. The weights are those of `conflict_weights`, the advantages rewards less their
    mean, without scale. With weights 1, coefficient 0 and everything kept it is `-A w`. Shapes:
    `[..., G, T]`, advantages `[..., G]`, to `[..., G, T]`.

    Reference: GTPO (arXiv:2508.03772), and its code, which has threshold .7, no exception for the
    initial entropy, and divides by the number of conflicting tokens.
    """
    log_probs, mask, (old_log_probs, entropy, weights) = masked(
        log_probs, mask, old_log_probs=old_log_probs, entropy=entropy, weights=weights
    )
    ratio = jnp.exp(log_probs - old_log_probs)
    advantages = _of_completions(advantages, mask).astype(ratio.dtype)
    lengths = jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.int32), 1)
    mean_entropy = jnp.sum(entropy, axis=-1) / lengths.astype(ratio.dtype)
    parameters = {"initial_entropy": initial_entropy, "coefficient": coefficient}
    initial_entropy, coefficient, threshold = (
        checks.not_negative(name, x, rows=mean_entropy)
        for name, x in {**parameters, "threshold": threshold}.items()
    )
    kept = (initial_entropy > threshold) | (mean_entropy <= threshold)
    gain = advantages - coefficient * mean_entropy
    gain = jnp.where(kept, gain, checks.spread_nan(jnp.zeros_like(gain), gain, threshold))
    gain = checks.spread_nan(gain, initial_entropy)
    loss = jnp.where(mask, -gain[..., None] * ratio * weights, 0)
    return TokenLoss(loss, ConflictDiagnostics(jax.lax.stop_gradient(ratio), weights, kept))
