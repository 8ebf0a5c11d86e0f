"""Transport costs and quadratic distances: linear programs, definitions, gradients at zeros."""

import functools
import math
import re
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from jdiv.divergences import transport

RNG = np.random.default_rng(0)
N = 6
PLACES = np.sort(RNG.normal(size=N)) * 2
POINTS = RNG.normal(size=(N, 2))
DISTANCES = np.linalg.norm(POINTS[:, None] - POINTS[None], axis=-1)
KERNEL = np.exp(-(DISTANCES**2))
OF_GEOMETRY = {
    "wasserstein_1": PLACES,
    "squared_mmd": KERNEL,
    "energy_distance": DISTANCES,
}
every_exact = pytest.mark.parametrize("name", OF_GEOMETRY)
COMPILED = {name: jax.jit(getattr(transport, name), static_argnames="axis") for name in OF_GEOMETRY}
# Rows with zeros of p, of q, of both, of neither, and with disjoint supports.
P = RNG.normal(size=(5, N))
Q = RNG.normal(size=(5, N))
P[0, 2] = P[1, 2] = Q[1, 3] = P[2, 4] = Q[2, 4] = -np.inf
P[3, :3] = Q[3, 3:] = -np.inf
assert np.all(np.isfinite(P[4] + Q[4]))


