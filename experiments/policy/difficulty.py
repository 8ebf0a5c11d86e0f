"""Difficulty: the distance from the start to the optimum by pass rate, and what filtering gains.

Online difficulty filtering (arXiv:2504.03380), whose exact statement is not known: the closed form
is derived, and where the variance bounds it from below is measured.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict
from scipy import stats

from experiments.lab.axes import at_least, count, each, fraction, one_of, positive, seeds
from experiments.lab.claims import Finding, at_most, between, claim, equals
from experiments.lab.plots import COLORS, GREY, Picture, curves, panels
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators, regularized
from jdiv.policy.recipes.difficulty import (
    difficulty_filter,
    kl_from_optimum,
    kl_to_optimum,
    learnability,
    pass_rate,
)

AXES = {"beta": positive, "seed": seeds}
FIELDS = {
    "pass_rates": each(fraction),
    "generator": one_of(generators.TABLE),
    "group": at_least(2),
    "band": each(fraction),
    "questions": count,
}
SOURCE = "online difficulty filtering (arXiv:2504.03380)"
# Pass rate -> KL(pi_0‖pi*) and p (1 - p)/2 at beta 1.
REFERENCE = {
    0.01: (0.0070, 0.0050),
    0.1: (0.0586, 0.0450),
    0.3: (0.1157, 0.1050),
    0.5: (0.1201, 0.1250),
    0.7: (0.0897, 0.1050),
    0.9: (0.0347, 0.0450),
}
UNFILTERED = {"band": (0.0, 1.0), "sweep.seed": (0, 1, 2, 3)}
OTHER_OPTIMUM = {"generator": "reverse_kl", "sweep.seed": (0,)}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses an empty band."""
    if not config.band[0] < config.band[1]:
        raise ValueError(f"config.band must increase, got {config.band}")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Both KLs by the library and from the solved optimum; a batch and what the filter keeps."""
    rate, beta = jnp.asarray(config.pass_rates), point["beta"]
    start = jnp.log(jnp.stack([1 - rate, rate], axis=-1))
    reward = jnp.broadcast_to(jnp.array([0.0, 1.0]), start.shape)
    generator = generators.get(config.generator)
    best = regularized.greedy(reward, start, beta, generator=generator).log_policy
    solved = [divergences.kl(start, best), divergences.kl(best, start)]
    by_rate = {"pass_rate": config.pass_rates}
    both = {"direction": ("forward", "reverse"), **by_rate}
    known = [kl_to_optimum(rate, beta), kl_from_optimum(rate, beta)]
    return {
        "kl": labelled(jnp.stack(known), **both),
        "solved": labelled(jnp.stack(solved), **both),
        "bound": labelled(learnability(rate, beta), **by_rate),
    } | filtered(config, key)


def filtered(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """Share of groups, variance of their rewards, first-order gain of a step: all and filtered.

    A question has pass rate p, of the arcsine distribution Beta(1/2, 1/2), and the one logit of p;
    the gradient of a group with mean m, advantages without scale, is `m (1 - m)`, and a step of it
    gains `p (1 - p) m (1 - m)` for each unit of its rate.
    """
    of_rates, of_answers = jax.random.split(key)
    rate = jnp.sin(jnp.pi / 2 * jax.random.uniform(of_rates, (config.questions,))) ** 2
    drawn = jax.random.uniform(of_answers, (config.questions, config.group))
    rewards = (drawn < rate[:, None]).astype(rate.dtype)
    mean = pass_rate(rewards)
    kept = difficulty_filter(rewards, low=config.band[0], high=config.band[1])
    weights = jnp.stack([jnp.ones_like(rate), kept.astype(rate.dtype)])
    count = jnp.sum(weights, axis=-1)
    signal = mean * (1 - mean)
    found = {
        "kept": count / config.questions,
        "signal": weights @ signal / count,
        "gain": weights @ (rate * (1 - rate) * signal) / count,
    }
    return {name: labelled(x, batch=("all", "filtered")) for name, x in found.items()}


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """KL over its approximation; pass rates kept and what they bring."""
    figure, (left, right) = panels(2, height=4.0)
    at = results.isel(seed=0)
    ratio = at.kl.sel(direction="forward") / at.bound
    curves(left, "pass_rate", ratio, "beta", marker=True, markersize=4)
    left.axhline(1, color="black", linewidth=1)
    left.set(
        xlabel="pass rate p of the start", ylabel="KL(π₀‖π*) / (p (1 - p) / 2β²)", yscale="log"
    )
    left.legend(title="β", ncols=2)
    means = np.arange(config.group + 1) / config.group
    share = stats.betabinom.pmf(np.arange(config.group + 1), config.group, 0.5, 0.5)
    inside = (means >= config.band[0]) & (means <= config.band[1])
    right.bar(means, share, width=0.08, color=np.where(inside, COLORS[0], GREY))
    right.set(xlabel=f"mean reward of {config.group} answers", ylabel="share of questions")
    gain = results.gain.isel(beta=0).mean("seed")
    times = float(gain.sel(batch="filtered") / gain.sel(batch="all"))
    text = f"kept (blue): {times:.1f} times the gain\nof a step for each group"
    right.text(0.5, 0.95, text, transform=right.transAxes, ha="center", va="top")
    return {
        "difficulty": Picture(
            figure,
            "Left: the KL from the start to the optimum over its approximation by the variance,"
            " which is a lower bound only where the curve is above 1: for hard questions, and for"
            " fewer of them the smaller β. Right: questions by the mean of a group; filtering"
            " keeps the blue ones, and the ends have no gradient at all.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


def expected_of_the_band(config: ConfigDict) -> dict[str, float]:
    """Share, signal and gain of the band .2 to .8 over all groups, by the beta-binomial law."""
    a, n = 0.5, config.group
    right = np.arange(n + 1)
    pmf, mean = stats.betabinom.pmf(right, n, a, a), right / n
    # E[p (1 - p) | k right] of Beta(a + k, a + n - k).
    after, total = (a + right) * (a + n - right), 2 * a + n
    pair = after / (total * (total + 1))
    kept = pmf * ((mean >= 0.2) & (mean <= 0.8))
    signal = mean * (1 - mean)

    def over_all(x: np.ndarray) -> float:
        return float((kept @ x / kept.sum()) / (pmf @ x / pmf.sum()))

    return {"kept": kept.sum(), "signal": over_all(signal), "gain": over_all(pair * signal)}


@claim(source=f"{SOURCE}; derived", reruns=(OTHER_OPTIMUM,), wrong=({"direction": "reverse"},))
def kl_to_the_optimum_in_closed_form(results: xr.Dataset, direction: str = "forward") -> Finding:
    """log(1 - p + p e^(1/beta)) - p/beta against the KL to the solved optimum, and the library's
    value: largest errors over pass rates and beta."""
    at, rate = results.isel(seed=0).sel(direction=direction), results.pass_rate
    closed = np.log1p(rate * np.expm1(1 / results.beta)) - rate / results.beta
    size = np.maximum(closed, 1)
    return at_most(1e-12, [(abs(x - closed) / size).max() for x in (at.solved, at.kl)])


@claim(
    source=f"{SOURCE}; not stated there",
    reference=tuple(REFERENCE.values()),
    wrong=({"direction": "reverse"},),
    needs={"beta": (1.0,)},
)
def reference_rates(results: xr.Dataset, direction: str = "forward") -> Finding:
    """KL(pi_0‖pi*) and p (1 - p)/2 at beta 1 for p = .01, .1, .3, .5, .7, .9; to the last digit."""
    at = results.isel(seed=0).sel(beta=1.0, pass_rate=list(REFERENCE), direction=direction)
    measured = np.stack([at.kl.values, at.bound.values], axis=-1)
    return equals(list(REFERENCE.values()), measured, tolerance=5.1e-5)


@claim(
    source=f"{SOURCE}: the variance as a lower bound; here where it is one",
    wrong=({"beta": 0.25},),
)
def lower_bound_for_hard_questions_only(results: xr.Dataset, beta: float = 1.0) -> Finding:
    """KL less p (1 - p)/(2 beta^2) at beta 1: the least for p <= .3, where it is positive, and the
    largest for p >= .5, where it is negative. At a smaller beta fewer questions are hard."""
    at = results.isel(seed=0).sel(beta=beta)
    margin = at.kl.sel(direction="forward") - at.bound
    hard, easy = margin.where(margin.pass_rate <= 0.3), margin.where(margin.pass_rate >= 0.5)
    return between((0.0, -np.inf), (hard.min(), easy.max()), (np.inf, 0.0))


@claim(source=f"{SOURCE}; derived", wrong=({"direction": "reverse"},), needs={"beta": (100.0,)})
def variance_in_the_limit(results: xr.Dataset, direction: str = "forward") -> Finding:
    """At beta 100 the KL over p (1 - p)/(2 beta^2) is 1 + (1 - 2p)/(3 beta): the largest error, of
    the order of 1/beta^2. The other direction has another next order."""
    at = results.isel(seed=0).sel(beta=100.0, direction=direction)
    next_order = (1 - 2 * at.pass_rate) / (3 * at.beta)
    return at_most(1e-4, abs(at.kl / at.bound - 1 - next_order).max())


@claim(
    source=f"{SOURCE}; band from a note by others, numbers by the beta-binomial distribution",
    reference=0.3978,
    reruns=(UNFILTERED,),
    needs={"beta": ...},
)
def kept_by_the_filter(results: xr.Dataset, config: ConfigDict) -> Finding:
    """Share of groups whose mean reward is within [.2, .8], against that of the beta-binomial
    distribution, within four standard errors."""
    expected = expected_of_the_band(config)["kept"]
    groups = results.sizes["seed"] * config.questions
    share = results.kept.isel(beta=0).sel(batch="filtered").mean()
    return equals(expected, share, tolerance=4 * np.sqrt(expected * (1 - expected) / groups))


@claim(
    source=f"{SOURCE}; only the direction is published",
    reference=(1.987, 2.163),
    reruns=(UNFILTERED,),
    needs={"beta": ...},
)
def gained_by_the_filter(results: xr.Dataset, config: ConfigDict) -> Finding:
    """Variance of rewards, and first-order gain of a step, for each kept group over each group,
    against those of the beta-binomial distribution: 99.9% by Student's t."""
    expected, seeds = expected_of_the_band(config), results.sizes["seed"]
    batch = results.isel(beta=0)[["signal", "gain"]].to_dataarray()
    ratio = batch.sel(batch="filtered") / batch.sel(batch="all")
    error = stats.t.isf(5e-4, seeds - 1) / seeds**0.5 * ratio.std("seed", ddof=1)
    numbers = [expected[name] for name in ratio["variable"].values]
    return equals(numbers, ratio.mean("seed"), tolerance=error.values)
