"""Which divergence to regularize with: what each does to a policy and to what it costs.

`v = max <pi, r + discount P v> - temperature D(pi‖reference)` for every row of the table, to its
fixed point: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275). Temperatures are divided by the
curvature f''(1), since `D(pi‖ref) = f''(1)/2 chi2(pi‖ref)` close to the reference; total variation,
which has a kink there, keeps its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, in_order, inside, one_of, positive, process, real, seeds
from experiments.lab.claims import Finding, at_least, at_most, between, claim, together
from experiments.lab.plots import COLORS, LINES, Picture, panels
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.mdp import environments, model, operators, value_iteration

AXES = {"generator": one_of(generators.TABLE), "temperature": positive, "seed": seeds}
SWAPPED = {"kl": "reverse_kl", "pearson_chi2": "neyman_chi2"}
FIELDS = {
    "direction": one_of(("pi‖ref", "ref‖pi")),
    **process,
    "iterations": count,
    "parameters.alpha.alpha": real,
    "parameters.jensen_shannon.weight": inside(0, 1),
    "parameters.skew_kl.skew": inside(0, 1),
    "parameters.tsallis.index": positive,
}
SOURCE = "Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275)"
KINK = "total_variation"
FEW = {
    "sweep.generator": tuple(SWAPPED),
    "sweep.temperature": (0.01, 100.0),
    "sweep.seed": (0, 1),
}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses the other direction of rows for which it is no row of its own here."""
    in_order(config, "branches", "states")
    if config.direction == "ref‖pi" and point["generator"] not in SWAPPED:
        raise ValueError(f"config.direction 'ref‖pi' has {', '.join(SWAPPED)} alone")


def row(config: ConfigDict, name: str) -> generators.Generator:
    """The generator of this name with the config's parameters, in the config's direction."""
    name = name if config.direction == "pi‖ref" else SWAPPED[name]
    return generators.get(name, **config.parameters.get(name, {}))


def curvature(generator: generators.Generator) -> Array:
    """`f''(1)`, the derivative of the slope by log u."""
    return jax.grad(generator.slope)(jnp.zeros(()))


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The regularized optimum: what it keeps, costs and how far apart its actions are."""
    generator, smooth = row(config, point["generator"]), point["generator"] != KINK
    of_process, of_reference = jax.random.split(key)
    mdp = environments.garnet(
        of_process, states=config.states, actions=config.actions, branches=config.branches,
        discount=config.discount,
    )  # fmt: skip
    reference = jax.nn.log_softmax(jax.random.normal(of_reference, mdp.reward.shape))
    per_unit = curvature(generator) if smooth and config.in_units_of_curvature else 1.0
    temperature = point["temperature"] / per_unit

    def regularized(q: Array) -> operators.Step:
        return operators.regularized_greedy(q, reference, temperature, generator=generator)

    last = value_iteration.run(
        mdp,
        operators.modified_policy_iteration(lambda q, old_log_policy: regularized(q)),
        config.iterations,
    ).last
    best = regularized(last.q)
    policy = jnp.exp(best.log_policy)
    optimum = model.optimum(mdp)
    first = jnp.log(optimum.policy)
    # Of a single step.
    bound = temperature * jnp.max(divergences.f_divergence(generator, first, reference))
    top = jax.lax.top_k(last.q, 2)[0]
    best_q = model.action_values(mdp, optimum.value)
    best_top = jax.lax.top_k(best_q, 2)[0]
    return {
        "kept": jnp.mean(jnp.sum(best.log_policy > -jnp.inf, axis=-1, dtype=policy.dtype)),
        "cost": jnp.max(optimum.value - model.policy_value(mdp, policy)),
        "bound": bound,
        "gap": jnp.median(top[:, 0] - top[:, 1]) / jnp.median(best_top[:, 0] - best_top[:, 1]),
        "divergence": jnp.mean(divergences.f_divergence(generator, best.log_policy, reference)),
        "away": jnp.max(jnp.abs(policy - jnp.exp(reference))),
        "policy": labelled(policy[0], "action"),
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Actions kept, cost and gap against the temperature."""
    figure, axes = panels(3, width=3.6, height=4.6)
    mean = results.mean("seed")
    for number, name in enumerate(results.generator.values):
        here = mean.sel(generator=name)
        look = {"color": COLORS[number % 7], "linestyle": LINES[number // 7]}
        for axis, what in zip(axes, (here.kept, here.cost, here.gap), strict=True):
            axis.plot(here.temperature, what, label=str(name).replace("_", " "), **look)
    for axis, label in zip(
        axes, ("actions kept", "cost, max v* - v of the policy", "gap / gap of the optimum"),
        strict=True,
    ):  # fmt: skip
        axis.set(xscale="log", xlabel="temperature × f''(1)", ylabel=label)
    axes[0].set_ylim(0, None)
    axes[1].set(yscale="log", ylim=(1e-4, None))
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize="small"
    )
    return {
        "divergences": Picture(
            figure,
            "Regularizing towards a random reference, mean over processes. Left: only rows with a"
            " finite slope at zero drop actions. Middle: what the policy loses; at low temperature"
            " rows differ by orders of magnitude, at high temperature they are one. Right: the gap"
            " between the two best actions of the regularized values.",
        )
    }


@claim(
    source=f"{SOURCE}, section 3; from the stationarity condition f'(pi/ref) = (q - nu)/t",
    reruns=({"direction": "ref‖pi", **FEW},),
)
def a_finite_slope_at_zero_drops_actions(results: xr.Dataset, config: ConfigDict) -> Finding:
    """At the lowest temperature rows whose slope at zero is finite, and total variation, keep fewer
    than 60 % of the actions; at no temperature does any other row drop one: the largest share kept
    by the first, the smallest kept by the others."""
    # By the generator's name: in the wrong direction pearson_chi2 is still expected to drop some.
    slopes = {
        str(name): generators.get(str(name), **config.parameters.get(str(name), {})).slope_at_zero
        for name in results.generator.values
    }
    sparse = [name for name, slope in slopes.items() if np.isfinite(slope) or name == KINK]
    full = [name for name in slopes if name not in sparse]
    kept = results.kept / config.actions
    cold = kept.isel(temperature=0).sel(generator=sparse).mean("seed").max()
    return together(between(0, cold, 0.6), between(1, kept.sel(generator=full).min(), 1))


@claim(source=f"{SOURCE}, proposition 3", wrong=({"horizon": 1.0},))
def cost_is_below_the_bound(
    results: xr.Dataset, config: ConfigDict, horizon: float | None = None
) -> Finding:
    """temperature * max D(best policy, reference) / (1 - discount) minus what the regularized
    policy loses, the smallest over rows, temperatures and processes."""
    horizon = horizon or 1 / (1 - config.discount)
    return at_least(-1e-9, (horizon * results.bound - results.cost).min())


@claim(
    source="Second-order expansion at the reference; this experiment's own",
    reruns=({"in_units_of_curvature": False, **FEW},),
    wrong=({"temperature": 0.01},),
)
def one_policy_at_high_temperature(results: xr.Dataset, temperature: float = 100.0) -> Finding:
    """With temperatures in units of the curvature all smooth rows make the same policy at the
    highest one: their largest difference over the largest step from the reference."""
    smooth = [name for name in results.generator.values if name != KINK]
    high = results.sel(temperature=temperature, generator=smooth)
    spread = (high.policy.max("generator") - high.policy.min("generator")).max()
    return at_most(0.05, spread / high.away.max())
