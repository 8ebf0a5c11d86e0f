"""Sampling: laws against sorting by hand, batches, stops, and what scoring says of the samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import lm
from jdiv.lm import sampling
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
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


def test_wrong_use_is_refused(model):
    call = functools.partial(sampling.generate, model, PROMPTS, jax.random.key(0))
    refused(ValueError, ["max_tokens"], lambda: call(max_tokens=0))
    refused(ValueError, ["temperature"], lambda: sampling.law(np.zeros(3), temperature=-1.0))
    refused(ValueError, ["top_p"], lambda: sampling.law(np.zeros(3), top_p=1.5))
    refused(ValueError, ["mask"], lambda: call(max_tokens=1, mask=MASK[:2]))
