"""What calculators and estimators of alignment are on average, by enumeration of all draws.

Each paper states it or implies it; problems are random, and every expectation is a sum over all
tuples of draws. The sources of the claims name the papers.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import above, count, each, non_negative, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import Picture, curve, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.alignment import (
    a_star_po,
    asymptotics,
    best_of_n,
    f_dpg,
    gshf,
    inference_aware,
    preference,
    rewards,
    tilts,
)

AXES = {"mismatch": non_negative, "seed": seeds}
FIELDS = {
    "draws": count,
    "beta": positive,
    "ceilings": each(positive),
    "tried": count,
    "c": each(positive),
    "cells": above(1),
    "powers": each(positive),
    "coefficient": non_negative,
}
ANSWERS = 5
KL = generators.kl()
OTHER = {"sweep.mismatch": (0.5,)}
"""Samples come from another law than the one that the estimators are told."""


def tuples(draws: int) -> np.ndarray:
    """All tuples of draws, `[tuples, draws]`."""
    return np.array(list(itertools.product(range(ANSWERS), repeat=draws)))


def chances(log_policy: Array, drawn: np.ndarray) -> Array:
    """The probability of each tuple of independent draws."""
    return jnp.exp(jnp.sum(log_policy[drawn], axis=-1))


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Errors of everything, on one problem; its last two answers have the same reward."""
    of_laws, of_rewards, of_samples, of_contexts = jax.random.split(key, 4)
    log_policy, log_ref, log_mass = jax.nn.log_softmax(
        jax.random.normal(of_laws, (3, ANSWERS)), axis=-1
    )
    log_mass = log_mass + 0.4  # known up to its normalizer
    gain = jax.random.normal(of_rewards, (ANSWERS,)).at[-1].set(0.3).at[-2].set(0.3)
    log_drawn = jax.nn.log_softmax((1 + point["mismatch"]) * log_ref)
    return {
        **of_extremes(config, gain, log_policy, log_ref, log_drawn),
        **of_aligned(config, gain, log_ref, of_samples),
        **of_optimal_win_rates(config),
        **of_cumulants(config, log_policy, log_ref),
        **of_estimates(config, gain, log_mass, log_ref, log_drawn),
        **of_rejection(config, log_mass, log_ref, log_drawn, of_samples),
        **of_baselines(log_policy, log_ref),
        **of_explorer(of_contexts),
        **of_members(config, gain, log_policy, log_ref, of_rewards),
    }


def worst(gain: Array, log_policy: Array, draws: int) -> Array:
    """The law of the worst of so many draws, by enumeration; one of the equals is as good."""
    drawn = tuples(draws)
    lowest = (gain[drawn] == jnp.min(gain[drawn], axis=1, keepdims=True)).astype(gain.dtype)
    share = chances(log_policy, drawn)[:, None] * lowest / lowest.sum(axis=1, keepdims=True)
    return jnp.zeros(ANSWERS).at[drawn.ravel()].add(share.ravel())


def of_extremes(config: ConfigDict, gain, log_policy, log_ref, log_drawn) -> dict[str, Array]:
    """Worst of n: law, win rate and its slope by the logits."""
    n = float(config.draws)
    ahead = (jnp.sign(gain[:, None] - gain[None]) + 1) / 2
    opponent = worst(gain, log_drawn, config.draws)

    def enumerated(logits):
        return worst(gain, jax.nn.log_softmax(logits), config.draws) @ ahead @ opponent

    won, by_logits = jax.value_and_grad(enumerated)(log_policy)
    slope = inference_aware.worst_of_n_transform(gain, log_policy, log_ref, n)
    pi = jnp.exp(log_policy)
    law = jnp.exp(best_of_n.worst_of_n(gain, log_ref, n))
    rate = inference_aware.worst_of_n_win_rate(gain, log_policy, log_ref, n)
    return {
        "worst_law": jnp.max(jnp.abs(law - opponent)),
        "worst_win": jnp.abs(rate - won),
        "worst_slope": jnp.max(jnp.abs(pi * (slope - pi @ slope) - by_logits)),
    }


