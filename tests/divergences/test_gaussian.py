"""Divergences between Gaussians: quadrature of the definitions, 60 digits, limits and gradients."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.special
import scipy.stats

from jdiv.divergences import gaussian
from jdiv.divergences.gaussian import Diagonal, Gaussian

mp.mp.dps = 60

PARAMETER = {"renyi": "alpha", "alpha": "alpha", "tsallis": "index"}
ORDERS = {
    "kl": (None,),
    "reverse_kl": (None,),
    "jeffreys": (None,),
    "renyi": (0.2, 0.5, 1.0, 1.4),
    "alpha": (-0.3, 0.0, 0.3, 1.0, 1.3),
    "tsallis": (0.4, 1.0, 1.3),
    "pearson_chi2": (None,),
    "neyman_chi2": (None,),
    "squared_hellinger": (None,),
    "bhattacharyya": (None,),
    "cauchy_schwarz": (None,),
    "squared_wasserstein_2": (None,),
    "wasserstein_2": (None,),
}
CASES = [(name, order) for name, orders in ORDERS.items() for order in orders]
DENSITIES = [case for case in CASES if "wasserstein" not in case[0]]
SYMMETRIC = [
    "jeffreys",
    "squared_hellinger",
    "bhattacharyya",
    "cauchy_schwarz",
    "squared_wasserstein_2",
    "wasserstein_2",
]
every_case = pytest.mark.parametrize(("name", "order"), CASES)
every_density_case = pytest.mark.parametrize(("name", "order"), DENSITIES)


def stacked(cases, p, q):
    """The values of some cases; all orders of one divergence are one vmap."""
    rows = []
    for name, orders in ORDERS.items():
        f, wanted = getattr(gaussian, name), [x for x in orders if (name, x) in cases]
        if wanted == [None]:
            rows.append(f(p, q)[None])
        elif wanted:
            of_order = lambda x: f(p, q, **{PARAMETER[name]: x})  # noqa: B023
            rows.append(jax.vmap(of_order)(jnp.array(wanted)))
    return jnp.concatenate(rows)


all_values = jax.jit(functools.partial(stacked, CASES))


def value(name, order, p, q):
    """One case, from the program that computes them all."""
    return all_values(p, q)[CASES.index((name, order))]


@functools.cache
def compiled(name):
    """A divergence as a program of its order, for orders that are no case."""
    if name not in PARAMETER:
        return jax.jit(getattr(gaussian, name))
    of_order = lambda p, q, x: getattr(gaussian, name)(p, q, **{PARAMETER[name]: x})
    return jax.jit(of_order)


def lower(rng, d, spread=0.4):
    """A lower triangular matrix with a positive diagonal."""
    matrix = np.tril(spread * rng.normal(size=(d, d)), -1)
    return matrix + np.diag(np.exp(spread * rng.normal(size=d)))


def pair(rng, d, spread=0.2):
    """Two Gaussians near enough to each other for both chi2 to be finite."""
    means, scales = spread * rng.normal(size=(2, d)), [lower(rng, d, spread) for _ in range(2)]
    return tuple(Gaussian(jnp.array(m), jnp.array(s)) for m, s in zip(means, scales, strict=True))


def diagonal_pair(rng, d, spread=0.2):
    means, scales = spread * rng.normal(size=(2, d)), np.exp(spread * rng.normal(size=(2, d)))
    return tuple(Diagonal(jnp.array(m), jnp.array(s)) for m, s in zip(means, scales, strict=True))


def line(mean, scale):
    """One coordinate, and two that are the same for everyone: they add nothing, save programs."""
    return Diagonal(jnp.array([mean, 0.0, 1.0]), jnp.array([scale, 1.0, 2.0]))


def near_pairs():
    """Pairs with finite and smooth divergences, all in three dimensions: few programs."""
    rng = np.random.default_rng(5)
    p = Gaussian(jnp.array([0.2, 0.1, -0.1]), 1.1 * jnp.eye(3))
    return {
        "full": pair(rng, 3, 0.1),
        "diagonal": diagonal_pair(rng, 3, 0.1),
        "repeated eigenvalues": (p, Gaussian(jnp.zeros(3), jnp.eye(3))),
    }


def cast(dtype, *pairs):
    return jax.tree.map(lambda x: x.astype(dtype), pairs)


# -------------------------------------------------------------------------- quadrature of densities


def of_integrals(name, a, integral):
    """A divergence from its definition, given `integral(f)` of a function of two densities."""
    kl = lambda f, g: f * (np.log(f) - np.log(g))
    power = lambda a: integral(lambda f, g: np.exp(a * np.log(f) + (1 - a) * np.log(g)))
    if name == "kl" or (a == 1 and name in ("renyi", "alpha", "tsallis")):
        return integral(kl)
    if name == "reverse_kl" or (a == 0 and name == "alpha"):
        return integral(lambda f, g: kl(g, f))
    match name:
        case "jeffreys":
            return integral(lambda f, g: (f - g) * (np.log(f) - np.log(g)))
        case "renyi":
            return math.log(power(a)) / (a - 1)
        case "alpha":
            return (power(a) - 1) / (a * (a - 1))
        case "tsallis":
            return (power(a) - 1) / (a - 1)
        case "pearson_chi2":
            return integral(lambda f, g: (f - g) ** 2 / g)
        case "neyman_chi2":
            return integral(lambda f, g: (f - g) ** 2 / f)
        case "squared_hellinger":
            return integral(lambda f, g: (np.sqrt(f) - np.sqrt(g)) ** 2) / 2
        case "bhattacharyya":
            return -math.log(integral(lambda f, g: np.sqrt(f * g)))
        case "cauchy_schwarz":
            cross = integral(lambda f, g: f * g)
            return -math.log(cross**2 / integral(lambda f, g: f * f) / integral(lambda f, g: g * g))
    raise ValueError(name)


@every_density_case
def test_against_quadrature_in_one_dimension(name, order):
    (m, s), (n, r) = (0.3, 1.1), (-0.4, 0.9)
    f, g = scipy.stats.norm(m, s).pdf, scipy.stats.norm(n, r).pdf
    x = np.linspace(-15, 15, 2001)  # the trapezoidal rule is exact for analytic functions
    expected = of_integrals(name, order, lambda of: np.sum(of(f(x), g(x))) * (x[1] - x[0]))
    p, q = line(m, s), line(n, r)
    np.testing.assert_allclose(value(name, order, p, q), expected, rtol=1e-10)


@functools.cache
def plane():
    """Two correlated Gaussians on a grid wide and fine enough for the trapezoidal rule."""
    moments = [
        (np.array([0.3, -0.2]), np.array([[1.0, 0.0], [0.4, 0.85]])),
        (np.array([-0.1, 0.2]), np.array([[0.95, 0.0], [0.3, 0.9]])),
    ]
    x = np.linspace(-18, 18, 601)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    densities = [scipy.stats.multivariate_normal(m, s @ s.T).pdf(grid) for m, s in moments]
    inside = np.minimum(*densities) > 1e-290
    # A third coordinate, the same for both, adds nothing.
    p, q = (
        Gaussian(jnp.append(jnp.array(m), 1.0), jnp.eye(3).at[:2, :2].set(s)) for m, s in moments
    )
    return p, q, [f[inside] for f in densities], (x[1] - x[0]) ** 2


@every_density_case
def test_against_quadrature_in_two_dimensions(name, order):
    p, q, densities, area = plane()
    expected = of_integrals(name, order, lambda of: np.sum(of(*densities)) * area)
    np.testing.assert_allclose(value(name, order, p, q), expected, rtol=1e-10)


# ----------------------------------------------------------------------------------- sixty digits


def exact(name, order, p, q):
    """By the textbook formulas in covariances, with 60 digits."""
    if name in ("reverse_kl", "neyman_chi2"):
        return exact("kl" if name == "reverse_kl" else "pearson_chi2", None, q, p)
    (m, s), (n, r) = ([mp.matrix(np.asarray(x, float).tolist()) for x in z] for z in (p, q))
    s, r = (x if x.cols > 1 or x.rows == 1 else mp.diag(list(x)) for x in (s, r))
    cov_p, cov_q, d = s * s.T, r * r.T, m - n

    def renyi(a):
        a = mp.mpf(a)
        if a == 1:
            ratio = cov_q**-1 * cov_p
            trace = sum(ratio[i, i] - 1 for i in range(ratio.rows))
            return (trace - mp.log(mp.det(ratio)) + (d.T * cov_q**-1 * d)[0]) / 2
        mixed = a * cov_q + (1 - a) * cov_p
        if min(mp.eigsy(mixed, eigvals_only=True)) <= 0:
            return mp.inf
        dets = mp.det(cov_p) ** (1 - a) * mp.det(cov_q) ** a
        return a / 2 * (d.T * mixed**-1 * d)[0] - mp.log(mp.det(mixed) / dets) / (2 * (a - 1))

    def alpha(a):
        if a in (0, 1):
            return renyi(1) if a == 1 else exact("kl", None, q, p)
        mixed = a * cov_q + (1 - a) * cov_p
        if min(mp.eigsy(mixed, eigvals_only=True)) <= 0:
            return mp.inf
        a = mp.mpf(a)
        if a < 0:
            return exact("alpha", 1 - a, q, p)
        return mp.expm1((a - 1) * renyi(a)) / (a * (a - 1))

    def squared_wasserstein_2():
        nuclear = sum(mp.svd_r(r.T * s, compute_uv=False))
        traces = sum(cov_p[i, i] + cov_q[i, i] for i in range(s.rows))
        return (d.T * d)[0] + traces - 2 * nuclear

    match name:
        case "kl":
            return renyi(1)
        case "jeffreys":
            return renyi(1) + exact("kl", None, q, p)
        case "renyi":
            return renyi(order)
        case "alpha":
            return alpha(order)
        case "tsallis":
            return order * alpha(order)
        case "pearson_chi2":
            return 2 * alpha(2)
        case "squared_hellinger":
            return -mp.expm1(-renyi(0.5) / 2)
        case "bhattacharyya":
            return renyi(0.5) / 2
        case "cauchy_schwarz":
            mixed = (cov_p + cov_q) / 2
            log_det = mp.log(mp.det(mixed)) - mp.log(mp.det(cov_p) * mp.det(cov_q)) / 2
            return (d.T * mixed**-1 * d)[0] / 2 + log_det
        case "squared_wasserstein_2":
            return squared_wasserstein_2()
        case "wasserstein_2":
            return mp.sqrt(squared_wasserstein_2())
    raise ValueError(name)


@functools.cache
def neighbours(distance, dtype, same_mean):
    """Pairs at a distance of each other, of both kinds, rounded to a type."""
    rng, pairs = np.random.default_rng(1), []
    for kind in (Gaussian, Diagonal):
        mean, scale = rng.normal(size=3), lower(rng, 3)
        step, shift = np.tril(rng.normal(size=(3, 3))), rng.normal(size=3)
        if kind is Diagonal:
            scale, step = np.diag(scale), np.diag(step)
        p = mean + (0 if same_mean else distance) * shift, scale + distance * step
        pairs.append(
            tuple(kind(*(jnp.asarray(x, dtype) for x in end)) for end in (p, (mean, scale)))
        )
    return pairs


def rounded(order, dtype):
    return None if order is None else float(dtype(order))


@every_case
@pytest.mark.parametrize("same_mean", [False, True])
@pytest.mark.parametrize(
    ("distance", "dtype", "rtol"),
    [(1e-9, np.float64, 1e-14), (1e-2, np.float64, 1e-14), (1e-4, np.float32, 4e-6)],
)
def test_relative_accuracy_near_equality(name, order, same_mean, distance, dtype, rtol):
    """At 1e-9 apart the divergence is 1e-18: relatively accurate, not to the rounding of 1."""
    for p, q in neighbours(distance, dtype, same_mean):
        expected = float(exact(name, rounded(order, dtype), p, q))
        assert expected > 0
        np.testing.assert_allclose(value(name, order, p, q), expected, rtol=rtol)


@every_case
def test_far_apart(name, order):
    rng = np.random.default_rng(2)
    for _ in range(4):
        means, scales = 3 * rng.normal(size=(2, 3)), [lower(rng, 3, 1.0) for _ in range(2)]
        p, q = (Gaussian(jnp.array(m), jnp.array(s)) for m, s in zip(means, scales, strict=True))
        expected = float(exact(name, order, p, q))
        np.testing.assert_allclose(value(name, order, p, q), expected, rtol=1e-11)


@every_case
def test_very_different_scales(name, order):
    """A scale of 1e-9 in float32 is lost in `1 + (lp - lq)/lq`, but not here."""
    p = Diagonal(jnp.array([0.1, 0.2, 0.0], jnp.float32), jnp.array([1e-9, 1.5, 1.0], jnp.float32))
    q = Diagonal(jnp.array([0.0, 0.4, 0.0], jnp.float32), jnp.array([1.0, 0.9, 1.0], jnp.float32))
    for first, second in ((p, q), (q, p)):
        expected = np.float32(exact(name, rounded(order, np.float32), first, second))
        np.testing.assert_allclose(value(name, order, first, second), expected, rtol=1e-5)


def test_the_textbook_formula_loses_every_digit():
    """Why the difference of the factors is whitened, and not a trace and a determinant taken."""
    lost = []
    for distance in (3e-10, 1e-9, 2e-9):  # rounding may happen to cancel in one of them
        p, q = neighbours(distance, np.float64, False)[0]
        cov_p, cov_q = (x.scale_tril @ x.scale_tril.T for x in (p, q))
        ratio, d = np.linalg.solve(cov_q, cov_p), p.mean - q.mean
        traces = np.trace(ratio) - 3 - np.linalg.slogdet(ratio)[1]
        naive = (traces + d @ np.linalg.solve(cov_q, d)) / 2
        expected = float(exact("kl", None, p, q))
        lost.append(abs(naive - expected) / expected)
        np.testing.assert_allclose(value("kl", None, p, q), expected, rtol=1e-14)
    assert max(lost) > 1


# ------------------------------------------------------------------------------------- Wasserstein


def test_wasserstein_against_matrix_square_roots():
    rng = np.random.default_rng(3)
    for d in (3, 6):
        p, q = pair(rng, d, spread=0.8)
        cov_p, cov_q = (np.asarray(x.scale_tril @ x.scale_tril.T) for x in (p, q))
        root = scipy.linalg.sqrtm(cov_q)
        bures = np.trace(cov_p + cov_q - 2 * scipy.linalg.sqrtm(root @ cov_p @ root))
        expected = np.sum((p.mean - q.mean) ** 2) + bures
        square = compiled("squared_wasserstein_2")(p, q)
        np.testing.assert_allclose(square, expected, rtol=1e-11)
        np.testing.assert_allclose(compiled("wasserstein_2")(p, q) ** 2, expected, rtol=1e-11)


def test_wasserstein_against_quantile_functions():
    """On a line it is the distance of the quantile functions."""
    p_quantile, q_quantile = scipy.stats.norm(0.3, 1.1).ppf, scipy.stats.norm(-0.4, 0.5).ppf
    expected, _ = scipy.integrate.quad(lambda u: (p_quantile(u) - q_quantile(u)) ** 2, 0, 1)
    p, q = line(0.3, 1.1), line(-0.4, 0.5)
    np.testing.assert_allclose(value("squared_wasserstein_2", None, p, q), expected, rtol=1e-7)
    np.testing.assert_allclose(value("wasserstein_2", None, p, q), math.sqrt(expected), rtol=1e-7)


def test_wasserstein_is_a_metric():
    rng = np.random.default_rng(4)
    distance = compiled("wasserstein_2")
    for _ in range(20):
        a, b, c = (
            Gaussian(jnp.array(rng.normal(size=3)), jnp.array(lower(rng, 3))) for _ in range(3)
        )
        assert distance(a, c) <= distance(a, b) + distance(b, c)


@pytest.mark.parametrize("gap", [1e-3, 1.0])
def test_wasserstein_of_nearly_singular_covariances(gap):
    """The rotation is not determined where a covariance is flat; the distance is."""
    p = Gaussian(jnp.zeros(3), jnp.array([[1.0, 0, 0], [0.5, 1e-9, 0], [0.2, 0.1, 1e-9]]))
    q = Gaussian(jnp.zeros(3), jnp.array([[1.0, 0, 0], [0.5, gap, 0], [0.2, 0.1, 1e-9]]))
    expected = float(exact("squared_wasserstein_2", None, p, q))
    np.testing.assert_allclose(compiled("squared_wasserstein_2")(p, q), expected, rtol=1e-10)


# ------------------------------------------------------------------------- gradients and curvature


def free(p, q):
    """The free parameters of a pair."""
    index = np.tril_indices(p.mean.shape[-1])
    scale = [x.scale if isinstance(x, Diagonal) else x.scale_tril[index] for x in (p, q)]
    return jnp.concatenate([p.mean, scale[0], q.mean, scale[1]])


def of_free(kind, z, d=3):
    """The pair that has these parameters."""
    ends = jnp.split(z, 2)
    if kind is Diagonal:
        return tuple(Diagonal(x[:d], x[d:]) for x in ends)
    index = np.tril_indices(d)
    return tuple(Gaussian(x[:d], jnp.zeros((d, d)).at[index].set(x[d:])) for x in ends)


# The others are multiples of these, or these with their arguments exchanged.
DISTINCT = [
    case for case in CASES
    if case[0] in ("kl", "jeffreys", "renyi", "alpha", "cauchy_schwarz", "wasserstein_2")
]  # fmt: skip


@functools.cache
def jacobian(kind):
    f = lambda z: stacked(DISTINCT, *of_free(kind, z))
    return jax.jit(jax.jacrev(f))


@pytest.mark.parametrize("which", near_pairs())
def test_gradient_against_finite_differences(which):
    p, q = near_pairs()[which]
    z, gradients = free(p, q), jacobian(type(p))
    rows = np.array([CASES.index(case) for case in DISTINCT])
    f = lambda z: all_values(*of_free(type(p), z))[rows]
    steps = 1e-6 * np.eye(len(z))
    expected = np.stack([(f(z + step) - f(z - step)) / 2e-6 for step in steps], axis=1)
    np.testing.assert_allclose(gradients(z), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("which", near_pairs())
def test_value_and_gradient_are_exactly_zero_for_identical_arguments(which):
    """With repeated eigenvalues, too: all of those of `Lq^-1 P Lq^-T` are 1."""
    for q in near_pairs()[which]:
        assert jnp.all(jacobian(type(q))(free(q, q)) == 0)
        for dtype in (jnp.float64, jnp.float32):
            ((same,),) = cast(dtype, (q,))
            assert jnp.all(all_values(same, same) == 0)


BASIC = [
    ("kl", None),
    ("alpha", 0.0),
    ("alpha", 1.0),
    ("alpha", 1.3),
    ("squared_wasserstein_2", None),
]


@functools.cache
def hessian():
    """Gradients and Hessians, as one program."""
    gradients = jax.jacrev(lambda z: stacked(BASIC, *of_free(Gaussian, z)))
    twice = lambda z: (lambda found: (found, found))(gradients(z))
    both = jax.jit(jax.jacfwd(twice, has_aux=True))
    return lambda z: both(z)[1], lambda z: both(z)[0]


@pytest.mark.parametrize("which", ["full", "repeated eigenvalues", "equal"])
def test_hessian_against_finite_differences_of_the_gradient(which):
    p, q = near_pairs()["full" if which == "equal" else which]
    z, (gradients, hessians) = free(q if which == "equal" else p, q), hessian()
    steps = 1e-5 * np.eye(len(z))
    expected = np.stack([(gradients(z + s) - gradients(z - s)) / 2e-5 for s in steps], axis=2)
    np.testing.assert_allclose(hessians(z), expected, rtol=1e-6, atol=1e-7)


def test_hessian_at_equality_is_the_fisher_information():
    """That of every f-divergence with f''(1) = 1."""
    _, q = near_pairs()["full"]
    z = free(q, q)
    half = len(z) // 2
    # E[(d/dz log p)(d/dz log p)'], exact by Gauss-Hermite quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    grid, weight = (
        np.stack(np.meshgrid(x, x, x, indexing="ij"), -1).reshape(-1, 3) for x in (nodes, weights)
    )
    weight = np.prod(weight, axis=1)
    x = np.asarray(q.mean) + grid @ np.asarray(q.scale_tril).T

    def log_density(half_z, x):
        mean, scale = of_free(Gaussian, jnp.concatenate([half_z, half_z]))[0]
        return jax.scipy.stats.multivariate_normal.logpdf(x, mean, scale @ scale.T)

    score = jax.jit(jax.vmap(jax.grad(log_density), (None, 0)))(z[:half], x)
    fisher = np.einsum("k,ki,kj->ij", weight / weight.sum(), score, score)
    for found in hessian()[1](z)[:-1]:
        np.testing.assert_allclose(found[:half, :half], fisher, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(found[:half, half:], -fisher, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["renyi", "alpha"])
def test_gradient_by_the_order(name):
    """The order may be traced; also at 1, where formulas divide by 0, and at the switch, 1/2."""
    p, q = near_pairs()["full"]
    f, slope = (
        compiled(name),
        jax.jit(jax.grad(lambda p, q, x: getattr(gaussian, name)(p, q, alpha=x), 2)),
    )
    for at in (0.3, 0.5, 1.0, 1.3):
        expected = (f(p, q, at + 1e-5) - f(p, q, at - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope(p, q, at), expected, rtol=1e-7)


# --------------------------------------------------------------------------- limits and identities


@pytest.mark.parametrize("which", ["full", "diagonal"])
def test_limits_and_identities(which):
    p, q = near_pairs()[which]
    same = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    is_near = functools.partial(np.testing.assert_allclose, rtol=1e-8)
    there = dict(zip(CASES, all_values(p, q), strict=True))
    back = dict(zip(CASES, all_values(q, p), strict=True))
    renyi, alpha = (functools.partial(compiled(name), p, q) for name in ("renyi", "alpha"))
    kl, reverse = there["kl", None], there["reverse_kl", None]
    same(reverse, back["kl", None])
    same(there["renyi", 1.0], kl)
    is_near(renyi(1 + 1e-9), kl)
    is_near(renyi(1 - 1e-9), kl)
    is_near(renyi(1e-9) / 1e-9, reverse)
    same(there["alpha", 1.0], kl)
    same(there["alpha", 0.0], reverse)
    for order, limit in ((1 + 1e-9, kl), (1 - 1e-9, kl), (1e-9, reverse), (-1e-9, reverse)):
        is_near(alpha(order), limit)
    same(there["alpha", 1.3], back["alpha", -0.3])
    same(there["renyi", 0.2] * 0.8, 0.2 * compiled("renyi")(q, p, 0.8))
    same(there["tsallis", 1.0], kl)
    same(there["pearson_chi2", None], compiled("tsallis")(p, q, 2.0))
    same(there["pearson_chi2", None], math.expm1(renyi(2.0)))
    same(there["neyman_chi2", None], back["pearson_chi2", None])
    same(there["jeffreys", None], kl + reverse)
    same(there["bhattacharyya", None], -math.log1p(-there["squared_hellinger", None]))
    same(there["wasserstein_2", None] ** 2, there["squared_wasserstein_2", None])
    for name in SYMMETRIC:
        same(there[name, None], back[name, None])
    # Renyi grows with its order.
    assert np.all(np.diff([renyi(x) for x in np.linspace(0.05, 1.5, 30)]) > 0)


def test_a_diagonal_is_a_gaussian_with_a_diagonal_factor():
    p, q = near_pairs()["diagonal"]
    full = [Gaussian(x.mean, jnp.diag(x.scale)) for x in (p, q)]
    np.testing.assert_allclose(all_values(*full), all_values(p, q), rtol=1e-13)


def test_functionals_of_densities_know_no_units():
    """They are invariant to affine maps, all but the Wasserstein distances."""
    p, q = near_pairs()["full"]
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(3, 3)), rng.normal(size=3)

    def moved(x):
        factor = a @ x.scale_tril
        return gaussian.from_covariance(jnp.array(a @ x.mean + b), jnp.array(factor @ factor.T))

    before, after = (
        dict(zip(CASES, all_values(*x), strict=True)) for x in ((p, q), (moved(p), moved(q)))
    )
    for case in DENSITIES:
        np.testing.assert_allclose(after[case], before[case], rtol=1e-10)
    assert abs(after["wasserstein_2", None] / before["wasserstein_2", None] - 1) > 0.1


def test_kl_and_renyi_add_up_over_independent_coordinates():
    p, q = near_pairs()["diagonal"]
    whole, parts = all_values(p, q), [Diagonal(x.mean[:, None], x.scale[:, None]) for x in (p, q)]
    for name in ("kl", "renyi", "bhattacharyya", "squared_wasserstein_2"):
        arguments = (1.4,) if name == "renyi" else ()
        total = jnp.sum(compiled(name)(*parts, *arguments))
        case = (name, *(arguments or (None,)))
        np.testing.assert_allclose(total, whole[CASES.index(case)], rtol=1e-13)


@pytest.mark.parametrize("kind", [Gaussian, Diagonal])
def test_never_negative(kind):
    rng = np.random.default_rng(8)
    for spread in (1e-8, 1e-3, 0.3, 2.0):
        for _ in range(25):
            scales = [1.3 * lower(rng, 3, spread) for _ in range(2)]
            scales = scales if kind is Gaussian else [np.diag(x) for x in scales]
            p, q = (kind(jnp.array(spread * rng.normal(size=3)), jnp.array(x)) for x in scales)
            assert jnp.all(all_values(p, q) >= 0)


# ------------------------------------------------------------------------------------ known numbers


def test_risk_of_the_maximum_likelihood_estimate():
    """E KL(N(0, 1)‖N(mean, variance)) of ten observations is 0.175431 in closed form."""
    n = 10
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    v, v_weights = np.polynomial.legendre.leggauss(400)
    v, v_weights = (
        4 * (v + 1),
        4 * v_weights * scipy.stats.gamma((n - 1) / 2, scale=2 / n).pdf(4 * (v + 1)),
    )
    mean, scale = np.meshgrid(nodes / math.sqrt(n), np.sqrt(v), indexing="ij")
    q = Diagonal(jnp.array(mean)[..., None], jnp.array(scale)[..., None])
    p = Diagonal(jnp.zeros_like(q.mean), jnp.ones_like(q.scale))
    risk = (weights / weights.sum()) @ np.asarray(compiled("kl")(p, q)) @ v_weights
    digamma = scipy.special.digamma((n - 1) / 2)
    closed = 0.5 * (digamma + math.log(2 / n) + (1 + 1 / n) * n / (n - 3) - 1)
    np.testing.assert_allclose(closed, 0.175431, atol=5e-7)
    np.testing.assert_allclose(risk, closed, rtol=1e-6)


@pytest.mark.parametrize("distance", [0.5, 3.0])
def test_unit_variances(distance):
    p, q = line(0.0, 1.0), line(distance, 1.0)
    np.testing.assert_allclose(value("cauchy_schwarz", None, p, q), distance**2 / 2, rtol=1e-14)
    np.testing.assert_allclose(value("renyi", 1.4, p, q), 0.7 * distance**2, rtol=1e-14)
    np.testing.assert_allclose(value("kl", None, p, q), distance**2 / 2, rtol=1e-14)
    np.testing.assert_allclose(value("wasserstein_2", None, p, q), distance, rtol=1e-14)


# ---------------------------------------------------------------------------------------- infinity


def test_infinite_where_the_integral_diverges():
    """Pearson's chi2 needs 2 Q > P, in every direction."""
    eye = np.eye(3)
    q = Gaussian(jnp.zeros(3), jnp.array(eye + np.tril(0.5 * np.ones((3, 3)), -1)))
    for ratio, finite in ((1.4, True), (1.42, False), (5.0, False)):
        p = Gaussian(q.mean + 0.1, q.scale_tril @ jnp.diag(jnp.array([1.0, ratio, 0.9])))
        there = dict(zip(CASES, all_values(p, q), strict=True))
        back = dict(zip(CASES, all_values(q, p), strict=True))
        assert np.isfinite(there["pearson_chi2", None]) == finite
        assert np.isfinite(back["neyman_chi2", None]) == finite
        assert np.isfinite(compiled("renyi")(p, q, 2.0)) == finite
        assert np.isfinite(there["neyman_chi2", None])
        bounded = [("renyi", 0.5), ("alpha", 0.3), ("kl", None), ("jeffreys", None)]
        assert all(np.isfinite(there[case]) for case in bounded)
        assert np.isinf(there["renyi", 1.4]) == (ratio == 5.0)
        assert np.isinf(back["alpha", -0.3]) == (ratio == 5.0)


