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
from jdiv import generators
from tests import high_precision
from tests.checks import PARAMETERS

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


def logits(row, key, dtype):
    filled = row[key] + [None] * (8 - len(row[key]))
    return jnp.array([-jnp.inf if z is None else z for z in filled], dtype)


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
    Categories that neither p nor q has fill each row up to eight, so that a group is one program.
    """
    name, *parameters = group
    rows = [row for row in ROWS if (row["name"], *row["params"].items()) == group]
    assert len(rows) == 12
    f = functools.partial(
        getattr(dv, name), **{"q_index" if k == "q" else k: v for k, v in parameters}
    )
    p, q = (
        jnp.stack([logits(row, key, jnp.float64) for row in rows])
        for key in ("p_logits", "q_logits")
    )
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1))))(p, q)
    singles = jax.jit(f)(p.astype(jnp.float32), q.astype(jnp.float32))
    assert singles.dtype == jnp.float32
    for i, row in enumerate(rows):
        reference, value, single = float(row["value"]), float(values[i]), float(singles[i])
        if math.isinf(reference):
            assert value == single == math.inf
            continue
        assert abs(value - reference) <= 1e-12 + 1e-10 * abs(reference)
        if reference < float(jnp.finfo(jnp.float32).max):
            bound = 1e-6 + 5e-5 * (1 + largest_logit(row) / 10) * abs(reference)
            assert abs(single - reference) <= bound
        assert all(jnp.all(jnp.isfinite(g[i])) for g in gradients)
        references = [row["grad_p"], row["grad_q"]]
        if None not in references:
            size = max(abs(x) for g in references for x in g if x is not None)
            bound = (1e-8 if reference <= 1e6 else 1e-6) * size
            for gradient, exact in zip(gradients, references, strict=True):
                for ours, true in zip(np.asarray(gradient[i]), exact, strict=False):
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
    np.testing.assert_allclose(function(name)(jnp.array(p), jnp.array(q)), float(exact), rtol=1e-8)


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
    np.testing.assert_allclose(function(name)(jnp.array(p), jnp.array(q)), float(exact), rtol=2e-5)


# -------------------------------------------------------------------------------------- exact zeros


@pytest.mark.parametrize("name", EVERY)
def test_of_itself_is_exactly_zero(name):
    x = jnp.array(np.random.default_rng(2).normal(size=(3, 40))).at[1, ::3].set(-jnp.inf)
    f = jax.jit(function(name))
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        for scale in (1.0, 1e4):
            logits_of_dtype = (scale * x).astype(dtype)
            value = f(logits_of_dtype, logits_of_dtype)
            assert value.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
            assert jnp.all(value == 0)
    assert jnp.all(function(name)(x, x) == 0)  # and eagerly, where nothing is fused


@pytest.mark.parametrize("name", EVERY)
def test_of_itself_is_exactly_zero_at_250000_categories_in_bfloat16(name):
    x = jnp.asarray(4 * np.random.default_rng(3).normal(size=250_000), jnp.bfloat16)
    assert jax.jit(function(name))(x, x) == 0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shift", [1e-3, 7.5, -300.0])
def test_logits_have_no_absolute_level(name, shift):
    x = jnp.array(5 * np.random.default_rng(4).normal(size=8))
    assert 0 <= evaluate(name, x, x + shift)[0] <= 1e-12


@pytest.mark.parametrize("name", EVERY)
def test_masks(name):
    """`where` leaves categories out; an emptied row is 0 with a zero gradient, not NaN."""
    rng = np.random.default_rng(5)
    p, q = (jnp.array(rng.normal(size=(3, 6))) for _ in range(2))
    where = jnp.array([[True] * 6, [True, False, True, True, False, False], [False] * 6])
    f = jax.jit(function(name), static_argnames="axis")
    masked = f(p, q, where=where)
    kept = jnp.array([0, 2, 3])
    np.testing.assert_allclose(masked[0], f(p[0], q[0]), rtol=1e-13)
    np.testing.assert_allclose(masked[1], f(p[1, kept], q[1, kept]), rtol=1e-13)
    assert masked[2] == 0
    gradients = jax.jit(jax.grad(lambda p, q: f(p, q, where=where).sum(), (0, 1)))(p, q)
    for gradient in gradients:
        assert jnp.all(jnp.isfinite(gradient))
        assert jnp.all(jnp.where(where, 0, gradient) == 0)
    np.testing.assert_allclose(f(p.T, q.T, axis=0), f(p, q), rtol=1e-13)


@pytest.mark.parametrize("name", EVERY)
def test_rows_without_a_distribution_are_nan(name):
    nothing, something = jnp.full(3, -jnp.inf), jnp.zeros(3)
    f = jax.jit(function(name))
    assert jnp.isnan(f(nothing, something))
    assert jnp.isnan(f(something, nothing))
    assert jnp.isnan(f(something.at[0].set(jnp.nan), something))


@pytest.mark.parametrize("name", EVERY)
def test_one_category(name):
    value, gradient = jax.jit(jax.value_and_grad(function(name)))(
        jnp.array([3.0]), jnp.array([-8.0])
    )
    assert value == 0
    assert gradient == 0


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("mask", [-1e9, float(jnp.finfo(jnp.float32).min)])
def test_large_negative_logits_used_as_masks(name, mask):
    """The common substitute for -inf gives finite gradients and, of both, what -inf gives."""
    rng = np.random.default_rng(6)
    p, q = (jnp.array(rng.normal(size=5), jnp.float32) for _ in range(2))
    f = jax.jit(function(name))
    value_and_gradients = jax.jit(jax.value_and_grad(f, (0, 1)))
    exact = f(p.at[2].set(-jnp.inf), q.at[2].set(-jnp.inf))
    np.testing.assert_allclose(f(p.at[2].set(mask), q.at[2].set(mask)), exact, rtol=1e-6)
    for which in (0, 1):
        masked, zero = ([p, q], [p, q])
        masked[which], zero[which] = ([p, q][which].at[2].set(x) for x in (mask, -jnp.inf))
        value, gradients = value_and_gradients(*masked)
        if jnp.isfinite(f(*zero)):
            np.testing.assert_allclose(value, f(*zero), rtol=1e-6)
        else:
            assert value > 1e5
        if jnp.isfinite(value):
            assert all(jnp.all(jnp.isfinite(g)) for g in gradients)


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


@functools.cache
def compiled(name):
    """One program per divergence, for the hundreds of examples that hypothesis runs through it."""
    return jax.jit(jax.value_and_grad(function(name), (0, 1)))


def evaluate(name, p, q):
    """Value and gradients; categories that neither p nor q has fill up to eight."""
    p, q = (jnp.asarray(np.append(x, np.full(8 - len(x), -np.inf))) for x in (p, q))
    value, gradients = compiled(name)(p, q)
    return float(value), [np.asarray(g) for g in gradients]


def probabilities(row):
    return np.exp(row - np.max(row)) / np.sum(np.exp(row - np.max(row)))


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


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
    f = jax.jit(function(name))
    for _ in range(3):
        p, q = (2 * rng.normal(size=6) for _ in range(2))
        gradients = jax.jit(jax.grad(f, (0, 1)))(jnp.array(p), jnp.array(q))
        for which, gradient in enumerate(gradients):
            for i in range(6):
                step = np.zeros((2, 6))
                step[which, i] = 1e-6
                up, down = (
                    f(jnp.array(p + s * step[0]), jnp.array(q + s * step[1])) for s in (1, -1)
                )
                np.testing.assert_allclose(
                    gradient[i], (up - down) / 2e-6, rtol=2e-6, atol=2e-8 * (1 + float(f(p, q)))
                )


@pytest.mark.parametrize("name", [n for n in EVERY if n != "total_variation"])
def test_hessian_against_finite_differences_of_the_gradient(name):
    rng = np.random.default_rng(8)
    p, q = (rng.normal(size=4) for _ in range(2))
    joint = lambda x: function(name)(x[:4], x[4:])  # noqa: E731
    x = jnp.array(np.concatenate([p, q]))
    hessian = jax.jit(jax.hessian(joint))(x)
    gradient = jax.jit(jax.grad(joint))
    for i in range(8):
        step = np.zeros(8)
        step[i] = 1e-5
        expected = (gradient(x + step) - gradient(x - step)) / 2e-5
        np.testing.assert_allclose(hessian[i], expected, rtol=1e-6, atol=1e-8)


def test_hessian_at_equality_is_the_fisher_information():
    """f''(1) times the covariance of the score, for the row of every f-divergence."""
    x = jnp.array(np.random.default_rng(9).normal(size=5))
    p = jax.nn.softmax(x)
    fisher = jnp.diag(p) - p[:, None] * p[None, :]
    for name in TABLE:
        if name == "total_variation":
            continue
        curvature = jax.grad(generators.get(name, **EVERY[name]).slope)(0.0)
        hessian = jax.jit(jax.hessian(lambda y: function(name)(y, x)))(x)  # noqa: B023
        np.testing.assert_allclose(hessian, curvature * fisher, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "parameter", "at"),
    [("alpha", "alpha", 0.7), ("alpha", "alpha", 1.0), ("alpha", "alpha", 0.0),
     ("tsallis", "q_index", 1.0), ("tsallis", "q_index", 2.0), ("renyi", "alpha", 1.0),
     ("renyi", "alpha", 3.0), ("jensen_shannon", "weight", 0.3), ("skew_kl", "skew", 0.2)],
)  # fmt: skip
def test_gradient_by_a_parameter(name, parameter, at):
    """Parameters may be traced: their gradients hold, also at the limits where formulas break."""
    rng = np.random.default_rng(10)
    p, q = (jnp.array(rng.normal(size=5)) for _ in range(2))
    f = lambda x: getattr(dv, name)(p, q, **{parameter: x})  # noqa: E731
    expected = (f(at + 1e-5) - f(at - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(f)(at), expected, rtol=1e-7)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetry(name):
    rng = np.random.default_rng(11)
    p, q = (jnp.array(rng.normal(size=(20, 7))) for _ in range(2))
    np.testing.assert_allclose(function(name)(p, q), function(name)(q, p), rtol=1e-13)
    np.testing.assert_allclose(dv.jensen_shannon(p, q), dv.jensen_shannon(q, p), rtol=1e-13)


def test_limits_and_identities_between_rows():
    rng = np.random.default_rng(12)
    p, q = (jnp.array(2 * rng.normal(size=(20, 7))) for _ in range(2))
    kl, reverse = dv.kl(p, q), dv.reverse_kl(p, q)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    same(dv.alpha(p, q, alpha=1.0), kl)
    same(dv.alpha(p, q, alpha=0.0), reverse)
    same(dv.tsallis(p, q, q_index=1.0), kl)
    same(dv.renyi(p, q, alpha=1.0), kl)
    same(dv.renyi(p, q, alpha=1 + 1e-9), kl, rtol=1e-7)
    same(dv.bregman(p, q, alpha=1.0), kl)
    same(dv.tsallis(p, q, q_index=2.0), dv.pearson_chi2(p, q))
    same(dv.reverse_kl(p, q), dv.kl(q, p))
    same(dv.neyman_chi2(p, q), dv.pearson_chi2(q, p))
    same(dv.jeffreys(p, q), kl + reverse)
    same(dv.alpha(p, q, alpha=1.7), dv.alpha(q, p, alpha=-0.7))
    same(dv.bhattacharyya(p, q), -jnp.log1p(-dv.squared_hellinger(p, q)))
    euclid = jnp.sum((jax.nn.softmax(p) - jax.nn.softmax(q)) ** 2, -1) / 2
    same(dv.bregman(p, q, alpha=2.0), euclid)
    # Both conventions of the generalised Jensen-Shannon divergence tend to a KL after division.
    same(dv.jensen_shannon(p, q, weight=1e-9) / 1e-9, kl, rtol=1e-4)
    same(dv.jensen_shannon(p, q, weight=1 - 1e-9) / 1e-9, reverse, rtol=1e-4)
    same(dv.skew_kl(p, q, skew=1 - 1e-12), kl, rtol=1e-9)
    same(
        dv.skew_kl(p, q, skew=0.5),
        dv.kl(p, jnp.logaddexp(jax.nn.log_softmax(p), jax.nn.log_softmax(q))),
    )


def test_disjoint_supports_reach_the_bounds():
    p, q = jnp.array([0.0, 1.0, -jnp.inf, -jnp.inf]), jnp.array([-jnp.inf, -jnp.inf, 0.0, 3.0])
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
        np.testing.assert_allclose(function(name)(p, q), bounds.get(name, jnp.inf), rtol=1e-13)


# ---------------------------------------------------------------------------- programs and dtypes


@pytest.mark.parametrize("name", EVERY)
def test_same_under_every_transformation(name, same_everywhere):
    rng = np.random.default_rng(13)
    p, q = (rng.normal(size=(8, 5, 6)) for _ in range(2))
    p[:, 0, 1], q[:, 0, 1] = -np.inf, -np.inf

    def value_and_gradients(p, q):
        value, pullback = jax.vjp(function(name), p, q)
        return value, pullback(jnp.ones_like(value))

    same_everywhere(value_and_gradients, jnp.array(p), jnp.array(q))


def test_a_sweep_over_a_parameter_is_one_program():
    rng = np.random.default_rng(14)
    p, q = (jnp.array(rng.normal(size=6)) for _ in range(2))
    orders = jnp.linspace(-2, 3, 11)
    sweep = jax.jit(jax.vmap(lambda a: dv.alpha(p, q, alpha=a)))
    np.testing.assert_allclose(
        sweep(orders), [dv.alpha(p, q, alpha=float(a)) for a in orders], rtol=1e-12
    )
    rows = jax.vmap(lambda a: dv.f_divergence(generators.get("tsallis", q_index=a), p, q))(
        orders[6:]
    )
    np.testing.assert_allclose(
        rows, [dv.tsallis(p, q, q_index=float(a)) for a in orders[6:]], rtol=1e-12
    )


def test_half_precision_gradients_near_equality():
    """At KL = 1e-5 between bfloat16 logits: ours to the gradient's own rounding, naive to 10 %."""
    rng = np.random.default_rng(15)
    p = jnp.asarray(4 * rng.normal(size=32_000), jnp.bfloat16)
    q = jnp.where(jnp.arange(32_000) % 200 == 0, p * 1.0078125, p)
    exact = jax.grad(lambda p: dv.kl(p, q.astype(jnp.float64)))(p.astype(jnp.float64))
    ours = jax.grad(lambda p: dv.kl(p, q))(p).astype(jnp.float64)

    def naive_kl(p):
        log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    naive = jax.grad(naive_kl)(p).astype(jnp.float64)
    error = lambda g: float(jnp.linalg.norm(g - exact) / jnp.linalg.norm(exact))  # noqa: E731
    assert error(ours) < 3e-3
    assert error(naive) > 0.1


