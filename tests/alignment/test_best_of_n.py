import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate

from jdiv import divergences, generators
from jdiv.alignment import best_of_n
from tests.checks import refused

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


# ---------------------------------------------------------------------------------- best of n draws


def test_best_of_n_is_the_enumeration_of_all_draws():
    rewards = [1.0, 3.0, 1.0, 2.0, 3.0]
    ref = [Fraction(k, 20) for k in (2, 3, 7, 0, 8)]
    for n in (1, 2, 3, 4):
        expected = fractions_of(best_by_enumeration(rewards, ref, n))
        law = compiled(best_of_n.best_of_n)(
            jnp.array(rewards), jnp.log(fractions_of(ref)), jnp.asarray(float(n))
        )
        np.testing.assert_allclose(np.exp(law), expected, rtol=1e-14)
        worst = fractions_of(best_by_enumeration([-r for r in rewards], ref, n))
        law = compiled(best_of_n.worst_of_n)(
            jnp.array(rewards), jnp.log(fractions_of(ref)), jnp.asarray(float(n))
        )
        np.testing.assert_allclose(np.exp(law), worst, rtol=1e-14)


def test_table_1_of_yang_et_al():
    """m = N = 2, p = (.2, .3, .5), r = (log 6, 0, log 2)."""
    p, r = np.array([0.2, 0.3, 0.5]), np.log([6.0, 1.0, 2.0])
    pairs = list(itertools.product(range(3), repeat=2))
    law = best_of_n.best_of_n(
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
    rewards = np.array([0.0, 2.0, 2.0, 1.0, 5.0, 1.0])
    ref = np.random.default_rng(1).dirichlet(np.ones(6))
    at_most = np.array([ref[rewards <= r].sum() for r in rewards])
    below = np.array([ref[rewards < r].sum() for r in rewards])
    for n in (2, 5, 17):
        bond = ref * at_most ** (n - 1) * sum((below / at_most) ** i for i in range(n))
        law = compiled(best_of_n.best_of_n)(
            jnp.asarray(rewards), jnp.log(ref), jnp.asarray(float(n))
        )
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
        law = compiled(best_of_n.best_of_n)(
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
    law = compiled(best_of_n.best_of_n)(rewards, ref, jnp.array([1.0, 3.5]))
    np.testing.assert_allclose(law[0], ref[0], atol=1e-15)
    p = np.exp(ref[1])
    np.testing.assert_allclose(np.exp(law[1, 2]), 1 - (1 - p[2]) ** 3.5, rtol=1e-13)
    np.testing.assert_allclose(np.exp(law[1, 1]), p[1] ** 3.5, rtol=1e-13)
    np.testing.assert_allclose(jnp.exp(law).sum(1), 1, atol=1e-14)
    small = compiled(best_of_n.best_of_n)(rewards.astype(jnp.float32), ref.astype(jnp.float32), 4)
    assert small.dtype == jnp.float32
    refused(ValueError, ["n", "at least 1"], lambda: best_of_n.best_of_n(rewards, ref, 0.5))
    nan = jnp.array([jnp.nan, 0.0])
    refused(ValueError, ["rewards", "NaN"], lambda: best_of_n.best_of_n(nan, jnp.zeros(2), 2))


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
        law = compiled(best_of_n.best_of_n)(jnp.arange(float(outcomes)), ref, jnp.asarray(float(n)))
        estimate = np.exp(law) @ compiled(best_of_n.kl_estimate)(ref, jnp.asarray(float(n)))
        numbers = divergences.kl(law, ref), best_of_n.kl_bound(n), estimate
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
        got = compiled(best_of_n.kl_estimate)(jnp.array(log_prob), jnp.asarray(float(n)))
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
    assert best_of_n.kl_bound(1) == 0
    assert best_of_n.kl_bound(1 + 1e-6) == pytest.approx(5e-13, rel=1e-5)


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
    got = compiled(best_of_n.pool_mean)(jnp.asarray(proxy), jnp.asarray(gold), jnp.arange(1, 8))
    np.testing.assert_allclose(got, expected, rtol=1e-13)
    short = jnp.ones(3), jnp.ones(3)
    refused(ValueError, ["n", "pool, 3"], lambda: best_of_n.pool_mean(*short, 4))


def test_the_mean_of_a_large_pool():
    """12,500 answers, n up to all: a reward of ranks has E = n (M + 1)/(n + 1) exactly."""
    size = 12500
    gold = jnp.asarray(RNG.permutation(size) + 1.0)
    n = jnp.array([1, 2, 100, 6000, 12499, 12500])
    got = compiled(best_of_n.pool_mean)(gold, gold, n)
    np.testing.assert_allclose(got, n * (size + 1) / (n + 1), rtol=1e-12)
    assert np.isnan(compiled(best_of_n.pool_mean)(gold, gold, n + 1)[-1])


# -------------------------------------------------------------------------------- optimal win rates


def test_win_rates_are_integrals_and_stable():
    mpmath.mp.dps = 60
    cs = [1e-8, 1e-3, 0.2499, 0.25, 1.0, 5.0, 50.0, 2000.0]
    got = compiled(best_of_n.win_rate_optimal)(jnp.array(cs))
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
    found = compiled(best_of_n.win_rate_optimal_to)(best_of_n.kl_bound(n))
    assert found.converged.all()
    assert found.residual.max() < 1e-13
    columns = found.c, found.win, found.win - n / (n + 1), best_of_n.bonbon_beta(n)
    np.testing.assert_allclose(np.stack(columns, 1), table[:, 1:], atol=5.1e-7)
    tiny = compiled(best_of_n.win_rate_optimal_to)(jnp.array([1e-14, 1e-6, 1e-3, 1, 30, 500.0]))
    assert tiny.converged.all()
    refused(ValueError, ["n", "above 1"], lambda: best_of_n.bonbon_beta(1))
    refused(ValueError, ["c", "positive"], lambda: best_of_n.win_rate_optimal(0.0))
