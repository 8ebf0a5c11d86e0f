import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.policy.awr import awr, awr_weights
from jdiv.policy.mpo import e_step

ROWS, ACTIONS = 5, 4


RADII = np.array([1e-10, 1e-5, 1e-3, 0.03, 0.3, 1.0, 8.0])


RNG = np.random.default_rng(0)


VALUES = RNG.normal(size=(ROWS, ACTIONS))


PRIOR = np.log(RNG.dirichlet(np.ones(ACTIONS), ROWS))


WEIGHTS = RNG.dirichlet(np.ones(ROWS))


@functools.cache
def reweighted():
    """By radius, and for other values and priors at the radius .3."""
    solve = jax.jit(jax.vmap(e_step, in_axes=(0, 0, 0, None)))
    cases = {
        "plain": (VALUES, PRIOR),
        "shifted": (1e6 * VALUES + 3.0, PRIOR),
        "small": (1e-12 * VALUES, PRIOR),
        "equal": (np.full_like(VALUES, 2.0), PRIOR),
        "zeros": (VALUES, np.where(VALUES.max(axis=1, keepdims=True) == VALUES, -np.inf, PRIOR)),
        "ties": (np.round(VALUES), np.zeros_like(PRIOR)),
        "unnormalised": (VALUES, PRIOR + 7.0),
    }
    names = ["plain"] * len(RADII) + list(cases)
    values, priors = (np.stack([cases[name][i] for name in names]) for i in (0, 1))
    radii = np.concatenate([RADII, np.full(len(cases), 0.3)])
    found = jax.tree.map(np.asarray, solve(values, priors, radii, WEIGHTS))
    by_radius = jax.tree.map(lambda x: x[: len(RADII)], found)
    return by_radius, {
        name: jax.tree.map(lambda x, i=i: x[len(RADII) + i], found) for i, name in enumerate(cases)
    }


OLD = np.log(RNG.dirichlet(np.ones(6)))


ADVANTAGE = RNG.normal(size=6)


def test_weights_of_regression_are_those_of_the_dual():
    found = reweighted()[0]
    temperature = found.temperature[4]
    weights = awr_weights(VALUES, temperature, limit=1e300)
    tilted = np.exp(PRIOR) * np.asarray(weights)
    expected = tilted / tilted.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(found.log_policy[4]), expected, atol=1e-12)
    # One sided: bad actions keep their weight, good ones are limited.
    limited = np.asarray(awr_weights(VALUES, 0.1))
    np.testing.assert_allclose(limited, np.minimum(np.exp(VALUES / 0.1), 20))
    gradient = jax.grad(
        lambda a: jnp.sum(awr(jnp.asarray(OLD), a, np.ones(6, bool), temperature=1.0).loss)
    )(jnp.asarray(ADVANTAGE))
    np.testing.assert_array_equal(gradient, 0)
