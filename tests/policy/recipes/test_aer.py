import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.recipes.aer import aer_coefficients, aer_scale


def test_aer_scale_rests_at_its_target_and_is_never_negative():
    at = functools.partial(aer_scale, initial_entropy=2.0, target=0.4, step_size=0.5)
    assert float(at(0.3, jnp.array(0.8))) == pytest.approx(0.3)
    assert float(at(0.3, jnp.array(0.5))) > 0.3 > float(at(0.3, jnp.array(1.0)))
    assert float(at(0.01, jnp.array(2.0))) == 0.0
    found = aer_coefficients(jnp.array([0.0, 0.5, 0.8, 1.0]), 2.0, rho=0.8)
    assert np.allclose(found, [1.6, 0.6, 0, 0])


def test_integral_control_holds_the_entropy_where_fixed_coefficients_do_not():
    """Softmax of ten actions, one of reward 1: entropy bonus by control, and at constants."""
    reward = (jnp.arange(10) < 1).astype(float)
    initial = jnp.log(10.0)

    def entropy(logits):
        log_p = jax.nn.log_softmax(logits)
        return -jnp.sum(jnp.exp(log_p) * log_p)

    @jax.jit
    @jax.vmap
    def late_entropy(scale, step_size):
        def step(carry, _):
            logits, scale = carry
            objective = lambda z: jax.nn.softmax(z) @ reward + scale * entropy(z)
            logits = logits + 0.5 * jax.grad(objective)(logits)
            scale = aer_scale(scale, entropy(logits), initial, step_size=step_size)
            return (logits, scale), entropy(logits)

        _, entropies = jax.lax.scan(step, (jnp.zeros(10), scale), length=3000)
        return entropies[-500:]

    held, weak, strong = late_entropy(jnp.array([0.0, 0.03, 3.0]), jnp.array([0.003, 0.0, 0.0])) / (
        0.4 * initial
    )
    assert np.abs(held - 1).max() < 0.05
    assert weak[-1] < 0.05
    assert strong[-1] > 2.0  # of at most 2.5
