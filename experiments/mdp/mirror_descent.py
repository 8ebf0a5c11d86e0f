"""Policy mirror descent, `argmax <pi, q_pi> - D(pi‖previous)/eta`, and its rates.

Agarwal et al. 2021 for constant steps, Johnson, Pike-Burke and Rebeschini 2023 for growing ones,
Cen et al. 2022 (arXiv:2007.06558) for entropy: statements and rates from memory.
Units: eta multiplies action values; natural policy gradient's step is (1 - discount) eta.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from jdiv import generators
from jdiv.checks import known
from jdiv.mdp import environments, operators, value_iteration

TRACED = ("variant", "rate", "growth", "entropy", "seed")
DIMS = {"gap": ("iteration",)}
CONSTANT, ENTROPY = (0, 1, 2), (4, 5)
ROUNDING = 1e-10


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Iterations; 0 is the uniform policy."""
    return {"iteration": np.arange(config.iterations + 1)}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown rows, steps that are none, and entropy with a row that is not KL."""
    known("config.sweep.generator", point["generator"], generators.TABLE)
    for name in ("rate", "growth"):
        if not point[name] > 0:
            raise ValueError(f"config.sweep.{name} must be positive, got {point[name]}")
    if point["entropy"] and point["generator"] != "kl":
        raise ValueError(
            f"config.sweep.entropy must be 0 for generator {point['generator']!r}, got"
            f" {point['entropy']}"
        )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """By iteration the distance of the (soft) action values to the optimal ones."""
    of_process, of_errors = jax.random.split(key)
    mdp = environments.garnet(
        of_process, states=config.states, actions=config.actions, branches=config.branches,
        discount=config.discount,
    )  # fmt: skip
    mdp = mdp._replace(reward=(mdp.reward + 1) / 2)
    generator = None if point["generator"] == "kl" else generators.get(point["generator"])
    entropy = point["entropy"]
    entropy_weight = entropy if generator is None else 0.0

    def q_of(log_policy: Array) -> Array:
        return operators.soft_policy_action_values(mdp, log_policy, entropy)

    optimal = value_iteration.run(mdp, operators.md_vi(0.0, entropy), 600).last

    def improve(at, inputs):
        rate, error = inputs
        scheme = operators.policy_mirror_descent(rate, entropy_weight, generator=generator)
        following = scheme.step(mdp, at, error)
        return following, following.log_policy

    rates = point["rate"] * point["growth"] ** jnp.arange(config.iterations, dtype=jnp.float64)
    errors = config.noise * jax.random.normal(of_errors, (config.iterations, *mdp.reward.shape))
    start = operators.value_iteration().init(jnp.zeros_like(mdp.reward))
    _, policies = jax.lax.scan(improve, start, (rates, errors))
    policies = jnp.concatenate([start.log_policy[None], policies])
    q = jax.vmap(q_of)(policies)
    return {
        "gap": jnp.max(jnp.abs(optimal.q[None] - q), axis=(1, 2)),
        "worst_step": jnp.min(q[1:] - q[:-1]),
        "distance": jnp.max(jnp.abs(optimal.log_policy - start.log_policy)),
    }


def bounds(config: ConfigDict, results: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Of constant steps without entropy, and of steps with entropy; from iteration 1 on."""
    g, k = config.discount, results.iteration[1:]
    horizon = 1 / (1 - g)
    constant = horizon * np.log(config.actions) / (results.rate * k) + horizon**2 / k
    kept = 1 / (1 + results.rate * results.entropy)
    first = results.gap.sel(iteration=0) + 2 * kept * results.entropy * results.distance
    # Of the iterate after k steps: discount (a + (1 - a) discount)^(k - 1).
    return constant, first * g * (kept + (1 - kept) * g) ** (config.claims.faster * (k - 1))


