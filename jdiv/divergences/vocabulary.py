"""Divergences of language models over their whole vocabulary, without logits of all tokens.

The logits of a batch, `[tokens, vocabulary]`, are the largest array of a language model by far.
Here they never exist: from the hidden states and the head they are made for one tile of tokens at a
time, over the full vocabulary, used and dropped, and made again for the gradient. What a tile
computes is the plain function on its logits, so that every row of the table is as exact here as
there. Matrix products take the operands in their own type and add up in single precision, double
for double; the gradient of the head is carried from tile to tile in that precision.

`divergence`, `log_probs` and `entropy` are one number for each token, differentiable in reverse
mode. `weighted_loss` is a weighted sum of a divergence and a cross-entropy; as it knows the weights
it makes its gradients along with the value, which saves a third of the matrix products.

Either side of a divergence is `FromHidden`, an array of logits, or `sparse.TopK`, whose other
categories are one category more. Categories that `where` leaves out, a padded vocabulary's columns,
are exact zeros on both sides. Tokens that `mask` leaves out give 0, and nothing flows back to them.

>>> from jdiv import generators
>>> hidden, head = jnp.eye(3), jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
>>> student, teacher = FromHidden(hidden, head), FromHidden(hidden, head, temperature=2.0)
>>> [f"{d:.4f}" for d in divergence(generators.kl(), student, teacher)]
['0.0263', '0.0671', '0.0671']
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import categorical, sparse
from jdiv.divergences.generator import Generator, checked_row
from jdiv.divergences.sparse import TopK
from jdiv.types import Categories, Head, Hidden, Indices, Logits, Mask, PerToken, Scalar

ENTRIES = {"cpu": 2**23, "gpu": 2**29, "tpu": 2**27}
"""Logits of a tile by default: 32 MiB in single precision on a CPU, 2 GiB on a GPU."""


class FromHidden(NamedTuple):
    """Logits as a language model makes them: `soft cap(hidden @ head.T + bias) / temperature`.

    Fields:
        hidden: `[..., tokens, width]` the states after the last layer and its norm.
        head: `[vocabulary, width]` one row for each token of the vocabulary, as in an embedding
            that is tied to it.
        bias: `[vocabulary]` or None; -inf is an exact zero.
        soft_cap: The c of `c tanh(logits / c)`, or None.
        temperature: A positive number, or one for each token.
    """

    hidden: Hidden
    head: Head
    bias: Array | None = None
    soft_cap: Scalar | None = None
    temperature: PerToken | Scalar = 1.0


Side = FromHidden | Logits | TopK
"""What a divergence is taken of."""


class Loss(NamedTuple):
    """A weighted sum over tokens and what it is made of; only `total` has a gradient.

    Fields:
        total: `[]` `sum weights * divergence + token_weights * cross_entropy`.
        divergence: `[..., tokens]` of each token.
        cross_entropy: `[..., tokens]` `-log p` of the given tokens; 0 where none are given.
    """

    total: Array
    divergence: Array
    cross_entropy: Array


class Tiles(NamedTuple):
    """How a call goes through its tokens.

    Fields:
        count: How many tiles.
        tokens: Tokens of each; the last begins earlier where they do not divide.
        logits: Bytes of one side's logits in a tile, in the precision of the computation.
    """

    count: int
    tokens: int
    logits: int


def tiles(
    tokens: int, vocabulary: int, tile: int | None = None, *, dtype: Any = "float32"
) -> Tiles:
    """What runs for so many tokens: `tile` tokens at a time, or as many as the device's default.

    >>> tiles(1000, 50_257, tile=128)
    Tiles(count=8, tokens=128, logits=25731584)
    """
    most = max(tokens, 1)
    if tile is None:
        tile = max(ENTRIES.get(jax.default_backend(), ENTRIES["gpu"]) // vocabulary, 1)
    tile = min(checks.whole("tile", tile, 1, 2**31 - 1, "at least 1"), most)
    return Tiles(-(-most // tile), tile, tile * vocabulary * jnp.dtype(dtype).itemsize)


def divergence(
    generator: Generator,
    p: Side,
    q: Side,
    *,
    mask: Mask | None = None,
    where: Categories | None = None,
    tile: int | None = None,
) -> PerToken:
    """`D(p, q)` of each token's distribution over the vocabulary.

    Shapes: to `[..., tokens]`; `where` is `[vocabulary]`, `tile` a number of tokens (`tiles`).
    Between a full side and `TopK` it is `sparse.with_tail`, a lower bound. Memory for the value and
    the gradient follows `tile`; nothing is kept between them but the inputs.

    >>> from jdiv import generators
    >>> one = FromHidden(jnp.ones((2, 1)), jnp.array([[0.0], [1.0], [jnp.nan]]))
    >>> exists = jnp.array([True, True, False])
    >>> print(divergence(generators.kl(), one, one, where=exists))
    [0. 0.]
    """
    return _of_each(_divergence, tile, _problem((p, q), mask, where, generator))


def log_probs(
    p: Side,
    tokens: Indices,
    *,
    mask: Mask | None = None,
    where: Categories | None = None,
    tile: int | None = None,
) -> PerToken:
    """`log p(token)` of the given tokens, a logit minus the logarithm of the sum.

    Shapes: tokens `[..., tokens]`, to the same. Tokens that are none of the vocabulary give NaN.

    >>> p = FromHidden(jnp.ones((1, 1)), jnp.log(jnp.array([[0.1], [0.9]])))
    >>> print(f"{log_probs(p, jnp.array([1]))[0]:.4f}")
    -0.1054
    """
    return -_of_each(_cross_entropy, tile, _problem((p,), mask, where, tokens=tokens))


def entropy(
    p: Side, *, mask: Mask | None = None, where: Categories | None = None, tile: int | None = None
) -> PerToken:
    """`-sum p log p` of each token's distribution. Shapes: to `[..., tokens]`.

    >>> print(f"{entropy(FromHidden(jnp.ones((1, 1)), jnp.zeros((4, 1))))[0]:.4f}")
    1.3863
    """
    return _of_each(_entropy, tile, _problem((p,), mask, where))


def retained_mass(
    p: FromHidden | Logits,
    indices: Indices,
    *,
    mask: Mask | None = None,
    where: Categories | None = None,
    tile: int | None = None,
) -> PerToken:
    """Share of each token's probability that lies on these categories, those of a `TopK`.

    Shapes: indices `[..., tokens, k]`, to `[..., tokens]`.
    """
    return _of_each(_retained, tile, _problem((p,), mask, where, indices=indices))


def weighted_loss(
    generator: Generator,
    p: Side,
    q: Side,
    weights: PerToken | Scalar,
    *,
    tokens: Indices | None = None,
    token_weights: PerToken | Scalar = 0.0,
    mask: Mask | None = None,
    where: Categories | None = None,
    tile: int | None = None,
) -> Loss:
    """`sum_i weights_i D(p_i, q_i) - token_weights_i log p_i(token_i)` over the tokens i.

    p is the model that learns, q its teacher or reference; `generators.swapped` is D(q, p). With
    weights `1 / mask.sum()` it is a mean. Its gradients, by both sides and the weights, are made
    along with the value, in one pass through the tiles.
    Shapes: weights are numbers or `[..., tokens]`.

    >>> from jdiv import generators
    >>> heads = jnp.log(jnp.array([[[0.5], [0.5]], [[0.9], [0.1]]]))
    >>> p, q = (FromHidden(jnp.ones((1, 1)), head) for head in heads)
    >>> loss = weighted_loss(generators.kl(), p, q, 2.0, tokens=jnp.array([0]), token_weights=1.0)
    >>> print(f"{loss.total:.4f} = 2 * {loss.divergence[0]:.4f} + {loss.cross_entropy[0]:.4f}")
    1.7148 = 2 * 0.5108 + 0.6931
    """
    problem, order, shape, size = _problem((p, q), mask, where, generator, tokens=tokens)
    measure, weights = (
        (_divergence, (weights,)) if tokens is None else (_both, (weights, token_weights))
    )
    dtype = jax.eval_shape(lambda: _per_token(measure, problem, 1)).dtype
    weights = jnp.stack([_of_tokens("weights", w, shape, dtype) for w in weights], axis=-1)
    weights = weights[:, 0] if tokens is None else weights
    weights = weights if order is None else weights[order]
    total, parts = _weighted(measure, problem, weights, tiles(math.prod(shape), size, tile).tokens)
    parts = _put_back(jax.lax.stop_gradient(parts), order).reshape(*shape, -1)
    return Loss(total, parts[..., 0], jnp.zeros(shape, dtype) if tokens is None else parts[..., 1])


def _of_each(measure: Callable, tile: int | None, problem: tuple) -> Array:
    """What each token measures, in the shape of the tokens."""
    problem, order, shape, size = problem
    values = _per_token(measure, problem, tiles(math.prod(shape), size, tile).tokens)
    return _put_back(values, order).reshape(shape)


# ------------------------------------------------------------------------- what a token measures


class _Problem(NamedTuple):
    """Everything a tile is cut from, with the tokens on the first axis, and what all tiles share.

    Fields:
        hidden: `[tokens, width]` of p and of q; None for sides that are not `FromHidden`.
        rows: Other differentiable arrays `[tokens, ...]`: of both sides, parameters of the row.
        fixed: `[tokens, ...]` integers and the mask.
        heads: `[vocabulary, width]` of p and of q, or None.
        biases: `[vocabulary]` of p and of q, or None.
        shared: What has no gradient: the categories that there are, a row of plain numbers.
    """

    hidden: tuple[Array | None, ...]
    rows: dict[str, Any]
    fixed: dict[str, Array]
    heads: tuple[Array | None, ...]
    biases: tuple[Array | None, ...]
    shared: dict[str, Any]


def _divergence(tile: _Problem, p: Array | TopK, q: Array | TopK) -> Array:
    """Of the tile's logits, by the plain functions."""
    generator = tile.rows.get("generator", tile.shared.get("generator"))
    if isinstance(p, TopK) or isinstance(q, TopK):
        return sparse.with_tail(generator, p, q)
    return categorical.f_divergence(generator, p, q)


