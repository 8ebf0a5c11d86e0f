"""Kernel and energy distances: double loops, enumeration of samples, closed forms."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jdiv import estimators
from tests.checks import refused

CALLS = {
    "squared_mmd_biased": functools.partial(estimators.squared_mmd_biased, bandwidth=0.8),
    "squared_mmd_unbiased": functools.partial(estimators.squared_mmd_unbiased, bandwidth=0.8),
    "cauchy_schwarz": functools.partial(estimators.cauchy_schwarz, bandwidth=0.8),
    "energy_distance": estimators.energy_distance,
}
COMPILED = {name: jax.jit(call) for name, call in CALLS.items()}
OF_BANDWIDTH = {
    name: jax.jit(getattr(estimators, name)) for name in CALLS if name != "energy_distance"
}


def close(found, wanted, tolerance):
    np.testing.assert_allclose(
        np.asarray(found, np.float64),
        np.asarray(wanted, np.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def samples(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), 1.5 * rng.standard_normal((m, d)) + 0.4


def mean_of_pairs(f, x, y, distinct=False):
    values = [
        f(math.dist(a, b))
        for (i, a), (j, b) in itertools.product(enumerate(x), enumerate(y))
        if not (distinct and i == j)
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 7, 2), (6, 3, 1), (4, 4, 3)])
@pytest.mark.parametrize("s", [0.5, 2.0])
def test_by_double_loops(n, m, d, s):
    x, y = samples(n, m, d)
    kernel = lambda r: math.exp(-(r**2) / (2 * s**2))
    xx, yy, xy = (mean_of_pairs(kernel, *pair) for pair in ((x, x), (y, y), (x, y)))
    close(OF_BANDWIDTH["squared_mmd_biased"](x, y, bandwidth=s), xx + yy - 2 * xy, 1e-14)
    ours = OF_BANDWIDTH["cauchy_schwarz"](x, y, bandwidth=s)
    close(
        ours,
        math.log(xx) + math.log(yy) - 2 * math.log(xy),
        1e-14,
    )
    # Sums in place of means: the sizes cancel.
    sums = math.log(xx * n * n) + math.log(yy * m * m) - 2 * math.log(xy * n * m)
    close(ours, sums, 1e-14)
    distinct = [mean_of_pairs(kernel, z, z, distinct=True) for z in (x, y)]
    ours = OF_BANDWIDTH["squared_mmd_unbiased"](x, y, bandwidth=s)
    close(ours, sum(distinct) - 2 * xy, 1e-14)
    distance = [mean_of_pairs(lambda r: r, *pair) for pair in ((x, y), (x, x), (y, y))]
    wanted = 2 * distance[0] - distance[1] - distance[2]
    close(COMPILED["energy_distance"](x, y), wanted, 1e-14)


def test_means_over_all_samples_of_a_small_space():
    """The U-statistic is unbiased; the others are too high by exactly what their docstrings say."""
    points = np.array([[0.0], [1.0], [2.5]])
    p, q = np.array([0.5, 0.2, 0.3]), np.array([0.1, 0.6, 0.3])
    n, m = 3, 2
    gap = np.abs(points - points.T)
    kernel = np.exp(-(gap**2) / 2)
    mmd = (p - q) @ kernel @ (p - q)
    energy = -(p - q) @ gap @ (p - q)
    draws = [np.array(list(itertools.product(range(3), repeat=size))) for size in (n, m)]
    chance = [np.prod(mass[draw], axis=1) for mass, draw in zip((p, q), draws, strict=True)]

    def mean(estimate):
        every = jax.jit(jax.vmap(jax.vmap(estimate, (None, 0)), (0, None)))
        return chance[0] @ np.asarray(every(points[draws[0]], points[draws[1]])) @ chance[1]

    close(mean(estimators.squared_mmd_unbiased), mmd, 1e-15)
    bias = (1 - p @ kernel @ p) / n + (1 - q @ kernel @ q) / m
    close(mean(estimators.squared_mmd_biased), mmd + bias, 1e-15)
    bias = p @ gap @ p / n + q @ gap @ q / m
    close(mean(estimators.energy_distance), energy + bias, 1e-15)
    lowest = min(
        float(OF_BANDWIDTH["squared_mmd_unbiased"](points[a], points[b]))
        for a, b in itertools.product(draws[0][:9], draws[1])
    )
    assert lowest < 0


@pytest.mark.parametrize("seed", range(5))
def test_never_negative_and_zero_for_equal_sets(seed):
    x, y = samples(6, 6, 2, seed)
    for name in ("squared_mmd_biased", "cauchy_schwarz", "energy_distance"):
        assert CALLS[name](x, y) > 0
        assert CALLS[name](x, x) == 0
        close(CALLS[name](x, x[::-1]), 0, 1e-15)
        close(CALLS[name](x, y), CALLS[name](y, x), 1e-15)
        close(CALLS[name](x, y), CALLS[name](np.concatenate([x, x]), y), 1e-14)


# ------------------------------------------------------------------------------------ closed forms


def gauss_hermite(mean, order=80):
    """Nodes and weights of N(mean, 1)."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    return x + mean, w / w.sum()


