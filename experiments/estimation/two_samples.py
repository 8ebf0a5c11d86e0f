"""What two samples tell, on average: kernels, distances, weights, and lower bounds from a critic.

Both samples come from unit Gaussians whose means are `shift` apart, so every expectation has a
closed form: which estimates are right on average, which are too high or too low, and by how much.
Where a bound holds for expectations, these are taken exactly: samples that are laws, a category as
often as it is probable.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import positive, real, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import Picture, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, estimators, generators
from jdiv.estimators import kernels, variational

AXES = {"shift": real, "paired": axes.fraction, "seed": seeds}
"""With `paired` 1 the second sample is the first one moved, and not a sample of its own."""
FIELDS = {
    "first": axes.at_least(2),
    "second": axes.at_least(2),
    "weighted": axes.at_least(2),
    "repeats": axes.at_least(2),
    "bandwidth": positive,
    "information": positive,
}
ESTIMATES = (
    "MMD, unbiased", "MMD, biased", "energy distance", "Donsker-Varadhan", "f-divergence bound"
)  # fmt: skip
BASELINES = ("of the critic", "none")
COUNTS = {"p": (20, 16, 12, 8, 4, 4), "q": (8, 8, 8, 16, 16, 8)}
"""How often a category is in a sample of 64."""
ROWS = ("kl", "jensen_shannon", "squared_hellinger", "pearson_chi2")
CRITICS = 32
PAIRED = {"sweep.paired": (1.0,)}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """All estimates by repeat, or their moments; the bounds that need no samples."""
    of_pairs, of_weights, of_scores, of_critics = jax.random.split(key, 4)
    return {
        **from_pairs(config, point, of_pairs),
        **from_weights(config, point["shift"], of_weights),
        **from_scores(config, of_scores),
        **from_laws(of_critics),
    }


def from_pairs(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """Estimates `[estimate, repeat]`, and the energy distance by distribution functions."""

    def one(key):
        of_x, of_y = jax.random.split(key)
        x = jax.random.normal(of_x, (config.first, 1))
        own = jax.random.normal(of_y, (config.second, 1))
        moved = jnp.resize(x, own.shape)
        y = jnp.where(point["paired"] > 0, moved, own) + point["shift"]
        # The best critic, log p/q: of p = N(0, 1) and q = N(shift, 1).
        critic = lambda z: point["shift"] * (point["shift"] / 2 - z[:, 0])
        options = {"bandwidth": config.bandwidth}
        energy = kernels.energy_distance(x, y)
        found = jnp.stack([
            kernels.squared_mmd_unbiased(x, y, **options),
            kernels.squared_mmd_biased(x, y, **options),
            energy,
            variational.kl_donsker_varadhan(critic(x), critic(y)),
            variational.f_divergence_bound(generators.kl(), critic(x), critic(y)),
        ])  # fmt: skip
        return found, energy - 2 * between_functions(x[:, 0], y[:, 0])

    found, differs = jax.vmap(one)(jax.random.split(key, config.repeats))
    return {
        "estimates": labelled(found.T, estimate=ESTIMATES, repeat=range(config.repeats)),
        "energy_error": jnp.max(jnp.abs(differs)),
    }


def between_functions(x: Array, y: Array) -> Array:
    """`int (F - G)^2` of the distribution functions of two samples on a line."""
    both = jnp.concatenate([x, y])
    steps = jnp.concatenate([jnp.full(len(x), 1 / len(x)), jnp.full(len(y), -1 / len(y))])
    order = jnp.argsort(both)
    difference = jnp.cumsum(steps[order])[:-1]
    return jnp.sum(difference**2 * jnp.diff(both[order]))


def from_weights(config: ConfigDict, shift: Array, key: Array) -> dict[str, Array | Labelled]:
    """KL(p‖q) from samples of q, weighted by p/q: as a share of their sum, and as they are.

    `bias` is what is left on average when the error to first order, which has no mean, is taken
    out; `outside` how often the estimate is not among the values.
    """

    def one(key):
        x = shift + jax.random.normal(key, (config.weighted,))
        log_ratio = shift * (shift / 2 - x)
        weights, truth = jnp.exp(log_ratio), shift**2 / 2
        # Weights known up to a factor, which must not matter.
        normalized = estimators.self_normalized_mean(log_ratio, log_ratio + 3)
        both = jnp.stack([normalized, jnp.mean(weights * log_ratio)])
        outside = (both > jnp.max(log_ratio)) | (both < jnp.min(log_ratio))
        return both - truth - jnp.mean(weights * (log_ratio - truth)), outside

    bias, outside = jax.vmap(one)(jax.random.split(key, config.repeats))
    kinds = {"weights": ("normalized", "plain")}
    return {
        "bias": labelled(config.weighted * jnp.mean(bias, axis=0), **kinds),
        "outside": labelled(jnp.mean(outside, axis=0, dtype=float), **kinds),
    }


def from_scores(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """TUBA's mean with a critic that has a function of y in it, `[baseline]`."""
    rho = jnp.sqrt(-jnp.expm1(-2 * config.information))

    def one(key):
        x, noise = jax.random.normal(key, (2, config.first))
        y = rho * x + jnp.sqrt(1 - rho**2) * noise
        # log p(y|x), which is log p(x, y)/(p(x) p(y)) up to log p(y).
        scores = -((y[None] - rho * x[:, None]) ** 2) / (2 * (1 - rho**2))
        log_marginal = -(y**2) / 2 + jnp.log(1 - rho**2) / 2
        of_critic = estimators.tuba(scores, log_marginal)
        return jnp.stack([of_critic, estimators.tuba(scores, 0.0)])

    found = jax.vmap(one)(jax.random.split(key, config.repeats))
    return {"tuba": labelled(found.T, baseline=BASELINES, repeat=range(config.repeats))}


