"""The building blocks against mpmath, in the corners they exist for."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jdiv import numerics


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_second_divided_difference(dtype):
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-6, 1.5, size=(400, 1))
    points = (rng.normal(size=(400, 1)) + scales * rng.normal(size=(400, 3))).astype(dtype)
    points[::5, 2] = points[::5, 0]  # coinciding points
    points[::25, 1] = points[::25, 0]
    ours = numerics.exp_difference_2(*jnp.array(points).T)
    with mp.workdps(80):
        for row, value in zip(points, np.asarray(ours), strict=True):
            # Coinciding points are told apart by 1e-30, which changes nothing at these digits.
            a, b, c = (mp.mpf(float(x)) + k * mp.mpf(10) ** -30 for k, x in enumerate(row))
            exact = mp.e**a / ((a - b) * (a - c)) + mp.e**b / ((b - a) * (b - c))
            exact += mp.e**c / ((c - a) * (c - b))
            np.testing.assert_allclose(value, float(exact), rtol=200 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_phi_functions(dtype):
    x = np.concatenate([[0.0], *(s * 10.0 ** np.linspace(-9, 1.8, 60) for s in (1, -1))]).astype(
        dtype
    )
    with mp.workdps(60):
        exact = [[mp.mpf(1), mp.mpf(1) / 2]]
        for v in map(lambda y: mp.mpf(float(y)), x[1:]):
            exact.append([mp.expm1(v) / v, (mp.expm1(v) - v) / v**2])
    exact = np.array([[float(v) for v in row] for row in exact])
    rtol = 20 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(numerics.phi_1(jnp.array(x)), exact[:, 0], rtol=rtol)
    np.testing.assert_allclose(numerics.phi_2(jnp.array(x)), exact[:, 1], rtol=rtol)


def test_derivatives_of_phi_functions():
    for f in (numerics.phi_1, numerics.phi_2):
        for x in (-3.0, -0.9, -1e-3, 0.0, 1e-3, 1.5):
            expected = (f(jnp.float64(x + 1e-5)) - f(jnp.float64(x - 1e-5))) / 2e-5
            np.testing.assert_allclose(jax.grad(f)(x), expected, rtol=1e-9)


def test_derivatives_of_divided_differences_where_points_coincide():
    gradient = jax.grad(numerics.exp_difference, (0, 1))(0.3, 0.3)
    np.testing.assert_allclose(gradient, [np.exp(0.3) / 2] * 2, rtol=1e-14)
    gradient = jax.grad(numerics.exp_difference_2, (0, 1, 2))(0.3, 0.3, 0.3)
    np.testing.assert_allclose(gradient, [np.exp(0.3) / 6] * 3, rtol=1e-14)


@pytest.mark.parametrize("c", [-2.0, -1e-9, 0.0, 1e-9, 1e-3, 0.7])
def test_deformed_logarithm_and_its_inverse(c):
    x = jnp.array([-0.4, -1e-6, 0.0, 1e-6, 0.3])
    np.testing.assert_allclose(numerics.scaled_log1p(numerics.scaled_expm1(x, c), c), x, rtol=1e-12)
    with mp.workdps(40):
        exact = [float(mp.log1p(mp.mpf(c) * mp.mpf(float(v))) / c) if c else float(v) for v in x]
    np.testing.assert_allclose(numerics.scaled_log1p(x, c), exact, rtol=1e-13)


def test_inverses():
    x = jnp.array([-50.0, -2.0, 0.0, 0.9, 1.1, 30.0, 1e4])
    y = numerics.log_wright_omega(x)
    with mp.workdps(40):
        for v, w in zip(x, y, strict=True):
            exact = mp.findroot(lambda z, v=v: z + mp.e**z - mp.mpf(float(v)), float(w))
            np.testing.assert_allclose(w, float(exact), rtol=1e-12, atol=1e-15)
    r = jnp.array([0.0, 1e-18, 1e-6, 0.3, 4.0, 500.0])
    root = numerics.exp_residual_root(r)
    assert jnp.all(root <= 0)
    np.testing.assert_allclose(numerics.exp_residual(root), r, rtol=1e-13)
    positive = jnp.array([1e-12, 0.1, 5.0, 300.0])
    np.testing.assert_allclose(jax.nn.softplus(numerics.log_expm1(positive)), positive, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_inverses_take_back_what_is_known_everywhere(dtype):
    eps = jnp.finfo(dtype).eps
    y = np.concatenate([np.linspace(-4, 3, 701), np.linspace(-50, 80, 131)])
    with mp.workdps(60):
        x = np.array([float(mp.mpf(v) + mp.e ** mp.mpf(v)) for v in y])
        rounded = x.astype(dtype)
        lost = np.abs(rounded - x) / (1 + np.exp(y))
    error = np.abs(np.asarray(numerics.log_wright_omega(jnp.asarray(rounded)), np.float64) - y)
    assert np.all(error <= lost + 2 * eps * np.maximum(np.abs(y), 1))

    x = -np.concatenate([np.linspace(0.01, 4, 400), 10.0 ** np.linspace(-12, 3, 151)])
    with mp.workdps(60):
        r = [float(mp.expm1(mp.mpf(v)) - mp.mpf(v)) for v in x]
    root = numerics.exp_residual_root(jnp.asarray(np.array(r, dtype)))
    np.testing.assert_allclose(np.asarray(root, np.float64), x, rtol=3 * eps)


def test_log_softmax_gradient_where_one_probability_is_nearly_one():
    """The mode's gradient is minus the sum of the others, not 1 - p, which rounds to 0."""
    x = jnp.array([0.0, -60.0, -70.0])
    ours = jax.grad(lambda x: numerics.log_softmax(x)[0])(x)
    small = np.exp([-60.0, -70.0])
    np.testing.assert_allclose(ours, [small.sum(), -small[0], -small[1]], rtol=1e-13)
    naive = jax.grad(lambda x: jax.nn.log_softmax(x)[0])(x)
    assert naive[0] == 0


def test_log_ratio_of_nearly_equal_logits():
    """1e-10 apart, the naive ratio has lost ten digits and this one two."""
    rng = np.random.default_rng(1)
    p = 20 * rng.normal(size=30)
    q = p + 1e-10 * rng.normal(size=30)
    with mp.workdps(50):
        softmax = lambda z: [mp.e ** mp.mpf(float(v)) for v in z]
        a, b = softmax(p), softmax(q)
        exact = [
            float(mp.log(x / mp.fsum(a)) - mp.log(y / mp.fsum(b)))
            for x, y in zip(a, b, strict=True)
        ]
    log_p, log_q, t = numerics.log_ratio(jnp.array(p), jnp.array(q))
    exact = np.array(exact)
    scale = np.max(np.abs(exact))
    assert np.max(np.abs(t - exact)) < 1e-9 * scale
    assert np.max(np.abs((log_p - log_q) - exact)) > 1e-6 * scale
