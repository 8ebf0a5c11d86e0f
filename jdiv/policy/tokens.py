"""Losses of sampled tokens: their type, their averages, sums to go, and masks.

A loss takes log-probabilities `[..., T]` of the tokens that were sampled, advantages `[...]` of a
sequence or `[..., T]` of its tokens, and a mask `[..., T]` that is True where a token counts. It is
minimized and not yet averaged: a `TokenLoss` is made one number by `token_mean`, `sequence_mean` or
`constant_mean`. What stands in masked places, NaN included, has no influence. Half precision is
widened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel
from jdiv.types import LogProbs, Mask, PerSequence, PerToken, Scalar

Advantages = PerToken | PerSequence
"""One number for each token, or one for all tokens of a sequence."""

Diagnostics = TypeVar("Diagnostics", bound=tuple)


class TokenLoss(NamedTuple, Generic[Diagnostics]):
    """A loss per token, to be averaged; a loss that is to be summed has another type.

    Fields:
        loss: `[..., T]`, 0 where masked.
        aux: Diagnostics, a `NamedTuple` of the loss's own, without derivatives.
    """

    loss: Array
    aux: Diagnostics


# ------------------------------------------------------------------------------------------- masks


def kept(name: str, x: ArrayLike, mask: ArrayLike) -> tuple[Array, Array]:
    """`x` with 0 where masked, and the mask as booleans; refuses masks of another shape."""
    if isinstance(x, TokenLoss):
        raise TypeError(f"{name} must be an array: pass the `loss` of a TokenLoss, not all of it")
    x, mask = checks.as_float(name, x), checks.as_mask("mask", mask)
    checks.same_shape(**{name: x, "mask": mask})
    return jnp.where(mask, x, 0), mask


def masked(
    log_probs: LogProbs, mask: Mask, **others: Advantages
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Log-probabilities, mask and others in one precision and shape, 0 where masked.

    Others without the last axis count for all tokens of their sequence. They are constants.
    """
    log_probs, mask = kept("log_probs", log_probs, mask)
    dtype = log_probs.dtype
    arrays = {
        name: checks.as_rewards(name, x, dtype) if name == "rewards" else checks.as_float(name, x)
        for name, x in others.items()
    }
    for name, x in arrays.items():
        if x.shape not in (mask.shape, mask.shape[:-1]):
            raise ValueError(
                f"{name} must be of shape {mask.shape}, or without the last axis, got {x.shape}"
            )
        dtype = jnp.promote_types(dtype, x.dtype)

    def constant(x: Array) -> Array:
        x = jax.lax.stop_gradient(x.astype(dtype))
        return jnp.where(mask, x if x.ndim == mask.ndim else x[..., None], 0)

    return log_probs.astype(dtype), mask, tuple(constant(x) for x in arrays.values())


# ---------------------------------------------------------------------------------------- averages


def count(mask: Array, axis_name: str | None = None) -> Array:
    """The number of places that count, on all devices. Shapes: any to `[]`."""
    return parallel.sum_over(jnp.sum(mask, dtype=jnp.int32), axis_name)


def masked_mean(x: Array, mask: Array, axis_name: str | None = None) -> Array:
    """The mean of x where the mask is True, on all devices; 0 if nothing counts.

    Shapes: any, twice the same, to `[]`.
    """
    total = parallel.sum_over(jnp.sum(jnp.where(mask, x, 0)), axis_name)
    return total / jnp.maximum(count(mask, axis_name), 1).astype(x.dtype)


def token_mean(x: PerToken, mask: Mask, *, axis_name: str | None = None) -> Array:
    """The mean over all tokens that count: a sequence weighs as much as it is long.

    Shapes: `[n, T]` twice to `[]`; 0 if nothing counts.

    >>> token_mean(jnp.array([[1.0, 9.0], [4.0, 4.0]]), jnp.array([[True, False], [True, True]]))
    Array(3., dtype=float32)

    Reference: DAPO (arXiv:2503.14476), equation 8.
    """
    return masked_mean(*kept("x", x, mask), axis_name)


def sequence_mean(x: PerToken, mask: Mask, *, axis_name: str | None = None) -> Array:
    """The mean over sequences of the mean over their tokens: all sequences weigh the same.

    Sequences without tokens do not count. Shapes: `[n, T]` twice to `[]`; 0 if nothing counts.

    >>> sequence_mean(jnp.array([[1.0, 9.0], [4.0, 4.0]]), jnp.array([[True, False], [True, True]]))
    Array(2.5, dtype=float32)

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), equation 3.
    """
    x, mask = kept("x", x, mask)
    length = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    means = jnp.sum(x, axis=-1) / jnp.maximum(length, 1).astype(x.dtype)
    return masked_mean(means, length > 0, axis_name)


