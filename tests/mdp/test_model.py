from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jdiv.mdp import environments, model
from tests.checks import refused


def random_mdp(seed, discount=0.9):
    """Garnet(12, 3, 4) and its dense form."""
    sparse = environments.garnet(
        jax.random.key(seed), states=12, actions=3, branches=4, discount=discount
    )
    return sparse, model.dense(sparse)


def random_policy(seed, shape=(12, 3)):
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(shape[1]), shape[0]))


@jax.jit
def everything(mdp, policy):
    """All that is computed of a process."""
    value = model.policy_value(mdp, policy)
    return {
        "expectation": mdp.expectation(value),
        "flow": mdp.flow(policy),
        "chain": mdp.policy_transition(policy),
        "value": value,
        "q": model.policy_action_values(mdp, policy),
        "occupancy": model.occupancy(mdp, policy),
        "return": model.expected_return(mdp, policy),
        "optimum": model.optimum(mdp),
        "horizon": model.finite_horizon_value(mdp, policy, 6, discount=0.7),
        "best": model.finite_horizon_optimum(mdp, 6),
    }


def test_dense_and_sparse_forms_agree():
    for seed in range(3):
        sparse, dense = random_mdp(seed)
        policy = random_policy(seed)
        a, b = everything(sparse, policy), everything(dense, policy)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-12), a, b)


def test_repeated_successors_add_up():
    mdp = model.SparseMdp(
        np.array([[[1, 1]], [[0, 1]]]), np.array([[[0.25, 0.75]], [[0.5, 0.5]]]),
        np.zeros((2, 1)), 0.5, np.array([1.0, 0.0]),
    )  # fmt: skip
    np.testing.assert_array_equal(mdp.policy_transition(jnp.ones((2, 1))), [[0, 1], [0.5, 0.5]])
    np.testing.assert_array_equal(model.dense(mdp).transition[:, 0], [[0, 1], [0.5, 0.5]])


def test_values_are_discounted_sums_of_rewards():
    """Against 400 explicit steps of the distribution over states."""
    sparse, dense = random_mdp(3)
    policy = np.asarray(random_policy(3))
    found = everything(sparse, jnp.asarray(policy))
    distribution, total, visits = np.eye(12), np.zeros(12), np.zeros((12, 3))
    for step in range(400):
        total += 0.9**step * distribution @ (policy * np.asarray(dense.reward)).sum(1)
        visits += 0.1 * 0.9**step * (np.asarray(dense.start) @ distribution)[:, None] * policy
        distribution = distribution @ np.einsum("sa,sat->st", policy, dense.transition)
    np.testing.assert_allclose(found["value"], total, atol=1e-12)
    np.testing.assert_allclose(found["occupancy"], visits, atol=1e-12)
    np.testing.assert_allclose(
        found["return"] * 0.1, np.sum(found["occupancy"] * dense.reward), atol=1e-12
    )


def test_the_optimum_is_that_of_a_linear_program():
    for seed in range(4):
        sparse, dense = random_mdp(seed, discount=0.95)
        best = everything(sparse, random_policy(0))["optimum"]
        # min sum v subject to v >= r_a + g P_a v
        matrix = 0.95 * np.asarray(dense.transition).reshape(-1, 12) - np.repeat(np.eye(12), 3, 0)
        solved = optimize.linprog(
            np.ones(12), matrix, -np.asarray(dense.reward).ravel(), bounds=(None, None)
        )
        np.testing.assert_allclose(best.value, solved.x, atol=1e-9)
        assert best.residual < 1e-12
        assert 1 <= best.iterations < 20
        np.testing.assert_array_equal(best.policy.sum(axis=1), 1)


def test_finite_horizon_by_enumeration():
    """Three steps on a chain of three cells: every plan of a deterministic process."""
    chain = environments.chain(length=3, slip=0.0)
    _, q = model.finite_horizon_optimum(chain, 3)
    follow = lambda state, action: max(state - 1, 0) if action == 0 else min(state + 1, 2)

    def best(state, steps):
        return 0.0 if steps == 0 else max(after(state, a, steps) for a in (0, 1))

    def after(state, action, steps):
        return chain.reward[state, action] + best(follow(state, action), steps - 1)

    expected = [[[after(s, a, steps) for a in (0, 1)] for s in range(3)] for steps in (3, 2, 1)]
    np.testing.assert_allclose(q, expected)


def change(mdp, name, value, place=None):
    array = np.array(getattr(mdp, name), dtype=float)
    if place is None:
        return mdp._replace(**{name: value})
    array[place] = value
    return mdp._replace(**{name: array})


