"""Divergences between Gaussians: quadrature of the definitions, 60 digits, limits and gradients."""

import functools
import math

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

EVERY = {
    "kl": [{}],
    "reverse_kl": [{}],
    "jeffreys": [{}],
    "renyi": [{"alpha": a} for a in (0.2, 0.5, 1.0, 1.4)],
    "alpha": [{"alpha": a} for a in (-0.3, 0.0, 0.3, 1.0, 1.3)],
    "tsallis": [{"q_index": a} for a in (0.4, 1.0, 1.3)],
    "pearson_chi2": [{}],
    "neyman_chi2": [{}],
    "squared_hellinger": [{}],
    "bhattacharyya": [{}],
    "cauchy_schwarz": [{}],
    "squared_wasserstein_2": [{}],
    "wasserstein_2": [{}],
}
CASES = [(name, parameters) for name, sets in EVERY.items() for parameters in sets]
SYMMETRIC = [
    "jeffreys",
    "squared_hellinger",
    "bhattacharyya",
    "cauchy_schwarz",
    "squared_wasserstein_2",
    "wasserstein_2",
]
OF_DENSITIES = [(n, x) for n, x in CASES if "wasserstein" not in n]
every_case = pytest.mark.parametrize(("name", "parameters"), CASES)
every_density_case = pytest.mark.parametrize(("name", "parameters"), OF_DENSITIES)


@functools.cache
def compiled(name, **parameters):
    return jax.jit(functools.partial(getattr(gaussian, name), **parameters))


def value(name, parameters, p, q):
    return float(compiled(name, **parameters)(p, q))


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


def vector(p, q):
    """The free parameters of a pair, and the function back."""
    d, full = p.mean.shape[-1], isinstance(p, Gaussian)
    index = np.tril_indices(d)
    free = [jnp.concatenate([x.mean, x[1][index] if full else x[1]]) for x in (p, q)]

    def back(z):
        ends = z[: len(free[0])], z[len(free[0]) :]
        if not full:
            return tuple(Diagonal(x[:d], x[d:]) for x in ends)
        return tuple(Gaussian(x[:d], jnp.zeros((d, d)).at[index].set(x[d:])) for x in ends)

    return jnp.concatenate(free), back


# -------------------------------------------------------------------------- quadrature of densities


def of_integrals(name, parameters, integral):
    """A divergence from its definition, given `integral(f)` of a function of two densities."""
    a = parameters.get("alpha", parameters.get("q_index"))
    kl = lambda f, g: f * (np.log(f) - np.log(g))  # noqa: E731
    power = lambda a: integral(lambda f, g: np.exp(a * np.log(f) + (1 - a) * np.log(g)))  # noqa: E731
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
def test_against_quadrature_in_one_dimension(name, parameters):
    (m, s), (n, r) = (0.3, 1.1), (-0.4, 0.9)
    f, g = scipy.stats.norm(m, s).pdf, scipy.stats.norm(n, r).pdf

    def integral(of):
        return scipy.integrate.quad(lambda x: of(f(x), g(x)), -15, 15, epsabs=1e-14, limit=200)[0]

    expected = of_integrals(name, parameters, integral)
    array = lambda *shape: lambda x: jnp.full(shape, x)  # noqa: E731
    full = [Gaussian(array(1)(x), array(1, 1)(y)) for x, y in ((m, s), (n, r))]
    diagonal = [Diagonal(array(1)(x), array(1)(y)) for x, y in ((m, s), (n, r))]
    np.testing.assert_allclose(value(name, parameters, *full), expected, rtol=1e-10)
    np.testing.assert_allclose(value(name, parameters, *diagonal), expected, rtol=1e-10)


@functools.cache
def plane():
    """Two correlated Gaussians on a grid wide and fine enough for the trapezoidal rule."""
    p = Gaussian(jnp.array([0.3, -0.2]), jnp.array([[1.0, 0.0], [0.5, 0.8]]))
    q = Gaussian(jnp.array([-0.1, 0.4]), jnp.array([[0.9, 0.0], [0.2, 1.0]]))
    x = np.linspace(-14, 14, 451)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    densities = [scipy.stats.multivariate_normal(m, s @ s.T).pdf(grid) for m, s in (p, q)]
    return p, q, densities, (x[1] - x[0]) ** 2


