"""Language models of experiments by name: SmolLM2, files of one's own, a random one for smoke."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.lab.axes import Axis, one_of

if TYPE_CHECKING:
    from jdiv.lm import Tokenizer, Transformer

RANDOM = "random"


def _refuse_absent(name: str, value: object) -> None:
    from jdiv.lm import storage

    if value == RANDOM:
        return
    try:
        storage.located(str(value))
    except FileNotFoundError as error:
        raise ValueError(f"{name}: {error}; or {RANDOM}") from None


anywhere = Axis(_refuse_absent, "static")
"""`smollm2`, a folder or a .gguf file, or `random`."""


def _refuse_all_but_smollm2(name: str, value: object) -> None:
    one_of(("smollm2", RANDOM)).refuse(name, value)
    _refuse_absent(name, value)


smollm2 = Axis(_refuse_all_but_smollm2, "static")
"""`smollm2` or `random`."""


def load(
    name: str, *, words: int = 64, width: int = 16, spread: float = 0.25, seed: int = 0
) -> tuple[Transformer, Tokenizer]:
    """A model and its tokenizer; `random` has so many words, one layer and normal weights.

    Larger weights, of standard deviation `spread`, make laws further from uniform.
    """
    from jdiv import lm

    if name != RANDOM:
        return lm.load(name)
    shape = {"width": width, "layers": 1, "heads": 2, "key_heads": 1, "head_width": width // 2}
    config = lm.Config(vocabulary=words, hidden=2 * width, **shape)
    rng = np.random.default_rng(seed)
    shapes = {name: tensor.shape for name, tensor in lm.weights.tensors(config).items()}
    draws = {name: rng.normal(scale=spread, size=shape) for name, shape in shapes.items()}
    tensors = {name: x.astype(np.float32) for name, x in draws.items()}
    return lm.Transformer(config, tensors), _tokenizer(words)


def _tokenizer(words: int) -> Tokenizer:
    """One token a word: "good", "word", "woord" and so on, all of other lengths, "?" for others."""
    import tokenizers

    from jdiv import lm

    ids = {"good": 0, **{f"w{'o' * i}rd": i for i in range(1, words - 1)}, "?": words - 1}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return lm.Tokenizer(inner)
