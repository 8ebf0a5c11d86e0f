import numpy as np

from jdiv.policy.recipes.spae import spae_advantages, step_potential


def test_spae():
    ends = step_potential(np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 0, 1]))
    assert np.array_equal(ends, [0.0, -1.0, 0.5, 1.0])
    potential = np.array([[0.1, 0.5, 0.95, 0.99, 0.4], [0.0, 0.1, 0.2, 0.3, 0.4]])
    advantages = np.array([1.0, -2.0])
    found = spae_advantages(advantages, potential, damping=0.5, shaping=0.0)
    assert np.allclose(found, [[1, 1, 1, 0.5, 0.5], [-2] * 5])
    gains = spae_advantages(advantages, potential, damping=0.0, shaping=2.0)
    assert np.allclose(
        gains - advantages[:, None], 2 * np.diff(potential, axis=1, prepend=potential[:, :1])
    )
    # What shaping adds telescopes.
    assert np.allclose(
        (gains - advantages[:, None]).sum(axis=1), 2 * (potential @ [-1, 0, 0, 0, 1])
    )
    parent = spae_advantages(advantages, potential, damping=0.0, shaping=0.0)
    assert np.array_equal(parent, np.repeat(advantages[:, None], 5, axis=1))
