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

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks


class Outcome(NamedTuple):
    """What came of one pass over a stream."""

    regret: Array
    """`sum of pulls * gap` over the whole horizon."""
    explored: Array
    """Pulls before the commitment."""
    gap: Array
    """Gap of the arm that was committed to."""


def tolerance(arms: int, horizon: ArrayLike) -> Array:
    """`eps = (K/T)^(1/3)`: T pulls of an eps-worse arm cost what K/eps^2 pulls of exploring do."""
    if arms < 3:
        raise ValueError(f"arms must be at least 3, for a positive log log K, got {arms}")
    return (arms / jnp.asarray(horizon, float)) ** (1 / 3)


def sample_mean(key: Array, mean: Array, pulls: Array) -> Array:
    """The mean reward of so many pulls, in the normal approximation; without pulls -inf."""
    deviation = jnp.sqrt(mean * (1 - mean) / jnp.where(pulls > 0, pulls, 1))
    noisy = mean + deviation * jax.random.normal(key, jnp.shape(mean), mean.dtype)
    return jnp.where(pulls > 0, noisy, -jnp.inf)


# ---------------------------------------------------------------------------------------- towers


class Levels(NamedTuple):
    """What the levels of a tower do."""

    pulls: Array
    """`[levels]` pulls of an arm that comes to the level."""
    room: Array
    """`[levels]` arms after which the level hands its best one up; inf for the last."""


def uniform(arms: int, horizon: ArrayLike) -> Levels:
    """One level, `(T/K)^(2/3) (log T)^(1/3)` pulls of each arm."""
    horizon = jnp.asarray(horizon, float)
    return _levels([(horizon / arms) ** (2 / 3) * jnp.log(horizon) ** (1 / 3)], [math.inf])


def naive(arms: int, horizon: ArrayLike) -> Levels:
    """One level, `log K / eps^2` pulls of each arm."""
    return _levels([math.log(arms) / tolerance(arms, horizon) ** 2], [math.inf])


def log_space(arms: int, horizon: ArrayLike) -> Levels:
    """`log K` levels of `1.2^l / eps^2` pulls, which are left after more than six times those.

    A level's first arm counts on the lowest level only, so there is room for seven arms, and eight
    on the others.
    """
    unit = tolerance(arms, horizon) ** -2
    height = int(math.log(arms))
    pulls = [1.2**level * unit for level in range(height)]
    return _levels(pulls, [*[7, *[8] * height][: height - 1], math.inf])


def log_log_space(arms: int, horizon: ArrayLike) -> Levels:
    """`log log K` levels as in `log_space`, but left after more than ten times, and one of `naive`.

    Up to about 1600 arms the former are one level or none.
    """
    unit = tolerance(arms, horizon) ** -2
    below = int(math.log(math.log(arms)))
    factors = [1.2**level for level in range(below)] + [math.log(arms)]
    room = [*[11, *[12] * below][:below], math.inf]
    return _levels([factor * unit for factor in factors], room)


def log_star_space(arms: int, horizon: ArrayLike) -> Levels:
    """`log* K` levels of `r_l / eps^2` pulls, left after more than `2^(r_l - r_(l-1))` times those.

    `r = 4, 16, 2^16, ...`, each 2 to the power of the one before. The lowest level has `1 / eps^2`
    pulls and is left after more than four times those.
    """
    unit = tolerance(arms, horizon) ** -2
    factors, room, r = [1.0], [5.0], 2
    while math.prod(room) < arms:
        r, before = 2**r, r
        factors.append(float(r))
        room.append(2.0 ** (r - before) + 2 if r < 1000 else math.inf)
    return _levels([factor * unit for factor in factors], [*room[:-1], math.inf])


def _levels(pulls: list[Array], room: list[float]) -> Levels:
    pulls = jnp.stack([jnp.asarray(n) for n in pulls])
    return Levels(pulls, jnp.asarray(room, pulls.dtype))


TOWERS: dict[str, Callable[[int, ArrayLike], Levels]] = {
    "uniform": uniform,
    "naive": naive,
    "log": log_space,
    "log-log": log_log_space,
    "log-star": log_star_space,
}
"""By name, a function of the number of arms and the horizon."""


def padded(levels: Levels, to: int) -> Levels:
    """The same tower with levels on top that no arm reaches, so that towers can be stacked."""
    missing = to - levels.pulls.shape[0]
    return Levels(
        jnp.pad(levels.pulls, (0, missing), constant_values=1),
        jnp.pad(levels.room, (0, missing), constant_values=jnp.inf),
    )


class Mistakes(NamedTuple):
    """What the release of Wang 2023 does differently in towers of more than one level.

    Each is a boolean, off by default, to see what it changes.
    """

    charge_stored: ArrayLike = False
    """Where two arms are compared, the regret is that of the stored arm, which is not pulled."""
    keep_benchmark: ArrayLike = False
    """The lowest level goes on with the best mean of all arms before, not of the present ones."""
    take_highest: ArrayLike = False
    """Committed to is the arm of the highest level, whatever the means of the others are."""


