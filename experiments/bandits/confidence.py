"""Upper confidence bounds of a coin, exactly: how often each is below the mean, and how wide it is.

KL-UCB's bound is the largest mean that is a budget of nats away from what was seen, Hoeffding's has
squared distance in the place of KL, Wald's a normal law with the variance that was seen. All
outcomes of n tosses are enumerated.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, inside, positive
from experiments.lab.claims import Finding, at_most, claim
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv.bandits import stochastic

AXES = {"budget": positive}
FIELDS = {"tosses": each(count), "means": each(inside(0, 1)), "confidence": positive}
BOUNDS = ("KL", "Hoeffding", "Wald")
BOLD = {"confidence": 0.25}
"""A quarter of the budget that is claimed."""


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """Bounds of every outcome, and the probability that they are below the mean."""
    tosses, most = jnp.array(config.tosses, float)[:, None], max(config.tosses)
    successes = jnp.arange(most + 1.0)[None]
    here = successes <= tosses
    seen = jnp.where(here, successes / tosses, 0)
    budget = config.confidence * point["budget"] / tosses
    wald = seen + jnp.sqrt(2 * budget * seen * (1 - seen))
    bounds = jnp.stack([
        stochastic.kl_upper_bound(seen, jnp.broadcast_to(budget, seen.shape)),
        jnp.minimum(seen + jnp.sqrt(budget / 2), 1),
        jnp.minimum(wald, 1),
    ])  # fmt: skip
    means = jnp.array(config.means)[:, None, None]
    log_p = jax.scipy.stats.binom.logpmf(successes[None], tosses[None], means)
    p = jnp.where(here[None], jnp.exp(log_p), 0)
    misses = jnp.sum(jnp.where(bounds[:, None] < means[None], p[None], 0), axis=-1)
    width = jnp.sum(p[None] * (bounds - seen[None])[:, None], axis=-1)
    names = {"bound": BOUNDS, "mean": config.means, "tosses": config.tosses}
    return {
        "misses": labelled(misses, **names),
        "width": labelled(width, **names),
        "of_failures": labelled(bounds[..., 0], bound=BOUNDS, tosses=config.tosses),
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Misses and widths by mean."""
    figure, (left, right) = panels(2)
    here = results.isel(budget=-1, tosses=-1)
    for number, name in enumerate(BOUNDS):
        look = style(number)
        left.plot(here["mean"], here.misses.sel(bound=name), label=name, **look)
        right.plot(here["mean"], here.width.sel(bound=name), **look)
    left.axhline(math.exp(-float(here.budget)), color="black", linewidth=0.8, linestyle=":")
    left.set(yscale="log", ylim=(1e-8, 2), xlabel="mean of the coin", ylabel="P(bound below mean)")
    right.set(xlabel="mean of the coin", ylabel="mean width above what was seen", ylim=(0, None))
    legend_above(figure, left, columns=3)
    return {
        "confidence": Picture(
            figure,
            f"{int(here.tosses)} tosses and a budget of {float(here.budget):g} nats. Left: both"
            " Chernoff's (KL) and Hoeffding's bound are below the mean less often than e^-budget"
            " (dotted); Wald's is of no use near 0. Right: KL is the narrower one near the ends,"
            " where arms are told apart.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


@claim(
    source="Chernoff 1952; Garivier and Cappe 2011 (arXiv:1102.2490), for a known count",
    reruns=(BOLD,),
    wrong=({"bound": "Wald"},),
)
def chernoffs_bound_holds(results: xr.Dataset, bound: str = "KL") -> Finding:
    """The mean of a coin is above KL-UCB's bound with a probability of at most e^-budget, for every
    mean, count and budget: the largest quotient, by enumeration. A quarter of the budget is too
    little, and Wald's bound is 0 after failures alone."""
    return at_most(1, (results.misses.sel(bound=bound) / np.exp(-results.budget)).max())


@claim(
    source="Pinsker's inequality: kl(p, q) >= 2 (p - q)^2",
    wrong=({"narrow": "Hoeffding", "wide": "KL"},),
)
def kl_is_never_wider_than_hoeffding(
    results: xr.Dataset, narrow: str = "KL", wide: str = "Hoeffding"
) -> Finding:
    """The mean width of KL's bound over that of Hoeffding's, for every mean and count: the largest;
    near the ends, at the least mean and the largest count, it is below half."""
    share = results.width.sel(bound=narrow) / results.width.sel(bound=wide)
    corner = share.sortby("mean").sortby("tosses").isel(mean=0, tosses=-1).max()
    return at_most((1 + 1e-12, 0.5), (share.max(), corner))


@claim(
    source="Clopper and Pearson 1934 for no success: (1 - q)^n = e^-budget",
    wrong=({"bound": "Hoeffding"}, {"bound": "Wald"}),
)
def failures_alone_have_an_exact_bound(results: xr.Dataset, bound: str = "KL") -> Finding:
    """After n failures KL's bound is 1 - exp(-budget/n), the exact one, the rule of three at a
    budget of log 20: the largest difference."""
    exact = -np.expm1(-results.budget / results.tosses)
    return at_most(1e-12, np.abs(results.of_failures.sel(bound=bound) - exact).max())
