"""Refusal of bad input, in one clear line where the user stands: shapes, types, ranges, names."""

import difflib
import functools
import operator
from collections.abc import Collection
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def as_float(name: str, x: ArrayLike) -> Array:
    """`x` as an array of float32 or float64; half precision is widened, other types are refused."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array, got dtype {x.dtype}")
    return x if x.dtype in (jnp.float32, jnp.float64) else x.astype(jnp.float32)


def same_shape(**arrays: Array) -> None:
    """Refuses arrays of different shapes, naming them."""
    shapes = {name: tuple(x.shape) for name, x in arrays.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{' and '.join(shapes)} must have the same shape, got {found}")


def alike(**arrays: ArrayLike) -> list[Array]:
    """Arrays of one shape in the widest of their precisions, in the order of the names."""
    arrays = {name: as_float(name, x) for name, x in arrays.items()}
    same_shape(**arrays)
    dtype = functools.reduce(jnp.promote_types, (x.dtype for x in arrays.values()))
    return [x.astype(dtype) for x in arrays.values()]


def in_range(
    name: str,
    x: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    allowed: str,
    *,
    closed: Literal["neither", "low", "high", "both"] = "neither",
) -> ArrayLike:
    """Refuses values outside of low to high; `closed` says which of the ends are allowed.

    What they are is not known yet of traced values: those outside become NaN, so that nothing
    plausible is computed from them. Callers go on with what this returns.

    >>> in_range("share", 1.5, 0, 1, "from 0 to 1", closed="both")
    Traceback (most recent call last):
    ValueError: share must be from 0 to 1, got 1.5
    """
    above = operator.ge if closed in ("low", "both") else operator.gt
    below = operator.le if closed in ("high", "both") else operator.lt
    if isinstance(x, jax.core.Tracer):
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.where(above(x, low) & below(x, high), x, jnp.nan) if inexact else x
    value = np.asarray(x)
    if value.dtype.kind not in "fiu" or not np.all(above(value, low) & below(value, high)):
        raise ValueError(f"{name} must be {allowed}, got {x}")
    return x


def positive(name: str, x: ArrayLike) -> ArrayLike:
    """Refuses what is not positive and finite; of traced values that becomes NaN."""
    return in_range(name, x, 0, np.inf, "positive and finite")


def known(where: str, name: str, allowed: Collection[str]) -> None:
    """Refuses a name that is not there, in one line with the near matches.

    >>> known("config.generator", "jensen_shanon", ("kl", "jensen_shannon"))
    Traceback (most recent call last):
    ValueError: config.generator: no 'jensen_shanon'; did you mean jensen_shannon?
    """
    if name in allowed:
        return
    near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(allowed)}"
    raise ValueError(f"{where}: no {name!r}{hint}")


def logits_pair(
    p_logits: ArrayLike, q_logits: ArrayLike, axis: int, where: ArrayLike | None
) -> tuple[Array, Array]:
    """Two checked arrays of logits with the categories last and masked categories at `-inf`.

    A row with nothing left by `where` becomes twice the same distribution, so that every
    divergence of it is 0 and so is its gradient.
    """
    p_logits, q_logits = as_float("p_logits", p_logits), as_float("q_logits", q_logits)
    same_shape(p_logits=p_logits, q_logits=q_logits)
    if p_logits.ndim == 0:
        raise ValueError("p_logits must have an axis of categories, got a scalar")
    if not -p_logits.ndim <= axis < p_logits.ndim:
        raise ValueError(f"axis must be within shape {tuple(p_logits.shape)}, got {axis}")
    dtype = jnp.promote_types(p_logits.dtype, q_logits.dtype)
    p_logits, q_logits = p_logits.astype(dtype), q_logits.astype(dtype)
    if where is not None:
        where = jnp.asarray(where)
        if where.dtype != jnp.bool_:
            raise TypeError(f"where must be a boolean array, got dtype {where.dtype}")
        where = jnp.broadcast_to(where, p_logits.shape)
        empty = ~jnp.any(where, axis=axis, keepdims=True)
        p_logits, q_logits = (
            jnp.where(empty, 0, jnp.where(where, logits, -jnp.inf))
            for logits in (p_logits, q_logits)
        )
    if p_logits.shape[axis] == 0:
        raise ValueError(f"axis {axis} must have at least one category, got shape {p_logits.shape}")
    return jnp.moveaxis(p_logits, axis, -1), jnp.moveaxis(q_logits, axis, -1)