def tower(
    levels: Levels,
    means: ArrayLike,
    horizon: ArrayLike,
    key: Array,
    mistakes: Mistakes = Mistakes(),  # noqa: B008, it is immutable
) -> Outcome:
    """Each arm of the stream is pulled and compared with the arm that its level stores.

    The better sample mean is stored. A level that has seen as many arms as it has room for hands
    its arm up, where it is pulled and compared likewise, and starts afresh. In the end the stored
    arms are compared by new pulls, as many as on the lowest level, and the best is pulled on.
    Shapes: means `[arms]`, in the order of the stream. At most `horizon` pulls are made.

    Reference: Wang 2023, the algorithms of its experiments; Assadi and Wang 2020.
    """
    means = _checked(means)
    dtype, height = means.dtype, levels.pulls.shape[0]
    levels = Levels(*(jnp.asarray(x, dtype) for x in levels))
    horizon, best = jnp.asarray(horizon, dtype), jnp.max(means)
    keep_benchmark = jnp.asarray(mistakes.keep_benchmark) & (jnp.arange(height) == 0)
    of_stream, of_end = jax.random.split(key)

    def rise(carry, level):
        """One level: an arm comes or does not, and the arm that goes up, if one does."""
        arm, regret, used, key = carry
        floor, pulls, room, keeps = level
        key, of_mean = jax.random.split(key)
        comes = ~jnp.isnan(arm)
        pulls = jnp.where(comes, jnp.minimum(pulls, horizon - used), 0)
        charged = jnp.where(mistakes.charge_stored & ~jnp.isnan(floor.arm), floor.arm, arm)
        regret = regret + jnp.where(comes, pulls * (best - charged), 0)
        up, floor = _visit(floor, arm, sample_mean(of_mean, arm, pulls), room, keeps)
        return (up, regret, used + pulls, key), floor

    def arrive(carry, arriving):
        floors, regret, used = carry
        (_, regret, used, _), floors = jax.lax.scan(
            rise, (arriving[0], regret, used, arriving[1]), (floors, *levels, keep_benchmark)
        )
        return (floors, regret, used), None

    low, zero = jnp.full(height, -jnp.inf, dtype), jnp.zeros((), dtype)
    empty = _Floor(jnp.full(height, jnp.nan, dtype), low, jnp.zeros(height, dtype))
    (floors, regret, used), _ = jax.lax.scan(
        arrive, (empty, zero, zero), (means, jax.random.split(of_stream, means.shape[0]))
    )
    pulls, chosen = _last_comparison(floors.arm, levels.pulls[0], horizon - used, of_end)
    highest = jnp.argmax(jnp.where(jnp.isnan(floors.arm), -1, jnp.arange(height)))
    chosen = jnp.where(mistakes.take_highest, highest, chosen)
    regret = regret + jnp.sum(jnp.where(pulls > 0, pulls * (best - floors.arm), 0))
    return _committed(regret, used + jnp.sum(pulls), best - floors.arm[chosen], horizon)


class _Floor(NamedTuple):
    """A level with what it stores."""

    arm: Array  # mean of the stored arm; NaN without one
    benchmark: Array  # the stored arm's sample mean
    visits: Array  # arms that came since the last was handed up


def _visit(
    floor: _Floor, arm: Array, mean: Array, room: Array, keeps: Array
) -> tuple[Array, _Floor]:
    """An arm with its sample mean, NaN for none, comes to a level: who goes up, what remains."""
    comes = ~jnp.isnan(arm)
    wins = comes & (jnp.isnan(floor.arm) | (mean > floor.benchmark))
    benchmark = jnp.where(keeps, jnp.maximum(mean, floor.benchmark), mean)
    floor = _Floor(
        arm=jnp.where(wins, arm, floor.arm),
        benchmark=jnp.where(wins, benchmark, floor.benchmark),
        visits=floor.visits + comes.astype(mean.dtype),
    )
    full = floor.visits >= room
    return jnp.where(full, floor.arm, jnp.nan), _Floor(
        arm=jnp.where(full, jnp.nan, floor.arm),
        benchmark=jnp.where(full & ~keeps, -jnp.inf, floor.benchmark),
        visits=jnp.where(full, 0, floor.visits),
    )


def _last_comparison(stored: Array, pulls: Array, left: Array, key: Array) -> tuple[Array, Array]:
    """New pulls of each stored arm, none if it is the only one, and which has the best mean."""
    there = ~jnp.isnan(stored)
    share = left / jnp.sum(there).astype(left.dtype)
    pulls = jnp.where(there & (jnp.sum(there) > 1), jnp.minimum(pulls, share), 0)
    # A mean of no pulls is -inf, and still before the levels without an arm.
    mean = jnp.maximum(sample_mean(key, stored, pulls), -1)
    return pulls, jnp.argmax(jnp.where(there, mean, -jnp.inf))


# ---------------------------------------------------------------------------------- game of arms