def from_laws(key: Array) -> dict[str, Labelled]:
    """Bounds `[row, critic]` and divergences `[row]`; the first critic is the best one.

    The others are off at random; of KL Donsker-Varadhan's bound is there too, by the same critics.
    """
    p, q = (jnp.array(x) / 64 for x in COUNTS.values())
    sample = [np.repeat(np.arange(len(x)), x) for x in COUNTS.values()]
    off = jax.random.normal(key, (CRITICS, len(p))).at[0].set(0)
    found = []
    for name in ROWS:
        row = generators.get(name)
        critics = row.slope(jnp.log(p / q))[None] + 0.5 * off
        found.append(variational.f_divergence_bound(row, *(critics[:, x] for x in sample)))
    critics = jnp.log(p / q)[None] + 0.5 * off
    dv = variational.kl_donsker_varadhan(*(critics[:, x] for x in sample))
    truth = [divergences.f_divergence(generators.get(x), jnp.log(p), jnp.log(q)) for x in ROWS]
    return {
        "bounds": labelled(jnp.stack(found), row=ROWS, critic=range(CRITICS)),
        "donsker_varadhan": labelled(dv, critic=range(CRITICS)),
        "divergence": labelled(jnp.stack(truth), row=ROWS),
    }


# ---------------------------------------------------------------------------------- closed forms


def truths(config: ConfigDict, shift: np.ndarray) -> dict[str, np.ndarray]:
    """Expectations of the estimates by shift."""
    width = config.bandwidth**2 + 2
    kernel = config.bandwidth / math.sqrt(width)
    mmd = 2 * kernel * -np.expm1(-(shift**2) / (2 * width))
    apart = np.array([
        2 / math.sqrt(math.pi) * math.exp(-(x**2) / 4) + x * math.erf(x / 2) for x in (0, *shift)
    ])  # fmt: skip
    sizes = 1 / config.first + 1 / config.second
    return {
        "MMD, unbiased": mmd,
        "MMD, biased": mmd + (1 - kernel) * sizes,
        "energy distance": 2 * (apart[1:] - apart[0]) + apart[0] * sizes,
        "f-divergence bound": shift**2 / 2,
        "Donsker-Varadhan": shift**2 / 2,
    }