@pytest.mark.parametrize(("gap", "s", "wanted"), [(1, 1, 0.3333), (1, 0.25, 0.4848), (3, 1, 3.0)])
def test_cauchy_schwarz_between_gaussians(gap, s, wanted):
    """Unit Gaussians D apart: the estimate targets D^2 / (2 (1 + s^2/2)), not D^2/2."""
    target = gap**2 / (2 * (1 + s**2 / 2))
    assert target == pytest.approx(wanted, abs=1e-4)

    # The population values, E K, by quadrature: the same formula without sampling.
    def mean_kernel(a, b):
        (x, v), (y, w) = gauss_hermite(a), gauss_hermite(b)
        return v @ np.exp(-((x[:, None] - y[None]) ** 2) / (2 * s**2)) @ w

    if s == 1:
        population = (
            math.log(mean_kernel(0, 0))
            + math.log(mean_kernel(gap, gap))
            - 2 * math.log(mean_kernel(0, gap))
        )
        assert population == pytest.approx(target, rel=1e-6)

    @jax.jit
    def estimate(key):
        x, y = jax.random.normal(key, (2, 1000, 1), jnp.float32)
        return estimators.cauchy_schwarz(x, y + gap, bandwidth=s)

    values = np.array([estimate(key) for key in jax.random.split(jax.random.key(3), 10)])
    if gap == 1:
        # n = 1000: .322 +- .047 at s = 1, .492 at s = .25; the mean of ten is within a third of it.
        assert abs(values.mean() - target) < 0.03
        assert values.std() < 0.09
    else:
        assert values.mean() == pytest.approx(target, rel=0.05)


def test_mmd_between_gaussians():
    """E K between unit Gaussians d apart is sqrt(s^2/(s^2 + 2)) exp(-d^2 / (2 (s^2 + 2)))."""
    gap, s = 1.0, 1.0
    scale = math.sqrt(s**2 / (s**2 + 2))
    target = 2 * scale * -math.expm1(-(gap**2) / (2 * (s**2 + 2)))

    @jax.jit
    def estimate(key):
        x, y = jax.random.normal(key, (2, 1000, 1), jnp.float32)
        return estimators.squared_mmd_unbiased(x, y + gap, bandwidth=s)

    values = np.array([estimate(key) for key in jax.random.split(jax.random.key(3), 10)])
    assert abs(values.mean() - target) < 4 * values.std() / math.sqrt(10)
    assert values.std() < 0.2 * target


def test_energy_distance_in_one_dimension():
    x, y = samples(9, 14, 1)
    root = scipy.stats.energy_distance(x[:, 0], y[:, 0])
    close(COMPILED["energy_distance"](x, y), root**2, 1e-13)


# ------------------------------------------------------------------------- far apart, coincident


def test_cauchy_schwarz_far_apart():
    """No kernel value between the sets can be represented, yet the value and the gradient are."""
    x, y = jnp.float32([[0.0], [0.5]]), jnp.float32([[80.0], [81.0]])
    value, gradient = jax.jit(jax.value_and_grad(estimators.cauchy_schwarz))(x, y)
    assert jnp.exp(-(jnp.float32(79.5) ** 2) / 2) == 0
    log_xx, log_yy = math.log((1 + math.exp(-1 / 8)) / 2), math.log((1 + math.exp(-1 / 2)) / 2)
    between = np.logaddexp.reduce([-(r**2) / 2 for r in (80, 81, 79.5, 80.5)]) - math.log(4)
    assert float(value) == pytest.approx(log_xx + log_yy - 2 * between, rel=1e-6)
    assert jnp.all(jnp.isfinite(gradient))
    assert jnp.sum(gradient) == pytest.approx(-2 * 79.5, rel=1e-3)


