import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.recipes.haepo import haepo
from tests.policy.batches import summed


def test_haepo_over_an_enumeration_is_the_objective():
    rng = np.random.default_rng(9)
    logits, reference, rewards = rng.normal(size=(3, 6))
    log_p, log_ref = (x - np.log(np.exp(x).sum()) for x in (logits, reference))
    p = np.exp(log_p)
    weights = {"entropy_weight": 0.3, "kl_weight": 0.2}
    out, gradient = summed(haepo, logits, reference, rewards, **weights)
    kl, entropy = (p * (log_p - log_ref)).sum(), -(p * log_p).sum()
    expected = -p @ rewards - 0.3 * entropy + 0.2 * kl
    assert float(out.terms.sum()) == pytest.approx(expected, rel=1e-12)
    assert float(out.entropy) == pytest.approx(entropy)
    assert float(out.kl) == pytest.approx(kl)

    def naive(logits):
        log_w = jax.nn.log_softmax(logits)
        return jnp.exp(log_w) @ (-rewards + 0.3 * log_w + 0.2 * (log_w - log_ref))

    assert np.allclose(gradient, jax.grad(naive)(jnp.asarray(logits)), rtol=1e-10, atol=1e-14)
    _, plain = summed(haepo, logits, reference, rewards)
    assert np.allclose(plain, -p * (rewards - p @ rewards), rtol=1e-10)


def test_haepo_over_samples_counts_the_policy_twice():
    """A sample of 7 of one arm and 3 of the other: weights as pi^2, greedier than the mean."""
    taken = np.array([0] * 7 + [1] * 3)
    log_p = np.log(np.array([0.7, 0.3]))[taken]
    rewards = np.array([1.0, 0.0])[taken]
    out = haepo(log_p, log_p, rewards)
    assert float(-out.terms.sum()) == pytest.approx(0.49 / 0.58)
    assert rewards.mean() < 0.49 / 0.58
