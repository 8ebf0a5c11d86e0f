"""Refusal of bad input, in one clear line where the user stands: shapes, types, ranges, names."""

from __future__ import annotations

import contextlib
import difflib
import functools
import operator
from collections.abc import Collection
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike


def _as_array(name: str, x: ArrayLike, allowed: str) -> Array:
    """`x` as an array; what is none, a string or None, is refused."""
    if not isinstance(x, str):  # JAX takes some for names of types
        with contextlib.suppress(TypeError, ValueError):
            return jnp.asarray(x)
    raise TypeError(f"{name} must be {allowed}, got {short(x)}")


def short(x: object) -> str:
    """A value in one line, or what kind of thing it is."""
    text = str(x)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(x).__name__}"


def floating(name: str, x: ArrayLike) -> Array:
    """`x` as an array of floating-point numbers in its own precision; other types are refused."""
    x = _as_array(name, x, "a floating-point array")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array, got dtype {x.dtype}")
    return x


def as_float(name: str, x: ArrayLike) -> Array:
    """`x` as an array of float32 or float64; half precision is widened, other types are refused.

    >>> as_float("values", "three")
    Traceback (most recent call last):
    TypeError: values must be a floating-point array, got three
    """
    x = floating(name, x)
    return x.astype(wide(x.dtype))


def wide(dtype: DTypeLike) -> DTypeLike:
    """float64 and float32 themselves, and float32 for half precision."""
    return dtype if dtype in (jnp.float32, jnp.float64) else jnp.float32


def as_mask(name: str, x: ArrayLike) -> Array:
    """A mask as booleans: of integers 1 counts and 0 does not, others are refused.

    What traced integers are is not known yet: of those all but 0 count.
    """
    x = _as_array(name, x, "a boolean array, or integers 0 and 1")
    if x.dtype == jnp.bool_:
        return x
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must be a boolean array, or integers 0 and 1, got dtype {x.dtype}")
    _refuse_other_integers(name, x)
    return x != 0


def as_rewards(name: str, x: ArrayLike, dtype: DTypeLike = float) -> Array:
    """Rewards as an array of float32 or float64: floating-point numbers, booleans, or 0 and 1.

    Booleans and integers take the precision that is given. Other integers are refused, and NaN if
    they are traced.
    """
    x = _as_array(name, x, "floating-point numbers, booleans, or integers 0 and 1")
    if jnp.issubdtype(x.dtype, jnp.floating):
        return as_float(name, x)
    if x.dtype == jnp.bool_:
        return x.astype(dtype)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must be floating-point or 0 and 1, got dtype {x.dtype}")
    _refuse_other_integers(name, x)
    return jnp.where((x == 0) | (x == 1), x.astype(dtype), jnp.nan)


def _refuse_other_integers(name: str, x: Array) -> None:
    """Refuses integers other than 0 and 1 where they are known."""
    if isinstance(x, jax.core.Tracer):
        return
    value = np.asarray(x)
    other = value[(value != 0) & (value != 1)]
    if other.size:
        raise ValueError(f"{name} must be 0 and 1 where it holds integers, got {other[0]}")


def zeros_and_ones(name: str, x: ArrayLike) -> Array:
    """`as_rewards` of which all are 0 or 1: others are refused, and NaN if they are traced.

    >>> zeros_and_ones("correct", [True, False])
    Array([1., 0.], dtype=float32)
    """
    x = as_rewards(name, x)
    wrong = (x != 0) & (x != 1)
    if not isinstance(x, jax.core.Tracer):
        other = np.asarray(x)[np.asarray(wrong & ~jnp.isnan(x))]
        if other.size:
            raise ValueError(f"{name} must be 0 and 1, got {other[0]}")
    return jnp.where(wrong, jnp.nan, x)


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


# -------------------------------------------------------------------------------------- parameters


def in_range(
    name: str,
    x: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    allowed: str,
    *,
    closed: Literal["neither", "low", "high", "both"] = "neither",
    rows: Array | None = None,
) -> ArrayLike:
    """Refuses values outside of low to high; `closed` says which of the ends are allowed.

    What they are is not known yet of traced values: those outside become NaN, so that nothing
    plausible is computed from them. Callers go on with what this returns. With `rows` it is
    `per_row` of them.

    >>> in_range("share", 1.5, 0, 1, "from 0 to 1", closed="both")
    Traceback (most recent call last):
    ValueError: share must be from 0 to 1, got 1.5
    """
    above = operator.ge if closed in ("low", "both") else operator.gt
    below = operator.le if closed in ("high", "both") else operator.lt
    if any(isinstance(value, jax.core.Tracer) for value in (x, low, high)):
        x = _as_array(name, x, allowed)
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
        x = jnp.where(above(x, low) & below(x, high), x, jnp.nan)
        return x if rows is None else per_row(name, x, rows)
    value = np.asarray(x)
    if value.dtype.kind not in "fiuV":
        raise ValueError(f"{name} must be {allowed}, got {short(x)}")
    inside = above(value, low) & below(value, high)
    if not np.all(inside):
        found = x if value.ndim == 0 else f"{np.broadcast_to(value, inside.shape)[~inside][0]}"
        raise ValueError(f"{name} must be {allowed}, got {found}")
    return x if rows is None else per_row(name, x, rows)


