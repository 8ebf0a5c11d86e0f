import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.lm import tabular
from tests.checks import refused

SHAPES = [(3, 3), (2, 4), (4, 2), (1, 3)]
"""Longest sequence and size of the vocabulary."""


def written_out(longest, vocabulary):
    """Every sequence: all words that end with the end token or are as long as can be."""
    end = vocabulary - 1
    words = (
        word
        for length in range(1, longest + 1)
        for word in itertools.product(range(vocabulary), repeat=length)
    )
    return [
        word for word in words if end not in word[:-1] and (word[-1] == end or len(word) == longest)
    ]


def by_hand(logits, longest, vocabulary):
    """Log-probabilities of tokens by sequence, with a table of prefixes as a dictionary."""
    prefixes = [
        prefix
        for length in range(longest)
        for prefix in itertools.product(range(vocabulary - 1), repeat=length)
    ]
    assert len(prefixes) == len(logits)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = dict(zip(prefixes, log_p, strict=True))
    return {
        word: [rows[word[:place]][token] for place, token in enumerate(word)]
        for word in written_out(longest, vocabulary)
    }


@pytest.mark.parametrize(("longest", "vocabulary"), SHAPES)
def test_every_sequence_once_with_its_probability(longest, vocabulary):
    rng = np.random.default_rng(0)
    logits, ref_logits = rng.normal(size=(2, *tabular.table_shape(longest, vocabulary)))
    sequences = tabular.enumerate_sequences(logits.shape)
    expected, ref = by_hand(logits, longest, vocabulary), by_hand(ref_logits, longest, vocabulary)
    found = [tuple(row[:n]) for row, n in zip(sequences.tokens, sequences.lengths, strict=True)]
    assert sorted(found) == sorted(expected)
    assert np.array_equal(sequences.mask.sum(axis=1), sequences.lengths)

    @jax.jit
    def everything(logits, ref_logits):
        return (
            tabular.token_log_probs(logits),
            tabular.sequence_log_probs(logits),
            tabular.mean_length(logits),
            tabular.mean_length(logits, -1.0),
            tabular.kl(logits, ref_logits),
        )

    tokens, log_probs, length, shortness, kl = everything(logits, ref_logits)
    padded = [expected[word] + [0.0] * (longest - len(word)) for word in found]
    np.testing.assert_allclose(tokens, padded, atol=1e-15)
    total = np.array([sum(expected[word]) for word in found])
    np.testing.assert_allclose(log_probs, total, atol=1e-14)
    p = np.exp(total)
    assert p.sum() == pytest.approx(1, abs=1e-14)
    sizes = np.array([len(word) for word in found])
    assert float(length) == pytest.approx(p @ sizes)
    assert float(shortness) == pytest.approx(p @ (1 / sizes))
    assert float(kl) == pytest.approx(p @ (total - [sum(ref[word]) for word in found]), abs=1e-14)


def test_kl_is_the_sum_over_prefixes_that_the_policy_visits():
    logits, ref_logits = np.random.default_rng(1).normal(size=(2, 7, 3))
    sequences = tabular.enumerate_sequences((7, 3))
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    each = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    visits = np.where(sequences.mask, each[sequences.prefixes], 0).sum(axis=1)
    assert float(tabular.kl(logits, ref_logits)) == pytest.approx(
        float(tabular.expectation(logits, visits))
    )
    assert float(tabular.kl(logits, logits)) == 0


def test_gradients_of_an_expectation_are_those_of_the_score():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(7, 3)))
    values = np.random.default_rng(3).normal(size=15)
    gradient, score, p = jax.jit(lambda x: (
        jax.grad(tabular.expectation)(x, values),
        jax.jacrev(tabular.sequence_log_probs)(x),
        jnp.exp(tabular.sequence_log_probs(x)),
    ))(logits)  # fmt: skip
    np.testing.assert_allclose(gradient, np.einsum("s,s,spv->pv", p, values, score), atol=1e-14)


def test_draws_are_those_of_numpy_for_traced_seeds():
    draw = jax.jit(jax.vmap(lambda seed: tabular.normal_logits(seed, (5, 0, 3))))
    found = draw(jnp.array([3, 0]))
    for logits, seed in zip(found, (3, 0), strict=True):
        expected = np.random.default_rng(seed).standard_normal((2, 7, 3))
        np.testing.assert_array_equal(logits, expected)


def test_refusals():
    refused(ValueError, ["longest", "vocabulary"], lambda: tabular.table_shape(0))
    refused(ValueError, ["table_shape", "(6, 3)"], lambda: tabular.kl(*jnp.zeros((2, 6, 3))))