def _cross_entropy(tile: _Problem, p: Array, *_: Any) -> Array:
    """`-log p(token)`; NaN for a token that is none."""
    tokens = tile.fixed["tokens"]
    tokens = jnp.where(tokens < 0, p.shape[-1], tokens)[:, None]
    return -jnp.take_along_axis(numerics.log_softmax(p), tokens, axis=-1, mode="fill")[:, 0]


def _both(tile: _Problem, p: Array, q: Array | TopK) -> Array:
    """Divergence and cross-entropy, `[tokens, 2]`."""
    return jnp.stack([_divergence(tile, p, q), _cross_entropy(tile, p)], axis=-1)


def _entropy(tile: _Problem, p: Array) -> Array:
    """`-sum p log p`."""
    log_p = numerics.log_softmax(p)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p == -jnp.inf, 0, log_p), axis=-1)


def _retained(tile: _Problem, p: Array) -> Array:
    """Mass of given categories."""
    return sparse.retained_mass(p, tile.fixed["indices"])


def _measured(measure: Callable, tile: _Problem, products: tuple[Array | None, ...]) -> Array:
    """What a tile's tokens measure, given the products of hidden states and heads; 0 if masked.

    Masked tokens have equal logits, so that nothing that is not finite flows back to them.
    """
    mask, where = tile.fixed["mask"], tile.shared["where"]
    sides = []
    for name, product, bias in zip("pq", products, tile.biases, strict=False):
        side = tile.rows[name] if product is None else _logits(product, bias, tile.rows[name])
        if isinstance(side, dict):
            side = TopK(**side, **tile.fixed[name])
        else:
            side = checks.as_float(f"{name}_logits", side)
            side = side if where is None else jnp.where(where[None], side, -jnp.inf)
            side = jnp.where(mask[:, None], side, 0)
        sides.append(side)
    values = measure(tile, *sides)
    return jnp.where(_against(mask, values), values, 0)