@every_density_case
def test_against_quadrature_in_two_dimensions(name, parameters):
    p, q, (f, g), area = plane()
    inside = (f > 1e-280) & (g > 1e-280)
    f, g = f[inside], g[inside]
    expected = of_integrals(name, parameters, lambda of: np.sum(of(f, g)) * area)
    np.testing.assert_allclose(value(name, parameters, p, q), expected, rtol=1e-10)


# ----------------------------------------------------------------------------------- sixty digits


def exact(name, parameters, p, q):
    """By the textbook formulas in covariances, with 60 digits."""
    if name in ("reverse_kl", "neyman_chi2"):
        return exact("kl" if name == "reverse_kl" else "pearson_chi2", {}, q, p)
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
            return renyi(1) if a == 1 else exact("kl", {}, q, p)
        mixed = a * cov_q + (1 - a) * cov_p
        if min(mp.eigsy(mixed, eigvals_only=True)) <= 0:
            return mp.inf
        a = mp.mpf(a)
        if a < 0:
            return exact("alpha", {"alpha": 1 - a}, q, p)
        return mp.expm1((a - 1) * renyi(a)) / (a * (a - 1))

    def squared_wasserstein_2():
        nuclear = sum(mp.svd_r(r.T * s, compute_uv=False))
        traces = sum(cov_p[i, i] + cov_q[i, i] for i in range(s.rows))
        return (d.T * d)[0] + traces - 2 * nuclear

    match name:
        case "kl":
            return renyi(1)
        case "jeffreys":
            return renyi(1) + exact("kl", {}, q, p)
        case "renyi":
            return renyi(parameters["alpha"])
        case "alpha":
            return alpha(parameters["alpha"])
        case "tsallis":
            return parameters["q_index"] * alpha(parameters["q_index"])
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
    for d in (1, 3):
        for make in (lower, lambda rng, d: np.exp(0.4 * rng.normal(size=d))):
            mean, scale = rng.normal(size=d), make(rng, d)
            step = np.tril(rng.normal(size=(d, d))) if scale.ndim == 2 else rng.normal(size=d)
            other = mean + (0 if same_mean else distance) * rng.normal(size=d)
            kind = Gaussian if scale.ndim == 2 else Diagonal
            ends = (other, scale + distance * step), (mean, scale)
            pairs.append(tuple(kind(*(jnp.asarray(x, dtype) for x in end)) for end in ends))
    return pairs


@every_case
@pytest.mark.parametrize("same_mean", [False, True])
def test_relative_accuracy_near_equality(name, parameters, same_mean):
    """At 1e-9 apart the divergence is 1e-18: relatively accurate, not to the rounding of 1."""
    for distance, dtype, rtol in ((1e-9, jnp.float64, 2e-14), (1e-2, jnp.float64, 2e-14),
                                  (1e-4, jnp.float32, 4e-6)):  # fmt: skip
        for p, q in neighbours(distance, dtype, same_mean):
            of = {key: float(dtype(x)) for key, x in parameters.items()}
            expected = float(exact(name, of, p, q))
            assert expected > 0
            np.testing.assert_allclose(value(name, of, p, q), expected, rtol=rtol)


@every_case
def test_far_apart(name, parameters):
    rng = np.random.default_rng(2)
    for _ in range(4):
        p, q = (
            Gaussian(jnp.array(3 * rng.normal(size=3)), jnp.array(lower(rng, 3, 1.0))) for _ in "pq"
        )
        expected = float(exact(name, parameters, p, q))
        np.testing.assert_allclose(value(name, parameters, p, q), expected, rtol=1e-10)


@every_case
def test_very_different_scales(name, parameters):
    """Scales of 1e-9 in float32 are lost in `1 + (lp - lq)/lq`, but not here."""
    p = Diagonal(jnp.array([0.1, 0.2], jnp.float32), jnp.array([1e-9, 1.5], jnp.float32))
    q = Diagonal(jnp.array([0.0, 0.4], jnp.float32), jnp.array([1.0, 0.9], jnp.float32))
    parameters = {key: float(jnp.float32(x)) for key, x in parameters.items()}
    for first, second in ((p, q), (q, p)):
        expected = float(exact(name, parameters, first, second))
        np.testing.assert_allclose(value(name, parameters, first, second), expected, rtol=1e-5)


