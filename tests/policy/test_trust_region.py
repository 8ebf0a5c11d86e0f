import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jdiv import divergences, generators
from jdiv.mdp import environments, model, occupancy
from jdiv.mdp.model import Mdp
from jdiv.policy import tabular, trust_region
from tests.checks import refused

ROWS, ACTIONS = 5, 4
RADII = np.array([1e-10, 1e-5, 1e-3, 0.03, 0.3, 1.0, 8.0])
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(ROWS, ACTIONS))
PRIOR = np.log(RNG.dirichlet(np.ones(ACTIONS), ROWS))
WEIGHTS = RNG.dirichlet(np.ones(ROWS))


def kl(p, q):
    return np.sum(special.rel_entr(p, q), axis=-1)


# --------------------------------------------------------------------------- exponential weights


@functools.cache
def reweighted():
    """By radius, and for other values and priors at the radius .3."""
    solve = jax.jit(jax.vmap(trust_region.reweight, in_axes=(0, 0, 0, None)))
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


def test_reweighting_meets_its_radius():
    found, _ = reweighted()
    farthest = WEIGHTS @ -np.take_along_axis(PRIOR, VALUES.argmax(axis=1)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(found.active, farthest > RADII)
    assert 0 < found.active.sum() < len(RADII)
    np.testing.assert_allclose(found.divergence, np.minimum(RADII, farthest), rtol=1e-9, atol=1e-20)
    measured = kl(np.exp(found.log_policy), np.exp(PRIOR)) @ WEIGHTS
    np.testing.assert_allclose(measured, np.minimum(RADII, farthest), rtol=1e-4, atol=1e-12)
    assert (found.temperature[~found.active] == 0).all()
    # No gap between the primal and the dual.
    reached = np.sum(np.exp(found.log_policy) * VALUES, axis=-1) @ WEIGHTS
    np.testing.assert_allclose(found.dual, reached, atol=1e-9)


def test_reweighting_minimises_the_dual():
    found, _ = reweighted()
    for i, radius in enumerate(RADII):
        if radius < 1e-4 or not found.active[i]:
            continue

        def dual(log_eta, radius=radius):
            eta = np.exp(log_eta)
            soft = special.logsumexp(PRIOR + VALUES / eta, axis=-1)
            return eta * radius + eta * (WEIGHTS @ soft)

        best = optimize.minimize_scalar(dual, bounds=(-6, 8), method="bounded")
        assert found.dual[i] == pytest.approx(best.fun, abs=1e-9)
        assert np.log(found.temperature[i]) == pytest.approx(best.x, abs=1e-3)
        tilted = PRIOR + VALUES / found.temperature[i]
        np.testing.assert_allclose(found.log_policy[i], special.log_softmax(tilted, axis=-1))


def test_reweighting_scales_ties_and_zeros():
    _, cases = reweighted()
    plain = cases["plain"]
    for name, scale in (("shifted", 1e6), ("small", 1e-12)):
        assert cases[name].temperature == pytest.approx(scale * plain.temperature, rel=1e-9)
        np.testing.assert_allclose(cases[name].log_policy, plain.log_policy, atol=1e-8)
    np.testing.assert_allclose(cases["unnormalised"].log_policy, plain.log_policy, atol=1e-12)
    # Nothing to choose: the prior, and no temperature.
    assert not cases["equal"].active
    np.testing.assert_allclose(cases["equal"].log_policy, PRIOR, atol=1e-14)
    assert cases["equal"].divergence == pytest.approx(0, abs=1e-14)
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
    solve = jax.jit(jax.vmap(trust_region.mix, in_axes=(None, None, 0, None)))
    found = jax.tree.map(np.asarray, solve(target, PRIOR, RADII, WEIGHTS))
    whole = WEIGHTS @ kl(np.exp(PRIOR), np.exp(target))
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
            return radius - WEIGHTS @ kl(np.exp(PRIOR), np.exp(policy))

        best = optimize.minimize(
            loss, PRIOR.ravel(), method="SLSQP", constraints={"type": "ineq", "fun": room},
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
    radius, share = 0.03, jax.jit(trust_region.mix)(np.log(target), PRIOR, 0.03)
    coefficient = (1 - share.share) / share.share
    weigh = lambda x: jnp.sum(
        trust_region.mpo(x, jnp.log(target), PRIOR, coefficient=coefficient).loss
    )
    both = jax.jit(jax.vmap(jax.value_and_grad(weigh)))
    logits = jnp.stack([share.log_policy, jnp.asarray(PRIOR)])
    value, gradient = both(logits)
    np.testing.assert_allclose(gradient[0], 0, atol=1e-12)
    assert np.abs(gradient[1]).max() > 0.05
    assert value[0] < value[1]
    loss, aux = trust_region.mpo(logits[0], jnp.log(target), PRIOR, coefficient=2.0)
    by_hand = 2 * kl(np.exp(PRIOR), np.exp(logits[0])) - np.sum(target * logits[0], axis=-1)
    np.testing.assert_allclose(loss, by_hand, atol=1e-14)
    assert aux.kl.mean() == pytest.approx(radius, rel=1e-9)


# ------------------------------------------------------------------------------------------- REPS


@functools.cache
def process():
    mdp = environments.garnet(jax.random.key(3), states=5, actions=3, branches=3, discount=0.85)
    base = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    return model.dense(mdp), np.asarray(model.occupancy(mdp, jnp.asarray(base)))


@functools.cache
def steps_of_reps():
    mdp, reference = process()
    solve = jax.jit(jax.vmap(trust_region.reps, in_axes=(None, None, 0)))
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


def test_reps_minimises_the_dual():
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
    by_process = jax.jit(trust_region.reps)(mdp, PRIOR[:1], 0.1)
    by_row = jax.jit(trust_region.reweight)(VALUES[:1], PRIOR[:1], 0.1)
    np.testing.assert_allclose(by_process.log_policy, by_row.log_policy, atol=1e-10)
    assert by_process.temperature == pytest.approx(float(by_row.temperature), rel=1e-9)
    assert by_process.dual == pytest.approx(float(by_row.dual), rel=1e-9)


# ------------------------------------------------------------------------------------------- TRPO


def test_trpo_steps_keep_their_radius_and_improve():
    mdp = process()[0]
    logits = RNG.normal(size=(4, 5, 3))
    radii = np.array([1e-4, 1e-2, 0.1, 1.0])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def compute(logits, radius):
        policy = jax.nn.softmax(logits)
        visits = jnp.sum(model.occupancy(mdp, policy), axis=-1)
        distance = lambda x: occupancy.action_divergence(generators.kl(), logits, x, visits)
        step = trust_region.trpo_step(
            lambda x: tabular.surrogate(mdp, policy, jax.nn.softmax(x)), distance, logits, radius,
            iterations=15,
        )  # fmt: skip
        gained = tabular.improvement(mdp, policy, jax.nn.softmax(step.parameters))
        natural = tabular.natural_gradient(mdp, logits)
        centred = natural - jnp.mean(natural, axis=-1, keepdims=True)
        moved = step.parameters - logits
        moved = moved - jnp.mean(moved, axis=-1, keepdims=True)
        cosine = jnp.sum(moved * centred) / jnp.linalg.norm(moved) / jnp.linalg.norm(centred)
        return step, distance(step.parameters), gained, cosine

    step, distance, gained, cosine = jax.tree.map(np.asarray, compute(logits, radii))
    assert (distance <= radii).all()
    assert (distance >= 0.4 * radii).all()
    np.testing.assert_allclose(step.divergence, distance, atol=1e-15)
    assert (step.gain > 0).all()
    assert (gained[:, :2] > 0).all()
    # The direction is the natural gradient's.
    np.testing.assert_allclose(cosine, 1, atol=1e-9)
    assert (step.residual < 1e-8).all()


def test_trpo_of_a_quadratic_is_its_closed_form_for_any_pytree():
    matrix = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.7]])
    slope = np.array([1.0, -2.0, 0.5])
    flat = lambda tree: jnp.concatenate([tree["a"], tree["b"][None]])
    zero = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    linear = lambda tree: flat(tree) @ slope
    quadratic = lambda tree: flat(tree) @ jnp.asarray(matrix) @ flat(tree) / 2
    step = trust_region.trpo_step(linear, quadratic, zero, 0.02 * (1 + 1e-12))
    solved = np.linalg.solve(matrix, slope)
    expected = np.sqrt(2 * 0.02 / (slope @ solved)) * solved
    # A step that ends on the boundary may be shortened once, by rounding.
    assert step.length in (1.0, pytest.approx(0.8))
    np.testing.assert_allclose(flat(step.parameters), step.length * expected, rtol=1e-9)
    # With damping that of the damped matrix.
    damped = trust_region.trpo_step(linear, quadratic, zero, 0.02, damping=0.3)
    solved = np.linalg.solve(matrix + 0.3 * np.eye(3), slope)
    expected = np.sqrt(2 * 0.02 / (slope @ solved)) * solved
    np.testing.assert_allclose(flat(damped.parameters), expected, rtol=1e-9)


