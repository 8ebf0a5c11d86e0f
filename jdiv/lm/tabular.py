"""A language model that is a table, small enough to enumerate: exact expectations over sequences.

The vocabulary is 0, ..., V - 1, whose last token is the end; a sequence ends with it or with its
`longest`-th token. The logits are a table `[prefixes, V]`, one row for each prefix of up to
`longest - 1` tokens without the end, from which `longest` follows. So whatever a trainer estimates
from samples, a loss, its gradient, a divergence, is a sum over all sequences here.

>>> logits = jnp.zeros((7, 3))  # tokens 0, 1 and the end, at most three: uniform
>>> sequences = enumerate_sequences(logits.shape)
>>> print(len(sequences.lengths), f"{expectation(logits, sequences.lengths):.4f}")
15 2.1111
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jdiv import checks, divergences, numerics
from jdiv.types import PerSample, Scalar

Table = Float[Array | np.ndarray, "prefixes vocabulary"]
"""Logits of the next token after each prefix."""


class Sequences(NamedTuple):
    """All sequences of a model, one a row; -1 behind the end.

    Fields:
        prefixes: `[sequences, longest]` the row of the table from which each token is drawn.
        tokens: `[sequences, longest]`
        lengths: `[sequences]` numbers of tokens, the end included.
    """

    prefixes: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """`[sequences, longest]` True for the tokens of the sequence."""
        return self.tokens >= 0


def table_shape(longest: int, vocabulary: int = 3) -> tuple[int, int]:
    """The shape of the logits for sequences of up to `longest` tokens.

    >>> table_shape(3), table_shape(2, vocabulary=5)
    ((7, 3), (5, 5))
    """
    if longest < 1 or vocabulary < 2:
        raise ValueError(
            f"longest must be at least 1 and vocabulary at least 2, got {longest} and {vocabulary}"
        )
    return sum((vocabulary - 1) ** length for length in range(longest)), vocabulary


@functools.cache
def enumerate_sequences(shape: tuple[int, int]) -> Sequences:
    """All sequences of a model whose logits have this shape.

    Prefixes are numbered by length, then in the order of their tokens.
    """
    longest = next(
        (n for n in range(1, shape[0] + 1) if table_shape(n, shape[1]) == tuple(shape)), None
    )
    if longest is None:
        raise ValueError(f"logits must have a shape that table_shape returns, got {tuple(shape)}")
    end = shape[1] - 1
    complete, growing = [], [()]
    for last in (False,) * (longest - 1) + (True,):
        longer = [(*start, token) for start in growing for token in range(end + 1)]
        complete += [tokens for tokens in longer if last or tokens[-1] == end]
        growing = [tokens for tokens in longer if tokens[-1] != end]
    tokens = np.full((len(complete), longest), -1, np.int32)  # the same in either precision
    prefixes = np.full_like(tokens, -1)
    for row, sequence in enumerate(complete):
        tokens[row, : len(sequence)] = sequence
        place = 0
        for step, token in enumerate(sequence):
            prefixes[row, step] = place
            place = end * place + 1 + token
    return Sequences(prefixes, tokens, (tokens >= 0).sum(axis=1))


def token_log_probs(logits: Table) -> Array:
    """Log-probabilities `[sequences, longest]` of the tokens of all sequences, 0 behind the end."""
    sequences = enumerate_sequences(logits.shape)
    log_probs = numerics.log_softmax(logits)[sequences.prefixes, sequences.tokens]
    return jnp.where(sequences.mask, log_probs, 0)


def sequence_log_probs(logits: Table) -> Array:
    """Log-probabilities `[sequences]` of all sequences; their exponentials sum to one."""
    return token_log_probs(logits).sum(axis=-1)


def expectation(logits: Table, values: PerSample) -> Array:
    """`E[values]` over the sequences of the model. Shapes: values `[sequences]` to `[]`."""
    log_probs = sequence_log_probs(logits)
    if jnp.shape(values) != log_probs.shape:
        raise ValueError(f"values must be of shape {log_probs.shape}, got {jnp.shape(values)}")
    return jnp.exp(log_probs) @ jnp.asarray(values, log_probs.dtype)


def mean_length(logits: Table, power: Scalar = 1.0) -> Array:
    """`E[length^power]`, the end counted as a token."""
    power = checks.finite("power", power)
    lengths = jnp.asarray(enumerate_sequences(logits.shape).lengths, float)
    return expectation(logits, lengths**power)


def kl(logits: Table, ref_logits: Table) -> Array:
    """KL(pi‖ref) over sequences: with the policy first, what that field calls reverse KL.

    >>> policy = jnp.zeros((1, 2))  # one token: a bandit
    >>> print(f"{kl(policy, jnp.log(jnp.array([[0.25, 0.75]]))):.4f}")
    0.1438
    """
    checks.same_shape(logits=logits, ref_logits=ref_logits)
    return divergences.kl(sequence_log_probs(logits), sequence_log_probs(ref_logits))


def normal_logits(
    seed: ArrayLike,
    seeds: tuple[int, ...],
    *,
    models: int = 2,
    longest: int = 3,
    vocabulary: int = 3,
) -> Array:
    """Standard normal logits `[models, prefixes, V]` from NumPy's generator, for a traced seed.

    All of `seeds`, among which the seed has to be, are drawn ahead, so that the numbers are NumPy's
    also inside of a compiled program. Another seed is refused; NaN if it is traced.
    """
    checks.in_range("models", models, 1, np.inf, "at least 1", closed="low")
    ahead = np.sort(seeds).astype(np.int32)
    if not isinstance(seed, jax.core.Tracer) and seed not in ahead:
        raise ValueError(f"seed must be one of seeds, {tuple(seeds)}, got {seed}")
    shape = models, *table_shape(longest, vocabulary)
    draws = np.stack([np.random.default_rng(one).standard_normal(shape) for one in ahead])
    place = jnp.searchsorted(jnp.asarray(ahead), jnp.asarray(seed, jnp.int32))
    known = jnp.asarray(ahead)[place] == jnp.asarray(seed, jnp.int32)
    return jnp.where(known, jnp.asarray(draws)[place], jnp.nan)
