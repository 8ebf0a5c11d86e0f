import numpy as np
from scipy import stats

from jdiv.policy.recipes.dler import dler_advantages, dler_rewards


def test_dler():
    rewards = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    lengths = np.array([[10, 30, 10, 30], [10, 10, 10, 20]])
    cut = np.asarray(dler_rewards(rewards, lengths, limit=20))
    assert np.array_equal(cut, [[1, 0, 0, 0], [1, 1, 1, 1]])
    found = np.asarray(dler_advantages(cut))
    centred = cut - cut.mean(axis=1, keepdims=True)
    assert np.allclose(found, centred / np.sqrt((centred**2).mean()))
    assert not np.any(dler_advantages(np.ones((2, 3))))
    # The parent: of one group alone it is GRPO's.
    one = np.asarray(dler_advantages(cut[:1]))
    assert np.allclose(one, stats.zscore(cut[0]))
