import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.recipes.prioritized_kl import confidence, prioritized_weights


def test_confidence_is_what_is_left_of_the_largest_surprise():
    logits = np.random.default_rng(0).normal(size=(6, 5)) * 3
    logits[0], logits[1, 1:] = 0.0, -np.inf
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = 1 - np.log(1 / p.max(axis=-1)) / np.log(5)
    found = jax.jit(confidence)(logits)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    assert float(found[0]) == pytest.approx(0, abs=1e-15)
    assert float(found[1]) == 1
    half = jax.jit(confidence)(jnp.zeros((1, 7), jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert 0 <= float(half[0]) < 1e-6
    for wrong in (np.zeros(()), np.zeros((3, 1))):
        with pytest.raises(ValueError, match="V at least 2"):
            confidence(wrong)


def test_weights_are_powers_and_constants():
    """The numbers of the table: 150 and others, at .999, .99 and .95."""
    sure = np.array([0.999, 0.99, 0.95])
    table = {10: (0.9900, 0.9044, 0.5987), 150: (0.8606, 0.2215, 0.0005), 500: (0.6064, 0.0066, 0)}

    @jax.jit
    def both(sure, power):
        weights = lambda x: prioritized_weights(x, power=power)
        return weights(sure), jax.grad(lambda x: weights(x).sum())(sure)

    for power, expected in table.items():
        weights, gradient = both(sure, float(power))
        np.testing.assert_allclose(weights, expected, atol=6e-5)
        assert not gradient.any()
    assert both(np.array([0.0, 1.0, 0.5]), 0.0)[0].tolist() == [1.0, 1.0, 1.0]
    assert both(np.array([0.0, 1.0, 0.5]), 1.0)[0].tolist() == [0.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="confidence must be"):
        prioritized_weights(np.array([1.5]))
    with pytest.raises(ValueError, match="power must be"):
        prioritized_weights(np.array([0.5]), power=-1.0)
