"""Overoptimization by best-of-n, and what ensembles of reward models do about it.

Coste et al. 2024 (arXiv:2310.02743) report language models (gains of 30 % and, with label noise,
75 % for best-of-n); this toy and its reference numbers, with 60 prompts, are not theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict
from scipy import stats

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv.alignment import best_of_n, rewards

AXES = {"seed": axes.seeds}
FIELDS = {
    "members": axes.at_least(2),
    "pool": axes.at_least(2000),
    "strange.share": axes.fraction,
    "coefficient": axes.real,
    "noise": axes.non_negative,
    "strange.gold": axes.real,
    "strange.noise": axes.non_negative,
}
MODELS = ("single", "mean", "wco", "uwo", "oracle")
NOISES = ("strange", "alike")
SOURCE = "Coste et al. 2024 (arXiv:2310.02743); this toy recomputed with 60 prompts"
REFERENCE_N = (1, 4, 16, 64, 256, 1024, 12_500)
REFERENCE_PROMPTS = 60
REFERENCE = (
    (-0.101, 0.781, 1.099, 0.677, -0.094, -0.164, 0.180),
    (-0.101, 0.910, 1.587, 2.022, 2.213, 2.131, 1.420),
    (-0.101, 0.932, 1.681, 2.259, 2.735, 3.146, 3.672),
    (-0.101, 0.940, 1.693, 2.270, 2.735, 3.113, 3.694),
    (-0.101, 0.967, 1.722, 2.311, 2.800, 3.227, 3.843),
)
ALIKE = {"single": 3.831, "oracle": 3.915}  # at n = 12,500
FEW = {"sweep.seed": tuple(range(32))}
# UWO with its variance added, and without it, which is the mean.
ADDED, WITHOUT = {"coefficient": -0.5, **FEW}, {"coefficient": 0.0, **FEW}


def sizes(config: ConfigDict) -> tuple[int, ...]:
    """The n of best-of-n; the last but one shows what weights off by one would do."""
    return (*(n for n in REFERENCE_N if n < config.pool - 1), config.pool - 1, config.pool)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Gold reward of best-of-n for one prompt, by every reward."""
    of_kind, of_gold, of_errors = jax.random.split(key, 3)
    strange = jax.random.uniform(of_kind, (config.pool,)) < config.strange.share
    gold = jax.random.normal(of_gold, (config.pool,)) + jnp.where(strange, config.strange.gold, 0)
    errors = jax.random.normal(of_errors, (config.members, config.pool))
    noise = jnp.stack(
        [jnp.where(strange, config.strange.noise, config.noise), jnp.full_like(gold, config.noise)]
    )
    n = jnp.array(sizes(config))

    def by_each_model(deviation: Array) -> Array:
        members = gold[None] + deviation[None] * errors
        proxies = jnp.stack(
            [
                members[0],
                rewards.mean_reward(members),
                rewards.worst_case(members),
                rewards.uncertainty_weighted(members, config.coefficient),
                gold,
            ]
        )
        return jax.lax.map(lambda proxy: best_of_n.pool_mean(proxy, gold, n), proxies)

    by_noise = jax.lax.map(by_each_model, noise)
    return {
        "gold": labelled(by_noise, noise=NOISES, model=MODELS, n=sizes(config)),
        "best": jnp.max(gold),
        "average": jnp.mean(gold),
    }


def expected(config: ConfigDict, noise: str, deviation_share: float) -> np.ndarray:
    """Exact gold reward of the best of n by a reward whose error has this share of the noise.

    The best of n has the density `d F^n`; what it is worth is the mean gold reward at its score.
    """
    strange = config.strange
    kinds = (
        (1 - strange.share, 0.0, config.noise),
        (strange.share, strange.gold, strange.noise if noise == "strange" else config.noise),
    )
    score = np.linspace(-30, 30, 120_001)
    worth, below = 0, 0
    for share, mean, sd in kinds:
        variance = 1 + (deviation_share * sd) ** 2
        law = stats.norm(mean, np.sqrt(variance))
        below = below + share * law.cdf(score)
        worth = worth + share * law.pdf(score) * (mean + (score - mean) / variance)
    n = np.array(sizes(config))[:, None]
    return np.trapezoid(n * below ** (n - 1) * worth, score, axis=-1)


def standard_error(results: xr.Dataset) -> xr.DataArray:
    """Of the mean gold reward over prompts."""
    return results.gold.std("seed", ddof=1) / results.sizes["seed"] ** 0.5


