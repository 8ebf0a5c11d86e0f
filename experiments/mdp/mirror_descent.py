"""Policy mirror descent, `argmax <pi, q_pi> - D(pi‖old)/step_size`, and its rates.

Agarwal et al. 2021 for constant steps, Johnson, Pike-Burke and Rebeschini 2023 for growing ones,
Cen et al. 2022 (arXiv:2007.06558) for entropy. Units: step_size, eta in the formulas, multiplies
action values; natural policy gradient's step is (1 - discount) eta.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.plots import Picture, curve, panels, some, style
from experiments.lab.results import Labelled, labelled
from jdiv import generators
from jdiv.mdp import environments, operators, value_iteration

AXES = {
    "steps": axes.labels,
    "generator": axes.one_of(generators.TABLE),
    "step_size": axes.positive,
    "growth": axes.positive,
    "entropy_weight": axes.non_negative,
    "seed": axes.seeds,
}
FIELDS = {
    **axes.process,
    "entropy_factor": axes.non_negative,
    "iterations": axes.count,
    "noise": axes.non_negative,
    "step_factor": axes.positive,
}
CONSTANT = ("short", "medium", "long")
WITH_ENTROPY = ("short, with entropy", "long, with entropy")
OTHERS = ("Pearson's chi2", "reverse KL", "squared Hellinger")
ROUNDING = 1e-10
ONLY_KL = {"sweep.generator": ("kl",) * 9, "sweep.seed": (0, 1), "iterations": 60}
# Steps in the units of natural policy gradient; steps that neither grow nor have entropy.
OTHER_UNITS = {"step_factor": 0.1, **ONLY_KL, "iterations": 200}
PLAIN = {"sweep.growth": (1.0,) * 9, "entropy_factor": 0.0, **ONLY_KL, "iterations": 200}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses entropy with a row that is not KL."""
    axes.in_order(config, "branches", "states")
    if point["entropy_weight"] and point["generator"] != "kl":
        raise ValueError(
            f"config.sweep.entropy_weight must be 0 for generator {point['generator']!r}, got"
            f" {point['entropy_weight']}"
        )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """By iteration the distance of the (soft) action values to the optimal ones."""
    of_process, of_errors = jax.random.split(key)
    mdp = environments.garnet(
        of_process, states=config.states, actions=config.actions, branches=config.branches,
        discount=config.discount,
    )  # fmt: skip
    mdp = mdp._replace(reward=(mdp.reward + 1) / 2)
    generator = None if point["generator"] == "kl" else generators.get(point["generator"])
    paid = point["entropy_weight"]
    had = config.entropy_factor * paid if generator is None else 0.0

    def improve(at: operators.Iterate, inputs: tuple[Array, Array]):
        step_size, error = inputs
        scheme = operators.policy_mirror_descent(step_size, had, generator=generator)
        following = scheme.step(mdp, at, error)
        return following, following.log_policy

    iterations = jnp.arange(config.iterations, dtype=mdp.reward.dtype)
    step_sizes = config.step_factor * point["step_size"] * point["growth"] ** iterations
    errors = config.noise * jax.random.normal(of_errors, (config.iterations, *mdp.reward.shape))
    start = operators.value_iteration().init(jnp.zeros_like(mdp.reward))
    _, policies = jax.lax.scan(improve, start, (step_sizes, errors))
    policies = jnp.concatenate([start.log_policy[None], policies])
    q = jax.vmap(lambda x: operators.soft_policy_action_values(mdp, x, paid))(policies)
    optimal = value_iteration.run(mdp, operators.md_vi(0.0, paid), 600).last
    gap = jnp.max(jnp.abs(optimal.q[None] - q), axis=(1, 2))
    return {
        # Iteration 0 is the uniform policy.
        "gap": labelled(gap, iteration=range(config.iterations + 1)),
        "worst_step": jnp.min(q[1:] - q[:-1]),
        "distance": jnp.max(jnp.abs(optimal.log_policy - start.log_policy)),
    }


def constant_bound(results: xr.Dataset, config: ConfigDict) -> xr.DataArray:
    """`ln|A|/((1 - g) eta k) + 1/((1 - g)^2 k)`, for steps without entropy, from k = 1 on."""
    horizon, k = 1 / (1 - config.discount), results.iteration[1:]
    return horizon * np.log(config.actions) / (results.step_size * k) + horizon**2 / k


def soft_bound(results: xr.Dataset, config: ConfigDict) -> xr.DataArray:
    """`C g (a + (1 - a) g)^(k - 1)`, `a = 1/(1 + eta t)`, for steps with entropy, from k = 1 on."""
    g, k, t = config.discount, results.iteration[1:], results.entropy_weight
    kept = 1 / (1 + results.step_size * t)
    first = results.gap.sel(iteration=0) + 2 * kept * t * results.distance
    return first * g * (kept + (1 - kept) * g) ** (k - 1)


