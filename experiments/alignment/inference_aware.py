"""Inference-aware alignment: win rates of the best and the worst of n, for tilts at equal KL.

Balashankar et al. 2024, InfAlign (arXiv:2412.19792). The paper's tables are not known; its
objective is rederived, and the reference numbers are an independent computation of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import above, positive
from experiments.lab.claims import Finding, at_least, at_most, claim, equals
from experiments.lab.plots import Picture, curve, panels, pick, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.alignment import inference_aware, tilts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"budget": positive}
FIELDS = {"cells": above(1)}
# (1 for the best and -1 for the worst, of how many draws).
OBJECTIVES = {
    "best of 1": (1, 1),
    "best of 2": (1, 2),
    "best of 4": (1, 4),
    "worst of 2": (-1, 2),
    "worst of 4": (-1, 4),
}
TRANSFORMS = {
    "u": lambda u: u,
    "log u": inference_aware.log_transform,
    "exp(5u)": lambda u: inference_aware.exponential_transform(u, 5.0),
    "exp(10u)": lambda u: inference_aware.exponential_transform(u, 10.0),
    "-exp(-5u)": lambda u: inference_aware.exponential_transform(u, -5.0),
    "-exp(-10u)": lambda u: inference_aware.exponential_transform(u, -10.0),
}
PAPER = "Balashankar et al. 2024 (arXiv:2412.19792)"
SOURCE = f"{PAPER}; an independent computation of the objective"
BUDGETS = (0.25, 0.5, 1.0, 2.0)
OPTIMUM = "optimum"
# Transforms of a reward in the same order that is not its quantile.
RAW = {"calibrated": False, "cells": 150}
BEST = {
    ("u", "best of 1"): (0.6989, 0.7737, 0.8646, 0.9502),
    ("u", "best of 2"): (0.7198, 0.7917, 0.8733, 0.9515),
    ("u", "best of 4"): (0.7304, 0.7998, 0.8770, 0.9520),
    ("log u", "best of 1"): (0.6902, 0.7682, 0.8631, 0.9501),
    ("log u", "best of 2"): (0.6902, 0.7682, 0.8631, 0.9501),
    ("log u", "best of 4"): (0.6902, 0.7682, 0.8631, 0.9501),
    ("exp(5u)", "best of 1"): (0.6756, 0.7461, 0.8390, 0.9422),
    ("exp(5u)", "best of 2"): (0.7386, 0.8154, 0.8964, 0.9596),
    ("exp(5u)", "best of 4"): (0.7856, 0.8566, 0.9192, 0.9635),
    ("exp(10u)", "best of 1"): (0.6479, 0.7117, 0.8010, 0.9150),
    ("exp(10u)", "best of 2"): (0.7249, 0.8031, 0.8905, 0.9627),
    ("exp(10u)", "best of 4"): (0.7966, 0.8715, 0.9351, 0.9731),
    (OPTIMUM, "best of 1"): (0.6989, 0.7737, 0.8646, 0.9502),
    (OPTIMUM, "best of 2"): (0.7393, 0.8156, 0.8969, 0.9636),
    (OPTIMUM, "best of 4"): (0.7969, 0.8733, 0.9411, 0.9838),
}
WORST = {
    ("u", "worst of 2"): (0.7486, 0.8403, 0.9368, 0.9913),
    ("u", "worst of 4"): (0.7847, 0.8860, 0.9745, 0.9995),
    ("-exp(-5u)", "worst of 2"): (0.7635, 0.8587, 0.9482, 0.9926),
    ("-exp(-5u)", "worst of 4"): (0.8539, 0.9439, 0.9912, 0.9998),
    ("-exp(-10u)", "worst of 2"): (0.7473, 0.8509, 0.9475, 0.9929),
    ("-exp(-10u)", "worst of 4"): (0.8563, 0.9476, 0.9927, 0.9998),
    ("exp(10u)", "worst of 2"): (0.6304, 0.6936, 0.7891, 0.9204),
    ("exp(10u)", "worst of 4"): (0.6167, 0.6763, 0.7712, 0.9117),
    (OPTIMUM, "worst of 2"): (0.7671, 0.8603, 0.9486, 0.9930),
    (OPTIMUM, "worst of 4"): (0.8583, 0.9479, 0.9929, 0.9999),
}
SWAP = {
    "best of 1": "best of 1",
    "best of 2": "worst of 2",
    "best of 4": "worst of 4",
    "worst of 2": "best of 2",
    "worst of 4": "best of 4",
}


def _optimum(objective: str) -> str:
    """The label of the fixed point of an objective among the rules."""
    return f"{OPTIMUM}, {objective}"


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Win rates of all rules under all objectives at one KL."""
    with jax.ensure_compile_time_eval():  # as numbers, which name the results
        u, ref_logits = inference_aware.quantiles(config.cells)
    budget, kl = point["budget"], generators.kl()
    calibrated = u if config.calibrated else jnp.sin(jnp.pi * u / 2) ** 2
    rewards = jnp.stack([transform(calibrated) for transform in TRANSFORMS.values()])
    tilted = tilts.tilted_to(
        rewards, jnp.broadcast_to(ref_logits, rewards.shape), budget, generator=kl
    )
    sign, n = jnp.asarray(list(OBJECTIVES.values()), u.dtype).T

    # The worst of n is the best of n of opposite rewards, with all signs reversed.
    def optimum(sign: Array, n: Array) -> inference_aware.AlignedPolicy:
        def slope(log_policy: Array) -> Array:
            return sign * inference_aware.best_of_n_transform(sign * u, log_policy, ref_logits, n)

        return inference_aware.aligned_to(slope, ref_logits, budget, generator=kl)

    def win(log_policy: Array, sign: Array, n: Array) -> Array:
        won = inference_aware.best_of_n_win_rate(sign * u, log_policy, ref_logits, n)
        return jnp.where(sign > 0, won, 1 - won)

    optima = jax.vmap(optimum)(sign, n)
    rules = jnp.concatenate([tilted.log_policy, optima.log_policy])
    every = jax.vmap(jax.vmap(win, (0, None, None)), (None, 0, 0))
    identity = jnp.broadcast_to(tilted.log_policy[0], optima.log_policy.shape)
    spent = jnp.abs(optima.divergence - budget) < 1e-9
    objective = tuple(OBJECTIVES)
    rule = (*TRANSFORMS, *map(_optimum, OBJECTIVES))
    return {
        "win": labelled(every(rules, sign, n), objective=objective, rule=rule),
        "from_identity": labelled(
            divergences.total_variation(optima.log_policy, identity), objective=objective
        ),
        "converged": labelled(
            optima.converged & spent & jnp.all(tilted.converged), objective=objective
        ),
        "transformed": labelled(optima.transformed, objective=objective, u=np.asarray(u)),
        "power": 1 / tilted.beta[1],
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """What to tilt by, and what it gains."""
    figure, (left, middle, right) = panels(3, width=3.8)
    budget = pick(results.budget, 1.0)
    # Where on the curve its name stands.
    names = {
        "best of 1": (0.5, (5, -9)),
        "best of 2": (0.72, (-54, 2)),
        "best of 4": (0.84, (5, -12)),
        "worst of 2": (0.46, (3, -10)),
        "worst of 4": (0.32, (-52, 5)),
    }
    for number, (objective, (where, offset)) in enumerate(names.items()):
        reward = results.transformed.sel(budget=budget, objective=objective)
        scaled = (reward - reward.min()) / (reward.max() - reward.min())
        look = style(number)
        curve(left, "u", scaled, **look)
        left.annotate(
            objective,
            (where, float(np.interp(where, results.u, scaled))),
            xytext=offset,
            textcoords="offset points",
            fontsize="x-small",
            color=look["color"],
        )
    left.set(xlabel="quantile of the reward", ylabel="optimal transformed reward, rescaled")
    _gains(middle, results, "best of 4", ("log u", "exp(5u)", "exp(10u)"))
    _gains(right, results, "worst of 4", ("log u", "-exp(-5u)", "-exp(-10u)"))
    return {
        "transforms": Picture(
            figure,
            f"Left: the reward whose tilt is the optimum, at a KL of {budget:g}, convex for the"
            " best of n and concave for the worst. Middle and right: what a tilt at the same KL"
            " gains over the plain quantile; no transform is above the fixed point.",
        )
    }


def _gains(axis: Axes, results: xr.Dataset, objective: str, rules: tuple[str, ...]) -> None:
    """Win rates of an objective above that of the tilt by u, in points."""
    win = results.win.sel(objective=objective)
    for number, rule in enumerate((*rules, _optimum(objective))):
        gain = 100 * (win.sel(rule=rule) - win.sel(rule="u"))
        label = rule.split(",")[0].replace("-", "−")
        curve(axis, "budget", gain, label=label, **style(number, marker=True))
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="KL(π‖ref), nats", ylabel="gain over the identity, points")
    axis.set_title(f"win rate of the {objective}", fontsize="medium")
    ticks(axis, x=results.budget.values)
    axis.legend(frameon=True, framealpha=1, edgecolor="none")


