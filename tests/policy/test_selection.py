import jax
import numpy as np
import pytest

from jdiv.policy.selection import kth_largest


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kth_largest_is_that_of_a_sorted_list(dtype):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 12)).astype(dtype) * 10.0 ** rng.integers(-30, 30, (20, 12))
    scores = scores.astype(dtype)
    scores[:, 3] = scores[:, 5]  # ties
    scores[0, :4] = [0.0, -0.0, np.inf, -np.inf]
    eligible = rng.uniform(size=scores.shape) < 0.8
    find = jax.jit(jax.vmap(kth_largest, (0, 0, None)))
    for count in (1, 4, 12):
        for row, keep, found in zip(scores, eligible, find(scores, eligible, count), strict=True):
            descending = np.sort(row[keep])[::-1]
            expected = descending[count - 1] if count <= len(descending) else -np.inf
            assert found == expected