def test_the_textbook_formula_loses_every_digit():
    """Why the difference of the factors is whitened, and not a trace and a determinant taken."""
    p, q = neighbours(1e-9, jnp.float64, False)[2]
    cov_p, cov_q, d = p.scale_tril @ p.scale_tril.T, q.scale_tril @ q.scale_tril.T, p.mean - q.mean
    ratio = np.linalg.solve(cov_q, cov_p)
    naive = (np.trace(ratio) - 3 - np.linalg.slogdet(ratio)[1] + d @ np.linalg.solve(cov_q, d)) / 2
    expected = float(exact("kl", {}, p, q))
    assert abs(naive - expected) > expected
    np.testing.assert_allclose(gaussian.kl(p, q), expected, rtol=1e-14)


# ------------------------------------------------------------------------------------- Wasserstein


def test_wasserstein_against_matrix_square_roots():
    rng = np.random.default_rng(3)
    for d in (1, 2, 5):
        p, q = pair(rng, d, spread=0.8)
        cov_p, cov_q = (np.asarray(x.scale_tril @ x.scale_tril.T) for x in (p, q))
        root = scipy.linalg.sqrtm(cov_q)
        bures = np.trace(cov_p + cov_q - 2 * scipy.linalg.sqrtm(root @ cov_p @ root))
        expected = np.sum((p.mean - q.mean) ** 2) + bures
        np.testing.assert_allclose(gaussian.squared_wasserstein_2(p, q), expected, rtol=1e-11)
        np.testing.assert_allclose(gaussian.wasserstein_2(p, q) ** 2, expected, rtol=1e-11)


def test_wasserstein_against_quantile_functions():
    """On a line it is the distance of the quantile functions."""
    u, w = np.polynomial.legendre.leggauss(400)
    u, w = (u + 1) / 2, w / 2
    quantiles = [scipy.stats.norm(m, s).ppf(u) for m, s in ((0.3, 1.1), (-0.4, 0.5))]
    p, q = (
        Diagonal(jnp.array([0.3]), jnp.array([1.1])),
        Diagonal(jnp.array([-0.4]), jnp.array([0.5])),
    )
    expected = np.sum(w * (quantiles[0] - quantiles[1]) ** 2)
    np.testing.assert_allclose(gaussian.squared_wasserstein_2(p, q), expected, rtol=1e-4)
    assert gaussian.wasserstein_2(p, q) == jnp.sqrt(gaussian.squared_wasserstein_2(p, q))


def test_wasserstein_is_a_metric():
    rng = np.random.default_rng(4)
    a, b, c = ((jnp.array(rng.normal(size=3)), jnp.array(lower(rng, 3))) for _ in range(3))
    ab, bc, ac = (
        gaussian.wasserstein_2(Gaussian(*x), Gaussian(*y)) for x, y in ((a, b), (b, c), (a, c))
    )
    assert ac <= ab + bc
    assert gaussian.wasserstein_2(Gaussian(*a), Gaussian(*a)) == 0


@pytest.mark.parametrize("gap", [1e-3, 1.0])
def test_wasserstein_of_nearly_singular_covariances(gap):
    """The rotation is not determined where a covariance is flat; the distance is."""
    p = Gaussian(jnp.zeros(3), jnp.array([[1.0, 0, 0], [0.5, 1e-9, 0], [0.2, 0.1, 1e-9]]))
    q = Gaussian(jnp.zeros(3), jnp.array([[1.0, 0, 0], [0.5, gap, 0], [0.2, 0.1, 1e-9]]))
    expected = float(exact("squared_wasserstein_2", {}, p, q))
    np.testing.assert_allclose(gaussian.squared_wasserstein_2(p, q), expected, rtol=1e-10)


# ------------------------------------------------------------------------- gradients and curvature


def kinds(spread=0.2):
    rng = np.random.default_rng(5)
    eye = Gaussian(jnp.zeros(2), jnp.eye(2))
    return {
        "full": pair(rng, 3, spread),
        "diagonal": diagonal_pair(rng, 3, spread),
        "repeated eigenvalues": (Gaussian(jnp.array([0.2, 0.1]), 1.1 * jnp.eye(2)), eye),
    }


