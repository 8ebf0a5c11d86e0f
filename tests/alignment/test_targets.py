import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate, optimize

from jdiv import divergences, generators
from jdiv.alignment import targets
from tests.checks import PARAMETERS, refused

KL = generators.kl()
RNG = np.random.default_rng(0)


@functools.cache
def compiled(f):
    return jax.jit(f)


def fractions_of(law):
    return np.array([float(p) for p in law])


def best_by_enumeration(rewards, ref, n):
    """Every draw of n answers; ties of the best are broken evenly among the draws."""
    law = [Fraction(0)] * len(ref)
    for draw in itertools.product(range(len(ref)), repeat=n):
        mass = np.prod([ref[y] for y in draw])
        best = max(rewards[y] for y in draw)
        winners = [y for y in draw if rewards[y] == best]
        for y in winners:
            law[y] += mass / len(winners)
    return law


# ------------------------------------------------------------------------------------------- tilts


@pytest.mark.parametrize("name", ["kl", "pearson_chi2"])
def test_the_tilt_of_a_budget_spends_it(name):
    """Against the same tilt at the beta found, and the best of SLSQP within the divergence."""
    generator = generators.get(name, **PARAMETERS[name])
    rewards = jnp.asarray(RNG.normal(size=(6, 5)))
    ref = jnp.log(jnp.asarray(RNG.dirichlet(np.ones(5), 6))).at[:, 4].set(-jnp.inf)
    budget = jnp.array([1e-9, 1e-3, 0.01, 0.03, 0.1, 40.0])
    found = compiled(lambda r, p, b: targets.tilted_to(r, p, b, generator))(rewards, ref, budget)
    assert found.converged.tolist() == [True] * 5 + [False]
    np.testing.assert_allclose(found.divergence[1:5], budget[1:5], rtol=1e-11)
    np.testing.assert_allclose(found.divergence[0], budget[0], rtol=1e-8)  # of rounded log-ratios
    # Out of reach: all mass on the best answer there is.
    assert jnp.exp(found.log_policy[5]).max() == pytest.approx(1)
    assert jnp.argmax(found.log_policy[5]) == jnp.argmax(rewards[5, :4])
    at_beta = targets.tilted(rewards[:5], ref[:5], found.beta[:5], generator).log_policy
    np.testing.assert_allclose(jnp.exp(at_beta), jnp.exp(found.log_policy[:5]), atol=1e-14)
    q, r = np.exp(np.asarray(ref[3, :4])), np.asarray(rewards[3, :4])
    q = q / q.sum()

    def divergence(p):
        return np.sum(q * np.asarray(generator.value(jnp.log(jnp.asarray(np.abs(p) / q)))))

    best = optimize.minimize(
        lambda p: -p @ r,
        q,
        method="SLSQP",
        bounds=[(1e-9, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "ineq", "fun": lambda p: budget[3] - divergence(p)},
        ],
        options={"ftol": 1e-12},
    )
    np.testing.assert_allclose(np.exp(found.log_policy[3, :4]), best.x, atol=1e-4)


def test_the_gradient_by_the_budget_is_the_temperature():
    """d E[r] / d budget = beta, the multiplier of the constraint."""
    rewards, ref = jnp.array([1.0, 0.2, -0.5, 0.3]), jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))

    def earned(budget):
        found = targets.tilted_to(rewards, ref, budget, KL)
        return jnp.sum(jnp.exp(found.log_policy) * rewards), found.beta

    slope, beta = compiled(jax.grad(earned, has_aux=True))(0.3)
    assert slope == pytest.approx(beta.item(), rel=1e-10)


