"""Errors of selection against integrals over all answers; the posterior by conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jdiv.alignment import judges

RNG = np.random.default_rng(0)
LAWS = [(0.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.5, 0.3), (0.2, 0.7, 1.5, 0.3)]
"""Mean, variance, center, target."""


@pytest.mark.parametrize("law", LAWS)
def test_the_error_of_a_softmax_of_two_and_three_is_an_integral_over_all_of_them(law):
    mean, variance, center, target = law
    z, step = np.linspace(-8, 8, 161, retstep=True)
    p, y = stats.norm.pdf(z) * step, mean + variance**0.5 * z
    w, error = np.exp(-((y - center) ** 2) / 1.3), (y - target) ** 2
    pair = (w * error)[:, None] + (w * error), w[:, None] + w
    three = [x[:, :, None] + x_one for x, x_one in zip(pair, (w * error, w), strict=True)]
    two = p @ (pair[0] / pair[1]) @ p
    expected = [p @ error, two, np.einsum("i,j,k,ijk", p, p, p, three[0] / three[1], optimize=True)]
    of = lambda k: judges.softmax_error(*law, k, temperature=1.3)
    found = jax.vmap(of)(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("k", [1, 2, 30])
def test_the_error_of_the_best_is_an_integral_of_its_density(law, k):
    mean, variance, center, target = law
    answer = stats.norm(mean, variance**0.5)

    def density(y):
        away = abs(y - center)
        return (
            k
            * answer.pdf(y)
            * (1 - answer.cdf(center + away) + answer.cdf(center - away)) ** (k - 1)
        )

    of = lambda y: (y - target) ** 2 * density(y)
    expected = sum(
        integrate.quad(of, *ends, epsabs=1e-13)[0] for ends in ((-9, center), (center, 9))
    )
    assert judges.best_error(*law, k) == pytest.approx(expected, rel=1e-9)


def test_the_best_of_very_many_and_the_softmax_of_very_many():
    mean, variance, center, target = 0.2, 0.7, 0.5, 0.3
    k = 1e6
    alike = k * k * judges.best_error(mean, variance, target, target, k)
    assert alike == pytest.approx(np.pi * variance * np.exp(0.01 / variance), rel=1e-4)
    apart = judges.best_error(mean, variance, center, target, k)
    assert apart == pytest.approx((center - target) ** 2, rel=1e-4)
    found = judges.softmax_error(mean, variance, center, target, k, temperature=0.5)
    # N(mean, variance) times exp(-(y - center)^2 / T), normalized on a grid.
    y = np.linspace(-8, 8, 4001)
    tilted = stats.norm.pdf(y, mean, variance**0.5) * np.exp(-((y - center) ** 2) / 0.5)
    assert found == pytest.approx(tilted @ (y - target) ** 2 / tilted.sum(), rel=1e-5)


def test_the_posterior_is_the_joint_gaussian_given_the_answers():
    x, y, variance, ridge = RNG.normal(size=(4, 3)), RNG.normal(size=4), 0.3, 0.6
    prior = variance / ridge * np.eye(3)
    gain = prior @ x.T @ np.linalg.inv(x @ prior @ x.T + variance * np.eye(4))
    found = judges.posterior(x, y, variance=variance, ridge=ridge)
    np.testing.assert_allclose(found.mean, gain @ y, rtol=1e-10)
    np.testing.assert_allclose(found.covariance, prior - gain @ x @ prior, atol=1e-12)
    asked = RNG.normal(size=(2, 5, 3))
    mean, spread = found.predict(asked)
    nothing = judges.posterior(np.zeros((0, 3)), np.zeros(0), variance=variance, ridge=ridge)
    np.testing.assert_allclose(mean, asked @ gain @ y, rtol=1e-10)
    by_hand = [[q @ (prior - gain @ x @ prior) @ q for q in rows] for rows in asked]
    np.testing.assert_allclose(spread, variance + np.array(by_hand), rtol=1e-10)
    np.testing.assert_allclose(nothing.covariance, prior)


def test_selection_is_a_softmax_and_at_zero_the_best():
    rewards = np.array([[0.0, -1.0, -3.0], [2.0, 2.0, 1.0]], np.float32)
    found = np.exp(judges.select(rewards, temperature=np.array([2.0, 0.0])))
    soft = np.exp(rewards[0] / 2) / np.exp(rewards[0] / 2).sum()
    np.testing.assert_allclose(found, [soft, [0.5, 0.5, 0]], rtol=1e-6)
    # What is large or small does not overflow; one sample is selected.
    np.testing.assert_array_equal(judges.select(jnp.array([1e30]), temperature=1e-30), [0])
    slope = jax.grad(lambda x: judges.select(x, temperature=0.0)[1])(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(slope, 0)
    assert np.isnan(judges.select(jnp.array([0.0, jnp.nan]), temperature=0.0)).all()


def test_single_precision_is_close():
    law = [np.float32(x) for x in (0.2, 0.7, 1.5, 0.3)]
    exact = [float(x) for x in law]
    soft, best = judges.softmax_error(*law, 16, temperature=1.0), judges.best_error(*law, 16)
    assert soft.dtype == best.dtype == jnp.float32
    wanted = judges.softmax_error(*exact, 16, temperature=1.0), judges.best_error(*exact, 16)
    np.testing.assert_allclose([soft, best], wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: judges.select(jnp.zeros(2), temperature=-1.0), "temperature"),
        (lambda: judges.best_error(0.0, 0.0, 0.0, 0.0, 2.0), "variance"),
        (lambda: judges.best_error(0.0, 1.0, 0.0, 0.0, 0.5), "k must be at least 1"),
        (lambda: judges.best_error(*[jnp.ones(2)] * 5), "must be numbers"),
        (lambda: judges.softmax_error(0.0, 1.0, 0.0, 0.0, 2.0, temperature=0.0), "temperature"),
        (lambda: judges.posterior(jnp.ones((2, 1)), jnp.ones(3), variance=1, ridge=1), "features"),
        (lambda: judges.posterior(jnp.ones((2, 1)), jnp.ones(2), variance=1, ridge=0), "ridge"),
    ],
)
def test_wrong_use_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
