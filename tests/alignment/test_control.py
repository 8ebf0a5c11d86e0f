"""Guidance against texts that are enumerated, by loops in NumPy; gradients by differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.alignment import control

RNG = np.random.default_rng(0)
N, LONGEST = 3, 4
LOGITS = {
    prefix: RNG.normal(size=N)
    for length in range(LONGEST)
    for prefix in itertools.product(range(N), repeat=length)
}
SCORE = {
    text: RNG.uniform() * (RNG.uniform() < 0.6)
    for text in itertools.product(range(N), repeat=LONGEST)
}


def probability(text, start=0):
    """Of the tokens behind the first few."""
    found = 1.0
    for place in range(start, LONGEST):
        weights = np.exp(LOGITS[text[:place]])
        found *= weights[text[place]] / weights.sum()
    return found


def mean_score(prefix):
    """Of all texts that begin so."""
    texts = (text for text in SCORE if text[: len(prefix)] == prefix)
    return sum(probability(text, len(prefix)) * SCORE[text] for text in texts)


def table():
    """Logits and `log V` of the prefixes with each token."""
    with np.errstate(divide="ignore"):
        scores = [[np.log(mean_score((*prefix, token))) for token in range(N)] for prefix in LOGITS]
    return np.array(list(LOGITS.values())), np.array(scores)


def test_one_step_backwards_is_the_mean_of_the_score_over_texts():
    found = np.exp(control.log_expectation(*table()))
    np.testing.assert_allclose(found, [mean_score(prefix) for prefix in LOGITS], rtol=1e-12)


def test_a_text_of_guided_tokens_has_the_law_of_the_model_times_the_score():
    law = dict(zip(LOGITS, np.exp(control.token_guidance(*table())), strict=True))
    total = mean_score(())
    for text, score in SCORE.items():
        written = np.prod([law[text[:place]][text[place]] for place in range(LONGEST)])
        assert written == pytest.approx(probability(text) * score / total, abs=1e-15)


def test_where_nothing_holds_the_law_is_the_model_and_nothing_is_trained():
    logits, dead = np.array([0.3, -1.0]), np.full(2, -np.inf)
    model = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.exp(control.token_guidance(logits, dead)), model, rtol=1e-12)
    assert control.log_expectation(logits, dead) == -np.inf
    value, slope = jax.value_and_grad(control.posterior_loss)(jnp.asarray(logits), dead)
    np.testing.assert_allclose([value, *slope], 0, atol=1e-15)


def test_the_loss_of_one_token_is_minus_log_v_and_has_its_gradient():
    logits, scores = (x[0] for x in table())
    loss, slope = jax.value_and_grad(control.posterior_loss)(jnp.asarray(logits), scores)
    v = lambda x: np.log(np.exp(x) @ np.exp(scores) / np.exp(x).sum())
    # With scores that are not 0 or 1 the KL leaves out the mean of log V under q.
    q = np.exp(logits + scores) / np.exp(logits + scores).sum()
    assert loss == pytest.approx(q @ scores - v(logits), rel=1e-12)
    step = 1e-6 * np.eye(N)
    differences = [(v(logits - h) - v(logits + h)) / 2e-6 for h in step]
    np.testing.assert_allclose(slope, differences, atol=1e-8)


def test_the_guided_law_may_be_that_of_an_older_model_and_is_held_fixed():
    logits, scores = (x[0] for x in table())
    old = logits + np.array([1.0, 0.0, -1.0])
    slope, slope_of_old = jax.grad(
        lambda x, y: control.posterior_loss(x, scores, old_logits=y), argnums=(0, 1)
    )(jnp.asarray(logits), jnp.asarray(old))
    q = np.exp(old + scores) / np.exp(old + scores).sum()
    np.testing.assert_allclose(slope, np.exp(logits) / np.exp(logits).sum() - q, atol=1e-12)
    np.testing.assert_array_equal(slope_of_old, 0)


def test_edges():
    zero = np.array([0.0, -np.inf])
    # A token that the model never writes stays so, whatever its score.
    np.testing.assert_array_equal(control.token_guidance(zero, np.array([-1.0, 0.0])), zero)
    assert control.posterior_loss(zero, np.zeros(2), old_logits=np.zeros(2)) == np.inf
    # Half precision is computed in 32 bits, of NumPy's arrays too.
    half = control.token_guidance(jnp.zeros(2, jnp.bfloat16), np.array([-np.inf, -3.0], np.float32))
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, [-np.inf, 0])
    assert np.isnan(jax.jit(control.log_expectation)(np.array([np.nan, 0.0]), np.zeros(2)))
    assert control.log_expectation(np.zeros((2, 1)), np.zeros((2, 1))).tolist() == [0, 0]
    with pytest.raises(ValueError, match="log_scores"):
        control.token_guidance(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        control.token_guidance(np.zeros(2), np.array([np.nan, 0.0]))
