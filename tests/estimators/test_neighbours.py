"""k-nearest-neighbour KL: a k-d tree, calibration, repeated points, an uncalibrated relative."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from jdiv import divergences as dv
from jdiv import estimators
from tests.checks import FAST, refused

knn_kl = jax.jit(estimators.knn_kl, static_argnames=("k", "chunk_size"))


def close(found, wanted, tolerance):
    np.testing.assert_allclose(
        np.asarray(found, np.float64),
        np.asarray(wanted, np.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def samples(n, m, d, seed=0, shift=0.3):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), 1.2 * rng.standard_normal((m, d)) + shift


def by_tree(x, y, k):
    """The same by scipy; the nearest x of every x is itself."""
    (n, d), m = x.shape, len(y)
    rho = cKDTree(x).query(x, [k + 1])[0][:, 0]
    nu = cKDTree(y).query(x, [k])[0][:, 0]
    return d * np.mean(np.log(nu / rho)) + math.log(m / (n - 1))


@pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 2), (30, 55, 1), (61, 20, 5), (6, 5, 3)])
@pytest.mark.parametrize("k", [1, 5])
def test_against_a_tree(n, m, d, k):
    x, y = samples(n, m, d)
    close(knn_kl(x, y, k), by_tree(x, y, k), 1e-12)


def test_largest_k_and_chunks():
    x, y = samples(37, 41, 2)
    wanted = by_tree(x, y, 36)
    for chunk_size in (1, 16, 1000):
        close(knn_kl(x, y, 36, chunk_size=chunk_size), wanted, 1e-12)
    x, y = samples(41, 37, 2)
    close(knn_kl(x, y, 37), by_tree(x, y, 37), 1e-12)


def test_memory_is_rows_by_chunk():
    x, y = (jax.ShapeDtypeStruct((20_000, 3), jnp.float32) for _ in range(2))
    estimate = jax.jit(functools.partial(estimators.knn_kl, k=5, chunk_size=64))
    used = estimate.lower(x, y).compile().memory_analysis().temp_size_in_bytes
    assert used < 10 * 64 * 40_000 * 4 < 20_000 * 20_000


def test_invariances():
    x, y = samples(40, 30, 3)
    value = knn_kl(x, y, 3)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    close(knn_kl(rng.permutation(x), rng.permutation(y), 3), value, 1e-12)
    close(knn_kl(x @ rotation + 7, y @ rotation + 7, 3), value, 1e-10)


@pytest.mark.parametrize("unit", [1e-30, 1e-21, 1e25])
def test_units_do_not_matter(unit):
    """In float32 the squares of these coordinates are 0 or inf."""
    x, y = (s.astype(np.float32) for s in samples(40, 30, 3))
    close(
        knn_kl(x * np.float32(unit), y * np.float32(unit), 3),
        knn_kl(x, y, 3),
        1e-5,
    )


# ------------------------------------------------------------------------------------ calibration


@functools.cache
def calibrated(k):
    @functools.partial(jax.jit, compiler_options=FAST)
    def run(key, shift):
        x, y = jax.random.normal(key, (2, 2000, 2), jnp.float32)
        return estimators.knn_kl(x, y + shift, k)

    return run


@functools.cache
def calibration(shift, k, repeats=20):
    """Estimates of KL between 2-d unit Gaussians from 2000 samples each."""

    run = calibrated(k)
    keys = jax.random.split(jax.random.key(7), repeats)
    return np.array([run(key, np.float32([[shift, 0.0]])) for key in keys])


@pytest.mark.parametrize(
    ("shift", "k", "mean", "deviation"),
    [
        (0.0, 5, -0.0009, 0.016),
        (1.0, 5, 0.472, 0.028),
        (1.0, 1, 0.495, 0.060),
        (2.0, 5, 1.72, 0.10),
        (2.0, 1, 1.87, 0.08),
    ],
)
def test_calibration(shift, k, mean, deviation):
    """Within the table's bars; the truth is shift^2/2, and a larger k pulls 2.0 further down."""
    values = calibration(shift, k)
    assert abs(values.mean() - mean) < deviation
    assert values.std() < 2 * deviation
    if shift < 2:
        assert abs(values.mean() - shift**2 / 2) < 0.05
    else:
        assert calibration(2.0, 5).mean() < calibration(2.0, 1).mean() < 2


def test_averaging_over_all_neighbours_is_not_calibrated():
    """GIO's score: mean over every k of log(nu_k/rho_5), `5 m / (k (n - 1))` for the volumes.

    Near .26 for identical distributions and near 1 where the truth is 2; `knn_kl` is not.
    """
    rng = np.random.default_rng(0)
    n = m = 1000
    x, noise = rng.standard_normal((n, 2)), rng.standard_normal((m, 2))

    def score(y, k=5):
        rho = cKDTree(x).query(x, [k + 1])[0]
        nu = np.sort(np.linalg.norm(x[:, None] - y[None], axis=-1), axis=1)
        volumes = np.log(k * m / (np.arange(1, m + 1) * (n - 1)))
        return np.mean(2 * np.log(nu) - 2 * np.log(rho)) + np.mean(volumes)

    for shift, truth, wanted in ((0.0, 0.0, 0.26), (2.0, 2.0, 1.00)):
        y = noise + np.array([shift, 0.0])
        assert score(y) == pytest.approx(wanted, abs=0.1)
        assert abs(score(y) - truth) > 0.2
        ours = knn_kl(x.astype(np.float32), y.astype(np.float32), 5)
        assert abs(float(ours) - truth) < 0.35
        assert abs(float(ours) - score(y)) > 0.2


