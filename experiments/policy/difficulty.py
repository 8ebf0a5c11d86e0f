"""Difficulty: the distance from the start to the optimum by pass rate, and what filtering gains.

Online difficulty filtering (arXiv:2504.03380), whose exact statement is not known: the closed form
is derived, and where the variance bounds it from below is measured.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict
from scipy import stats

from experiments.lab.claims import Claim
from experiments.lab.plots import Picture
from jdiv import divergences, generators, regularized
from jdiv.policy.recipes.difficulty import (
    difficulty_filter,
    kl_from_optimum,
    kl_to_optimum,
    learnability,
    pass_rate,
)

TRACED = ("beta", "seed")
DIMS = {
    "forward": ("rate",),
    "reverse": ("rate",),
    "solved": ("direction", "rate"),
    "bound": ("rate",),
    "kept": ("batch",),
    "signal": ("batch",),
    "gain": ("batch",),
}
BATCHES = ("all", "filtered")
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


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Pass rates, directions of the KL, batches."""
    return {"rate": config.rates, "direction": ("forward", "reverse"), "batch": BATCHES}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses what has no optimum, and an empty band."""
    if not point["beta"] > 0:
        raise ValueError(f"config.sweep.beta must be positive, got {point['beta']}")
    if not config.band[0] < config.band[1]:
        raise ValueError(f"config.band must increase, got {config.band}")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Both KLs by the library and from the solved optimum; a batch and what the filter keeps."""
    rate, beta = jnp.asarray(config.rates), point["beta"]
    start = jnp.log(jnp.stack([1 - rate, rate], axis=-1))
    best = regularized.greedy(
        jnp.broadcast_to(jnp.array([0.0, 1.0]), start.shape), start, beta, generator=generators.kl()
    ).log_policy
    solved = jnp.stack([divergences.kl(start, best), divergences.kl(best, start)])
    return {
        "forward": kl_to_optimum(rate, beta),
        "reverse": kl_from_optimum(rate, beta),
        "solved": solved,
        "bound": learnability(rate, beta),
    } | filtered(config, key)


