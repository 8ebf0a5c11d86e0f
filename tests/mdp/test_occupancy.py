import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from jdiv import generators
from jdiv.mdp import environments, model, occupancy
from jdiv.mdp.environments.tomato import tomato
from tests.checks import refused

SEEDS = 6
DISCOUNT = 0.8
COEFFICIENT = 0.3


@functools.cache
def worlds():
    """Garnet(5, 3, 3) with references that are occupancies of random policies, by seed."""
    keys = jax.random.split(jax.random.key(7), SEEDS)
    draw = lambda key: environments.garnet(key, states=5, actions=3, branches=3, discount=DISCOUNT)
    mdps = jax.jit(jax.vmap(lambda key: model.dense(draw(key))))(keys)
    base = np.random.default_rng(0).dirichlet(np.ones(3), (SEEDS, 5))
    return mdps, jnp.asarray(base), jax.jit(jax.vmap(model.occupancy))(mdps, jnp.asarray(base))


def world(seed):
    """One of them, as arrays of NumPy: process, base policy, reference."""
    return jax.tree.map(lambda x: np.asarray(x[seed]), worlds())


@functools.cache
def solver(name):
    """Solves all worlds with one coefficient each."""
    row = None if name == "root" else generators.get(name)

    def solve(mdp, reference, coefficient):
        if row is None:
            return occupancy.root_regularized(mdp, jnp.log(reference), coefficient)
        return occupancy.regularized(mdp, jnp.log(reference), coefficient, generator=row)

    return jax.jit(jax.vmap(solve))


@functools.cache
def solved(name, coefficient=COEFFICIENT):
    mdps, _, reference = worlds()
    return jax.tree.map(np.asarray, solver(name)(mdps, reference, jnp.full(SEEDS, coefficient)))


def flows(mdp):
    """The matrix and right side of `outflow - discount inflow = (1 - discount) start`."""
    states, actions = mdp.reward.shape
    out = np.repeat(np.eye(states), actions, 1)
    matrix = out - mdp.discount * mdp.transition.reshape(-1, states).T
    return matrix, (1 - mdp.discount) * mdp.start


DISTANCES = {
    "kl": lambda m, q: np.sum(m * np.log(m / q)),
    "reverse_kl": lambda m, q: np.sum(q * np.log(q / m)),
    "pearson_chi2": lambda m, q: np.sum((m - q) ** 2 / q),
    "root": lambda m, q: np.sqrt(np.sum((m - q) ** 2 / q)),
}
SLOPES = {
    "kl": lambda m, q: np.log(m / q) + 1,
    "reverse_kl": lambda m, q: -q / m,
    "pearson_chi2": lambda m, q: 2 * (m - q) / q,
    "root": lambda m, q: (m - q) / q / np.sqrt(np.sum((m - q) ** 2 / q)),
}


def generic(name, reward, q, matrix, right, begin):
    """`min coefficient D(m, q) - <m, reward>` where `matrix m = right` and m is positive."""
    return optimize.minimize(
        lambda m: COEFFICIENT * DISTANCES[name](m, q) - m @ reward,
        begin,
        jac=lambda m: COEFFICIENT * SLOPES[name](m, q) - reward,
        # Steps to almost 0 are what it does not recover from.
        bounds=[(1e-6 if name == "reverse_kl" else 1e-13, 1)] * q.size,
        constraints={
            "type": "eq",
            "fun": lambda m: matrix @ m - right,
            "jac": lambda m: matrix,
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )


@pytest.mark.parametrize("name", DISTANCES)
def test_optima_are_those_of_a_generic_convex_solver(name):
    found = solved(name)
    assert np.all(np.abs(found.gap) < 1e-9)
    # Away from the reference, where the root has no slope.
    uniform = jnp.full((SEEDS, 5, 3), 1 / 3)
    begin = np.asarray(jax.jit(jax.vmap(model.occupancy))(worlds()[0], uniform))
    for seed in range(SEEDS):
        mdp, _, reference = world(seed)
        q, (matrix, right) = reference.ravel(), flows(mdp)
        reward = mdp.reward.ravel()
        # From three starts, since its line search gets stuck now and then.
        starts = [share * begin[seed].ravel() + (1 - share) * q for share in (0.25, 0.5, 1)]
        runs = [generic(name, reward, q, matrix, right, start) for start in starts]
        best = min(runs, key=lambda run: run.fun if abs(matrix @ run.x - right).max() < 1e-8 else 9)
        np.testing.assert_allclose(found.value[seed], -best.fun, atol=1e-7)
        np.testing.assert_allclose(found.occupancy[seed].ravel(), best.x, atol=2e-4)
        # And what it says of itself is so.
        mass = found.occupancy[seed].ravel()
        np.testing.assert_allclose(matrix @ mass, right, atol=1e-12)
        distance = found.divergence[seed] ** (0.5 if name == "root" else 1)
        value = mass @ reward - COEFFICIENT * distance
        np.testing.assert_allclose(found.value[seed], value, atol=1e-12)
        if name != "root" or distance > 0:
            tiny = np.maximum(mass, 1e-300)
            np.testing.assert_allclose(distance, DISTANCES[name](tiny, q), atol=1e-10)


def test_almost_without_penalty_it_is_the_linear_program():
    found = solved("pearson_chi2", 1e-7)
    for seed in range(SEEDS):
        mdp, _, _ = world(seed)
        matrix, right = flows(mdp)
        best = optimize.linprog(-mdp.reward.ravel(), A_eq=matrix, b_eq=right)
        assert found.value[seed] <= -best.fun
        penalty = 1e-7 * found.divergence[seed]
        np.testing.assert_allclose(found.value[seed] + penalty, -best.fun, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "pearson_chi2"])
