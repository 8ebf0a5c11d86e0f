import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize

from jdiv import generators
from jdiv.alignment import best_of_n, inference_aware, tilts
from tests.checks import refused

KL = generators.kl()
RNG = np.random.default_rng(0)
REWARDS = np.array([1.0, 3.0, 1.0, 2.0, 3.0])
POLICY, REF = RNG.dirichlet(np.ones(5), 2)


def both(sign):
    """Win rate and transform of the best (1) or the worst (-1)."""
    if sign > 0:
        return inference_aware.best_of_n_win_rate, inference_aware.best_of_n_transform
    return inference_aware.worst_of_n_win_rate, inference_aware.worst_of_n_transform


def test_the_calibrated_reward_counts_ties_half():
    expected = [REF[r > REWARDS].sum() + REF[r == REWARDS].sum() / 2 for r in REWARDS]
    calibrated = jax.jit(inference_aware.calibrated)
    got = np.asarray(calibrated(REWARDS, np.log(REF)))
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert REF @ got == pytest.approx(0.5)
    u, log_ref = (np.asarray(x) for x in inference_aware.quantiles(16))
    np.testing.assert_allclose(calibrated(u, log_ref), u, rtol=1e-12)
    assert np.exp(log_ref).sum() == pytest.approx(1, rel=1e-14)


def test_transforms():
    u = jnp.array([0.25, 0.5])
    np.testing.assert_allclose(inference_aware.log_transform(u), np.log(u))
    np.testing.assert_allclose(inference_aware.exponential_transform(u, 5.0), np.exp(5 * u))
    np.testing.assert_allclose(inference_aware.exponential_transform(u, -5.0), -np.exp(-5 * u))
    refused(ValueError, ["cells", "2"], lambda: inference_aware.quantiles(1))


@pytest.mark.parametrize("sign", [1, -1])
def test_win_rates_are_those_of_all_pairs_of_draws(sign):
    rate, _ = both(sign)
    for n in (1, 2, 3):
        won = 0.0
        laws = []
        for law in (POLICY, REF):
            best = {}
            for draw in itertools.product(range(5), repeat=n):
                reward = max(sign * REWARDS[list(draw)])
                best[reward] = best.get(reward, 0) + np.prod(law[list(draw)])
            laws.append(best)
        for mine, p in laws[0].items():
            for yours, q in laws[1].items():
                won += p * q * (0.5 + 0.5 * np.sign(mine - yours) * sign)
        got = rate(jnp.asarray(REWARDS), jnp.log(POLICY), jnp.log(REF), n)
        assert got == pytest.approx(float(won), rel=1e-13)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_transform_is_the_slope_of_the_win_rate(sign):
    """Central differences along directions that keep the mass."""
    rate, transform = both(sign)
    rewards, ref = jnp.asarray(REWARDS), jnp.log(REF)
    directions = np.eye(5) - np.roll(np.eye(5), 1, axis=1)

    @jax.jit
    def differences(n):
        h = 1e-6
        win = jax.vmap(lambda p: rate(rewards, jnp.log(p), ref, n))
        ahead, back = (POLICY[None] + s * h * jnp.asarray(directions) for s in (1, -1))
        slope = transform(rewards, jnp.log(POLICY), ref, n)
        return (win(ahead) - win(back)) / (2 * h), slope

    for n in (1.0, 2.0, 4.5):
        measured, slope = differences(n)
        np.testing.assert_allclose(directions @ slope, measured, atol=1e-8)
    # The quantile less that of the best (or the worst) answer, for a single draw.
    single = differences(1.0)[1] - inference_aware.calibrated(rewards, ref)
    np.testing.assert_allclose(single, single[0], atol=1e-14)


def test_zeros_of_the_policy_and_batches(same_everywhere):
    rewards = jnp.asarray(RNG.normal(size=(8, 5)))
    policy = np.log(RNG.dirichlet(np.ones(5), 8))
    policy[:, 1] = -np.inf
    policy, ref = jnp.asarray(policy), jnp.asarray(np.log(RNG.dirichlet(np.ones(5), 8)))
    n = jnp.array([1.0, 1.5, 2, 3, 4, 8, 16, 1e4])

    def numbers(*arrays):
        return tuple(f(*arrays) for sign in (1, -1) for f in both(sign))

    same_everywhere(numbers, rewards, policy, ref, n)
    assert np.isfinite(numbers(rewards, policy, ref, n)[1]).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_on_quantiles_they_are_the_integrals(sign):
    """A policy of density 3 u^2 and law u^3, N = 4, by quadrature."""
    u, ref = inference_aware.quantiles(800)
    log_policy = ref + 2 * jnp.log(u)
    rate, transform = both(sign)
    if sign > 0:
        won = 1 - 4 * integrate.quad(lambda v: v**12 * v**3, 0, 1)[0]
        at = lambda x: -16 * integrate.quad(lambda v: v**9 * v**3, x, 1)[0]
    else:
        won = 4 * integrate.quad(lambda v: (1 - v**3) ** 4 * (1 - v) ** 3, 0, 1)[0]
        at = lambda x: -16 * integrate.quad(lambda v: ((1 - v**3) * (1 - v)) ** 3, x, 1)[0]
    assert rate(u, log_policy, ref, 4) == pytest.approx(won, abs=4 / 800**2)
    slope = transform(u, log_policy, ref, 4)
    got = slope[600] - slope[120]
    assert got == pytest.approx(at(u[600]) - at(u[120]), abs=1e-5)


