import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jdiv.alignment import a_star_po
from tests.checks import refused


def test_value_estimates_by_enumeration_of_samples():
    reference = {0.05: (0.1386, 0.1101), 0.2: (0.4116, 0.3697), 0.5: (0.7169, 0.6964)}
    reference[0.9] = (0.9548, 0.9520)
    accuracy = np.array(list(reference))
    binary_value = jax.jit(a_star_po.binary_value, static_argnames="n")
    exact, expected = binary_value(accuracy, 0.5, n=8)
    np.testing.assert_array_equal(
        np.round(np.stack([exact, expected], axis=1), 4), list(reference.values())
    )
    samples = np.array(list(itertools.product((0.0, 1.0), repeat=8)))
    estimates = np.asarray(jax.jit(a_star_po.optimal_value_estimate)(samples, 0.5))
    by_hand = 0.5 * np.log(np.exp(samples / 0.5).mean(axis=1))
    np.testing.assert_allclose(estimates, by_hand, atol=1e-14)
    for p, value in zip(accuracy, np.asarray(expected), strict=True):
        weight = np.prod(np.where(samples == 1, p, 1 - p), axis=1)
        assert weight @ estimates == pytest.approx(value, rel=1e-12)
    both = binary_value(np.array([0.0, 1.0]), 0.5, n=3)
    np.testing.assert_allclose(both, [[0, 1], [0, 1]], atol=1e-15)


def test_the_mean_gradient_of_a_star_po_ignores_the_value():
    # The setting of the reference numbers, which came without one, found by search.
    pi, ref, rewards, beta = [np.array(x) for x in (
        (0.2, 0.5, 0.3), (0.5, 0.3, 0.2), (0.0, 1.0, 0.0), 0.1,
    )]  # fmt: skip

    def gradient(value, logits):
        def loss(logits):
            log_policy = jax.nn.log_softmax(logits)
            losses = a_star_po.a_star_po_loss(
                log_policy, np.log(ref), rewards, jnp.full(3, value), beta=beta
            )
            return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_policy)) * losses)

        return jax.grad(loss)(logits)

    run = jax.jit(jax.vmap(gradient, (0, None)))
    found = run(jnp.array([0.0, 0.3, 1.0]), np.log(pi))
    np.testing.assert_allclose(found, np.tile((0.01556, -0.04683, 0.03127), (3, 1)), atol=6e-6)
    # Per example it is not so, and at the optimum with V* every loss is zero.
    optimum = np.log(ref) + rewards / beta
    value = beta * special.logsumexp(optimum)
    losses = a_star_po.a_star_po_loss(
        special.log_softmax(optimum), np.log(ref), rewards, np.full(3, value), beta=beta
    )
    np.testing.assert_allclose(losses, 0, atol=1e-28)


def test_wrong_input_is_refused():
    refused(ValueError, ("n must",), lambda: a_star_po.binary_value(np.array(0.5), 1.0, n=0))
    refused(
        ValueError, ("rewards",), lambda: a_star_po.optimal_value_estimate(np.zeros((2, 0)), 1.0)
    )
    refused(
        ValueError, ("value", "same shape"),
        lambda: a_star_po.a_star_po_loss(*[np.zeros(2)] * 3, np.zeros(3), beta=1.0),
    )  # fmt: skip
