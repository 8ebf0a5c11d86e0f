import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiv import parallel
from jdiv.policy import shaping

# -------------------------------------------------------------------------------------- difficulty


def test_the_filter_keeps_the_band_and_its_ends():
    rewards = (np.arange(10) < np.arange(11)[:, None]).astype(float)
    kept = shaping.difficulty_filter(rewards)
    assert np.array_equal(kept, (np.arange(11) >= 2) & (np.arange(11) <= 8))
    every = shaping.difficulty_filter(rewards, low=1e-9, high=1 - 1e-9)
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
    found = np.asarray(shaping.kl_to_optimum(rate, beta))
    assert np.allclose(found, closed, rtol=1e-10)
    assert np.allclose(found, forward, rtol=1e-6)
    assert np.allclose(shaping.kl_from_optimum(rate, beta), backward, rtol=1e-6)
    assert not np.any(shaping.kl_to_optimum(np.array([0.0, 1.0]), 0.5))
    # Its limit, with the next order.
    next_order = 1 + (1 - 2 * rate) / 3e6
    ratio = shaping.kl_to_optimum(rate, 1e6) / shaping.learnability(rate, 1e6)
    assert np.allclose(ratio, next_order, rtol=1e-8)


def test_where_the_variance_is_a_lower_bound():
    """Six reference pass rates at beta 1."""
    rate = np.array([0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
    kl = np.asarray(shaping.kl_to_optimum(rate, 1.0))
    bound = shaping.learnability(rate, 1.0)
    assert np.allclose(kl, [0.0070, 0.0586, 0.1157, 0.1201, 0.0897, 0.0347], atol=5e-5)
    assert np.allclose(bound, [0.0050, 0.0450, 0.1050, 0.1250, 0.1050, 0.0450], atol=5e-5)
    assert np.array_equal(kl >= bound, [True, True, True, False, False, False])
    other = np.asarray(shaping.kl_from_optimum(rate, 1.0))
    assert (other < bound)[rate >= 0.5].all()


def test_fg_expo():
    rate = jnp.array([0.0, 0.3, 0.5, 0.7, 1.0])
    weights = np.asarray(shaping.fg_expo_weights(rate, width=0.2))
    assert weights.mean() == pytest.approx(1)
    assert np.allclose(weights, weights[::-1])
    assert (np.diff(weights)[:2] > 0).all()
    assert weights[0] / weights[2] == pytest.approx(stats.norm.pdf(2.5) / stats.norm.pdf(0))
    assert np.allclose(shaping.fg_expo_weights(rate, width=np.inf), 1)
    assert np.allclose(shaping.fg_expo_weights(jnp.array([0.0, 1.0]), width=1e-4), 1)
    between = [
        float(shaping.fg_expo_coefficient(jnp.full(3, a), low=0.1, high=0.4))
        for a in np.linspace(0, 1, 11)
    ]
    assert between[0] == pytest.approx(0.1)
    assert between[-1] == pytest.approx(0.4)
    assert (np.diff(between) > 0).all()


# -------------------------------------------------------------------------------------- confidence


def test_ace():
    advantages = jnp.array([1.0, -1.0, -1.0, -1.0])
    confidence = jnp.array([3.0, 3.0, 0.0, -40.0])
    found = shaping.ace_advantages(advantages, confidence, alpha=0.5)
    expected = [1.0, -(1 + 0.5 * np.log1p(np.exp(3))), -(1 + 0.5 * np.log(2)), -1.0]
    assert np.allclose(found, expected)
    rectified = shaping.ace_advantages(advantages, confidence, alpha=0.5, scale=jax.nn.relu)
    assert np.allclose(rectified, [1.0, -2.5, -1.0, -1.0])
    assert np.array_equal(shaping.ace_advantages(advantages, confidence, alpha=0.0), advantages)
    slope = jax.grad(lambda c: jnp.sum(shaping.ace_advantages(advantages, c)))(confidence)
    assert not slope.any()


# ------------------------------------------------------------------------------------------ length


def test_grpo_lambda_penalises_the_best_groups():
    correct = (np.arange(4) < np.array([1, 4, 0, 3, 2])[:, None]).astype(float)
    penalised = correct - 0.5
    found = np.asarray(shaping.grpo_lambda_rewards(correct, penalised, share=0.4))
    best = np.array([False, True, False, True, False])
    assert np.array_equal(found, np.where(best[:, None], penalised, correct))
    assert np.array_equal(shaping.grpo_lambda_rewards(correct, penalised, share=0.0), correct)
    assert np.array_equal(shaping.grpo_lambda_rewards(correct, penalised, share=1.0), penalised)


def test_dler():
    rewards = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    lengths = np.array([[10, 30, 10, 30], [10, 10, 10, 20]])
    cut = np.asarray(shaping.dler_rewards(rewards, lengths, limit=20))
    assert np.array_equal(cut, [[1, 0, 0, 0], [1, 1, 1, 1]])
    found = np.asarray(shaping.dler_advantages(cut))
    centred = cut - cut.mean(axis=1, keepdims=True)
    assert np.allclose(found, centred / np.sqrt((centred**2).mean()))
    assert not np.any(shaping.dler_advantages(np.ones((2, 3))))
    # The parent: of one group alone it is GRPO's.
    one = np.asarray(shaping.dler_advantages(cut[:1]))
    assert np.allclose(one, stats.zscore(cut[0]))


def test_arlcp():
    rng = np.random.default_rng(1)
    correct = (rng.uniform(size=(6, 5)) < 0.6).astype(float)
    correct[0], correct[1] = 0, [0, 0, 1, 0, 0]
    lengths, reflections = rng.integers(100, 999, (6, 5)), rng.integers(0, 120, (6, 5))
    found = np.asarray(shaping.arlcp_rewards(correct, lengths, reflections))
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
    alike = shaping.arlcp_rewards(np.ones((1, 3)), np.full((1, 3), 7), np.full((1, 3), 90))
    assert np.allclose(alike, 0.9)  # nobody is above average


# ---------------------------------------------------------------------------------------- progress


def test_spae():
    ends = shaping.step_potential(np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 0, 1]))
    assert np.array_equal(ends, [0.0, -1.0, 0.5, 1.0])
    potential = np.array([[0.1, 0.5, 0.95, 0.99, 0.4], [0.0, 0.1, 0.2, 0.3, 0.4]])
    advantages = np.array([1.0, -2.0])
    found = shaping.spae_advantages(advantages, potential, damping=0.5, shaping=0.0)
    assert np.allclose(found, [[1, 1, 1, 0.5, 0.5], [-2] * 5])
    gains = shaping.spae_advantages(advantages, potential, damping=0.0, shaping=2.0)
    assert np.allclose(
        gains - advantages[:, None], 2 * np.diff(potential, axis=1, prepend=potential[:, :1])
    )
    # What shaping adds telescopes.
    assert np.allclose(
        (gains - advantages[:, None]).sum(axis=1), 2 * (potential @ [-1, 0, 0, 0, 1])
    )
    parent = shaping.spae_advantages(advantages, potential, damping=0.0, shaping=0.0)
    assert np.array_equal(parent, np.repeat(advantages[:, None], 5, axis=1))


