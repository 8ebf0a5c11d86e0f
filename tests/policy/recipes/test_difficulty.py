import numpy as np
from scipy import stats

from jdiv.policy.recipes.difficulty import (
    difficulty_filter,
    kl_from_optimum,
    kl_to_optimum,
    learnability,
)


def test_the_filter_keeps_the_band_and_its_ends():
    rewards = (np.arange(10) < np.arange(11)[:, None]).astype(float)
    kept = difficulty_filter(rewards)
    assert np.array_equal(kept, (np.arange(11) >= 2) & (np.arange(11) <= 8))
    every = difficulty_filter(rewards, low=1e-9, high=1 - 1e-9)
    spread = rewards.std(axis=1) > 0
    assert np.array_equal(every, spread)  # what has a gradient


def test_kl_to_the_optimum():
    rng = np.random.default_rng(0)
    rate, beta = rng.uniform(0.001, 0.999, 50), 10 ** rng.uniform(-1, 1, 50)
    tilted = rate * np.exp(1 / beta)
    optimum = tilted / (1 - rate + tilted)
    forward = [stats.entropy([1 - p, p], [1 - q, q]) for p, q in zip(rate, optimum, strict=True)]
    backward = [stats.entropy([1 - q, q], [1 - p, p]) for p, q in zip(rate, optimum, strict=True)]
    closed = np.log(1 - rate + rate * np.exp(1 / beta)) - rate / beta
    found = np.asarray(kl_to_optimum(rate, beta))
    assert np.allclose(found, closed, rtol=1e-10)
    assert np.allclose(found, forward, rtol=1e-6)
    assert np.allclose(kl_from_optimum(rate, beta), backward, rtol=1e-6)
    assert not np.any(kl_to_optimum(np.array([0.0, 1.0]), 0.5))
    # Its limit, with the next order.
    next_order = 1 + (1 - 2 * rate) / 3e6
    ratio = kl_to_optimum(rate, 1e6) / learnability(rate, 1e6)
    assert np.allclose(ratio, next_order, rtol=1e-8)


def test_where_the_variance_is_a_lower_bound():
    """Six reference pass rates at beta 1."""
    rate = np.array([0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
    kl = np.asarray(kl_to_optimum(rate, 1.0))
    bound = learnability(rate, 1.0)
    assert np.allclose(kl, [0.0070, 0.0586, 0.1157, 0.1201, 0.0897, 0.0347], atol=5e-5)
    assert np.allclose(bound, [0.0050, 0.0450, 0.1050, 0.1250, 0.1050, 0.0450], atol=5e-5)
    assert np.array_equal(kl >= bound, [True, True, True, False, False, False])
    other = np.asarray(kl_from_optimum(rate, 1.0))
    assert (other < bound)[rate >= 0.5].all()
