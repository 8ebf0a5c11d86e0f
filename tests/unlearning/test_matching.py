import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiv.unlearning import matching

RNG = np.random.default_rng(2)
X, Y, POINTS = RNG.normal(size=(12, 5)), RNG.normal(size=12), RNG.normal(size=(4, 5))
GONE = np.arange(12) < 3
RIDGE = 0.3


def fitted(keep):
    """Ridge regression on some of the points, by its normal equations."""
    x, y = X[keep], Y[keep]
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(5), x.T @ y)


def test_leave_out_is_retraining_for_squared_loss():
    everything, ones = np.ones(12, bool), np.ones(12)
    w = fitted(everything)
    masks = np.stack([GONE, *np.eye(12, dtype=bool)[:2], ~everything])
    change = jax.jit(jax.vmap(lambda m: matching.leave_out(X, X @ w - Y, ones, m, ridge=RIDGE)))(
        masks
    )
    for mask, own in zip(masks, np.asarray(change), strict=True):
        np.testing.assert_allclose(w + own, fitted(~mask), rtol=1e-11, atol=1e-13)
    attributions = np.asarray(jax.jit(
        lambda: matching.datamodel(X, X @ w - Y, ones, POINTS, ridge=RIDGE)
    )())  # fmt: skip
    for i in (0, 7):
        without = POINTS @ fitted(np.arange(12) != i)
        np.testing.assert_allclose(POINTS @ w - attributions[i], without, rtol=1e-10)
    # Of three at once the sum is not what retraining gives.
    additive = POINTS @ w - attributions[GONE].sum(axis=0)
    assert np.abs(additive - POINTS @ fitted(~GONE)).max() > 1e-2
    with pytest.raises(ValueError, match="must have the same shape"):
        matching.leave_out(X, Y[:3], ones, GONE, ridge=RIDGE)


def test_leave_out_is_a_newton_step_of_logistic_regression():
    y = np.where(Y > 0, 1.0, 0.0)
    w = RNG.normal(size=5)
    p = 1 / (1 + np.exp(-X @ w))

    @jax.jit
    def compute():
        def loss(v):
            each = jnp.logaddexp(0.0, X @ v) - y * (X @ v)
            return jnp.sum(jnp.where(GONE, 0, each)) + RIDGE * v @ v / 2

        hessian = jax.hessian(loss)(w)
        return matching.leave_out(X, p - y, p * (1 - p), GONE, ridge=RIDGE), hessian

    change, hessian = compute()
    np.testing.assert_allclose(hessian @ change, (p - y)[GONE] @ X[GONE], rtol=1e-10, atol=1e-13)


def test_datamodel_matching_has_a_gradient_for_the_model_alone():
    value, slopes = jax.jit(
        jax.value_and_grad(lambda a, b: matching.datamodel_matching(a, b).sum(), (0, 1))
    )(jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0]))
    assert value == pytest.approx(2.5)
    np.testing.assert_allclose(slopes, [[-1, 2], [0, 0]])


def test_margins_are_log_odds():
    logits = RNG.normal(size=(6, 4))
    labels = RNG.integers(4, size=6)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    own = p[np.arange(6), labels]
    find = lambda x: matching.margin(x, labels)
    found, slope = jax.jit(lambda x: (find(x), jax.grad(lambda x: find(x).sum())(x)))(logits)
    np.testing.assert_allclose(found, np.log(own / (1 - own)), rtol=1e-12)
    assert np.isfinite(slope).all()
    edges = matching.margin(jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]]), jnp.array([0, 0]))
    assert edges.tolist() == [np.inf, -np.inf]
    assert matching.margin(jnp.zeros((1, 1), jnp.float16), jnp.array([0])).dtype == jnp.float32


def test_klom_is_the_divergence_of_histograms():
    unlearned = np.concatenate([RNG.normal(size=(400, 3)), np.full((400, 1), 2.0)], axis=1)
    retrained = np.concatenate([RNG.normal(0.5, 1, size=(300, 3)), np.full((300, 1), 2.0)], axis=1)
    unlearned[0, 2] = 500.0
    find = jax.jit(lambda a, b, lowest: matching.klom(a, b, bins=10, lowest=lowest))
    exact, floored = (np.asarray(find(unlearned, retrained, x)) for x in np.array([0.0, 1e-5]))
    for i in range(3):
        a, b = (np.clip(x[:, i], -100, 100) for x in (unlearned, retrained))
        ends = min(a.min(), b.min()), max(a.max(), b.max())
        p, q = (np.histogram(x, bins=10, range=ends)[0] for x in (a, b))
        assert exact[i] == pytest.approx(stats.entropy(p, q), rel=1e-9)
        q = np.where(p > 0, np.maximum(q / q.sum(), 1e-5), q / q.sum())
        assert floored[i] == pytest.approx(stats.entropy(p, q), rel=1e-9)
    assert np.isinf(exact[2])
    assert np.isfinite(floored[2])
    assert exact[3] == floored[3] == 0
    bad = unlearned.copy()
    bad[0, 1] = np.nan
    assert np.isnan(np.asarray(find(bad, retrained, 0.0))).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="of the same points"):
        matching.klom(unlearned, retrained[:, :2])


def test_klom_nears_the_divergence_of_gaussians():
    x, y = RNG.normal(size=(2, 20_000, 1))
    y = 0.4 + 1.2 * y
    exact = -0.5 + np.log(1.2) + (1 + 0.4**2) / (2 * 1.2**2)  # of normal laws
    assert matching.klom(x, y, bins=60, lowest=1e-5)[0] == pytest.approx(exact, rel=0.05)