def test_tilts_refuse():
    r, p = jnp.zeros(2), jnp.zeros(2)
    infinite = jnp.array([jnp.inf, 0.0])
    refused(ValueError, ["rewards", "finite"], lambda: targets.tilted(infinite, p, 1.0, KL))
    refused(ValueError, ["beta", "positive"], lambda: targets.tilted(r, p, 0.0, KL))
    refused(ValueError, ["rewards", "finite"], lambda: targets.tilted_to(infinite, p, 1.0, KL))
    refused(ValueError, ["budget", "positive"], lambda: targets.tilted_to(r, p, 0.0, KL))
    tv = generators.total_variation()
    refused(TypeError, ["generator", "total_variation"], lambda: targets.tilted_to(r, p, 1.0, tv))
    refused(ValueError, ["rewards", "ref_logits"], lambda: targets.tilted_to(r, p[:1], 1.0, KL))


# ------------------------------------------------------------------------------ energy-based models


def test_pointwise_is_the_product_and_the_preference_target_a_tilt():
    ref = RNG.dirichlet(np.ones(5), 3)
    scores = RNG.gamma(1.0, size=(3, 5))
    scores[:, 1] = 0
    ref[:, 2] = 0
    product = ref * scores
    with np.errstate(divide="ignore"):
        log_ref, log_scores = jnp.log(ref), jnp.asarray(np.log(scores))
    law = jax.jit(targets.pointwise)(log_ref, log_scores)
    np.testing.assert_allclose(np.exp(law), product / product.sum(1, keepdims=True), atol=1e-15)
    words = ["log_scores", "reference", "no mass"]
    refused(ValueError, words, lambda: targets.pointwise(log_ref, log_scores))
    rewards = jnp.asarray(RNG.normal(size=(3, 5)))
    np.testing.assert_allclose(
        jnp.exp(targets.pointwise(jnp.log(ref), jnp.where(ref > 0, rewards / 0.3, -jnp.inf))),
        jnp.exp(targets.tilted(rewards, jnp.log(ref), 0.3, KL).log_policy),
        atol=1e-15,
    )
    nothing, everything = jnp.full(2, -jnp.inf), jnp.full(2, jnp.inf)
    refused(ValueError, ["log_scores", "mass"], lambda: targets.pointwise(jnp.zeros(2), nothing))
    refused(ValueError, ["log_scores"], lambda: targets.pointwise(jnp.zeros(2), everything))


def test_moments_are_fitted_with_the_least_divergence():
    """Against SLSQP; a rare feature; features that depend on each other; moments out of reach."""
    ref = RNG.dirichlet(np.ones(6), 4)
    ref[1, :2] = [1e-12, 2e-12]
    ref[1] /= ref[1].sum()
    ref[0, 5] = 0
    features = RNG.integers(0, 2, size=(4, 6, 2)).astype(float)
    features[:, :2, 0], features[:, 2:, 0] = 1, 0
    features[0, :, 1] = [0.0, 1.0, 0.5, 2.0, 1.0, 3.0]
    features[2, :, 1] = 1 - features[2, :, 0]  # dependent
    moments = np.array([[0.4, 0.9], [0.5, 0.5], [0.3, 0.7], [1.2, 0.5]])
    features[1, :, 1] = [0, 1, 0, 1, 0, 1]
    fitted = compiled(jax.vmap(targets.with_moments))(jnp.log(ref), features, moments)
    assert fitted.converged.tolist() == [True, True, True, False]
    assert fitted.iterations[:3].max() < 30
    got = np.einsum("ba,bak->bk", np.exp(fitted.log_policy), features)
    np.testing.assert_allclose(got[:3], moments[:3], atol=1e-13)
    np.testing.assert_allclose(np.exp(fitted.log_policy).sum(1), 1, atol=1e-14)
    # The form: log p/ref is the coefficients on the features, up to a constant.
    for i in range(3):
        present = ref[i] > 0
        rest = np.asarray(fitted.log_policy[i] - jnp.log(ref[i]))[present]
        rest = rest - features[i][present] @ np.asarray(fitted.coefficients[i])
        assert np.ptp(rest) < 1e-11
        np.testing.assert_allclose(
            fitted.divergence[i], divergences.kl(fitted.log_policy[i], jnp.log(ref[i])), rtol=1e-12
        )
    q, phi = ref[0, :5], features[0, :5]
    best = optimize.minimize(
        lambda p: np.sum(p * np.log(p / q)),
        q,
        jac=lambda p: np.log(p / q) + 1,
        method="SLSQP",
        bounds=[(1e-12, 1)] * 5,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "eq", "fun": lambda p: p @ phi - moments[0]},
        ],
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(np.exp(fitted.log_policy[0, :5]), best.x, atol=1e-6)
    refused(
        ValueError,
        ["features", "[answers, moments]"],
        lambda: targets.with_moments(jnp.zeros(3), jnp.zeros((3, 2)), jnp.zeros(1)),
    )