@every_case
@pytest.mark.parametrize("kind", kinds())
def test_gradient_against_finite_differences(name, parameters, kind):
    z, back = vector(*kinds()[kind])
    f = jax.jit(jax.vmap(lambda z: getattr(gaussian, name)(*back(z), **parameters)))
    steps = 1e-6 * np.eye(len(z))
    expected = (f(z[None] + steps) - f(z[None] - steps)) / 2e-6
    gradient = jax.jit(jax.grad(lambda z: f(z[None])[0]))(z)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


@every_case
def test_hessian_against_finite_differences_of_the_gradient(name, parameters):
    z, back = vector(*kinds()["full"])
    f = lambda z: getattr(gaussian, name)(*back(z), **parameters)  # noqa: E731
    gradient = jax.jit(jax.vmap(jax.grad(f)))
    steps = 1e-5 * np.eye(len(z))
    expected = (gradient(z[None] + steps) - gradient(z[None] - steps)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.hessian(f))(z), expected, rtol=1e-6, atol=1e-7)


CURVATURE = {  # f''(1) of each row; Renyi of order a has a, Bhattacharyya and Cauchy-Schwarz follow
    "kl": 1, "reverse_kl": 1, "jeffreys": 2, "alpha": 1, "pearson_chi2": 2, "neyman_chi2": 2,
    "squared_hellinger": 0.25, "bhattacharyya": 0.25,
}  # fmt: skip


@every_density_case
def test_hessian_at_equality_is_the_fisher_information(name, parameters):
    """With repeated eigenvalues: all of them are 1. By eigenvectors it would be NaN."""
    _, q = kinds()["full"]
    z, back = vector(q, q)
    half = len(z) // 2
    hessian = jax.jit(
        jax.hessian(
            lambda x: getattr(gaussian, name)(*back(jnp.concatenate([x, z[half:]])), **parameters)
        )
    )(z[:half])
    if name == "cauchy_schwarz":
        assert jnp.all(jnp.linalg.eigvalsh(hessian) > 0)
        return
    curvature = parameters.get("alpha" if name == "renyi" else "q_index", CURVATURE.get(name))
    # E[(d/dz log p)(d/dz log p)'], integrated exactly by Gauss-Hermite quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 3)
    w = np.prod(
        np.stack(np.meshgrid(weights, weights, weights, indexing="ij"), -1).reshape(-1, 3), 1
    )
    x = q.mean + grid @ q.scale_tril.T

    def log_density(z, x):
        mean, scale = back(jnp.concatenate([z, z]))[0]
        white = jax.scipy.linalg.solve_triangular(scale, x - mean, lower=True)
        return -jnp.sum(white**2) / 2 - jnp.sum(jnp.log(jnp.diagonal(scale)))

    score = jax.jit(jax.vmap(jax.grad(log_density), (None, 0)))(z[:half], x)
    fisher = np.einsum("k,ki,kj->ij", w / w.sum(), score, score)
    np.testing.assert_allclose(hessian, curvature * fisher, rtol=1e-9, atol=1e-11)


