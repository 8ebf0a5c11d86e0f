"""Exact categorical divergences: 60-digit references, identities, edges, formulas gone wrong."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdiv import divergences as dv
from jdiv import generators, numerics
from tests import high_precision
from tests.checks import PARAMETERS, raises, silent
from tests.search import divergences as divergence_search

ROWS = json.loads((pathlib.Path(__file__).parents[1] / "data" / "divergences.json").read_text())

EVERY = {
    **PARAMETERS,
    "renyi": {"alpha": 1.7},
    "bhattacharyya": {},
    "cauchy_schwarz": {},
    "bregman": {"alpha": 1.4},
}
TABLE = [name for name in EVERY if name in generators.TABLE]
SYMMETRIC = [
    "jeffreys", "total_variation", "squared_hellinger", "le_cam", "bhattacharyya", "cauchy_schwarz",
]  # fmt: skip


def function(name):
    return functools.partial(getattr(dv, name), **EVERY[name])


WIDTH = 50


@functools.cache
def compiled(name):
    """One program per divergence and type, for every pair of logits and every parameter."""
    f = lambda p, q, parameters: getattr(dv, name)(p, q, **parameters)
    return jax.jit(jax.value_and_grad(f, (0, 1)))


def evaluate(name, p, q, **parameters):
    """Value and gradients; categories that neither p nor q has fill up to fifty."""
    p, q = (np.asarray(x) for x in (p, q))
    nothing = np.full(WIDTH - len(p), -np.inf, p.dtype)
    # Parameters are traced here, in float64 as they come; constants elsewhere.
    parameters = {k: np.float64(x) for k, x in (parameters or EVERY[name]).items()}
    value, gradients = compiled(name)(np.append(p, nothing), np.append(q, nothing), parameters)
    return np.asarray(value)[()], [np.asarray(g) for g in gradients]


def values(name, p, q, **parameters):
    """The values of many rows."""
    return np.array([evaluate(name, *x, **parameters)[0] for x in zip(p, q, strict=True)])


def logits(row, key):
    return np.array([-np.inf if z is None else z for z in row[key]])


def probabilities(row):
    return np.exp(row - np.max(row)) / np.sum(np.exp(row - np.max(row)))


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


# ------------------------------------------------------------------------------ 60-digit references


def largest_logit(row):
    return max(abs(z) for z in row["p_logits"] + row["q_logits"] if z is not None)


GROUPS = sorted({(row["name"], *row["params"].items()) for row in ROWS})


@pytest.mark.parametrize(
    "group", GROUPS, ids=lambda g: "-".join([g[0], *(str(x) for _, x in g[1:])])
)
def test_reference_values_and_gradients(group):
    """Value and gradient of every row, in float64 and float32.

    The file's numbers have 60 digits; gradients are central differences at that precision. Four
    rows with values below 1e-30 were differenced again with 400 digits (tests/high_precision.py).
    """
    name, *parameters = group
    rows = [row for row in ROWS if (row["name"], *row["params"].items()) == group]
    assert len(rows) == 12
    parameters = {"index" if k == "q" else k: v for k, v in parameters}
    for row in rows:
        p, q = (logits(row, key) for key in ("p_logits", "q_logits"))
        value, gradients = evaluate(name, p, q, **parameters)
        single, _ = evaluate(name, p.astype(np.float32), q.astype(np.float32), **parameters)
        assert single.dtype == np.float32
        reference, value, single = float(row["value"]), float(value), float(single)
        if math.isinf(reference):
            assert value == single == math.inf
            continue
        assert abs(value - reference) <= 1e-12 + 1e-10 * abs(reference)
        if reference < float(jnp.finfo(jnp.float32).max):
            bound = 1e-6 + 5e-5 * (1 + largest_logit(row) / 10) * abs(reference)
            assert abs(single - reference) <= bound
        assert all(np.all(np.isfinite(g)) for g in gradients)
        references = [row["grad_p"], row["grad_q"]]
        if None not in references:
            size = max(abs(x) for g in references for x in g if x is not None)
            bound = (1e-8 if reference <= 1e6 else 1e-6) * size
            for gradient, exact in zip(gradients, references, strict=True):
                for ours, true in zip(gradient, exact, strict=False):
                    assert true is None or abs(ours - true) <= bound


def test_reference_file_is_whole():
    assert len(ROWS) == 348


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("distance", [1e-1, 1e-4, 1e-7])
def test_nearly_equal_distributions_keep_relative_accuracy(name, distance):
    """At KL = 1e-15 every library's KL is noise of either sign; here it has all but two digits."""
    rng = np.random.default_rng(0)
    p = 3 * rng.normal(size=9)
    q = p + distance * rng.normal(size=9)
    with mp.workdps(60):
        exact = high_precision.divergence(
            name, high_precision.softmax(p), high_precision.softmax(q), **EVERY[name]
        )
    np.testing.assert_allclose(evaluate(name, p, q)[0], float(exact), rtol=1e-8)