def test_trpo_stays_where_nothing_is_accepted():
    at = jnp.ones(2)
    # Flat, and a divergence that lies about its curvature.
    flat = trust_region.trpo_step(lambda x: 0.0 * x[0], lambda x: jnp.sum((x - 1) ** 2), at, 0.1)
    np.testing.assert_array_equal(flat.parameters, at)
    cliff = lambda x: jnp.sum((x - 1) ** 2) + 9.0 * jnp.any(x != 1).astype(x.dtype)
    wall = trust_region.trpo_step(lambda x: x[0], cliff, at, 0.1)
    np.testing.assert_array_equal(wall.parameters, at)
    # A direction in which the divergence does not see anything.
    blind = trust_region.trpo_step(lambda x: x[0] + x[1], lambda x: (x[0] - 1) ** 2, at, 0.1)
    assert np.isfinite(blind.parameters).all()
    assert blind.divergence <= 0.1
    for step in (flat, wall):
        assert step.divergence == 0
        assert step.gain == 0
    assert wall.length == 0


# --------------------------------------------------------------------------------------- PPO, AWR

OLD = np.log(RNG.dirichlet(np.ones(6)))
ADVANTAGE = RNG.normal(size=6)


def test_penalised_loss_in_expectation():
    """Over tokens of the old policy: `-E_new[A] + c KL(old‖new)`, and its gradient."""
    every = np.ones(6, bool)

    def expected(logits):
        loss, _ = trust_region.ppo_kl(
            jax.nn.log_softmax(logits), OLD, ADVANTAGE, every, coefficient=0.7
        )
        return jnp.sum(np.exp(OLD) * loss)

    def exact(logits):
        return 0.7 * divergences.kl(OLD, logits) - jnp.sum(jax.nn.softmax(logits) * ADVANTAGE)

    logits = jnp.asarray(RNG.normal(size=6))
    found, right = jax.jit(lambda x: [jax.value_and_grad(f)(x) for f in (expected, exact)])(logits)
    np.testing.assert_allclose(found[0], right[0], atol=1e-14)
    np.testing.assert_allclose(found[1], right[1], atol=1e-14)