def _logits(product: Array, bias: Array | None, scaling: dict[str, Array]) -> Array:
    """`soft cap(product + bias) / temperature`."""
    if bias is not None:
        product = product + bias.astype(product.dtype)[None]
    zero = product == -jnp.inf  # stays one, and is no factor of a derivative
    product = jnp.where(zero, 0, product)
    if "soft_cap" in scaling:
        product = scaling["soft_cap"] * jnp.tanh(product / scaling["soft_cap"])
    if "temperature" in scaling:
        product = product / scaling["temperature"]
    return jnp.where(zero, -jnp.inf, product)


def _against(mask: Array, x: Array) -> Array:
    """A mask of tokens, to be broadcast against `[tokens, ...]`."""
    return mask.reshape(-1, *(1,) * (x.ndim - 1))


# ----------------------------------------------------------------------------- a tile at a time


def _product(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    """A matrix product of operands in their own type, which adds up in single precision or double.

    A float32 operand beside one of bfloat16 would send both through the slower product.
    """
    dimensions = ((contracted[:1], contracted[1:]), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=checks.wide(a.dtype))


def _products(tile: _Problem) -> tuple[Array | None, ...]:
    """`hidden @ head.T` of both sides."""
    pairs = zip(tile.hidden, tile.heads, strict=True)
    return tuple(None if h is None else _product(h, head, (1, 1)) for h, head in pairs)


def _cut(problem: _Problem, start: Array, size: int) -> _Problem:
    """The tokens from `start`; what is masked is replaced by what does no harm."""
    hidden, rows, fixed = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), problem[:3]
    )
    mask = fixed.pop("mask")
    counts = lambda x: _against(mask, x)
    ones = lambda x: jnp.where(counts(x), x, 1)
    first = lambda x: jnp.where(
        counts(x), x, jnp.arange(x.shape[-1], dtype=x.dtype) if x.ndim > 1 else 0
    )
    harmless = {name: jax.tree.map(ones, rows[name]) for name in rows if name != "generator"}
    fixed = jax.tree.map(first, fixed) | {"mask": mask}
    return problem._replace(hidden=jax.tree.map(ones, hidden), rows=rows | harmless, fixed=fixed)


