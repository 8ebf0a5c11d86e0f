"""Index policies: bounds against 40-digit roots, runs against a plain replay, edges, refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.optimize

from jdiv.bandits import stochastic
from tests.checks import refused

HORIZON = 80
MEANS = (0.3, 0.0, 0.55, 1.0, 0.8)
POLICIES = {
    "explore_first": stochastic.explore_first(HORIZON),
    "epsilon_greedy": stochastic.epsilon_greedy(),
    "successive_elimination": stochastic.successive_elimination(HORIZON),
    "ucb1": stochastic.ucb1(),
    "ucb1, 1/2": stochastic.ucb1(0.5),
    "kl_ucb": stochastic.kl_ucb(),
    "kl_ucb, c = 3": stochastic.kl_ucb(c=3.0),
    "kl_ucb, 10 log t": stochastic.kl_ucb(confidence=10.0),
    "thompson": stochastic.thompson(),
}


def bernoulli_kl(p, q):
    return sum(a * mp.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


# ------------------------------------------------------------------------------------ upper bounds


def bisected(mean, budget):
    """The root, with 40 digits."""
    with mp.workdps(40):
        mean, budget = mp.mpf(mean), mp.mpf(budget)
        low, high = mean, mp.mpf(1)
        for _ in range(130):
            middle = (low + high) / 2
            inside = middle < 1 and bernoulli_kl(mean, middle) <= budget
            low, high = (middle, high) if inside else (low, middle)
        return low


def test_kl_upper_bound_is_the_root():
    means = [0.0, 1e-12, 1e-6, 1e-3, 0.01, 0.3, 0.5, 0.9, 0.99, 0.9999, 1 - 1e-9, 1.0]
    budgets = [1e-9, 1e-4, 0.0017, 0.03, 0.5, 3.0, 30.0]
    mean, budget = (np.ravel(x) for x in np.meshgrid(means, budgets))
    q = np.asarray(jax.jit(stochastic.kl_upper_bound)(mean, budget))
    roots = np.array([float(bisected(*pair)) for pair in zip(mean, budget, strict=True)])
    np.testing.assert_allclose(q, roots, rtol=1e-14)
    single = jax.jit(stochastic.kl_upper_bound)(mean.astype(np.float32), budget.astype(np.float32))
    assert single.dtype == jnp.float32
    # The root of the rounded mean: next to 1 that is another one.
    within = mean < 0.99999
    np.testing.assert_allclose(np.asarray(single)[within], roots[within], rtol=4e-6)


def test_kl_upper_bound_at_the_ends():
    budget = jnp.array([0.0, 1e-20, 1e-3, 1.0, 50.0, jnp.inf])
    bound = jax.jit(stochastic.kl_upper_bound)
    zero, one, half = (bound(jnp.full(6, x), budget) for x in (0.0, 1.0, 0.5))
    np.testing.assert_allclose(zero, -np.expm1(-np.asarray(budget)), rtol=1e-14)
    np.testing.assert_array_equal(one, 1)
    assert half[0] == 0.5
    assert half[-1] == 1
    assert np.all(np.diff(half) >= 0)
    assert half[-2] == 1


def test_upper_logit_where_the_bound_rounds_to_1():
    """There `kl = (1 - mean) y - H`, and bounds that are all 1 still have an order."""
    budget = jnp.array([60.0, 60.5, 80.0])
    logit = jax.jit(stochastic.kl_upper_logit)(jnp.full(3, 0.25), budget)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    np.testing.assert_allclose(logit, (np.asarray(budget) + entropy) / 0.75, rtol=1e-14)


def test_lai_robbins():
    """2.25 and 17.45 are also the numbers of an independent recomputation."""
    constant = jax.jit(stochastic.lai_robbins)
    ten = (0.1, *[0.05] * 3, *[0.02] * 3, *[0.01] * 3)
    for means, printed in (((0.9, 0.8), 2.25), (ten, 17.45)):
        with mp.workdps(30):
            best = mp.mpf(max(means))
            exact = sum((best - m) / bernoulli_kl(mp.mpf(m), best) for m in means if m < best)
        assert constant(jnp.array(means)).item() == pytest.approx(float(exact), rel=1e-13)
        assert round(constant(jnp.array(means)).item(), 2) == printed
    assert constant(jnp.array([0.8, 0.8])) == 0
    assert constant(jnp.array([0.4, 1.0])) == 0


# -------------------------------------------------------------------------------------------- runs


def replayed(name, key):
    """The same run, one pull after another, with the indices written down again."""
    of_rewards, of_policy = jax.random.split(key)
    uniforms = np.asarray(jax.random.uniform(of_rewards, (HORIZON,)))
    keys = jax.random.split(of_policy, HORIZON)
    coins, random_arms = _draws(keys)
    pulls, sums, arms = np.zeros(len(MEANS)), np.zeros(len(MEANS)), len(MEANS)
    chosen, regret = None, []
    for step in range(HORIZON):
        t = step + 1
        unseen = np.flatnonzero(pulls == 0)
        mean = sums / np.maximum(pulls, 1)
        if name == "explore_first":
            each = math.ceil((HORIZON / arms) ** (2 / 3) * math.log(HORIZON) ** (1 / 3))
            if step == each * arms:
                chosen = np.argmax(mean)
            arm = step % arms if chosen is None else chosen
        elif name == "epsilon_greedy":
            explores = coins[step] < t ** (-1 / 3) * (arms * math.log(t)) ** (1 / 3)
            greedy = unseen[0] if len(unseen) else np.argmax(mean)
            arm = random_arms[step] if explores else greedy
        elif name == "successive_elimination":
            radius = [math.sqrt(2 * math.log(HORIZON) / n) if n else math.inf for n in pulls]
            floor = max(mean - radius)
            active = [a for a in range(arms) if mean[a] + radius[a] >= floor]
            arm = min(active, key=lambda a: pulls[a])
        elif name == "thompson":
            arm = np.argmax(_beta(keys[step], 1 + sums, 1 + pulls - sums))
        elif len(unseen):
            arm = unseen[0]
        elif name.startswith("ucb1"):
            factor = 0.5 if "1/2" in name else 2
            arm = np.argmax(mean + np.sqrt(factor * math.log(t) / pulls))
        else:
            budget = math.log(t) + ("c = 3" in name) * 3 * math.log(max(math.log(t), 1))
            budget *= 10 if "10" in name else 1
            arm = np.argmax([upper(m, budget / n) for m, n in zip(mean, pulls, strict=True)])
        pulls[arm] += 1
        sums[arm] += uniforms[step] < MEANS[arm]
        regret.append(max(MEANS) - MEANS[arm])
    return np.cumsum(regret), pulls


_beta = jax.jit(jax.random.beta)


@jax.jit
@jax.vmap
def _draws(key):
    """The coin and the arm of epsilon-greedy."""
    of_coin, of_arm = jax.random.split(key)
    return jax.random.uniform(of_coin), jax.random.randint(of_arm, (), 0, len(MEANS))


@functools.cache
def upper(mean, budget):
    """The logit of the bound by a bracketing solver, with the divergence written down again."""
    if mean == 1:
        return math.inf
    if budget == 0:
        return math.log(mean / (1 - mean)) if mean else -math.inf
    entropy = -sum(p * math.log(p) for p in (mean, 1 - mean) if p)

    def excess(y):
        return np.logaddexp(0, y) - mean * y - entropy - budget

    low = math.log(mean / (1 - mean)) if mean else -50
    return scipy.optimize.brentq(excess, low, 1e4, xtol=1e-13, rtol=1e-14)


@pytest.mark.parametrize("name", POLICIES)
def test_runs_are_the_plain_replay(name):
    play = jax.jit(lambda key: stochastic.play(POLICIES[name], jnp.array(MEANS), HORIZON, key))
    for seed in range(2):
        run = play(jax.random.key(seed))
        regret, pulls = replayed(name, jax.random.key(seed))
        np.testing.assert_allclose(run.regret, regret, atol=1e-12)
        np.testing.assert_array_equal(run.pulls, pulls)


def test_regret_is_gaps_times_pulls():
    means = jnp.array([0.5, 0.2, 0.9])
    keys = jax.random.split(jax.random.key(3), 8)
    run = jax.jit(jax.vmap(lambda key: stochastic.play(stochastic.kl_ucb(), means, 300, key)))(keys)
    assert run.regret.shape == (8, 300)
    np.testing.assert_array_equal(run.pulls.sum(1), 300)
    np.testing.assert_allclose(run.regret[:, -1], run.pulls @ (0.9 - means), rtol=1e-12)
    assert np.all(np.diff(run.regret, axis=1) >= 0)
    np.testing.assert_array_equal(run.pulls.argmax(1), 2)


def test_rewards_have_their_means():
    """A policy can only tell by its choice what it saw: here whether 1000 rewards sum up."""

    def tells(state, t, key):
        right = jnp.abs(state.rewards - jnp.array([100.0, 700.0])) < 5 * jnp.array([9.5, 14.5])
        return jnp.where(t <= 2000, jnp.argmin(state.pulls), jnp.all(right).astype(int))

    play = jax.jit(
        jax.vmap(lambda key: stochastic.play(tells, jnp.array([0.1, 0.7]), 2001, key).pulls)
    )
    pulls = play(jax.random.split(jax.random.key(0), 20))
    np.testing.assert_array_equal(pulls, np.broadcast_to([1000, 1001], (20, 2)))


def test_half_precision_and_single():
    key = jax.random.key(0)
    run = stochastic.play(stochastic.ucb1(), jnp.array([0.5, 0.25], jnp.bfloat16), 20, key)
    assert run.regret.dtype == jnp.float32
    assert run.pulls.sum() == 20


def test_refusals():
    key = jax.random.key(0)
    for error, words, means, horizon in (
        (TypeError, ["means", "int"], jnp.array([0, 1]), 10),
        (ValueError, ["means", "vector", "(2, 1)"], jnp.ones((2, 1)), 10),
        (ValueError, ["means", "(0,)"], jnp.ones(0), 10),
        (ValueError, ["horizon", "at least 1", "0"], jnp.ones(2), 0),
    ):
        refused(
            error, words, lambda m=means, h=horizon: stochastic.play(stochastic.ucb1(), m, h, key)
        )
    refused(TypeError, ["mean", "int"], lambda: stochastic.kl_upper_bound(jnp.array([1]), 1.0))