# -------------------------------------------------------------- formulas that others have got wrong

P, Q = np.array([2.0, 0.0, -1.0]), np.array([0.0, 1.0, -1.0])
p_, q_ = probabilities(P), probabilities(Q)


def test_jensen_shannon_is_neither_jeffreys_nor_its_reverse():
    """`gen_js` of one library is Jeffreys; another's criterion is KL(m‖p) + KL(m‖q)."""
    m = (p_ + q_) / 2
    right = (np.sum(p_ * np.log(p_ / m)) + np.sum(q_ * np.log(q_ / m))) / 2
    ours = dv.jensen_shannon(jnp.array(P), jnp.array(Q))
    np.testing.assert_allclose(ours, right, rtol=1e-13)
    jeffreys = np.sum((p_ - q_) * np.log(p_ / q_))
    swapped = np.sum(m * np.log(m / p_)) + np.sum(m * np.log(m / q_))
    # Probabilities where log-probabilities belong, and halved twice.
    from_probabilities = np.sum(p_ * (np.log(p_) - m)) / 4 + np.sum(q_ * (np.log(q_) - m)) / 4
    for wrong in (jeffreys, jeffreys / 2, swapped, swapped / 2, from_probabilities):
        assert abs(wrong - right) > 0.01


def test_squared_hellinger_has_its_half():
    right = 1 - np.sum(np.sqrt(p_ * q_))
    np.testing.assert_allclose(dv.squared_hellinger(jnp.array(P), jnp.array(Q)), right, rtol=1e-13)
    assert abs(np.sum((np.sqrt(p_) - np.sqrt(q_)) ** 2) - right) > 0.1