def positive(name: str, x: ArrayLike, *, rows: Array | None = None) -> ArrayLike:
    """Refuses what is not positive and finite; of traced values that becomes NaN."""
    return in_range(name, x, 0, np.inf, "positive and finite", rows=rows)


def not_negative(name: str, x: ArrayLike, *, rows: Array | None = None) -> ArrayLike:
    """Refuses what is negative or not finite; of traced values that becomes NaN."""
    return in_range(name, x, 0, np.inf, "finite and not negative", closed="low", rows=rows)


def share(name: str, x: ArrayLike, *, rows: Array | None = None) -> ArrayLike:
    """Refuses what is not from 0 to 1, both allowed; of traced values that becomes NaN."""
    return in_range(name, x, 0, 1, "from 0 to 1", closed="both", rows=rows)


def finite(name: str, x: ArrayLike, *, rows: Array | None = None) -> ArrayLike:
    """Refuses what is not finite; of traced values that becomes NaN."""
    return in_range(name, x, -np.inf, np.inf, "finite", rows=rows)


def per_row(name: str, x: ArrayLike, rows: Array) -> Array:
    """A parameter for the rows `[..., n]`, to be broadcast against them: a number, or one for each.

    Shapes: `[]` to the same, or `[...]` to `[..., 1]`; others are refused, so that none is taken
    for one number for each category.

    >>> per_row("temperature", np.ones(3), jnp.zeros((2, 3)))
    Traceback (most recent call last):
    ValueError: temperature must be a number or of shape (2,), one for each row, got (3,)
    """
    x = _as_array(name, x, "a number").astype(rows.dtype)
    if x.ndim == 0:
        return x
    batch = tuple(rows.shape[:-1])
    if x.shape != batch:
        allowed = f"a number or of shape {batch}, one for each row" if batch else "a number"
        raise ValueError(f"{name} must be {allowed}, got {tuple(x.shape)}")
    return x[..., None]


def whole(name: str, x: int, low: int, high: int, allowed: str) -> int:
    """Refuses what is not an integer from low to high; sizes are integers that are never traced.

    >>> whole("k", 0, 1, 4, "from 1 to 4, the samples")
    Traceback (most recent call last):
    ValueError: k must be from 1 to 4, the samples, got 0
    """
    try:
        x = operator.index(x)
    except (TypeError, jax.errors.JAXTypeError):
        raise TypeError(f"{name} must be an integer, got {short(repr(x))}") from None
    if not low <= x <= high:
        raise ValueError(f"{name} must be {allowed}, got {x}")
    return x


def spread_nan(x: Array, *others: ArrayLike) -> Array:
    """`x`, NaN with a NaN for derivative where one of the others is: a comparison hides theirs.

    >>> spread_nan(jnp.array([1.0, 2.0]), jnp.array([0.0, jnp.nan]))
    Array([ 1., nan], dtype=float32)
    """
    for other in others:
        x = x * jnp.where(jnp.isnan(other), jnp.nan, 1)
    return x


def symmetric(name: str, x: Array) -> Array:
    """Refuses matrices `[..., d, d]` that are not symmetric up to rounding; NaN if traced."""
    traced = isinstance(x, jax.core.Tracer)
    library, known = (jnp, x) if traced else (np, np.asarray(x))
    size = library.max(library.abs(known), axis=(-2, -1), keepdims=True, initial=0)
    wrong = library.abs(known - library.swapaxes(known, -2, -1)) > 1e-5 * size
    if traced:
        return jnp.where(jnp.any(wrong, axis=(-2, -1), keepdims=True), jnp.nan, x)
    if wrong.any():
        raise ValueError(f"{name} must be symmetric")
    return x


# ------------------------------------------------------------------------------------ distributions

NORMALIZED = 1e-3
"""By how much the sum of probabilities may miss 1: logits and log-policies miss it by far more."""


def probabilities(name: str, x: ArrayLike) -> Array:
    """Refuses what is negative or does not sum to 1 over the last axis; NaN if it is traced."""
    return _distribution(name, x, "probabilities [..., n]", logarithms=False)


def log_probabilities(name: str, x: ArrayLike) -> Array:
    """Refuses what does not sum to 1 over the last axis after exp; NaN if it is traced."""
    return _distribution(name, x, "normalized log-probabilities [..., n]", logarithms=True)


