import jax
import numpy as np

from jdiv.mdp import environments


def test_garnets_have_different_successors_and_the_sizes_asked_for():
    draw = jax.jit(jax.vmap(lambda key: environments.garnet(key, states=9, actions=2, branches=5)))
    drawn = draw(jax.random.split(jax.random.key(0), 50))
    assert drawn.successor.shape == (50, 9, 2, 5)
    for row in np.asarray(drawn.successor).reshape(-1, 5):
        assert len(set(row)) == 5
    np.testing.assert_allclose(drawn.probability.sum(-1), 1, atol=1e-15)
    # Gaps between four sorted uniform numbers: each has mean 1/5 and standard deviation .163.
    error = 0.163 / np.sqrt(50 * 9 * 2)
    np.testing.assert_allclose(drawn.probability.mean((0, 1, 2)), 0.2, atol=4.5 * error)
    counts = np.bincount(np.asarray(drawn.successor).ravel(), minlength=9)
    np.testing.assert_allclose(counts / counts.sum(), 1 / 9, atol=0.01)