def test_kl_is_not_a_difference_of_log_odds():
    ours = dv.kl(jnp.array(P), jnp.array(Q))
    odds = lambda x: np.log(x / (1 - x))  # noqa: E731
    np.testing.assert_allclose(ours, 0.8112, atol=5e-5)
    np.testing.assert_allclose(2 * np.sum(p_ * (odds(p_) - odds(q_))), 4.0552, atol=5e-5)


def test_kl_is_a_sum_over_categories_not_a_mean():
    ours = dv.kl(jnp.array(P), jnp.array(Q))
    np.testing.assert_allclose(ours, np.sum(p_ * np.log(p_ / q_)), rtol=1e-13)
    assert abs(ours - np.mean(p_ * np.log(p_ / q_))) > 0.1


def test_kl_is_a_difference_of_logarithms_not_a_ratio_of_them():
    right = np.sum(p_ * (np.log(p_) - np.log(q_)))
    assert abs(dv.kl(jnp.array(P), jnp.array(Q)) - right) < 1e-13
    assert abs(np.sum(p_ * np.log(p_) / np.log(q_)) - right) > 0.04


def test_masked_categories_have_no_mass():
    """Replacing the -inf of a mask by 0 before the softmax gives the masked token mass."""
    p, q = jnp.array([1.0, 0.5, -jnp.inf]), jnp.array([0.2, 0.9, -jnp.inf])
    zeroed = lambda x: jnp.where(jnp.isinf(x), 0, x)  # noqa: E731
    np.testing.assert_allclose(dv.kl(p, q), dv.kl(p[:2], q[:2]), rtol=1e-13)
    assert abs(dv.kl(zeroed(p), zeroed(q)) - dv.kl(p, q)) > 1e-3


