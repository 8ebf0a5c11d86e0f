import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.recipes.safe import (
    SAFE_PHASES,
    SafeState,
    safe_control,
    safe_penalty,
    safe_penalty_asymmetric,
    softmin,
)


def test_softmin():
    values = np.array([1.0, 2.0])
    found = [float(softmin(values, temperature=t)) for t in (1e-4, 0.3, 100.0)]
    assert found == pytest.approx([1.0, 1.1974, 1.4988], abs=1e-4)


def test_safe_as_described_and_as_released():
    kl, entropy = jnp.array([0.2, 0.5, 0.9]), jnp.array([0.1, 1.0, 9.0])
    expected = 0.1 * np.array([0, 0.2, 0.6]) ** 2 * np.array([10, 2 / 1.1, 0.5])
    slopes = 0.2 * np.array([0, 0.2, 0.6]) * np.array([10, 2 / 1.1, 0.5])
    for as_released in (False, True):
        total = lambda kl, r=as_released: jnp.sum(safe_penalty(kl, entropy, 0.3, as_released=r))
        assert float(total(kl)) == pytest.approx(expected.sum())
        slope = jax.grad(total)(kl)
        assert np.allclose(slope, 0 if as_released else slopes)
    rising = safe_penalty_asymmetric(jnp.array([0.4, 0.4, 0.2]), jnp.array([0.0, 0.9, 0.2]))
    assert np.allclose(rising, [0.001 + 5 * 0.008**2, 0.001, 0])


def test_safe_control():
    zeros = SafeState(*[jnp.zeros(())] * 5)
    phase = SAFE_PHASES["plateau"]

    def advance(state, reward):
        return safe_control(state, jnp.asarray(0.5), reward, phase=phase)

    state, threshold = advance(zeros, jnp.asarray(0.0))
    error = -0.001
    assert float(state.kl) == pytest.approx(0.05)
    assert float(threshold) == pytest.approx((0.3 + (0.3 + 0.01 + 0.05) * error) * 0.8)
    _, thresholds = jax.lax.scan(advance, zeros, jnp.zeros(30000))
    assert float(thresholds[4999]) == pytest.approx((0.3 - 0.0003 - 0.05) * 0.8)
    assert thresholds.min() == pytest.approx(0.1)
    climbing, _ = jax.lax.scan(advance, zeros, jnp.arange(200.0))
    assert float(climbing.velocity) == pytest.approx(1, abs=1e-4)
    assert float(advance(climbing, climbing.reward + 1)[1]) == pytest.approx(0.6)
    # As described the penalty of the smoothed KL has a tenth of its gradient.
    slope = jax.grad(lambda kl: safe_control(
        zeros, kl, jnp.asarray(0.0), phase=phase)[0].kl)(jnp.asarray(0.5))  # fmt: skip
    assert float(slope) == pytest.approx(0.1)
