"""Tensors of a transformer: each described once, from which init, load, save and count follow.

`tensors(config)` is that description; the tensors of the layers are stacked, one array for all.
What files call them is told by an architecture (`architectures`). `from_stored` collects all that
is missing, left over or of the wrong shape and refuses it together, by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jdiv.lm.architectures import Architecture, Source
from jdiv.lm.config import Config
from jdiv.types import RandomKey


class Tensor(NamedTuple):
    """One tensor of a model.

    Fields:
        shape: Its shape; of products `[out, in]`.
        layered: Whether its first axis are the layers.
        start: What it is before training: a constant, or None for normal numbers.
    """

    shape: tuple[int, ...]
    layered: bool
    start: float | None


def tensors(config: Config) -> dict[str, Tensor]:
    """The tensors of a transformer by name."""
    c = config
    products = {
        "query": (c.heads * c.head_width, c.width),
        "key": (c.key_heads * c.head_width, c.width),
        "value": (c.key_heads * c.head_width, c.width),
        "output": (c.width, c.heads * c.head_width),
        **({"gate": (c.hidden, c.width)} if c.gated else {}),
        "up": (c.hidden, c.width),
        "down": (c.width, c.hidden),
    }
    norms = {"attention_norm": c.width, "mlp_norm": c.width}
    if c.post_norms:
        norms |= {"attention_post_norm": c.width, "mlp_post_norm": c.width}
    if c.query_key_norm:
        norms |= {"query_norm": c.head_width, "key_norm": c.head_width}
    one = 1 - c.norm_offset
    found = {"embedding": Tensor((c.vocabulary, c.width), False, None)}
    if c.rotary_base is None:
        found["positions"] = Tensor((c.longest, c.width), False, None)
    for name, shape in products.items():
        found[name] = Tensor((c.layers, *shape), True, None)
        if c.attention_bias if name in ("query", "key", "value") else c.other_biases:
            found[f"{name}_bias"] = Tensor((c.layers, shape[0]), True, 0.0)
    for name, size in norms.items():
        found[name] = Tensor((c.layers, size), True, one)
        if c.norm == "layer":
            found[f"{name}_bias"] = Tensor((c.layers, size), True, 0.0)
    found["norm"] = Tensor((c.width,), False, one)
    if c.norm == "layer":
        found["norm_bias"] = Tensor((c.width,), False, 0.0)
    if c.scores:
        found["score"] = Tensor((c.scores, c.width), False, None)
    elif not c.tied:
        found["head"] = Tensor((c.vocabulary, c.width), False, None)
    return found


def count(config: Config) -> int:
    """How many parameters a transformer has."""
    return sum(math.prod(tensor.shape) for tensor in tensors(config).values())


def initial(config: Config, key: RandomKey, *, dtype: DTypeLike = jnp.float32) -> dict[str, Array]:
    """Tensors before training: normal with variance 1/in, outputs of blocks smaller with depth."""
    wanted = tensors(config)
    keys = jax.random.split(key, len(wanted))
    made = {}
    for (name, tensor), one in zip(wanted.items(), keys, strict=True):
        if tensor.start is not None:
            made[name] = jnp.full(tensor.shape, tensor.start, dtype)
            continue
        deviation = tensor.shape[-1] ** -0.5
        if name in ("output", "down"):
            deviation /= math.sqrt(2 * config.layers)
        made[name] = deviation * jax.random.normal(one, tensor.shape, dtype)
    return made


# ------------------------------------------------------------------------------- layer by layer


def layer_vectors(config: Config, model: Mapping[str, Array]) -> tuple[Array, ...]:
    """The weights of each layer as one vector, and as a last one those of no layer.

    For what treats a layer as a whole, such as `alignment.averaging.merge`.
    """
    ravel = lambda layered: [
        model[name].reshape(config.layers if layered else 1, -1)
        for name, tensor in tensors(config).items()
        if tensor.layered == layered
    ]
    rows = [jnp.concatenate(ravel(layered), axis=1) for layered in (True, False)]
    return (*rows[0], *rows[1])


def from_layer_vectors(config: Config, vectors: Sequence[Array]) -> dict[str, Array]:
    """The way back from `layer_vectors`: the tensors of a model."""
    rows, model = {True: jnp.stack(vectors[:-1]), False: vectors[-1][None]}, {}
    first = {True: 0, False: 0}
    for name, tensor in tensors(config).items():
        size = math.prod(tensor.shape[tensor.layered :])
        part = rows[tensor.layered][:, first[tensor.layered] : first[tensor.layered] + size]
        model[name] = part.reshape(tensor.shape)
        first[tensor.layered] += size
    return model


# ------------------------------------------------------------------------------------ as in files


def _places(architecture: Architecture, config: Config) -> dict[str, list[tuple[str, Source]]]:
    """For each name in a file what lies there: one of our names, or several in one array."""
    places: dict[str, list[tuple[str, Source]]] = {}
    for name, tensor in tensors(config).items():
        if name not in architecture.sources:
            raise ValueError(f"{architecture.model_class} has no place for {name}")
        source = architecture.sources[name]
        for layer in range(config.layers if tensor.layered else 1):
            stored = source.name.format(layer) if tensor.layered else source.name
            places.setdefault(stored, []).append((name, source))
    return places


def stored_shapes(architecture: Architecture, config: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in a file of this architecture, by their names there."""
    wanted, shapes = tensors(config), {}
    for stored, parts in _places(architecture, config).items():
        name, source = parts[0]
        first, *others = wanted[name].shape[wanted[name].layered :]
        total = sum(wanted[part].shape[wanted[part].layered] for part, _ in parts)
        shape = (total, *others) if len(parts) > 1 else (first, *others)
        shapes[stored] = shape[::-1] if source.transposed else shape
    return shapes