class _Game(NamedTuple):
    king: Array  # mean of the king
    estimate: Array  # of the king, from when he was crowned
    budget: Array  # pulls that challengers may still have before the king falls
    spent: Array  # pulls of the first procedure
    second: Array  # mean of the best arm of the second procedure
    benchmark: Array  # its sample mean
    regret: Array
    used: Array


def game_of_arms(means: ArrayLike, horizon: ArrayLike, key: Array) -> Outcome:
    """One stored arm, the king, who falls when his challengers use up his budget.

    Each arriving arm adds `1/eps^2` pulls to the budget and challenges: it is pulled `2^l / eps^2`
    times, l = 0, 1, ..., until its mean is eps/5 below the king's estimate, or the budget does not
    allow the next l. Then it is king, with a budget of `1.2/eps^2` and as many pulls for its
    estimate, which never goes down. Next to this an arm is pulled `log K / eps^2` times with
    probability `1.5 / log K`, and the best of these is stored; committed to is the king, unless his
    procedure has used more than `10 K / eps^2` pulls.

    The release raises the estimate by half the gap of the two best arms with each king; nobody
    knows that gap, and it is left out here.
    Shapes: means `[arms]`, at least 3, in the order of the stream.

    Reference: Assadi and Wang 2020 (arXiv:2004.04666); Wang 2023, its release.
    """
    means = _checked(means)
    arms, dtype = means.shape[0], means.dtype
    horizon, best = jnp.asarray(horizon, dtype), jnp.max(means)
    eps = tolerance(arms, horizon).astype(dtype)
    unit, log_arms = eps**-2, math.log(arms)

    def pull(game: _Game, key: Array, arm: Array, pulls: ArrayLike) -> tuple[_Game, Array, Array]:
        """What is left of the horizon limits the pulls."""
        pulls = jnp.minimum(pulls, horizon - game.used)
        regret, used = game.regret + pulls * (best - arm), game.used + pulls
        return game._replace(regret=regret, used=used), sample_mean(key, arm, pulls), pulls

    def challenge(game: _Game, arm: Array, key: Array) -> tuple[_Game, Array]:
        """The ladder; whether the challenger is above all of it."""

        def goes_on(at) -> Array:
            game, level, standing, _ = at
            return standing & (game.budget >= 2.0**level * unit)

        def step(at):
            game, level, _, key = at
            key, of_mean = jax.random.split(key)
            game, mean, pulls = pull(game, of_mean, arm, 2.0**level * unit)
            game = game._replace(budget=game.budget - 2.0**level * unit, spent=game.spent + pulls)
            return game, level + 1, mean > game.estimate - eps / 5, key

        start = game, jnp.zeros((), dtype), jnp.asarray(True), key
        game, _, standing, _ = jax.lax.while_loop(goes_on, step, start)
        return game, standing

    def arrive(game: _Game, arriving) -> tuple[_Game, None]:
        arm, key = arriving
        of_ladder, of_crown, of_coin, of_second = jax.random.split(key, 4)
        playing = game.spent <= 10 * arms * unit
        fought, wins = challenge(game._replace(budget=game.budget + unit), arm, of_ladder)
        crowned, mean, pulls = pull(fought, of_crown, arm, 1.2 * unit)
        crowned = crowned._replace(
            king=arm,
            estimate=jnp.maximum(mean, game.estimate),
            budget=1.2 * unit,
            spent=crowned.spent + pulls,
        )
        game = _choose(playing, _choose(wins, crowned, fought), game)
        seen, mean, _ = pull(game, of_second, arm, log_arms * unit)
        better = mean > game.benchmark
        seen = seen._replace(
            second=jnp.where(better, arm, game.second), benchmark=jnp.maximum(mean, game.benchmark)
        )
        chance = 1.5 / log_arms
        taken = jax.random.uniform(of_coin, dtype=dtype) < chance
        return _choose(taken, seen, game), None

    zero, low = jnp.zeros((), dtype), jnp.asarray(-jnp.inf, dtype)
    # With no budget the first arm is crowned at once.
    start = _Game(means[0], low, low, zero, means[0], low, zero, zero)
    keys = jax.random.split(key, arms)
    game, _ = jax.lax.scan(arrive, start, (means, keys))
    chosen = jnp.where(game.spent <= 10 * arms * unit, game.king, game.second)
    return _committed(game.regret, game.used, best - chosen, horizon)


# ---------------------------------------------------------------------------------------- shared


def _checked(means: ArrayLike) -> Array:
    means = checks.as_float("means", means)
    if means.ndim != 1 or means.shape[0] == 0:
        raise ValueError(f"means must be a vector of at least one arm, got shape {means.shape}")
    return means


def _committed(regret: Array, used: Array, gap: Array, horizon: Array) -> Outcome:
    """The rest of the horizon goes to one arm."""
    return Outcome(regret + (horizon - used) * gap, used, gap)


def _choose(condition: Array, one: _Game, other: _Game) -> _Game:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)