def fitted_factor(gap: xr.DataArray) -> float:
    """The factor per iteration that fits the logarithm of the gap down to rounding, the largest
    over seeds."""
    slopes = []
    for series in gap.transpose("seed", "iteration").values:
        count = max(int(np.argmax(series < ROUNDING)) or len(series), 2)
        slopes.append(np.polyfit(np.arange(count), np.log(series[:count]), 1)[0])
    return float(np.exp(np.max(slopes)))


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Steps without entropy and with it, and other divergences."""
    figure, (left, middle, right) = panels(3, width=3.8, height=4.2, sharex=True)
    for axis, rows, bound in (
        (left, (*CONSTANT, "growing"), constant_bound),
        (middle, WITH_ENTROPY, soft_bound),
        (right, ("medium", *OTHERS), None),
    ):
        for number, name in enumerate(some(results.steps, rows)):
            here, look = results.sel(steps=name), style(number)
            label = f"η = {here.step_size.item():g}" + (" · γ^-k" if name == "growing" else "")
            label = (label if bound else "KL") if name not in OTHERS else name
            curve(axis, "iteration", here.gap.clip(min=1e-15), over="seed", label=label, **look)
            if bound and name != "growing":
                limit = bound(here, config)
                limit = limit.mean("seed") if "seed" in limit.dims else limit
                curve(axis, "iteration", limit, linewidth=0.8, alpha=0.6, **look)
        axis.set(yscale="log", xlabel="iteration", xlim=(0, min(config.iterations, 200)))
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, fontsize="small")
    left.set(ylabel="max |q* - q|")
    middle.set(ylabel="max |q* - q|, soft")
    right.set(ylabel="max |q* - q|")
    for axis, title in (
        (left, "KL (thin: bounds)"),
        (middle, "KL and entropy .1 (thin: bounds)"),
        (right, "other divergences, η = 1"),
    ):
        axis.set_title(title, fontsize="medium")
    return {
        "rates": Picture(
            figure,
            "Suboptimality, mean and 10th to 90th percentile over processes. Left: constant steps"
            " are sublinear at first, below their bound; steps that grow geometrically are linear."
            " Middle: with entropy constant steps are linear, faster for larger ones. Right:"
            " proximal steps in other divergences of the table; what differs is mostly their"
            " curvature at 1, which is 2 for Pearson's chi2 and 1/4 for Hellinger.",
        )
    }


@claim(
    source="Agarwal, Kakade, Lee and Mahajan 2021 (arXiv:1908.00261), Theorem 16."
    " Reconstructed: the bound, from memory",
    reruns=(OTHER_UNITS,),
    needs={"steps": CONSTANT},
)
def constant_steps_below_the_bound(results: xr.Dataset, config: ConfigDict) -> Finding:
    """ln|A|/((1 - g) eta k) + 1/((1 - g)^2 k) minus the suboptimality, the smallest over eta = .1,
    1, 10, iterations and processes with rewards in [0, 1]."""
    slack = constant_bound(results, config) - results.gap
    return at_least(0, slack.sel(steps=list(CONSTANT)).min())


@claim(
    source="Johnson, Pike-Burke and Rebeschini 2023 (arXiv:2302.11381)."
    " Reconstructed: the rate, from memory",
    reruns=(PLAIN,),
    wrong=({"steps": "short"},),
)
def growing_steps_are_linear(
    results: xr.Dataset, config: ConfigDict, steps: str = "growing"
) -> Finding:
    """With eta_k = g^-k the suboptimality falls by at least the discount g = .9 an iteration: the
    slowest fitted factor of a process."""
    return at_most(config.discount, fitted_factor(results.gap.sel(steps=steps)))


@claim(
    source="Cen et al. 2022 (arXiv:2007.06558), Theorem 1."
    " Reconstructed: the constants, from memory",
    reruns=(PLAIN,),
    needs={"steps": WITH_ENTROPY},
)
def entropy_makes_constant_steps_linear(results: xr.Dataset, config: ConfigDict) -> Finding:
    """The suboptimality in the soft problem is below C g (a + (1 - a) g)^(k - 1) with
    a = 1/(1 + eta t), t = .1, for eta = .3 and 10: the smallest logarithm of bound over
    suboptimality over 60 iterations."""
    log_slack = np.log(soft_bound(results, config) / results.gap.clip(min=ROUNDING))
    log_slack = log_slack.sel(steps=list(WITH_ENTROPY), iteration=slice(1, 60))
    return at_least(0, log_slack.min(("iteration", "seed")))


@claim(
    source="Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 4",
    reruns=({"noise": 1.0, **ONLY_KL},),
)
def every_step_improves(results: xr.Dataset) -> Finding:
    """No action value falls in any iteration, whatever the divergence: the worst change."""
    return at_least(-1e-9, results.worst_step.min())