def slack(results: xr.Dataset) -> xr.DataArray:
    """Four standard errors of the difference from a mean over the reference's prompts."""
    return 4 * standard_error(results) * (1 + results.sizes["seed"] / REFERENCE_PROMPTS) ** 0.5


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Gold reward against KL, for both kinds of noise."""
    figure, (left, right) = panels(2, sharey=True)
    kept = [n for n in sizes(config) if n != config.pool - 1]
    names = ("one model", f"mean of {config.members}", "WCO: minimum", "UWO", "true reward")
    mean, error = results.gold.mean("seed").sel(n=kept), standard_error(results).sel(n=kept)
    for axis, noise in zip((left, right), NOISES, strict=True):
        for number, (model, name) in enumerate(zip(MODELS, names, strict=True)):
            at = {"noise": noise, "model": model}
            look = {"color": "black"} if model == "oracle" else style(number, marker=True)
            axis.errorbar(kl(kept), mean.sel(at), error.sel(at), label=name, capsize=2, **look)
        axis.set(xlabel="KL of best-of-n, log n - (n - 1)/n, nats")
    for numbers in REFERENCE:
        label = "reference" if numbers is REFERENCE[0] else None
        left.plot(kl(REFERENCE_N), numbers, "x", color="0.35", markersize=6, label=label)
    left.set(ylabel="true reward of the answer chosen")
    left.set_title("a tenth of the answers strange", fontsize="medium")
    right.set_title("the same noise everywhere", fontsize="medium")
    legend_above(figure, left, columns=6)
    return {
        "overoptimization": Picture(
            figure,
            "Left: where models err most, one of them is exploited from a few answers on and their"
            " mean later; the minimum and the mean less half the variance follow the true reward."
            " Right: with equal noise everywhere nothing is to be exploited. Bars: one standard"
            " error over prompts.",
        )
    }


def kl(n: tuple[int, ...] | list[int]) -> np.ndarray:
    """`log n - (n - 1)/n`."""
    return np.log(n) - 1 + 1 / np.array(n)


def columns(results: xr.Dataset) -> list[int]:
    """The n of the reference that the pool has."""
    return [n for n in REFERENCE_N if n in results.n]


@claim(source=SOURCE, reference=REFERENCE, reruns=(ADDED, WITHOUT))
def reference_table(results: xr.Dataset) -> Finding:
    """Gold reward at n = 1, 4, 16, 64, 256, 1024, 12,500 by one model, the mean, WCO, UWO, the true
    reward. Bounds: four standard errors of the difference, by this run's spread over prompts."""
    at = {"noise": "strange", "n": columns(results)}
    reference = np.array(REFERENCE)[:, : len(at["n"])]
    measured = results.gold.mean("seed").sel(at)
    return equals(reference, measured, tolerance=slack(results).sel(at).values + 5e-4)


@claim(
    source="By quadrature: the law of the best of n, and the mean gold reward at its score",
    wrong=({"errors": 0.0},),
)
def exact_expectations(results: xr.Dataset, config: ConfigDict, errors: float = 1.0) -> Finding:
    """Gold reward by the true reward, one model and the mean, with both kinds of noise, is that of
    the exact law: the largest deviation in standard errors over prompts."""
    deviations = []
    for model, share in (("oracle", 0.0), ("single", 1.0), ("mean", config.members**-0.5)):
        for noise in NOISES:
            at = {"noise": noise, "model": model}
            exact = expected(config, noise, errors * share)
            mean = results.gold.mean("seed").sel(at)
            deviations.append((mean - exact) / standard_error(results).sel(at))
    return at_most(4.5, np.abs(deviations).max())


@claim(
    source=SOURCE,
    reference=(1.099 + 0.094, 2.213 - 1.420),
    reruns=({"strange.noise": 0.3, **FEW},),
    wrong=({"noise": "alike"},),
)
def one_model_and_the_mean_overoptimize(results: xr.Dataset, noise: str = "strange") -> Finding:
    """Loss of gold reward from n = 16 to 256 by one model, and from 256 to the whole pool by the
    mean."""
    mean = results.gold.mean("seed").sel(noise=noise)
    one, average = mean.sel(model="single"), mean.sel(model="mean")
    last = columns(results)[-1]
    return at_least(0, (one.sel(n=16) - one.sel(n=256), average.sel(n=256) - average.sel(n=last)))


@claim(source=SOURCE, reruns=(ADDED, WITHOUT))
def minimum_and_variance_do_not(results: xr.Dataset) -> Finding:
    """Gold reward by WCO and by UWO rises from one n to the next: the smallest rise of each."""
    mean = results.gold.mean("seed").sel(noise="strange", n=columns(results))
    return at_least(0, mean.sel(model=["wco", "uwo"]).diff("n").min("n"))


@claim(
    source=SOURCE,
    reference=(np.nan, *ALIKE.values()),
    wrong=({"noise": "strange"},),
)
def equal_noise_is_not_exploited(results: xr.Dataset, noise: str = "alike") -> Finding:
    """With the same noise everywhere gold reward rises from one n to the next by every reward, the
    smallest rise; and at the whole pool it is the reference's for one model and the true reward."""
    n = columns(results)
    mean = results.gold.mean("seed").sel(noise=noise, n=n)
    last = {"model": list(ALIKE), "n": n[-1]}
    tolerance = slack(results).sel(noise="alike").sel(last).values
    return together(
        at_least(0, mean.diff("n").min()),
        equals(tuple(ALIKE.values()), mean.sel(last), tolerance=tolerance),
    )


@claim(
    source="tlc4418/llm_optimization: the i-th lowest has weight C(i-1, n-1)/C(M, n)",
    wrong=({"shift": 1},),
)
def unbiased_weights(results: xr.Dataset, config: ConfigDict, shift: int = 0) -> Finding:
    """The best of all by the true reward is the best of the pool, and the best of one the average:
    largest errors. Off by one in n would show."""
    oracle = results.gold.sel(model="oracle", n=config.pool - shift)
    ones = results.gold.sel(n=1) - results.average
    return at_most(1e-10, [np.abs(oracle - results.best).max(), np.abs(ones).max()])