@functools.cache
def solved(sign):
    """Optima at divergences and at temperatures, and what each of them wins."""
    u, ref = inference_aware.quantiles(200)
    rate, transform = both(sign)

    @jax.jit
    @jax.vmap
    def solve(n, budget):
        slope = lambda log_policy: transform(u, log_policy, ref, n)
        found = inference_aware.aligned_to(slope, ref, budget, generator=KL)
        again = inference_aware.aligned(slope, ref, found.beta, generator=KL)
        return found, again, rate(u, found.log_policy, ref, n)

    n, budget = jnp.array([1.0, 2, 4, 4]), jnp.array([0.5, 0.5, 0.5, 2.0])
    return solve(n, budget)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_fixed_point_is_stationary(sign):
    u, ref = inference_aware.quantiles(200)
    _, transform = both(sign)
    found, again, _ = solved(sign)
    assert found.converged.all()
    assert again.converged.all()
    np.testing.assert_allclose(found.divergence, [0.5, 0.5, 0.5, 2.0], rtol=1e-11)
    np.testing.assert_allclose(np.exp(found.log_policy), np.exp(again.log_policy), atol=1e-9)

    @jax.jit
    @jax.vmap
    def tilt(n, log_policy, beta):
        slope = transform(u, log_policy, ref, n)
        return tilts.tilted(slope, ref, beta, generator=KL).log_policy

    tilted = tilt(np.array([1.0, 2, 4, 4]), found.log_policy, found.beta)
    np.testing.assert_allclose(np.exp(tilted), np.exp(found.log_policy), atol=1e-10)


@pytest.mark.parametrize("sign", [1, -1])
def test_win_rates_of_the_fixed_point(sign):
    """An independent computation, to the digits that 200 cells give; BoNBoN's optimum at N = 1."""
    *_, win = solved(sign)
    expected = (0.7737, 0.8156, 0.8733, 0.9838) if sign > 0 else (0.7737, 0.8603, 0.9479, 0.9999)
    np.testing.assert_allclose(win, expected, atol=1e-4)  # 4e-5 of the cells, 5e-5 of the digits
    best = best_of_n.win_rate_optimal_to(jnp.array([0.5])).win
    np.testing.assert_allclose(win[0], best[0], atol=2e-5)


def test_no_policy_wins_more():
    """Six answers with ties, best of three, by SLSQP from several starts; another divergence."""
    rewards = np.array([0.0, 1.0, 1.0, 2.0, 3.0, 4.0])
    ref = RNG.dirichlet(np.ones(6))
    for generator in (KL, generators.pearson_chi2()):

        def slope(log_policy):
            return inference_aware.best_of_n_transform(
                jnp.asarray(rewards), log_policy, jnp.log(ref), 3
            )

        found = jax.jit(lambda g: inference_aware.aligned(slope, jnp.log(ref), 0.3, generator=g))(
            generator
        )
        assert found.converged
        at_most = (rewards[:, None] >= rewards[None]).astype(float)
        below = (rewards[:, None] > rewards[None]).astype(float)
        share = (at_most - below) / (at_most - below).sum(1, keepdims=True)

        def law(p, at_most=at_most, below=below, share=share):
            return np.diag(share) * ((at_most @ p) ** 3 - (below @ p) ** 3)

        opponent = (at_most + below) / 2 @ law(ref)

        def objective(p, opponent=opponent, generator=generator):
            u = p / ref
            cost = u * np.log(u) - u + 1 if generator is KL else (u - 1) ** 2
            return -(law(p) @ opponent - 0.3 * ref @ cost)

        best = min(
            (
                optimize.minimize(
                    objective,
                    start,
                    method="SLSQP",
                    bounds=[(1e-10, 1)] * 6,
                    constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}],
                    options={"ftol": 1e-14},
                )
                for start in (ref, np.full(6, 1 / 6))
            ),
            key=lambda found: found.fun,
        )
        np.testing.assert_allclose(np.exp(found.log_policy), best.x, atol=1e-5)
