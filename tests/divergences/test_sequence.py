"""Estimators over sequences, whose mean and variance are found over all sequences of a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import generators
from jdiv.divergences import sequence
from jdiv.estimators import monte_carlo
from jdiv.lm import tabular


def test_rao_blackwell_is_unbiased_and_varies_less_than_the_plain_estimate():
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
