import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.recipes.asymmetric_po import dads_weights, stcr_advantages


def test_weights_and_advantages_by_answer():
    """Each answer by itself; groups without and with right answers alone among them."""
    rng = np.random.default_rng(0)
    correct = (rng.uniform(size=(6, 5)) < 0.5).astype(float)
    correct[0], correct[1] = 0, 1
    lengths, advantages = rng.integers(1, 900, (6, 5)).astype(float), rng.normal(size=(6, 5))

    @jax.jit
    def both(correct, lengths, advantages):
        shaped = stcr_advantages(advantages, correct, lengths, coefficient=1e-3)
        released = stcr_advantages(advantages, correct, lengths)
        half = dads_weights(correct.astype(jnp.bfloat16))
        return dads_weights(correct), shaped, released, half

    weights, shaped, released, half = both(correct, lengths, advantages)
    for k in range(6):
        accuracy, right = correct[k].mean(), correct[k] > 0
        for i in range(5):
            weight = 1 - np.e ** (-np.e * accuracy) if right[i] and accuracy < 1 else 1.0
            assert weights[k, i] == pytest.approx(weight)
            factor = 1.0
            if not right[i] and right.any() and lengths[k, i] > lengths[k][right].mean():
                factor = 2 - 1.001 ** (lengths[k][right].mean() - lengths[k, i])
            assert shaped[k, i] == pytest.approx(factor * advantages[k, i])
            small = (
                2 - 1.00001 ** -max(0.0, lengths[k, i] - lengths[k][right].mean())
                if (factor != 1)
                else 1.0
            )
            assert released[k, i] == pytest.approx(small * advantages[k, i], rel=1e-12)
    assert half.dtype == jnp.float32
    assert (np.asarray(shaped) != advantages).any()
    with pytest.raises(ValueError, match="correct"):
        dads_weights(np.array([[2.0, 0.0]]))