def _starts(problem: _Problem, size: int) -> tuple[Array, Array]:
    """Where the tiles would start, and where they do: the last one ends with the last token."""
    count = problem.fixed["mask"].shape[0]
    wanted = jnp.arange(-(-count // size)) * size
    return wanted, jnp.minimum(wanted, count - size)


def _unless_masked(problem: _Problem, start: Array, size: int, add: Callable, carry, *given):
    """The carry with a tile in it, or as it is if all of the tile is masked."""
    mask = jax.lax.dynamic_slice_in_dim(problem.fixed["mask"], start, size)
    return jax.lax.cond(jnp.any(mask), add, lambda carry, *_: carry, carry, *given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2))
def _per_token(measure: Callable, problem: _Problem, size: int) -> Array:
    """What each token measures, a tile after the other."""

    def of_tile(start):
        tile = _cut(problem, start, size)
        return _measured(measure, tile, _products(tile))

    def add(values, start):
        return jax.lax.dynamic_update_slice_in_dim(values, of_tile(start), start, 0)

    def step(values, start):
        return _unless_masked(problem, start, size, add, values, start), None

    starts = _starts(problem, size)[1]
    one = jax.eval_shape(of_tile, starts[0])
    values = jnp.zeros((*problem.fixed["mask"].shape, *one.shape[1:]), one.dtype)
    return jax.lax.scan(step, values, starts)[0]


def _with_gradients(measure: Callable, problem: _Problem, weights: Array, size: int):
    """What each token measures, and the gradients of its sum with these weights.

    Those of the heads and biases are sums over tiles, carried in the precision of the products.
    """

    def add(carry, starts):
        values, by_tokens, by_shared = carry
        wanted, start = starts
        tile = _cut(problem, start, size)
        fresh = start + jnp.arange(size) >= wanted  # the others had their turn one tile before
        weight = jax.lax.dynamic_slice_in_dim(weights, start, size)
        new, *gradients = _tile_gradients(
            measure, tile, jnp.where(_against(fresh, weight), weight, 0)
        )
        values = jax.lax.dynamic_update_slice_in_dim(values, new, start, 0)
        by_tokens = jax.tree.map(lambda d, x: _added(d, x, start), by_tokens, gradients[0])
        return values, by_tokens, jax.tree.map(jnp.add, by_shared, gradients[1])

    def step(carry, starts):
        return _unless_masked(problem, starts[1], size, add, carry, starts), None

    zeros = lambda x: jnp.zeros(x.shape, checks.wide(x.dtype))
    of_shared = jax.tree.map(zeros, (problem.heads, problem.biases))
    of_tokens = jax.tree.map(jnp.zeros_like, (problem.hidden, problem.rows))
    start = jnp.zeros_like(weights), of_tokens, of_shared
    (values, (hidden, rows), (heads, biases)), _ = jax.lax.scan(step, start, _starts(problem, size))
    return values, _Problem(hidden, rows, None, heads, biases, None)


def _tile_gradients(measure: Callable, tile: _Problem, weight: Array):
    """Values of a tile; gradients by what its tokens have; gradients by what all tokens share."""

    def values(products, rows, biases):
        return _measured(measure, tile._replace(rows=rows, biases=biases), products)

    new, pull = jax.vjp(values, _products(tile), tile.rows, tile.biases)
    products, rows, biases = pull(weight)
    hidden, heads = [], []
    for d, h, head in zip(products, tile.hidden, tile.heads, strict=True):
        d = None if h is None else d.astype(h.dtype)
        hidden.append(None if h is None else _product(d, head, (1, 0)))
        heads.append(None if h is None else _product(d, h, (0, 0)))
    return new, (tuple(hidden), rows), (tuple(heads), biases)


def _added(whole: Array, part: Array, start: Array) -> Array:
    """`whole` with `part` added from `start` on."""
    before = jax.lax.dynamic_slice_in_dim(whole, start, part.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(whole, before + part.astype(whole.dtype), start, 0)


def _cast(gradients: _Problem, problem: _Problem) -> _Problem:
    """Gradients in the types of what they are gradients of."""
    problem = problem._replace(fixed=None, shared=None)
    return jax.tree.map(lambda d, x: d.astype(x.dtype), gradients, problem)


def _per_token_forward(measure, problem, size):
    return _per_token(measure, problem, size), problem


def _per_token_backward(measure, size, problem, weights):
    return (_cast(_with_gradients(measure, problem, weights, size)[1], problem),)


_per_token.defvjp(_per_token_forward, _per_token_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _weighted(measure: Callable, problem: _Problem, weights: Array, size: int):
    """The weighted sum of what the tokens measure, and what they measure."""
    values = _per_token(measure, problem, size)
    return jnp.sum(weights * values), values


def _weighted_forward(measure, problem, weights, size):
    values, gradients = _with_gradients(measure, problem, weights, size)
    return (jnp.sum(weights * values), values), (gradients, problem, values)


def _weighted_backward(measure, size, residuals, cotangents):
    gradients, problem, values = residuals
    of_total, _ = cotangents  # the values leave without a gradient
    scaled = jax.tree.map(
        lambda d: d.astype(checks.wide(d.dtype)) * of_total.astype(checks.wide(d.dtype)), gradients
    )
    return _cast(scaled, problem), of_total * values


_weighted.defvjp(_weighted_forward, _weighted_backward)


# ------------------------------------------------------------------------------------------ inputs


def _sizes(sides: dict[str, Side]) -> tuple[tuple[int, ...], int]:
    """The axes of tokens, and the size of the vocabulary; different ones are refused."""
    shapes, sizes = {}, {}
    for name, side in sides.items():
        first = side[0] if isinstance(side, FromHidden | TopK) else side
        if jnp.ndim(first) == 0:
            raise ValueError(f"{name} must have an axis of categories or states, got a scalar")
        shapes[name] = jnp.shape(first)[:-1]
        if isinstance(side, FromHidden):
            sizes[name] = jnp.shape(side.head)[0] if jnp.ndim(side.head) else 0
        elif not isinstance(side, TopK):
            sizes[name] = jnp.shape(side)[-1]
    if not sizes:
        raise TypeError("one of p and q must be FromHidden or logits, got two TopK")
    for what, found in (("axes of tokens", shapes), ("vocabulary", sizes)):
        if len(set(found.values())) > 1:
            both = ", ".join(f"{name} {x}" for name, x in found.items())
            raise ValueError(f"p and q must have the same {what}, got {both}")
    shape, size = next(iter(shapes.values())), next(iter(sizes.values()))
    if not math.prod(shape) or not size:
        raise ValueError(f"p must have tokens and a vocabulary, got {shape} and {size}")
    return shape, size


def _from_hidden(side: FromHidden, shape: tuple[int, ...], where: Array | None):
    """Hidden states `[tokens, width]`, head, bias, and what scales the logits of each token."""
    hidden, head = checks.floating("hidden", side.hidden), checks.floating("head", side.head)
    if head.ndim != 2 or head.shape[1] != hidden.shape[-1]:
        shapes = f"hidden {tuple(hidden.shape)}, head {tuple(head.shape)}"
        raise ValueError(f"head must be [vocabulary, width] for hidden [..., width], got {shapes}")
    dtype = jnp.promote_types(hidden.dtype, head.dtype)
    hidden, head = hidden.reshape(-1, hidden.shape[-1]).astype(dtype), head.astype(dtype)
    bias = None if side.bias is None else checks.floating("bias", side.bias)
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"bias must be of shape {head.shape[:1]}, got {tuple(bias.shape)}")
    if where is not None:
        # What is in columns that are none has no influence, not even as NaN.
        head = jnp.where(where[:, None], head, 0)
        bias = None if bias is None else jnp.where(where, bias, 0)
    scaling = {}
    for name in ("soft_cap", "temperature"):
        x = getattr(side, name)
        if x is not None and not (isinstance(x, float | int) and name == "temperature" and x == 1):
            scaling[name] = _of_tokens(name, checks.positive(name, x), shape, checks.wide(dtype))[
                :, None
            ]
    return hidden, head, bias, scaling


def _of_tokens(name: str, x: ArrayLike, shape: tuple[int, ...], dtype: Any) -> Array:
    """A number, or one for each token, as one for each token."""
    x = jnp.asarray(x, dtype)
    if x.ndim and x.shape != shape:
        raise ValueError(
            f"{name} must be a number or of shape {shape}, one for each token, got {tuple(x.shape)}"
        )
    return jnp.broadcast_to(x, shape).reshape(-1)


def _side(side: Side, shape: tuple[int, ...], size: int, where: Array | None):
    """Hidden states, head, bias, other differentiable arrays and indices, tokens on one axis."""
    if isinstance(side, FromHidden):
        return *_from_hidden(side, shape, where), {}
    flat = lambda x: jnp.reshape(x, (-1, *jnp.shape(x)[len(shape) :]))
    if isinstance(side, TopK):
        indices = flat(checks.categories("indices", side.indices, size))
        rows = {"log_probs": flat(side.log_probs), "log_rest": flat(side.log_rest)}
        return None, None, None, rows, {"indices": indices}
    return None, None, None, flat(checks.floating("logits", side)), {}


def _row(generator: Generator, shape: tuple[int, ...]) -> tuple[str, Generator]:
    """Whether a row belongs to what the tokens have or to what they share, and the row.

    Plain numbers are shared and have no gradient; others are one for each token.
    """
    leaves = jax.tree.leaves(checked_row(generator))
    if not any(isinstance(x, jax.core.Tracer) or jnp.ndim(x) for x in leaves):
        return "shared", generator

    def of_tokens(path, x):
        name = jax.tree_util.keystr(path).removeprefix(".")
        x = checks.floating(name, jnp.asarray(x, None if jnp.ndim(x) else float))
        return _of_tokens(name, x, shape, checks.wide(x.dtype))

    return "rows", jax.tree_util.tree_map_with_path(of_tokens, generator)


def _problem(
    sides: tuple[Side, ...],
    mask: ArrayLike | None,
    where: ArrayLike | None,
    generator: Generator | None = None,
    **integers: ArrayLike | None,
) -> tuple[_Problem, Array | None, tuple[int, ...], int]:
    """Checked inputs, all axes of tokens in one; their order, None for that of the axes; the
    axes; the vocabulary's size.
    """
    masked = mask is not None
    sides = dict(zip("pq", sides, strict=False))
    shape, size = _sizes(sides)
    where = None if where is None else checks.as_mask("where", where)
    if where is not None and where.shape != (size,):
        raise ValueError(f"where must be of shape {(size,)}, got {tuple(where.shape)}")
    mask = jnp.ones(shape, bool) if mask is None else checks.as_mask("mask", mask)
    hidden, heads, biases, rows, fixed = zip(
        *(_side(side, shape, size, where) for side in sides.values()), strict=True
    )
    fields = {"rows": dict(zip(sides, rows, strict=True)), "shared": {"where": where}}
    if generator is not None:
        field, generator = _row(generator, shape)
        fields[field]["generator"] = generator
    fixed = dict(zip(sides, fixed, strict=True))
    for name, x in {"mask": mask, **integers}.items():
        if x is not None:
            x = x if name == "mask" else checks.as_integers(name, x)
            if x.shape[: len(shape)] != shape or x.ndim != len(shape) + (name == "indices"):
                raise ValueError(
                    f"{name} must be of shape {(*shape, 'k') if name == 'indices' else shape},"
                    f" got {tuple(x.shape)}"
                )
            fixed[name] = x.reshape(-1, *x.shape[len(shape) :])
    problem = _Problem(hidden, fixed=fixed, heads=heads, biases=biases, **fields)
    if not masked or any(x is None for x in hidden):
        return problem, None, shape, size
    order = jnp.argsort(~fixed["mask"], stable=True)
    by_token = jax.tree.map(lambda x: x[order], problem[:3])
    return _Problem(*by_token, *problem[3:]), order, shape, size


def _put_back(values: Array, order: Array | None) -> Array:
    """Values of tokens where the tokens were."""
    return values if order is None else jnp.zeros_like(values).at[order].set(values)
