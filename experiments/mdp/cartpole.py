"""Deep regularised Q-learning on CartPole and Acrobot: heat maps over KL weight and temperature.

All cells and seeds of a map are lanes of one program. Vieillard et al. 2020 (arXiv:2003.14089) find
that any regularisation beats DQN over a wide range; Zhu et al. 2023 (arXiv:2301.11476) replace the
entropy by Tsallis'. Numbers, grids and steps of the papers are unknown. Only orders are checked,
and of returns only that moderate regularisation is no worse: at the quick scale most differences
are within their standard errors.
"""

import functools

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import Picture
from jdiv.mdp import deep

TRACED = ("weight", "temperature", "seed")
ENVIRONMENTS = ("CartPole-v1", "Acrobot-v1")
NAMES = {"munchausen": "Munchausen", "tsallis": "MVI(q)"}
STYLES = ("-", ":", "--", "-.")


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses what is no variant, environment or coefficient."""
    for name, allowed in (("variant", deep.METHODS), ("environment", ENVIRONMENTS)):
        if point[name] not in allowed:
            raise ValueError(
                f"config.sweep.{name} must be of {', '.join(allowed)}, got {point[name]!r}"
            )
    if not 0 <= point["weight"] <= 1:
        raise ValueError(f"config.sweep.weight must be within [0, 1], got {point['weight']}")
    if point["temperature"] < 0:
        raise ValueError(
            f"config.sweep.temperature must not be negative, got {point['temperature']}"
        )


def init(config: ConfigDict, point: dict, key: Array) -> deep.State:
    """Networks, buffer and environments of a lane."""
    return deep.init(_settings(config, point), _environment(point["environment"]), key)


def step(
    config: ConfigDict, point: dict, state: deep.State, key: Array
) -> tuple[deep.State, dict[str, Array]]:
    """A move in each environment and a gradient step; return, action gap and loss."""
    temperature = config.regularise * point["temperature"]
    hyper = deep.Hyperparameters(
        weight=config.regularise * point["weight"],
        # In MVI(q) the temperatures of the sweep are those of the entmax convention.
        temperature=temperature / config.index if point["variant"] == "tsallis" else temperature,
        index=config.index,
        floor=config.floor,
    )
    environment = _environment(point["environment"])
    return deep.step(_settings(config, point), environment, hyper, state, key)


def _settings(config: ConfigDict, point: dict) -> deep.Settings:
    chosen = {name: config[name] for name in deep.Settings._fields if name != "method"}
    return deep.Settings(method=deep.METHODS[point["variant"]], **chosen)


@functools.cache
def _environment(name: str) -> deep.Environment:
    return deep.from_gymnax(name)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Heat maps of the return, learning curves, action gaps."""
    pictures = {
        "returns": Picture(
            _maps(_late(results).score),
            "Return of the last third of training, mean and standard error over seeds; top left of"
            " each map is DQN, the rest of its column advantage learning. Most differences are"
            " within the errors, but with entropy alone at temperature 1 Acrobot is hardly ever"
            f" finished: ln 3 exceeds the cost of a step. In MVI(q) q is {config.index:g}.",
        ),
        "gaps": Picture(
            _gaps(_late(results).gap),
            "Action gap over that of weight 0, late in training, geometric mean over temperatures"
            " and seeds. It grows with the Munchausen weight; the exact fixed point has the dashed"
            " factor.",
        ),
    }
    if _has(results, weight=(0.0, 0.9), temperature=(0.0, 0.03)):
        pictures["learning"] = Picture(
            _curves(results.score),
            "Return of the last whole episode, mean over parallel environments and seeds, with its"
            " standard error over seeds. On CartPole a weight of 0.9 learns later than DQN; in the"
            " end the curves lie within each other's errors.",
        )
    return pictures


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Action gaps at any length of training; returns only where there was time to learn."""
    late, learned = _late(results), config.training.steps >= config.claims.least_steps
    narrow = {
        "sweep.variant": ("munchausen",),
        "sweep.weight": (0.0, 0.9),
        "sweep.temperature": (0.0, 0.03, 1.0),
        "sweep.seed": (0, 1),
    }
    control = narrow | {"regularise": 0.0}
    found = []
    if _has(results, weight=(0.0, 0.9)):
        ratio = _over_weight_0(late.gap)
        found.append(
            Claim(
                "action-gaps-grow-with-the-weight",
                "Vieillard et al. 2020 (arXiv:2007.14430), on the action gap",
                "The Munchausen term widens action gaps: by 1/(1 - weight) at the exact fixed"
                " point. Only the direction is checked: the ratio to weight 0, two standard errors"
                " below its mean, at each weight between 0 and 1.",
                np.exp2(ratio.mean("seed") - 2 * _error(ratio)).values,
                low=1.1,
                controls=(control,),
            )
        )
    if learned and _has(results, weight=(0.0, 0.9), temperature=(0.0, 0.03)):
        more = _moderate(late.score) - _dqn(late.score)
        found.append(
            Claim(
                "moderate-regularisation-is-no-worse-than-dqn",
                "Vieillard et al. 2020 (arXiv:2003.14089), experiments",
                "Any regularisation beats DQN over a wide range; numbers and grid are unknown."
                " Checked is only that it is not worse: return over DQN's, mean over the cells with"
                " weight between 0 and 1 and temperature up to 0.1, two standard errors above its"
                " mean over seeds, in each map. That it is better needs more seeds and steps.",
                (more.mean("seed") + 2 * _error(more)).values,
                low=0.0,
                controls=(narrow | {"regularise": 4.0, "sweep.seed": config.sweep.seed},),
            )
        )
    entropy_alone = {"environment": "Acrobot-v1", "variant": "munchausen", "weight": 0.0}
    needed = {axis: (label,) for axis, label in entropy_alone.items()}
    if learned and _has(results, **needed, temperature=(0.0, 1.0)):
        at = late.score.sel(entropy_alone)
        more = at.sel(temperature=1.0) - at.sel(temperature=0.0)
        found.append(
            Claim(
                "too-much-entropy-never-finishes",
                "Soft optimality: ln 3 > 1",
                "With entropy alone at temperature 1 a step of Acrobot costs 1 and pays up to ln 3:"
                " it is better never to finish. Return over DQN's, two standard errors above its"
                " mean over seeds.",
                (more.mean("seed") + 2 * _error(more)).item(),
                high=-10.0,
                controls=(control,),
            )
        )
    return found


# -------------------------------------------------------------------------------------- statistics


def _late(results: xr.Dataset) -> xr.Dataset:
    """Means over the last third of training."""
    return results.isel(step=slice(2 * results.sizes["step"] // 3, None)).mean("step")


def _error(x: xr.DataArray) -> xr.DataArray:
    """Standard error over seeds; 0 of a single one."""
    return x.std("seed", ddof=min(1, x.sizes["seed"] - 1)) / x.sizes["seed"] ** 0.5


def _dqn(score: xr.DataArray) -> xr.DataArray:
    return score.sel(weight=0.0, temperature=0.0)


def _moderate(score: xr.DataArray) -> xr.DataArray:
    """Mean over the cells that are regularised, and not by much."""
    weights, temperatures = score.weight, score.temperature
    return score.sel(
        weight=weights[(weights > 0) & (weights < 1)],
        temperature=temperatures[(temperatures > 0) & (temperatures <= 0.1)],
    ).mean(("weight", "temperature"))


def _over_weight_0(gap: xr.DataArray) -> xr.DataArray:
    """Binary logarithm of the ratio to weight 0, for weights between, mean over temperatures."""
    few = gap.sel(temperature=gap.temperature[gap.temperature <= 0.1])
    ratio = np.log2(few / few.sel(weight=0.0)).mean("temperature")
    return ratio.sel(weight=ratio.weight[(ratio.weight > 0) & (ratio.weight < 1)])


def _has(results: xr.Dataset, **labels: tuple) -> bool:
    """Whether a sweep that was changed still has these."""
    return all(set(wanted) <= set(results[axis].values) for axis, wanted in labels.items())


# ----------------------------------------------------------------------------------------- figures


def _maps(score: xr.DataArray) -> plt.Figure:
    """A map for each environment and variant, with a colour bar for each environment."""
    environments, variants = score.environment.values, score.variant.values
    shape = len(environments), len(variants)
    figure, axes = plt.subplots(
        *shape, figsize=(1.2 + 4.2 * shape[1], 0.5 + 3.2 * shape[0]), squeeze=False
    )
    mean, error = score.mean("seed"), _error(score)
    for row, environment in zip(axes, environments, strict=True):
        here = mean.sel(environment=environment)
        low, high = here.min().item(), here.max().item()
        for axis, variant in zip(row, variants, strict=True):
            where = {"environment": environment, "variant": variant}
            cells = mean.sel(where).transpose("weight", "temperature")
            errors = error.sel(where).transpose("weight", "temperature").values
            image = axis.imshow(cells, cmap="viridis", vmin=low, vmax=high, aspect="auto")
            for (i, j), value in np.ndenumerate(cells.values):
                dark = value < (low + high) / 2
                axis.text(
                    j, i, f"{value:.0f}\n±{errors[i, j]:.0f}", ha="center", va="center",
                    fontsize=8, color="white" if dark else "black",
                )  # fmt: skip
            axis.set(
                title=f"{environment}, {NAMES.get(variant, variant)}",
                xlabel="temperature, KL + entropy (reward)",
                ylabel="weight, KL / (KL + entropy)",
            )
            axis.set_xticks(
                range(cells.sizes["temperature"]), [f"{x:g}" for x in cells.temperature]
            )
            axis.set_yticks(range(cells.sizes["weight"]), [f"{x:g}" for x in cells.weight])
            axis.grid(visible=False)
        figure.colorbar(image, ax=list(row), label="return (reward per episode)", pad=0.02)
    return figure


def _curves(score: xr.DataArray) -> plt.Figure:
    """DQN, entropy alone, and both variants with weight 0.9."""
    environments = score.environment.values
    figure, axes = plt.subplots(
        1, len(environments), figsize=(1 + 4.4 * len(environments), 3.8), squeeze=False
    )
    first = score.variant.values[0]
    lines = [("DQN", first, 0.0, 0.0), ("entropy alone, 0.03", first, 0.0, 0.03)]
    lines += [(f"{NAMES.get(v, v)}, 0.9, 0.03", v, 0.9, 0.03) for v in score.variant.values]
    for axis, environment in zip(axes[0], environments, strict=True):
        for (label, variant, weight, temperature), style in zip(lines, STYLES, strict=False):
            here = score.sel(
                environment=environment, variant=variant, weight=weight, temperature=temperature
            )
            mean, error = here.mean("seed"), _error(here)
            (line,) = axis.plot(score.step, mean, style, label=label)
            axis.fill_between(
                score.step, mean - error, mean + error, color=line.get_color(), alpha=0.15, lw=0
            )
        axis.set(title=environment, xlabel="gradient steps", ylabel="return (reward per episode)")
        axis.locator_params(axis="x", nbins=5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _gaps(gap: xr.DataArray) -> plt.Figure:
    """Ratio to weight 0 by weight, with the factor of the exact fixed point."""
    ratio = _over_weight_0(gap)
    figure, axis = plt.subplots(figsize=(5.6, 3.8))
    places = np.arange(ratio.sizes["weight"])
    cases = [(e, v) for e in ratio.environment.values for v in ratio.variant.values]
    for number, (environment, variant) in enumerate(cases):
        here = ratio.sel(environment=environment, variant=variant)
        mean, error = here.mean("seed"), _error(here)
        axis.errorbar(
            places + 0.06 * (number - (len(cases) - 1) / 2), np.exp2(mean),
            (np.exp2(mean) - np.exp2(mean - error), np.exp2(mean + error) - np.exp2(mean)),
            fmt="os^D"[number % 4], label=f"{environment}, {NAMES.get(variant, variant)}",
        )  # fmt: skip
    axis.plot(places, 1 / (1 - ratio.weight), "--_", color="black", label="1 / (1 - weight)")
    axis.set(xlabel="weight, KL / (KL + entropy)", ylabel="action gap / that of weight 0")
    axis.set_xticks(places, [f"{x:g}" for x in ratio.weight.values])
    axis.set_yscale("log")
    axis.legend(fontsize=8)
    return figure