def constant_mean(
    x: PerToken, mask: Mask, length: Scalar, *, axis_name: str | None = None
) -> Array:
    """The mean over sequences of the sum over their tokens, divided by a constant length.

    Sequences without tokens do not count. With length 1 it is the mean of what whole sequences
    have, as the policy gradient has it (RLOO); any other, the longest answer allowed in Dr. GRPO,
    is no more than a factor of the step size. Shapes: `[n, T]` twice and `[]` to `[]`; 0 if nothing
    counts.

    >>> x, mask = jnp.array([[1.0, 9.0], [4.0, 4.0]]), jnp.array([[True, False], [True, True]])
    >>> constant_mean(x, mask, 2.0)
    Array(2.25, dtype=float32)

    Reference: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), section 3.2.
    """
    x, mask = kept("x", x, mask)
    sums = jnp.sum(x, axis=-1)
    length = checks.positive("length", length, rows=sums.ravel())
    return masked_mean(sums, jnp.any(mask, axis=-1), axis_name) / length


# ------------------------------------------------------------------------- averages as weights


def token_weights(mask: Mask, *, axis_name: str | None = None) -> Array:
    """`1/N` for each of the N tokens that count: `token_mean(x, mask) == sum(weights * x)`.

    Shapes: `[n, T]` to the same; 0 where masked.

    Reference: as `token_mean`.
    """
    mask = checks.as_mask("mask", mask)
    return _shared(mask, jnp.maximum(count(mask, axis_name), 1))


def sequence_weights(mask: Mask, *, axis_name: str | None = None) -> Array:
    """`1/(n L)` for a token of one of the n sequences that has L: those of `sequence_mean`.

    Shapes: `[n, T]` to the same; 0 where masked.

    >>> print(sequence_weights(jnp.array([[True, False], [True, True]])))
    [[0.5  0.  ]
     [0.25 0.25]]

    Reference: as `sequence_mean`.
    """
    mask = checks.as_mask("mask", mask)
    length = jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)
    n = jnp.maximum(count(length > 0, axis_name), 1)
    return _shared(mask, n * jnp.maximum(length, 1))


def constant_weights(mask: Mask, length: Scalar, *, axis_name: str | None = None) -> Array:
    """`1/(n length)` for each token: those of `constant_mean`; with length 1 those of LUSPO.

    Shapes: `[n, T]` and `[]` to `[n, T]`; 0 where masked.

    Reference: as `constant_mean`.
    """
    mask = checks.as_mask("mask", mask)
    n = jnp.maximum(count(jnp.any(mask, axis=-1), axis_name), 1)
    each = _shared(mask, n)
    return each / checks.positive("length", length, rows=each.ravel())


def bnpo_weights(mask: Mask) -> Array:
    """`1/(m N_i)` for each of the N_i tokens of the i-th of m parts of a batch.

    A mean over parts of means over their tokens, as of devices or steps that each average their
    own: the same as DAPO's mean over all tokens only if the parts have equally many. Shapes:
    `[m, n, T]` to the same; 0 where masked.

    >>> print(bnpo_weights(jnp.array([[[True, False]], [[True, True]]])))
    [[[0.5  0.  ]]
    <BLANKLINE>
     [[0.25 0.25]]]

    Reference: BNPO, as the loss of that name in TRL 1.16.
    Reconstructed: the average is TRL's; the paper's normalization of advantages is another thing.
    """
    mask = checks.as_mask("mask", mask)
    tokens = jnp.sum(mask, axis=(-2, -1), keepdims=True, dtype=jnp.int32)
    return _shared(mask, mask.shape[0] * jnp.maximum(tokens, 1))


def _shared(mask: Array, among: Array) -> Array:
    """One among so many where the mask is True, in the default precision."""
    return jnp.where(mask, 1 / among.astype(float), 0)


class Average(NamedTuple):
    """How a trainer averages, as the weight of each token in both terms of its loss.

    A KL term that is taken token by token and added to the loss has the weights of the loss, times
    its coefficient; trainers that average both in their own ways have two kinds.

    Fields:
        loss: Weights of the policy's term by the mask `[n, T]`.
        kl: Weights of the KL term.
    """

    loss: Callable[[Array], Array]
    kl: Callable[[Array], Array]


def _longest_weights(mask: Mask) -> Array:
    return constant_weights(mask, mask.shape[-1])


def _unit_weights(mask: Mask) -> Array:
    return constant_weights(mask, 1.0)


AVERAGES = {
    "GRPO": Average(sequence_weights, sequence_weights),
    "DAPO": Average(token_weights, token_weights),
    "Dr. GRPO": Average(_longest_weights, _longest_weights),
    "LUSPO": Average(_unit_weights, _unit_weights),
    "SAPO and GMPO, verl": Average(sequence_weights, token_weights),
}
"""By method: of GRPO and DAPO as in their papers, of others as TRL 1.16 and verl 0.9 have them.

verl averages SAPO and GMPO over sequences whatever is asked for, and their KL loss as is asked for,
over tokens if nothing is. LUSPO's are for GSPO's loss.
"""


# ------------------------------------------------------------------------------------- sums to go


def to_go(token_rewards: PerToken, mask: Mask) -> Array:
    """The sum of what a token and those after it get; 0 where masked. Shapes: `[..., T]` twice.

    >>> to_go(jnp.array([1.0, 2.0, 4.0]), jnp.array([True, True, False]))
    Array([3., 2., 0.], dtype=float32)
    """
    token_rewards, mask = kept("token_rewards", token_rewards, mask)
    sums = jax.lax.cumsum(token_rewards, axis=mask.ndim - 1, reverse=True)
    return jnp.where(mask, sums, 0)