def test_no_policy_has_a_larger_return_with_the_penalty_reward(name):
    """Frank-Wolfe's certificate: value iteration's best answer to the gradient is no better."""
    mdps, _, reference = worlds()
    found = solved(name)

    @jax.jit
    @jax.vmap
    def gap(mdp, mass, reference):
        log_ratio = jnp.log(mass) - jnp.log(reference)
        added = occupancy.penalty_reward(log_ratio, COEFFICIENT, generator=generators.get(name))
        gradient = mdp.reward + added
        answer = model.occupancy(mdp, model.optimum(mdp._replace(reward=gradient)).policy)
        return jnp.sum((answer - mass) * gradient)

    np.testing.assert_array_less(np.abs(gap(mdps, found.occupancy, reference)), 1e-8)


def test_the_root_s_penalty_reward_certifies_it_too():
    """Where the optimum has left the reference, at which there is no gradient."""
    coefficient, left = 0.05, 0
    found = solved("root", coefficient)
    for seed in np.flatnonzero(found.divergence > 1e-6):
        mdp, _, reference = world(seed)
        mass, chi2 = found.occupancy[seed], found.divergence[seed]
        added = occupancy.root_penalty_reward(np.log(mass / reference), coefficient, chi2)
        matrix, right = flows(mdp)
        gradient = (mdp.reward + np.asarray(added)).ravel()
        best = optimize.linprog(-gradient, A_eq=matrix, b_eq=right)
        np.testing.assert_allclose(-best.fun, gradient @ mass.ravel(), atol=1e-7)
        left += 1
    assert left >= 3


@pytest.mark.parametrize("name", ["kl", "pearson_chi2", "root"])
def test_the_value_falls_with_the_coefficient_by_the_divergence(name):
    """The envelope theorem, by central differences."""
    step = 1e-4
    above, below = solved(name, COEFFICIENT + step), solved(name, COEFFICIENT - step)
    divergence = solved(name).divergence ** (0.5 if name == "root" else 1)
    slope = (above.value - below.value) / (2 * step)
    np.testing.assert_allclose(slope, -divergence, rtol=1e-4, atol=1e-7)


def test_a_dear_root_stays_at_the_reference():
    """Not so for chi2: a kink against a parabola."""
    _, _, reference = worlds()
    root, square = solved("root", 50.0), solved("pearson_chi2", 50.0)
    np.testing.assert_allclose(root.occupancy, reference, atol=1e-12)
    assert np.all(np.abs(root.gap) < 1e-9)
    assert np.all(np.abs(square.occupancy - reference).max((1, 2)) > 1e-6)


def test_no_random_policy_is_better_than_the_certificate_says():
    mdps, _, reference = worlds()
    policies = np.random.default_rng(1).dirichlet(np.ones(3) / 3, (SEEDS, 1000, 5))
    measures = jax.jit(jax.vmap(jax.vmap(model.occupancy, (None, 0))))(mdps, policies)
    distance = np.sum((measures - reference[:, None]) ** 2 / reference[:, None], (2, 3))
    value = np.sum(measures * mdps.reward[:, None], (2, 3))
    for name, penalty in (("pearson_chi2", distance), ("root", np.sqrt(distance))):
        found = solved(name)
        limit = found.value + found.gap
        assert np.all(value - COEFFICIENT * penalty <= limit[:, None] + 1e-12)