def of_aligned(config: ConfigDict, gain, log_ref, key) -> dict[str, Array | Labelled]:
    """The most that another policy has more than the fixed point, and than the plain tilt."""
    n, beta = float(config.draws), config.beta

    def objective(log_policy):
        win = inference_aware.best_of_n_win_rate(gain, log_policy, log_ref, n)
        return win - beta * divergences.kl(log_policy, log_ref)

    slope = lambda log_policy: inference_aware.best_of_n_transform(gain, log_policy, log_ref, n)
    best = inference_aware.aligned(slope, log_ref, beta, generator=KL).log_policy
    plain = tilts.tilted(
        inference_aware.calibrated(gain, log_ref), log_ref, beta, generator=KL
    ).log_policy
    others = best[None] + 0.3 * jax.random.normal(key, (200, ANSWERS))
    values = jax.vmap(objective)(jnp.concatenate([jnp.stack([best, plain]), others]))
    ahead = jnp.max(values) - values[:2]
    return {"ahead": labelled(ahead, of=("fixed point", "tilt"))}


def of_optimal_win_rates(config: ConfigDict) -> dict[str, Labelled]:
    """Win rate and KL of the density e^(c u) on cells, less what is stated."""
    u, log_ref = inference_aware.quantiles(config.cells)
    c = jnp.array(config.c)
    stated = best_of_n.win_rate_optimal(c)
    tilted = log_ref[None, None] + jnp.multiply.outer(jnp.stack([c, 2 * c]), u)
    win = jax.nn.softmax(tilted) @ u
    kl = divergences.kl(tilted, jnp.broadcast_to(log_ref, tilted.shape))
    apart = jnp.stack([win - stated.win[None], kl - stated.divergence[None]])
    by = {"number": ("win", "KL"), "density": ("e^(c u)", "e^(2 c u)"), "c": config.c}
    return {"optimal_win": labelled(jnp.abs(apart), **by)}


def of_cumulants(config: ConfigDict, log_policy, log_ref) -> dict[str, Array | Labelled]:
    """Rényi cross-entropy as the reward's normalized cumulant, and its series."""
    powers = jnp.array(config.powers)
    rows = jnp.broadcast_to(log_policy, (len(powers), ANSWERS))
    other = jnp.broadcast_to(log_ref, rows.shape)
    found = -asymptotics.renyi_cross_entropy(rows, other, 1 + powers)
    direct = jax.nn.logsumexp(rows + powers[:, None] * other, axis=-1) / powers
    kappa = asymptotics.cumulants(log_ref, log_policy)
    order = jnp.arange(1.0, 5.0)
    factorial = jnp.exp(jax.scipy.special.gammaln(order + 1))
    terms = (kappa / factorial)[None] * powers[:, None] ** (order - 1)[None]
    rest = direct[:, None] - jnp.cumsum(terms, axis=1)
    return {
        "renyi": jnp.max(jnp.abs(found - direct)),
        "rest": labelled(jnp.abs(rest), power=config.powers, terms=(1, 2, 3, 4)),
    }


def of_estimates(config: ConfigDict, gain, log_mass, log_ref, log_drawn) -> dict[str, Array]:
    """Means over all draws of estimates of a value and of a normalizer."""
    drawn, beta = tuples(config.draws), config.beta
    chance = chances(log_drawn, drawn)
    estimate = a_star_po.optimal_value_estimate(gain[drawn], beta)
    value = beta * jax.nn.logsumexp(log_ref + gain / beta)
    log_z = f_dpg.log_partition(log_mass[drawn], log_ref[drawn])
    return {
        "value_bias": chance @ estimate - value,
        "exponential_bias": chance @ jnp.exp((estimate - value) / beta) - 1,
        "partition_bias": chance @ jnp.exp(log_z) / jnp.sum(jnp.exp(log_mass)) - 1,
    }


def of_rejection(config: ConfigDict, log_mass, log_ref, log_drawn, key) -> dict[str, Labelled]:
    """Quasi-rejection: law, acceptance, its distance from the target and bound; samples."""
    ceilings = jnp.array(config.ceilings)
    of_draws, of_keys = jax.random.split(key)
    x = jax.random.categorical(of_draws, log_drawn, shape=(config.tried,))

    def at(ceiling, key):
        found = f_dpg.quasi_rejection(log_mass, log_ref, ceiling)
        kept = jnp.minimum(jnp.exp(log_mass), ceiling * jnp.exp(log_ref))
        law = jnp.exp(found.log_policy)
        error = jnp.max(jnp.abs(law - kept / kept.sum()))
        wrong = jnp.abs(found.acceptance - kept.sum() / ceiling)
        distance = divergences.total_variation(found.log_policy, log_mass)
        taken = f_dpg.accept(log_mass[x], log_ref[x], ceiling, key)
        hits = taken[:, None] & jax.nn.one_hot(x, ANSWERS, dtype=bool)
        share = law * found.acceptance
        deviation = jnp.sqrt(share * (1 - share) / config.tried)
        score = jnp.max(jnp.abs(jnp.mean(hits.astype(law.dtype), axis=0) - share) / deviation)
        exact = jnp.maximum(error, wrong)
        return jnp.stack([exact, distance, found.bound, found.acceptance, score])

    numbers = jax.vmap(at)(ceilings, jax.random.split(of_keys, len(ceilings)))
    what = ("error", "distance", "bound", "acceptance", "score")
    return {"rejection": labelled(numbers, ceiling=config.ceilings, what=what)}