@pytest.mark.parametrize("name", EVERY)
def test_nearly_equal_in_single_precision(name):
    """Logits that float32 can tell apart give a divergence that float32 gets right."""
    rng = np.random.default_rng(1)
    p = (3 * rng.normal(size=50)).astype(np.float32)
    q = (p + 1e-5 * rng.normal(size=50)).astype(np.float32)
    with mp.workdps(40):
        exact = high_precision.divergence(
            name,
            high_precision.softmax(map(float, p)),
            high_precision.softmax(map(float, q)),
            **EVERY[name],
        )
    np.testing.assert_allclose(evaluate(name, p, q)[0], float(exact), rtol=2e-5)


# -------------------------------------------------------------------------------------- exact zeros


def batches(dtype):
    """Logits of this type at two scales, some of them zeros."""
    x = np.random.default_rng(2).normal(size=(8, 3, 5))
    x[1, :, ::3] = -np.inf
    return np.stack([np.asarray(scale * x, dtype) for scale in (1.0, 1e4)])


@functools.cache
def of_themselves():
    """Every divergence of logits of every type and of many, to themselves: one program."""
    x = {dtype: batches(dtype) for dtype in ("float64", "float32", "bfloat16", "float16")}
    many = (4 * np.random.default_rng(3).normal(size=250_000)).astype(jnp.bfloat16)
    of = lambda name, p, q: jax.tree.map(function(name), p, q)
    program = jax.jit(lambda p, q: {name: of(name, p, q) for name in EVERY})
    return program({**x, "many": many}, {**x, "many": many.copy()})


@pytest.mark.parametrize("name", EVERY)
def test_of_itself_is_exactly_zero(name):
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        value = of_themselves()[name][dtype]
        assert value.shape == (2, 8, 3)
        assert value.dtype == (np.float64 if dtype == "float64" else np.float32)
        assert np.all(value == 0)
    # And eagerly, where nothing is fused: operations of the shape of the test of transformations.
    x = jnp.array(batches("float64")[0])
    assert np.all(function(name)(x, x) == 0)


@pytest.mark.parametrize("name", EVERY)
def test_of_itself_is_exactly_zero_at_250000_categories_in_bfloat16(name):
    assert of_themselves()[name]["many"] == 0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shift", [1e-3, 7.5, -300.0])
def test_logits_have_no_absolute_level(name, shift):
    x = 5 * np.random.default_rng(4).normal(size=8)
    assert 0 <= evaluate(name, x, x + shift)[0] <= 1e-12


PAIR = np.random.default_rng(5).normal(size=(2, 3, 6))
WHERE = np.array([[True] * 6, [True, False, True, True, False, False], [False] * 6])


@functools.cache
def special():
    """Every divergence with a mask and its gradients, over columns, and of one category."""

    def of(f, p, q):
        masked, pullback = jax.vjp(functools.partial(f, where=WHERE), p, q)
        one = jax.value_and_grad(f)(jnp.array([3.0]), jnp.array([-8.0]))
        return masked, pullback(jnp.ones(3)), f(p.T, q.T, axis=0), one

    return jax.jit(lambda p, q: {name: of(function(name), p, q) for name in EVERY})(*PAIR)


@pytest.mark.parametrize("name", EVERY)
def test_masks(name):
    """`where` leaves categories out; an emptied row is 0 with a zero gradient, not NaN."""
    p, q = PAIR
    masked, gradients, of_columns, _ = special()[name]
    kept = np.array([0, 2, 3])
    np.testing.assert_allclose(masked[0], evaluate(name, p[0], q[0])[0], rtol=1e-13)
    np.testing.assert_allclose(masked[1], evaluate(name, p[1, kept], q[1, kept])[0], rtol=1e-13)
    assert masked[2] == 0
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
        assert np.all(np.where(WHERE, 0, gradient) == 0)
    np.testing.assert_allclose(of_columns, values(name, p, q), rtol=1e-13)


