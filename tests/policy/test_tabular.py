import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import divergences, generators
from jdiv.mdp import environments, model, occupancy, operators, value_iteration
from jdiv.policy import tabular

STATES, ACTIONS, DISCOUNT, SEEDS = 5, 3, 0.85, 8


def garnet(seed):
    return environments.garnet(
        jax.random.key(seed), states=STATES, actions=ACTIONS, branches=3, discount=DISCOUNT
    )


def penalty(log_policy):
    """Of Pearson's chi2 from uniform."""
    return 0.3 * divergences.pearson_chi2(log_policy, jnp.zeros_like(log_policy))


def penalized_return(mdp, logits):
    log_policy = jax.nn.log_softmax(logits)
    return mdp.start @ model.policy_value(mdp, jnp.exp(log_policy), -penalty(log_policy))


@functools.cache
def computed():
    """Everything about one pair of policies on each of the processes, in one program."""

    @jax.jit
    @jax.vmap
    def compute(seed, logits, direction, other):
        mdp = garnet(seed)
        policy, new = jax.nn.softmax(logits), jax.nn.softmax(other)
        plain = lambda x: model.expected_return(mdp, jax.nn.softmax(x))
        visits = jnp.sum(model.occupancy(mdp, policy), axis=-1)
        rates = jnp.linspace(0.0, 1.0, 21)
        mixed = jax.vmap(lambda a: model.expected_return(mdp, (1 - a) * policy + a * new))(rates)
        gains = jax.vmap(lambda a: tabular.conservative_gain(mdp, policy, new, a))(rates)
        near = jax.vmap(lambda a: logits + a * (other - logits))(rates / 20)
        return {
            "gradient": tabular.policy_gradient(mdp, logits),
            "autodiff": jax.grad(plain)(logits),
            "ahead": jax.vmap(lambda t: plain(logits + t * direction))(jnp.array([1e-5, -1e-5])),
            "penalized": tabular.policy_gradient(mdp, logits, penalty),
            "penalized autodiff": jax.grad(lambda x: penalized_return(mdp, x))(logits),
            "natural": tabular.natural_gradient(mdp, logits),
            "fisher": jax.vmap(lambda x: tabular.fisher_product(mdp, logits, x))(
                jnp.eye(STATES * ACTIONS).reshape(-1, STATES, ACTIONS)
            ),
            "hessian": jax.hessian(
                lambda x: occupancy.action_divergence(logits, x, visits, generator=generators.kl())
            )(logits),
            "ascent": tabular.update(mdp, tabular.natural_ascent(0.2), logits),
            "mirror": tabular.update(
                mdp, operators.policy_mirror_descent(0.2 / (1 - DISCOUNT)), logits
            ),
            "closed form": policy * jnp.exp(0.2 * tabular.advantages(mdp, policy) / (1 - DISCOUNT)),
            "improvement": tabular.improvement(mdp, policy, new),
            "returns": jnp.stack([plain(logits), plain(other)]),
            "surrogate": tabular.surrogate(mdp, policy, new),
            "surrogate slope": jax.grad(
                lambda x: tabular.surrogate(mdp, policy, jax.nn.softmax(x))
            )(logits),
            "mixed": mixed - mixed[0],
            "gains": gains,
            "safe": tabular.safe_mixing(mdp, policy, new),
            "best": tabular.safe_mixing(
                mdp, policy, jnp.exp(operators.greedy(tabular.advantages(mdp, policy)).log_policy)
            ),
            "near": jax.vmap(lambda x: plain(x) - plain(logits))(near),
            "near bounds": jax.vmap(lambda x: tabular.trust_region_bound(mdp, logits, x))(near),
        }

    rng = np.random.default_rng(0)
    logits, direction, other = rng.normal(size=(3, SEEDS, STATES, ACTIONS))
    found = compute(jnp.arange(SEEDS), logits, direction, other)
    return direction, jax.tree.map(np.asarray, found)


def test_gradients_are_those_of_the_exact_return():
    direction, found = computed()
    np.testing.assert_allclose(found["gradient"], found["autodiff"], atol=1e-13)
    np.testing.assert_allclose(found["penalized"], found["penalized autodiff"], atol=1e-13)
    along = np.sum(found["gradient"] * direction, axis=(1, 2))
    difference = (found["ahead"][:, 0] - found["ahead"][:, 1]) / 2e-5
    np.testing.assert_allclose(along, difference, rtol=1e-7, atol=1e-8)


def test_fisher_is_the_hessian_of_the_mean_kl():
    _, found = computed()
    size = STATES * ACTIONS
    hessian = found["hessian"].reshape(SEEDS, size, size)
    np.testing.assert_allclose(found["fisher"].reshape(SEEDS, size, size), hessian, atol=1e-13)


def test_natural_gradient_is_the_pseudo_inverse_of_fisher_times_the_gradient():
    _, found = computed()
    size = STATES * ACTIONS
    for seed in range(SEEDS):
        fisher = found["fisher"][seed].reshape(size, size)
        solved = (np.linalg.pinv(fisher, rcond=1e-12) @ found["gradient"][seed].ravel()).reshape(
            STATES, ACTIONS
        )
        natural = found["natural"][seed]
        centred = natural - natural.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(solved, centred, atol=1e-10)


