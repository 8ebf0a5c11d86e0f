"""A language model that is a table, small enough to enumerate: exact expectations over sequences.

The vocabulary is 0, ..., V - 1, whose last token is the end (`enumeration` makes such a table of a
transformer, and takes any token for the end); a sequence ends with it or with its
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
from jdiv.divergences.generator import Generator
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
    vocabulary, end = shape[1], shape[1] - 1
    starts, rows, place = np.zeros((1, 0), int), np.zeros((1, 0), int), np.zeros((1, 1), int)
    complete = []
    for length in range(1, longest + 1):
        last = np.tile(np.arange(vocabulary), len(starts))[:, None]
        again = lambda x: np.repeat(x, vocabulary, axis=0)
        starts, rows = np.hstack([again(starts), last]), np.hstack([again(rows), again(place)])
        place = end * again(place) + 1 + last
        ended = (last[:, 0] == end) | (length == longest)
        padding = ((0, 0), (0, longest - length))
        complete.append([np.pad(x[ended], padding, constant_values=-1) for x in (starts, rows)])
        starts, rows, place = (x[~ended] for x in (starts, rows, place))
    # In 32 bits, the same in either precision.
    tokens, prefixes = (np.concatenate(x).astype(np.int32) for x in zip(*complete, strict=True))
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


def divergence(logits: Table, ref_logits: Table, *, generator: Generator) -> Array:
    """D(pi‖ref) over sequences, of any row."""
    checks.same_shape(logits=logits, ref_logits=ref_logits)
    log_p, log_ref = sequence_log_probs(logits), sequence_log_probs(ref_logits)
    return divergences.f_divergence(generator, log_p, log_ref)


def prefix_log_probs(logits: Table) -> Array:
    """Log-probabilities `[prefixes]` that a sequence begins so; that of the empty one is 0."""
    sequences = enumerate_sequences(logits.shape)
    before = jnp.cumsum(token_log_probs(logits)[:, :-1], axis=1)
    before = jnp.pad(before, ((0, 0), (1, 0)))
    found, first = np.unique(sequences.prefixes, return_index=True)
    return before.ravel()[first[found >= 0]]


def token_divergence(logits: Table, ref_logits: Table, *, generator: Generator) -> Array:
    """`E[sum over tokens of D(pi(.|prefix), ref(.|prefix))]` under the policy.

    With KL it is the KL over sequences, by the chain rule; no other row has one. A prefix that the
    policy never writes does not count, whatever the reference does there.

    >>> from jdiv import generators
    >>> ref, policy = jnp.zeros((3, 2)), jnp.array([[0.0, 1.0], [2.0, 0.0], [0.5, 0.0]])
    >>> by_tokens = token_divergence(policy, ref, generator=generators.kl())
    >>> print(f"{kl(policy, ref):.5f} {by_tokens:.5f}")
    0.20628 0.20628
    """
    checks.same_shape(logits=logits, ref_logits=ref_logits)
    reach = jnp.exp(prefix_log_probs(logits))
    each = divergences.f_divergence(generator, logits, ref_logits)
    return jnp.sum(jnp.where(reach > 0, reach * jnp.where(reach > 0, each, 0), 0))


def entropy(logits: Table) -> Array:
    """The entropy over sequences, the sum of those of the tokens by the chain rule."""
    log_p = sequence_log_probs(logits)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0))


def from_sequences(log_weights: PerSample, shape: tuple[int, int]) -> Array:
    """The table, normalized, whose sequences have probabilities in proportion to these weights.

    Its rows are the per-token conditionals: `log sum` of the weights of all sequences that go on
    with a token, over that of all that come by. So the exact optimum of an objective over sequences
    becomes a model: `from_sequences(tilts.tilted(rewards, sequence_log_probs(ref), beta,
    generator=...).log_policy, shape)`. Rows that no sequence of positive weight visits are uniform.
    Shapes: log_weights `[sequences]` to `[prefixes, V]`.

    >>> logits = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.5, 0.0]])
    >>> again = from_sequences(sequence_log_probs(logits), logits.shape)
    >>> print(jnp.allclose(again, jax.nn.log_softmax(logits), atol=1e-6))
    True
    """
    sequences = enumerate_sequences(shape)
    checks.same_shape(log_weights=log_weights, lengths=sequences.lengths)
    places = np.where(sequences.mask, sequences.prefixes * shape[1] + sequences.tokens, -1)
    row, place = np.nonzero(places >= 0)
    log_weights, at = jnp.asarray(log_weights)[row], places[row, place]
    size = shape[0] * shape[1]
    top = jax.ops.segment_max(jax.lax.stop_gradient(log_weights), at, size)
    top = jnp.where(top == -jnp.inf, 0, top)
    total = jax.ops.segment_sum(jnp.exp(log_weights - top[at]), at, size)
    table = (jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf) + top).reshape(
        shape
    )
    visited = jnp.any(table > -jnp.inf, axis=1, keepdims=True)
    return numerics.log_softmax(jnp.where(visited, table, 0))


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
