import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.clipped import ppo_clip
from jdiv.policy.recipes.anchored_policy_optimization import anchored_policy_optimization, support
from jdiv.policy.recipes.tpo import group_forward_kl
from tests.checks import refused


def batch(seed=0):
    rng = np.random.default_rng(seed)
    log_probs, coverage = np.log(rng.uniform(0.05, 0.95, (2, 6, 4)))
    old, old_coverage = (x + 0.3 * rng.normal(size=x.shape) for x in (log_probs, coverage))
    mask = np.arange(4) < rng.integers(1, 5, (6, 1))
    return log_probs, old, coverage, old_coverage, rng.normal(size=6), mask


def test_it_pushes_and_pulls_on_errors_only():
    log_probs, old, coverage, old_coverage, advantages, mask = batch()
    wide = np.broadcast_to(advantages[:, None], mask.shape)
    parent = ppo_clip(log_probs, old, wide, mask).loss
    plain = anchored_policy_optimization(
        log_probs, old, coverage, old_coverage, advantages, mask, pull=0.0
    )
    assert np.allclose(plain.loss, parent, rtol=1e-14)

    def total(log_probs, coverage):
        out = anchored_policy_optimization(
            log_probs, old, coverage, old_coverage, advantages, mask, push=2.0, pull=0.5
        )
        return jnp.sum(out.loss), out.loss

    (by_token, by_coverage), loss = jax.grad(total, (0, 1), has_aux=True)(log_probs, coverage)
    wrong = mask & (advantages < 0)[:, None]
    relative = np.exp(coverage - old_coverage)
    pulled = 2 * parent + 0.5 * wide * relative
    assert np.allclose(loss, np.where(wrong, pulled, parent), rtol=1e-13)
    assert (by_token[wrong] >= 0).all()  # down
    assert (by_coverage[wrong] < 0).all()  # up
    assert not by_coverage[~wrong].any()


def test_support():
    logits = jnp.array([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 0.0, 1.0]])
    assert np.array_equal(support(logits, size=2), [[0, 1, 0, 1], [1, 1, 0, 1]])
    refused(ValueError, ["size", "4"], lambda: support(logits, size=5))


@pytest.mark.parametrize("far", [80.0, -80.0])
def test_finite_at_the_extremes(far):
    log_probs, old, coverage, old_coverage, advantages, mask = batch(4)
    old[0] = log_probs[0] + far
    mask[1] = False
    for x in (log_probs, old, coverage):
        x[~mask] = np.nan
    value, gradient = jax.value_and_grad(
        lambda x: jnp.sum(
            anchored_policy_optimization(x, old, coverage, old_coverage, advantages, mask).loss
        )
    )(log_probs)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (log_probs, old, coverage, old_coverage)]
    out = anchored_policy_optimization(
        *half, jnp.asarray(advantages, jnp.bfloat16), jnp.asarray(mask)
    )
    assert out.loss.dtype == jnp.float32
    single = group_forward_kl(jnp.array([[far]]), jnp.zeros((1, 1)))
    assert np.array_equal(single, [0.0])
