"""The regularised greedy step against generic solvers, published tables, limits and calculus."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.special

from jdiv import divergences as dv
from jdiv import generators, regularized
from tests.checks import PARAMETERS as EVERY
from tests.checks import raises
from tests.search import greedy as random_problems

SMOOTH = [name for name in EVERY if name != "total_variation"]
# NumPy here: JAX would round to float32 before the tests enable double precision.
REF = np.log([0.05, 0.15, 0.2, 0.25, 0.35])
VALUES = np.array([1.0, 0.2, -0.5, 0.3, -1.0])


def test_every_row_is_covered():
    assert set(EVERY) == set(generators.TABLE)


def row(name):
    return generators.get(name, **EVERY[name])


@functools.cache
def solver(name):
    return jax.jit(
        lambda v, ref, temperature: regularized.greedy(v, ref, temperature, generator=row(name))
    )


@functools.cache
def gradients_of_value(name):
    """By values, reference and temperature; the solver is traced once for all tests."""
    value = lambda *x: solver(name)(*x).value
    return jax.jit(jax.grad(value, (0, 1, 2)))


def of_five(*arrays):
    """Logits and values of fewer actions, as five: one program for all; the others have no mass."""
    values, ref = (np.asarray(x) for x in arrays)
    missing = 5 - len(ref)
    return np.append(values, np.zeros(missing)), np.append(ref, np.full(missing, -np.inf))


# Of any row of the table, and of traced parameters.
of_generator = jax.jit(regularized.greedy)


# ------------------------------------------------------------ against independent optimisers


FORMULAS = {
    "kl": lambda p, q: p * jnp.log(p / q),
    "reverse_kl": lambda p, q: -q * jnp.log(p / q),
    "jeffreys": lambda p, q: (p - q) * jnp.log(p / q),
    "jensen_shannon": lambda p, q: (
        0.3 * p * jnp.log(p / (0.3 * p + 0.7 * q)) + 0.7 * q * jnp.log(q / (0.3 * p + 0.7 * q))
    ),
    "skew_kl": lambda p, q: p * jnp.log(p / (0.8 * p + 0.2 * q)),
    "squared_hellinger": lambda p, q: (jnp.sqrt(p) - jnp.sqrt(q)) ** 2 / 2,
    "pearson_chi2": lambda p, q: (p - q) ** 2 / q,
    "neyman_chi2": lambda p, q: (p - q) ** 2 / p,
    "le_cam": lambda p, q: (p - q) ** 2 / (2 * (p + q)),
    "alpha": lambda p, q: (p**0.7 * q**0.3 - 0.7 * p - 0.3 * q) / (0.7 * -0.3),
    "tsallis": lambda p, q: (p**1.6 * q**-0.6 - p) / 0.6,
    "chi2_kl": lambda p, q: (p - q) ** 2 / (2 * q) + 0.6 * p * jnp.log(p / q),
}


@functools.cache
def derivatives(name):
    """The formula summed, and its elementwise first and second derivative by p."""
    f = FORMULAS[name]
    slope = jax.vmap(jax.grad(f))
    curvature = jax.vmap(jax.grad(jax.grad(f)))
    return jax.jit(lambda p, q: (jnp.sum(f(p, q)), slope(p, q), curvature(p, q)))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("temperature", [0.2, 2.0])
def test_against_a_constrained_optimiser(name, temperature):
    """SLSQP over the simplex, told nothing of generators or normalizers, from two starts."""
    rng = np.random.default_rng(0)
    for _ in range(2):
        values, ref = rng.normal(size=5), scipy.special.softmax(rng.normal(size=5))

        def loss(pi, values=values, ref=ref):
            cost, slope, _ = (np.asarray(x) for x in derivatives(name)(pi, ref))
            return temperature * cost - pi @ values, temperature * slope - values

        ours = solver(name)(jnp.array(values), jnp.log(ref), temperature)
        best = None
        for start in (np.full(5, 0.2), ref):
            found = scipy.optimize.minimize(
                loss, start, jac=True, method="SLSQP", bounds=[(1e-12, 1)] * 5,
                constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
                options={"ftol": 1e-16, "maxiter": 1000},
            )  # fmt: skip
            best = found if best is None or found.fun < best.fun else best
        # The solver's own accuracy bounds the comparison of policies; values bound it both ways.
        assert ours.value >= -best.fun - 1e-12
        np.testing.assert_allclose(ours.value, -best.fun, rtol=1e-9, atol=1e-9)
        expected = polish(name, best.x, values, ref, temperature)
        np.testing.assert_allclose(jnp.exp(ours.log_policy), expected, atol=1e-7)


def polish(name, pi, values, ref, temperature):
    """Newton on the optimality conditions of the active set, from the optimiser's answer."""
    active = pi > 1e-8
    k = active.sum()
    for _ in range(10):
        slope, curvature = (np.asarray(x)[active] for x in derivatives(name)(pi, ref)[1:])
        system = np.zeros((k + 1, k + 1))
        system[:k, :k], system[:k, k], system[k, :k] = -temperature * np.diag(curvature), 1, 1
        gradient = values[active] - temperature * slope
        step = np.linalg.solve(system, np.append(-gradient, 1 - pi[active].sum()))[:k]
        pi[active] = np.maximum(pi[active] + step, pi[active] / 10)
    return np.where(active, pi, 0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_total_variation_against_a_linear_program(temperature):
    rng = np.random.default_rng(1)
    for _ in range(20):
        values, log_ref = rng.normal(size=6), jax.nn.log_softmax(jnp.array(rng.normal(size=6)))
        ref = np.asarray(jnp.exp(log_ref))
        ours = solver("total_variation")(jnp.array(values), log_ref, temperature)
        # max <pi, v> - temperature/2 sum s, with s >= |pi - ref|
        found = scipy.optimize.linprog(
            np.append(-values, np.full(6, temperature / 2)),
            A_ub=np.block([[np.eye(6), -np.eye(6)], [-np.eye(6), -np.eye(6)]]),
            b_ub=np.append(ref, -ref), A_eq=[[1.0] * 6 + [0.0] * 6], b_eq=[1.0],
        )  # fmt: skip
        np.testing.assert_allclose(ours.value, -found.fun, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(jnp.exp(ours.log_policy), found.x[:6], atol=1e-9)


def test_published_table_of_f_dpo_policies():
    """Five answers, beta = 1/2, and the normalizers of the customary generators to six digits."""
    table = {
        ("kl", ()): (-0.421627, 1.0, [0.31585, 0.19131, 0.06290, 0.38944, 0.04050]),
        ("alpha", (("alpha", 0.7),)): (
            0.206867, 0.0, [0.43072, 0.14796, 0.06155, 0.30282, 0.05695],
        ),
        ("reverse_kl", ()): (1.042229, -1.0, [0.59201, 0.08905, 0.06484, 0.16841, 0.08569]),
        ("jensen_shannon", (("weight", 0.5),)): (
            0.681289, 0.0, [0.87250, 0.03540, 0.00988, 0.07604, 0.00617],
        ),
        ("pearson_chi2", ()): (-0.295, 0.0, [0.11475, 0.22425, 0.15900, 0.39875, 0.10325]),
    }  # fmt: skip
    for (name, parameters), (normalizer, slope_at_one, policy) in table.items():
        generator = generators.get(name, **dict(parameters))
        # The table's Jensen-Shannon is twice ours, so its coefficient is doubled.
        beta = 1.0 if name == "jensen_shannon" else 0.5
        ours = of_generator(VALUES, REF, beta, generator=generator)
        np.testing.assert_allclose(jnp.exp(ours.log_policy), policy, atol=6e-6)
        np.testing.assert_allclose(ours.normalizer - beta * slope_at_one, normalizer, atol=6e-7)
        spread = VALUES - beta * jax.jit(generator.slope)(ours.log_policy - REF)
        np.testing.assert_allclose(spread, np.full(5, ours.normalizer), atol=1e-8)


def test_pearson_drops_actions_and_loses_the_identity_behind_f_dpo():
    """beta = .1: two answers get exactly nothing and `v - beta f'` is no longer constant."""
    generator = generators.pearson_chi2()
    ours = of_generator(VALUES, REF, 0.1, generator=generator)
    np.testing.assert_allclose(jnp.exp(ours.log_policy), [0.275, 0.225, 0, 0.5, 0], atol=1e-14)
    assert np.all(np.isneginf(np.asarray(ours.log_policy)[[2, 4]]))
    spread = VALUES - 0.1 * jax.jit(generator.slope)(ours.log_policy - REF)
    np.testing.assert_allclose(spread, [0.1, 0.1, -0.3, 0.1, -0.8], atol=1e-13)


# ------------------------------------------------------------ limits, symmetries


@pytest.mark.parametrize("name", EVERY)
def test_limits_of_the_temperature(name):
    hot, cold = (solver(name)(VALUES, REF, temperature) for temperature in (1e4, 1e-4))
    np.testing.assert_allclose(hot.log_policy, REF, atol=5e-3)  # f''(1) is .04 for skew_kl
    assert np.exp(cold.log_policy)[0] > 0.98
    np.testing.assert_allclose(hot.value, np.sum(np.exp(REF) * VALUES), atol=1e-3)
    np.testing.assert_allclose(cold.value, 1.0, atol=0.03)  # neyman_chi2 costs sqrt(temperature)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("temperature", [0.01, 0.3, 100.0])
def test_actions_of_equal_value_keep_the_odds_of_the_reference(name, temperature):
    arguments = of_five([1.0, 1.0, 0.0, 0.0], np.log([0.04, 0.01, 0.6, 0.35]))
    policy = np.asarray(solver(name)(*arguments, temperature).log_policy)
    np.testing.assert_allclose(policy[0] - policy[1], math.log(4), rtol=1e-9)
    if np.isfinite(policy[2]):
        np.testing.assert_allclose(policy[2] - policy[3], math.log(0.6 / 0.35), rtol=1e-7)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_converges_from_one_to_100000_actions(name, dtype):
    rng = np.random.default_rng(2)
    many = np.array([1e-4, 1e-2, 1.0, 1e2, 1e4], dtype)
    for n, total in ((1, 1), (1, 37), (37, 37), (100_000, 100_000)):
        values, ref = ((s * rng.normal(size=n)).astype(dtype) for s in (1, 3))
        arrays = np.zeros((2, 5, total), dtype)
        arrays[1] = -np.inf
        arrays[:, :, :n] = np.stack([values, ref])[:, None]
        ours = jax.tree.map(np.asarray, solver(name)(*arrays, many))
        assert np.all(ours.converged)
        assert ours.iterations <= 40
        assert ours.log_policy.dtype == dtype
        total = scipy.special.logsumexp(ours.log_policy, axis=-1)
        np.testing.assert_allclose(total, np.zeros(5), atol=100 * float(jnp.finfo(dtype).eps))
        mean = np.sum(scipy.special.softmax(ref) * values)
        assert np.all(ours.value >= mean - 1e-4 * (1 + np.abs(mean)))
        assert np.all(ours.value <= np.max(values) + 1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_zero_reference_stays_zero_and_changes_nothing(name):
    # The shapes of the program of 37 actions.
    values, ref = np.full((5, 37), 100.0), np.full((5, 37), -np.inf)
    values[:, :5], ref[:, :5] = VALUES, REF
    ours = solver(name)(values, ref, np.full(5, 0.4))
    without = solver(name)(VALUES, REF, 0.4)
    for log_policy, value in zip(ours.log_policy, ours.value, strict=True):
        assert np.all(log_policy[5:] == -jnp.inf)
        np.testing.assert_allclose(log_policy[:5], without.log_policy, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(value, without.value, rtol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_a_best_action_that_the_reference_hardly_takes(name):
    """Reference mass e^-60 or e^-1000 on the only good action: finite and differentiable."""
    for log_mass in (-60.0, -1000.0):
        arguments = of_five([1.0, 0.0, -1.0], [log_mass, 0.0, 0.0])
        ours = solver(name)(*arguments, 1e-3)
        assert ours.converged
        np.testing.assert_allclose(scipy.special.logsumexp(ours.log_policy), 0, atol=1e-12)
        gradient, *_ = gradients_of_value(name)(*arguments, 1e-3)
        np.testing.assert_allclose(gradient, np.exp(ours.log_policy), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------ calculus


def test_the_search_has_an_end_where_rounding_leaves_no_action_at_the_top():
    generator = row("pearson_chi2").per_row(VALUES)
    scaled = jnp.asarray(VALUES) - 1
    start, high = regularized._start(generator, scaled, jnp.asarray(REF))
    np.testing.assert_allclose(high, -REF[0], rtol=1e-15)
    lower, end = regularized._start(generator, scaled - 1e-16 - 1e-15, jnp.asarray(REF))
    np.testing.assert_allclose(end, -REF.min(), rtol=1e-15)
    np.testing.assert_allclose(lower, start, rtol=1e-14)


def test_a_total_beyond_all_bounds_is_infinite_and_no_nan():
    generator = row("reverse_kl").per_row(VALUES[:2])
    half, one = jnp.log(jnp.full(2, 0.5)), jnp.ones(())
    here = regularized._at(generator, jnp.array([2.0, 0.0]), one, half, 0 * one, 0 * one)
    assert here.log_total == jnp.inf


@pytest.mark.parametrize("name", EVERY)
def test_gradient_of_the_value_is_the_policy(name):
    gradients = gradients_of_value(name)(VALUES, REF, 0.35)
    ours = solver(name)(VALUES, REF, 0.35)
    np.testing.assert_allclose(gradients[0], np.exp(ours.log_policy), atol=1e-14)
    step = 1e-6
    for i, move in enumerate(step * np.eye(5)):
        difference = (
            solver(name)(VALUES, REF + move, 0.35).value
            - solver(name)(VALUES, REF - move, 0.35).value
        )
        np.testing.assert_allclose(gradients[1][i], difference / (2 * step), atol=1e-8)
    difference = (
        solver(name)(VALUES, REF, 0.35 + step).value - solver(name)(VALUES, REF, 0.35 - step).value
    )
    np.testing.assert_allclose(gradients[2], difference / (2 * step), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_policy_is_differentiable(name):
    """Implicit differentiation against finite differences, by values, reference and temperature.

    And the Hessian of the value is the Jacobian of the policy.
    """

    policy = lambda *x: jnp.exp(solver(name)(*x).log_policy)
    value = lambda *x: solver(name)(*x).value

    def both(*x):
        return jax.jacobian(policy, (0, 1, 2))(*x), jax.hessian(value)(*x)

    jacobians, hessian = jax.jit(both)(VALUES, REF, 0.35)
    jacobians = [np.asarray(x) for x in jacobians]
    np.testing.assert_allclose(hessian, jacobians[0], atol=1e-11)
    np.testing.assert_allclose(jacobians[0], jacobians[0].T, atol=1e-11)
    step, run = 1e-6, lambda *x: np.exp(solver(name)(*x).log_policy)
    for which in (0, 1):
        for i in range(5):
            moves = np.zeros((2, 5))
            moves[which, i] = step
            up, down = (run(VALUES + s * moves[0], REF + s * moves[1], 0.35) for s in (1, -1))
            np.testing.assert_allclose(jacobians[which][:, i], (up - down) / (2 * step), atol=2e-8)
    difference = run(VALUES, REF, 0.35 + step) - run(VALUES, REF, 0.35 - step)
    np.testing.assert_allclose(jacobians[2], difference / (2 * step), atol=2e-8)


def test_gradient_by_the_generators_parameter():
    def value(a):
        return regularized.greedy(VALUES, REF, 0.35, generator=generators.alpha(a)).value

    sweep = jax.jit(jax.vmap(jax.value_and_grad(value)))
    orders = jnp.array([-1.0, 0.0, 0.4, 1.0, 2.0])
    _, gradients = sweep(orders)
    up, down = (sweep(orders + s)[0] for s in (1e-5, -1e-5))
    np.testing.assert_allclose(gradients, (up - down) / 2e-5, rtol=1e-6)
    # The traced order reproduces the closed form of KL.
    closed = solver("kl")(VALUES, REF, 0.35).value
    np.testing.assert_allclose(jax.jit(value)(1.0), closed, rtol=1e-14)


def test_same_under_every_transformation(same_everywhere):
    rng = np.random.default_rng(3)
    values, ref = (jnp.array(rng.normal(size=(8, 3, 5))) for _ in range(2))

    def outputs(values, ref):
        every = {n: regularized.greedy(values, ref, 0.5, generator=row(n)) for n in EVERY}
        return {n: (jnp.exp(x.log_policy), x.value, x.normalizer) for n, x in every.items()}

    same_everywhere(outputs, values, ref, rtol=1e-11)


# ------------------------------------------------------------ Fenchel-Young, entmax


def test_losses_and_entmax_under_every_transformation(same_everywhere):
    rng = np.random.default_rng(8)
    scores, target = (jnp.array(rng.normal(size=(8, 3, 5))) for _ in range(2))

    def outputs(scores, target):
        loss = regularized.fenchel_young(scores, target, target, 0.7, generator=row("le_cam"))
        return loss, regularized.entmax_loss(scores, target), regularized.entmax(scores)

    same_everywhere(outputs, scores, target, rtol=1e-11)


def project(scores):
    """Euclidean projection onto the simplex by sorting, in NumPy."""
    ordered = np.sort(scores)[::-1]
    thresholds = (np.cumsum(ordered) - 1) / np.arange(1, len(scores) + 1)
    return np.maximum(scores - thresholds[np.sum(ordered > thresholds) - 1], 0)


def test_sparsemax_is_the_projection_onto_the_simplex():
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(50, 8)) * 2
    expected = np.stack([project(s) for s in scores])
    np.testing.assert_allclose(jax.jit(regularized.sparsemax)(scores), expected, atol=1e-14)
    assert np.mean(expected == 0) > 0.3


entmax = jax.jit(regularized.entmax)
entmax_loss = jax.jit(regularized.entmax_loss)


@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.5, 2.0, 3.0])
def test_entmax_against_its_definition(alpha):
    """Bisection on the threshold of `[(a - 1) z - threshold]_+^(1/(a - 1))`, in NumPy."""
    rng = np.random.default_rng(5)
    for scores in rng.normal(size=(10, 7)) * 2:
        ours = np.asarray(entmax(scores, index=alpha))
        if alpha == 1:
            expected = np.exp(scores) / np.exp(scores).sum()
        else:
            z = (alpha - 1) * scores
            power = functools.partial(lambda z, tau: np.maximum(z - tau, 0) ** (1 / (alpha - 1)), z)
            tau = scipy.optimize.brentq(
                lambda t, power=power: power(t).sum() - 1, z.max() - 1, z.max(), xtol=1e-16
            )
            expected = power(tau)
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_entmax_of_many_scores_for_a_large_index():
    """In float32 the power of their number underflows; bisection in float64, in NumPy."""
    rng = np.random.default_rng(9)
    scores = np.float32(rng.normal(size=100_000) * 0.5 + 40)
    where = np.arange(scores.size) % 3 > 0
    z = 9 * (np.float64(scores[where]) - scores[where].max())
    tau = scipy.optimize.brentq(lambda t: (np.maximum(z - t, 0) ** (1 / 9)).sum() - 1, -1, 0)
    expected = np.zeros(scores.size)
    expected[where] = np.maximum(z - tau, 0) ** (1 / 9)
    assert (expected > 0).sum() > 1
    ours = jax.jit(functools.partial(regularized.entmax, index=10.0))(scores, where=where)
    # A ninth root: .08 is that of 2e-10, a distance of scores that float32 does not resolve.
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.isnan(entmax(np.append(scores[:5], np.float32(np.nan)), index=10.0)).all()


def test_fenchel_young_losses():
    rng = np.random.default_rng(6)
    scores, target = (rng.normal(size=(20, 6)) for _ in range(2))
    labels = rng.integers(0, 6, size=20)
    certain = np.where(np.eye(6)[labels] == 1, 0.0, -np.inf)
    # At a = 1, cross-entropy for a certain label and KL for a soft one.
    np.testing.assert_allclose(
        entmax_loss(scores, certain, index=1.0),
        jax.jit(optax.softmax_cross_entropy_with_integer_labels)(scores, labels),
        rtol=1e-12,
    )
    kl = jax.jit(dv.kl)(target, scores)
    np.testing.assert_allclose(entmax_loss(scores, target, index=1.0), kl, rtol=1e-9)
    # The binary sparsemax loss, which optax writes in its own way.
    margin = np.linspace(-2, 2, 9)
    pair = np.stack([np.zeros(9), margin], -1)
    one = np.broadcast_to([-np.inf, 0.0], (9, 2))
    written_out = np.where(margin >= 1, 0, np.where(margin <= -1, -margin, (1 - margin) ** 2 / 4))
    np.testing.assert_allclose(entmax_loss(pair, one, index=2.0), written_out, atol=1e-14)


@pytest.mark.parametrize("name", SMOOTH)
def test_fenchel_young_loss_of_every_generator(name):
    """Never negative, 0 at the optimum, and its gradient is policy minus target."""
    rng = np.random.default_rng(7)
    scores, target = (rng.normal(size=(20, 5)) for _ in range(2))
    even = np.zeros((20, 5))

    @jax.jit
    def loss_and_gradient(scores, target):
        f = lambda v: regularized.fenchel_young(v, target, even, 0.7, generator=row(name))
        value, pullback = jax.vjp(f, scores)
        return value, pullback(jnp.ones(20))[0]

    value, gradient = loss_and_gradient(scores, target)
    policy = np.stack([solver(name)(v, even[0], 0.7).log_policy for v in scores])
    assert np.all(value >= 1e-4)
    expected = np.exp(policy) - scipy.special.softmax(target, axis=-1)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    at_optimum, _ = loss_and_gradient(scores, policy)
    np.testing.assert_allclose(at_optimum, np.zeros(20), atol=1e-12)


# ------------------------------------------------------------ two references

BETWEEN = ("kl", "reverse_kl", "jensen_shannon", "pearson_chi2", "tsallis")
PREVIOUS = np.log([0.4, 0.3, 0.1, 0.15, 0.05])


@functools.cache
def between(name):
    def value(v, ref, previous, a, b):
        best = regularized.greedy_between(v, ref, previous, a, b, generator=row(name))
        return best.value, best

    return jax.jit(jax.value_and_grad(value, argnums=(0, 3, 4), has_aux=True))


@pytest.mark.parametrize("name", ["kl", "pearson_chi2"])
def test_two_references_with_actions_left_out(name):
    """As if these were not there, whatever they hold; and of no action nothing is left."""
    where = np.array([[True, False, True, True, False], [False] * 5])
    rows = [np.stack([x, x]) for x in (VALUES, REF, PREVIOUS)]
    holes = [np.where(where, x, bad) for x, bad in zip(rows, (np.nan, 1e9, -np.inf), strict=True)]

    @jax.jit
    def solved(where, *rows):
        def f(*rows):
            best = regularized.greedy_between(*rows, 0.3, 0.5, generator=row(name), where=where)
            return best.value, best.log_policy

        value, pullback, log_policy = jax.vjp(f, *rows, has_aux=True)
        return value, log_policy, pullback(jnp.ones_like(value))[0]

    value, log_policy, gradient = map(np.asarray, solved(where, *holes))
    kept = [x[:1, where[0]] for x in rows]
    alone, log_alone, _ = map(np.asarray, solved(np.ones((1, 3), bool), *kept))
    np.testing.assert_allclose(value, [alone[0], 0], atol=1e-12)
    policy = np.exp(log_policy)
    np.testing.assert_allclose(policy[0, where[0]], np.exp(log_alone[0]), atol=1e-12)
    assert not np.any(policy[~where])
    np.testing.assert_allclose(gradient, policy, atol=1e-12)


@pytest.mark.parametrize("name", BETWEEN)
def test_two_references_against_a_constrained_optimiser(name):
    ref, previous = np.exp(REF), np.exp(PREVIOUS)
    for a, b in ((0.3, 0.5), (2.0, 0.1), (0.05, 0.01)):

        def loss(pi, a=a, b=b):
            parts = [[np.asarray(x) for x in derivatives(name)(pi, r)] for r in (ref, previous)]
            cost, slope = (a * parts[0][i] + b * parts[1][i] for i in (0, 1))
            return cost - pi @ VALUES, slope - VALUES

        solutions = [
            scipy.optimize.minimize(
                loss, start, jac=True, method="SLSQP", bounds=[(1e-12, 1)] * 5,
                constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
                options={"ftol": 1e-16, "maxiter": 1000},
            )
            for start in (np.full(5, 0.2), ref, previous, (ref + previous) / 2)
        ]  # fmt: skip
        found = min(solutions, key=lambda solution: solution.fun)
        (value, best), slopes = between(name)(
            jnp.array(VALUES), jnp.array(REF), jnp.array(PREVIOUS), a, b
        )
        policy = np.exp(best.log_policy)
        assert best.converged
        assert value >= -found.fun - 1e-10
        np.testing.assert_allclose(value, -found.fun, atol=1e-8)
        np.testing.assert_allclose(policy, found.x, atol=1e-4)
        # The envelope theorem: the policy, and minus each divergence.
        np.testing.assert_allclose(slopes[0], policy, atol=1e-12)
        costs = [derivatives(name)(np.maximum(policy, 1e-300), r)[0] for r in (ref, previous)]
        np.testing.assert_allclose(slopes[1:], -np.array(costs), atol=1e-12)


@pytest.mark.parametrize("name", BETWEEN)
def test_twice_the_same_reference_is_greedy(name):
    (_, ours), _ = between(name)(jnp.array(VALUES), jnp.array(REF), jnp.array(REF), 0.3, 0.5)
    once = solver(name)(jnp.array(VALUES), jnp.array(REF), 0.8)
    np.testing.assert_allclose(jnp.exp(ours.log_policy), jnp.exp(once.log_policy), atol=1e-12)
    np.testing.assert_allclose(ours.value, once.value, atol=1e-12)
    np.testing.assert_allclose(ours.normalizer, once.normalizer, atol=1e-12)
    # What either reference excludes stays out.
    (_, ours), _ = between(name)(
        jnp.array(VALUES), jnp.array(REF).at[0].set(-jnp.inf), jnp.array(PREVIOUS), 0.3, 0.5
    )
    assert ours.log_policy[0] == -jnp.inf
    assert jnp.exp(ours.log_policy).sum() == pytest.approx(1, abs=1e-12)


# ------------------------------------------------------------ edges


def test_edges_of_values_and_masks():
    """NaN, infinities, masks, ties, one action, nothing left, temperatures out of range."""
    inf, nan, low = np.inf, np.nan, float(np.finfo(np.float32).min)
    values = np.array([
        [1.0, nan, 0.0, 0.5],  # NaN that counts
        [1.0, nan, 0.0, 0.5],  # NaN that the reference leaves out
        [1.0, nan, 0.0, 0.5],  # ... a mask of -1e9
        [1.0, nan, 0.0, 0.5],  # ... -1e30
        [1.0, nan, 0.0, 0.5],  # ... the least float
        [1.0, nan, 0.0, 0.5],  # ... where
        [1.0, -inf, 0.0, 0.5],
        [inf, 0.0, inf, 0.5],
        [-inf, -inf, -inf, -inf],
        [0.3, 0.3, 0.3, 0.3],
        [2.0, 0.0, 0.0, 0.0],  # one action
        [nan, 1.0, 0.0, 0.0],  # nothing left
        [1.0, 0.2, 0.0, 0.5],  # temperature -1
        [1.0, 0.2, 0.0, 0.5],  # temperature 0
    ])  # fmt: skip
    ref = np.zeros((14, 4))
    ref[1:5, 1] = [-inf, -1e9, -1e30, low]
    ref[10, 1:] = -inf
    where = np.ones((14, 4), bool)
    where[5, 1], where[11] = False, False
    temperature = np.array([0.5] * 12 + [-1.0, 0.0])

    def every(values, ref, temperature, where):
        def solved(name):
            def value(v):
                best = regularized.greedy(v, ref, temperature, generator=row(name), where=where)
                return jnp.sum(best.value), best

            return jax.grad(value, has_aux=True)(values)

        names = ("kl", "reverse_kl", "jensen_shannon", "pearson_chi2", "le_cam", "total_variation")
        return {name: solved(name) for name in names}

    for dtype in (np.float32, np.float64):
        solved = jax.jit(every)(*(x.astype(dtype) for x in (values, ref, temperature)), where)
        for name, (gradient, best) in solved.items():
            policy, value = np.exp(best.log_policy), np.asarray(best.value)
            bad = np.isin(np.arange(14), [0, 12, 13])
            assert best.converged.tolist() == (~bad).tolist(), name
            assert np.isnan(value[bad]).all()
            assert np.isnan(policy[bad]).any(axis=-1).all()
            assert not np.isnan(policy[~bad]).any()
            # A masked action is a masked action, however it is said; its value has no influence.
            np.testing.assert_allclose(policy[2:6], policy[[1]].repeat(4, 0), rtol=1e-6)
            np.testing.assert_allclose(value[2:6], value[[1]].repeat(4), rtol=1e-6)
            np.testing.assert_array_equal(policy[1:7, 1], 0)
            np.testing.assert_array_equal(gradient[1:6, 1], 0)
            np.testing.assert_allclose(gradient[1:6], policy[1:6], rtol=1e-6)
            np.testing.assert_allclose(policy[7], [0.5, 0, 0.5, 0], rtol=1e-6)
            assert value[7] == np.inf
            assert value[8] == -np.inf
            np.testing.assert_allclose(policy[8:10], 0.25, rtol=1e-6)
            np.testing.assert_allclose(value[9:12], [0.3, 2.0, 0.0], rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(policy[10:12], [[1, 0, 0, 0], [0, 0, 0, 0]])
            np.testing.assert_array_equal(gradient[11], 0)


def test_le_cam_on_a_wide_reference():
    """The best action's reference below e^-44 in single precision; solved with 50 digits."""
    values = np.array(
        [[1, 0, 0.5], [1, 0.2, -0.5], [1, 0.2, -0.5], [0.53501874, 0.03295746, -1.2521106]],
        np.float32,
    )
    ref = np.array(
        [[-48, 0, -1], [-50, 0, 1], [-60, 0, 1], [-9.852736, 22.947744, 23.225494]], np.float32
    )
    best = solver("le_cam")(values, ref, np.array([1, 0.5, 0.5, 0.30778986], np.float32))
    assert np.all(best.converged)
    np.testing.assert_allclose(np.exp(best.log_policy[0]), [0.428, 0.303, 0.269], atol=5e-4)
    np.testing.assert_allclose(np.exp(best.log_policy[3]), [0.95375477, 0.04624523, 0], atol=2e-6)
    assert np.all(best.value[1:3] >= 0.5)  # of all mass on the first action


@pytest.mark.parametrize(
    ("name", "parameters", "over"),
    [("pearson_chi2", {}, 1e5), ("alpha", {"alpha": 3.0}, 1e4), ("alpha", {"alpha": 20.0}, 100.0)],
)
def test_rows_that_drop_actions_at_large_values(name, parameters, over):
    """Single precision against double precision, which has digits enough for these."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 6)).astype(np.float32)
    ref = (2 * rng.normal(size=(300, 6))).astype(np.float32)
    generator = generators.get(name, **parameters)
    solve = jax.jit(lambda *x: regularized.greedy(*x, generator=generator))
    single = jax.tree.map(np.asarray, solve(values, ref, np.float32(1 / over)))
    double = solve(values.astype(float), ref.astype(float), float(np.float32(1 / over)))
    double = jax.tree.map(np.asarray, double)
    assert np.all(single.converged)
    assert np.all(double.converged)
    assert np.all(np.abs(single.value - double.value) <= 1e-5 * (1 + np.abs(double.value)))
    np.testing.assert_allclose(np.exp(single.log_policy), np.exp(double.log_policy), atol=2e-2)
    single, double = (np.exp(np.asarray(x.log_policy, float)) for x in (single, double))
    assert np.mean(np.abs(single - double).max(axis=-1) > 1e-4) < 0.1


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(hypothesis.strategies.integers(0, 2**32 - 1))
def test_random_problems(seed):
    """`python -m tests.search.greedy` has 20,000 of them, of all rows."""
    with jax.enable_x64(True):
        wrong, tally = random_problems.search(80, names=("alpha",), sizes=(8,), seed=seed)
    assert wrong == []
    assert tally["alpha"]["float32", "not converged"] == 0
    assert tally["alpha"]["float64", "not converged"] == 0


# ------------------------------------------------------------ refusals


def test_refusals_name_the_argument():
    kl, x = generators.kl(), jnp.zeros(3)
    with raises(ValueError, match=r"^temperature must be positive and finite, got -1\.0$"):
        regularized.greedy(x, x, -1.0, generator=kl)
    with raises(ValueError, match=r"^temperature must be positive and finite, got 0"):
        jax.jit(lambda x: regularized.greedy(x, x, 0, generator=kl))(x)
    with raises(ValueError, match=r"^values and ref_logits must have the same shape"):
        regularized.greedy(x, jnp.zeros(4), 1.0, generator=kl)
    with raises(TypeError, match=r"^values must be a floating-point array, got dtype int64$"):
        regularized.greedy(jnp.array([1, 2, 3]), x, 1.0, generator=kl)
    with raises(ValueError, match=r"^temperature must be a number, got \(2,\)$"):
        regularized.greedy(x, x, jnp.ones(2), generator=kl)
    with raises(ValueError, match=r"^values must have at least one action"):
        regularized.greedy(jnp.zeros(0), jnp.zeros(0), 1.0, generator=kl)
    with raises(TypeError, match=r"^generator must be a row such as generators"):
        regularized.greedy(x, x, 1.0, generator="kl")
    with raises(TypeError, match=r"^generator must have a slope with an inverse, got total"):
        regularized.greedy_between(x, x, x, 1.0, 1.0, generator=generators.total_variation())
    with raises(ValueError, match=r"^old_temperature must be positive and finite, got 0"):
        regularized.greedy_between(x, x, x, 1.0, 0, generator=kl)
