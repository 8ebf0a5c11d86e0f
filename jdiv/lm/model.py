"""A decoder-only transformer: one configuration and one function from tokens to hidden states.

Llama, Qwen2, Qwen3, Gemma2 and GPT-2 are configurations of it, and so are models small enough to
enumerate. The forward pass returns hidden states; the head is apart, so that logits of a whole
batch need not exist (`divergences.vocabulary`). What a token may look at is told by positions and
segments and never by a token's id: the id that fills up a batch is the end of a sequence in many
models.

>>> config = Config(vocabulary=11, width=8, layers=2, heads=2, key_heads=1, head_width=4, hidden=16)
>>> model = Transformer.random(config, jax.random.key(0))
>>> hidden, _ = model(jnp.array([[3, 1, 4, 1, 5]]))
>>> hidden.shape, model.head.shape
((1, 5, 8), (11, 8))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jdiv import checks
from jdiv.divergences.vocabulary import FromHidden
from jdiv.lm import weights
from jdiv.lm.config import Config
from jdiv.types import Hidden, Indices, RandomKey

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Cache(NamedTuple):
    """Keys and values of what was read so far, with room for more.

    Fields:
        keys: `[layers, batch, slots, key_heads, head_width]`
        values: The same.
        positions: `[batch, slots]` of the tokens in the slots.
        segments: `[batch, slots]` of them; -1 in slots that are empty.
        filled: `[]` how many slots are taken.
    """

    keys: Array
    values: Array
    positions: Array
    segments: Array
    filled: Array


class Transformer(nnx.Module):
    """A transformer: its configuration and its tensors, those of the layers stacked."""

    def __init__(self, config: Config, tensors: Mapping[str, Array]) -> None:
        """A model of these tensors, which `weights.tensors(config)` names."""
        wanted = weights.tensors(config)
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        if shapes != {name: tensor.shape for name, tensor in wanted.items()}:
            raise ValueError(f"tensors must be {wanted}, got {shapes}")
        self.config = config
        self.tensors = nnx.Dict({name: nnx.Param(jnp.asarray(x)) for name, x in tensors.items()})

    @classmethod
    def random(cls, config: Config, key: RandomKey, dtype: DTypeLike = jnp.float32) -> Transformer:
        """A model before training."""
        return cls(config, weights.initial(config, key, dtype=dtype))

    @property
    def head(self) -> Array:
        """`[vocabulary, width]` what makes logits of hidden states."""
        if self.config.scores:
            raise ValueError("this model has scores and no logits: config.scores is not 0")
        return self.tensors["embedding" if self.config.tied else "head"][...]

    def __call__(
        self,
        tokens: Indices,
        positions: Indices | None = None,
        segments: Indices | None = None,
        cache: Cache | None = None,
        *,
        remember: bool = False,
    ) -> tuple[Hidden, Cache | None]:
        """Hidden states of tokens, and the cache with these tokens in it.

        A token looks at itself and at those before it, by position, in its own segment. Without
        positions they count from 0; without segments all tokens are in one. With `remember` what is
        inside of a layer is computed again for the gradient and not kept.
        Shapes: `[batch, tokens]` each, to `[batch, tokens, width]`.
        """
        config, tensors = self.config, {name: x[...] for name, x in self.tensors.items()}
        tokens = checks.as_integers("tokens", tokens)
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [batch, tokens], got {tuple(tokens.shape)}")
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        segments = jnp.zeros(tokens.shape, jnp.int32) if segments is None else segments
        positions, segments = (x.astype(jnp.int32) for x in (positions, segments))
        x = tensors["embedding"][tokens]
        x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if config.rotary_base is None:
            x = x + tensors["positions"][positions]
        seen = positions, segments
        if cache is not None:
            cache = _entered(cache, positions, segments)
            seen = cache.positions, cache.segments
        distance = positions[:, :, None] - seen[0][:, None]
        visible = (distance >= 0) & (segments[:, :, None] == seen[1][:, None])
        layers = {k: tensors[k] for k, tensor in weights.tensors(config).items() if tensor.layered}
        windows = [2**30 if w is None else w for w in config.windows or [None] * config.layers]

        def block(x, layer):
            parameters, window, *past = layer
            near = visible & (distance < window)
            return _block(config, parameters, x, positions, near, past, cache)

        block = jax.checkpoint(block) if remember else block
        past = () if cache is None else (cache.keys, cache.values)
        x, kept = jax.lax.scan(block, x, (layers, jnp.asarray(windows, jnp.int32), *past))
        if cache is not None:
            cache = cache._replace(
                keys=kept[0], values=kept[1], filled=cache.filled + tokens.shape[1]
            )
        return _norm(config, x, tensors, "norm"), cache

    def from_hidden(self, hidden: Hidden, temperature: float = 1.0) -> FromHidden:
        """Hidden states with the head that makes their logits, for `divergences.vocabulary`."""
        cap = self.config.logit_cap
        return FromHidden(hidden, self.head, soft_cap=cap, temperature=temperature)

    def logits(self, hidden: Hidden, tokens: Indices | None = None) -> Array:
        """`[..., vocabulary]` in single precision, or `[..., n]` of these `[n]` tokens alone."""
        head = self.head if tokens is None else self.head[tokens]
        logits = jnp.einsum(
            "...w,vw->...v", hidden, head, preferred_element_type=checks.wide(hidden.dtype)
        )
        cap = self.config.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def empty_cache(config: Config, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """A cache with room for so many tokens of each sequence.

    >>> sizes = dict(width=4, layers=1, heads=1, key_heads=1, head_width=4, hidden=4)
    >>> config = Config(vocabulary=7, **sizes)
    >>> model, tokens = Transformer.random(config, jax.random.key(0)), jnp.array([[1, 2, 3]])
    >>> hidden, cache = model(tokens[:, :2], cache=empty_cache(config, 1, 3))
    >>> last, cache = model(tokens[:, 2:], jnp.array([[2]]), cache=cache)
    >>> print(jnp.allclose(last, model(tokens)[0][:, 2:], atol=1e-6))
    True
    """
    shape = config.layers, batch, slots, config.key_heads, config.head_width
    slot = jnp.zeros((batch, slots), jnp.int32)
    nothing = jnp.zeros(shape, dtype)
    return Cache(nothing, nothing, slot, slot - 1, jnp.zeros((), jnp.int32))


def _entered(cache: Cache, positions: Array, segments: Array) -> Cache:
    """The cache with positions and segments of new tokens in it."""
    put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(
        x, new.astype(x.dtype), cache.filled, 1
    )
    return cache._replace(
        positions=put(cache.positions, positions), segments=put(cache.segments, segments)
    )


# ------------------------------------------------------------------------------------------ layers


def _block(config: Config, layer: dict, x: Array, positions: Array, visible: Array, past, cache):
    """`x + attention(norm x)`, then `x + mlp(norm x)`; and the layer's keys and values."""
    normed = _norm(config, x, layer, "attention_norm")
    attended, kept = _attention(config, layer, normed, positions, visible, past, cache)
    x = x + (
        _norm(config, attended, layer, "attention_post_norm") if config.post_norms else attended
    )
    inner = _mlp(config, layer, _norm(config, x, layer, "mlp_norm"))
    return x + (_norm(config, inner, layer, "mlp_post_norm") if config.post_norms else inner), kept