def test_cells_without_reference_stay_empty_and_both_forms_agree():
    """A state that is never reached, an action that the reference never takes."""
    successor = np.array([[[0, 1], [1, 1]], [[0, 1], [0, 0]], [[2, 2], [0, 1]]])
    probability = np.broadcast_to([0.3, 0.7], (3, 2, 2))
    sparse = model.SparseMdp(
        successor, probability, np.array([[0.0, 1.0], [0.5, 0.2], [9.0, 9.0]]), 0.9, np.eye(3)[0]
    )
    base = jnp.array([[0.6, 0.4], [1.0, 0.0], [0.5, 0.5]])

    @jax.jit
    def solve(mdp):
        reference = jnp.log(jnp.maximum(model.occupancy(mdp, base), 0))
        return occupancy.regularized(mdp, reference, 0.2, generator=generators.pearson_chi2())

    a, b = solve(sparse), solve(model.dense(sparse))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-12), a[:5], b[:5])
    assert abs(a.gap) < 1e-12
    np.testing.assert_array_equal(a.occupancy[1, 1], 0)
    np.testing.assert_array_equal(a.occupancy[2], 0)
    # One number is left to choose, the policy of the first state.
    reference = np.asarray(model.occupancy(sparse, base))

    def loss(p):
        mass = np.asarray(model.occupancy(sparse, base.at[0].set(jnp.array([1 - p, p]))))
        on = reference > 0
        distance = np.sum((mass[on] - reference[on]) ** 2 / reference[on])
        return 0.2 * distance - np.sum(mass * sparse.reward)

    best = optimize.minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    np.testing.assert_allclose(a.policy[0, 1], best.x, atol=1e-6)
    np.testing.assert_allclose(a.value, -best.fun, atol=1e-12)


def test_action_by_action_is_soft_value_iteration():
    """400 sweeps of `V = c log sum base exp(q/c)`, and returns of the process with penalties."""
    mdps, base, _ = worlds()
    solve = jax.jit(
        jax.vmap(
            lambda mdp, base: occupancy.action_regularized(
                mdp, jnp.log(base), COEFFICIENT, generator=generators.kl()
            )
        )
    )
    found = solve(mdps, base)
    for seed in range(SEEDS):
        mdp, prior, _ = world(seed)
        value = np.zeros(5)
        for _ in range(400):
            q = mdp.reward + DISCOUNT * mdp.transition @ value
            value = COEFFICIENT * np.log(np.sum(prior * np.exp(q / COEFFICIENT), 1))
        policy = prior * np.exp((q - value[:, None]) / COEFFICIENT)
        np.testing.assert_allclose(found.value[seed], value, atol=1e-12)
        np.testing.assert_allclose(found.policy[seed], policy, atol=1e-11)
        mass = np.asarray(model.occupancy(mdp, found.policy[seed]))
        paid = occupancy.action_divergence(
            jnp.log(found.policy[seed]), jnp.log(prior), mass.sum(1), generator=generators.kl()
        )
        gained = np.sum(mass * mdp.reward) - COEFFICIENT * paid
        np.testing.assert_allclose(gained, (1 - DISCOUNT) * mdp.start @ value, atol=1e-12)
    assert np.all(found.residual < 1e-12)


def test_divergences_of_measures():
    """Chi2 by its sum; KL by the chain rule over states and actions."""
    _, base, reference = worlds()
    other = np.random.default_rng(2).dirichlet(np.ones(15), SEEDS).reshape(SEEDS, 5, 3)
    mass, q = jnp.log(other), jnp.log(reference)
    np.testing.assert_allclose(
        occupancy.divergence(mass, q, generator=generators.pearson_chi2()),
        np.sum((other - reference) ** 2 / reference, (1, 2)),
    )
    states = other.sum(2)
    of_states = stats.entropy(states, reference.sum(2), axis=1)
    of_actions = occupancy.action_divergence(
        jnp.log(other / states[..., None]), jnp.log(base), states, generator=generators.kl()
    )
    np.testing.assert_allclose(
        occupancy.divergence(mass, q, generator=generators.kl()), of_states + of_actions
    )


def correlated(seed):
    """Reference, true reward and a proxy that goes with it."""
    mdp, _, reference = world(seed)
    noise = np.random.default_rng(seed).normal(size=reference.shape)
    return reference, mdp.reward, mdp.reward + 0.4 * noise


