import jax
import jax.numpy as jnp
import numpy as np

from jdiv.policy.awr import awr, awr_weights
from tests.checks import refused

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(5, 4))
OLD = np.log(RNG.dirichlet(np.ones(6)))
ADVANTAGE = RNG.normal(size=6)


def test_weights_are_limited_from_above_and_constant():
    # One sided: bad actions keep their weight, good ones are limited.
    limited = np.asarray(awr_weights(VALUES, 0.1))
    np.testing.assert_allclose(limited, np.minimum(np.exp(VALUES / 0.1), 20))
    gradient = jax.grad(
        lambda a: jnp.sum(awr(jnp.asarray(OLD), a, np.ones(6, bool), temperature=1.0).loss)
    )(jnp.asarray(ADVANTAGE))
    np.testing.assert_array_equal(gradient, 0)


def test_refusals():
    refused(ValueError, ["temperature"], lambda: awr_weights(OLD, 0.0))
    refused(ValueError, ["limit"], lambda: awr_weights(OLD, 1.0, limit=0.0))