@pytest.mark.parametrize("name", EVERY)
def test_rows_without_a_distribution_are_nan(name):
    nothing, something = np.full(WIDTH, -np.inf), np.zeros(WIDTH)
    assert np.isnan(evaluate(name, nothing, something)[0])
    assert np.isnan(evaluate(name, something, nothing)[0])
    assert np.isnan(evaluate(name, np.append(np.nan, something[1:]), something)[0])


@pytest.mark.parametrize("name", EVERY)
def test_one_category(name):
    *_, (value, gradient) = special()[name]
    assert value == 0
    assert gradient == 0


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("mask", [-1e9, float(jnp.finfo(jnp.float32).min)])
def test_large_negative_logits_used_as_masks(name, mask):
    """The common substitute for -inf gives finite gradients and, of both, what -inf gives."""
    rng = np.random.default_rng(6)
    p, q = rng.normal(size=(2, 5)).astype(np.float32)

    def with_third(x, third):
        return np.where(np.arange(5) == 2, np.float32(third), x)

    exact, _ = evaluate(name, with_third(p, -np.inf), with_third(q, -np.inf))
    both, _ = evaluate(name, with_third(p, mask), with_third(q, mask))
    np.testing.assert_allclose(both, exact, rtol=1e-6)
    for which in (0, 1):
        masked, zero = ([p, q], [p, q])
        masked[which], zero[which] = (with_third([p, q][which], x) for x in (mask, -np.inf))
        value, gradients = evaluate(name, *masked)
        of_zero, _ = evaluate(name, *zero)
        if np.isfinite(of_zero):
            np.testing.assert_allclose(value, of_zero, rtol=1e-6)
        else:
            assert value > 1e5
        if np.isfinite(value):
            assert all(np.all(np.isfinite(g)) for g in gradients)


# --------------------------------------------------------------------------------------- identities

finite = st.floats(-30, 30, width=32)
logit = st.one_of(finite, finite, finite, st.just(-math.inf))


@st.composite
def rows(draw, count, zeros=True):
    """`count` rows of logits with at least one finite entry each, and a size of 1 to 7."""
    n = draw(st.integers(1, 7))
    out = []
    for _ in range(count):
        row = draw(st.lists(logit if zeros else finite, min_size=n, max_size=n))
        if all(z == -math.inf for z in row):
            row[draw(st.integers(0, n - 1))] = 0.0
        out.append(np.array(row))
    return out


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(pair=rows(2))
def test_never_negative_and_gradients_finite(name, pair):
    p, q = pair
    value, gradients = evaluate(name, p, q)
    assert value >= 0
    if math.isfinite(value):
        assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(pair=rows(2), seed=st.integers(0, 99))
