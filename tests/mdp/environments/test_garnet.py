import itertools
from functools import partial

import jax
import numpy as np
from scipy import stats

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


def test_all_ordered_choices_of_successors_are_equally_likely():
    """All 60 of three out of five, and all 24 orders of four out of four."""
    for states, branches in ((5, 3), (4, 4)):
        make = partial(environments.garnet, states=states, actions=6000, branches=branches)
        drawn = np.asarray(jax.jit(make)(jax.random.key(1)).successor).reshape(-1, branches)
        number = drawn @ states ** np.arange(branches)
        rows = np.array(list(itertools.permutations(range(states), branches)))
        counts = [np.sum(number == one) for one in rows @ states ** np.arange(branches)]
        assert sum(counts) == len(drawn)
        assert stats.chisquare(counts).pvalue > 0.01


def test_garnets_take_the_memory_of_what_they_are():
    """Twice the process itself at 50,000 states; `[S, A, S]` would be a thousand times that."""
    make = jax.jit(partial(environments.garnet, states=50_000, actions=10, branches=5))
    memory = make.lower(jax.random.key(0)).compile().memory_analysis()
    process = 50_000 * 10 * (5 * (4 + 8) + 8)
    assert memory.output_size_in_bytes < 1.1 * process
    assert memory.temp_size_in_bytes < 3 * process