@every_case
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_exactly_zero_for_identical_arguments(name, parameters, kind, dtype):
    _, q = kinds()[kind]
    q = jax.tree.map(lambda x: (17 * x).astype(dtype), q)
    f = lambda p, q: getattr(gaussian, name)(p, q, **parameters)  # noqa: E731
    result, gradients = jax.jit(jax.value_and_grad(f, (0, 1)))(q, q)
    assert result == 0
    assert all(jnp.all(g == 0) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", ["renyi", "alpha"])
@pytest.mark.parametrize("at", [0.3, 0.5, 1.0, 1.3])
def test_gradient_by_the_order(name, at):
    """The order may be traced; also at 1, where the formulas divide by 0, and at the switch, 1/2."""
    p, q = kinds()["full"]
    f = jax.jit(lambda a: getattr(gaussian, name)(p, q, alpha=a))
    expected = (f(at + 1e-5) - f(at - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(f)(at), expected, rtol=1e-7)


# --------------------------------------------------------------------------- limits and identities


def test_limits_and_identities():
    rng = np.random.default_rng(6)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    for p, q in (pair(rng, 4), diagonal_pair(rng, 4)):
        kl, reverse = gaussian.kl(p, q), gaussian.reverse_kl(p, q)
        renyi = lambda a, p=p, q=q: value("renyi", {"alpha": a}, p, q)
        alpha = lambda a, p=p, q=q: value("alpha", {"alpha": a}, p, q)
        same(renyi(1.0), kl)
        same(renyi(1 + 1e-9), kl, rtol=1e-8)
        same(renyi(1 - 1e-9), kl, rtol=1e-8)
        same(renyi(1e-9) / 1e-9, reverse, rtol=1e-8)
        same(alpha(1.0), kl)
        same(alpha(1 + 1e-9), kl, rtol=1e-8)
        same(alpha(0.0), reverse)
        same(alpha(1e-9), reverse, rtol=1e-8)
        same(alpha(-1e-9), reverse, rtol=1e-8)
        same(alpha(1.3), value("alpha", {"alpha": 1 - 1.3}, q, p))
        same(renyi(0.3) * 0.7, 0.3 * value("renyi", {"alpha": 0.7}, q, p))
        same(value("tsallis", {"q_index": 1.0}, p, q), kl)
        same(value("tsallis", {"q_index": 2.0}, p, q), gaussian.pearson_chi2(p, q))
        same(gaussian.neyman_chi2(p, q), gaussian.pearson_chi2(q, p))
        same(gaussian.pearson_chi2(p, q), math.expm1(renyi(2.0)))
        same(gaussian.jeffreys(p, q), kl + reverse)
        same(gaussian.bhattacharyya(p, q), -jnp.log1p(-gaussian.squared_hellinger(p, q)))
        orders = [renyi(a) for a in np.linspace(0.05, 1.5, 30)]
        assert np.all(np.diff(orders) > 0)  # Renyi grows with its order


@every_case
def test_a_diagonal_is_a_gaussian_with_a_diagonal_factor(name, parameters):
    p, q = kinds()["diagonal"]
    full = [Gaussian(x.mean, jnp.diag(x.scale)) for x in (p, q)]
    expected = value(name, parameters, p, q)
    np.testing.assert_allclose(value(name, parameters, *full), expected, rtol=1e-13)


@every_density_case
def test_invariant_to_affine_maps(name, parameters):
    """Whatever is a functional of densities, but for Cauchy-Schwarz, knows no units."""
    p, q = kinds()["full"]
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(3, 3)), rng.normal(size=3)

    def moved(x):
        factor = a @ x.scale_tril
        return gaussian.from_covariance(jnp.array(a @ x.mean + b), jnp.array(factor @ factor.T))

    expected = value(name, parameters, p, q)
    np.testing.assert_allclose(value(name, parameters, moved(p), moved(q)), expected, rtol=1e-9)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetry(name):
    p, q = kinds()["full"]
    np.testing.assert_allclose(value(name, {}, p, q), value(name, {}, q, p), rtol=1e-12)


@pytest.mark.parametrize(("name", "parameters"), [("kl", {}), ("renyi", {"alpha": 1.3})])
def test_additive_over_independent_coordinates(name, parameters):
    p, q = kinds()["diagonal"]
    each = [Diagonal(x.mean[:, None], x.scale[:, None]) for x in (p, q)]
    parts = compiled(name, **parameters)(*each)
    np.testing.assert_allclose(jnp.sum(parts), value(name, parameters, p, q), rtol=1e-13)


@every_case
def test_never_negative(name, parameters):
    rng = np.random.default_rng(8)
    for spread in (1e-7, 0.1, 2.0):
        mean = spread * rng.normal(size=(2, 50, 3))
        scale = np.exp(0.3 + spread * rng.normal(size=(2, 50, 3)))
        factor = np.tril(spread * rng.normal(size=(2, 50, 3, 3)), -1) + scale[..., None] * np.eye(3)
        full = [Gaussian(jnp.array(m), jnp.array(s)) for m, s in zip(mean, factor, strict=True)]
        diagonal = [Diagonal(jnp.array(m), jnp.array(s)) for m, s in zip(mean, scale, strict=True)]
        for p, q in (full, diagonal):
            assert jnp.all(compiled(name, **parameters)(p, q) >= 0)


# ------------------------------------------------------------------------------------ known numbers


def test_risk_of_the_maximum_likelihood_estimate():
    """E KL(N(0, 1)‖N(mean, variance)) of ten observations is 0.175431 in closed form."""
    n = 10
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    shape = (n - 1) / 2

    def given_variance(v):
        """The expectation over the mean, exact by quadrature, times the density of the variance."""
        mean, scale = jnp.array(nodes / math.sqrt(n))[:, None], jnp.full((6, 1), math.sqrt(v))
        p = Diagonal(jnp.zeros((6, 1)), jnp.ones((6, 1)))
        expected = np.sum(weights * compiled("kl")(p, Diagonal(mean, scale))) / np.sum(weights)
        return expected * scipy.stats.gamma(shape, scale=2 / n).pdf(v)

    risk = scipy.integrate.quad(given_variance, 0, np.inf, epsabs=1e-9)[0]
    digamma = scipy.special.digamma((n - 1) / 2)
    closed = 0.5 * (digamma + math.log(2 / n) + (1 + 1 / n) * n / (n - 3) - 1)
    np.testing.assert_allclose(closed, 0.175431, atol=5e-7)
    np.testing.assert_allclose(risk, closed, rtol=1e-7)


@pytest.mark.parametrize("distance", [0.5, 3.0])
def test_cauchy_schwarz_of_unit_variances(distance):
    p, q = (Diagonal(jnp.array([x]), jnp.ones(1)) for x in (0.0, distance))
    np.testing.assert_allclose(gaussian.cauchy_schwarz(p, q), distance**2 / 2, rtol=1e-14)
    np.testing.assert_allclose(gaussian.renyi(p, q, alpha=3.0), 1.5 * distance**2, rtol=1e-14)
    np.testing.assert_allclose(gaussian.kl(p, q), distance**2 / 2, rtol=1e-14)


# ---------------------------------------------------------------------------------------- infinity


def test_infinite_where_the_integral_diverges():
    """Pearson's chi2 needs 2 Q > P, in every direction; at equality the integral diverges too."""
    q = Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.0], [0.5, 1.0]]))
    for ratio, finite in ((1.4, True), (1.42, False)):
        p = Gaussian(q.mean + 0.1, q.scale_tril @ jnp.array([[1.0, 0.0], [0.0, ratio]]))
        assert bool(jnp.isfinite(gaussian.pearson_chi2(p, q))) == finite
        assert bool(jnp.isfinite(gaussian.neyman_chi2(q, p))) == finite
        assert bool(jnp.isfinite(gaussian.renyi(p, q, alpha=2.0))) == finite
        assert jnp.isfinite(gaussian.neyman_chi2(p, q))
        assert jnp.isfinite(gaussian.renyi(p, q, alpha=1.9))
    unit, double = (Diagonal(jnp.zeros(1), jnp.full(1, s)) for s in (1.0, 2.0))
    at_the_edge = gaussian.renyi(double, unit, alpha=4 / 3)
    assert at_the_edge == jnp.inf or at_the_edge > 40
    assert gaussian.renyi(double, unit, alpha=1.5) == jnp.inf
    assert gaussian.alpha(unit, double, alpha=-0.5) == jnp.inf
    assert gaussian.alpha(double, unit, alpha=-20.0) < jnp.inf


