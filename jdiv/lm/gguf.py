"""GGUF files of the Llama kind, through the `gguf` package."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jdiv.lm import weights
from jdiv.lm.architectures import ARCHITECTURES, Source
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from jdiv.lm.tokenizer import Tokenizer

_NAMES = {
    "embedding": "token_embd", "norm": "output_norm", "head": "output",
    "attention_norm": "blk.{}.attn_norm", "mlp_norm": "blk.{}.ffn_norm",
    "query": "blk.{}.attn_q", "key": "blk.{}.attn_k", "value": "blk.{}.attn_v",
    "output": "blk.{}.attn_output", "gate": "blk.{}.ffn_gate", "up": "blk.{}.ffn_up",
    "down": "blk.{}.ffn_down",
}  # fmt: skip
_LLAMA = ARCHITECTURES["llama"]._replace(
    sources={name: Source(f"{file}.weight") for name, file in _NAMES.items()}
)


def load(path: pathlib.Path, dtype: DTypeLike = jnp.float32) -> tuple[Transformer, Tokenizer]:
    """The model and the tokenizer of a GGUF file; quantized tensors are expanded."""
    from gguf import GGUFReader, dequantize

    class Reader(GGUFReader):
        """Of a plain array: a slice of a memory map costs several times as much."""

        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = np.asarray(mapped)

    reader = Reader(path)
    kept = {name: field.contents() for name, field in reader.fields.items()}
    kind = kept["general.architecture"]
    if kind != "llama":
        raise ValueError(f"{path}: architecture {kind!r} is not known, only 'llama'")
    arrays = {x.name: dequantize(x.data, x.tensor_type) for x in reader.tensors}
    arrays.pop("rope_freqs.weight", None)
    config = _config(kept, tied="output.weight" not in arrays)
    tensors = weights.from_stored(_LLAMA, config, arrays)
    for name, heads in (("query", config.heads), ("key", config.key_heads)):
        tensors[name] = _halves(tensors[name], heads)
    model = Transformer(config, {name: jnp.asarray(x, dtype) for name, x in tensors.items()})
    return model, Tokenizer.from_gguf(kept)


def _config(kept: dict[str, Any], *, tied: bool) -> Config:
    """The shape of the model, from the metadata."""
    get = lambda name: kept[f"llama.{name}"]
    heads, width = get("attention.head_count"), get("embedding_length")
    scaling = kept.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"rope scaling {scaling!r} is not known")
    return Config(
        vocabulary=len(kept["tokenizer.ggml.tokens"]),
        width=width,
        layers=get("block_count"),
        heads=heads,
        key_heads=kept.get("llama.attention.head_count_kv", heads),
        head_width=kept.get("llama.attention.key_length", width // heads),
        hidden=get("feed_forward_length"),
        longest=get("context_length"),
        norm_epsilon=round(float(get("attention.layer_norm_rms_epsilon")), 12),
        rotary_base=float(kept.get("llama.rope.freq_base", 10_000.0)),
        tied=tied,
    )


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows `[layers, heads * width, in]` of interleaved rotary pairs as two halves."""
    layers, rows, inner = x.shape
    pairs = x.reshape(layers, heads, rows // heads // 2, 2, inner)
    return np.ascontiguousarray(pairs.swapaxes(2, 3).reshape(x.shape))