def test_the_same_batch_on_many_devices():
    rng = np.random.default_rng(2)
    rate = rng.uniform(size=8)
    rewards = (rng.uniform(size=(8, 4)) < rate[:, None]).astype(float)

    def whole(axis_name, rate, rewards):
        return (
            shaping.fg_expo_weights(rate, width=0.3, axis_name=axis_name),
            shaping.fg_expo_coefficient(rate, low=0.0, high=1.0, axis_name=axis_name),
            shaping.dler_advantages(rewards, axis_name=axis_name),
            shaping.grpo_lambda_rewards(rewards, rewards / 2, share=0.3, axis_name=axis_name),
        )

    mapped = jax.pmap(lambda *x: whole(parallel.BATCH, *x), axis_name=parallel.BATCH)
    expected = whole(None, rate, rewards)
    for one, many in zip(expected, mapped(rate[:, None], rewards[:, None]), strict=True):
        assert np.allclose(many.reshape(8, *one.shape[1:]) if one.ndim else many[0], one)


def test_one_answer_and_equal_rewards_are_finite():
    for rewards in (np.ones((3, 1)), np.zeros((3, 4)), jnp.ones((2, 2), jnp.bfloat16)):
        for found in (
            shaping.dler_advantages(rewards),
            shaping.arlcp_rewards(rewards, np.ones(rewards.shape), np.ones(rewards.shape)),
            shaping.fg_expo_weights(shaping.pass_rate(rewards), width=0.1),
        ):
            assert np.isfinite(found).all()
