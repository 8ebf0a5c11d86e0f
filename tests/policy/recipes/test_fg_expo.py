import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiv.policy.recipes.fg_expo import fg_expo_coefficient, fg_expo_weights


def test_fg_expo():
    rate = jnp.array([0.0, 0.3, 0.5, 0.7, 1.0])
    weights = np.asarray(fg_expo_weights(rate, width=0.2))
    assert weights.mean() == pytest.approx(1)
    assert np.allclose(weights, weights[::-1])
    assert (np.diff(weights)[:2] > 0).all()
    assert weights[0] / weights[2] == pytest.approx(stats.norm.pdf(2.5) / stats.norm.pdf(0))
    assert np.allclose(fg_expo_weights(rate, width=np.inf), 1)
    assert np.allclose(fg_expo_weights(jnp.array([0.0, 1.0]), width=1e-4), 1)
    between = [
        float(fg_expo_coefficient(jnp.full(3, a), low=0.1, high=0.4)) for a in np.linspace(0, 1, 11)
    ]
    assert between[0] == pytest.approx(0.1)
    assert between[-1] == pytest.approx(0.4)
    assert (np.diff(between) > 0).all()
