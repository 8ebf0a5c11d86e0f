"""All answers of a transformer that is small enough, exactly: its laws as a table of `lm.tabular`.

After a prompt a model is nothing but a table: the logits of the next token after every prefix of an
answer. They are found level by level with the cache, each prefix read once, a token at a time. What
`tabular` knows of tables, log-probabilities of all answers, divergences, optima, is known of the
model then, and a gradient by its parameters goes through the table.

>>> import jax
>>> from jdiv.lm.config import Config
>>> sizes = dict(width=8, layers=1, heads=2, key_heads=1, head_width=4, hidden=16)
>>> model = Transformer.random(Config(vocabulary=4, **sizes), jax.random.key(0))
>>> logits = table(model, jnp.array([2, 0]), longest=3, end=1)
>>> logits.shape, f"{jnp.exp(tabular.sequence_log_probs(logits)).sum():.4f}"
((13, 4), '1.0000')
>>> answers(logits.shape, end=1).tokens[:5].tolist()
[[1, -1, -1], [0, 1, -1], [2, 1, -1], [3, 1, -1], [0, 0, 0]]
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiv import checks
from jdiv.lm import tabular
from jdiv.lm.model import Transformer, empty_cache
from jdiv.types import Indices


def columns(vocabulary: int, *, end: int) -> np.ndarray:
    """`[V]` the token of each column of a table, in which the end comes last.

    >>> columns(4, end=1)
    array([0, 2, 3, 1])
    """
    checks.whole("end", end, 0, vocabulary - 1, "a token of the vocabulary")
    return np.append(np.delete(np.arange(vocabulary), end), end)


def answers(shape: tuple[int, int], *, end: int) -> tabular.Sequences:
    """All answers in the model's own tokens, in the order in which `tabular` has its sequences."""
    sequences = tabular.enumerate_sequences(shape)
    tokens = columns(shape[1], end=end)[sequences.tokens]
    return sequences._replace(tokens=np.where(sequences.mask, tokens, -1))


def table(model: Transformer, tokens: Indices, *, longest: int, end: int) -> Array:
    """Logits of the next token after a prompt and every prefix of an answer to it.

    An answer ends with the token `end` or with its `longest`-th token. Shapes: tokens `[prompt]` to
    `tabular.table_shape(longest, vocabulary)`, the columns in the order of `columns`; vmap for more
    prompts. Time and memory follow the number of prefixes, `(vocabulary - 1)^(longest - 1)`.
    """
    tokens = checks.as_integers("tokens", tokens)
    if tokens.ndim != 1 or not len(tokens):
        raise ValueError(f"tokens must be [prompt], got {tuple(tokens.shape)}")
    vocabulary, start = model.config.vocabulary, len(tokens)
    tabular.table_shape(longest, vocabulary)
    order = columns(vocabulary, end=end)
    cache = empty_cache(model.config, 1, start + longest - 1, model.head.dtype)
    hidden, cache = model(tokens[None], cache=cache)
    levels = [model.logits(hidden[:, -1])]
    for length in range(1, longest):
        several = lambda x: jnp.repeat(x, vocabulary - 1, axis=0)
        by_layer = lambda x: jnp.repeat(x, vocabulary - 1, axis=1)
        token = np.tile(order[:-1], len(levels[-1]))[:, None].astype(np.int32)
        cache = cache._replace(
            keys=by_layer(cache.keys),
            values=by_layer(cache.values),
            positions=several(cache.positions),
            segments=several(cache.segments),
        )
        position = jnp.full(token.shape, start + length - 1, jnp.int32)
        hidden, cache = model(token, position, cache=cache)
        levels.append(model.logits(hidden[:, 0]))
    return jnp.concatenate(levels)[:, order]


def table_among(model: Transformer, tokens: Indices, *, indices: Indices, longest: int) -> Array:
    """`table` of the answers that are made of a few tokens: the logits of `indices` alone.

    So a model of any size and vocabulary is enumerated, as the one whose other tokens are forbidden
    by setting their logits to -inf. The last of these tokens is the end. All answers without an end
    are read in one pass, `(n - 1)^(longest - 1)` rows with the prompt in each: little to
    compile and to differentiate. Shapes: tokens `[prompt]`, indices `[n]` to
    `tabular.table_shape(longest, n)`.
    """
    tokens = checks.as_integers("tokens", tokens)
    if tokens.ndim != 1 or not len(tokens):
        raise ValueError(f"tokens must be [prompt], got {tuple(tokens.shape)}")
    indices = checks.categories("indices", indices, model.config.vocabulary).astype(tokens.dtype)
    tabular.table_shape(longest, len(indices))
    others, start = len(indices) - 1, len(tokens)
    written = np.array(list(itertools.product(range(others), repeat=longest - 1)), int)
    prompts = jnp.broadcast_to(tokens, (len(written), start))
    hidden, _ = model(jnp.concatenate([prompts, indices[written]], axis=1))
    # A prefix is at the first of the rows that begin with it.
    of_length = lambda n: hidden[:: others ** (longest - 1 - n), start - 1 + n]
    return model.logits(jnp.concatenate([of_length(n) for n in range(longest)]), indices)
