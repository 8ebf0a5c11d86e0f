"""The largest scores of a whole batch of tokens, also where it is divided over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.policy import tokens
from jdiv.types import Scalar


def share_of(count: Array, share: Scalar, dtype: jnp.dtype) -> Array:
    """`max(1, floor(share * count))` of a share from 0 to 1, computed in the given precision.

    >>> [int(share_of(jnp.array(count), 0.1, jnp.float32)) for count in (5, 50)]
    [1, 5]
    """
    share = jnp.asarray(checks.share("share", share), dtype)
    return jnp.maximum(jnp.floor(share * count.astype(dtype)), 1).astype(jnp.int32)


def kth_largest(
    scores: Array, eligible: Array, count: Scalar, *, axis_name: str | None = None
) -> Array:
    """The `count`-th largest of the eligible scores of the whole batch, -inf if there are fewer.

    NaN if one of them is. Found bit by bit, because counting is all that devices have to do
    together. Shapes: any, twice the same, to `[]`.

    >>> float(kth_largest(jnp.array([3.0, 1.0, 2.0]), jnp.array([True, True, True]), 2))
    2.0
    """
    scores = jax.lax.stop_gradient(jnp.where(eligible, scores, -jnp.inf)) + 0.0  # no negative zero
    bits = jnp.finfo(scores.dtype).bits
    word = {32: jnp.uint32, 64: jnp.uint64}[bits]
    one, top = jnp.ones((), word), jnp.array(1 << (bits - 1), word)

    def in_order(x: Array) -> Array:  # unsigned integers in the order of the numbers
        pattern = jax.lax.bitcast_convert_type(x, word)
        return jnp.where(pattern >= top, ~pattern, pattern | top)

    keys = in_order(scores)

    def settle(i: Array, found: Array) -> Array:
        trial = found | (one << jnp.asarray(bits - 1 - i, word))
        enough = tokens.count((keys >= trial) & eligible, axis_name) >= count
        return jnp.where(enough, trial, found)

    found = jax.lax.fori_loop(0, bits, settle, jnp.zeros((), word))
    found = jnp.maximum(found, in_order(jnp.full((), -jnp.inf, scores.dtype)))
    pattern = jnp.where(found >= top, found ^ top, ~found)
    unordered = tokens.count(eligible & jnp.isnan(scores), axis_name) > 0
    return jnp.where(unordered, jnp.nan, jax.lax.bitcast_convert_type(pattern, scores.dtype))


def among_largest(
    scores: Array, eligible: Array, count: Scalar, *, axis_name: str | None = None
) -> Array:
    """Whether a place is eligible and among the `count` largest scores, or equal to the last.

    Shapes: any, twice the same, to the same.

    >>> among_largest(jnp.array([3.0, 1.0, 2.0, 2.0]), jnp.full(4, True), 2).tolist()
    [True, False, True, True]
    """
    return eligible & (scores >= kth_largest(scores, eligible, count, axis_name=axis_name))