def test_invariant_to_permutation(name, pair, seed):
    order = np.random.default_rng(seed).permutation(len(pair[0]))
    value, _ = evaluate(name, *pair)
    permuted, _ = evaluate(name, *(row[order] for row in pair))
    np.testing.assert_allclose(permuted, value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(four=rows(4), weight=st.floats(0.05, 0.95))
def test_joint_convexity(name, four, weight):
    p1, q1, p2, q2 = (probabilities(row) for row in four)
    mixed, _ = evaluate(
        name, log(weight * p1 + (1 - weight) * p2), log(weight * q1 + (1 - weight) * q2)
    )
    first, _ = evaluate(name, log(p1), log(q1))
    second, _ = evaluate(name, log(p2), log(q2))
    bound = weight * first + (1 - weight) * second
    assert mixed <= bound + 1e-9 * max(1, abs(bound))


@pytest.mark.parametrize("name", [*TABLE, "renyi", "bhattacharyya"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(pair=rows(2))
def test_data_processing(name, pair):
    """Merging the first two categories never increases a divergence."""
    p, q = (probabilities(row) for row in pair)
    if len(p) == 1:
        return
    fine, _ = evaluate(name, log(p), log(q))
    coarse, _ = evaluate(name, *(log(np.append(x[:1] + x[1:2], x[2:])) for x in (p, q)))
    assert coarse <= fine + 1e-9 * max(1, abs(fine))


@pytest.mark.parametrize("name", EVERY)
def test_gradient_against_finite_differences(name):
    rng = np.random.default_rng(7)
    for _ in range(3):
        p, q = (2 * rng.normal(size=6) for _ in range(2))
        value, gradients = evaluate(name, p, q)
        for which, gradient in enumerate(gradients):
            for i in range(6):
                step = np.zeros((2, 6))
                step[which, i] = 1e-6
                up, down = (evaluate(name, p + s * step[0], q + s * step[1])[0] for s in (1, -1))
                np.testing.assert_allclose(
                    gradient[i], (up - down) / 2e-6, rtol=2e-6, atol=2e-8 * (1 + value)
                )


@pytest.mark.parametrize("name", [n for n in EVERY if n != "total_variation"])
def test_hessian(name):
    """Against finite differences of the gradient; at equality, against Fisher's information.

    That is f''(1) times the covariance of the score, for the row of every f-divergence.
    """
    joint = lambda x: function(name)(x[:5], x[5:])
    hessian = jax.jit(jax.hessian(joint))
    gradient = lambda x: np.concatenate([g[:5] for g in evaluate(name, x[:5], x[5:])[1]])
    rng = np.random.default_rng(8)
    x = rng.normal(size=10)
    found = np.asarray(hessian(x))
    for i, step in enumerate(1e-5 * np.eye(10)):
        expected = (gradient(x + step) - gradient(x - step)) / 2e-5
        np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-8)
    if name not in TABLE:
        return
    x = rng.normal(size=5)
    p = probabilities(x)
    fisher = np.diag(p) - p[:, None] * p[None, :]
    curvature = jax.jit(jax.grad(generators.get(name, **EVERY[name]).slope))(0.0)
    at_equality = np.asarray(hessian(np.append(x, x)))[:5, :5]
    np.testing.assert_allclose(at_equality, curvature * fisher, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "parameter", "points"),
    [("alpha", "alpha", (0.7, 1.0, 0.0)), ("tsallis", "index", (1.0, 2.0)),
     ("renyi", "alpha", (1.0, 3.0)), ("jensen_shannon", "weight", (0.3,)),
     ("skew_kl", "skew", (0.2,))],
)  # fmt: skip
def test_gradient_by_a_parameter(name, parameter, points):
    """Parameters may be traced: their gradients hold, also at the limits where formulas break."""
    p, q = np.random.default_rng(10).normal(size=(2, 5))
    f = lambda x: getattr(dv, name)(jnp.array(p), jnp.array(q), **{parameter: x})
    gradient = jax.jit(jax.grad(f))
    for at in points:
        up, down = (evaluate(name, p, q, **{parameter: at + s})[0] for s in (1e-5, -1e-5))
        np.testing.assert_allclose(gradient(at), (up - down) / 2e-5, rtol=1e-7, err_msg=f"at {at}")


def test_gradient_by_parameters_at_zeros():
    """Zeros of both, of p alone, of q alone, and none, in reverse mode against differences.

    Rows whose value is infinite do the others no harm. Parameters of a row are moved together.
    """
    rows = {
        name: (lambda *given, name=name: generators.TABLE[name](*given), tuple(given.values()))
        for name, given in PARAMETERS.items()
        if given
    }
    parts = generators.ReverseKL(), generators.PearsonChi2()
    rows["sum"] = (
        lambda *ws: generators.weighted_sum(tuple(zip(ws, parts, strict=True))),
        (0.7, 0.4),
    )
    rows["swapped"] = lambda gamma: generators.swapped(generators.Chi2KL(gamma)), (0.6,)
    zero = -np.inf
    p = np.array([[0.3, -0.2, zero], [0.3, zero, -1.0], [0.3, -0.4, -1.0], [0.1, 0.2, 0.3]])
    q = np.array([[0.1, 0.2, zero], [0.1, 0.2, 0.3], [0.1, 0.2, zero], [0.4, -0.2, 0.3]])

    @jax.jit
    def evaluated(given):
        values = lambda given: jnp.stack(
            [dv.f_divergence(make(*given[name]), p, q) for name, (make, _) in rows.items()]
        )
        by_parameters = jax.tree.leaves(jax.jacrev(values)(given))
        return values(given), sum(by_parameters)

    moved = lambda step: {name: tuple(x + step for x in given) for name, (_, given) in rows.items()}
    values, gradients = map(np.asarray, evaluated(moved(0.0)))
    assert np.all(np.isfinite(gradients))
    finite = np.isfinite(values)
    assert np.all(finite[:, [0, 3]])
    up, down = (np.asarray(evaluated(moved(step))[0]) for step in (1e-5, -1e-5))
    expected = np.where(finite, up, 0) - np.where(finite, down, 0)
    np.testing.assert_allclose(
        np.where(finite, gradients, 0), expected / 2e-5, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("name", [*SYMMETRIC, "jensen_shannon"])
def test_symmetry(name):
    p, q = np.random.default_rng(11).normal(size=(2, 20, 7))
    of_half = {"weight": 0.5} if name == "jensen_shannon" else {}
    there, back = values(name, p, q, **of_half), values(name, q, p, **of_half)
    np.testing.assert_allclose(there, back, rtol=1e-13)


def test_limits_and_identities_between_rows():
    p, q = 2 * np.random.default_rng(12).normal(size=(2, 20, 7))
    of = lambda name, **parameters: values(name, p, q, **parameters)
    kl, reverse = of("kl"), of("reverse_kl")
    same = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    same(of("alpha", alpha=1.0), kl)
    same(of("alpha", alpha=0.0), reverse)
    same(of("tsallis", index=1.0), kl)
    same(of("renyi", alpha=1.0), kl)
    same(of("renyi", alpha=1 + 1e-9), kl, rtol=1e-7)
    same(of("bregman", alpha=1.0), kl)
    same(of("tsallis", index=2.0), of("pearson_chi2"))
    same(reverse, values("kl", q, p))
    same(of("neyman_chi2"), values("pearson_chi2", q, p))
    same(of("jeffreys"), kl + reverse)
    same(of("alpha", alpha=1.7), values("alpha", q, p, alpha=-0.7))
    same(of("bhattacharyya"), -np.log1p(-of("squared_hellinger")))
    euclid = [
        np.sum((probabilities(x) - probabilities(y)) ** 2) / 2 for x, y in zip(p, q, strict=True)
    ]
    same(of("bregman", alpha=2.0), euclid)
    # Both conventions of the generalised Jensen-Shannon divergence tend to a KL after division.
    same(of("jensen_shannon", weight=1e-9) / 1e-9, kl, rtol=1e-4)
    same(of("jensen_shannon", weight=1 - 1e-9) / 1e-9, reverse, rtol=1e-4)
    same(of("skew_kl", skew=1 - 1e-12), kl, rtol=1e-9)
    mixture = [np.log(probabilities(x) + probabilities(y)) for x, y in zip(p, q, strict=True)]
    same(of("skew_kl", skew=0.5), values("kl", p, mixture))


def test_disjoint_supports_reach_the_bounds():
    p, q = np.array([0.0, 1.0, -np.inf, -np.inf]), np.array([-np.inf, -np.inf, 0.0, 3.0])
    weight, skew = 0.3, 0.2
    bounds = {
        "total_variation": 1,
        "squared_hellinger": 1,
        "le_cam": 1,
        "jensen_shannon": -weight * math.log(weight) - (1 - weight) * math.log(1 - weight),
        "skew_kl": -math.log(1 - skew),
        "alpha": 1 / (0.7 * 0.3),
    }
    for name in EVERY:
        if name == "bregman":
            continue
        value, _ = evaluate(name, p, q)
        np.testing.assert_allclose(value, bounds.get(name, np.inf), rtol=1e-13, err_msg=name)


def test_nan_in_is_nan_out():
    p, q = np.random.default_rng(9).normal(size=(2, 3))
    silent(*((function(name), {"p_logits": p, "q_logits": q}, ("p_logits", "q_logits"))
             for name in EVERY))  # fmt: skip


# -------------------------------------------------------------------------- float32 against float64


def test_random_pairs_in_float32():
    """Offsets to 1e4, spreads from 1e-8 to 1e4, all parameters; a small instance of the search."""
    names = ("kl", "jensen_shannon", "skew_kl", "alpha", "le_cam", "renyi", "bregman")
    for name, (value, gradient, double) in divergence_search.search(400, 1, 4, names).items():
        assert value.max() < 1e-4, name
        assert gradient.max() < 1e-4, name
        assert double < 1e-11, name


def test_offsets_cost_nothing():
    """Policies 1e-3 apart at offsets of 30 and 1e4; logits as large as they can be."""
    rng = np.random.default_rng(0)
    p = rng.normal(size=(3, 6))
    q = p + 1e-3 * rng.normal(size=(3, 6))
    p, q = (np.float32(x + np.array([[0.0], [30.0], [1e4]])) for x in (p, q + 7.0))
    huge = np.float32([[3e38, 3e38, 0.0]]), np.float32([[-3e38, -3e38, -3e38]])

    @jax.jit
    def of(p, q):
        return {name: getattr(dv, name)(p, q) for name in ("kl", "jensen_shannon", "reverse_kl")}

    for name, found in of(p, q).items():
        with mp.workdps(60):
            exact = [high_precision.divergence(name, *map(high_precision.softmax, x), weight=0.5)
                     for x in zip(p.tolist(), q.tolist(), strict=True)]  # fmt: skip
        np.testing.assert_allclose(found, np.array(exact, float), rtol=1e-5)
    expected = {"kl": np.log(1.5), "reverse_kl": np.inf, "jensen_shannon": 0.1323}
    for name, found in of(*huge).items():
        if name != "reverse_kl":
            np.testing.assert_allclose(found, expected[name], rtol=1e-3)


def test_bregman_at_shared_zeros_and_of_itself():
    """For a <= 0 shared zeros count nothing, and neither does a p that is q."""
    shared = np.array([[0.0, 1.0, -np.inf], [0.0, 0.0, -np.inf]])
    same = np.array([[0.0, -50.0, -1.0]] * 2)
    alpha = np.array([-2.0, -0.5, 0.0, 1.0])
    repeat = lambda x: np.repeat(x[:, None], 4, axis=1)

    @jax.jit
    def of(p, q):
        value, pullback = jax.vjp(lambda p, q: dv.bregman(p, q, alpha=alpha), p, q)
        return value, *pullback(jnp.ones_like(value))

    value, *gradients = of(*repeat(shared))
    with mp.workdps(60):
        for a, found in zip(alpha, value, strict=True):
            pair = map(high_precision.softmax, shared[:, :2].tolist())
            exact = high_precision.divergence("bregman", *pair, alpha=a + mp.mpf(10) ** -25)
            np.testing.assert_allclose(found, float(exact), rtol=1e-9)
    for gradient in gradients:
        assert np.all(gradient[:, 2] == 0)
        np.testing.assert_allclose(gradient[:, 0], -gradient[:, 1], rtol=1e-12)
    value, *gradients = of(*repeat(same))
    assert np.all(value == 0)
    assert all(np.all(gradient == 0) for gradient in gradients)


# ---------------------------------------------------------------------------- programs and dtypes


def test_same_under_every_transformation(same_everywhere):
    rng = np.random.default_rng(13)
    p, q = (rng.normal(size=(8, 3, 5)) for _ in range(2))
    p[:, 0, 1], q[:, 0, 1] = -np.inf, -np.inf

    def value_and_gradients(name, p, q):
        value, pullback = jax.vjp(function(name), p, q)
        return value, pullback(jnp.ones_like(value))

    every = lambda p, q: {name: value_and_gradients(name, p, q) for name in EVERY}
    same_everywhere(every, jnp.array(p), jnp.array(q))


def test_large_arrays_in_blocks_are_the_same(monkeypatch):
    """Rows a block at a time, with some left over: values and derivatives of either order."""
    p, q = np.random.default_rng(16).normal(size=(2, 2, 11, 5))
    p[:, ::3] *= 9  # a category with nearly all of the mass
    weights = np.random.default_rng(17).uniform(0.1, 0.9, size=(2, 11))

    def of(p, q, weights):
        first = lambda p, q, w: jnp.sum(dv.jensen_shannon(p, q, weight=w) ** 2)
        gradients = jax.grad(first, (0, 1, 2))
        second = jax.jvp(lambda p: gradients(p, q, weights), (p,), (q,))[1]
        return dv.jensen_shannon(p, q, weight=weights), gradients(p, q, weights), second

    whole = jax.jit(of)(p, q, weights)
    monkeypatch.setattr(numerics, "BLOCK", 20)
    blocks = jax.jit(lambda *x: of(*x)).trace(p, q, weights).lower()
    assert "while" in blocks.as_text()
    for ours, exact in zip(
        *map(jax.tree.leaves, (blocks.compile()(p, q, weights), whole)), strict=True
    ):
        np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=1e-14)


def test_second_derivatives_next_to_certainty():
    """The top category's derivative is a sum of the others, and so is what it changes by."""
    p, q = jnp.array([0.0, -30.0, -32.0]), jnp.array([-1.0, -2.0, 0.0])
    gradient = jax.grad(lambda p: dv.kl(p, q))
    value, change = jax.jit(lambda p: jax.jvp(gradient, (p,), (jnp.array([0.0, 1.0, 0.0]),)))(p)
    with mp.workdps(60):
        log_q = [mp.log(x) for x in high_precision.softmax(map(float, q))]

        def exact(z):
            p = high_precision.softmax([0, z, -32])
            slopes = [mp.log(x) - y for x, y in zip(p, log_q, strict=True)]
            mean = mp.fsum(x * y for x, y in zip(p, slopes, strict=True))
            return [x * (y - mean) for x, y in zip(p, slopes, strict=True)]

        changes = [float(mp.diff(lambda z, i=i: exact(z)[i], -30)) for i in range(3)]
        np.testing.assert_allclose(value, [float(x) for x in exact(-30)], rtol=1e-10)
    np.testing.assert_allclose(change, changes, rtol=1e-9)


def test_a_sweep_over_a_parameter_is_one_program():
    rng = np.random.default_rng(14)
    p, q = rng.normal(size=(2, 6))
    orders = np.linspace(-2, 3, 11)
    sweep = jax.jit(jax.vmap(lambda a: dv.alpha(p, q, alpha=a)))
    each = [evaluate("alpha", p, q, alpha=a)[0] for a in orders]
    np.testing.assert_allclose(sweep(orders), each, rtol=1e-12)
    rows = jax.jit(jax.vmap(lambda a: dv.f_divergence(generators.get("tsallis", index=a), p, q)))(
        orders[6:]
    )
    each = [evaluate("tsallis", p, q, index=a)[0] for a in orders[6:]]
    np.testing.assert_allclose(rows, each, rtol=1e-12)


def test_half_precision_gradients_near_equality():
    """At KL = 1e-5 between bfloat16 logits: ours to the gradient's own rounding, naive to 10 %."""
    rng = np.random.default_rng(15)
    p = jnp.asarray(4 * rng.normal(size=32_000), jnp.bfloat16)
    q = jnp.where(np.arange(32_000) % 200 == 0, p * 1.0078125, p)
    gradient = jax.jit(jax.grad(dv.kl))
    exact = np.asarray(gradient(p.astype(np.float64), q.astype(np.float64)))
    ours = np.asarray(gradient(p, q)).astype(np.float64)

    @jax.jit
    @jax.grad
    def naive_gradient(p):
        log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    naive = np.asarray(naive_gradient(p)).astype(np.float64)
    error = lambda g: np.linalg.norm(g - exact) / np.linalg.norm(exact)
    assert error(ours) < 3e-3
    assert error(naive) > 0.1


# -------------------------------------------------------------- formulas that others have got wrong

P, Q = np.array([2.0, 0.0, -1.0]), np.array([0.0, 1.0, -1.0])
p_, q_ = probabilities(P), probabilities(Q)


def test_jensen_shannon_is_neither_jeffreys_nor_its_reverse():
    """`gen_js` of one library is Jeffreys; another's criterion is KL(m‖p) + KL(m‖q)."""
    m = (p_ + q_) / 2
    right = (np.sum(p_ * np.log(p_ / m)) + np.sum(q_ * np.log(q_ / m))) / 2
    ours, _ = evaluate("jensen_shannon", P, Q, weight=0.5)
    np.testing.assert_allclose(ours, right, rtol=1e-13)
    jeffreys = np.sum((p_ - q_) * np.log(p_ / q_))
    swapped = np.sum(m * np.log(m / p_)) + np.sum(m * np.log(m / q_))
    # Probabilities where log-probabilities belong, and halved twice.
    from_probabilities = np.sum(p_ * (np.log(p_) - m)) / 4 + np.sum(q_ * (np.log(q_) - m)) / 4
    for wrong in (jeffreys, jeffreys / 2, swapped, swapped / 2, from_probabilities):
        assert abs(wrong - right) > 0.01


def test_squared_hellinger_has_its_half():
    right = 1 - np.sum(np.sqrt(p_ * q_))
    np.testing.assert_allclose(evaluate("squared_hellinger", P, Q)[0], right, rtol=1e-13)
    assert abs(np.sum((np.sqrt(p_) - np.sqrt(q_)) ** 2) - right) > 0.1


def test_kl_is_not_a_difference_of_log_odds():
    ours, _ = evaluate("kl", P, Q)
    odds = lambda x: np.log(x / (1 - x))
    np.testing.assert_allclose(ours, 0.8112, atol=5e-5)
    np.testing.assert_allclose(2 * np.sum(p_ * (odds(p_) - odds(q_))), 4.0552, atol=5e-5)


def test_kl_is_a_sum_over_categories_not_a_mean():
    ours, _ = evaluate("kl", P, Q)
    np.testing.assert_allclose(ours, np.sum(p_ * np.log(p_ / q_)), rtol=1e-13)
    assert abs(ours - np.mean(p_ * np.log(p_ / q_))) > 0.1


def test_kl_is_a_difference_of_logarithms_not_a_ratio_of_them():
    right = np.sum(p_ * (np.log(p_) - np.log(q_)))
    assert abs(evaluate("kl", P, Q)[0] - right) < 1e-13
    assert abs(np.sum(p_ * np.log(p_) / np.log(q_)) - right) > 0.04


def test_the_row_may_be_given_by_name():
    """As in all functions that take one."""
    p, q = np.random.default_rng(3).normal(size=(2, 5))
    by_name = dv.f_divergence(p, q, generator=generators.kl())
    assert by_name == dv.f_divergence(generators.kl(), p, q)
    assert by_name == dv.f_divergence(generator=generators.kl(), p_logits=p, q_logits=q)


def test_masked_categories_have_no_mass():
    """Replacing the -inf of a mask by 0 before the softmax gives the masked token mass."""
    p, q = np.array([1.0, 0.5, -np.inf]), np.array([0.2, 0.9, -np.inf])
    kl = jax.jit(dv.kl)
    zeroed = lambda x: np.where(np.isinf(x), 0, x)
    np.testing.assert_allclose(kl(p, q), kl(p[:2], q[:2]), rtol=1e-13)
    assert abs(kl(zeroed(p), zeroed(q)) - kl(p, q)) > 1e-3


def test_both_arguments_carry_a_gradient():
    """A criterion that detaches both sides trains nothing."""
    _, gradients = evaluate("kl", P, Q)
    assert all(np.linalg.norm(g) > 0.1 for g in gradients)


def test_kl_at_zeros_against_the_common_implementation():
    """`sum where(p > 0, p log p/q)` has the value and loses the gradient; rel_entr clamps none."""
    p, q = np.array([0.0, 0.0, -np.inf]), np.array([0.3, -0.2, 0.1])

    @jax.jit
    @jax.value_and_grad
    def single_where(p, q):
        log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        return jnp.sum(jnp.where(log_p == -jnp.inf, 0, jnp.exp(log_p) * (log_p - log_q)))

    value, (gradient, _) = evaluate("kl", p, q)
    common_value, common_gradient = single_where(p, q)
    np.testing.assert_allclose(value, common_value, rtol=1e-13)
    assert np.any(np.isnan(common_gradient))
    assert np.all(np.isfinite(gradient))
    assert evaluate("kl", q, p)[0] == np.inf  # and not 43.3, as with a clamp at the smallest number


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", EVERY)
def test_refusals_name_the_argument(name):
    f = function(name)
    x = jnp.zeros(3)
    with raises(
        ValueError,
        match=r"^p_logits and q_logits must have the same shape .*broadcast_to.*\(3,\).*\(4,\)$",
    ):
        f(x, jnp.zeros(4))
    with raises(TypeError, match=r"^p_logits must be a floating-point array, got dtype int64$"):
        f(jnp.array([1, 2, 3]), x)
    with raises(TypeError, match=r"^q_logits must be a floating-point array"):
        f(x, jnp.array([1, 2, 3]))
    with raises(ValueError, match=r"^p_logits must have an axis"):
        f(jnp.float64(0), jnp.float64(0))
    with raises(ValueError, match=r"^axis must be within shape \(3,\), got 1$"):
        f(x, x, axis=1)
    with raises(TypeError, match=r"^where must be a boolean array"):
        f(x, x, where=jnp.ones(3))
    with raises(TypeError, match=r"^generator must be a row such as generators.kl\(\), got a "):
        dv.f_divergence(jnp.zeros((9, 9)), x, generators.kl())
    with raises(TypeError, match=r"^generator must be a row such as generators.kl\(\), got kl"):
        dv.f_divergence(x, x, generator="kl")
    with raises(ValueError, match=r"at least one category"):
        f(jnp.zeros((2, 0)), jnp.zeros((2, 0)))


@pytest.mark.parametrize(
    ("name", "parameter", "bad", "allowed"),
    [
        ("alpha", "alpha", math.nan, "a finite number"),
        ("alpha", "alpha", math.inf, "a finite number"),
        ("alpha", "alpha", "half", "a finite number"),
        ("tsallis", "index", 0.0, "positive and finite"),
        ("renyi", "alpha", -1.0, "positive and finite"),
        ("jensen_shannon", "weight", 0.0, "between 0 and 1, exclusive"),
        ("jensen_shannon", "weight", 1.0, "between 0 and 1, exclusive"),
        ("skew_kl", "skew", 1.0, "between 0 and 1, exclusive"),
        ("bregman", "alpha", math.nan, "a finite number"),
    ],
)
def test_parameters_out_of_range(name, parameter, bad, allowed):
    x = jnp.zeros(3)
    with raises(ValueError, match=f"^{parameter} must be {allowed}, got {bad}$"):
        getattr(dv, name)(x, x, **{parameter: bad})
    with raises(ValueError, match=f"^{parameter} must be {allowed}"):
        jax.jit(lambda x: getattr(dv, name)(x, x, **{parameter: bad}))(x)