def _win_rates(config: ConfigDict, results: xr.Dataset, table: dict, swapped: bool) -> Finding:
    """Measured and reference win rates; the measured ones under the other objective if swapped."""
    measured = []
    for rule, objective in table:
        label = _optimum(objective) if rule == OPTIMUM else rule
        under = SWAP[objective] if swapped else objective
        at = {"rule": label, "objective": under, "budget": list(BUDGETS)}
        measured.append(results.win.sel(at).values)
    digits = 5e-5 + 2 / config.cells**2  # half of the last one, and the cells' width
    return equals(tuple(table.values()), measured, tolerance=digits)


@claim(
    source=SOURCE,
    reference=tuple(BEST.values()),
    reruns=(RAW,),
    wrong=({"swapped": True},),
)
def best_of_n_table(results: xr.Dataset, config: ConfigDict, swapped: bool = False) -> Finding:
    """Win rates of the best of 1, 2 and 4 at KL .25, .5, 1, 2 for tilts by u, log u, exp(5u),
    exp(10u) and at the fixed point, to the reference's four digits."""
    return _win_rates(config, results, BEST, swapped)


@claim(
    source=SOURCE,
    reference=tuple(WORST.values()),
    reruns=(RAW,),
    wrong=({"swapped": True},),
)
def worst_of_n_table(results: xr.Dataset, config: ConfigDict, swapped: bool = False) -> Finding:
    """Win rates of the worst of 2 and 4, for tilts by u, -exp(-5u), -exp(-10u), by exp(10u), whose
    curvature has the wrong sign, and at the fixed point, to the reference's four digits."""
    return _win_rates(config, results, WORST, swapped)


