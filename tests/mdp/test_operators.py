import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jdiv import generators, regularized
from jdiv.mdp import environments, model, operators, value_iteration
from tests.checks import PARAMETERS, refused

STATES, ACTIONS = 5, 3
TEMPERATURE = 0.4
REFERENCE = np.log(np.random.default_rng(0).dirichlet(np.ones(ACTIONS), STATES))
UNIFORM = np.full((STATES, ACTIONS), -np.log(ACTIONS))


def garnet(seed):
    return environments.garnet(jax.random.key(seed), states=STATES, actions=ACTIONS, branches=3)


def row(name):
    return generators.get(name, **PARAMETERS[name])


# A greedy step of q, and the penalty of a policy [..., A] against a row of the reference, by its
# definition. The rows of the table come from their generator's values, not from `greedy`.
def _divergence(name, policy, log_reference):
    u = policy / np.exp(log_reference)
    generator = row(name)
    with np.errstate(divide="ignore"):
        value = generator.value(jnp.log(jnp.maximum(u, 1e-300)))
    return jnp.sum(jnp.exp(log_reference) * value, axis=-1)


def _negative_entropy(policy, _):
    return jnp.sum(policy * jnp.log(jnp.maximum(policy, 1e-300)), axis=-1)


STEPS = {
    name: (
        functools.partial(
            lambda name, q: operators.regularized_greedy(
                q, jnp.asarray(REFERENCE), TEMPERATURE, generator=row(name)
            ),
            name,
        ),
        functools.partial(_divergence, name),
    )
    for name in PARAMETERS
} | {
    "entropy": (
        lambda q: operators.soft(q, jnp.asarray(UNIFORM), 0.0, TEMPERATURE),
        _negative_entropy,
    ),
    "entropy and KL": (
        lambda q: operators.soft(q, jnp.asarray(REFERENCE), 0.3, 0.1),
        lambda policy, ref: (
            0.75 * jnp.sum(policy * (jnp.log(jnp.maximum(policy, 1e-300)) - ref), axis=-1)
            + 0.25 * _negative_entropy(policy, ref)
        ),
    ),
    "two references": (
        lambda q: operators.regularized_greedy_between(
            q, jnp.asarray(REFERENCE), jnp.asarray(UNIFORM), 0.3, 0.1, generator=row("le_cam")
        ),
        lambda policy, ref: (
            0.75 * _divergence("le_cam", policy, ref)
            + 0.25 * _divergence("le_cam", policy, UNIFORM)
        ),
    ),
    "tsallis": (
        lambda q: operators.tsallis(q, TEMPERATURE / 1.7, 1.7),
        lambda policy, _: -jnp.sum(policy - policy**1.7, axis=-1) / (1.7 * 0.7),
    ),
    "none": (operators.greedy, lambda policy, _: 0.0 * policy.sum(axis=-1)),
}


@functools.cache
def processes():
    """Twenty, in one program."""
    return jax.jit(jax.vmap(garnet))(jnp.arange(20))


@functools.cache
def solved(name):
    """Fixed points of twenty processes, and T of pairs of values: one program, called often."""
    step, _ = STEPS[name]

    @jax.jit
    @jax.vmap
    def bellman(mdp, v):
        return step(model.action_values(mdp, v)).value

    rng = np.random.default_rng(1)
    v, w = 3 * rng.normal(size=(2, 20, STATES))
    fixed = np.zeros((20, STATES))
    for _ in range(300):
        fixed = bellman(processes(), fixed)
    of_pairs = (np.asarray(bellman(processes(), x)) for x in (v, w, np.maximum(v, w)))
    return v, w, [np.asarray(fixed), *of_pairs]


@pytest.mark.parametrize("name", STEPS)
def test_contraction_and_monotonicity(name):
    v, w, (_, of_v, of_w, of_larger) = solved(name)
    distance = np.abs(of_v - of_w).max(axis=1)
    assert (distance <= 0.9 * np.abs(v - w).max(axis=1) + 1e-9).all()
    assert (of_larger >= np.maximum(of_v, of_w) - 1e-9).all()


