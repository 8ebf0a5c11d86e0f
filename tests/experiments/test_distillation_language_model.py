"""What distillation/language_model measures and draws, against plain recomputations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation import language_model as experiment
from jdiv.lm import tabular

LONGEST = 3
SHAPE = tabular.table_shape(LONGEST, experiment.TOKENS)


def test_rouge_is_that_of_a_recursion():
    @functools.cache
    def common(a, b):
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return 1 + common(a[:-1], b[:-1])
        return max(common(a[:-1], b), common(a, b[:-1]))

    texts = [(0, 1, 2), (2, 1), (1, 1, 0), (), (0, 2), (2,)]
    rows = np.array([[*text, *[-1] * (3 - len(text))] for text in texts])
    wanted = [[2 * common(a, b) / max(len(a) + len(b), 1) for b in texts] for a in texts]
    np.testing.assert_allclose(experiment.rouge_l(rows, rows), wanted)


def test_a_prefix_ends_in_its_last_tokens():
    sequences = tabular.enumerate_sequences(SHAPE)
    by_tokens = {(): 0}
    for tokens, prefixes in zip(sequences.tokens, sequences.prefixes, strict=True):
        for place in range(LONGEST):
            if tokens[place] >= 0:
                by_tokens[tuple(tokens[:place].tolist())] = int(prefixes[place])
    for length in range(LONGEST):
        found = experiment._suffixes(SHAPE[0], length)
        for tokens, number in by_tokens.items():
            assert found[number] == by_tokens[tokens[max(len(tokens) - length, 0) :]]


def test_answers_are_drawn_from_the_law():
    """Of as many draws as fit the frequencies, within five deviations of each."""
    rng, count = np.random.default_rng(0), 20_000
    table = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    uniform = jnp.asarray(rng.uniform(size=(count, LONGEST)), jnp.float32)
    drawn = jax.jit(experiment.drawn)(table, jnp.arange(SHAPE[0]), uniform)
    tokens = np.where(drawn.mask, drawn.tokens, -1)
    every = tabular.enumerate_sequences(SHAPE)
    place = {tuple(row): number for number, row in enumerate(every.tokens.tolist())}
    counts = np.bincount([place[tuple(row)] for row in tokens.tolist()], minlength=len(place))
    p = np.exp(np.asarray(jax.jit(tabular.sequence_log_probs)(table)))
    assert (np.abs(counts - count * p) <= 5 * np.sqrt(count * p) + 1).all()
    prefixes = every.prefixes[[place[tuple(row)] for row in tokens.tolist()]]
    np.testing.assert_array_equal(np.asarray(drawn.prefixes)[drawn.mask], prefixes[drawn.mask])


def test_the_shares_of_the_language_are_those_of_its_tokens():
    """Each token's share by a loop over the answers."""
    known = experiment.language(LONGEST)
    every = tabular.enumerate_sequences(SHAPE)
    wanted = np.zeros(SHAPE)
    for p, prefixes, tokens in zip(known.probabilities, every.prefixes, every.tokens, strict=True):
        for prefix, token in zip(prefixes, tokens, strict=True):
            if token >= 0:
                wanted[prefix, token] += p
    np.testing.assert_allclose(experiment.tokens_of_language(known), wanted / wanted.sum())