@pytest.mark.parametrize("kind", [Gaussian, Diagonal])
def test_an_infinite_row_leaves_the_others_alone(kind):
    scale = np.array([1.2, 0.9])[:, None] * np.eye(2) + np.array([[0, 0], [0.1, 0]])
    scale = jnp.array(np.stack([scale, scale + np.diag([2.0, 0.0])]))
    scale = scale if kind is Gaussian else jnp.diagonal(scale, axis1=-2, axis2=-1)
    one = jnp.eye(2) if kind is Gaussian else jnp.ones(2)
    p = kind(jnp.full((2, 2), 0.3), scale)
    q = kind(jnp.zeros((2, 2)), jnp.broadcast_to(one, scale.shape))

    @jax.jit
    def value_and_gradients(p, q):
        result, pullback = jax.vjp(gaussian.pearson_chi2, p, q)
        return result, pullback(jnp.ones(2))

    result, gradients = value_and_gradients(p, q)
    assert result[0] < jnp.inf
    assert result[1] == jnp.inf
    for gradient in jax.tree.leaves(gradients):
        assert jnp.all(jnp.isfinite(gradient))
        assert jnp.any(gradient[0] != 0)
        assert jnp.all(gradient[1] == 0)


def test_overflow_is_infinite_and_has_no_nan_gradient():
    p, q = (Diagonal(jnp.array([x, 0.0, 0.0]), jnp.ones(3)) for x in (40.0, 0.0))
    program = jax.jit(jax.value_and_grad(gaussian.pearson_chi2))
    result, gradient = program(p, q)
    assert result == jnp.inf
    assert all(jnp.all(jnp.isfinite(g)) for g in gradient)
    assert value("squared_hellinger", None, p, q) == 1