def fitted_rate(gap: xr.DataArray) -> float:
    """The factor per iteration that fits the logarithm of the gap, down to rounding."""
    rates = []
    for seed in gap.seed.values:
        series = gap.sel(seed=seed).values
        count = max(int(np.argmax(series < ROUNDING)) or len(series), 2)
        rates.append(np.polyfit(np.arange(count), np.log(series[:count]), 1)[0])
    return float(np.exp(np.max(rates)))


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Steps without entropy and with it, and other divergences."""
    figure, axes = plt.subplots(1, 3, figsize=(10.8, 4.0), sharex=True)
    constant, soft = bounds(config, results)
    others = tuple(v for v in results.variant.values if v >= 6)
    for axis, panel in zip(axes, ((0, 1, 2, 3), ENTROPY, (1, *others)), strict=True):
        for variant, colour, style in zip(panel, COLORS, ("-", "--", "-.", ":"), strict=False):
            here = results.sel(variant=variant)
            steps = f"η = {here.rate.item():g}" + (" · g^-k" if variant == 3 else "")
            name = str(here.generator.item()).replace("_", " ")
            label = name if axis is axes[2] else steps
            gap = here.gap.mean("seed").clip(min=1e-15)
            axis.plot(gap.iteration, gap, style, color=colour, label=label)
            limit = constant if variant in CONSTANT else soft if variant in ENTROPY else None
            if limit is not None and axis is not axes[2]:
                limit = limit.sel(variant=variant)
                limit = limit.mean("seed") if "seed" in limit.dims else limit
                axis.plot(limit.iteration, limit, style, color=colour, linewidth=0.8, alpha=0.6)
        axis.set(yscale="log", xlabel="iteration")
        axis.set_xlim(0, min(config.iterations, 200))
        axis.legend(loc="center right" if axis is axes[0] else "best")
    axes[0].set(ylabel="max |q* - q|", title="KL (thin: bounds)")
    axes[1].set(ylabel="max |q* - q|, soft", title="KL and entropy .1 (thin: bounds)")
    axes[2].set(ylabel="max |q* - q|", title="other divergences, η = 1")
    for axis in axes:
        axis.title.set_fontsize("medium")
    return {
        "rates": Picture(
            figure,
            "Left: constant steps are sublinear at first, below their bound; steps that grow"
            " geometrically are linear. Middle: with entropy constant steps are linear, faster for"
            " larger ones. Right: proximal steps in other divergences of the table; what differs is"
            " mostly their curvature at 1, which is 2 for Pearson's chi2 and 1/4 for Hellinger.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Bounds, rates, monotone improvement."""
    constant, soft = bounds(config, results)
    slack = config.claims.bound * constant - results.gap
    with_entropy = np.log(soft / results.gap.clip(min=ROUNDING)).sel(variant=list(ENTROPY))
    return [
        Claim(
            "constant-steps-below-the-bound",
            "Agarwal, Kakade, Lee and Mahajan 2021 (arXiv:1908.00261), Theorem 16, from memory",
            "ln|A|/((1 - g) eta k) + 1/((1 - g)^2 k) minus the suboptimality, the smallest over"
            " eta = .1, 1, 10, iterations and processes with rewards in [0, 1].",
            float(slack.sel(variant=list(CONSTANT)).min()),
            low=0,
            controls=({"claims.bound": 0.01},),
        ),
        Claim(
            "growing-steps-are-linear",
            "Johnson, Pike-Burke and Rebeschini 2023 (arXiv:2302.11381), from memory",
            f"With eta_k = g^-k the suboptimality falls by at least g = {config.discount:g} an"
            " iteration: the slowest fitted factor of a process.",
            fitted_rate(results.gap.sel(variant=config.claims.geometric)),
            high=config.discount,
            controls=({"claims.geometric": 0},),
        ),
        Claim(
            "entropy-makes-constant-steps-linear",
            "Cen et al. 2022 (arXiv:2007.06558), Theorem 1, constants from memory",
            "The suboptimality in the soft problem is below C g (a + (1 - a) g)^(k - 1) with"
            " a = 1/(1 + eta t), t = .1, for eta = .3 and 10: the smallest logarithm of bound over"
            " suboptimality over 60 iterations.",
            with_entropy.sel(iteration=slice(1, 60)).min(("iteration", "seed")).values,
            low=0,
            controls=({"claims.faster": 20.0},),
        ),
        Claim(
            "every-step-improves",
            "Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 4",
            "No action value falls in any iteration, whatever the divergence: the worst change.",
            float(results.worst_step.min()),
            low=-1e-9,
            controls=({"noise": 1.0, "sweep.seed": (0, 1), "iterations": 60},),
        ),
    ]
