import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.recipes.dmpo import dmpo_loss, dmpo_target


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def test_loss_and_gradient_by_finite_differences():
    rng = np.random.default_rng(5)
    log_probs = np.log(rng.uniform(0.01, 1, (3, 4, 5)))
    mask = np.arange(5) < rng.integers(1, 6, (3, 4, 1))
    mask[1, 2], mask[2] = False, False
    rewards = rng.normal(size=(3, 4))
    loss = jax.jit(lambda x: dmpo_loss(x, rewards, mask, temperature=0.7))

    def expected(log_probs, k):
        inside = [i for i in range(4) if mask[k, i].any()]
        if not inside:
            return 0.0
        p = softmax(np.array([rewards[k, i] / 0.7 for i in inside]))
        q = softmax(np.array([log_probs[k, i][mask[k, i]].mean() for i in inside]))
        return ((p - q) ** 2).mean()

    found = loss(np.where(mask, log_probs, np.nan))
    np.testing.assert_allclose(found, [expected(log_probs, k) for k in range(3)], rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(loss(x))))(np.where(mask, log_probs, np.nan))
    for place in np.ndindex(log_probs.shape):
        step = np.zeros(log_probs.shape)
        step[place] = 1e-6
        rise = expected(log_probs + step, place[0]) - expected(log_probs - step, place[0])
        assert float(gradient[place]) == pytest.approx(rise / 2e-6, abs=1e-9)


def test_the_target_is_fitted_and_no_reference():
    """At the target there is no gradient, whatever another policy says; equal rewards are even."""
    rewards = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    target = np.asarray(dmpo_target(rewards, temperature=0.5))
    np.testing.assert_allclose(np.exp(target[0]), softmax(rewards[0] / 0.5), rtol=1e-12)
    np.testing.assert_allclose(np.exp(target[1]), 1 / 3, rtol=1e-12)
    every = np.full((2, 3, 1), True)

    @jax.jit
    def both(log_probs):
        whole = lambda x: jnp.sum(dmpo_loss(x, rewards, every, temperature=0.5))
        alone = dmpo_loss(log_probs[:, :1], rewards[:, :1], every[:, :1], temperature=0.5)
        return *jax.value_and_grad(whole)(log_probs), alone

    # One token an answer, any normalization.
    value, gradient, alone = both(target[..., None] - 9)
    assert abs(value) < 1e-25
    assert np.abs(gradient).max() < 1e-13
    assert not alone.any()
    # Far away the gradient stays finite.
    assert np.isfinite(both(np.array([[[-1e4], [0], [-3]]] * 2, float))[1]).all()
    with pytest.raises(ValueError, match="temperature"):
        dmpo_target(rewards, temperature=0.0)