def of_baselines(log_policy, log_target) -> dict[str, Array | Labelled]:
    """Moving averages: their numbers, and the gradient with the mean of a window for baseline."""
    stream = jnp.sin(jnp.arange(7.0))
    window = f_dpg.push(f_dpg.empty_window(4, stream.dtype), stream[:2])
    early = f_dpg.window_mean(window) - jnp.mean(stream[:2])
    window = f_dpg.push(window, stream[2:])
    late = f_dpg.window_mean(window) - jnp.mean(stream[3:])
    log_mean = f_dpg.window_log_mean_exp(window) - jnp.log(jnp.mean(jnp.exp(stream[3:])))
    pi, reward = jnp.exp(log_policy), f_dpg.pseudo_reward(log_policy, log_target, generator=KL)
    exact = pi * (reward - pi @ reward)
    before = f_dpg.push(f_dpg.empty_window(2, reward.dtype), jnp.array([0.4, -1.3]))

    def share(baseline):
        """Of the gradient, what is left of it with this baseline for each answer."""
        advantage = reward - baseline
        return (pi * (advantage - pi @ advantage)) @ exact / (exact @ exact)

    after = jax.vmap(lambda r: f_dpg.window_mean(f_dpg.push(before, r)))(reward)
    taken = jnp.stack([share(f_dpg.window_mean(before)), share(after)])
    return {
        "window": jnp.max(jnp.abs(jnp.stack([early, late, log_mean]))),
        "left": labelled(taken, baseline=("before", "after")),
    }


def of_explorer(key) -> dict[str, Labelled]:
    """Mean width of the answers of the main policy and of the explorer, without and with bonus."""
    of_features, of_weights, of_data = jax.random.split(key, 3)
    features = jax.random.normal(of_features, (3, ANSWERS, 2))
    weights = jax.random.normal(of_weights, (2,))
    problem = gshf.LinearProblem(features, weights, jnp.zeros((3, ANSWERS)), 0.5)
    data = gshf.compare(problem, problem.ref_logits, problem.ref_logits, 30, of_data)
    main = gshf.learned_policy(problem, data, 1.0, 0.0)
    center = jnp.einsum("ca,cad->cd", jnp.exp(main), features)
    seen = gshf.precision(data.differences, data.counts, 1.0)
    width = gshf.width(features, center, seen)
    explorers = [gshf.explorer(problem, main, data, 1.0, bonus) for bonus in (0.0, 3.0)]
    mean = jnp.stack([jnp.mean(jnp.sum(jnp.exp(x) * width, axis=-1)) for x in (main, *explorers)])
    return {"width": labelled(mean, who=("main", "no bonus", "explorer"))}


