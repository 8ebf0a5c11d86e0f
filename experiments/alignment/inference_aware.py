"""Inference-aware alignment: win rates of the best and the worst of n, for tilts at equal KL.

Balashankar et al. 2024, InfAlign (arXiv:2412.19792). The paper's tables are not known; its
objective is rederived, and the reference numbers are an independent computation of it.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import Picture
from jdiv import divergences, generators
from jdiv.alignment import inference_aware, tilts

TRACED = ("budget",)
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
DIMS = {
    "win": ("objective", "rule"),
    "from_identity": ("objective",),
    "converged": ("objective",),
    "transformed": ("objective", "u"),
    "power": (),
}
SOURCE = "Balashankar et al. 2024 (arXiv:2412.19792); an independent computation of the objective"
BUDGETS = (0.25, 0.5, 1.0, 2.0)
OPTIMUM = "optimum"
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


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Names of objectives and of rules, and quantiles."""
    return {
        "objective": tuple(OBJECTIVES),
        "rule": (*TRANSFORMS, *map(_optimum, OBJECTIVES)),
        "u": np.asarray(inference_aware.quantiles(config.cells)[0]),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses what has no tilt."""
    if not point["budget"] > 0:
        raise ValueError(f"config.sweep.budget must be positive, got {point['budget']}")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Win rates of all rules under all objectives at one KL."""
    u, log_ref = inference_aware.quantiles(config.cells)
    budget, kl = point["budget"], generators.kl()
    rewards = jnp.stack([transform(u) for transform in TRANSFORMS.values()])
    tilted = tilts.tilted_to(
        rewards, jnp.broadcast_to(log_ref, rewards.shape), budget, generator=kl
    )
    sign, n = jnp.asarray(list(OBJECTIVES.values()), u.dtype).T

    # The worst of n is the best of n of opposite rewards, with all signs reversed.
    def optimum(sign: Array, n: Array) -> inference_aware.AlignedPolicy:
        def slope(log_policy: Array) -> Array:
            return sign * inference_aware.best_of_n_transform(sign * u, log_policy, log_ref, n)

        return inference_aware.aligned_to(slope, log_ref, budget, generator=kl)

    def win(log_policy: Array, sign: Array, n: Array) -> Array:
        won = inference_aware.best_of_n_win_rate(sign * u, log_policy, log_ref, n)
        return jnp.where(sign > 0, won, 1 - won)

    optima = jax.vmap(optimum)(sign, n)
    rules = jnp.concatenate([tilted.log_policy, optima.log_policy])
    every = jax.vmap(jax.vmap(win, (0, None, None)), (None, 0, 0))
    identity = jnp.broadcast_to(tilted.log_policy[0], optima.log_policy.shape)
    spent = jnp.abs(optima.divergence - budget) < 1e-9
    return {
        "win": every(rules, sign, n),
        "from_identity": divergences.total_variation(optima.log_policy, identity),
        "converged": optima.converged & spent & jnp.all(tilted.converged),
        "transformed": optima.transformed,
        "power": 1 / tilted.beta[1],
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """What to tilt by, and what it gains."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.4, 3.8))
    at = results.transformed.sel(budget=1.0)
    # Line style, and where on the curve its name stands.
    styles = {
        "best of 1": ("-", 0.5, (5, -9)),
        "best of 2": ("--", 0.72, (-54, 2)),
        "best of 4": ("-.", 0.84, (5, -12)),
        "worst of 2": (":", 0.46, (3, -10)),
        "worst of 4": ((0, (5, 1, 1, 1, 1, 1)), 0.32, (-52, 5)),
    }
    for objective, (style, where, offset) in styles.items():
        reward = at.sel(objective=objective)
        scaled = (reward - reward.min()) / (reward.max() - reward.min())
        (line,) = left.plot(results.u, scaled, linestyle=style)
        left.annotate(
            objective, (where, float(np.interp(where, results.u, scaled))), xytext=offset,
            textcoords="offset points", fontsize="x-small", color=line.get_color(),
        )  # fmt: skip
    left.set(xlabel="quantile of the reward", ylabel="optimal transformed reward, rescaled")
    shown = {
        "best of 4": (middle, ("log u", "exp(5u)", "exp(10u)", _optimum("best of 4"))),
        "worst of 4": (right, ("log u", "-exp(-5u)", "-exp(-10u)", _optimum("worst of 4"))),
    }
    for objective, (axis, rules) in shown.items():
        win = results.win.sel(objective=objective)
        for rule, style in zip(rules, ("o-", "s--", "^-.", "D:"), strict=True):
            gain = 100 * (win.sel(rule=rule) - win.sel(rule="u"))
            axis.plot(results.budget, gain, style, label=rule.split(",")[0].replace("-", "−"))
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(
            xscale="log", xlabel="KL(π‖ref), nats", title=f"win rate of the {objective}",
            ylabel="gain over the identity, points",
        )  # fmt: skip
        axis.title.set_fontsize("medium")
        axis.set_xticks(results.budget.values, [f"{b:g}" for b in results.budget.values])
        axis.minorticks_off()
        axis.legend(frameon=True, framealpha=1, edgecolor="none")
    return {
        "transforms": Picture(
            figure,
            "Left: the reward whose tilt is the optimum, at one nat, convex for the best of n and"
            " concave for the worst. Middle and right: what a tilt at the same KL gains over the"
            " plain quantile; no transform is above the fixed point.",
        )
    }


def _table(config: ConfigDict, results: xr.Dataset, table: dict) -> tuple[list, np.ndarray]:
    """Measured and reference win rates, those measured by the other objective if swapped."""
    measured = []
    for rule, objective in table:
        label = _optimum(objective) if rule == OPTIMUM else rule
        under = SWAP[objective] if config.claims.swapped else objective
        at = {"rule": label, "objective": under, "budget": list(BUDGETS)}
        measured.append(results.win.sel(at).values)
    return measured, np.array(list(table.values()))


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Both tables, the optimum, the analytic row, one draw, the sign of the curvature."""
    swap = ({"claims.swapped": True},)
    digits = 5e-5 + 2 / config.cells**2  # half of the last one, and the cells' width
    best, best_reference = _table(config, results, BEST)
    worst, worst_reference = _table(config, results, WORST)
    lead = []
    for objective in OBJECTIVES:
        fixed = _optimum(SWAP[objective] if config.claims.swapped else objective)
        won = results.win.sel(objective=objective)
        gap = (won - won.sel(rule=fixed)).max("rule")
        lead.append(gap.where(results.converged.sel(objective=objective) > 0).values)
    by_n = results.win.sel(rule=config.claims.constant, objective=["best of 1", "best of 2",
                           "best of 4"])  # fmt: skip
    expected = (results.power + 1) / (results.power + 2)
    curved = results.win.sel(rule=config.claims.curvature) - results.win.sel(rule="u")
    return [
        Claim(
            "best-of-n-table",
            SOURCE,
            "Win rates of the best of 1, 2 and 4 at KL .25, .5, 1, 2 for tilts by u, log u,"
            " exp(5u), exp(10u) and at the fixed point, to the reference's four digits. The"
            " control measures the worst of n.",
            best,
            low=best_reference - digits,
            high=best_reference + digits,
            controls=swap,
        ),
        Claim(
            "worst-of-n-table",
            SOURCE,
            "Win rates of the worst of 2 and 4, for tilts by u, -exp(-5u), -exp(-10u), by exp(10u),"
            " whose curvature has the wrong sign, and at the fixed point, to the reference's four"
            " digits. The control measures the best of n.",
            worst,
            low=worst_reference - digits,
            high=worst_reference + digits,
            controls=swap,
        ),
        Claim(
            "no-tilt-beats-the-fixed-point",
            SOURCE,
            "By how much the best of six transforms and five fixed points wins more than the"
            " objective's own fixed point at the same KL; solvers converged. The control takes the"
            " fixed point of the opposite objective.",
            lead,
            high=1e-10,
            controls=swap,
        ),
        Claim(
            "the-log-row-is-the-same-for-every-n",
            "Analytic: density (a + 1) u^a wins (a + 1)/(a + 2) at every n",
            "Largest deviation for a tilt by log u, within the square of the cells' width; the"
            " control tilts by u.",
            float(np.abs(by_n - expected).max()),
            high=4 / config.cells**2,
            controls=({"claims.constant": "u"},),
        ),
        Claim(
            "one-draw-needs-no-transform",
            "Balashankar et al. 2024 (arXiv:2412.19792): with one draw the win rate is linear",
            "Total variation between the fixed point for one draw and the tilt by u; the control"
            " has two draws.",
            results.from_identity.sel(objective=config.claims.single).values,
            high=1e-12,
            controls=({"claims.single": "best of 2"},),
        ),
        Claim(
            "the-worst-of-four-wants-concave-rewards",
            f"{SOURCE}; -exp(-10u) is the paper's, of a secondary note",
            "Win rate of the worst of 4 with -exp(-5u) over that with u, least over KL; the control"
            " has the curvature of the best of n.",
            float(curved.sel(objective="worst of 4").min()),
            low=0,
            controls=({"claims.curvature": "exp(10u)"},),
        ),
    ]