@pytest.mark.parametrize("kind", [Gaussian, Diagonal])
def test_an_infinite_row_leaves_the_others_alone(kind):
    scale = jnp.array([[[1.2, 0.0], [0.1, 0.9]], [[3.0, 0.0], [0.1, 0.9]]])
    scale = scale if kind is Gaussian else jnp.diagonal(scale, axis1=-2, axis2=-1)
    p = kind(jnp.full((2, 2), 0.3), scale)
    one = jnp.eye(2) if kind is Gaussian else jnp.ones(2)
    q = kind(jnp.zeros((2, 2)), jnp.broadcast_to(one, scale.shape))
    result, pullback = jax.vjp(gaussian.pearson_chi2, p, q)
    assert result[0] < jnp.inf
    assert result[1] == jnp.inf
    gradients = jax.tree.leaves(pullback(jnp.ones(2)))
    assert all(jnp.all(jnp.isfinite(g)) and jnp.all(g[1] == 0) for g in gradients)
    assert all(jnp.any(g[0] != 0) for g in gradients)


def test_overflow_is_infinite_and_has_no_nan_gradient():
    p, q = Diagonal(jnp.full(1, 40.0), jnp.ones(1)), Diagonal(jnp.zeros(1), jnp.ones(1))
    result, gradient = jax.value_and_grad(gaussian.pearson_chi2)(p, q)
    assert result == jnp.inf
    assert jnp.all(jnp.isfinite(gradient.mean))
    assert gaussian.squared_hellinger(p, q) == 1