def of_members(config: ConfigDict, gain, log_policy, log_ref, key) -> dict[str, Array | Labelled]:
    """Ensembles of twice the scale; and the gradient of HyPO's sampled KL, over all draws."""
    members = gain[None] + jax.random.normal(key, (4, ANSWERS))
    rules = rewards.deviation_penalized, rewards.uncertainty_weighted
    scaled = [rule(2 * members, 0.5) - 2 * rule(members, 0.5) for rule in rules]
    drawn, zero = tuples(2), jnp.zeros(ANSWERS**2)

    def sampled(logits):
        log_pi = jax.nn.log_softmax(logits)
        chance = jax.lax.stop_gradient(chances(log_pi, drawn))
        samples = log_pi[drawn], log_ref[drawn]
        pair = (zero,) * 4
        return chance @ preference.hypo(
            *pair, *samples, beta=config.beta, coefficient=config.coefficient
        )

    def values_alone(logits):
        log_pi = jax.nn.log_softmax(logits)
        chance = jax.lax.stop_gradient(chances(log_pi, drawn))
        return config.coefficient * chance @ jnp.mean(log_pi[drawn] - log_ref[drawn], axis=1)

    def exact(logits):
        return config.coefficient * divergences.kl(logits, log_ref)

    found = [jax.value_and_grad(f)(log_policy) for f in (exact, sampled, values_alone)]
    value = jnp.stack([x for x, _ in found]) - jnp.array([0.0, 1.0, 0.0]) * jnp.log(2.0)
    slope = jnp.stack([x for _, x in found])
    slope = jnp.max(jnp.abs(slope[1:] - slope[:1]), axis=1)
    error = jnp.maximum(jnp.abs(value[1:] - value[:1]), slope)
    size = jnp.max(jnp.abs(jnp.stack(scaled)), axis=1)
    return {
        "scaled": labelled(size, rule=("deviation", "variance")),
        "hypo": labelled(error, by=("HyPO", "values alone")),
    }


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Quasi-rejection: distance, bound and acceptance."""
    first = results.rejection.isel(mismatch=0, seed=0)
    figure, axis = panels(1, width=6.4, height=4.0)
    names = {
        "distance": "distance from the target (total variation)",
        "bound": "bound on it",
        "acceptance": "share of samples that are kept",
    }
    for number, (name, label) in enumerate(names.items()):
        curve(axis, "ceiling", first.sel(what=name), label=label, **style(number, marker=True))
    axis.set(xscale="log", xlabel="β, the ceiling of P/q", ylabel="share", ylim=(0, 1.02))
    axis.set_xticks(first.ceiling.values, [f"{x:g}" for x in first.ceiling.values], minor=False)
    axis.minorticks_off()
    legend_above(figure, axis, columns=1)
    return {
        "rejection": Picture(
            figure,
            "Quasi-rejection sampling on one problem: a higher ceiling keeps fewer samples, and"
            " brings their law to the target, always within the bound.",
        )
    }


# ------------------------------------------------------------------------------------------ claims

ROUNDING = 1e-12


@claim(
    source="The law F^n - F_<^n; Balashankar et al. 2024 (arXiv:2412.19792), the win rate of the"
    " worst of n",
    reruns=(OTHER,),
)
def the_worst_of_n_is_that_of_all_draws(results: xr.Dataset) -> Finding:
    """Law of the worst of three with ties, probability that it beats the worst of three of the
    reference, and the slope of that by the logits: largest errors against sums over all draws."""
    names = ("worst_law", "worst_win", "worst_slope")
    return at_most(ROUNDING, [results[name].max() for name in names])


@claim(
    source="Balashankar et al. 2024 (arXiv:2412.19792), the fixed point",
    wrong=({"of": "tilt"},),
    needs={"mismatch": ..., "seed": ...},
)
def the_fixed_point_is_the_optimum(results: xr.Dataset, of: str = "fixed point") -> Finding:
    """The most that 200 policies around have more of the best-of-three win rate less beta KL than
    the fixed point; the tilt by the reward's quantile is behind it."""
    return at_most(ROUNDING, results.ahead.sel(of=of).max())


@claim(
    source="Gui et al. 2024, BoNBoN (arXiv:2406.00832), the win-rate-optimal policy",
    wrong=({"density": "e^(2 c u)"},),
    needs={"mismatch": ..., "seed": ...},
)
def the_optimal_density_wins_as_stated(
    results: xr.Dataset, config: ConfigDict, density: str = "e^(c u)"
) -> Finding:
    """Win rate and KL of the density c e^(c u)/(e^c - 1) on cells, less the closed forms, for c
    from .1 to 10: the largest difference, in squares of the cells' width."""
    return at_most(20.0, results.optimal_win.sel(density=density).max() * config.cells**2)


@claim(
    source="Yang et al. 2024 (arXiv:2404.01730), cumulants and Rényi cross-entropy",
    wrong=({"terms": 3},),
    needs={"mismatch": ..., "seed": ...},
)
def cumulants_are_the_series_of_renyi(results: xr.Dataset, terms: int = 4) -> Finding:
    """Largest error of -H_(1+rho)(p‖q) against log E_p e^(rho log q) / rho; and by how much the
    rest of its series in rho after four cumulants grows when rho doubles, about 2^4 = 16 times and
    more where the next one is small, the least: after three it would be 8."""
    rest = results.rest.sel(terms=terms)
    growth = rest.isel(power=1) / rest.isel(power=0)
    return together(at_most(ROUNDING, results.renyi.max()), at_least(12, growth.min()))