# ---------------------------------------------------------------------------------- best of n draws


def test_best_of_n_is_the_enumeration_of_all_draws():
    rewards = [1.0, 3.0, 1.0, 2.0, 3.0]
    ref = [Fraction(k, 20) for k in (2, 3, 7, 0, 8)]
    for n in (1, 2, 3, 4):
        expected = fractions_of(best_by_enumeration(rewards, ref, n))
        law = compiled(targets.best_of_n)(
            jnp.array(rewards), jnp.log(fractions_of(ref)), jnp.asarray(float(n))
        )
        np.testing.assert_allclose(np.exp(law), expected, rtol=1e-14)
        worst = fractions_of(best_by_enumeration([-r for r in rewards], ref, n))
        law = compiled(targets.worst_of_n)(
            jnp.array(rewards), jnp.log(fractions_of(ref)), jnp.asarray(float(n))
        )
        np.testing.assert_allclose(np.exp(law), worst, rtol=1e-14)


def test_table_1_of_yang_et_al():
    """m = N = 2, p = (.2, .3, .5), r = (log 6, 0, log 2)."""
    p, r = np.array([0.2, 0.3, 0.5]), np.log([6.0, 1.0, 2.0])
    pairs = list(itertools.product(range(3), repeat=2))
    law = targets.best_of_n(
        jnp.array([r[a] + r[b] for a, b in pairs]),
        jnp.log(jnp.array([p[a] * p[b] for a, b in pairs])),
        2,
    )
    table = dict(zip(pairs, np.exp(law), strict=True))
    for pair, exact in {
        (0, 0): Fraction(49, 625),
        (0, 1): Fraction(21, 250),
        (0, 2): Fraction(43, 250),
        (1, 1): Fraction(81, 10000),
        (1, 2): Fraction(9, 125),
        (2, 2): Fraction(103, 400),
    }.items():
        assert table[pair] == pytest.approx(float(exact), rel=1e-14)
        assert table[pair[::-1]] == pytest.approx(float(exact), rel=1e-14)


def test_best_of_n_is_bonds_law():
    """`ref F^(N-1) sum_i (F_</F)^(i-1)`: the same with ties, written otherwise."""
    rewards, ref = np.array([0.0, 2.0, 2.0, 1.0, 5.0, 1.0]), RNG.dirichlet(np.ones(6))
    at_most = np.array([ref[rewards <= r].sum() for r in rewards])
    below = np.array([ref[rewards < r].sum() for r in rewards])
    for n in (2, 5, 17):
        bond = ref * at_most ** (n - 1) * sum((below / at_most) ** i for i in range(n))
        law = compiled(targets.best_of_n)(jnp.asarray(rewards), jnp.log(ref), jnp.asarray(float(n)))
        np.testing.assert_allclose(np.exp(law), bond, rtol=1e-13)


