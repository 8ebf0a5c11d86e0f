"""Which divergence to regularise with: what each does to a policy and to what it costs.

`v = max <pi, r + discount P v> - temperature D(pi‖reference)` for every row of the table, to its
fixed point: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275). Temperatures are divided by the
curvature f''(1), since `D(pi‖ref) = f''(1)/2 chi2(pi‖ref)` close to the reference; total variation,
which has a kink there, keeps its own.
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
from jdiv import divergences, generators
from jdiv.checks import known
from jdiv.mdp import environments, model, operators, value_iteration

TRACED = ("temperature", "seed")
DIMS = {"policy": ("action",)}
SOURCE = "Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275)"
SMOOTH = tuple(name for name in generators.TABLE if name != "total_variation")


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown rows and temperatures that are none."""
    known("config.sweep.generator", point["generator"], generators.TABLE)
    if not point["temperature"] > 0:
        raise ValueError(f"config.sweep.temperature must be positive, got {point['temperature']}")


def row(config: ConfigDict, name: str) -> generators.Generator:
    """The generator of this name with the config's parameters."""
    return generators.get(name, **config.parameters.get(name, {}))


def curvature(generator: generators.Generator) -> Array:
    """`f''(1)`, the derivative of the slope by log u."""
    return jax.grad(generator.slope)(jnp.zeros(()))


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """The regularised optimum: what it keeps, costs and how far apart its actions are."""
    generator, smooth = row(config, point["generator"]), point["generator"] in SMOOTH
    of_process, of_reference = jax.random.split(key)
    mdp = environments.garnet(
        of_process, states=config.states, actions=config.actions, branches=config.branches,
        discount=config.discount,
    )  # fmt: skip
    reference = jax.nn.log_softmax(jax.random.normal(of_reference, mdp.reward.shape))
    per_unit = curvature(generator) if smooth else 1.0
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
    bound = temperature * jnp.max(divergences.f_divergence(generator, first, reference))
    top = jax.lax.top_k(last.q, 2)[0]
    best_q = model.action_values(mdp, optimum.value)
    best_top = jax.lax.top_k(best_q, 2)[0]
    return {
        "kept": jnp.mean(jnp.sum(best.log_policy > -jnp.inf, axis=-1, dtype=policy.dtype)),
        "cost": jnp.max(optimum.value - model.policy_value(mdp, policy)),
        "bound": bound / (1 - mdp.discount),
        "gap": jnp.median(top[:, 0] - top[:, 1]) / jnp.median(best_top[:, 0] - best_top[:, 1]),
        "divergence": jnp.mean(divergences.f_divergence(generator, best.log_policy, reference)),
        "away": jnp.max(jnp.abs(policy - jnp.exp(reference))),
        "policy": policy[0],
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Actions kept, cost and gap against the temperature."""
    figure, axes = plt.subplots(1, 3, figsize=(10.8, 4.6))
    mean = results.mean("seed")
    for number, name in enumerate(results.generator.values):
        here = mean.sel(generator=name)
        style = ("-", "--")[number // len(COLORS)]
        for axis, what in zip(axes, ("kept", "cost", "gap"), strict=True):
            axis.plot(here.temperature, here[what], style, color=COLORS[number % len(COLORS)],
                      label=str(name).replace("_", " "))  # fmt: skip
    for axis, label in zip(
        axes, ("actions kept", "cost, max v* - v of the policy", "gap / gap of the optimum"),
        strict=True,
    ):  # fmt: skip
        axis.set(xscale="log", xlabel="temperature × f''(1)", ylabel=label)
    axes[0].set_ylim(0, None)
    axes[1].set_yscale("log")
    axes[1].set_ylim(1e-4, None)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize="small"
    )
    return {
        "divergences": Picture(
            figure,
            "Regularising towards a random reference, mean over processes. Left: only rows with a"
            " finite slope at zero drop actions. Middle: what the policy loses; at low temperature"
            " rows differ by orders of magnitude, at high temperature they are one. Right: the gap"
            " between the two best actions of the regularised values.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Who drops actions, the bound, agreement at high temperature."""
    names = [str(name) for name in results.generator.values]
    finite = {name: bool(np.isfinite(row(config, name).slope_at_zero)) for name in names}
    sparse = [name for name in names if finite[name] or name == "total_variation"]
    full = [name for name in names if name not in sparse]
    if config.claims.sparse != "finite slope at zero":
        sparse, full = full, sparse
    cold = results.isel(temperature=0)
    kept = results.kept / config.actions
    smooth = [name for name in names if name in SMOOTH]
    high = results.sel(temperature=config.claims.high, generator=smooth)
    spread = (high.policy.max("generator") - high.policy.min("generator")).max()
    slack = config.claims.slack * results.bound - results.cost
    return [
        Claim(
            "a-finite-slope-at-zero-drops-actions",
            f"{SOURCE}, section 3; from the stationarity condition f'(pi/ref) = (q - nu)/t",
            f"At the lowest temperature {', '.join(sparse)} keep fewer than 60 % of the actions, at"
            f" no temperature does any of {', '.join(full)} drop one: the largest share kept by the"
            " first, the smallest kept by the others.",
            [
                float(cold.kept.sel(generator=sparse).mean("seed").max()) / config.actions,
                float(kept.sel(generator=full).min()),
            ],
            low=(0, 1),
            high=(0.6, 1),
            controls=({"claims.sparse": "infinite slope at zero"},),
        ),
        Claim(
            "cost-is-below-the-bound",
            f"{SOURCE}, proposition 3",
            "temperature * max D(best policy, reference) / (1 - discount) minus what the"
            " regularised policy loses, the smallest over rows, temperatures and processes.",
            float(slack.min()),
            low=-1e-9,
            controls=({"claims.slack": 0.0},),
        ),
        Claim(
            "one-policy-at-high-temperature",
            "Second-order expansion at the reference; this experiment's own",
            "With temperatures in units of the curvature all smooth rows make the same policy at"
            " the highest one: their largest difference over the largest step from the reference.",
            float(spread / high.away.max()),
            high=0.05,
            controls=({"claims.high": 0.01},),
        ),
    ]