@functools.cache
def programs():
    """Of each process the reward, the matrix of the flow, and measures of three policies."""
    weights = np.array([0.0, 0.5, 1.0])[:, None, None]
    policies = weights * np.exp(REFERENCE) + (1 - weights) * np.exp(UNIFORM)

    @jax.jit
    @jax.vmap
    def parts(mdp):
        mdp = model.dense(mdp)
        starts = jax.vmap(lambda policy: model.occupancy(mdp, policy))(jnp.asarray(policies))
        return mdp.reward, mdp.transition, 10 * starts

    out = []
    for reward, transition, starts in zip(*map(np.asarray, parts(processes())), strict=True):
        flow = np.repeat(np.eye(STATES), ACTIONS, axis=1)
        flow -= 0.9 * transition.reshape(-1, STATES).T
        out.append((reward, flow, starts.reshape(3, -1)))
    return out


@pytest.mark.parametrize("name", STEPS)
def test_the_fixed_point_is_that_of_a_convex_program(name):
    """max over occupancy measures of reward minus penalty, by a generic solver."""
    _, penalty = STEPS[name]
    _, _, (fixed, *_) = solved(name)

    @jax.jit
    def negative(mu, reward):
        mu = mu.reshape(STATES, ACTIONS)
        total = jnp.maximum(mu.sum(axis=1), 1e-300)
        policy = mu / total[:, None]
        return -jnp.sum(mu * reward) + TEMPERATURE * jnp.sum(total * penalty(policy, REFERENCE))

    gradient = jax.jit(jax.value_and_grad(negative))
    for seed, (reward, flow, starts) in enumerate(programs()):
        balance = {
            "type": "eq",
            "fun": lambda mu, flow=flow: flow @ mu - 1 / STATES,
            "jac": lambda mu, flow=flow: flow,
        }
        best = -np.inf
        for start in starts:  # it loses its way from some
            for _ in range(3):  # from where it gave up
                found = optimize.minimize(
                    lambda mu, r=reward: [np.asarray(x) for x in gradient(mu, r)],
                    start,
                    jac=True,
                    method="SLSQP",
                    bounds=[(1e-7, None)] * len(start),
                    constraints=balance,
                    options={"maxiter": 2000, "ftol": 1e-15},
                )
                if np.abs(balance["fun"](found.x)).max() < 1e-9:
                    best = max(best, -found.fun)
                start = np.maximum(found.x, 1e-4)
            if best == pytest.approx(fixed[seed].mean(), abs=2e-5):
                break
        # No feasible measure is better, and one is as good.
        assert best == pytest.approx(fixed[seed].mean(), abs=2e-5)


def test_schemes_of_one_policy():
    """Mirror descent, dual averaging and Munchausen under the same errors, and m = 1."""
    mdp = garnet(3)
    errors = jax.random.normal(jax.random.key(1), (60, STATES, ACTIONS))
    kept = lambda at: jnp.exp(at.log_policy)

    @jax.jit
    @jax.vmap
    def policies(kl, entropy):
        temperature = kl + entropy
        start = jnp.full((STATES, ACTIONS), -kl * jnp.log(ACTIONS))
        schemes = {
            "mirror": (operators.md_vi(kl, entropy), None),
            "dual": (operators.da_vi(kl, entropy), None),
            "munchausen": (operators.munchausen(kl / temperature, temperature), start),
        }
        return {
            name: value_iteration.run(mdp, scheme, 60, errors=errors, q=q, measure=kept).measured
            for name, (scheme, q) in schemes.items()
        }

    found = policies(jnp.array([0.1, 1.0, 5.0, 0.9]), jnp.array([0.0, 0.0, 0.5, 0.1]))
    np.testing.assert_allclose(found["dual"], found["mirror"], atol=1e-11)
    np.testing.assert_allclose(found["munchausen"], found["mirror"], atol=1e-11)