def from_stored(
    architecture: Architecture, config: Config, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors of a model from the arrays of its files.

    Arrays that are missing, of the wrong shape or left over are refused together. A head that is
    tied may be there if it is the embedding.
    """
    wanted = stored_shapes(architecture, config)
    arrays = dict(arrays)
    embedding, head = (architecture.sources[name].name for name in ("embedding", "head"))
    if config.tied and head in arrays and embedding in arrays:
        copy = arrays.pop(head)
        if not np.array_equal(copy, arrays[embedding]):
            raise ValueError(f"{head} differs from {embedding}, to which config.json ties it")
    wrong = [f"{name} is missing" for name in wanted if name not in arrays]
    wrong += [f"{name} is not known" for name in arrays if name not in wanted]
    wrong += [
        f"{name} must be of shape {shape}, got {tuple(arrays[name].shape)}"
        for name, shape in wanted.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} wrong tensors: {'; '.join(wrong)}")

    def one(source: Source, layer: int) -> np.ndarray:
        array = arrays[source.name.format(layer)]
        array = array.T if source.transposed else array
        which, of = source.part
        return array if of == 1 else np.split(array, of)[which]

    return {
        name: np.stack([one(architecture.sources[name], i) for i in range(config.layers)])
        if tensor.layered
        else one(architecture.sources[name], 0)
        for name, tensor in tensors(config).items()
    }


def to_stored(
    architecture: Architecture, config: Config, model: Mapping[str, ArrayLike]
) -> dict[str, np.ndarray]:
    """The arrays of a file from the tensors of a model: the way back."""
    wanted, arrays = tensors(config), {}
    for stored, parts in _places(architecture, config).items():
        layers = range(config.layers) if "{}" in parts[0][1].name else (0,)
        layer = next(i for i in layers if parts[0][1].name.format(i) == stored)
        values = [np.asarray(model[name]) for name, _ in parts]
        values = [
            x[layer] if wanted[name].layered else x
            for x, (name, _) in zip(values, parts, strict=True)
        ]
        joint = np.concatenate(values) if len(values) > 1 else values[0]
        arrays[stored] = np.ascontiguousarray(joint.T if parts[0][1].transposed else joint)
    return arrays