def test_nan_stays_nan():
    p, q = kinds()["full"]
    for name in ("kl", "renyi", "pearson_chi2", "squared_wasserstein_2"):
        assert jnp.isnan(compiled(name)(p._replace(mean=p.mean * jnp.nan), q))
        assert jnp.isnan(compiled(name)(p._replace(scale_tril=p.scale_tril * jnp.nan), q))


# ------------------------------------------------------------------------------ programs and dtypes


@every_case
@pytest.mark.parametrize("kind", [Gaussian, Diagonal])
def test_same_under_every_transformation(name, parameters, kind, same_everywhere):
    rng = np.random.default_rng(9)
    mean, scale = 0.2 * rng.normal(size=(2, 8, 3)), np.exp(0.2 * rng.normal(size=(2, 8, 3)))
    if kind is Gaussian:
        below = np.tril(0.2 * rng.normal(size=(2, 8, 3, 3)), -1)
        scale = below + scale[..., None] * np.eye(3)

    def value_and_gradients(*arrays):
        result, pullback = jax.vjp(
            lambda m, n, s, r: getattr(gaussian, name)(kind(m, s), kind(n, r), **parameters),
            *arrays,
        )
        return result, pullback(jnp.ones_like(result))

    same_everywhere(value_and_gradients, *map(jnp.array, (*mean, *scale)), rtol=1e-11)


def test_a_sweep_over_the_order_is_one_program():
    p, q = kinds()["full"]
    orders = jnp.linspace(-0.5, 1.5, 9)
    sweep = jax.jit(jax.vmap(lambda a: gaussian.alpha(p, q, alpha=a)))(orders)
    expected = [value("alpha", {"alpha": float(a)}, p, q) for a in orders]
    np.testing.assert_allclose(sweep, expected, rtol=1e-12)


@every_case
def test_dtypes(name, parameters):
    full, diagonal = kinds()["full"], kinds()["diagonal"]
    for p, q in (full, diagonal):
        expected = value(name, parameters, p, q)
        for dtype, rtol in ((jnp.float32, 2e-5), (jnp.bfloat16, None), (jnp.float16, None)):
            narrow = [jax.tree.map(lambda x: x.astype(dtype), x) for x in (p, q)]  # noqa: B023
            result = compiled(name, **parameters)(*narrow)
            assert result.dtype == jnp.float32
            wide = [jax.tree.map(lambda x: x.astype(jnp.float64), x) for x in narrow]
            of_wide = value(name, parameters, *wide)
            np.testing.assert_allclose(result, of_wide, rtol=2e-5)
            if rtol:
                np.testing.assert_allclose(result, expected, rtol=rtol)
        mixed = compiled(name, **parameters)(jax.tree.map(lambda x: x.astype(jnp.float32), p), q)
        assert mixed.dtype == jnp.float64


def test_a_traced_narrow_order_is_cast():
    p, q = kinds()["full"]
    result = jax.jit(lambda a: gaussian.tsallis(p, q, q_index=a))(jnp.float32(1.5))
    assert result.dtype == jnp.float64
    np.testing.assert_allclose(result, gaussian.tsallis(p, q, q_index=1.5), rtol=1e-12)


