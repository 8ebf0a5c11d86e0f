import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.alignment import margins

# f'(0), f''(0), minimiser of p f(x) + (1 - p) f(-x) at p = .8 and .6, least f''.
LOGIT = np.log([4.0, 1.5])
MARGINS = {
    "logistic": (-0.5, 0.25, LOGIT, 0.0),
    "squared": (-2, 2, [0.6, 0.2], 2.0),
    "exponential": (-1, 1, LOGIT / 2, 0.0),
    "truncated_quadratic": (-2, 2, [0.6, 0.2], 0.0),
    "savage": (-0.25, 0.125, LOGIT, -0.1202),
    "hinge": (-1, 0, [1.0, 1.0], 0.0),
}


def test_margins():
    assert set(MARGINS) == set(margins.TABLE)
    x = np.linspace(-8, 8, 160_001)

    @jax.jit
    def compute(x):
        second = lambda f: jax.vmap(jax.grad(jax.grad(f)))(x)
        return {name: (f(x), jax.vmap(jax.grad(f))(x), second(f)) for name, f in
                margins.TABLE.items()}  # fmt: skip

    for name, (value, slope, curvature) in jax.tree.map(np.asarray, compute(x)).items():
        at_zero, bend, fits, least = MARGINS[name]
        assert (slope[80_000], curvature[80_000]) == pytest.approx((at_zero, bend))
        for p, fit in zip((0.8, 0.6), fits, strict=True):
            risk = p * value + (1 - p) * value[::-1]
            assert x[risk.argmin()] == pytest.approx(fit, abs=1e-4)
        assert curvature.min() == pytest.approx(least, abs=5e-4)


def test_robust_is_unbiased_under_flips():
    x = jnp.linspace(-5.0, 5.0, 11)
    of_labels = margins.robust(0.3)
    mean = 0.7 * of_labels(x) + 0.3 * of_labels(-x)
    np.testing.assert_allclose(mean, margins.logistic(x), rtol=1e-12)


def test_exo_and_label_smoothed_are_two_directions():
    """Both have their minimum where sigmoid(x) = 1 - e, at 0 and at the entropy of e."""
    at = jnp.log(jnp.array(0.9 / 0.1))
    assert jax.jit(margins.exo(0.1))(at) == pytest.approx(0, abs=1e-15)
    entropy = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert margins.label_smoothed(0.1)(at) == pytest.approx(entropy)
    for margin in (margins.exo(0.1), margins.label_smoothed(0.1)):
        assert jax.jit(jax.grad(margin))(at) == pytest.approx(0, abs=1e-12)
