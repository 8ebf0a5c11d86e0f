import jax
import jax.numpy as jnp
import numpy as np

from jdiv.policy.recipes.ace import ace_advantages


def test_ace():
    advantages = jnp.array([1.0, -1.0, -1.0, -1.0])
    confidence = jnp.array([3.0, 3.0, 0.0, -40.0])
    found = ace_advantages(advantages, confidence, alpha=0.5)
    expected = [1.0, -(1 + 0.5 * np.log1p(np.exp(3))), -(1 + 0.5 * np.log(2)), -1.0]
    assert np.allclose(found, expected)
    rectified = ace_advantages(advantages, confidence, alpha=0.5, scale=jax.nn.relu)
    assert np.allclose(rectified, [1.0, -2.5, -1.0, -1.0])
    assert np.array_equal(ace_advantages(advantages, confidence, alpha=0.0), advantages)
    slope = jax.grad(lambda c: jnp.sum(ace_advantages(advantages, c)))(confidence)
    assert not slope.any()
