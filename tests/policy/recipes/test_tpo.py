import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiv.policy.recipes.tpo import group_forward_kl, tpo_target


def test_group_forward_kl():
    rng = np.random.default_rng(1)
    log_probs = 30 * rng.normal(size=(3, 5))
    rewards = rng.uniform(size=(3, 5)) * (rng.uniform(size=(3, 5)) < 0.7)
    rewards[2] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = rewards / rewards.sum(axis=1, keepdims=True)
        target = np.log(np.where(rewards > 0, shares, 0))
    total = lambda x, target: jnp.sum(group_forward_kl(x, target))
    loss = np.asarray(group_forward_kl(log_probs, target))
    gradient = np.asarray(jax.grad(total)(log_probs, target))
    p = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    for k in range(2):
        q = rewards[k] / rewards[k].sum()
        assert loss[k] == pytest.approx(stats.entropy(q, p[k]), rel=1e-9)
        assert np.allclose(gradient[k], p[k] - q, rtol=1e-9, atol=1e-12)
    assert loss[2] == 0  # no reward, no target
    assert not gradient[2].any()
    # The fixed point: the target itself, whatever the normalization.
    at_target = np.log(rewards[:2] + 1e-3)
    there = at_target - np.log(np.exp(at_target).sum(axis=1, keepdims=True))
    assert np.allclose(jax.grad(total)(at_target + 4.0, there), 0, atol=1e-14)
    assert abs(total(at_target + 4.0, there)) < 1e-13


def test_tpo_target_is_the_old_policy_tilted():
    old, utilities = np.random.default_rng(2).normal(size=(2, 4, 3))
    q = np.exp(old) * np.exp(utilities)
    expected = q / q.sum(axis=1, keepdims=True)
    assert np.allclose(np.exp(tpo_target(old, utilities)), expected)
    equal = np.exp(tpo_target(old, np.ones_like(old)))
    assert np.allclose(equal, np.exp(old) / np.exp(old).sum(axis=1, keepdims=True))