def test_both_arguments_carry_a_gradient():
    """A criterion that detaches both sides trains nothing."""
    gradients = jax.grad(dv.kl, (0, 1))(jnp.array(P), jnp.array(Q))
    assert all(jnp.linalg.norm(g) > 0.1 for g in gradients)


def test_kl_at_zeros_against_the_common_implementation():
    """`sum where(p > 0, p log p/q)` has the value and loses the gradient; rel_entr clamps none."""
    p, q = jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([0.3, -0.2, 0.1])

    def single_where(p, q):
        log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        return jnp.sum(jnp.where(log_p == -jnp.inf, 0, jnp.exp(log_p) * (log_p - log_q)))

    np.testing.assert_allclose(dv.kl(p, q), single_where(p, q), rtol=1e-13)
    assert jnp.any(jnp.isnan(jax.grad(single_where)(p, q)))
    assert jnp.all(jnp.isfinite(jax.grad(dv.kl)(p, q)))
    assert dv.kl(q, p) == jnp.inf  # and not 43.3, as with a clamp at the smallest number


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", EVERY)
def test_refusals_name_the_argument(name):
    f = function(name)
    x = jnp.zeros(3)
    with pytest.raises(
        ValueError, match=r"^p_logits and q_logits must have the same shape, got .*\(3,\).*\(4,\)$"
    ):
        f(x, jnp.zeros(4))
    with pytest.raises(
        TypeError, match=r"^p_logits must be a floating-point array, got dtype int64$"
    ):
        f(jnp.array([1, 2, 3]), x)
    with pytest.raises(TypeError, match=r"^q_logits must be a floating-point array"):
        f(x, jnp.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"^p_logits must have an axis"):
        f(jnp.float64(0), jnp.float64(0))
    with pytest.raises(ValueError, match=r"^axis must be within shape \(3,\), got 1$"):
        f(x, x, axis=1)
    with pytest.raises(TypeError, match=r"^where must be a boolean array"):
        f(x, x, where=jnp.ones(3))
    with pytest.raises(ValueError, match=r"at least one category"):
        f(jnp.zeros((2, 0)), jnp.zeros((2, 0)))


@pytest.mark.parametrize(
    ("name", "parameter", "bad", "allowed"),
    [
        ("alpha", "alpha", math.nan, "a finite number"),
        ("alpha", "alpha", math.inf, "a finite number"),
        ("alpha", "alpha", "half", "a finite number"),
        ("tsallis", "q_index", 0.0, "positive and finite"),
        ("renyi", "alpha", -1.0, "positive and finite"),
        ("jensen_shannon", "weight", 0.0, "between 0 and 1, exclusive"),
        ("jensen_shannon", "weight", 1.0, "between 0 and 1, exclusive"),
        ("skew_kl", "skew", 1.0, "between 0 and 1, exclusive"),
        ("bregman", "alpha", math.nan, "a finite number"),
    ],
)
def test_parameters_out_of_range(name, parameter, bad, allowed):
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match=f"^{parameter} must be {allowed}, got {bad}$"):
        getattr(dv, name)(x, x, **{parameter: bad})
    with pytest.raises(ValueError, match=f"^{parameter} must be {allowed}"):
        jax.jit(lambda x: getattr(dv, name)(x, x, **{parameter: bad}))(x)
