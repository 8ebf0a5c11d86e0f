import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jdiv.policy.awr import awr_weights
from jdiv.policy.mpo import e_step, m_step, m_step_loss
from tests.checks import refused

ROWS, ACTIONS = 5, 4
RADII = np.array([1e-10, 1e-5, 1e-3, 0.03, 0.3, 1.0, 8.0])
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(ROWS, ACTIONS))
REF = np.log(RNG.dirichlet(np.ones(ACTIONS), ROWS))
WEIGHTS = RNG.dirichlet(np.ones(ROWS))


def kl(p, q):
    return np.sum(special.rel_entr(p, q), axis=-1)


@functools.cache
def reweighted():
    """By radius, and for other values and priors at the radius .3."""
    solve = jax.jit(jax.vmap(e_step, in_axes=(0, 0, 0, None)))
    cases = {
        "plain": (VALUES, REF),
        "shifted": (1e6 * VALUES + 3.0, REF),
        "small": (1e-12 * VALUES, REF),
        "equal": (np.full_like(VALUES, 2.0), REF),
        "zeros": (VALUES, np.where(VALUES.max(axis=1, keepdims=True) == VALUES, -np.inf, REF)),
        "ties": (np.round(VALUES), np.zeros_like(REF)),
        "unnormalized": (VALUES, REF + 7.0),
    }
    names = ["plain"] * len(RADII) + list(cases)
    values, priors = (np.stack([cases[name][i] for name in names]) for i in (0, 1))
    radii = np.concatenate([RADII, np.full(len(cases), 0.3)])
    found = jax.tree.map(np.asarray, solve(values, priors, radii, WEIGHTS))
    by_radius = jax.tree.map(lambda x: x[: len(RADII)], found)
    return by_radius, {
        name: jax.tree.map(lambda x, i=i: x[len(RADII) + i], found) for i, name in enumerate(cases)
    }