# -------------------------------------------------------------------------------- repeated points


def repeat(counts):
    return np.repeat(np.arange(len(counts), dtype=float), counts)[:, None]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_discrete_samples_give_the_plug_in(k):
    """As long as every x is repeated more than k times, or has k copies in y."""
    for counts_x, counts_y in (([5, 4, 7], [3, 8, 4]), ([1, 9, 2], [6, 3, 3]), ([4, 4], [4, 4])):
        x, y = repeat(counts_x), repeat(counts_y)
        plug_in = jax.jit(dv.kl)(np.log(counts_x), np.log(counts_y))
        close(knn_kl(x, y, k), plug_in, 1e-14)


def test_a_point_that_only_x_repeats_is_infinite():
    x, y = repeat([4, 5]), repeat([0, 6])
    assert knn_kl(x, y, 2) == jnp.inf
    # Up to k copies are still a sample of a density.
    assert jnp.isfinite(knn_kl(x, y + 0.01 * np.arange(6)[:, None], 5))


def test_mixed_samples_point_by_point():
    """Atoms by counts, the rest by volumes, whatever else is in the sample."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((6, 2)), np.ones((4, 2)), np.full((1, 2), 2.0)])
    y = np.concatenate([rng.standard_normal((7, 2)), np.ones((3, 2)), np.full((2, 2), 2.0)])
    n, m, k, total = len(x), len(y), 2, 0.0
    for i in range(n):
        to_x = np.sort(np.linalg.norm(x - x[i], axis=1))
        to_y = np.sort(np.linalg.norm(y - x[i], axis=1))
        rho, nu = to_x[k], to_y[k - 1]
        if rho == 0 or nu == 0:
            total += math.log(np.sum(to_x == 0) / n) - math.log(np.sum(to_y == 0) / m)
        else:
            total += 2 * math.log(nu / rho) + math.log(m / (n - 1))
    close(knn_kl(x, y, k), total / n, 1e-14)
    gradients = jax.jit(jax.grad(knn_kl, (0, 1)), static_argnums=2)(x, y, k)
    for gradient in gradients:
        assert jnp.all(jnp.isfinite(gradient))
        assert jnp.any(gradient != 0)


def test_identical_points_only():
    zeros = jnp.zeros((4, 2))
    assert knn_kl(zeros, zeros[:3], 1) == 0
    assert knn_kl(zeros, zeros + 1, 1) == jnp.inf


# -------------------------------------------------------------------- gradient and transformations


@pytest.mark.parametrize("side", [0, 1])
def test_gradient(side):
    x, y = samples(9, 8, 2)
    gradient = np.asarray(jax.jit(jax.grad(knn_kl, side), static_argnums=2)(x, y, 2))
    step = 1e-6
    for index in itertools.product(range(len((x, y)[side])), range(2)):
        moved = []
        for h in (step, -step):
            pair = [x.copy(), y.copy()]
            pair[side][index] += h
            moved.append(by_tree(*pair, 2))
        assert gradient[index] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-7)


def test_jit_vmap_and_pmap_agree():
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 12, 2))
    call = functools.partial(estimators.knn_kl, k=3, chunk_size=5)
    eager = jnp.stack([call(a, b) for a, b in zip(x, y, strict=True)])
    for mapped in (jax.jit(jax.vmap(call)), jax.pmap(call)):
        close(mapped(x, y), eager, 1e-14)
    close(jax.jit(call)(x[0], y[0]), eager[0], 1e-14)


def test_half_precision_in_float32_out():
    x, y = (jnp.asarray(s) for s in samples(12, 11, 2))
    half = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    found = knn_kl(*half)
    assert found.dtype == jnp.float32
    assert found == knn_kl(*(s.astype(jnp.float32) for s in half))
    assert knn_kl(x, y).dtype == jnp.float64


# ------------------------------------------------------------------------------------- refusals


def test_refusals():
    x, y = jnp.zeros((6, 2)), jnp.zeros((4, 2))
    call = estimators.knn_kl
    for k in (0, -1, 5, 6):
        refused(ValueError, ["k must be", "1 to 4", f"got {k}"], lambda k=k: call(x, y, k))
    refused(ValueError, ["k must be", "1 to 3"], lambda: call(y, x, 4))
    for k in (1.0, "5", None):
        refused(TypeError, ["k must be an integer", repr(k)], lambda k=k: call(x, y, k))
    refused(ValueError, ["chunk_size"], lambda: call(x, y, 1, chunk_size=0))
    refused(TypeError, ["chunk_size"], lambda: call(x, y, 1, chunk_size=2.5))
    refused(ValueError, ["x must", "(6,)"], lambda: call(x[:, 0], y, 1))
    refused(ValueError, ["y must", "(1, 4, 2)"], lambda: call(x, y[None], 1))
    refused(ValueError, ["x must", "at least 2"], lambda: call(x[:1], y, 1))
    refused(ValueError, ["y must", "(0, 2)"], lambda: call(x, y[:0], 1))
    refused(ValueError, ["x and y", "(6, 2)", "(4, 1)"], lambda: call(x, y[:, :1], 1))
    refused(TypeError, ["y must", "int"], lambda: call(x, jnp.zeros((4, 2), int), 1))