def test_best_of_n_where_floats_of_the_cdf_fail():
    """320 binary letters and n = e^(.11 * 320), against 500 digits: F^n is 1 or 0 in floats."""
    mpmath.mp.dps = 500
    m, share = 320, mpmath.mpf("0.2")
    masses = [mpmath.binomial(m, k) * share**k * (1 - share) ** (m - k) for k in range(m + 1)]
    log_ref = np.array([float(mpmath.log(mass)) for mass in masses])
    for log_n in (0.11 * m, 1.7 * m):
        n = mpmath.exp(mpmath.mpf(log_n))
        at_most, exact = mpmath.mpf(0), []
        for mass in masses:
            exact.append(-(at_most**n))
            at_most += mass
            exact[-1] = mpmath.log(exact[-1] + at_most**n)
        law = compiled(targets.best_of_n)(
            jnp.arange(m + 1.0), jnp.asarray(log_ref), jnp.exp(jnp.asarray(log_n))
        )
        exact = np.array([float(x) for x in exact])
        assert abs(np.exp(law).sum() - 1) < 1e-11
        np.testing.assert_allclose(law, exact, rtol=3e-12, atol=1e-11)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            naive = np.diff(np.cumsum(np.exp(log_ref)) ** float(n), prepend=0)
        assert not abs(naive - np.exp(exact)).max() < 1e-2  # why it is not done so


def test_best_of_n_batches_and_its_edges():
    """Rows with their own n, infinite rewards, real n; n = 1 is the reference."""
    rewards = jnp.asarray(np.stack([RNG.normal(size=5), [1.0, -np.inf, np.inf, 0, 0]]))
    ref = jnp.log(jnp.asarray(RNG.dirichlet(np.ones(5), 2)))
    law = compiled(targets.best_of_n)(rewards, ref, jnp.array([1.0, 3.5]))
    np.testing.assert_allclose(law[0], ref[0], atol=1e-15)
    p = np.exp(ref[1])
    np.testing.assert_allclose(np.exp(law[1, 2]), 1 - (1 - p[2]) ** 3.5, rtol=1e-13)
    np.testing.assert_allclose(np.exp(law[1, 1]), p[1] ** 3.5, rtol=1e-13)
    np.testing.assert_allclose(jnp.exp(law).sum(1), 1, atol=1e-14)
    small = compiled(targets.best_of_n)(rewards.astype(jnp.float32), ref.astype(jnp.float32), 4)
    assert small.dtype == jnp.float32
    refused(ValueError, ["n", "at least 1"], lambda: targets.best_of_n(rewards, ref, 0.5))
    nan = jnp.array([jnp.nan, 0.0])
    refused(ValueError, ["rewards", "NaN"], lambda: targets.best_of_n(nan, jnp.zeros(2), 2))


REFERENCE = {  # exact, bound and estimator of an independent computation
    (10, 4): (0.62883, 0.63629, 0.63487),
    (10, 64): (2.29345, 3.17451, 2.29461),
    (100, 4): (0.63622, 0.63629, 0.63629),
    (100, 64): (3.15760, 3.17451, 3.16667),
    (2, 4): (0.45936, 0.63629, 0.49912),
    (2, 64): (0.69315, 3.17451, 0.69315),
    (10, 1024): (2.30259, 5.93245, 2.30259),
}


@pytest.mark.parametrize("outcomes", [2, 10, 100])
def test_bound_and_estimator_of_beirami_et_al(outcomes):
    ref = jnp.full(outcomes, -jnp.log(float(outcomes)))
    for (size, n), expected in REFERENCE.items():
        if size != outcomes:
            continue
        law = compiled(targets.best_of_n)(jnp.arange(float(outcomes)), ref, jnp.asarray(float(n)))
        estimate = np.exp(law) @ compiled(targets.best_of_n_estimate)(ref, jnp.asarray(float(n)))
        numbers = divergences.kl(law, ref), targets.best_of_n_bound(n), estimate
        np.testing.assert_allclose(numbers, expected, atol=5.1e-6)