def test_from_covariance():
    rng = np.random.default_rng(10)
    factor = jnp.array(lower(rng, 3))
    made = gaussian.from_covariance(jnp.zeros(3), factor @ factor.T)
    np.testing.assert_allclose(made.scale_tril, factor, rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------------------------------ refusals


ONE = Gaussian(jnp.zeros(2), jnp.eye(2))
FLAT = Diagonal(jnp.zeros(2), jnp.ones(2))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("p", "q", "error", "message"),
    [
        (ONE, FLAT, TypeError, "p and q must be of one kind, got Gaussian and Diagonal"),
        (FLAT, ONE, TypeError, "p and q must be of one kind, got Diagonal and Gaussian"),
        ((FLAT.mean, FLAT.scale), FLAT, TypeError, "p must be a Gaussian or a Diagonal, got tuple"),
        (FLAT, FLAT.mean, TypeError, "q must be a Gaussian or a Diagonal, got ArrayImpl"),
        (ONE, ONE._replace(mean=jnp.zeros(3)), ValueError,
         r"q.scale_tril must have shape \(3, 3\), got \(2, 2\)"),
        (Diagonal(jnp.zeros(3), jnp.ones(3)), FLAT, ValueError,
         r"p.mean and q.mean must have the same shape, got p.mean \(3,\), q.mean \(2,\)"),
        (FLAT, Diagonal(jnp.zeros(2), jnp.eye(2)), ValueError,
         r"q.scale must have shape \(2,\), got \(2, 2\)"),
        (ONE, Gaussian(jnp.zeros(2), jnp.ones(2)), ValueError,
         r"q.scale_tril must have shape \(2, 2\), got \(2,\)"),
        (FLAT._replace(mean=jnp.array([0, 1])), FLAT, TypeError,
         "p.mean must be a floating-point array, got dtype int64"),
        (FLAT, FLAT._replace(scale=jnp.array([1, 1])), TypeError,
         "q.scale must be a floating-point array, got dtype int64"),
        (Diagonal(jnp.array(0.0), jnp.array(1.0)), FLAT, ValueError,
         r"p.mean must have at least one dimension, got shape \(\)"),
        (FLAT._replace(scale=jnp.array([1.0, 0.0])), FLAT, ValueError, "p.scale must be positive"),
        (FLAT, FLAT._replace(scale=jnp.array([jnp.nan, 1.0])), ValueError, "q.scale must be positive"),
        (ONE, ONE._replace(scale_tril=jnp.diag(jnp.array([1.0, -1.0]))), ValueError,
         "q.scale_tril must be positive on its diagonal"),
        (ONE._replace(scale_tril=jnp.array([[1.0, 0.5], [0.5, 1.0]])), ONE, ValueError,
         "p.scale_tril must be lower triangular; see from_covariance"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(name, p, q, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        getattr(gaussian, name)(p, q)


@pytest.mark.parametrize(
    ("name", "parameter", "bad", "message"),
    [
        ("renyi", "alpha", 0.0, "positive and finite, got 0.0"),
        ("renyi", "alpha", -1.0, "positive and finite, got -1.0"),
        ("renyi", "alpha", math.nan, "positive and finite, got nan"),
        ("alpha", "alpha", math.inf, "a finite number, got inf"),
        ("alpha", "alpha", "half", "a finite number, got half"),
        ("tsallis", "q_index", 0.0, "positive and finite, got 0.0"),
        ("tsallis", "q_index", np.ones(2), r"a scalar \(vmap over a sweep\), got shape \(2,\)"),
        ("renyi", "alpha", np.ones(2), r"a scalar \(vmap over a sweep\), got shape \(2,\)"),
        ("alpha", "alpha", np.ones((1, 1)), r"a scalar \(vmap over a sweep\), got shape \(1, 1\)"),
    ],
)
def test_orders_out_of_range(name, parameter, bad, message):
    for refusing in (
        getattr(gaussian, name),
        jax.jit(getattr(gaussian, name), static_argnames=parameter),
    ):
        if isinstance(bad, np.ndarray) and refusing is not getattr(gaussian, name):
            continue
        with pytest.raises(ValueError, match=f"^{parameter} must be {message}$"):
            refusing(FLAT, FLAT, **{parameter: bad})


def test_refusals_of_from_covariance():
    with pytest.raises(ValueError, match=r"^covariance must be positive definite$"):
        gaussian.from_covariance(jnp.zeros(2), jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match=r"^covariance must have shape \(2, 2\), got \(2,\)$"):
        gaussian.from_covariance(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(TypeError, match=r"^mean must be a floating-point array"):
        gaussian.from_covariance(jnp.array([1, 2]), jnp.eye(2))
