import statistics

import numpy as np
import pytest
from scipy import stats

from jdiv.policy.recipes.arlcp import arlcp_rewards


def test_arlcp():
    rng = np.random.default_rng(1)
    correct = (rng.uniform(size=(6, 5)) < 0.6).astype(float)
    correct[0], correct[1] = 0, [0, 0, 1, 0, 0]
    lengths, reflections = rng.integers(100, 999, (6, 5)), rng.integers(0, 120, (6, 5))
    found = np.asarray(arlcp_rewards(correct, lengths, reflections))
    for k in range(6):
        right = correct[k] > 0
        for i in range(5):
            if not right[i]:
                assert found[k, i] == 0
                continue
            scores = []
            for x in (reflections[k], lengths[k]):
                of_right = [float(v) for v in x[right]]
                spread = statistics.stdev(of_right) if len(of_right) > 1 else 1.0
                scores.append(stats.logistic.cdf((x[i] - statistics.mean(of_right)) / spread))
            weight = 0.05 if reflections[k, i] <= 40 else 0.1 if reflections[k, i] <= 80 else 0.15
            expected = 1 - weight * scores[0] - (0.2 - weight) * scores[1]
            assert found[k, i] == pytest.approx(expected)
    alike = arlcp_rewards(np.ones((1, 3)), np.full((1, 3), 7), np.full((1, 3), 90))
    assert np.allclose(alike, 0.9)  # nobody is above average