def test_nan_stays_nan():
    p, q = near_pairs()["full"]
    for bad in (p._replace(mean=p.mean * jnp.nan), p._replace(scale_tril=p.scale_tril * jnp.nan)):
        assert jnp.all(jnp.isnan(all_values(bad, q)))
        assert jnp.all(jnp.isnan(all_values(q, bad)))


# ------------------------------------------------------------------------------ programs and dtypes


@pytest.mark.parametrize("kind", [Gaussian, Diagonal])
def test_same_under_every_transformation(kind, same_everywhere):
    rng = np.random.default_rng(9)
    mean = 0.2 * rng.normal(size=(2, 8, 3))
    scale = np.array([[lower(rng, 3, 0.2) for _ in range(8)] for _ in range(2)])
    scale = scale if kind is Gaussian else np.diagonal(scale, axis1=-2, axis2=-1)

    def several(m, n, s, r):
        p, q = kind(m, s), kind(n, r)
        return gaussian.alpha(p, q, alpha=0.3), gaussian.wasserstein_2(p, q)

    @jax.jit
    def gradients(*arrays):
        result, pullback = jax.vjp(several, *arrays)
        return pullback(jax.tree.map(jnp.ones_like, result))

    arrays = [jnp.array(x) for x in (*mean, *scale)]
    same_everywhere(several if kind is Gaussian else gradients, *arrays, rtol=1e-11)