def test_gradients():
    x, y = samples(5, 4, 2)
    y[0] = x[0]
    x[1] = x[2]
    x_apart, _ = samples(5, 4, 2)
    direction, step = samples(5, 4, 2, seed=1)[0], 1e-6
    for name, call in COMPILED.items():
        gradient = jax.jit(jax.grad(CALLS[name], (0, 1)))
        gradients = gradient(x, y)
        assert all(np.all(np.isfinite(g)) for g in gradients), name
        assert all(np.any(g != 0) for g in gradients), name
        by_x, _ = gradient(x_apart, y + 0.01)
        moved = [call(x_apart + h * direction, y + 0.01) for h in (step, -step)]
        expected = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(
            np.sum(by_x * direction), expected, rtol=1e-8, atol=1e-8, err_msg=name
        )
    of = OF_BANDWIDTH["cauchy_schwarz"]
    by_bandwidth = jax.jit(jax.grad(lambda s: estimators.cauchy_schwarz(x, y, bandwidth=s)))(1.0)
    moved = [of(x, y, bandwidth=1 + h) for h in (1e-6, -1e-6)]
    close(by_bandwidth, (moved[0] - moved[1]) / 2e-6, 1e-8)


# ------------------------------------------------------------------- transformations and refusals


@pytest.mark.parametrize("name", CALLS)
def test_jit_vmap_and_pmap_agree(name):
    call = CALLS[name]
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 6, 2))
    y = y[:, :5]
    eager = jnp.stack([call(a, b) for a, b in zip(x, y, strict=True)])
    for mapped in (jax.jit(jax.vmap(call)), jax.pmap(call)):
        close(mapped(x, y), eager, 1e-14)
    close(jax.jit(call)(x[0], y[0]), eager[0], 1e-14)


def test_a_sweep_over_bandwidths_is_a_vmap():
    x, y = samples(5, 4, 2)
    bandwidths = np.array([0.5, 1.0, 3.0])
    for name in ("squared_mmd_biased", "cauchy_schwarz"):
        estimate = OF_BANDWIDTH[name]
        swept = jax.jit(jax.vmap(lambda s, f=estimate: f(x, y, bandwidth=s)))(bandwidths)
        close(swept, [estimate(x, y, bandwidth=s) for s in bandwidths], 1e-14)


@pytest.mark.parametrize("name", CALLS)
def test_half_precision_in_float32_out(name):
    x, y = (jnp.asarray(s) for s in samples(5, 4, 2))
    half = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    found = COMPILED[name](*half)
    assert found.dtype == jnp.float32
    assert found == COMPILED[name](*(s.astype(jnp.float32) for s in half))
    assert COMPILED[name](x, y).dtype == jnp.float64


@pytest.mark.parametrize("name", CALLS)
def test_refusals(name):
    x, y, call = jnp.zeros((6, 2)), jnp.zeros((4, 2)), CALLS[name]
    refused(ValueError, ["x must", "(6,)"], lambda: call(x[:, 0], y))
    refused(ValueError, ["y must", "(0, 2)"], lambda: call(x, y[:0]))
    refused(ValueError, ["x and y", "(6, 2)", "(4, 1)"], lambda: call(x, y[:, :1]))
    refused(TypeError, ["x must", "int"], lambda: call(jnp.zeros((4, 2), int), y))
    if name == "squared_mmd_unbiased":
        refused(ValueError, ["x must", "at least 2"], lambda: call(x[:1], y))
        refused(ValueError, ["y must", "at least 2"], lambda: call(x, y[:1]))
    if name != "energy_distance":
        for s in (0.0, -1.0, math.inf):
            refused(
                ValueError,
                ["bandwidth", "positive"],
                lambda s=s: getattr(estimators, name)(x, y, bandwidth=s),
            )


def test_everything_public_is_exported():
    assert sorted(estimators.__all__) == list(estimators.__all__)
    for name in estimators.__all__:
        assert hasattr(estimators, name)
