"""Language models: exact ones whose sequences are enumerated, and real ones from files.

`model, tokenizer = lm.load("smollm2")` is where to begin: the name, a folder of Hugging Face or a
.gguf file. `tabular` and `rules` need JAX alone; the other modules need the extra `lm` and are
imported when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from jdiv.lm import tabular as tabular

_MODULES = (
    "architectures", "config", "data", "enumeration", "gguf", "lora", "model", "questions",
    "reward_model", "rewards", "rules", "sampling", "scoring", "storage", "tabular", "tokenizer",
    "train", "weights",
)  # fmt: skip
_NAMES = {
    "Config": "config", "Tokenizer": "tokenizer", "Transformer": "model", "generate": "sampling",
    "load": "storage", "log_probs": "scoring", "logits": "scoring", "save": "storage",
}  # fmt: skip

__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    """Modules and names that need more than JAX, when they are asked for."""
    if name in _MODULES:
        return importlib.import_module(f"jdiv.lm.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"jdiv.lm.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
