"""Estimators over sequences, whose mean and variance are found over all sequences of a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import generators
from jdiv.divergences import sequence
from jdiv.estimators import monte_carlo
from jdiv.lm import tabular


def test_rao_blackwell_is_unbiased_and_varies_less_than_the_plain_estimate_of_random_laws():
    """By enumeration, for a near and a far reference: mean and variance over the law itself."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=tabular.table_shape(4, 4))
    references = logits + np.array([0.3, 2.0])[:, None, None] * rng.normal(size=logits.shape)
    every = tabular.enumerate_sequences(logits.shape)
    rows = {"kl": generators.kl(), "jensen_shannon": generators.jensen_shannon()}

    @jax.jit
    @jax.vmap
    def moments(ref):
        probabilities = jnp.exp(tabular.sequence_log_probs(logits))
        laws = [x[every.prefixes] for x in (jnp.asarray(logits), ref)]
        found = {
            name: sequence.rao_blackwellized(row, *laws, mask=every.mask)
            for name, row in rows.items()
        }
        log_p, log_q = (tabular.sequence_log_probs(x) for x in (logits, ref))
        found["plain"] = monte_carlo.kl_k1(log_p, log_q)
        mean = {name: probabilities @ x for name, x in found.items()}
        variance = {name: probabilities @ (x - mean[name]) ** 2 for name, x in found.items()}
        truth = {name: tabular.token_divergence(logits, ref, generator=row)
                 for name, row in rows.items()}  # fmt: skip
        return mean, variance, truth, tabular.kl(logits, ref)

    mean, variance, truth, kl = moments(references)
    np.testing.assert_allclose(mean["kl"], kl, rtol=1e-12)
    np.testing.assert_allclose(mean["plain"], kl, rtol=1e-12)
    for name in rows:
        np.testing.assert_allclose(mean[name], truth[name], rtol=1e-12)
    near, far = variance["kl"] / variance["plain"]
    assert near < 0.05
    assert far < 0.6


def test_rao_blackwell_varies_more_where_a_policy_is_its_reference_given_an_event():
    """q of ax, ay, bx, by is 1/4, 1/2, 1/8, 1/8, and p is q given ax or bx or by: log p/q is the
    same for all three, and what the two tokens' laws have in common is not."""
    p = np.log([[[1 / 2, 1 / 2], [1, 0]], [[1 / 2, 1 / 2], [1 / 2, 1 / 2]]], where=[
        [[True, True], [True, False]], [[True, True], [True, True]]],
        out=np.full((2, 2, 2), -np.inf))  # fmt: skip
    q = np.log([[[3 / 4, 1 / 4], [1 / 3, 2 / 3]], [[3 / 4, 1 / 4], [1 / 2, 1 / 2]]])
    first, second = sequence.rao_blackwellized(generators.kl(), p, q)
    assert float(first) == pytest.approx(np.log(4 / 3) / 2 + np.log(3), rel=1e-6)
    assert float(second) == pytest.approx(np.log(4 / 3) / 2, rel=1e-6)
    assert float(first + second) / 2 == pytest.approx(np.log(2), rel=1e-6)
    log_p, log_q = np.log([[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 8, 1 / 8]])
    np.testing.assert_allclose(monte_carlo.kl_k1(log_p, log_q), np.log(2), rtol=1e-6)


def test_masked_tokens_add_nothing_whatever_they_hold():
    p, q = np.random.default_rng(1).normal(size=(2, 2, 3, 5))
    mask = np.array([[True, True, False], [False, False, False]])
    p[0, 2] = q[1, 1] = np.nan
    value, gradient = jax.value_and_grad(
        lambda p: sequence.rao_blackwellized(generators.kl(), p, q, mask=mask).sum()
    )(jnp.asarray(p))
    law = lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    a, b = law(p[0, :2]), law(q[0, :2])
    assert float(value) == pytest.approx((a * np.log(a / b)).sum(), rel=1e-12)
    assert not np.isnan(gradient).any()
    assert (np.asarray(gradient)[~mask] == 0).all()