def _distribution(name: str, x: ArrayLike, allowed: str, *, logarithms: bool) -> Array:
    x = as_float(name, x)
    if x.ndim == 0:
        raise ValueError(f"{name} must be {allowed}, got a scalar")
    traced = isinstance(x, jax.core.Tracer)
    library = jnp if traced else np
    p = library.exp(x) if logarithms else library.asarray(x)
    total = p.sum(axis=-1)
    # Not `(p >= 0).all()`: of an exponential XLA knows each of these, and takes seconds to put
    # together as many constants as there are probabilities.
    good = (p.min(axis=-1, initial=np.inf) >= 0) & (abs(total - 1) <= NORMALIZED)
    if traced:
        return jnp.where(good[..., None], x, jnp.nan)
    if not np.all(good):
        least = p[~good][0].min()
        found = f"{least}" if least < 0 else f"a row with the sum {total[~good][0]}"
        raise ValueError(f"{name} must be {allowed}, got {found}")
    return x


# -------------------------------------------------------------------------------- names and logits


def as_integers(name: str, x: ArrayLike) -> Array:
    """`x` as an array of integers; other types are refused."""
    x = _as_array(name, x, "an array of integers")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must be an array of integers, got dtype {x.dtype}")
    return x


def categories(name: str, x: ArrayLike, size: int | None = None) -> Array:
    """Refuses indices `[..., k]` that are no different categories, of so many that there are.

    Which they are is not known yet of traced ones: those that are none become `size`, where
    nothing is. That traced ones differ is not checked.

    >>> categories("indices", [3, 1, 3], 5)
    Traceback (most recent call last):
    ValueError: indices must differ within each row, got 3 twice
    """
    x = as_integers(name, x)
    if x.ndim == 0:
        raise ValueError(f"{name} must be [..., k], got a scalar")
    if isinstance(x, jax.core.Tracer):
        return x if size is None else jnp.where(x < 0, size, x)
    ordered = np.sort(np.asarray(x), axis=-1)
    outside = (ordered < 0) | (ordered >= (np.inf if size is None else size))
    if outside.any():
        allowed = "not negative" if size is None else f"from 0 to {size - 1}"
        raise ValueError(f"{name} must be {allowed}, got {ordered[outside][0]}")
    again = ordered[..., 1:][ordered[..., 1:] == ordered[..., :-1]]
    if again.size:
        raise ValueError(f"{name} must differ within each row, got {again[0]} twice")
    return x


def some_category(name: str, x: Array) -> Array:
    """Refuses rows `[..., n]` of logits without a category: all are -inf, or n is 0.

    What traced rows are is not known yet: without a category their law is NaN.

    >>> some_category("logits", jnp.full(2, -jnp.inf))
    Traceback (most recent call last):
    ValueError: logits must have a category above -inf in every row
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must be [..., n] with n at least 1, got shape {tuple(x.shape)}")
    if not isinstance(x, jax.core.Tracer) and (np.asarray(x) == -np.inf).all(axis=-1).any():
        raise ValueError(f"{name} must have a category above -inf in every row")
    return x


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
    p_logits, q_logits = narrow_logits_pair(p_logits, q_logits, axis, where)
    return as_float("p_logits", p_logits), as_float("q_logits", q_logits)


def narrow_logits_pair(
    p_logits: ArrayLike, q_logits: ArrayLike, axis: int, where: ArrayLike | None
) -> tuple[Array, Array]:
    """The same pair, of which half precision is not widened if both are of one type."""
    p_logits, q_logits = floating("p_logits", p_logits), floating("q_logits", q_logits)
    if p_logits.dtype != q_logits.dtype:
        dtype = jnp.promote_types(wide(p_logits.dtype), wide(q_logits.dtype))
        p_logits, q_logits = p_logits.astype(dtype), q_logits.astype(dtype)
    if p_logits.shape != q_logits.shape:
        shapes = f"p_logits {tuple(p_logits.shape)}, q_logits {tuple(q_logits.shape)}"
        raise ValueError(
            f"p_logits and q_logits must have the same shape (see jnp.broadcast_to), got {shapes}"
        )
    if not isinstance(axis, int):
        raise TypeError(f"axis must be one integer, got {axis}")
    if p_logits.ndim == 0:
        raise ValueError("p_logits must have an axis of categories, got a scalar")
    if not -p_logits.ndim <= axis < p_logits.ndim:
        raise ValueError(f"axis must be within shape {tuple(p_logits.shape)}, got {axis}")
    dtype = jnp.promote_types(p_logits.dtype, q_logits.dtype)
    p_logits, q_logits = p_logits.astype(dtype), q_logits.astype(dtype)
    if where is not None:
        where = as_mask("where", where)
        try:
            where = jnp.broadcast_to(where, p_logits.shape)
        except ValueError:
            raise ValueError(
                f"where must broadcast to shape {tuple(p_logits.shape)}, got {tuple(where.shape)}"
            ) from None
        empty = ~jnp.any(where, axis=axis, keepdims=True)
        p_logits, q_logits = (
            jnp.where(empty, 0, jnp.where(where, logits, -jnp.inf))
            for logits in (p_logits, q_logits)
        )
    if p_logits.shape[axis] == 0:
        raise ValueError(f"axis {axis} must have at least one category, got shape {p_logits.shape}")
    return jnp.moveaxis(p_logits, axis, -1), jnp.moveaxis(q_logits, axis, -1)