def _norm(config: Config, x: Array, tensors: Mapping[str, Array], name: str) -> Array:
    """Root mean square or layer norm over the last axis, in single precision."""
    wide = x.astype(checks.wide(x.dtype))
    if config.norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_epsilon)
    wide = wide * _last(tensors[name].astype(wide.dtype) + config.norm_offset, wide)
    if config.norm == "layer":
        wide = wide + _last(tensors[f"{name}_bias"].astype(wide.dtype), wide)
    return wide.astype(x.dtype)


def _linear(layer: dict, name: str, x: Array) -> Array:
    """`x @ w.T + b`, w `[out, in]`."""
    y = jnp.einsum("...i,oi->...o", x, layer[name])
    return y + _last(layer[f"{name}_bias"], y) if f"{name}_bias" in layer else y


def _last(x: Array, like: Array) -> Array:
    """A vector along the last axis of another array."""
    return x.reshape(*(1,) * (like.ndim - 1), -1)


def _mlp(config: Config, layer: dict, x: Array) -> Array:
    """`down(act(gate x) * up x)`, or `down(act(up x))` without a gate."""
    activation = ACTIVATIONS[config.activation]
    up = _linear(layer, "up", x)
    inner = activation(_linear(layer, "gate", x)) * up if config.gated else activation(up)
    return _linear(layer, "down", inner)


def _rotated(config: Config, x: Array, positions: Array) -> Array:
    """Rotary positions: the pairs (i, i + head_width/2) turned by `position / base^(2i/width)`.

    Angles are in single precision: in half precision position 257 is 256.

    Reference: Su et al. 2021 (arXiv:2104.09864), equation 34, with split halves.
    """
    half = config.head_width // 2
    turns = config.rotary_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * turns[None, None, None]
    wide = x.astype(checks.wide(x.dtype))
    a, b = wide[..., :half], wide[..., half:]
    sin, cos = jnp.sin(angles).astype(wide.dtype), jnp.cos(angles).astype(wide.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _attention(
    config: Config, layer: dict, x: Array, positions: Array, visible: Array, past, cache
):
    """`softmax(q k) v` for each head, the scores in single precision; and keys and values."""
    heads = lambda name: _linear(layer, name, x).reshape(*x.shape[:2], -1, config.head_width)
    query, key, value = map(heads, ("query", "key", "value"))
    if config.query_key_norm:
        query = _norm(config, query, layer, "query_norm")
        key = _norm(config, key, layer, "key_norm")
    if config.rotary_base is not None:
        query, key = (_rotated(config, x, positions) for x in (query, key))
    if cache is not None:
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(before, new.astype(before.dtype), cache.filled, 1)
            for before, new in zip(past, (key, value), strict=True)
        )
    scale = config.head_width**-0.5 if config.query_scale is None else config.query_scale
    grouped = query.reshape(*x.shape[:2], config.key_heads, -1, config.head_width)
    wide = checks.wide(x.dtype)
    scores = scale * jnp.einsum(
        "btkgd,bskd->bkgts", grouped, key.astype(x.dtype), preferred_element_type=wide
    )
    if config.attention_cap is not None:
        scores = config.attention_cap * jnp.tanh(scores / config.attention_cap)
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bkgts,bskd->btkgd", shares, value.astype(x.dtype))
    return _linear(layer, "output", mixed.reshape(*x.shape[:2], -1)), (key, value)