@jax.jit
def limits(mdp):
    """Where schemes end without errors."""
    best = model.optimum(mdp)
    run = lambda scheme, n: value_iteration.run(mdp, scheme, n).last
    soft_at = lambda t: run(operators.md_vi(0.0, t), 400)
    return {
        "best": best.policy,
        "best q": model.action_values(mdp, best.value),
        "soft .05": jnp.exp(soft_at(0.05).log_policy),
        "hard": run(operators.value_iteration(), 400),
        "advantage": run(operators.advantage_learning(0.6), 1500),
        "munchausen": run(operators.munchausen(0.75, 0.2), 3000),
        "munchausen 0": run(operators.munchausen(0.0, 0.05), 400),
        "dpp": run(operators.dpp(0.2), 1500),
        "cvi": run(operators.cvi(0.75, 0.2), 3000),
        "mvi 1": run(operators.mvi(0.0, 0.05, 1.0), 400),
        "many evaluations": run(operators.md_vi(0.0, 0.05, evaluations=200), 40),
        "conservative": run(operators.conservative_iteration(0.3), 200),
        "mirror descent": run(operators.policy_mirror_descent(20.0), 400),
        "mirror descent with entropy": run(
            operators.policy_mirror_descent(1.0, entropy_weight=0.05), 1000
        ),
        "mirror descent chi2": run(
            operators.policy_mirror_descent(20.0, generator=row("pearson_chi2")), 200
        ),
        "fewer steps": run(
            operators.modified_policy_iteration(lambda q, last: operators.soft(q, last, 0.5, 0.0)),
            1500,
        ),
    }


def test_where_schemes_end():
    found = limits(garnet(4))
    policy = lambda name: np.exp(found[name].log_policy)
    best, q = found["best"], np.asarray(found["best q"])
    for name in (
        "hard", "advantage", "dpp", "conservative", "mirror descent", "mirror descent chi2",
        "fewer steps",
    ):  # fmt: skip
        np.testing.assert_allclose(policy(name), best, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["hard"].q, q, atol=1e-12)
    # (1 - alpha) T = .05 is what is left of the entropy.
    for name in ("munchausen", "munchausen 0", "cvi", "mvi 1", "many evaluations",
                 "mirror descent with entropy"):  # fmt: skip
        np.testing.assert_allclose(policy(name), found["soft .05"], atol=1e-9, err_msg=name)
    # Advantage learning widens gaps by 1/(1 - alpha).
    gap = lambda q: np.max(q, axis=1, keepdims=True) - np.asarray(q)
    np.testing.assert_allclose(gap(found["advantage"].q), gap(q) / 0.4, atol=1e-6)


def test_schemes_without_a_regularizer_are_those_of_hard_maxima():
    """Weights and temperatures of 0, traced and next to others, in one program."""
    mdp = garnet(5)
    errors = jax.random.normal(jax.random.key(2), (20, STATES, ACTIONS))
    run = lambda scheme: value_iteration.run(mdp, scheme, 20, errors=errors, measure=lambda at: at)

    @jax.jit
    @jax.vmap
    def traced(weight):
        schemes = {
            "dual averaging": operators.da_vi(weight, weight),
            "mirror descent": operators.md_vi(weight, weight),
            "conservative": operators.cvi(0.6, weight),
            "tsallis": operators.mvi(0.6, weight, 2.0),
            "munchausen": operators.munchausen(0.6, weight),
        }
        return {name: run(scheme) for name, scheme in schemes.items()}

    @jax.jit
    def written_as_zero():
        return {
            "dual averaging": run(operators.da_vi(0.0, 0.0)),
            "mirror descent": run(operators.value_iteration()),
            "conservative": run(operators.cvi(0.6, 0.0)),
            "tsallis": run(operators.mvi(0.6, 0.0, 2.0)),
            "munchausen": run(operators.advantage_learning(0.6)),
        }

    found, plain = traced(jnp.array([0.0, 1e-9, 0.5])), written_as_zero()
    for name, at in found.items():
        exact = plain["mirror descent" if name == "dual averaging" else
                      "munchausen" if name != "mirror descent" else name]  # fmt: skip
        for field in ("q", "log_policy"):
            zero, _, warm = np.asarray(getattr(at.measured, field))
            np.testing.assert_allclose(zero, getattr(exact.measured, field), atol=1e-12)
            np.testing.assert_allclose(zero, getattr(plain[name].measured, field), atol=1e-12)
            assert np.isfinite(warm).all() or name == "tsallis"
        if name in ("conservative", "tsallis", "munchausen"):
            # And no jump on the way there; with two weights it matters which is the larger one.
            np.testing.assert_allclose(at.measured.q[1], at.measured.q[0], atol=1e-6, err_msg=name)