@pytest.mark.parametrize("loss", ["ppo_kl", "awr"])
def test_extremes_and_masks(loss):
    call = {
        "ppo_kl": lambda x, old, a, m: trust_region.ppo_kl(x, old, a, m, coefficient=0.5),
        "awr": lambda x, old, a, m: trust_region.awr(x, a, m, temperature=0.01),
    }[loss]
    log_probs = np.array([[-0.1, -80.1, np.nan, -1.0], [np.nan] * 4, [-90.0, -1e-9, -5.0, -3.0]])
    old = np.array([[-80.1, -0.1, -1.0, np.nan], [-1.0] * 4, [-1.0, -81.0, -5.0, -3.0]])
    mask = np.array([[True, True, False, False], [False] * 4, [True] * 4])
    advantages = np.array([300.0, np.nan, -1.0])

    @jax.jit
    def both(x, a):
        value = lambda x: jnp.sum(call(x, jnp.asarray(old, x.dtype), a, mask).loss)
        return call(x, jnp.asarray(old, x.dtype), a, mask), jax.grad(value)(x)

    for dtype in (np.float64, jnp.bfloat16):
        (values, aux), gradient = both(
            jnp.asarray(log_probs, dtype), jnp.asarray(advantages, dtype)
        )
        assert values.dtype == (np.float64 if dtype == np.float64 else np.float32)
        for x in (values, gradient.astype(values.dtype), *aux):
            assert np.isfinite(x).all()
            assert (np.asarray(x)[~mask] == 0).all()
        assert np.abs(gradient).max() > 0