def test_the_estimator_at_its_ends():
    """Against mpmath, from certain answers to those of probability e^-900."""
    mpmath.mp.dps = 1000
    log_prob = [0.0, -1e-9, -0.3, -2.0, -30.0, -300.0, -900.0]
    for n in (1, 2.5, 1000):
        expected = []
        for lp in log_prob:
            e = mpmath.exp(mpmath.mpf(lp))
            a = (1 - e) ** n
            first = mpmath.log(n) + (n - 1) * mpmath.log(1 - e) - mpmath.mpf(n - 1) / n if a else 0
            expected.append(float(a * first + (1 - a) * mpmath.log((1 - a) / e)))
        got = compiled(targets.best_of_n_estimate)(jnp.array(log_prob), jnp.asarray(float(n)))
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
    assert targets.best_of_n_bound(1) == 0
    assert targets.best_of_n_bound(1 + 1e-6) == pytest.approx(5e-13, rel=1e-5)


def test_the_mean_of_a_pool_is_that_of_all_its_subsets():
    proxy = np.array([0.3, 1.0, 0.3, -2.0, 1.0, 1.0, 4.0])
    gold = RNG.normal(size=7)
    expected = []
    for n in range(1, 8):
        means = []
        for subset in itertools.combinations(range(7), n):
            best = [i for i in subset if proxy[i] == max(proxy[list(subset)])]
            means.append(np.mean(gold[best]))
        expected.append(np.mean(means))
    got = compiled(targets.best_of_n_mean)(jnp.asarray(proxy), jnp.asarray(gold), jnp.arange(1, 8))
    np.testing.assert_allclose(got, expected, rtol=1e-13)
    short = jnp.ones(3), jnp.ones(3)
    refused(ValueError, ["n", "pool, 3"], lambda: targets.best_of_n_mean(*short, 4))


def test_the_mean_of_a_large_pool():
    """12,500 answers, n up to all: a reward of ranks has E = n (M + 1)/(n + 1) exactly."""
    size = 12500
    gold = jnp.asarray(RNG.permutation(size) + 1.0)
    n = jnp.array([1, 2, 100, 6000, 12499, 12500])
    got = compiled(targets.best_of_n_mean)(gold, gold, n)
    np.testing.assert_allclose(got, n * (size + 1) / (n + 1), rtol=1e-12)
    assert np.isnan(compiled(targets.best_of_n_mean)(gold, gold, n + 1)[-1])


# -------------------------------------------------------------------------------- optimal win rates


def test_win_rates_are_integrals_and_stable():
    mpmath.mp.dps = 60
    cs = [1e-8, 1e-3, 0.2499, 0.25, 1.0, 5.0, 50.0, 2000.0]
    got = compiled(targets.win_rate_optimal)(jnp.array(cs))
    for i, c in enumerate(map(mpmath.mpf, cs)):
        mass = mpmath.expm1(c)
        win = ((c - 1) * mpmath.exp(c) + 1) / (c * mass)
        assert got.win[i] == pytest.approx(float(win), rel=1e-14)
        kl = c * win - mpmath.log(mass / c)
        assert got.divergence[i] == pytest.approx(float(kl), rel=3e-14)
    density = lambda u: 5 * np.exp(5 * u) / np.expm1(5)
    win = integrate.quad(lambda u: u * density(u), 0, 1)[0]
    kl = integrate.quad(lambda u: density(u) * np.log(density(u)), 0, 1)[0]
    np.testing.assert_allclose((got.win[5], got.divergence[5]), (win, kl), rtol=1e-12)


