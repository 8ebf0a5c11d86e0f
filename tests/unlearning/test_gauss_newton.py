import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.unlearning import gauss_newton

RNG = np.random.default_rng(1)
WIDTH, N = 3, 4
RETAINED, FORGOTTEN = RNG.normal(size=(20, WIDTH)), RNG.normal(size=(5, WIDTH))
LABELS = RNG.integers(N, size=5)
WEIGHTS = RNG.normal(size=(WIDTH, N))


def forget_loss(w):
    return -jnp.mean(jax.nn.log_softmax(FORGOTTEN @ w)[np.arange(5), LABELS])


def curvature():
    """The Gauss-Newton matrix, one sample after the other, and the gradient."""
    logits = RETAINED @ WEIGHTS
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    each = [np.kron(np.outer(x, x), np.diag(q) - np.outer(q, q))
            for x, q in zip(RETAINED, p, strict=True)]  # fmt: skip
    logits = FORGOTTEN @ WEIGHTS
    q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.mean(each, axis=0), p, FORGOTTEN.T @ (np.eye(N)[LABELS] - q) / -5


def test_a_step_is_along_the_solved_gradient_and_within_the_radius():
    radii, dampings = np.array([1e-8, 0.1, 1e-6]), np.array([0.0, 0.0, 0.3])

    @jax.jit
    @jax.vmap
    def step(radius, damping):
        return gauss_newton.uphill(
            forget_loss, lambda w: RETAINED @ w, WEIGHTS, radius=radius, damping=damping,
            iterations=WIDTH * N,
        )  # fmt: skip

    found = jax.tree.map(np.asarray, step(radii, dampings))
    matrix, _, gradient = curvature()
    for i, damping in enumerate(dampings):
        x = np.linalg.pinv(matrix + damping * np.eye(WIDTH * N), rcond=1e-10) @ gradient.ravel()
        size = np.sqrt(2 * radii[i] / (x @ matrix @ x))
        move = (found.parameters[i] - WEIGHTS).ravel() / found.length[i]
        np.testing.assert_allclose(move, size * x, rtol=1e-6, atol=1e-9 * size)
    assert (found.kl <= radii).all()
    assert (found.gain > 0).all()
    assert found.kl[0] == pytest.approx(found.length[0] ** 2 * 1e-8, rel=1e-3)


def test_factors_are_exact_where_all_logits_are_alike():
    _, p, gradient = curvature()

    @jax.jit
    def compute():
        factors = gauss_newton.kronecker_factors(RETAINED, RETAINED @ WEIGHTS)
        alike = gauss_newton.kronecker_factors(RETAINED, jnp.ones((20, N)))
        at = lambda damping: gauss_newton.kronecker_step(
            gradient, factors, radius=0.02, damping=damping
        )
        return factors, alike, at(0.0), at(0.5)

    factors, alike, step, damped = jax.tree.map(np.asarray, compute())
    np.testing.assert_allclose(factors.inputs, RETAINED.T @ RETAINED / 20, rtol=1e-12)
    mean = np.mean([np.diag(q) - np.outer(q, q) for q in p], axis=0)
    np.testing.assert_allclose(factors.outputs, mean, rtol=1e-12, atol=1e-15)
    uniform = np.eye(N) / N - np.ones((N, N)) / N**2
    exact = np.mean([np.kron(np.outer(x, x), uniform) for x in RETAINED], axis=0)
    np.testing.assert_allclose(np.kron(*alike), exact, rtol=1e-12, atol=1e-15)
    product = np.kron(*factors)
    for found, damping in ((step, 0.0), (damped, 0.5)):
        x = np.linalg.pinv(product + damping * np.eye(WIDTH * N), rcond=1e-10) @ gradient.ravel()
        size = np.sqrt(0.04 / (x @ product @ x))
        np.testing.assert_allclose(found.ravel(), size * x, rtol=1e-9, atol=1e-12)
    still = gauss_newton.kronecker_step(jnp.zeros((WIDTH, N)), gauss_newton.Factors(*factors),
                                        radius=0.02)  # fmt: skip
    assert (still == 0).all()
    with pytest.raises(ValueError, match="gradient must be"):
        gauss_newton.kronecker_step(jnp.zeros((N, N)), gauss_newton.Factors(*factors), radius=0.1)
    with pytest.raises(ValueError, match="features must be"):
        gauss_newton.kronecker_factors(RETAINED, WEIGHTS)