def test_penalty_coefficient_zero_at_the_old_policy_is_the_policy_gradient():
    at_old = jax.grad(
        lambda x: jnp.sum(
            trust_region.ppo_kl(x, OLD, ADVANTAGE, np.ones(6, bool), coefficient=3.0).loss
        )
    )(jnp.asarray(OLD))
    np.testing.assert_allclose(at_old, -ADVANTAGE, atol=1e-15)
    clipped = jax.grad(
        lambda x: jnp.sum(
            trust_region.ppo_clip(x, jnp.asarray(OLD), ADVANTAGE, np.ones(6, bool)).loss
        )
    )(jnp.asarray(OLD))
    np.testing.assert_allclose(clipped, at_old, atol=1e-15)


def test_coefficient_adapts_in_both_directions():
    kls = np.array([0.0, 0.66, 0.67, 1.0, 1.49, 1.51]) * 0.02
    found = trust_region.adapt_coefficient(4.0, kls, 0.02)
    np.testing.assert_array_equal(found, [2, 2, 4, 4, 4, 8])


def test_weights_of_regression_are_those_of_the_dual():
    found = reweighted()[0]
    temperature = found.temperature[4]
    weights = trust_region.awr_weights(VALUES, temperature, limit=1e300)
    tilted = np.exp(PRIOR) * np.asarray(weights)
    expected = tilted / tilted.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(found.log_policy[4]), expected, atol=1e-12)
    # One sided: bad actions keep their weight, good ones are limited.
    limited = np.asarray(trust_region.awr_weights(VALUES, 0.1))
    np.testing.assert_allclose(limited, np.minimum(np.exp(VALUES / 0.1), 20))
    gradient = jax.grad(
        lambda a: jnp.sum(
            trust_region.awr(jnp.asarray(OLD), a, np.ones(6, bool), temperature=1.0).loss
        )
    )(jnp.asarray(ADVANTAGE))
    np.testing.assert_array_equal(gradient, 0)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["radius", "positive"], lambda: trust_region.reweight(VALUES, PRIOR, 0.0)),
        (["values", "log_prior"], lambda: trust_region.reweight(VALUES, PRIOR[:2], 0.1)),
        (["weights", "(5,)"], lambda: trust_region.reweight(VALUES, PRIOR, 0.1, np.ones(2))),
        (["radius", "positive"], lambda: trust_region.mix(PRIOR, PRIOR, -1.0)),
        (["log_reference", "shape"], lambda: trust_region.reps(process()[0], PRIOR, 0.1)),
        (["shrink", "(0, 1)"],
         lambda: trust_region.trpo_step(jnp.sum, jnp.sum, jnp.ones(2), 0.1, shrink=1.0)),
        (["iterations"],
         lambda: trust_region.trpo_step(jnp.sum, jnp.sum, jnp.ones(2), 0.1, iterations=0)),
        (["mask", "shape"],
         lambda: trust_region.ppo_kl(OLD, OLD, OLD, np.ones(2, bool), coefficient=1.0)),
        (["advantages"],
         lambda: trust_region.ppo_kl(OLD, OLD, OLD[:2], np.ones(6, bool), coefficient=1.0)),
        (["temperature"], lambda: trust_region.awr_weights(OLD, 0.0)),
        (["limit"], lambda: trust_region.awr_weights(OLD, 1.0, limit=0.0)),
    ],
)  # fmt: skip
def test_refusals(words, call):
    refused(ValueError, words, call)


def test_a_mask_of_numbers_is_refused():
    call = lambda: trust_region.ppo_kl(OLD, OLD, OLD, np.ones(6), coefficient=1.0)
    refused(TypeError, ["mask", "boolean"], call)
