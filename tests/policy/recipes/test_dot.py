import statistics

import jax
import numpy as np
import pytest

from jdiv.policy.recipes.dot import truncated_lengths


def test_lengths_as_the_code_cuts_them():
    rng = np.random.default_rng(3)
    correct = np.ones((12, 16))
    correct[::3, 5] = 0
    lengths = rng.integers(100, 200, (12, 16)).astype(float)
    lengths[:, 0] = rng.integers(200, 2000, 12)
    cut = jax.jit(truncated_lengths)
    found = np.asarray(cut(correct, lengths))
    for right, before, after in zip(correct, lengths, found, strict=True):
        limit = int(statistics.mean(before) + 3 * statistics.stdev(before))
        for was, now in zip(before, after, strict=True):
            assert now == (limit if right.all() and was - limit >= 32 else was)
    assert (found < lengths).sum() > 3
    # No group of ten is cut, however long its longest answer is; one of eleven is.
    for size, shorter in ((10, False), (11, True)):
        lengths = np.ones((1, size))
        lengths[0, 0] = 1e6
        assert (np.asarray(cut(np.ones((1, size)), lengths)) < lengths).any() == shorter
    # An excess of the margin is enough: 95 is 23 above the limit.
    lengths = np.array([[5.0, 5.0, 5.0, 95.0]])
    for margin, last in ((23.0, 72.0), (24.0, 95.0)):
        assert cut(np.ones((1, 4)), lengths, scale=1.0, margin=margin)[0, 3] == last
    single = truncated_lengths(np.ones((1, 1)), np.full((1, 1), 9.0), scale=0.0, margin=0.0)
    assert single.tolist() == [[9.0]]
    with pytest.raises(ValueError, match="lengths"):
        truncated_lengths(np.ones((1, 2)), np.array([[-1.0, 2.0]]))
