"""Streams: plain simulations without noise, closed forms, horizons that are too short, refusals."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jdiv.bandits import streaming
from jdiv.bandits.streaming import ReleaseRules
from tests.checks import refused

ARMS, HORIZON = 60, 1e21
"""Sample means of so many pulls are within 1e-6 of the mean, and arms are 0.013 apart."""
ORDERS = np.stack(
    [np.random.default_rng(seed).permutation(np.linspace(0.1, 0.9, ARMS)) for seed in range(4)]
)
# The best arm comes last: it is not in the highest level.
ORDERS[0] = np.roll(ORDERS[0], ARMS - 1 - ORDERS[0].argmax())
RULES = [ReleaseRules(*which) for which in itertools.product((False, True), repeat=3)]


def stacked(arms, horizon, height=4):
    towers = [make(arms, horizon) for make in streaming.TOWERS.values()]
    return jax.tree.map(lambda *x: jnp.stack(x), *(streaming.pad_levels(t, height) for t in towers))


# ---------------------------------------------------------------------------------------- towers


def climbed(levels, means, horizon, rules):
    """The tower without noise, with lists and loops."""
    pulls, room = (np.asarray(x).tolist() for x in levels)
    floors = [{"arm": None, "benchmark": -math.inf, "visits": 0} for _ in pulls]
    best, regret, used = max(means), 0.0, 0.0
    for arm in means:
        for level, floor in enumerate(floors):
            first = floor["arm"] is None
            charged = floor["arm"] if rules.charge_stored and not first else arm
            regret += pulls[level] * (best - charged)
            used += pulls[level]
            floor["visits"] += 1
            keeps = rules.keep_benchmark and level == 0
            if first or arm > floor["benchmark"]:
                floor["arm"] = arm
                floor["benchmark"] = max(arm, floor["benchmark"]) if keeps else arm
            if floor["visits"] < room[level]:
                break
            arm = floor["arm"]
            floor.update(arm=None, visits=0)
            if not keeps:
                floor["benchmark"] = -math.inf
    stored = [floor["arm"] for floor in floors if floor["arm"] is not None]
    if len(stored) > 1:
        regret += pulls[0] * sum(best - arm for arm in stored)
        used += pulls[0] * len(stored)
    chosen = stored[-1] if rules.take_highest else max(stored)
    return regret + (horizon - used) * (best - chosen), used, best - chosen


def test_towers_are_the_plain_simulation():
    """All towers in one stack, all rules, four orders."""
    rules = jax.tree.map(lambda *x: jnp.array(x), *RULES)
    run = lambda tower, means, rules: streaming.tower(
        tower, means, HORIZON, jax.random.key(0), rules=rules
    )
    for axes in ((None, None, 0), (None, 0, None), (0, None, None)):
        run = jax.vmap(run, axes)
    outcome = jax.jit(run)(stacked(ARMS, HORIZON), ORDERS, rules)
    found_worse = False
    for i, make in enumerate(streaming.TOWERS.values()):
        for j, means in enumerate(ORDERS.tolist()):
            for k, rule in enumerate(RULES):
                expected = climbed(make(ARMS, HORIZON), means, HORIZON, rule)
                found = [x[i, j, k].item() for x in outcome]
                np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
                found_worse |= found[2] > 0.01
                # The best is found unless the highest level is taken for it.
                assert rule.take_highest or found[2] == 0
    assert found_worse


def test_levels():
    """Pulls in units of 1/eps^2, and room, by hand."""
    for name, arms, pulls, room in (
        ("uniform", 8, [math.log(1e6) ** (1 / 3)], []),
        ("naive", 8, [math.log(8)], []),
        ("log", 200, [1, 1.2, 1.44, 1.728, 2.0736], [7, 8, 8, 8]),
        ("log-log", 200, [1, math.log(200)], [11]),
        ("log-log", 50000, [1, 1.2, math.log(50000)], [11, 12]),
        ("log-star", 200, [1, 4, 16], [5, 6]),
        ("log-star", 10**6, [1, 4, 16, 65536], [5, 6, 4098]),
    ):
        levels = streaming.TOWERS[name](arms, 1e6)
        unit = (1e6 / arms) ** (2 / 3)
        np.testing.assert_allclose(levels.pulls / unit, pulls, rtol=1e-12)
        np.testing.assert_array_equal(levels.capacity, [*room, math.inf])


def test_uniform_exploration_costs_its_pulls():
    """Without noise `n sum of gaps`, and nothing more: one stored arm is not compared again."""
    means = jnp.array(ORDERS[0])
    levels = streaming.uniform(ARMS, HORIZON)
    outcome = streaming.tower(levels, means, HORIZON, jax.random.key(1))
    pulls = (HORIZON / ARMS) ** (2 / 3) * math.log(HORIZON) ** (1 / 3)
    assert outcome.explored.item() == pytest.approx(ARMS * pulls)
    assert outcome.regret.item() == pytest.approx(pulls * float(jnp.sum(0.9 - means)))
    assert outcome.gap == 0


# ---------------------------------------------------------------------------------- game of arms


def played(means, horizon, key):
    """The game without noise; only the coins are those of the library."""
    arms = len(means)
    keys = jax.random.split(key, arms)
    coins = jax.vmap(lambda key: jax.random.uniform(jax.random.split(key, 4)[2]))(keys).tolist()
    eps = (arms / horizon) ** (1 / 3)
    best, king, estimate, budget, regret = max(means), None, -math.inf, 0.0, 0.0
    spent, second, seconds = 0.0, [], 0
    for arm, coin in zip(means, coins, strict=True):
        budget += 1
        if spent <= 10 * arms:
            level = 0
            while king is not None and budget >= 2**level:
                regret, spent, budget = (
                    regret + 2**level * (best - arm), spent + 2**level, budget - 2**level,
                )  # fmt: skip
                if arm <= estimate - eps / 5:
                    break
                level += 1
            else:
                king, estimate, budget = arm, max(arm, estimate), 1.2
                regret, spent = regret + 1.2 * (best - arm), spent + 1.2
        if coin < 1.5 / math.log(arms):
            regret += math.log(arms) * (best - arm)
            second.append(arm)
            seconds += 1
    chosen = king if spent <= 10 * arms else max(second)
    used = (spent + seconds * math.log(arms)) / eps**2
    return regret / eps**2 + (horizon - used) * (best - chosen), used, best - chosen


def test_game_of_arms_is_the_plain_simulation():
    """Random orders, and the two sorted ones: the king falls never, or every few arms."""
    orders = np.concatenate([ORDERS, np.sort(ORDERS[:1]), np.sort(ORDERS[:1])[:, ::-1]])
    keys = jax.random.split(jax.random.key(2), len(orders))
    run = jax.jit(jax.vmap(lambda means, key: streaming.game_of_arms(means, HORIZON, key)))
    outcome = run(orders, keys)
    for i, (means, key) in enumerate(zip(orders.tolist(), keys, strict=True)):
        found = [x[i].item() for x in outcome]
        np.testing.assert_allclose(found, played(means, HORIZON, key), rtol=1e-11, atol=1e-12)


# ------------------------------------------------------------------------- noise, short horizons


def test_sample_mean_is_binomial_in_the_limit():
    """Its quantiles are those of 40,000 Bernoulli rewards to a hundredth of their deviation."""
    pulls, draws = 40_000, 200_000
    keys = jax.random.split(jax.random.key(0), draws)
    sample = jax.jit(
        jax.vmap(lambda key: streaming.sample_mean(jnp.array(0.3), jnp.array(4e4), key))
    )
    levels = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    deviation = math.sqrt(0.21 / pulls)
    found = np.quantile(sample(keys), levels)
    exact = scipy.stats.binom.ppf(levels, pulls, 0.3) / pulls
    normal = scipy.stats.norm.ppf(levels)
    sampling = np.sqrt(levels * (1 - levels) / draws) / scipy.stats.norm.pdf(normal)
    np.testing.assert_array_less(np.abs(found - exact) / deviation, 4 * sampling + 0.02)
    never = streaming.sample_mean(jnp.array([0.3, 1.0]), jnp.array([0.0, 5.0]), jax.random.key(0))
    np.testing.assert_array_equal(never, [-jnp.inf, 1.0])


def test_short_horizons_are_not_exceeded():
    means = jnp.array(ORDERS[0])

    def run(horizon, key):
        towers = stacked(ARMS, horizon)
        outcomes = jax.vmap(lambda tower: streaming.tower(tower, means, horizon, key))(towers)
        game = streaming.game_of_arms(means, horizon, key)
        return jax.tree.map(lambda x, y: jnp.append(x, y), outcomes, game)

    horizons = jnp.array([1.0, 30.0, 1e3, 1e4, 1e6])
    keys = jax.random.split(jax.random.key(4), 5)
    regret, explored, gap = jax.jit(jax.vmap(run))(horizons, keys)
    tight = 1 + 1e-12
    assert np.all(explored <= horizons[:, None] * tight)
    assert np.all((regret >= 0) & (regret <= 0.8 * horizons[:, None] * tight))
    assert np.all((gap >= 0) & (gap <= 0.8 * tight))


def test_single_precision():
    means = jnp.array([0.5, 0.25, 0.75], jnp.float32)
    levels = streaming.log_log_space(3, 1e6)
    assert streaming.tower(levels, means, 1e6, jax.random.key(0)).regret.dtype == jnp.float32


def test_refusals():
    key, few = jax.random.key(0), jnp.array([0.5, 0.6])
    for make in (streaming.naive, streaming.log_log_space, streaming.log_star_space):
        refused(ValueError, ["arms", "at least 3", "2"], lambda make=make: make(2, 1e6))
    refused(ValueError, ["arms", "3", "2"], lambda: streaming.game_of_arms(few, 1e6, key))
    refused(ValueError, ["means", "(1, 2)"], lambda: streaming.game_of_arms(few[None], 1e6, key))
    levels = streaming.uniform(2, 1e6)
    refused(
        TypeError, ["means", "int"], lambda: streaming.tower(levels, jnp.ones(2, int), 1e6, key)
    )