@pytest.mark.parametrize("which", ["full", "diagonal"])
def test_dtypes(which):
    p, q = near_pairs()[which]
    expected = all_values(p, q)
    assert expected.dtype == jnp.float64
    for dtype in (jnp.float32, jnp.bfloat16):
        narrow = cast(dtype, p, q)
        widened = cast(jnp.float32, *narrow)
        result = all_values(*widened)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, all_values(*cast(jnp.float64, *narrow)), rtol=2e-5)
        of_narrow, of_widened = (compiled("renyi")(*x, 1.4) for x in (narrow, widened))
        assert of_narrow == of_widened
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        assert jax.eval_shape(gaussian.kl, *cast(dtype, p, q)).dtype == jnp.float32
        assert jax.eval_shape(gaussian.kl, *cast(dtype, p), q).dtype == jnp.float64


def test_constants_inside_a_program():
    """What is known there is checked there, and nothing else is asked of a traced array."""
    p, q = near_pairs()["full"]
    found = jax.jit(lambda mean: gaussian.kl(p._replace(mean=mean), q))(p.mean)
    np.testing.assert_allclose(found, value("kl", None, p, q), rtol=1e-14)
    bad = q._replace(scale_tril=-q.scale_tril)
    with pytest.raises(ValueError, match=r"^q\.scale_tril must be positive on its diagonal"):
        jax.jit(lambda mean: gaussian.kl(p._replace(mean=mean), bad))(p.mean)
    assert jnp.isnan(compiled("kl")(p, bad))  # as an argument its values are not known


