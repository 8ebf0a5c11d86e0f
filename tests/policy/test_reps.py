import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jdiv.mdp import environments, model
from jdiv.mdp.model import Mdp
from jdiv.policy.mpo import e_step
from jdiv.policy.reps import reps
from tests.checks import refused

ROWS, ACTIONS = 5, 4
RADII = np.array([1e-10, 1e-5, 1e-3, 0.03, 0.3, 1.0, 8.0])
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(ROWS, ACTIONS))
PRIOR = np.log(RNG.dirichlet(np.ones(ACTIONS), ROWS))


def kl(p, q):
    return np.sum(special.rel_entr(p, q), axis=-1)


@functools.cache
def process():
    mdp = environments.garnet(jax.random.key(3), states=5, actions=3, branches=3, discount=0.85)
    base = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    return model.dense(mdp), np.asarray(model.occupancy(mdp, jnp.asarray(base)))


@functools.cache
def steps_of_reps():
    mdp, reference = process()
    solve = jax.jit(jax.vmap(reps, in_axes=(None, None, 0)))
    return jax.tree.map(np.asarray, solve(mdp, np.log(reference), RADII[1:]))


def test_reps_meets_its_radius_without_gap():
    mdp, reference = process()
    found = steps_of_reps()
    assert found.active[:-1].all()
    assert not found.active[-1]
    np.testing.assert_allclose(found.divergence[:-1], RADII[1:-1], rtol=1e-8)
    assert np.abs(found.gap[:-1]).max() < 1e-11
    # The radius that does not bind leaves the optimum.
    best = model.optimum(mdp)
    np.testing.assert_allclose(np.exp(found.log_policy[-1]), best.policy, atol=1e-9)
    assert found.divergence[-1] < RADII[-1]
    for i, radius in enumerate(RADII[1:-1]):
        mass = np.asarray(model.occupancy(mdp, jnp.exp(found.log_policy[i])))
        assert kl(mass.ravel(), reference.ravel()) == pytest.approx(radius, rel=1e-4, abs=1e-10)
        # The form of the solution: p is q exp(advantage/eta).
        advantage = np.asarray(model.action_values(mdp, found.value[i])) - found.value[i][:, None]
        tilted = np.log(reference) + advantage / found.temperature[i]
        np.testing.assert_allclose(mass, np.exp(tilted - special.logsumexp(tilted)), atol=1e-11)


def test_reps_minimizes_the_dual():
    mdp, reference = process()
    found = steps_of_reps()
    transition, reward, start = (np.asarray(x) for x in (mdp.transition, mdp.reward, mdp.start))
    i = 3

    def dual(x):
        eta, value = np.exp(x[0]), x[1:]
        advantage = reward + 0.85 * transition @ value - value[:, None]
        soft = special.logsumexp(np.log(reference) + advantage / eta)
        return eta * RADII[1 + i] + eta * soft + 0.15 * start @ value

    best = optimize.minimize(dual, np.zeros(6), method="BFGS", options={"gtol": 1e-9})
    assert found.dual[i] == pytest.approx(best.fun, abs=1e-9)
    assert found.temperature[i] == pytest.approx(np.exp(best.x[0]), rel=1e-4)


def test_reps_of_one_state_is_a_reweighting():
    mdp = Mdp(np.ones((1, ACTIONS, 1)), VALUES[:1], 0.5, np.ones(1))
    by_process = jax.jit(reps)(mdp, PRIOR[:1], 0.1)
    by_row = jax.jit(e_step)(VALUES[:1], PRIOR[:1], 0.1)
    np.testing.assert_allclose(by_process.log_policy, by_row.log_policy, atol=1e-10)
    assert by_process.temperature == pytest.approx(float(by_row.temperature), rel=1e-9)
    assert by_process.dual == pytest.approx(float(by_row.dual), rel=1e-9)


def test_refusals():
    refused(ValueError, ["ref_logits", "shape"], lambda: reps(process()[0], PRIOR, 0.1))
    refused(
        ValueError, ["radius", "positive"],
        lambda: reps(process()[0], np.log(process()[1]), 0.0),
    )  # fmt: skip