def test_the_bound_holds_on_1000_random_policies_and_is_attained():
    slack, unpaid = [], []
    for seed in range(SEEDS):
        reference, reward, proxy = correlated(seed)
        moments = occupancy.reward_correlation(*map(jnp.asarray, (reference, reward, proxy)))
        z_true, z_proxy = (
            (x - np.average(x, weights=reference))
            / np.sqrt(np.cov(x.ravel(), aweights=reference.ravel(), bias=True))
            for x in (reward, proxy)
        )
        np.testing.assert_allclose(moments.correlation, np.sum(reference * z_true * z_proxy))
        np.testing.assert_allclose(moments.rest, np.sqrt(1 - moments.correlation**2))
        assert 0 < moments.correlation < 1
        policies = np.random.default_rng(seed).dirichlet(np.ones(3) / 2, (200, 5))
        measures = np.asarray(
            jax.vmap(model.occupancy, (None, 0))(world(seed)[0], jnp.asarray(policies))
        )
        gain, sensed = (np.sum(measures * z, (1, 2)) for z in (z_true, z_proxy))
        chi2 = np.sum((measures - reference) ** 2 / reference, (1, 2))
        slack.append(gain - occupancy.gain_bound(moments, sensed, chi2))
        unpaid.append(gain - occupancy.gain_bound(moments, sensed, 0 * chi2))
        # Moving only along what the proxy has and the true reward has not: equality.
        along = (z_proxy - moments.correlation * z_true) / moments.rest
        step = 0.5 / np.abs(along).max()
        moved = reference * (1 + step * along)
        bound = occupancy.gain_bound(moments, np.sum(moved * z_proxy), step**2)
        np.testing.assert_allclose(bound, 0, atol=1e-12)
        np.testing.assert_allclose(np.sum(moved * z_true), 0, atol=1e-12)
    assert np.size(slack) >= 1000
    assert np.min(slack) >= -1e-12
    assert np.min(unpaid) < -1e-3


def test_the_discriminator_finds_the_log_ratio():
    """Cells in proportion to counts: the loss is stationary at log mu/ref, and least there."""
    counts = np.array([[4, 1, 3, 2], [1, 2, 2, 5]])
    policy, reference = (np.repeat(np.arange(4), row) for row in counts)
    score = jnp.log(counts[0] / counts[1])
    loss = jax.jit(lambda d: occupancy.discriminator_loss(d[policy], d[reference]))
    by_hand = np.logaddexp(0, -score[policy]).mean() + np.logaddexp(0, score[reference]).mean()
    np.testing.assert_allclose(loss(score), by_hand, rtol=1e-14)
    solved = optimize.minimize(lambda d: float(loss(jnp.asarray(d))), np.zeros(4), tol=1e-10)
    np.testing.assert_allclose(solved.x, score, atol=1e-4)
    for cell in range(4):
        up, down = (loss(score.at[cell].add(h)) for h in (1e-5, -1e-5))
        np.testing.assert_allclose((up - down) / 2e-5, 0, atol=1e-9)


