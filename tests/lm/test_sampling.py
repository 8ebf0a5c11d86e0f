"""Sampling: laws against sorting by hand, batches, stops, and what scoring says of the samples."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import lm
from jdiv.decoding import Automaton, automata, bregman
from jdiv.lm import enumeration, sampling
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from jdiv.lm.rules import Rule
from tests.checks import refused

CONFIG = Config(vocabulary=11, width=8, layers=2, heads=2, key_heads=1, head_width=4, hidden=16)
END = 7


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        return Transformer.random(CONFIG, jax.random.key(4), float)


@functools.partial(jax.jit, static_argnames=("max_tokens", "stop", "top_k"))
def generate(model, tokens, key, **options):
    return sampling.generate(model, tokens, key, **options)


PROMPTS = np.array([[3, 1, 4, 0], [5, 9, 0, 0], [2, 6, 5, 3]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool)


def test_recorded_log_probabilities_are_the_scores_of_the_model(model):
    """With a temperature and a filter the law differs from the model, and both are told."""
    found = generate(
        model, PROMPTS, jax.random.key(0), max_tokens=6, mask=MASK, temperature=0.7, top_k=4
    )
    score = jax.jit(lm.logits)
    for i in range(3):
        prompt = PROMPTS[i][MASK[i]]
        row = np.concatenate([prompt, found.tokens[i]])
        logits = np.asarray(score(model, np.pad(row, (0, 10 - len(row)))[None]))[0]
        logits = logits[len(prompt) - 1 : len(row) - 1]
        own = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = lambda log_p, i=i: np.take_along_axis(log_p, np.asarray(found.tokens[i])[:, None], -1)[
            :, 0
        ]
        np.testing.assert_allclose(found.model_log_probs[i], at(own), atol=1e-5)
        kept = np.sort(logits, axis=-1)[:, -4:-3]
        bent = np.where(logits >= kept, logits / 0.7, -np.inf)
        bent = bent - np.log(np.exp(bent).sum(-1, keepdims=True))
        np.testing.assert_allclose(found.log_probs[i], at(bent), atol=1e-5)


def test_with_a_cache_as_without(model):
    """Token for token with the same keys, though every token is found by reading all before it."""
    options = {"temperature": 0.8, "top_p": 0.9}
    keys = jax.random.split(jax.random.key(6), 3)
    found = generate(model, PROMPTS, keys, max_tokens=8, mask=MASK, **options)

    @jax.jit
    def following(model, rows, lengths, keys, count):
        logits = jnp.take_along_axis(lm.logits(model, rows), lengths[:, None, None] - 1, axis=1)
        each = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
        return jax.vmap(jax.random.categorical)(each, sampling.law(logits[:, 0], **options))

    lengths = MASK.sum(1)
    rows = np.pad(PROMPTS, ((0, 0), (0, 8)))
    for count in range(8):
        tokens = following(model, rows, lengths + count, keys, count)
        rows[np.arange(3), lengths + count] = tokens
    for row, length, sampled in zip(rows, lengths, found.tokens, strict=True):
        assert row[length : length + 8].tolist() == np.asarray(sampled).tolist()
    scores = np.asarray(jax.jit(lm.log_probs)(model, rows))
    for row, length, own in zip(scores, lengths, found.model_log_probs, strict=True):
        np.testing.assert_allclose(row[length - 1 : length + 7], own, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(model):
    """Alone, in another order, with other padding; and each sequence has draws of its own."""
    keys = jax.random.split(jax.random.key(1), 3)
    together = generate(model, PROMPTS, keys, max_tokens=8, mask=MASK)
    order = np.array([2, 0, 1])
    turned = generate(model, PROMPTS[order], keys[order], max_tokens=8, mask=MASK[order])
    np.testing.assert_array_equal(turned.tokens, together.tokens[order])
    wide = np.pad(PROMPTS, ((0, 0), (3, 0)))
    left = generate(model, wide, keys, max_tokens=8, mask=np.pad(MASK, ((0, 0), (3, 0))))
    np.testing.assert_array_equal(left.tokens, together.tokens)
    same = generate(model, PROMPTS[[0, 0, 0]], jax.random.key(2), max_tokens=8)
    assert len({tuple(row) for row in np.asarray(same.tokens).tolist()}) == 3


def test_a_stop_token_ends_a_sequence(model):
    """Nothing is counted behind the first; without one nothing else changes."""
    free = generate(model, PROMPTS, jax.random.key(3), max_tokens=30, mask=MASK)
    ended = generate(model, PROMPTS, jax.random.key(3), max_tokens=30, mask=MASK, stop=(END,))
    for i in range(3):
        row = np.asarray(free.tokens[i]).tolist()
        length = row.index(END) + 1 if END in row else 30
        assert np.asarray(ended.tokens[i])[:length].tolist() == row[:length]
        assert np.asarray(ended.mask[i]).tolist() == [j < length for j in range(30)]
        assert not np.any(np.asarray(ended.log_probs[i])[length:])
    assert np.any(~np.asarray(ended.mask))


def test_samples_follow_their_law(model):
    """The first token of 20,000 samples of one prompt against its probabilities."""
    prompt = np.repeat(PROMPTS[2:], 20_000, axis=0)
    drawn = generate(model, prompt, jax.random.key(5), max_tokens=1).tokens[:, 0]
    p = np.asarray(jax.nn.softmax(lm.logits(model, PROMPTS[2:])[0, -1]))
    counts = np.bincount(drawn, minlength=11)
    chi2 = np.sum((counts - 20_000 * p) ** 2 / (20_000 * p))
    assert chi2 < 29.6  # 1 in 1,000 is above, of 10 degrees of freedom


def test_filters_one_after_the_other():
    """Nucleus of a sorted law by hand, ties, and temperature 0."""
    rng = np.random.default_rng(0)
    logits = np.log(rng.dirichlet(np.ones(9), 20))
    nucleus = np.exp(np.asarray(jax.jit(lambda x: sampling.law(x, top_p=0.8))(logits)))
    for p, found in zip(np.exp(logits), nucleus, strict=True):
        order = np.argsort(-p)
        count = np.searchsorted(np.cumsum(p[order]), 0.8) + 1
        by_hand = np.zeros(9)
        by_hand[order[:count]] = p[order[:count]] / p[order[:count]].sum()
        np.testing.assert_allclose(found, by_hand, atol=1e-12)
    cold = np.exp(np.asarray(sampling.law(jnp.array([1.0, 3.0, 3.0]), temperature=0.0)))
    assert cold.tolist() == [0, 1, 0]


LONGEST, TEXTS = 3, 4000


def written(model, rule, **options):
    """Answers to the last prompt under a rule."""
    prompt = np.repeat(PROMPTS[2:], TEXTS, axis=0)
    options = {"max_tokens": LONGEST, "stop": (END,), "rule": rule, **options}
    draw = jax.jit(functools.partial(sampling.generate, **options))
    return jax.tree.map(np.asarray, draw(model, prompt, jax.random.key(7)))


def sampled_and_exact(model, rule, change, **options):
    """Answers under a rule, and of each by enumeration `log p` of the model and under the rule.

    `change(prefix, p)` is the law, not normalized, that the rule makes of p after a prefix.
    """
    table = jax.jit(functools.partial(enumeration.table, longest=LONGEST, end=END))
    logits = np.asarray(table(model, PROMPTS[2]))
    answers = enumeration.answers(logits.shape, end=END)
    columns = enumeration.columns(11, end=END)

    @functools.cache
    def laws(row, prefix):
        p = np.empty(11)
        p[columns] = np.exp(logits[row])
        p, q = p / p.sum(), change(prefix, p / p.sum())
        with np.errstate(divide="ignore"):
            return np.log(p), np.log(q / q.sum()) if q.any() else np.full(11, -np.inf)

    own, bent = {}, {}
    for rows, tokens, length in zip(*answers, strict=True):
        log_p = log_q = 0.0
        for i in range(length):
            p, q = laws(rows[i], tuple(tokens[:i].tolist()))
            log_p, log_q = log_p + p[tokens[i]], log_q + q[tokens[i]]
        own[tuple(tokens[:length].tolist())] = log_p
        bent[tuple(tokens[:length].tolist())] = log_q
    return written(model, rule, **options), own, bent


def agree(found, own, bent):
    """Log-probabilities of every sample, and how often each text came, by chi squared."""
    texts = [tuple(x[:n].tolist()) for x, n in zip(found.tokens, found.mask.sum(1), strict=True)]
    np.testing.assert_allclose(found.log_probs.sum(1), [bent[x] for x in texts], atol=1e-5)
    np.testing.assert_allclose(found.model_log_probs.sum(1), [own[x] for x in texts], atol=1e-5)
    expected = {x: TEXTS * np.exp(log_q) for x, log_q in bent.items() if log_q > -np.inf}
    assert sum(expected.values()) == pytest.approx(TEXTS)
    counts = {x: 0 for x in expected}
    for x in texts:
        counts[x] += 1
    large = [x for x, n in expected.items() if n > 5]
    chi2 = sum((counts[x] - expected[x]) ** 2 / expected[x] for x in large)
    assert chi2 < len(large) + 4 * np.sqrt(2 * len(large))
    return texts


def test_texts_of_an_automaton_and_their_weights(model):
    """An even number of tokens below 3, none after a 5: every text, and the mean of the weights."""
    successors = np.array([[1] * 3 + [0] * 8, [0] * 3 + [1] * 8, [-1] * 3 + [2] * 8])
    successors[:2, 5] = 2, -1
    accepted = lambda x: (
        x[-1] == END
        and sum(t < 3 for t in x) % 2 == 0
        and not (5 in x and any(t < 3 for t in x[x.index(5) :]))
    )
    automaton = Automaton(successors, np.array([True, False, True]))

    def change(prefix, p):
        """What leaves a way, by trying all ends."""
        more = [(), (END,), *((t, END) for t in range(11) if t != END)]
        whole = [(*prefix, token, *rest) for token in range(11) for rest in more]
        ends = lambda x: len(x) <= LONGEST and END not in x[:-1] and accepted(x)
        return p * np.isin(np.arange(11), [x[len(prefix)] for x in whole if ends(x)])

    rule = automata.rule(automaton, max_tokens=LONGEST, end=END)
    found, own, bent = sampled_and_exact(model, rule, change)
    texts = agree(found, own, bent)
    assert all(map(accepted, texts))
    total = sum(np.exp(log_p) for x, log_p in own.items() if accepted(x))
    assert {x for x, log_q in bent.items() if log_q > -np.inf} == set(filter(accepted, own))
    weights = np.exp(found.model_log_probs.sum(1) - found.log_probs.sum(1))
    assert weights.mean() == pytest.approx(total, abs=4 * weights.std() / TEXTS**0.5)
    assert weights.std() > 0.01 * total


def test_texts_of_exactly_so_many_tokens(model):
    """Without an end: `(ab)*a` of three tokens is one text."""
    successors = np.full((2, 11), -1)
    successors[0, 4], successors[1, 8] = 1, 0
    rule = automata.rule(Automaton(successors, np.array([False, True])), max_tokens=3)
    found = jax.jit(lambda m, x, k: sampling.generate(m, x, k, max_tokens=3, rule=rule))(
        model, PROMPTS, jax.random.key(0)
    )
    assert found.tokens.tolist() == [[4, 8, 4]] * 3
    assert not np.any(found.log_probs)
    # With an end in up to five: that of one token, which none of four replaces.
    one = np.full((2, 11), -1)
    one[0, 4] = 1
    rule = automata.rule(Automaton(one, np.array([False, True])), max_tokens=5, end=END)
    found = written(model, rule, max_tokens=5)
    assert np.unique(found.tokens, axis=0).tolist() == [[4, END, 0, 0, 0]]


def test_a_rule_with_a_memory_of_its_own_and_filters_after_it(model):
    """No token twice in a row, and the three most probable of those that are left."""
    forbid = lambda logits, last: jnp.where(jax.nn.one_hot(last, 11, dtype=bool), -jnp.inf, logits)
    rule = Rule(forbid, lambda last, tokens: tokens, jnp.int32(-1))

    def change(prefix, p):
        p = np.where(np.arange(11) == (prefix[-1] if prefix else -1), 0, p)
        return np.where(p >= np.sort(p)[-3], p, 0)

    found, own, bent = sampled_and_exact(model, rule, change, top_k=3)
    texts = agree(found, own, bent)
    assert all(a != b for x in texts for a, b in itertools.pairwise(x))


def test_a_decoder_is_a_rule(model):
    """Half the lost mass more for each of two tokens: the primal decoder of alpha 2."""

    def change(prefix, p):
        kept = p >= np.sort(p)[-2]
        return np.where(kept, p + (1 - p[kept].sum()) / 2, 0)

    rule = functools.partial(bregman.primal, k=2, alpha=2.0)
    agree(*sampled_and_exact(model, rule, change))


def test_wrong_use_is_refused(model):
    call = functools.partial(sampling.generate, model, PROMPTS, jax.random.key(0))
    refused(ValueError, ["max_tokens"], lambda: call(max_tokens=0))
    refused(ValueError, ["temperature"], lambda: sampling.law(np.zeros(3), temperature=-1.0))
    refused(ValueError, ["top_p"], lambda: sampling.law(np.zeros(3), top_p=1.5))
    refused(ValueError, ["mask"], lambda: call(max_tokens=1, mask=MASK[:2]))
    refused(TypeError, ["rule"], lambda: call(max_tokens=1, rule=3))
    letters = Automaton(np.array([[1, -1], [-1, 0]]), np.array([True, False]))
    refused(ValueError, ["automaton", "3"], lambda: automata.rule(letters, max_tokens=3))
    refused(ValueError, ["end"], lambda: automata.rule(letters, max_tokens=3, end=2))