def test_a_traced_order_of_another_type_is_cast():
    p, q = near_pairs()["diagonal"]
    found = compiled("tsallis")(p, q, jnp.float32(1.5))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, compiled("tsallis")(p, q, 1.5), rtol=1e-12)


def test_from_covariance():
    factor = jnp.array(lower(np.random.default_rng(10), 3))
    made = gaussian.from_covariance(jnp.zeros(3), factor @ factor.T)
    np.testing.assert_allclose(made.scale_tril, factor, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------------- refusals


ONE = Gaussian(np.zeros(2), np.eye(2))
FLAT = Diagonal(np.zeros(2), np.ones(2))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(
    ("p", "q", "error", "message"),
    [
        (ONE, FLAT, TypeError, "p and q must be of one kind, got Gaussian and Diagonal"),
        (FLAT, ONE, TypeError, "p and q must be of one kind, got Diagonal and Gaussian"),
        (tuple(FLAT), FLAT, TypeError, "p must be a Gaussian or a Diagonal, got tuple"),
        (FLAT, FLAT.mean, TypeError, "q must be a Gaussian or a Diagonal, got ndarray"),
        (ONE, ONE._replace(mean=np.zeros(3)), ValueError,
         "q.scale_tril must have shape (3, 3), got (2, 2)"),
        (Diagonal(np.zeros(3), np.ones(3)), FLAT, ValueError,
         "p.mean and q.mean must have the same shape, got p.mean (3,), q.mean (2,)"),
        (FLAT, Diagonal(np.zeros(2), np.eye(2)), ValueError,
         "q.scale must have shape (2,), got (2, 2)"),
        (ONE, Gaussian(np.zeros(2), np.ones(2)), ValueError,
         "q.scale_tril must have shape (2, 2), got (2,)"),
        (FLAT._replace(mean=np.array([0, 1])), FLAT, TypeError,
         "p.mean must be a floating-point array, got dtype int64"),
        (FLAT, FLAT._replace(scale=np.array([1, 1])), TypeError,
         "q.scale must be a floating-point array, got dtype int64"),
        (Diagonal(np.array(0.0), np.array(1.0)), FLAT, ValueError,
         "p.mean must have at least one dimension, got shape ()"),
        (FLAT._replace(scale=np.array([1.0, 0.0])), FLAT, ValueError, "p.scale must be positive"),
        (FLAT, FLAT._replace(scale=np.array([np.nan, 1])), ValueError, "q.scale must be positive"),
        (ONE, ONE._replace(scale_tril=np.diag([1.0, -1.0])), ValueError,
         "q.scale_tril must be positive on its diagonal"),
        (ONE._replace(scale_tril=np.array([[1.0, 0.5], [0.5, 1.0]])), ONE, ValueError,
         "p.scale_tril must be lower triangular; see from_covariance"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(name, p, q, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$") as caught:
        getattr(gaussian, name)(p, q)
    # The argument's name is the caller's, also where a divergence exchanges them.
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("renyi", 0.0, "positive and finite, got 0.0"),
        ("renyi", -1.0, "positive and finite, got -1.0"),
        ("renyi", math.nan, "positive and finite, got nan"),
        ("renyi", np.ones(2), "a number, got (2,)"),
        ("alpha", math.inf, "a finite number, got inf"),
        ("alpha", "half", "a finite number, got half"),
        ("alpha", np.ones((1, 1)), "a number, got (1, 1)"),
        ("tsallis", 0.0, "positive and finite, got 0.0"),
        ("tsallis", np.ones(2), "a number, got (2,)"),
    ],
)
def test_orders_out_of_range(name, bad, message):
    parameter = PARAMETER[name]
    with pytest.raises(ValueError, match=f"^{re.escape(f'{parameter} must be {message}')}$"):
        getattr(gaussian, name)(FLAT, FLAT, **{parameter: bad})
    with pytest.raises(ValueError, match=f"^{parameter} must be "):
        jax.jit(lambda p, q: getattr(gaussian, name)(p, q, **{parameter: bad}))(FLAT, FLAT)


def test_refusals_of_from_covariance():
    with pytest.raises(ValueError, match=r"^covariance must be positive definite$"):
        gaussian.from_covariance(jnp.zeros(2), jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match=r"^covariance must have shape \(2, 2\), got \(2,\)$"):
        gaussian.from_covariance(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(TypeError, match=r"^mean must be a floating-point array"):
        gaussian.from_covariance(jnp.array([1, 2]), jnp.eye(2))
