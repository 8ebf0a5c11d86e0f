import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.recipes.recap import recap_weights


def test_weights_as_equation_one():
    losses = np.random.default_rng(4).uniform(0.1, 2, (5, 8))
    weights = jax.jit(recap_weights)
    scores = []
    for x in losses:
        older, newer = x[:4], x[4:]
        scores.append(newer.mean() / older.mean() + newer.std() / (older.mean() + newer.mean()))
    for temperature in (5.0, 0.3):
        expected = np.exp(np.array(scores) / temperature)
        found = weights(losses, temperature=temperature)
        np.testing.assert_allclose(found, 5 * expected / expected.sum(), rtol=1e-12)
    # The scale of an objective does not matter, not even where its sums would overflow.
    scale = np.array([1, 1e-300, 1e300, 3, 7])[:, None]
    np.testing.assert_allclose(
        weights(scale * losses, temperature=0.3), weights(losses, temperature=0.3), rtol=1e-12
    )


def test_losses_of_zero():
    flat, zero, risen = np.ones(4), np.zeros(4), np.array([0.0, 0, 1, 1])
    weights = jax.jit(recap_weights)
    assert weights(np.stack([flat, zero])).tolist() == [1, 1]  # both stay as they are
    assert weights(np.stack([flat, risen, zero])).tolist() == [0, 3, 0]
    assert weights(np.stack([risen, risen])).tolist() == [1, 1]
    assert weights(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.float32
    for wrong in (np.ones((2, 3)), np.ones(4), -np.ones((2, 4))):
        with pytest.raises(ValueError, match="losses"):
            recap_weights(wrong)