@claim(
    source="A*-PO, V_hat of the released code; Go et al. 2023 (arXiv:2302.08215), algorithm 1",
    reruns=(OTHER,),
)
def exponentials_of_estimates_are_unbiased(results: xr.Dataset) -> Finding:
    """Over all triples of samples: relative bias of e^(V/beta) and of Z, and the largest bias of V
    itself, which is negative by Jensen's inequality."""
    exact = np.abs([results.exponential_bias, results.partition_bias]).max(axis=(1, 2))
    return together(at_most(ROUNDING, exact), at_most(-1e-4, results.value_bias.max()))


@claim(
    source="Eikema et al. 2022 (arXiv:2112.05702); the bound is derived here",
    reruns=(OTHER,),
    wrong=({"share": 0.5},),
)
def quasi_rejection_keeps_its_bound(results: xr.Dataset, share: float = 1.0) -> Finding:
    """Errors of law and acceptance against min(P, beta q); the largest excess of the total
    variation over the bound, of which half is none, and the bound at the highest beta over that at
    the lowest; the largest standard score of the share of samples that are kept as each answer."""
    at = results.rejection
    limit = share * at.sel(what="bound")
    return together(
        at_most(ROUNDING, at.sel(what="error").max()),
        at_most(ROUNDING, (at.sel(what="distance") - limit).max()),
        at_most(0.9, (limit.isel(ceiling=-1) / limit.isel(ceiling=0)).max()),
        at_most(5.0, at.sel(what="score").max()),
    )


@claim(
    source="Go et al. 2023 (arXiv:2302.08215), its code: a moving average for a baseline",
    wrong=({"before": "after", "after": "before"},),
    needs={"mismatch": ..., "seed": ...},
)
def a_window_is_a_baseline_before_it_is_pushed(
    results: xr.Dataset, before: str = "before", after: str = "after"
) -> Finding:
    """Largest error of means and of log mean exp of a window against the numbers in it; share of
    the gradient that is left with the mean of a window of two, all of it, and half of it if the
    sample itself was pushed first."""
    left = [results.left.sel(baseline=name).transpose("seed", ...) for name in (before, after)]
    return together(
        at_most(ROUNDING, results.window.max()),
        equals(1.0, left[0], tolerance=ROUNDING),
        equals(0.5, left[1], tolerance=ROUNDING),
    )


@claim(
    source="GSHF, Xiong et al. 2024 (arXiv:2312.11456), online learning: the enhancer",
    wrong=({"who": "no bonus"},),
    needs={"mismatch": ..., "seed": ...},
)
def an_explorer_asks_what_is_not_known(results: xr.Dataset, who: str = "explorer") -> Finding:
    """Mean width of the explorer's answers over that of the main policy's, the least; without a
    bonus it is the main policy: largest difference."""
    width = results.width
    plain = np.abs(width.sel(who="no bonus") - width.sel(who="main")).max()
    wider = (width.sel(who=who) / width.sel(who="main")).min()
    return together(at_least(1.01, wider), at_most(ROUNDING, plain))


@claim(
    source="UP-RLHF (arXiv:2401.00243), abstract. Reconstructed: the deviation as the measure",
    wrong=({"rule": "variance"},),
    needs={"mismatch": ..., "seed": ...},
)
def a_deviation_has_the_unit_of_rewards(results: xr.Dataset, rule: str = "deviation") -> Finding:
    """Rewards of all members doubled: the penalized reward less twice what it was, which a variance
    does not leave at 0."""
    return at_most(ROUNDING, results.scaled.sel(rule=rule).max())


@claim(
    source="Song et al. 2024 (arXiv:2406.01462), algorithm 1. Reconstructed: from memory",
    wrong=({"by": "values alone"},),
    needs={"mismatch": ..., "seed": ...},
)
def hypo_estimates_the_kl(results: xr.Dataset, by: str = "HyPO") -> Finding:
    """Value and gradient of HyPO's sampled KL, mean over all pairs of samples of the policy, less
    those of the exact KL: the largest error. The log-ratios alone, differentiated, have none."""
    return at_most(ROUNDING, results.hypo.sel(by=by).max())