def filtered(config: ConfigDict, key: Array) -> dict[str, Array]:
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
    return {
        "kept": count / config.questions,
        "signal": weights @ signal / count,
        "gain": weights @ (rate * (1 - rate) * signal) / count,
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """KL over its approximation; pass rates kept and what they bring."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0))
    shown = results.isel(seed=0)
    for beta, style in zip(
        shown.beta.values, ("o-", "s--", "^-.", "v:", "D-", "x--"), strict=False
    ):
        at = shown.sel(beta=beta)
        left.plot(at.rate, at.forward / at.bound, style, markersize=4, label=f"β = {beta:g}")
    left.axhline(1, color="black", linewidth=1)
    left.set(
        xlabel="pass rate p of the start", ylabel="KL(π₀‖π*) / (p (1 - p) / 2β²)", yscale="log"
    )
    left.legend(ncols=2)
    means = np.arange(config.group + 1) / config.group
    share = stats.betabinom.pmf(np.arange(config.group + 1), config.group, 0.5, 0.5)
    inside = (means >= config.band[0]) & (means <= config.band[1])
    right.set_axisbelow(True)
    right.bar(means, share, width=0.08, color=np.where(inside, "#0072b2", "#c8c8c8"))
    right.set(xlabel=f"mean reward of {config.group} answers", ylabel="share of questions")
    gain = results.gain.isel(beta=0).mean("seed")
    ratio = float(gain.sel(batch="filtered") / gain.sel(batch="all"))
    right.text(0.5, 0.95, f"kept (blue): {ratio:.1f} times the gain\nof a step for each group",
               transform=right.transAxes, ha="center", va="top")  # fmt: skip
    return {
        "difficulty": Picture(
            figure,
            "Left: the KL from the start to the optimum over its approximation by the variance,"
            " which is a lower bound only where the curve is above 1: for hard questions, and for"
            " fewer of them the smaller β. Right: questions by the mean of a group; filtering"
            " keeps the blue ones, and the ends have no gradient at all.",
        )
    }


def _betabinomial(config: ConfigDict) -> dict[str, float]:
    """Expected share, signal and gain of the band .2 to .8, and of all groups."""
    a, n = 0.5, config.group
    right = np.arange(n + 1)
    pmf, mean = stats.betabinom.pmf(right, n, a, a), right / n
    # E[p (1 - p) | k right] of Beta(a + k, a + n - k).
    after, total = (a + right) * (a + n - right), 2 * a + n
    pair = after / (total * (total + 1))
    kept = pmf * ((mean >= 0.2) & (mean <= 0.8))
    signal = mean * (1 - mean)
    of = lambda w, x: float(w @ x / w.sum())
    return {
        "kept": float(kept.sum()),
        "signal": of(kept, signal) / of(pmf, signal),
        "gain": of(kept, pair * signal) / of(pmf, pair * signal),
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The closed form, the six rates, where the bound holds, what filtering gains."""
    shown, seeds = results.isel(seed=0), results.sizes["seed"]
    name = "forward" if config.claims.forward else "reverse"
    rate, beta = shown.rate, shown.beta
    closed = np.log1p(rate * np.expm1(1 / beta)) - rate / beta
    size = np.maximum(closed, 1)
    at_one = shown.sel(beta=1.0, rate=list(REFERENCE))
    margin = (shown.forward - shown.bound).sel(beta=config.claims.beta)
    inside = {"rate": [r for r in config.rates if r <= 0.3]}
    outside = {"rate": [r for r in config.rates if r >= 0.5]}
    wide = shown.sel(beta=config.claims.wide)
    next_order = (1 - 2 * rate) / (3 * config.claims.wide)
    relative = wide.forward / wide.bound - 1
    batch = results.isel(beta=0)
    expected = _betabinomial(config)
    share = batch.kept.sel(batch="filtered")
    ratios = [
        batch[x].sel(batch="filtered") / batch[x].sel(batch="all") for x in ("signal", "gain")
    ]
    error = np.sqrt(expected["kept"] * (1 - expected["kept"]) / (seeds * config.questions))
    quantile = stats.t.isf(5e-4, seeds - 1) / seeds**0.5
    errors = [quantile * float(x.std("seed", ddof=1)) for x in ratios]
    return [
        Claim(
            "kl-to-the-optimum-in-closed-form",
            f"{SOURCE}; derived",
            "log(1 - p + p e^(1/beta)) - p/beta against the KL to the solved optimum, and the"
            " library's value: largest errors over pass rates and beta.",
            [
                float(np.abs((shown.solved.sel(direction=name) - closed) / size).max()),
                float(np.abs((shown[name] - closed) / size).max()),
            ],
            high=1e-12,
            controls=({"claims.forward": False},),
        ),
        Claim(
            "the-reference-rates",
            f"{SOURCE}; an independent recomputation",
            "KL(pi_0‖pi*) and p (1 - p)/2 at beta 1 for p = .01, .1, .3, .5, .7, .9; to the last"
            " digit.",
            np.stack([at_one[name].values, at_one.bound.values], axis=-1),
            low=np.array(list(REFERENCE.values())) - 5.1e-5,
            high=np.array(list(REFERENCE.values())) + 5.1e-5,
            controls=({"claims.forward": False},),
            published=np.array(list(REFERENCE.values())),
        ),
        Claim(
            "a-lower-bound-for-hard-questions-only",
            f"{SOURCE}: the variance as a lower bound; here where it is one",
            "KL less p (1 - p)/(2 beta^2) at beta 1: the least for p <= .3, where it is positive,"
            " and the largest for p >= .5, where it is negative.",
            [float(margin.sel(inside).min()), float(margin.sel(outside).max())],
            low=(0.0, -np.inf),
            high=(np.inf, 0.0),
            controls=({"claims.beta": 0.25},),
        ),
        Claim(
            "the-variance-in-the-limit",
            f"{SOURCE}; derived",
            "At beta 100 the KL over p (1 - p)/(2 beta^2) is 1 + (1 - 2p)/(3 beta): the largest"
            " error, of the order of 1/beta^2.",
            float(np.abs(relative - next_order).max()),
            high=1e-4,
            controls=({"claims.wide": 1.0},),
        ),
        Claim(
            "what-the-filter-keeps",
            f"{SOURCE}; band from a note by others, numbers by the beta-binomial distribution",
            f"Share of groups within [.2, .8]: {expected['kept']:.4f} expected, four standard"
            " errors.",
            float(share.mean()),
            low=expected["kept"] - 4 * error,
            high=expected["kept"] + 4 * error,
            controls=({"band": (0.0, 1.0)},),
        ),
        Claim(
            "what-the-filter-gains",
            f"{SOURCE}; only the direction is published",
            "Variance of rewards, and first-order gain of a step, for each kept group over each"
            f" group: {expected['signal']:.3f} and {expected['gain']:.3f} expected, 99.9% by"
            " Student's t.",
            [float(x.mean()) for x in ratios],
            low=[expected[x] - e for x, e in zip(("signal", "gain"), errors, strict=True)],
            high=[expected[x] + e for x, e in zip(("signal", "gain"), errors, strict=True)],
            controls=({"band": (0.0, 1.0)},),
        ),
    ]
