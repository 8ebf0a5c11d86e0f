"""Kernels against their definitions in NumPy; the loss against SciPy's minimum and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jdiv.alignment import kernels, margins

RNG = np.random.default_rng(0)


def test_kernels_are_their_definitions():
    x, y = RNG.normal(size=(2, 4, 3))
    square = ((x - y) ** 2).sum(axis=1)
    dot = (x * y).sum(axis=1)
    found = kernels.log_polynomial(x, y, offset=5.0, degree=3.0)
    np.testing.assert_allclose(np.exp(found), (dot + 5) ** 3, rtol=1e-12)
    found = kernels.log_rbf(x, y, bandwidth=0.7)
    np.testing.assert_allclose(np.exp(found), np.exp(-square / (2 * 0.49)), rtol=1e-12)
    weights, precision = np.array([0.4, 2.0]), np.array([1.0, 0.3])
    found = kernels.log_spectral(x, y, weights=weights, precision=precision)
    parts = 0.4 * np.exp(-square) + 2 * np.exp(-0.3 * square)
    np.testing.assert_allclose(np.exp(found), parts, rtol=1e-12)
    matrix = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]])
    found = kernels.log_mahalanobis(x, y, precision=matrix)
    by_hand = [np.exp(-(a - b) @ matrix @ (a - b) / 2) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(np.exp(found), by_hand, rtol=1e-12)
    # A mixture of one, and the inverse of a variance, are the RBF.
    one = kernels.log_spectral(x[0], y[0], weights=1.0, precision=0.5)
    np.testing.assert_allclose(one, kernels.log_rbf(x[0], y[0]), rtol=1e-12)


def test_a_kernel_that_underflows_has_a_logarithm():
    x, y = jnp.zeros(2, jnp.float32), jnp.full(2, 100.0, jnp.float32)
    assert kernels.log_rbf(x, y) == -10000
    found = kernels.log_spectral(x, y, weights=jnp.ones(2), precision=jnp.array([1.0, 2.0]))
    assert found.dtype == jnp.float32
    assert found == -20000
    assert np.isnan(kernels.log_polynomial(x, -y, offset=0.0) + kernels.log_polynomial(y, -y))


def pairs(log_kernel, log_pi, often, coefficient, margin):
    """The loss of all pairs with KL to the uniform reference."""
    first = lambda x: jnp.broadcast_to(x[:, None], often.shape)
    second = lambda x: jnp.broadcast_to(x[None, :], often.shape)
    kl = jnp.sum(jnp.exp(log_pi) * (log_pi + np.log(len(often))))
    kernel = first(log_kernel) - second(log_kernel)
    each = kernels.kernel_dpo(
        first(log_pi), second(log_pi), kernel, jnp.broadcast_to(kl, often.shape),
        coefficient=coefficient, margin=margin,
    )  # fmt: skip
    return jnp.sum(often * each)


def test_with_the_logistic_margin_odds_are_divided_by_the_kernel():
    rewards, log_kernel = RNG.normal(size=(2, 4))
    often = special.expit(rewards[:, None] - rewards) * (1 - np.eye(4))

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        return pairs(log_kernel, jax.nn.log_softmax(logits), often, 0.0, margins.logistic)

    found = optimize.minimize(loss, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-9})
    expected = special.softmax(rewards - log_kernel)
    np.testing.assert_allclose(special.softmax(found.x), expected, atol=1e-6)


def test_without_a_margin_the_loss_is_linear_in_what_is_won_and_the_kernel_has_no_gradient():
    log_pi, log_kernel = np.log(RNG.dirichlet(np.ones(4))), RNG.normal(size=4)
    often = RNG.uniform(size=(4, 4)) * (1 - np.eye(4))
    slope = lambda kernel: jax.grad(pairs, argnums=1)(kernel, log_pi, often, 2.0, margins.linear)
    won = often.sum(axis=1) - often.sum(axis=0)
    of_kl = np.exp(log_pi) * (log_pi + np.log(4) + 1)
    np.testing.assert_allclose(slope(log_kernel), -won + 2 * often.sum() * of_kl, rtol=1e-10)
    np.testing.assert_array_equal(slope(log_kernel), slope(np.zeros(4)))


def test_the_default_is_as_released_and_a_coefficient_may_be_by_pair():
    one = jnp.ones(2, jnp.bfloat16)
    found = kernels.kernel_dpo(one, 3 * one, 5 * one, 7 * one, coefficient=jnp.array([0.0, 2.0]))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [-3, 11])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: kernels.log_rbf(jnp.ones(()), jnp.ones(())), "embeddings"),
        (lambda: kernels.log_rbf(jnp.ones(2), jnp.ones(3)), "same shape"),
        (lambda: kernels.log_rbf(jnp.ones(2), jnp.ones(2), bandwidth=0.0), "bandwidth"),
        (lambda: kernels.log_polynomial(jnp.ones(2), jnp.ones(2), offset=-1.0), "offset"),
        (
            lambda: kernels.log_spectral(
                jnp.ones(2), jnp.ones(2), weights=jnp.ones(2), precision=jnp.ones(3)
            ),
            "weights",
        ),
        (
            lambda: kernels.log_mahalanobis(
                jnp.ones(2), jnp.ones(2), precision=jnp.array([[1.0, 1.0], [0.0, 1.0]])
            ),
            "symmetric",
        ),
        (lambda: kernels.kernel_dpo(*[jnp.ones(2)] * 4, coefficient=-1.0), "coefficient"),
        (lambda: kernels.kernel_dpo(*[jnp.ones(2)] * 4, coefficient=jnp.ones(3)), "coefficient"),
    ],
)
def test_wrong_use_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
