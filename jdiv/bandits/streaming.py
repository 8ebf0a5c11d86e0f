"""Single-pass streaming bandits: arms come one after another, and what is not stored is gone.

With `eps = (K/T)^(1/3)` an arm within eps of the best is good enough to commit to, and `1/eps^2`
pulls tell arms that are eps apart. The algorithms of the comparison differ in how many arms they
store. Four are a tower of levels with one arm each (`tower`) and differ in a table of two columns
(`Levels`); with a tower of one level this is exploring uniformly. The last is `game_of_arms`.

Pulls come in thousands of millions, so the mean of n pulls is drawn at once, from the normal
distribution with the variance of n Bernoulli rewards, `mu (1 - mu) / n`; for a few pulls that is a
rough approximation.

Reference: Wang 2023, Tight Regret Bounds for Single-pass Streaming Multi-armed Bandits (ICML), and
its release, streaming-regret-minimization-MABs. The tower is that of Assadi and Wang 2020
(arXiv:2004.04666).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jdiv import checks
from jdiv.types import PerSample, RandomKey, Scalar


class Outcome(NamedTuple):
    """Regret and commitment of one pass over a stream.

    Fields:
        regret: `[]` `sum of pulls * gap` over the whole horizon.
        explored: `[]` pulls before the commitment.
        gap: `[]` gap of the arm that was committed to.
    """

    regret: Array
    explored: Array
    gap: Array


def tolerance(arms: int, horizon: Scalar) -> Array:
    """`eps = (K/T)^(1/3)`: T pulls of an eps-worse arm cost what K/eps^2 pulls of exploring do.

    >>> print(f"{tolerance(8, 1e6):.4f}")
    0.0200
    """
    arms = checks.whole("arms", arms, 3, 2**31 - 1, "at least 3, for a positive log log K")
    horizon = checks.positive("horizon", horizon)
    return (arms / jnp.asarray(horizon, float)) ** (1 / 3)


def sample_mean(mean: Array, pulls: Array, key: RandomKey) -> Array:
    """The mean reward of so many pulls, in the normal approximation; without pulls -inf.

    >>> sample_mean(jnp.array([0.0, 0.5]), jnp.array([9.0, 0.0]), jax.random.key(0)).tolist()
    [0.0, -inf]
    """
    deviation = jnp.sqrt(mean * (1 - mean) / jnp.where(pulls > 0, pulls, 1))
    noisy = mean + deviation * jax.random.normal(key, jnp.shape(mean), mean.dtype)
    return checks.spread_nan(jnp.where(pulls > 0, noisy, -jnp.inf), pulls)


# ---------------------------------------------------------------------------------------- towers


class Levels(NamedTuple):
    """Pulls and capacities of the levels of a tower.

    Fields:
        pulls: `[levels]` pulls of an arm that comes to the level.
        capacity: `[levels]` arms after which the level hands its best one up; inf for the last.
    """

    pulls: Array
    capacity: Array


def uniform(arms: int, horizon: Scalar) -> Levels:
    """One level, `(T/K)^(2/3) (log T)^(1/3)` pulls of each arm.

    >>> levels = uniform(8, 1e6)
    >>> print(f"{levels.pulls[0]:.1f} {levels.capacity[0]}")
    5998.8 inf
    """
    arms = checks.whole("arms", arms, 1, 2**31 - 1, "at least 1")
    horizon = jnp.asarray(
        checks.in_range("horizon", horizon, 1, math.inf, "at least 1", closed="low"), float
    )
    return _levels([(horizon / arms) ** (2 / 3) * jnp.log(horizon) ** (1 / 3)], [math.inf])


def naive(arms: int, horizon: Scalar) -> Levels:
    """One level, `log K / eps^2` pulls of each arm.

    >>> print(f"{naive(8, 1e6).pulls[0]:.1f}")
    5198.6
    """
    return _levels([math.log(arms) / tolerance(arms, horizon) ** 2], [math.inf])


def log_space(arms: int, horizon: Scalar) -> Levels:
    """`log K` levels of `1.2^l / eps^2` pulls, which are left after more than six times those.

    A level's first arm counts on the lowest level only, so the capacity is seven arms, and eight
    on the others.

    >>> log_space(200, 1e6).capacity.tolist()
    [7.0, 8.0, 8.0, 8.0, inf]
    """
    unit = tolerance(arms, horizon) ** -2
    height = int(math.log(arms))
    pulls = [1.2**level * unit for level in range(height)]
    return _levels(pulls, [*[7, *[8] * height][: height - 1], math.inf])


def log_log_space(arms: int, horizon: Scalar) -> Levels:
    """`log log K` levels as in `log_space`, but left after more than ten times, and one of `naive`.

    Up to about 1600 arms the former are one level or none.

    >>> log_log_space(200, 1e6).capacity.tolist()
    [11.0, inf]
    """
    unit = tolerance(arms, horizon) ** -2
    below = int(math.log(math.log(arms)))
    factors = [1.2**level for level in range(below)] + [math.log(arms)]
    capacity = [*[11, *[12] * below][:below], math.inf]
    return _levels([factor * unit for factor in factors], capacity)


def log_star_space(arms: int, horizon: Scalar) -> Levels:
    """`log* K` levels of `r_l / eps^2` pulls, left after more than `2^(r_l - r_(l-1))` times those.

    `r = 4, 16, 2^16, ...`, each 2 to the power of the one before. The lowest level has `1 / eps^2`
    pulls and is left after more than four times those.

    >>> log_star_space(200, 1e6).capacity.tolist()
    [5.0, 6.0, inf]
    """
    unit = tolerance(arms, horizon) ** -2
    factors, capacity, r = [1.0], [5.0], 2
    while math.prod(capacity) < arms:
        r, before = 2**r, r
        factors.append(float(r))
        capacity.append(2.0 ** (r - before) + 2 if r < 1000 else math.inf)
    return _levels([factor * unit for factor in factors], [*capacity[:-1], math.inf])


def _levels(pulls: list[Array], capacity: list[float]) -> Levels:
    pulls = jnp.stack([jnp.asarray(n) for n in pulls])
    return Levels(pulls, jnp.asarray(capacity, pulls.dtype))


TOWERS: dict[str, Callable[[int, ArrayLike], Levels]] = {
    "uniform": uniform,
    "naive": naive,
    "log": log_space,
    "log-log": log_log_space,
    "log-star": log_star_space,
}
"""The levels of each tower by its name, functions of the number of arms and the horizon."""


def pad_levels(levels: Levels, count: int) -> Levels:
    """The same tower with `count` levels: no arm reaches the new ones, and towers can be stacked.

    >>> pad_levels(log_log_space(200, 1e6), 3).capacity.tolist()
    [11.0, inf, inf]
    """
    height = levels.pulls.shape[0]
    count = checks.whole("count", count, height, 2**31 - 1, f"at least {height}, the levels")
    missing = count - height
    return Levels(
        jnp.pad(levels.pulls, (0, missing), constant_values=1),
        jnp.pad(levels.capacity, (0, missing), constant_values=jnp.inf),
    )


class ReleaseRules(NamedTuple):
    """Deviations of the release of Wang 2023 from its algorithms, in towers of several levels.

    Each is a boolean, off by default, to see what it changes.

    Fields:
        charge_stored: Where two arms are compared, the regret is that of the stored arm, which is
            not pulled.
        keep_benchmark: The lowest level goes on with the best mean of all arms before, not of the
            present ones.
        take_highest: Committed to is the arm of the highest level, whatever the means of the others
            are.
    """

    charge_stored: ArrayLike = False
    keep_benchmark: ArrayLike = False
    take_highest: ArrayLike = False


def tower(
    levels: Levels,
    means: PerSample,
    horizon: Scalar,
    key: RandomKey,
    *,
    rules: ReleaseRules = ReleaseRules(),  # noqa: B008, it is immutable
) -> Outcome:
    """Each arm of the stream is pulled and compared with the arm that its level stores.

    The better sample mean is stored. A level that has seen as many arms as its capacity hands its
    arm up, where it is pulled and compared likewise, and starts afresh. In the end the stored arms
    are compared by new pulls, as many as on the lowest level, and the best is pulled on.
    Shapes: means `[arms]`, in the order of the stream. At most `horizon` pulls are made.

    >>> outcome = tower(uniform(2, 1e6), jnp.array([0.0, 1.0]), 1e6, jax.random.key(0))
    >>> outcome.gap.item(), (outcome.regret / outcome.explored).item()
    (0.0, 0.5)

    Reference: Wang 2023, the algorithms of its experiments; Assadi and Wang 2020.
    """
    means = _checked(means)
    dtype, height = means.dtype, levels.pulls.shape[0]
    levels, best = _checked_levels(levels, dtype), jnp.max(means)
    horizon = jnp.asarray(checks.positive("horizon", horizon), dtype)
    keep_benchmark = jnp.asarray(rules.keep_benchmark) & (jnp.arange(height) == 0)
    stream_key, end_key = jax.random.split(key)

    def rise(carry, level):
        """One level: an arm comes or does not, and the arm that goes up, if one does."""
        arm, regret, used, key = carry
        stored, pulls, capacity, keeps = level
        key, mean_key = jax.random.split(key)
        present = ~jnp.isnan(arm)
        pulls = jnp.where(present, jnp.minimum(pulls, horizon - used), 0)
        charged = jnp.where(rules.charge_stored & ~jnp.isnan(stored.arm), stored.arm, arm)
        regret = regret + jnp.where(present, pulls * (best - charged), 0)
        mean = sample_mean(arm, pulls, mean_key)
        handed_up, stored = _compare(stored, arm, mean, capacity, keeps)
        return (handed_up, regret, used + pulls, key), stored

    def arrive(carry, arm_and_key):
        stored, regret, used = carry
        arm, key = arm_and_key
        (_, regret, used, _), stored = jax.lax.scan(
            rise, (arm, regret, used, key), (stored, *levels, keep_benchmark)
        )
        return (stored, regret, used), None

    low, zero = jnp.full(height, -jnp.inf, dtype), jnp.zeros((), dtype)
    empty = _Stored(jnp.full(height, jnp.nan, dtype), low, jnp.zeros(height, dtype))
    (stored, regret, used), _ = jax.lax.scan(
        arrive, (empty, zero, zero), (means, jax.random.split(stream_key, means.shape[0]))
    )
    pulls, chosen = _last_comparison(stored.arm, levels.pulls[0], horizon - used, end_key)
    highest = jnp.argmax(jnp.where(jnp.isnan(stored.arm), -1, jnp.arange(height)))
    chosen = jnp.where(rules.take_highest, highest, chosen)
    regret = regret + jnp.sum(jnp.where(pulls > 0, pulls * (best - stored.arm), 0))
    return _committed(regret, used + jnp.sum(pulls), best - stored.arm[chosen], horizon)


class _Stored(NamedTuple):
    """The arm that a level stores."""

    arm: Array  # mean of the stored arm; NaN without one
    benchmark: Array  # the stored arm's sample mean
    visits: Array  # arms that came since the last was handed up


def _compare(
    stored: _Stored, arm: Array, mean: Array, capacity: Array, keeps: Array
) -> tuple[Array, _Stored]:
    """The arm handed up and the one kept when an arm, NaN for none, comes with its sample mean."""
    present = ~jnp.isnan(arm)
    wins = present & (jnp.isnan(stored.arm) | (mean > stored.benchmark))
    benchmark = jnp.where(keeps, jnp.maximum(mean, stored.benchmark), mean)
    stored = _Stored(
        arm=jnp.where(wins, arm, stored.arm),
        benchmark=jnp.where(wins, benchmark, stored.benchmark),
        visits=stored.visits + present.astype(mean.dtype),
    )
    full = stored.visits >= capacity
    return jnp.where(full, stored.arm, jnp.nan), _Stored(
        arm=jnp.where(full, jnp.nan, stored.arm),
        benchmark=jnp.where(full & ~keeps, -jnp.inf, stored.benchmark),
        visits=jnp.where(full, 0, stored.visits),
    )


def _last_comparison(stored: Array, pulls: Array, left: Array, key: Array) -> tuple[Array, Array]:
    """New pulls of each stored arm, none if it is the only one, and the one with the best mean."""
    present = ~jnp.isnan(stored)
    share = left / jnp.sum(present).astype(left.dtype)
    pulls = jnp.where(present & (jnp.sum(present) > 1), jnp.minimum(pulls, share), 0)
    # A mean of no pulls is -inf, and still before the levels without an arm.
    mean = jnp.maximum(sample_mean(stored, pulls, key), -1)
    return pulls, jnp.argmax(jnp.where(present, mean, -jnp.inf))


# ---------------------------------------------------------------------------------- game of arms


class _Game(NamedTuple):
    """The state of the game: the king of the paper is its champion here."""

    champion: Array  # mean of the champion
    estimate: Array  # sample mean of the champion, from when it became one
    budget: Array  # pulls that challengers may still have before the champion falls
    spent: Array  # pulls of the first procedure
    second: Array  # mean of the best arm of the second procedure
    benchmark: Array  # its sample mean
    regret: Array
    used: Array


class _Stream(NamedTuple):
    """Constants of a game."""

    best: Array  # mean of the best arm
    horizon: Array
    eps: Array
    unit: Array  # 1/eps^2 pulls


def game_of_arms(means: PerSample, horizon: Scalar, key: RandomKey) -> Outcome:
    """One stored arm, the champion, who falls when its challengers use up its budget.

    Each arriving arm adds `1/eps^2` pulls to the budget and challenges: it is pulled `2^l / eps^2`
    times, l = 0, 1, ..., until its mean is eps/5 below the champion's estimate, or the budget does
    not allow the next l. Then it is champion, with a budget of `1.2/eps^2` and as many pulls for
    its estimate, which never goes down. Next to this an arm is pulled `log K / eps^2` times with
    probability `1.5 / log K`, and the best of these is stored; committed to is the champion, unless
    its procedure has used more than `10 K / eps^2` pulls.

    The release raises the estimate by half the gap of the two best arms with each champion; nobody
    knows that gap, and it is left out here.
    Shapes: means `[arms]`, at least 3, in the order of the stream.

    >>> outcome = game_of_arms(jnp.array([0.0, 0.0, 1.0, 0.0]), 1e12, jax.random.key(0))
    >>> outcome.gap.item()
    0.0

    Reference: Assadi and Wang 2020 (arXiv:2004.04666), where the champion is a king; Wang 2023, its
    release.
    """
    means = _checked(means)
    arms, dtype = means.shape[0], means.dtype
    horizon = checks.positive("horizon", horizon)
    eps = tolerance(arms, horizon).astype(dtype)
    stream = _Stream(jnp.max(means), jnp.asarray(horizon, dtype), eps, eps**-2)
    unit, log_arms = stream.unit, math.log(arms)

    def arrive(game: _Game, arm_and_key) -> tuple[_Game, None]:
        arm, key = arm_and_key
        ladder_key, crown_key, coin_key, second_key = jax.random.split(key, 4)
        playing = game.spent <= 10 * arms * unit
        challenged = game._replace(budget=game.budget + unit)
        fought, wins = _challenge(stream, challenged, arm, ladder_key)
        crowned = _crown(stream, fought, arm, crown_key)
        game = _choose(playing, _choose(wins, crowned, fought), game)
        seen, mean, _ = _pull(stream, game, arm, log_arms * unit, second_key)
        better = mean > game.benchmark
        seen = seen._replace(
            second=jnp.where(better, arm, game.second), benchmark=jnp.maximum(mean, game.benchmark)
        )
        sampled = jax.random.uniform(coin_key, dtype=dtype) < 1.5 / log_arms
        return _choose(sampled, seen, game), None

    zero, low = jnp.zeros((), dtype), jnp.asarray(-jnp.inf, dtype)
    # With no budget the first arm is crowned at once.
    start = _Game(means[0], low, low, zero, means[0], low, zero, zero)
    game, _ = jax.lax.scan(arrive, start, (means, jax.random.split(key, arms)))
    chosen = jnp.where(game.spent <= 10 * arms * unit, game.champion, game.second)
    return _committed(game.regret, game.used, stream.best - chosen, stream.horizon)


def _pull(
    stream: _Stream, game: _Game, arm: Array, pulls: ArrayLike, key: Array
) -> tuple[_Game, Array, Array]:
    """The game after so many pulls, at most the rest of the horizon, their mean and number."""
    pulls = jnp.minimum(pulls, stream.horizon - game.used)
    regret, used = game.regret + pulls * (stream.best - arm), game.used + pulls
    return game._replace(regret=regret, used=used), sample_mean(arm, pulls, key), pulls


def _challenge(stream: _Stream, game: _Game, arm: Array, key: Array) -> tuple[_Game, Array]:
    """The game after the ladder, and whether the challenger is above all of it."""

    def goes_on(state) -> Array:
        game, level, standing, _ = state
        return standing & (game.budget >= 2.0**level * stream.unit)

    def step(state):
        game, level, _, key = state
        key, mean_key = jax.random.split(key)
        cost = 2.0**level * stream.unit
        game, mean, pulls = _pull(stream, game, arm, cost, mean_key)
        game = game._replace(budget=game.budget - cost, spent=game.spent + pulls)
        return game, level + 1, mean > game.estimate - stream.eps / 5, key

    start = game, jnp.zeros((), arm.dtype), jnp.asarray(True), key
    game, _, standing, _ = jax.lax.while_loop(goes_on, step, start)
    return game, standing


def _crown(stream: _Stream, game: _Game, arm: Array, key: Array) -> _Game:
    """The game with a new champion."""
    crowned, mean, pulls = _pull(stream, game, arm, 1.2 * stream.unit, key)
    return crowned._replace(
        champion=arm,
        estimate=jnp.maximum(mean, game.estimate),
        budget=1.2 * stream.unit,
        spent=crowned.spent + pulls,
    )


# ---------------------------------------------------------------------------------------- shared


def _checked(means: ArrayLike) -> Array:
    means = checks.share("means", checks.as_float("means", means))
    if means.ndim != 1 or means.shape[0] == 0:
        raise ValueError(f"means must be a vector of at least one arm, got shape {means.shape}")
    return means


def _checked_levels(levels: Levels, dtype: DTypeLike) -> Levels:
    """Pulls and capacities, not negative."""
    checked = (
        checks.in_range("levels", x, 0, math.inf, "not negative", closed="both") for x in levels
    )
    return Levels(*(jnp.asarray(x, dtype) for x in checked))


def _committed(regret: Array, used: Array, gap: Array, horizon: Array) -> Outcome:
    """The outcome where the rest of the horizon goes to one arm."""
    return Outcome(regret + (horizon - used) * gap, used, gap)


def _choose(condition: Array, one: _Game, other: _Game) -> _Game:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)