def test_natural_ascent_is_mirror_descent_in_closed_form():
    _, found = computed()
    expected = found["closed form"] / found["closed form"].sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(found["ascent"]), expected, atol=1e-14)
    np.testing.assert_allclose(np.exp(found["mirror"]), expected, atol=1e-14)


def test_improvement_is_the_difference_of_returns():
    _, found = computed()
    old, new = found["returns"].T
    np.testing.assert_allclose(found["improvement"], new - old, atol=1e-13)
    # To first order the surrogate is the return.
    np.testing.assert_allclose(found["surrogate slope"], found["gradient"], atol=1e-13)
    assert np.abs(found["surrogate"] - (new - old)).min() > 1e-4


def test_bounds_hold_and_are_no_trivial_ones():
    _, found = computed()
    assert (found["gains"] <= found["mixed"] + 1e-12).all()
    assert (found["near bounds"] <= found["near"] + 1e-12).all()
    # Where the target is greedy the bound promises a gain.
    assert (found["best"].gain > 0).all()
    assert (found["near bounds"][:, 1:].max(axis=1) > 0).any()


def test_safe_mixing_maximizes_its_bound():
    _, found = computed()
    rates = np.linspace(0, 1, 21)
    safe = found["safe"]
    assert ((safe.share >= 0) & (safe.share <= 1)).all()
    assert (safe.gain >= found["gains"].max(axis=1) - 1e-13).all()
    # A parabola through the grid has its top there.
    for seed in range(SEEDS):
        a, b, _ = np.polyfit(rates, found["gains"][seed], 2)
        np.testing.assert_allclose(safe.share[seed], np.clip(-b / (2 * a), 0, 1), atol=1e-10)


def test_nothing_is_left_to_mix_at_the_optimum_and_without_a_future():
    mdp = garnet(0)
    best = model.optimum(mdp).policy
    safe = jax.jit(tabular.safe_mixing)(mdp, best, best)
    assert safe.gain == pytest.approx(0, abs=1e-12)
    safe = jax.jit(tabular.safe_mixing)(mdp._replace(discount=0.0), jnp.full((5, 3), 1 / 3), best)
    assert safe.share == 1


@pytest.mark.parametrize("name", ["pearson_chi2", "squared_hellinger"])
def test_mirror_descent_of_any_row_is_the_best_of_its_objective(name):
    mdp, rate, row = garnet(2), 3.0, generators.get(name)
    logits = jax.random.normal(jax.random.key(0), (STATES, ACTIONS))

    @jax.jit
    def objectives(others):
        q = model.policy_action_values(mdp, jax.nn.softmax(logits))
        best = tabular.update(mdp, operators.policy_mirror_descent(rate, generator=row), logits)

        def objective(log_policy):
            cost = divergences.f_divergence(row, log_policy, logits) / rate
            return jnp.sum(jnp.exp(log_policy) * q, axis=-1) - cost

        near = jax.nn.log_softmax(jnp.maximum(best, -50.0)[None] + 0.01 * others)
        far = jax.nn.log_softmax(others)
        return objective(best), jax.vmap(objective)(jnp.concatenate([near, far])), objective(logits)

    best, others, old = objectives(jax.random.normal(jax.random.key(1), (100, STATES, ACTIONS)))
    assert (best >= others.max(axis=0) - 1e-12).all()
    assert (best > old + 1e-4).any()


@functools.cache
def runs():
    """Returns by iteration of every scheme on one process."""
    mdp = garnet(1)
    best = model.optimum(mdp)
    schemes = {
        "gradient": (tabular.gradient_ascent(0.5), 3000),
        "natural": (tabular.natural_ascent(1.0), 60),
        "conservative": (tabular.conservative_policy_iteration(), 3000),
        "kl": (operators.policy_mirror_descent(1.0 / (1 - DISCOUNT)), 60),
        "chi2": (operators.policy_mirror_descent(5.0, generator=generators.pearson_chi2()), 60),
        "hellinger": (
            operators.policy_mirror_descent(5.0, generator=generators.squared_hellinger()),
            60,
        ),
    }

    def gap(at):
        policy = jnp.exp(at.log_policy)
        return mdp.start @ (best.value - model.policy_value(mdp, policy))

    run = lambda scheme, count: value_iteration.run(mdp, scheme, count, measure=gap).measured
    program = jax.jit(lambda: {name: run(*of) for name, of in schemes.items()})
    return jax.tree.map(np.asarray, program())


@pytest.mark.parametrize("name", ["gradient", "natural", "conservative", "kl", "chi2", "hellinger"])
def test_every_scheme_improves_in_every_step_and_gets_there(name):
    gap = runs()[name]
    assert (np.diff(gap) <= 1e-12).all()
    assert gap[-1] < (0.05 if name in ("gradient", "conservative") else 1e-3) * gap[0]


def test_natural_ascent_is_below_its_bound_and_runs_as_mirror_descent():
    found = runs()
    np.testing.assert_allclose(found["natural"], found["kl"], atol=1e-12)
    count = np.arange(1, len(found["kl"]) + 1)
    # Rewards differ by at most 2.
    bound = np.log(ACTIONS) / (1.0 / (1 - DISCOUNT) * count) + 2 / ((1 - DISCOUNT) ** 2 * count)
    assert (found["natural"] <= bound).all()
