"""What a transformer says of given tokens, position by position, without logits of all of them.

A token's number is about what it is given those before it in its row, so the first of a row has
none: `[batch, tokens]` go in and `[batch, tokens - 1]` come out.
"""

from __future__ import annotations

import hashlib
import os
import pathlib

import jax
import numpy as np

from jdiv.divergences import vocabulary
from jdiv.divergences.generator import Generator
from jdiv.divergences.vocabulary import FromHidden
from jdiv.lm.model import Transformer
from jdiv.types import Indices, Logits, LogProbs, Mask, PerToken, Scalar


def next_tokens(
    model: Transformer,
    tokens: Indices,
    positions: Indices | None = None,
    segments: Indices | None = None,
    *,
    temperature: Scalar = 1.0,
    remember: bool = False,
) -> FromHidden:
    """The laws of all tokens but the first of each row, as a side of `divergences.vocabulary`."""
    hidden, _ = model(tokens, positions, segments, remember=remember)
    return model.from_hidden(hidden[:, :-1], temperature)


def logits(model: Transformer, tokens: Indices) -> Logits:
    """All logits `[batch, tokens, vocabulary]`, for models and batches small enough for them."""
    return model.logits(model(tokens)[0])


def log_probs(
    model: Transformer, tokens: Indices, *, mask: Mask | None = None, tile: int | None = None
) -> LogProbs:
    """`log p(token | those before it)`. Shapes: `[batch, tokens]` to `[batch, tokens - 1]`.

    The mask is True for tokens that count; the others of its `[batch, tokens]` fill up the batch
    behind the sequences.
    """
    mask = None if mask is None else mask[:, 1:]
    return vocabulary.log_probs(next_tokens(model, tokens), tokens[:, 1:], mask=mask, tile=tile)


def entropies(
    model: Transformer, tokens: Indices, *, mask: Mask | None = None, tile: int | None = None
) -> PerToken:
    """The entropy of each token's law. Shapes: `[batch, tokens]` to `[batch, tokens - 1]`."""
    mask = None if mask is None else mask[:, 1:]
    return vocabulary.entropy(next_tokens(model, tokens), mask=mask, tile=tile)


def divergences(
    model: Transformer,
    other: Transformer,
    tokens: Indices,
    *,
    generator: Generator,
    mask: Mask | None = None,
    tile: int | None = None,
) -> PerToken:
    """`D(model, other)` of each token's law. Shapes: `[batch, tokens]` to `[batch, tokens - 1]`."""
    mask = None if mask is None else mask[:, 1:]
    p, q = next_tokens(model, tokens), next_tokens(other, tokens)
    return vocabulary.divergence(generator, p, q, mask=mask, tile=tile)


def kept_log_probs(
    folder: str | os.PathLike,
    model: Transformer,
    tokens: Indices,
    *,
    mask: Mask | None = None,
    tile: int | None = None,
) -> np.ndarray:
    """`log_probs` of a reference that does not change, computed once and kept in a folder.

    The file's name is a hash of the model's tensors and configuration, the tokens and the mask, so
    that another reference or other data never get these numbers.
    """
    digest = hashlib.sha256(repr(model.config).encode())
    for name, x in sorted(model.tensors.items()):
        digest.update(name.encode() + np.asarray(x[...]).tobytes())
    for x in (tokens, np.ones(1, bool) if mask is None else mask):
        digest.update(repr((np.shape(x), np.asarray(x).dtype)).encode() + np.asarray(x).tobytes())
    file = pathlib.Path(folder) / f"log_probs-{digest.hexdigest()[:32]}.npy"
    if file.is_file():
        return np.load(file)
    score = jax.jit(log_probs, static_argnames="tile")
    found = np.asarray(score(model, tokens, mask=mask, tile=tile))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as opened:
        np.save(opened, found)
    part.replace(file)
    return found