def test_the_penalties_of_the_released_code():
    """`-c d`, `-c (e^d - 1)`, `-c (e^d - 1)/sqrt(trimmed mean)` and `-c sign(d)`."""
    d = jnp.asarray(np.random.default_rng(3).normal(size=400))
    excess, c = np.expm1(d), 0.7
    got = {
        "kl": occupancy.penalty_reward(d, c, generator=generators.kl()),
        "chi2": occupancy.penalty_reward(d, c / 2, generator=generators.pearson_chi2()),
        "tv": occupancy.penalty_reward(d, 2 * c, generator=generators.total_variation()),
    }
    np.testing.assert_allclose(got["kl"], -c * d, atol=1e-15)
    np.testing.assert_allclose(got["chi2"], -c * excess, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got["tv"], -c * np.sign(d))
    trimmed = occupancy.trimmed_mean(jnp.asarray(excess))
    np.testing.assert_allclose(trimmed, stats.trim_mean(excess, 0.01))
    root = occupancy.root_penalty_reward(d, c, trimmed)
    np.testing.assert_allclose(root, -c * excess / np.sqrt(trimmed), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(occupancy.root_penalty_reward(d, c, -0.2), got["chi2"])


def test_the_penalty_reward_is_the_gradient_of_the_penalty():
    mass, reference = np.random.default_rng(4).dirichlet(np.ones(15), 2).reshape(2, 5, 3)
    move = np.random.default_rng(5).normal(size=(5, 3)) * mass * 1e-5
    move -= mass * move.sum()
    for name in ("kl", "reverse_kl", "pearson_chi2", "squared_hellinger", "jensen_shannon"):
        row = generators.get(name)
        up, down = (
            occupancy.divergence(jnp.log(mass + s * move), jnp.log(reference), generator=row)
            for s in (1, -1)
        )
        added = occupancy.penalty_reward(jnp.log(mass / reference), 0.7, generator=row)
        np.testing.assert_allclose(np.sum(added * move), -0.7 * (up - down) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("level", "name", "coefficient", "true"),
    [
        (2, "chi2", 1.0, 0.0770), (2, "chi2", 0.3, 0.0775), (2, "chi2", 0.1, 0.0779),
        (2, "chi2", 0.03, 0.0780), (2, "chi2", 0.01, 0.0775),
        (4, "chi2", 1.0, 0.0954), (4, "chi2", 0.3, 0.0966), (4, "chi2", 0.1, 0.0972),
        (4, "chi2", 0.03, 0.0974), (4, "chi2", 0.01, 0.0974),
        (2, "kl", 10.0, 0.0779), (2, "kl", 7.0, 0.0781), (2, "kl", 5.0, 0.0774),
        (2, "kl", 3.0, 0.0223), (2, "kl", 1.0, 0.0206),
        (4, "kl", 20.0, 0.0954), (4, "kl", 15.0, 0.0957), (4, "kl", 10.0, 0.0362),
        (4, "kl", 3.0, 0.0234),
    ],
)  # fmt: skip
def test_the_reference_numbers_of_the_tomato_world(level, name, coefficient, true):
    solve, scale, reward = tomato_solver(level, name)
    found, gap = solve(coefficient * scale)
    np.testing.assert_allclose(np.sum(found * reward), true, rtol=0.02)
    assert abs(gap) < 1e-12


@functools.cache
def tomato_solver(level, name):
    """Occupancy and evidence of the regularised optimum for the proxy; the proxy's deviation."""
    this = tomato(level)
    sensed = this.mdp._replace(reward=this.proxy)
    best = jax.jit(model.optimum)(this.mdp).policy
    base = 0.9 * best + 0.1 / 4
    reference = jax.jit(model.occupancy)(this.mdp, base)
    found = occupancy.reward_correlation(reference, this.mdp.reward, this.proxy)
    true, correlation = {2: (0.0765, 0.968), 4: (0.0939, 1.0)}[level]
    np.testing.assert_allclose(found.true_mean, true, rtol=0.02)
    np.testing.assert_allclose(found.correlation, correlation, rtol=0.02)

    def solve(coefficient):
        if name == "chi2":
            at = occupancy.regularized(
                sensed, jnp.log(reference), coefficient, generator=generators.pearson_chi2()
            )
            return at.occupancy, at.gap
        at = occupancy.action_regularized(
            sensed, jnp.log(base), coefficient, generator=generators.kl()
        )
        return model.occupancy(sensed, at.policy), at.residual

    return jax.jit(solve), found.proxy_deviation, this.mdp.reward


CHAIN = environments.chain(length=3)
LOGS = jnp.log(jnp.full((3, 2), 1 / 6))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generator": "kl"}, ["generator", "got kl"]),
        ({"generator": generators.total_variation()}, ["generator", "total_variation"]),
        ({"ref_logits": LOGS[:2]}, ["ref_logits", "(3, 2)", "(2, 2)"]),
        ({"ref_logits": np.ones((3, 2), int)}, ["ref_logits", "floating"]),
        ({"temperature": 0.0}, ["temperature", "positive", "0.0"]),
        ({"temperature": -1.0}, ["temperature", "positive", "-1.0"]),
        ({"temperature": np.nan}, ["temperature", "positive", "nan"]),
    ],
)
def test_what_cannot_be_solved_is_refused(change, words):
    given = {"ref_logits": LOGS, "temperature": 1.0, "generator": generators.kl()} | change
    refused((ValueError, TypeError), words, lambda: occupancy.regularized(CHAIN, **given))


def test_other_refusals():
    kl = generators.kl()
    refused(
        ValueError,
        ["ref_logits", "(3, 2)"],
        lambda: occupancy.divergence(LOGS[0], LOGS, generator=kl),
    )
    refused(
        ValueError, ["reward", "(2, 2)"], lambda: occupancy.reward_correlation(LOGS, LOGS[:2], LOGS)
    )
    refused(ValueError, ["share", "0.5"], lambda: occupancy.trimmed_mean(jnp.ones(4), 0.5))