def probabilities(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def linear_program(p, q, cost):
    """The optimal transport cost, by its definition."""
    n = len(p)
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    solved = scipy.optimize.linprog(
        cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=np.concatenate([p, q])
    )
    assert solved.success
    return solved.fun


def finite_difference(f, x, step=1e-6):
    """The gradient by central differences; 0 by a logit of minus infinity."""
    gradient = np.zeros(x.shape)
    for index in zip(*np.nonzero(np.isfinite(x)), strict=True):
        move = np.zeros(x.shape)
        move[index] = step
        gradient[index] = (f(x + move) - f(x - move)) / (2 * step)
    return gradient


# ---------------------------------------------------------------------------------- exact distances


def definition(name, p, q):
    """With numpy, from probabilities and expectations."""
    match name:
        case "wasserstein_1":
            return scipy.stats.wasserstein_distance(PLACES, PLACES, p, q)
        case "squared_mmd":  # E k(x, x') - 2 E k(x, y) + E k(y, y')
            return np.sum(KERNEL * (np.outer(p, p) - 2 * np.outer(p, q) + np.outer(q, q)))
        case "energy_distance":
            return np.sum(DISTANCES * (2 * np.outer(p, q) - np.outer(p, p) - np.outer(q, q)))
    raise ValueError(name)


@every_exact
def test_against_its_definition(name):
    found = COMPILED[name](P, Q, OF_GEOMETRY[name])
    expected = [definition(name, *x) for x in zip(probabilities(P), probabilities(Q), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_wasserstein_1_is_a_transport_cost():
    cost = np.abs(PLACES[:, None] - PLACES[None])
    found = COMPILED["wasserstein_1"](P, Q, PLACES)
    for p, q, value in zip(probabilities(P), probabilities(Q), found, strict=True):
        np.testing.assert_allclose(value, linear_program(p, q, cost), rtol=1e-9)


def test_wasserstein_1_of_point_masses_is_their_distance():
    points = np.where(np.eye(N) == 1, 0, -np.inf)
    pairs = points[:, None] + np.zeros((N, N, 1)), points[None] + np.zeros((N, N, 1))
    found = COMPILED["wasserstein_1"](*pairs, PLACES)
    np.testing.assert_allclose(found, np.abs(PLACES[:, None] - PLACES[None]), rtol=1e-14)


def test_positions_in_any_order_with_ties_and_by_row():
    order = RNG.permutation(N)
    p, q, places, f = P, Q, PLACES.copy(), COMPILED["wasserstein_1"]
    places[2] = places[3]
    expected = np.asarray(f(p, q, places))
    shuffled = f(p[:, order], q[:, order], places[order])
    np.testing.assert_allclose(shuffled, expected, rtol=1e-13)
    by_row = places[order] * np.arange(1.0, 6.0)[:, None]
    scaled = f(p[:, order], q[:, order], by_row)
    np.testing.assert_allclose(scaled, expected * np.arange(1.0, 6.0), rtol=1e-13)
    columns = f(p[:, order].T, q[:, order].T, by_row.T, axis=0)
    np.testing.assert_allclose(columns, scaled, rtol=1e-14)


def test_energy_distance_on_a_line_is_twice_the_cramer_distance():
    """Which is the square of scipy's energy distance: that is the root."""
    line = np.abs(PLACES[:, None] - PLACES[None])
    found = COMPILED["energy_distance"](P, Q, line)
    for p, q, value in zip(probabilities(P), probabilities(Q), found, strict=True):
        root = scipy.stats.energy_distance(PLACES, PLACES, p, q)
        np.testing.assert_allclose(value, root**2, rtol=1e-12)
        gaps = np.cumsum(p - q)[:-1] ** 2 * np.diff(PLACES)
        np.testing.assert_allclose(value, 2 * np.sum(gaps), rtol=1e-12)


def test_squared_mmd_is_a_squared_distance_of_embeddings():
    features = RNG.normal(size=(N, 3))
    found = COMPILED["squared_mmd"](P, Q, features @ features.T)
    embedded = (probabilities(P) - probabilities(Q)) @ features
    np.testing.assert_allclose(found, np.sum(embedded**2, axis=1), rtol=1e-12)
    minus = COMPILED["squared_mmd"](P, Q, -DISTANCES)
    energy = COMPILED["energy_distance"](P, Q, DISTANCES)
    np.testing.assert_allclose(minus, energy, rtol=1e-12)


@every_exact
def test_gradient_against_finite_differences(name):
    """Also at zeros: a logit of minus infinity has no influence, and no NaN."""
    f = COMPILED[name]
    slopes = jax.jit(jax.grad(getattr(transport, name), (0, 1, 2)))
    geometry = OF_GEOMETRY[name]

    def check(p, q):
        by_p, by_q, by_geometry = slopes(jnp.array(p), jnp.array(q), jnp.array(geometry))
        close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-8)
        close(by_p, finite_difference(lambda x: f(x, q, geometry), p))
        close(by_q, finite_difference(lambda x: f(p, x, geometry), q))
        if name == "wasserstein_1":
            close(by_geometry, finite_difference(lambda x: f(p, q, x), geometry))
        else:
            difference = probabilities(p) - probabilities(q)
            sign = 1 if name == "squared_mmd" else -1
            close(by_geometry, sign * np.outer(difference, difference))

    for p, q in zip(P, Q, strict=True):
        check(p, q)


@every_exact
def test_relative_accuracy_near_equality(name):
    """At logits 2^-30 apart, against rational arithmetic on the exponential series."""
    p = np.array([0.0, 1.0, -1.0, 0.5, 2.0, -3.0])
    q = p + np.array([1.0, -2, 0, 3, 0, 1]) * 2.0**-30

    def series(x):
        x = Fraction(float(x))
        return sum(x**k / math.factorial(k) for k in range(60))

    weights = [[series(x) for x in logits] for logits in (p, q)]
    p_exact, q_exact = ([x / sum(w) for x in w] for w in weights)
    difference = [x - y for x, y in zip(p_exact, q_exact, strict=True)]
    if name == "wasserstein_1":
        places = [Fraction(float(x)) for x in PLACES]
        steps = range(1, N)
        expected = sum(abs(sum(difference[:i])) * (places[i] - places[i - 1]) for i in steps)
    else:
        matrix = OF_GEOMETRY[name] * (1 if name == "squared_mmd" else -1)
        pairs = [(i, j) for i in range(N) for j in range(N)]
        expected = sum(
            difference[i] * difference[j] * Fraction(float(matrix[i, j])) for i, j in pairs
        )
    found = COMPILED[name](p, q, OF_GEOMETRY[name])
    np.testing.assert_allclose(found, float(expected), rtol=1e-13)
    naive = definition(name, probabilities(p), probabilities(q))
    assert abs(naive / float(expected) - 1) > 1e-9


@every_exact
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_exactly_zero_for_identical_logits(name, dtype):
    p, geometry = jnp.array(100 * P[0], dtype), jnp.array(OF_GEOMETRY[name], dtype)
    f = lambda p, q: getattr(transport, name)(p, q, geometry)
    value, gradients = jax.jit(jax.value_and_grad(f, (0, 1)))(p, p)
    assert value == 0
    assert all(jnp.all(g == 0) for g in gradients)


@every_exact
def test_dtypes_axis_and_mask(name):
    f, geometry, p, q = COMPILED[name], OF_GEOMETRY[name], P, Q
    expected = f(p, q, geometry)
    assert expected.dtype == jnp.float64
    for dtype in (jnp.float32, jnp.bfloat16):
        narrow = [x.astype(dtype) for x in (p, q, geometry)]
        found = f(*narrow)
        assert found.dtype == jnp.float32
        wide = f(*(x.astype(np.float64) for x in narrow))
        np.testing.assert_allclose(found, wide, rtol=1e-5)
    np.testing.assert_allclose(f(p.T, q.T, geometry, axis=0), expected, rtol=1e-14)
    keep = np.array([True, True, False, True, False, True])
    rest = geometry[keep] if geometry.ndim == 1 else geometry[keep][:, keep]
    masked = f(p, q, geometry, where=keep)
    np.testing.assert_allclose(masked, f(p[:, keep], q[:, keep], rest), rtol=1e-13)
    assert np.all(f(p, q, geometry, where=np.zeros(N, bool)) == 0)


@pytest.mark.parametrize("name", ["wasserstein_1", "squared_mmd"])
def test_same_under_every_transformation(name, same_everywhere):
    p, q = (jnp.array(np.concatenate([x, x[:3] + 0.1])) for x in (P, Q))
    f = lambda p, q: getattr(transport, name)(p, q, jnp.array(OF_GEOMETRY[name]))

    @jax.jit
    def gradients(p, q):
        value, pullback = jax.vjp(f, p, q)
        return pullback(jnp.ones_like(value))

    same_everywhere(f if name == "wasserstein_1" else gradients, p, q)


# ----------------------------------------------------------------------------------------- Sinkhorn


def solver(**options):
    options = {"threshold": 1e-11, "max_iterations": 50_000, **options}
    f = lambda p, q, cost, epsilon: transport.sinkhorn(p, q, cost, epsilon=epsilon, **options)
    return f, jax.jit(f)


plain, converged = solver()


def solve(p, q, epsilon, cost=None):
    """One converged row, by the one program for six categories."""
    cost = jnp.array(COST if cost is None else cost)
    found = converged(jnp.array(p), jnp.array(q), cost, epsilon)
    assert found.converged
    return found


@functools.cache
def gradients():
    f = lambda *x: jnp.sum(plain(*x).value)
    return jax.jit(jax.grad(f, (0, 1, 2, 3)))


def entropic_cost(p, q, cost, epsilon):
    """By Newton's method on the dual over the supports: no Sinkhorn iteration."""
    a, b = p[p > 0], q[q > 0]
    cost = cost[p > 0][:, q > 0]

    def residual(x, epsilon):
        f, g = x[: len(a)], np.append(x[len(a) :], 0)  # one potential may be fixed
        plan = np.outer(a, b) * np.exp((f[:, None] + g[None] - cost) / epsilon)
        return np.concatenate([plan.sum(1) - a, (plan.sum(0) - b)[:-1]])

    x = np.zeros(len(a) + len(b) - 1)
    for scale in (100, 10, 3, 1):  # from easy to hard
        x = scipy.optimize.root(residual, x, args=(scale * epsilon,), tol=1e-13).x
    assert np.max(np.abs(residual(x, epsilon))) < 1e-10
    return a @ x[: len(a)] + b @ np.append(x[len(a) :], 0)


COST = DISTANCES**2


@pytest.mark.parametrize("epsilon", [0.5, 5.0])
@pytest.mark.parametrize("row", range(5))
def test_sinkhorn_against_newtons_method_on_the_dual(row, epsilon):
    p, q = probabilities(P[row]), probabilities(Q[row])
    costs = [entropic_cost(a, b, COST, epsilon) for a, b in ((p, q), (p, p), (q, q))]
    expected = costs[0] - (costs[1] + costs[2]) / 2
    np.testing.assert_allclose(solve(P[row], Q[row], epsilon).value, expected, rtol=1e-8)


def test_sinkhorn_between_two_categories_by_hand():
    """One unknown: the mass that stays. Its plan by scalar minimisation of the primal."""
    p, q, epsilon = np.array([0.7, 0.3]), np.array([0.4, 0.6]), 0.4
    cost = np.array([[0.0, 1.0], [1.0, 0.0]])

    def primal(a, b):
        def objective(x):
            plan = np.array([[x, a[0] - x], [b[0] - x, 1 - a[0] - b[0] + x]])
            kl = np.sum(plan * np.log(plan / np.outer(a, b)))
            return np.sum(plan * cost) + epsilon * kl

        low, high = max(0, a[0] + b[0] - 1) + 1e-12, min(a[0], b[0]) - 1e-12
        return scipy.optimize.minimize_scalar(
            objective, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
        ).fun

    expected = primal(p, q) - (primal(p, p) + primal(q, q)) / 2
    p_logits, q_logits = np.full((2, N), -np.inf)  # four more, of no mass
    p_logits[:2], q_logits[:2] = np.log(p), np.log(q)
    of_six = COST.copy()
    of_six[:2, :2] = cost
    found = solve(p_logits, q_logits, epsilon, of_six)
    np.testing.assert_allclose(found.value, expected, rtol=1e-9)


@pytest.mark.parametrize("row", range(5))
def test_sinkhorn_tends_to_the_transport_cost_and_to_half_the_energy_distance(row):
    limit = linear_program(probabilities(P[row]), probabilities(Q[row]), COST)
    small = solve(P[row], Q[row], 5e-3).value
    np.testing.assert_allclose(small, limit, atol=2e-2)
    assert abs(small - limit) > 1e-6  # it is not the limit itself
    energy = COMPILED["energy_distance"](P[row : row + 1], Q[row : row + 1], COST)[0]
    np.testing.assert_allclose(solve(P[row], Q[row], 1e5).value, energy / 2, rtol=1e-4)


@pytest.mark.parametrize("row", range(5))
def test_sinkhorn_gradient_against_finite_differences(row):
    """By p, q, the cost and epsilon; ott's own is NaN where a probability is 0."""
    f = lambda p, q, cost, epsilon: float(solve(p, q, epsilon, cost).value)
    p, q, epsilon = P[row], Q[row], 0.7
    by_p, by_q, by_cost, by_epsilon = gradients()(
        jnp.array(p), jnp.array(q), jnp.array(COST), epsilon
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)
    close(by_p, finite_difference(lambda x: f(x, q, COST, epsilon), p))
    close(by_q, finite_difference(lambda x: f(p, x, COST, epsilon), q))
    close(by_epsilon, finite_difference(lambda x: f(p, q, COST, x[0]), np.array([epsilon]))[0])
    for i, j in ((0, 1), (2, 4), (3, 5)):  # symmetric changes
        move = np.zeros((N, N))
        move[i, j] = move[j, i] = 1e-6
        expected = (f(p, q, COST + move, epsilon) - f(p, q, COST - move, epsilon)) / 2e-6
        close(by_cost[i, j] + by_cost[j, i], expected)


def test_the_gradient_of_ott_is_not_a_number_at_zeros():
    """Why the value is computed here, from potentials that every category has."""
    ott = transport._import_ott()

    def of_ott(p):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            geometry = ott.Geometry(cost_matrix=jnp.array(COST), epsilon=0.7)
            problem = ott.LinearProblem(geometry, p, jax.nn.softmax(jnp.array(Q[0])))
            return ott.Sinkhorn(threshold=1e-6)(problem).reg_ot_cost

    assert jnp.any(jnp.isnan(jax.jit(jax.grad(of_ott))(jax.nn.softmax(jnp.array(P[0])))))
    found = gradients()(jnp.array(P[0]), jnp.array(Q[0]), jnp.array(COST), 0.7)
    assert all(jnp.all(jnp.isfinite(g)) for g in found)


def test_sinkhorn_is_exactly_zero_for_identical_logits():
    """Three entropic costs, each of them far from 0, take the same steps."""
    for p in P:
        assert solve(p, p, 0.5).value == 0
    assert entropic_cost(probabilities(P[0]), probabilities(P[0]), COST, 0.5) > 0.1
    p = jnp.array(P[4])
    by_p, by_q, _, by_epsilon = gradients()(p, p, jnp.array(COST), 0.5)
    np.testing.assert_allclose(by_p, 0, atol=1e-14)
    np.testing.assert_allclose(by_q, 0, atol=1e-14)
    assert by_epsilon == 0


def test_sinkhorn_near_equality_is_a_quadratic_form():
    """Four times the value at twice the distance, far below the entropic costs themselves."""
    near, far = (float(solve(P[4], P[4] + s * Q[4], 5.0).value) for s in (1e-3, 2e-3))
    assert 0 < near < 1e-6
    np.testing.assert_allclose(far / near, 4, rtol=1e-2)
    assert entropic_cost(probabilities(P[4]), probabilities(P[4]), COST, 5.0) > 0.1


def test_sinkhorn_says_what_it_did():
    good = solve(P[4], Q[4], 0.5)
    assert 0 < good.residual <= 1e-11
    assert 0 < good.iterations < 2000
    assert solve(P[4], P[4], 0.5).iterations < good.iterations
    short = solver(max_iterations=10)[1](jnp.array(P[4]), jnp.array(Q[4]), jnp.array(COST), 0.01)
    assert not short.converged
    assert short.residual > 1e-11
    assert short.iterations == 20  # ten for the warm start, ten from there
    assert abs(short.value - solve(P[4], Q[4], 0.01).value) <= 2 * short.residual * np.max(COST)


def test_sinkhorn_of_a_batch_in_half_precision():
    narrow = [jnp.array(x, jnp.bfloat16) for x in (P, Q, COST)]
    _, program = solver(threshold=1e-5)
    found = program(*narrow, 0.5)
    assert found.value.dtype == found.residual.dtype == jnp.float32
    assert {x.shape for x in found} == {(5,)}
    assert jnp.all(found.converged)
    p, q, cost = (x.astype(jnp.float64) for x in narrow)
    expected = [solve(*row, 0.5, cost).value for row in zip(p, q, strict=True)]
    np.testing.assert_allclose(found.value, expected, rtol=1e-4, atol=1e-6)
    assert jnp.all(program(narrow[0], narrow[0], narrow[2], 0.5).value == 0)


def test_sinkhorn_along_an_axis_with_a_mask():
    keep = np.array([True, True, False, True, False, True])
    _, program = solver(axis=0, where=keep[:, None])
    found = program(jnp.array(P).T, jnp.array(Q).T, jnp.array(COST), 0.5)
    p, q = (np.where(keep, x, -np.inf) for x in (P, Q))
    expected = [solve(*row, 0.5).value for row in zip(p, q, strict=True)]
    np.testing.assert_allclose(found.value, expected, rtol=1e-9)


def test_sinkhorn_under_every_transformation(same_everywhere):
    """And a sweep over epsilon is one program."""
    p, q = (jnp.array(np.concatenate([x, x[:3] + 0.1])) for x in (P, Q))
    program = jax.jit(lambda p, q: plain(p, q, jnp.array(COST), 0.5).value)
    same_everywhere(program, p, q, rtol=1e-9)
    epsilons = jnp.array([0.5, 5.0])
    sweep = jax.jit(jax.vmap(lambda x: plain(p[0], q[0], jnp.array(COST), x).value))(epsilons)
    each = [solve(p[0], q[0], float(x)).value for x in epsilons]
    np.testing.assert_allclose(sweep, each, rtol=1e-9)


# ---------------------------------------------------------------------------------------- refusals


def test_importing_the_library_imports_no_solver():
    code = (
        "import jdiv, sys; print([m for m in sys.modules if m.split('.')[0] in ('ott', 'scipy')])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "[]\n"


def test_without_ott_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ott.geometry.geometry", None)
    message = re.escape("sinkhorn needs ott-jax: pip install 'jdiv[transport]'")
    with pytest.raises(ImportError, match=f"^{message}"):
        transport.sinkhorn(jnp.zeros(2), jnp.zeros(2), jnp.zeros((2, 2)), epsilon=1.0)


@pytest.mark.parametrize("name", [*OF_GEOMETRY, "sinkhorn"])
def test_refusals_name_the_argument(name):
    f = (
        functools.partial(transport.sinkhorn, epsilon=1.0)
        if name == "sinkhorn"
        else getattr(transport, name)
    )
    x = jnp.zeros(3)
    geometry = x if name == "wasserstein_1" else jnp.zeros((3, 3))
    with pytest.raises(
        ValueError, match=r"^p_logits and q_logits must have the same shape [^\n]*$"
    ):
        f(x, jnp.zeros(4), geometry)
    with pytest.raises(
        TypeError, match=r"^q_logits must be a floating-point array, got dtype int64$"
    ):
        f(x, jnp.array([1, 2, 3]), geometry)
    with pytest.raises(ValueError, match=r"^axis must be within shape \(3,\), got 1$"):
        f(x, x, geometry, axis=1)
    with pytest.raises(TypeError, match=r"^where must be a boolean array"):
        f(x, x, geometry, where=x)
    argument = {
        "wasserstein_1": "positions",
        "squared_mmd": "kernel",
        "energy_distance": "distances",
        "sinkhorn": "cost",
    }[name]
    with pytest.raises(
        TypeError, match=f"^{argument} must be a floating-point array, got dtype int64$"
    ):
        f(x, x, geometry.astype(int))
    if name == "wasserstein_1":
        with pytest.raises(
            ValueError, match=r"^positions must have shape \(3,\) or \(2, 3\), got \(2,\)$"
        ):
            f(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(2))
        return
    for shape in ((3, 4), (2, 2), (3,), (1, 3, 3)):
        message = f"{argument} must have shape (3, 3) for 3 categories, got {shape}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            f(x, x, jnp.zeros(shape))
    with pytest.raises(ValueError, match=f"^{argument} must be symmetric$"):
        f(x, x, jnp.arange(9.0).reshape(3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive and finite, got 0.0"),
        ({"epsilon": -1.0}, "epsilon must be positive and finite, got -1.0"),
        ({"epsilon": math.nan}, "epsilon must be positive and finite, got nan"),
        ({"epsilon": np.ones(2)}, "epsilon must be a number, got (2,)"),
        ({"epsilon": 1.0, "threshold": 0.0}, "threshold must be positive and finite, got 0.0"),
        ({"epsilon": 1.0, "max_iterations": 0}, "max_iterations must be a positive integer, got 0"),
        (
            {"epsilon": 1.0, "max_iterations": 2.5},
            "max_iterations must be a positive integer, got 2.5",
        ),
    ],
)
def test_options_of_sinkhorn_out_of_range(options, message):
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        transport.sinkhorn(x, x, jnp.zeros((3, 3)), **options)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        jax.jit(functools.partial(transport.sinkhorn, **options))(x, x, jnp.zeros((3, 3)))