def test_reweighting_meets_its_radius():
    found, _ = reweighted()
    farthest = WEIGHTS @ -np.take_along_axis(REF, VALUES.argmax(axis=1)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(found.active, farthest > RADII)
    assert 0 < found.active.sum() < len(RADII)
    np.testing.assert_allclose(found.divergence, np.minimum(RADII, farthest), rtol=1e-9, atol=1e-20)
    measured = kl(np.exp(found.log_policy), np.exp(REF)) @ WEIGHTS
    np.testing.assert_allclose(measured, np.minimum(RADII, farthest), rtol=1e-4, atol=1e-12)
    assert (found.temperature[~found.active] == 0).all()
    # No gap between the primal and the dual.
    reached = np.sum(np.exp(found.log_policy) * VALUES, axis=-1) @ WEIGHTS
    np.testing.assert_allclose(found.dual, reached, atol=1e-9)


def test_reweighting_minimizes_the_dual():
    found, _ = reweighted()
    for i, radius in enumerate(RADII):
        if radius < 1e-4 or not found.active[i]:
            continue

        def dual(log_eta, radius=radius):
            eta = np.exp(log_eta)
            soft = special.logsumexp(REF + VALUES / eta, axis=-1)
            return eta * radius + eta * (WEIGHTS @ soft)

        best = optimize.minimize_scalar(dual, bounds=(-6, 8), method="bounded")
        assert found.dual[i] == pytest.approx(best.fun, abs=1e-9)
        assert np.log(found.temperature[i]) == pytest.approx(best.x, abs=1e-3)
        tilted = REF + VALUES / found.temperature[i]
        np.testing.assert_allclose(found.log_policy[i], special.log_softmax(tilted, axis=-1))


def test_reweighting_scales_ties_and_zeros():
    _, cases = reweighted()
    plain = cases["plain"]
    for name, scale in (("shifted", 1e6), ("small", 1e-12)):
        assert cases[name].temperature == pytest.approx(scale * plain.temperature, rel=1e-9)
        np.testing.assert_allclose(cases[name].log_policy, plain.log_policy, atol=1e-8)
    np.testing.assert_allclose(cases["unnormalized"].log_policy, plain.log_policy, atol=1e-12)
    # Nothing to choose: the reference, and no temperature.
    assert not cases["equal"].active
    np.testing.assert_allclose(cases["equal"].log_policy, REF, atol=1e-14)
    assert cases["equal"].divergence == pytest.approx(0, abs=1e-14)
    assert cases["equal"].dual == pytest.approx(2.0, rel=1e-14)
    # What has no mass gets none, and the radius is met by the others.
    forbidden = VALUES.max(axis=1, keepdims=True) == VALUES
    assert (cases["zeros"].log_policy[forbidden] == -np.inf).all()
    assert np.isfinite(cases["zeros"].log_policy[~forbidden]).all()
    assert cases["zeros"].divergence == pytest.approx(0.3, rel=1e-9)
    ties = cases["ties"]
    same = np.round(VALUES) == np.round(VALUES).max(axis=1, keepdims=True)
    for row in range(ROWS):
        assert np.ptp(ties.log_policy[row][same[row]]) < 1e-14


def test_mixing_solves_the_m_step():
    target = np.log(RNG.dirichlet(np.ones(ACTIONS), ROWS))
    solve = jax.jit(jax.vmap(m_step, in_axes=(None, None, 0, None)))
    found = jax.tree.map(np.asarray, solve(target, REF, RADII, WEIGHTS))
    whole = WEIGHTS @ kl(np.exp(REF), np.exp(target))
    np.testing.assert_allclose(found.divergence, np.minimum(RADII, whole), rtol=1e-9)
    np.testing.assert_allclose(found.log_policy[-1], target, atol=1e-15)
    assert found.share[-1] == 1
    # Weighted likelihood under the constraint by a generic solver, in logits.
    for i in (3, 4):

        def loss(flat):
            policy = special.log_softmax(flat.reshape(ROWS, ACTIONS), axis=-1)
            return -WEIGHTS @ np.sum(np.exp(target) * policy, axis=-1)

        def room(flat, radius=RADII[i]):
            policy = special.log_softmax(flat.reshape(ROWS, ACTIONS), axis=-1)
            return radius - WEIGHTS @ kl(np.exp(REF), np.exp(policy))

        best = optimize.minimize(
            loss, REF.ravel(), method="SLSQP", constraints={"type": "ineq", "fun": room},
            options={"ftol": 1e-12, "maxiter": 300},
        )  # fmt: skip
        assert loss(found.log_policy[i].ravel()) == pytest.approx(best.fun, abs=1e-7)
        np.testing.assert_allclose(
            np.exp(found.log_policy[i]),
            special.softmax(best.x.reshape(ROWS, ACTIONS), axis=-1),
            atol=1e-3,
        )


def test_the_loss_of_mpo_is_stationary_at_the_mixture():
    target = RNG.dirichlet(np.ones(ACTIONS), ROWS)
    radius, share = 0.03, jax.jit(m_step)(np.log(target), REF, 0.03)
    coefficient = (1 - share.share) / share.share
    weigh = lambda x: jnp.sum(m_step_loss(x, jnp.log(target), REF, coefficient=coefficient).loss)
    both = jax.jit(jax.vmap(jax.value_and_grad(weigh)))
    logits = jnp.stack([share.log_policy, jnp.asarray(REF)])
    value, gradient = both(logits)
    np.testing.assert_allclose(gradient[0], 0, atol=1e-12)
    assert np.abs(gradient[1]).max() > 0.05
    assert value[0] < value[1]
    loss, divergence = m_step_loss(logits[0], jnp.log(target), REF, coefficient=2.0)
    by_hand = 2 * kl(np.exp(REF), np.exp(logits[0])) - np.sum(target * logits[0], axis=-1)
    np.testing.assert_allclose(loss, by_hand, atol=1e-14)
    assert divergence.mean() == pytest.approx(radius, rel=1e-9)


def test_weights_of_regression_are_those_of_the_dual():
    found = reweighted()[0]
    temperature = found.temperature[4]
    weights = awr_weights(VALUES, temperature, limit=1e300)
    tilted = np.exp(REF) * np.asarray(weights)
    expected = tilted / tilted.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(found.log_policy[4]), expected, atol=1e-12)


def test_refusals():
    refused(ValueError, ["radius", "positive"], lambda: e_step(VALUES, REF, 0.0))
    refused(ValueError, ["values", "ref_logits"], lambda: e_step(VALUES, REF[:2], 0.1))
    refused(ValueError, ["weights", "(5,)"], lambda: e_step(VALUES, REF, 0.1, np.ones(2)))
    refused(ValueError, ["radius", "positive"], lambda: m_step(REF, REF, -1.0))
    refused(ValueError, ["target_logits"], lambda: m_step_loss(REF, REF[:2], REF, coefficient=1.0))