def test_bonbons_table():
    """n, then c, optimal win rate, gap to best of n, beta*: an independent computation."""
    table = np.array([
        (2, 2.288641, 0.675907, 0.009240, 0.5),
        (3, 3.727466, 0.756368, 0.006368, 0.166667),
        (4, 4.916908, 0.803996, 0.003996, 0.090909),
        (5, 6.001893, 0.835866, 0.002533, 0.06),
        (8, 9.054541, 0.889675, 0.000786, 0.027548),
        (10, 11.049593, 0.909515, 0.000424, 0.019638),
    ])  # fmt: skip
    n = jnp.asarray(table[:, 0])
    found = compiled(targets.win_rate_optimal_to)(targets.best_of_n_bound(n))
    assert found.converged.all()
    assert found.residual.max() < 1e-13
    columns = found.c, found.win, found.win - n / (n + 1), targets.bonbon_beta(n)
    np.testing.assert_allclose(np.stack(columns, 1), table[:, 1:], atol=5.1e-7)
    tiny = compiled(targets.win_rate_optimal_to)(jnp.array([1e-14, 1e-6, 1e-3, 1, 30, 500.0]))
    assert tiny.converged.all()
    refused(ValueError, ["n", "above 1"], lambda: targets.bonbon_beta(1))
    refused(ValueError, ["c", "positive"], lambda: targets.win_rate_optimal(0.0))


# -------------------------------------------------------------------------------------- asymptotics


def test_cumulants_are_derivatives_of_the_generating_function():
    mpmath.mp.dps = 40
    ref, rewards, t = RNG.dirichlet(np.ones(5)), RNG.normal(size=5), 0.7
    function = lambda t: mpmath.log(
        sum(mpmath.mpf(q) * mpmath.exp(t * r) for q, r in zip(ref, rewards, strict=True))
    )
    derivatives = [float(mpmath.diff(function, t, k)) for k in (1, 2, 3, 4)]
    target = targets.tilted(jnp.asarray(rewards), jnp.log(ref), 1 / t, KL)
    np.testing.assert_allclose(
        targets.cumulants(jnp.asarray(rewards), target.log_policy), derivatives, rtol=1e-10
    )
    assert t * target.normaliser == pytest.approx(float(function(t)), rel=1e-13)


def test_the_renyi_cross_entropy():
    mpmath.mp.dps = 40
    p, q = RNG.dirichlet(np.ones(4), 2)
    orders = np.array([-3.0, 0.5, 1 - 1e-9, 1.0, 1 + 1e-7, 2.0, 60.0])
    expected = []
    for t in map(mpmath.mpf, orders):
        if t == 1:
            expected.append(-(p @ np.log(q)))
        else:
            total = sum(mpmath.mpf(a) * mpmath.mpf(b) ** (t - 1) for a, b in zip(p, q, strict=True))
            expected.append(float(mpmath.log(total / mpmath.fsum(map(mpmath.mpf, p))) / (1 - t)))
    same = lambda x: jnp.broadcast_to(jnp.log(x), (7, 4))
    got = compiled(targets.renyi_cross_entropy)(same(p), same(q), jnp.asarray(orders))
    np.testing.assert_allclose(got, expected, rtol=1e-13)
    zero = jnp.log(jnp.array([[0.5, 0.5, 0.0, 0.0]] * 7))
    got = compiled(targets.renyi_cross_entropy)(same(p), zero, jnp.asarray(orders))
    assert np.isinf(got).tolist() == [t <= 1 for t in orders]
    assert got[5] == pytest.approx(-np.log((p[0] + p[1]) / 2))


def test_the_rate_is_the_legendre_transform():
    """Cramér: `J(x) = sup_s (s x - log sum ref e^(s r))`."""
    ref, rewards = RNG.dirichlet(np.ones(5)), RNG.normal(size=5)
    levels = np.quantile(rewards, [0.3, 0.6, 0.9])
    found = compiled(jax.vmap(targets.rate, (None, None, 0)))(
        jnp.asarray(rewards), jnp.log(ref), jnp.asarray(levels)
    )
    assert found.converged.all()
    for level, measured in zip(levels, found.divergence, strict=True):
        dual = optimize.minimize_scalar(
            lambda s, x=level: np.log(ref @ np.exp(s * (rewards - x))), bracket=(-1, 1), tol=1e-10
        )
        assert measured == pytest.approx(-dual.fun, rel=1e-10)