CHAIN = environments.chain(length=3)
TWO = model.SparseMdp(
    np.array([[[0, 1]], [[1, 0]]]), np.full((2, 1, 2), 0.5), np.zeros((2, 1)), 0.9,
    np.array([1.0, 0.0]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("mdp", "words"),
    [
        (
            partial(change, CHAIN, "transition", 0.3, (0, 1, 0)),
            ["transition", "sum to one", "(0, 1)"],
        ),
        (
            partial(change, CHAIN, "transition", -0.1, (1, 0, 2)),
            ["transition", "negative", "(1, 0, 2)"],
        ),
        (
            partial(change, CHAIN, "transition", np.nan, (1, 0, 2)),
            ["transition", "nan", "(1, 0, 2)"],
        ),
        (partial(change, CHAIN, "reward", np.nan, (2, 1)), ["reward", "finite", "nan", "(2, 1)"]),
        (partial(change, CHAIN, "reward", np.zeros((3, 3))), ["reward", "(3, 2)", "(3, 3)"]),
        (partial(change, CHAIN, "start", np.full(3, 0.5)), ["start", "sum to one", "1.5"]),
        (partial(change, CHAIN, "start", np.ones(2) / 2), ["start", "(3,)", "(2,)"]),
        (partial(change, CHAIN, "discount", 1.0), ["discount", "[0, 1)", "1.0"]),
        (partial(change, CHAIN, "discount", -0.1), ["discount", "[0, 1)", "-0.1"]),
        (
            partial(change, CHAIN, "transition", np.ones((3, 2)) / 2),
            ["transition", "[S, A", "(3, 2)"],
        ),
        (partial(change, CHAIN, "transition", np.ones((3, 2, 1))), ["transition", "[S, A, S]"]),
        (partial(change, TWO, "successor", TWO.successor + 1), ["successor", "[0, 2)", "2"]),
        (partial(change, TWO, "successor", TWO.successor * 1.0), ["successor", "integers"]),
        (partial(change, TWO, "successor", TWO.successor[..., :1]), ["successor", "(2, 1, 2)"]),
    ],
)
def test_what_is_no_process_is_refused(mdp, words):
    model.validate(CHAIN)
    model.validate(TWO)
    refused((ValueError, TypeError), words, lambda: model.validate(mdp()))


def process(discount, precision=jnp.float64):
    """A dense garnet of 30 states, whose values are up to `1/(1 - discount)`."""
    made = model.dense(environments.garnet(jax.random.key(3), states=30, discount=discount))
    arrays = jax.tree.map(lambda x: jnp.asarray(x, precision), made)
    return arrays._replace(discount=discount)


@pytest.mark.parametrize("discount", [0.99, 0.999, 0.9999])
def test_value_and_policy_of_the_optimum_belong_together(discount):
    """In single precision, too, the policy is that of double precision, and so is its value."""

    @jax.jit
    def solve(mdp):
        best = model.optimum(mdp)
        return best, model.policy_value(mdp, best.policy)

    double, float32 = process(discount), process(discount, jnp.float32)
    (exact, value), (single, own) = solve(double), solve(float32)
    assert exact.residual < 1e-14
    np.testing.assert_allclose(exact.value, value, rtol=1e-14)
    q = double.reward + discount * double.expectation(exact.value)
    np.testing.assert_array_equal(q.argmax(1), exact.policy.argmax(1))
    np.testing.assert_array_equal(exact.policy, single.policy)
    assert single.residual < 1e-5
    np.testing.assert_allclose(single.value, exact.value, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(single.value, own)


def test_the_first_of_equally_good_actions_at_a_discount_near_one():
    """Two actions that lead to the same, one of them a millionth worse."""
    twice = jnp.eye(2)[jnp.array([[1, 1, 1], [0, 0, 0]])]
    reward = jnp.array([[1.0, 1.0, 1.0 - 1e-6], [3.0 - 1e-6, 3.0, 3.0]])
    best = jax.jit(model.optimum)(model.Mdp(twice, reward, 0.9999, jnp.eye(2)[0]))
    np.testing.assert_array_equal(best.policy, [[1, 0, 0], [0, 1, 0]])


def test_gradients_of_values_are_those_of_the_formula():
    sparse, dense = random_mdp(5)
    policy = random_policy(5)

    def plain(reward, discount):
        chain = jnp.einsum("sa,sat->st", policy, dense.transition)
        return jnp.linalg.inv(jnp.eye(12) - discount * chain) @ jnp.sum(policy * reward, axis=1)

    def ours(reward, discount):
        return model.policy_value(sparse._replace(reward=reward, discount=discount), policy)

    slopes = jax.jit(lambda *at: [jax.jacrev(f, (0, 1))(*at) for f in (plain, ours)])
    expected, found = slopes(sparse.reward, 0.9)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-9), expected, found)


def test_traced_nonsense_is_nan():
    """Logarithms for a policy, a discount of 1.5, rows that sum to 2, a NaN reward."""

    @jax.jit
    def values(reward, discount, scale, log_policy):
        made = model.Mdp(scale * CHAIN.transition, reward, discount, CHAIN.start)
        policy = jnp.where(log_policy, jnp.log(0.5), 0.5) * jnp.ones((3, 2))
        best = model.optimum(made)
        return model.policy_value(made, policy), model.occupancy(made, policy), best.policy

    assert np.isfinite(
        jnp.concatenate([x.ravel() for x in values(CHAIN.reward, 0.9, 1.0, False)])
    ).all()
    for given in ((CHAIN.reward, 1.5, 1.0, False), (CHAIN.reward, 0.9, 2.0, False)):
        assert all(np.isnan(x).all() for x in values(*given))
    value, mass, _ = values(CHAIN.reward, 0.9, 1.0, True)
    assert np.isnan(value).all()
    assert np.isnan(mass).all()
    assert np.isnan(values(CHAIN.reward * np.nan, 0.9, 1.0, False)[2]).all()
    logs = np.log(np.full((3, 2), 0.5))
    refused(ValueError, ["policy", "-0.69"], lambda: model.policy_value(CHAIN, logs))
    refused(ValueError, ["policy", "-0.69"], lambda: model.occupancy(CHAIN, logs))
    refused(ValueError, ["discount", "1.5"], lambda: environments.chain(discount=1.5))
