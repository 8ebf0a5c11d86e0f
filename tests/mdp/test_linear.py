"""Values, occupancies and optima without a matrix are those of the dense solves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.divergences import generators
from jdiv.mdp import SparseMdp, environments, linear, model, occupancy

STATES = 60


def garnet():
    """A process that mixes in few steps."""
    return environments.garnet(jax.random.key(0), states=STATES, actions=2, branches=2)


def corridor():
    """A process that mixes slowly, and whose equations BiCGSTAB alone does not solve."""
    state = np.arange(STATES)
    sides = np.stack([np.maximum(state - 1, 0), np.minimum(state + 1, STATES - 1)], axis=-1)
    reward = np.zeros((STATES, 2))
    reward[0, 0], reward[-1, 1] = 0.1, 1.0
    return SparseMdp(
        jnp.asarray(np.stack([sides, sides], axis=1), jnp.int32),
        jnp.asarray(np.broadcast_to([[0.9, 0.1], [0.1, 0.9]], (STATES, 2, 2))),
        jnp.asarray(reward), 0.9, jnp.eye(STATES)[0],
    )  # fmt: skip


def answers(mdp, policy):
    """What depends on a linear solve, with the derivative of a value."""

    def mean_value(mdp):
        return jnp.mean(model.policy_value(mdp, policy))

    return {
        "value": model.evaluation(mdp, policy),
        "states": model.visitation(mdp, policy),
        "occupancy": model.occupancy(mdp, policy),
        "optimum": model.optimum(mdp),
        "gradient": jax.grad(lambda reward: mean_value(mdp._replace(reward=reward)))(mdp.reward),
    }


@functools.cache
def both():
    """Answers for two processes and two discounts, without a matrix and with it."""
    policy = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(2), STATES))
    made = [mdp._replace(discount=d) for mdp in (garnet(), corridor()) for d in (0.99, 0.9999)]
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *made)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for limit in (STATES - 1, STATES):
            patch.setattr(model, "MATRIX_STATES", limit)
            found.append(
                jax.jit(lambda mdps: jax.lax.map(lambda x: answers(x, policy), mdps))(stacked)
            )
    improve = jax.jit(lambda mdps: jax.lax.map(lambda x: model.optimum(x, evaluations=20), mdps))
    return *found, improve(stacked)


def test_values_and_occupancies_without_a_matrix():
    without, dense, _ = both()
    for name in ("value", "states"):
        assert without[name].converged.all()
        assert dense[name].converged.all()
        assert (without[name].iterations > 0).all()
        assert (dense[name].iterations == 0).all()
        assert (without[name].residual < 1e-12).all()
        for x, y in zip(without[name].solution, dense[name].solution, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-11 * np.abs(y).max())
    np.testing.assert_allclose(without["occupancy"], dense["occupancy"], atol=1e-11)
    np.testing.assert_allclose(without["occupancy"].sum((1, 2)), 1, rtol=1e-10)
    scale = np.abs(dense["gradient"]).max((1, 2), keepdims=True)
    assert (np.abs(without["gradient"] - dense["gradient"]) < 1e-10 * scale).all()


def test_both_kinds_of_policy_iteration_find_the_optimum():
    without, dense, modified = both()
    expected = dense["optimum"]
    for found in (without["optimum"], modified):
        np.testing.assert_array_equal(found.policy, expected.policy)
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-11)
        assert found.converged.all()
        assert (found.residual < 1e-12).all()
        assert (found.iterations < 200).all()


def test_what_does_not_converge_says_so(monkeypatch):
    """Two steps are too few, and so is any number for a NaN."""
    shift = jnp.roll(jnp.eye(7), 1, axis=0) * 0.999
    b = jnp.arange(7.0)

    @jax.jit
    def solve(b):
        f = lambda x: x - shift @ x
        return linear.solve(f, b, limit=1), linear.solve(f, b), linear.solve(f, b * jnp.nan)

    short, whole, nan = solve(b)
    assert not short.converged
    assert whole.converged
    np.testing.assert_allclose(whole.solution, np.linalg.solve(np.eye(7) - shift, b), rtol=1e-11)
    np.testing.assert_allclose(
        short.residual, np.abs(b - short.solution + shift @ short.solution).max()
    )
    assert not nan.converged
    monkeypatch.setattr(model, "MATRIX_STATES", 1)
    mdp = corridor()
    values = jax.jit(lambda scale: model.policy_value(mdp, scale * jnp.ones((STATES, 2))))
    assert np.isfinite(values(0.5)).all()
    assert np.isnan(values(1.0)).all()


def test_a_regularized_optimum_of_twenty_thousand_states():
    @jax.jit
    def solve(key):
        mdp = environments.garnet(key, states=20_000, actions=2, branches=2, discount=0.99)
        even = jnp.zeros_like(mdp.reward)
        best = occupancy.action_regularized(mdp, even, 0.1, generator=generators.kl())
        q = model.action_values(mdp, best.value)
        again = 0.1 * (jax.nn.logsumexp(q / 0.1, axis=-1) - jnp.log(2.0))
        return best, jnp.max(jnp.abs(again - best.value)), model.occupancy(mdp, best.policy).sum()

    best, residual, total = solve(jax.random.key(0))
    assert best.residual < 1e-11
    assert residual < 1e-11
    assert best.iterations < 20
    np.testing.assert_allclose(total, 1, rtol=1e-9)