@claim(source=SOURCE, wrong=({"swapped": True},))
def no_tilt_beats_the_fixed_point(results: xr.Dataset, swapped: bool = False) -> Finding:
    """The best of six transforms and five fixed points wins no more than the objective's own fixed
    point at the same KL: by how much, for each objective and KL; solvers converged."""
    lead = []
    for objective in OBJECTIVES:
        fixed = _optimum(SWAP[objective] if swapped else objective)
        won = results.win.sel(objective=objective)
        gap = (won - won.sel(rule=fixed)).max("rule")
        lead.append(gap.where(results.converged.sel(objective=objective) > 0).values)
    return at_most(1e-10, lead)


@claim(
    source="Analytic: density (a + 1) u^a wins (a + 1)/(a + 2) at every n",
    reruns=(RAW,),
    wrong=({"rule": "u"},),
)
def the_log_row_is_the_same_for_every_n(
    results: xr.Dataset, config: ConfigDict, rule: str = "log u"
) -> Finding:
    """A tilt by log u wins equally often at every n: the largest deviation, within the square of
    the cells' width."""
    won = results.win.sel(rule=rule, objective=["best of 1", "best of 2", "best of 4"])
    expected = (results.power + 1) / (results.power + 2)
    return at_most(4 / config.cells**2, np.abs(won - expected).max())


@claim(
    source=f"{PAPER}: with one draw the win rate is linear",
    reruns=(RAW,),
    wrong=({"objective": "best of 2"},),
)
def one_draw_needs_no_transform(results: xr.Dataset, objective: str = "best of 1") -> Finding:
    """The fixed point for one draw is the tilt by u: total variation between them, for each KL."""
    return at_most(1e-12, results.from_identity.sel(objective=objective))


@claim(
    source=f"{SOURCE}; Reconstructed: the paper's -exp(-10u) is from a note on it",
    wrong=({"rule": "exp(10u)"},),
)
def the_worst_of_four_wants_concave_rewards(
    results: xr.Dataset, rule: str = "-exp(-5u)"
) -> Finding:
    """The worst of four wins more with -exp(-5u) than with u at the same KL: by how much, the
    least over KL. A reward with the curvature of the best of n wins less."""
    won = results.win.sel(objective="worst of 4")
    return at_least(0, (won.sel(rule=rule) - won.sel(rule="u")).min())