def test_gradients_where_the_weights_are_zero_are_finite():
    """Of the values after three iterations by the rewards, and by the weight itself."""
    mdp = garnet(6)

    def total(reward, weight, make):
        return value_iteration.run(mdp._replace(reward=reward), make(weight), 3).last.q.sum()

    makes = [
        lambda weight: operators.da_vi(weight, weight),
        lambda weight: operators.cvi(0.6, weight),
        lambda weight: operators.mvi(0.6, weight, 2.0),
    ]

    @jax.jit
    def slopes(reward):
        return [jax.grad(total, (0, 1))(reward, jnp.zeros(()), make) for make in makes]

    for by_reward, by_weight in slopes(mdp.reward):
        assert np.isfinite(by_reward).all()
        assert np.isfinite(by_weight)


def test_tsallis_has_one_convention():
    """The greedy step of the row of that name against uniform, and entmax with the index times."""
    q = jnp.asarray(np.random.default_rng(3).normal(size=(4, 3)))

    @jax.jit
    def both(index):
        step = operators.tsallis(q, 0.7, index)
        temperature = 0.7 * 3 ** (1 - index)
        uniform = jnp.zeros_like(q)
        row = operators.regularized_greedy(
            q, uniform, temperature, generator=generators.tsallis(index)
        )
        policy = jnp.exp(step.log_policy)
        entropy = jnp.sum(policy - policy**index, axis=-1) / (index - 1)
        value = jnp.sum(policy * q, axis=-1) + 0.7 * entropy
        return step, row, value, regularized.entmax(q / (0.7 * index), index=index)

    for index in (0.5, 1.5, 2.0, 3.0):
        step, row, value, entmax = both(index)
        np.testing.assert_allclose(jnp.exp(step.log_policy), jnp.exp(row.log_policy), atol=1e-12)
        np.testing.assert_allclose(jnp.exp(step.log_policy), entmax, atol=1e-12)
        np.testing.assert_allclose(step.value, value, atol=1e-12)


def test_mirror_descent_with_a_row_pays_the_entropy_or_refuses_it():
    """The row of KL is the default; the others have no closed step with an entropy."""
    mdp = garnet(7)

    @jax.jit
    def policies(weight):
        return [
            value_iteration.run(mdp, scheme, 5, measure=lambda at: at.log_policy).measured
            for scheme in (
                operators.policy_mirror_descent(2.0, weight),
                operators.policy_mirror_descent(2.0, weight, generator=generators.kl()),
                operators.policy_mirror_descent(2.0),
            )
        ]

    default, by_row, without = policies(0.3)
    np.testing.assert_array_equal(by_row, default)
    assert np.abs(default - without).max() > 0.01
    chi2 = generators.pearson_chi2()
    for weight in (0.1, jnp.array(0.1)):
        make = functools.partial(operators.policy_mirror_descent, 1.0, weight, generator=chi2)
        refused(ValueError, ["entropy_weight", "KL", "0.1"], make)
    with pytest.raises(ValueError, match="entropy_weight"):
        jax.jit(lambda w: operators.policy_mirror_descent(1.0, w, generator=chi2))(0.1)
    operators.policy_mirror_descent(1.0, 0.0, generator=chi2)


def test_mellowmax_is_the_soft_maximum_against_uniform():
    q = np.random.default_rng(0).normal(size=(4, 3))
    expected = 0.3 * np.log(np.mean(np.exp(q / 0.3), axis=1))
    np.testing.assert_allclose(operators.mellowmax(jnp.asarray(q), 0.3), expected, rtol=1e-12)


def test_temperature_zero_is_greedy_and_differentiable():
    def value(q, t):
        return operators.soft(q, jnp.asarray(UNIFORM), t, 0 * t).value.sum()

    q = jnp.asarray(np.random.default_rng(2).normal(size=(STATES, ACTIONS)))
    gradient = jax.jit(jax.grad(value))(q, 0.0)
    np.testing.assert_array_equal(gradient, jax.nn.one_hot(q.argmax(axis=1), ACTIONS))
