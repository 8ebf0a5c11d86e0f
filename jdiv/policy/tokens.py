"""Losses of sampled tokens: their type, their averages, sums to go, and masks.

A loss takes log-probabilities `[..., T]` of the tokens that were sampled, advantages `[...]` or
`[..., T]` and a mask `[..., T]` that is True where a token counts. It is minimized and not yet
averaged; what was in masked places, NaN included, has no influence. Half precision is widened.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel


class TokenLoss(NamedTuple):
    """A loss before it is averaged."""

    loss: Array
    """`[..., T]` per token, 0 where masked, or `[...]` per sample."""
    aux: NamedTuple
    """Evidence, without derivatives."""


def masked(
    log_probs: ArrayLike, mask: ArrayLike, **others: ArrayLike
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Log-probabilities, mask and others in one precision and shape, 0 where masked.

    Others without the last axis count for all tokens of their sequence, and are constants.
    """
    arrays = {name: checks.as_float(name, x) for name, x in others.items()}
    log_probs, mask = checks.as_float("log_probs", log_probs), jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be a boolean array, got dtype {mask.dtype}")
    checks.same_shape(log_probs=log_probs, mask=mask)
    dtype = log_probs.dtype
    for name, x in arrays.items():
        if x.shape not in (log_probs.shape, log_probs.shape[:-1]):
            raise ValueError(
                f"{name} must be of shape {log_probs.shape}, or without the last axis,"
                f" got {x.shape}"
            )
        dtype = jnp.promote_types(dtype, x.dtype)

    def kept(x: Array) -> Array:
        x = x.astype(dtype) if x.ndim == mask.ndim else x.astype(dtype)[..., None]
        return jnp.where(mask, x, 0)

    constants = (jax.lax.stop_gradient(kept(x)) for x in arrays.values())
    return kept(log_probs), mask, tuple(constants)


def to_go(token_rewards: ArrayLike, mask: ArrayLike) -> Array:
    """Sums of what a token and those after it get; 0 where masked. Shapes: `[..., T]` twice.

    >>> to_go(jnp.array([1.0, 2.0, 4.0]), jnp.array([True, True, False]))
    Array([3., 2., 0.], dtype=float32)
    """
    token_rewards, mask, _ = masked(token_rewards, mask)
    sums = jax.lax.cumsum(token_rewards, axis=mask.ndim - 1, reverse=True)
    return jnp.where(mask, sums, 0)


def _kept(x: ArrayLike, mask: ArrayLike) -> tuple[Array, Array]:
    """x with 0 where masked, and the mask as numbers."""
    x, mask = checks.as_float("x", x), jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be a boolean array, got dtype {mask.dtype}")
    checks.same_shape(x=x, mask=mask)
    return jnp.where(mask, x, 0), mask.astype(x.dtype)


def _mean_of_counted(x: Array, counts: Array, axis_name: str | None) -> Array:
    """`sum x / sum counts` over all devices; 0 if nothing counts."""
    total, count = parallel.sum_over((jnp.sum(x), jnp.sum(counts)), axis_name)
    return total / jnp.maximum(count, 1)


def token_mean(x: ArrayLike, mask: ArrayLike, *, axis_name: str | None = None) -> Array:
    """The mean over all tokens that count, each alike: a sequence weighs as much as it is long.

    Shapes: `[n, T]` twice to `[]`; 0 if nothing counts.

    >>> token_mean(jnp.array([[1.0, 9.0], [4.0, 4.0]]), jnp.array([[True, False], [True, True]]))
    Array(3., dtype=float32)

    Reference: DAPO (arXiv:2503.14476), equation 8.
    """
    return _mean_of_counted(*_kept(x, mask), axis_name)


def sequence_mean(x: ArrayLike, mask: ArrayLike, *, axis_name: str | None = None) -> Array:
    """The mean over sequences of the mean over their tokens: all sequences weigh the same.

    Sequences without tokens do not count. Shapes: `[n, T]` twice to `[]`; 0 if nothing counts.

    >>> sequence_mean(jnp.array([[1.0, 9.0], [4.0, 4.0]]), jnp.array([[True, False], [True, True]]))
    Array(2.5, dtype=float32)

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), equation 3.
    """
    x, mask = _kept(x, mask)
    length = jnp.sum(mask, axis=-1)
    means = jnp.sum(x, axis=-1) / jnp.maximum(length, 1)
    return _mean_of_counted(means, jnp.minimum(length, 1), axis_name)


def constant_mean(
    x: ArrayLike, mask: ArrayLike, length: ArrayLike, *, axis_name: str | None = None
) -> Array:
    """The mean over sequences of the sum over their tokens, divided by a constant length.

    Sequences without tokens do not count. Shapes: `[n, T]` twice and `[]` to `[]`; 0 if nothing
    counts.

    Reference: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), section 3.2.
    """
    x, mask = _kept(x, mask)
    return _mean_of_counted(jnp.sum(x, axis=-1), jnp.max(mask, axis=-1), axis_name) / length
