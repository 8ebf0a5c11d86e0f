"""Low-rank adaptation: a model stands still, and what is added to its products is learned.

The product `W` of a layer becomes `W + (alpha / rank) B A`, A of shape `[rank, in]` and B of shape
`[out, rank]`. The factors alone are a training's state: its optimizer and its checkpoints know of
nothing else. B starts at 0, so the first model is the model itself::

    factors = lora.begin(model, key, rank=8)
    state = train.begin(factors, optimizer)

    def step(state, batch, model):
        whole = functools.partial(lora.merged, model, alpha=16.0)
        return train.update(
            state, batch, loss, config=model.config, optimizer=optimizer, whole=whole
        )

The model is an argument of the program and no constant in it; the state alone may be donated. The
product is added to W before the model is computed, so a step needs memory for one gradient of the
adapted products, for none of their moments.

Reference: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.lm import weights
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from jdiv.types import RandomKey


def adapted(config: Config, pattern: str = ".*") -> dict[str, tuple[int, ...]]:
    """The products of the layers whose whole name is of the pattern, with their shapes.

    By default all of attention and MLP: query, key, value, output, gate, up, down.

    >>> shape = dict(width=4, layers=2, heads=1, key_heads=1, head_width=4, hidden=6)
    >>> config = Config(vocabulary=9, **shape)
    >>> adapted(config, "query|up")
    {'query': (2, 4, 4), 'up': (2, 6, 4)}
    """
    products = {
        name: tensor.shape
        for name, tensor in weights.tensors(config).items()
        if tensor.layered and len(tensor.shape) == 3
    }
    found = {name: shape for name, shape in products.items() if re.fullmatch(pattern, name)}
    if not found:
        raise ValueError(f"pattern {pattern!r} must be of one of {', '.join(products)}")
    return found


def begin(
    model: Transformer, key: RandomKey, *, rank: int, pattern: str = ".*"
) -> dict[str, Array]:
    """Factors before training: A normal with variance 1/in, B zero; in single precision.

    Shapes: "query.a" is `[layers, rank, in]`, "query.b" is `[layers, out, rank]`, and so for each.
    """
    checks.whole("rank", rank, 1, 2**31, "at least 1")
    products = adapted(model.config, pattern)
    keys = jax.random.split(key, len(products))
    factors = {}
    for (name, (layers, out, width)), one in zip(products.items(), keys, strict=True):
        dtype = checks.wide(model.tensors[name][...].dtype)
        factors[f"{name}.a"] = width**-0.5 * jax.random.normal(one, (layers, rank, width), dtype)
        factors[f"{name}.b"] = jnp.zeros((layers, out, rank), dtype)
    return factors


def merged(model: Transformer, factors: Mapping[str, Array], *, alpha: ArrayLike) -> Transformer:
    """The model with `(alpha / rank) B A` added to its products: a model like any other.

    The sum of half precision is made in single; each tensor has the type that it had.
    """
    tensors = {name: x[...] for name, x in model.tensors.items()}
    for name in {key.rpartition(".")[0]: None for key in factors}:
        product = tensors[name]
        wide = checks.wide(product.dtype)
        a, b = (factors[f"{name}.{part}"].astype(wide) for part in "ab")
        added = jnp.asarray(alpha, wide) / a.shape[1] * jnp.einsum("lor,lri->loi", b, a)
        tensors[name] = (product.astype(wide) + added).astype(product.dtype)
    return Transformer(model.config, tensors)