# --------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Means by shift beside what they estimate, and bounds by critics."""
    figure, (left, right) = panels(2)
    here = results.isel(paired=0)
    known = truths(config, here["shift"].values)
    draws = here.estimates.stack(draw=("seed", "repeat"))
    for number, name in enumerate(ESTIMATES[:3]):
        look = style(number, marker=True)
        mean = draws.sel(estimate=name).mean("draw")
        left.plot(here["shift"], mean, **(look | {"linestyle": "none"}), label=name)
        left.plot(here["shift"], known[name], color=look["color"], linewidth=1)
    left.plot([], [], color="black", linewidth=1, label="expectation")
    left.set(xlabel="shift between the means", ylabel="mean over samples, squared distance")
    left.legend(fontsize="small", loc="upper left")
    one = here.isel(seed=0, shift=0)
    for number, name in enumerate(ROWS):
        share = np.sort(one.bounds.sel(row=name) / one.divergence.sel(row=name))[::-1]
        right.plot(range(1, CRITICS + 1), share, **style(number), label=name.replace("_", " "))
    right.axhline(1, color="black", linewidth=0.8)
    right.set(xlabel=f"critics, the best of {CRITICS} first", ylabel="bound / divergence")
    right.set(ylim=(-3, 1.3))
    right.legend(fontsize="small", loc="lower right")
    return {
        "two_samples": Picture(
            figure,
            f"Left: means over samples of {config.first} and {config.second}; a V-statistic is too"
            " high by what its diagonal adds, also between equal laws. Right: lower bounds from"
            " exact expectations; the slope of each row at p/q attains its divergence, other"
            " critics stay below.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


def excess(results: xr.Dataset, config: ConfigDict, name: str, of: str) -> tuple:
    """By shift, the mean of an estimate less the expectation of another, and its standard error."""
    draws = results.estimates.sel(estimate=name).stack(draw=("seed", "paired", "repeat"))
    error = draws.std("draw", ddof=1) / math.sqrt(draws.sizes["draw"])
    return draws.mean("draw").values - truths(config, results["shift"].values)[of], error.values


@claim(
    source="Gretton et al. 2012, lemma 6 and section 2; the closed form between Gaussians",
    reruns=(PAIRED,),
    wrong=({"unbiased": "MMD, biased"},),
)
def mmd_without_diagonals_is_unbiased(
    results: xr.Dataset, config: ConfigDict, unbiased: str = "MMD, unbiased"
) -> Finding:
    """The mean of squared MMD without diagonals is that of the Gaussians, and with them too high by
    (1 - E k(x, x'))(1/n + 1/m), at every shift within four standard errors: shown are differences.
    A second sample that is the first one moved is no sample."""
    findings = []
    for name, of in ((unbiased, "MMD, unbiased"), ("MMD, biased", "MMD, biased")):
        difference, error = excess(results, config, name, of)
        findings.append(equals(0, difference, tolerance=4 * error))
    return together(*findings)


@claim(
    source="Gretton et al. 2012, section 2: a U-statistic that is degenerate between equal laws",
    wrong=({"name": "MMD, biased"}, {"name": "energy distance"}),
    needs={"shift": (0.0,), "paired": ...},
)
def unbiased_is_half_of_the_time_negative(
    results: xr.Dataset, name: str = "MMD, unbiased"
) -> Finding:
    """Between samples of one law the estimate without bias is below 0 in more than half of the
    draws, for its law is skewed: a root of it does not exist. V-statistics never are."""
    there = results.estimates.sel(estimate=name, shift=0.0)
    return at_least(0.5, (there < 0).mean())


@claim(
    source="Szekely and Rizzo 2013; E|x - y| of Gaussians",
    reruns=(PAIRED,),
    wrong=({"inflated": False},),
)
def energy_distance_is_too_high_by_its_diagonal(
    results: xr.Dataset, config: ConfigDict, inflated: bool = True
) -> Finding:
    """The mean energy distance of samples is that of the Gaussians and E|x - x'|(1/n + 1/m), within
    four standard errors at every shift: differences. And each is 2 int (F - G)² of the samples'
    distribution functions: the largest error."""
    difference, error = excess(results, config, "energy distance", "energy distance")
    if not inflated:
        sizes = 1 / config.first + 1 / config.second
        difference = difference + 2 / math.sqrt(math.pi) * sizes
    exact = at_most(1e-12, results.energy_error.max())
    return together(equals(0, difference, tolerance=4 * error), exact)


# The variance of w times the deviation, and the covariance with w: by p^2/q, a Gaussian at -shift.
@claim(
    source="Owen 2013, chapter 9, -E_q w² (v - E v) = -shift² e^(shift²)",
    wrong=({"weights": "plain"},),
)
def normalized_weights_are_biased_by_one_over_n(
    results: xr.Dataset, weights: str = "normalized"
) -> Finding:
    """KL(p‖q) by normalized weights is too low: n times the bias over shift² e^(shift²) is -1 at
    the smallest shift, to a tenth. Plain weights have no bias."""
    shift = float(results["shift"].where(results["shift"] > 0).min())
    bias = results.bias.sel(shift=shift, weights=weights).mean(("seed", "paired"))
    return equals(-1, bias / (shift**2 * math.exp(shift**2)), tolerance=0.1)


@claim(source="Owen 2013, chapter 9", wrong=({"weights": "plain"},))
def normalized_weights_stay_among_the_values(
    results: xr.Dataset, weights: str = "normalized"
) -> Finding:
    """How often the estimate is larger than all values, or smaller: never."""
    away = results.outside.sel(shift=results["shift"] > 0, weights=weights)
    return equals(0, away.max())


@claim(
    source="Nguyen, Wainwright and Jordan 2010; Donsker and Varadhan 1983; Jensen's inequality",
    wrong=({"name": "Donsker-Varadhan"},),
)
def the_logarithm_of_a_mean_is_too_low(
    results: xr.Dataset, config: ConfigDict, name: str = "f-divergence bound"
) -> Finding:
    """With the best critic, log p/q, the mean of KL's f-divergence bound is KL at every shift
    within four standard errors; Donsker-Varadhan's is above it by more than four at the largest: no
    bound from a finite sample. Shown are differences."""
    difference, error = excess(results, config, name, "f-divergence bound")
    above, its_error = excess(results, config, "Donsker-Varadhan", "Donsker-Varadhan")
    return together(
        equals(0, difference, tolerance=4 * error), at_least(4 * its_error[-1], above[-1])
    )


@claim(
    source="Nguyen, Wainwright and Jordan 2010; Nowozin, Cseke and Tomioka 2016 (arXiv:1606.00709)",
    wrong=({"best": 1}, {"rows_of": "kl"}),
)
def the_slope_is_the_best_critic(
    results: xr.Dataset, best: int = 0, rows_of: str = "own"
) -> Finding:
    """By exact expectations the bound with a row's slope at p/q is its divergence, of four rows;
    with any other critic it is no larger: the largest error, and the largest excess."""
    truth = results.divergence
    if rows_of != "own":
        truth = truth.sel(row=rows_of)
    off = np.abs(results.bounds.sel(critic=best) - truth).max()
    return at_most((1e-12, 1e-12), (off, (results.bounds - truth).max()))


@claim(
    source="Ruderman et al. 2012 (arXiv:1206.4664): log t <= t - 1",
    wrong=({"swapped": True},),
)
def donsker_varadhan_is_the_tighter_bound(results: xr.Dataset, swapped: bool = False) -> Finding:
    """By exact expectations, of one critic, Donsker-Varadhan's bound of KL is above the
    f-divergence bound and below KL: the smallest differences."""
    low, high = results.bounds.sel(row="kl"), results.donsker_varadhan
    if swapped:
        low, high = high, low
    return at_least(-1e-12, ((high - low).min(), (results.divergence.sel(row="kl") - high).min()))


@claim(
    source="Poole et al. 2019 (arXiv:1905.06922), section 2.2",
    wrong=({"baseline": "none"},),
)
def tuba_takes_the_critics_own_baseline(
    results: xr.Dataset, config: ConfigDict, baseline: str = "of the critic"
) -> Finding:
    """With log p(y|x) for the critic and p(y) for the baseline TUBA's mean is the mutual
    information within four standard errors: the difference. Without one it is another number."""
    # They know no shift.
    draws = results.tuba.sel(baseline=baseline).isel(shift=0, paired=0)
    draws = draws.stack(draw=("seed", "repeat"))
    error = draws.std("draw", ddof=1) / math.sqrt(draws.sizes["draw"])
    return equals(0, draws.mean("draw") - config.information, tolerance=4 * error.item())
