"""Mode collapse: what a penalty towards the initial policy keeps alive, by divergence and beta.

The claim of DMPO (arXiv:2605.19461) and DPH-RL, that reverse KL loses correct answers and a
mass-covering penalty keeps them, in a softmax bandit. The papers report language models only; the
reference numbers are an independent computation of this toy with 200 seeds. They fit a baseline
that is the mean of the other answers of the group.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import (
    above,
    count,
    each,
    fraction,
    inside,
    labels,
    non_negative,
    one_of,
    positive,
    real,
)
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, within
from experiments.lab.plots import Picture, curve, legend, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators, regularized

AXES = {
    "penalty": labels,
    "generator": one_of(generators.TABLE),
    "sampling": one_of(("exact", "policy", "reference")),
    "beta": non_negative,
}
FIELDS = {
    "ref_policy": each(inside(0, 1)),
    "correct": above(1),
    "group": above(1),
    "alive": fraction,
    "beta_factor": real,
    "parameters.tsallis.index": positive,
    "seeds": count,
    "step_size": non_negative,
    "steps": count,
}
SOURCE = "DMPO (arXiv:2605.19461) and DPH-RL, abstracts; this toy recomputed"
# P(correct), correct answers kept, probability of the first, by penalty and beta.
REFERENCE = {
    ("none", 0.1): (1.000, 1.00, 0.999),
    ("reverse", 0.1): (0.996, 5.00, 0.607),
    ("forward", 0.1): (0.953, 5.00, 0.573),
    ("reverse", 0.01): (0.999, 1.00, 0.998),
    ("forward", 0.01): (0.994, 2.59, 0.912),
    ("reverse", 0.001): (1.000, 1.00, 0.998),
    ("forward", 0.001): (0.999, 1.00, 0.997),
}
REFERENCE_SEEDS = 200
REVERSE, FORWARD = "kl, policy", "reverse_kl, reference"
"""Reverse KL in the reward, forward KL from samples of the reference, as the field names them."""
EXACT_REVERSE, EXACT_FORWARD = "kl, exact", "reverse_kl, exact"
UNPENALIZED = {
    "beta_factor": 0.0,
    "sweep.penalty": (EXACT_REVERSE, EXACT_FORWARD, REVERSE, FORWARD),
    "sweep.generator": ("kl", "reverse_kl", "kl", "reverse_kl"),
    "sweep.sampling": ("exact", "exact", "policy", "reference"),
    "sweep.beta": (0.0, 0.001, 0.01, 0.1),
    "seeds": 4,
}
REPELLED = {
    "beta_factor": -1.0,
    "sweep.penalty": (REVERSE, FORWARD),
    "sweep.generator": ("kl", "reverse_kl"),
    "sweep.sampling": ("policy", "reference"),
    "sweep.beta": (0.0, 0.001, 0.01, 0.1),
    "seeds": 4,
}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The policies after training, one for each seed, and the optimum of their objective."""
    generator = row(config, point["generator"])
    log_ref = jnp.log(jnp.array(config.ref_policy))
    reward = (jnp.arange(len(config.ref_policy)) < config.correct).astype(log_ref.dtype)
    exact = point["sampling"] == "exact"
    objective = (exact_objective if exact else sampled_objective)(
        config, point, generator, log_ref, reward
    )

    def ascend(logits, key):
        return logits + config.step_size * jax.grad(objective)(logits, key), None

    def trained(seed):
        keys = jax.random.split(jax.random.key(seed), config.steps)
        return jax.lax.scan(ascend, log_ref, keys)[0]

    seeds = jnp.arange(config.seeds)
    # Without samples all seeds are one run.
    logits = jax.vmap(trained)(seeds[:1] if exact else seeds)
    logits = jnp.broadcast_to(logits, (config.seeds, *log_ref.shape))
    right = jax.nn.softmax(logits)[:, : config.correct]
    best = log_ref
    if exact:  # of beta = 0 the limit
        temperature = jnp.maximum(point["beta"], 1e-4)
        best = regularized.greedy(reward, log_ref, temperature, generator=generator).log_policy
    found = {
        "correct": jnp.sum(right, axis=-1),
        "kept": jnp.sum(right >= config.alive, axis=-1, dtype=right.dtype),
        "first": right[:, 0],
        "log_odds": logits[:, 0] - logits[:, 1],
    }
    by_seed = {name: labelled(x, seed=range(config.seeds)) for name, x in found.items()}
    return by_seed | {"optimal_log_odds": best[0] - best[1]}


def row(config: ConfigDict, name: str) -> divergences.Generator:
    """A row of the table with its parameter."""
    return generators.get(name, **config.parameters.get(name, {}))


def exact_objective(
    config: ConfigDict, point: dict, generator: divergences.Generator, log_ref: Array, reward: Array
):
    """`E[r] - beta D(pi‖ref)`."""

    def objective(logits: Array, key: Array) -> Array:
        penalty = divergences.f_divergence(generator, logits, log_ref)
        weight = config.beta_factor * point["beta"]
        return jnp.sum(jax.nn.softmax(logits) * reward) - weight * penalty

    return objective


def sampled_objective(
    config: ConfigDict, point: dict, generator: divergences.Generator, log_ref: Array, reward: Array
):
    """Its gradient from a group of the policy, and for `reference` another of the reference.

    Of the policy `E_pi[f'(u) grad log pi]`, of the reference `E_ref[u f'(u) grad log pi]`.
    """
    beta = config.beta_factor * point["beta"]

    def objective(logits: Array, key: Array) -> Array:
        of_policy, of_reference = jax.random.split(key)
        log_pi = jax.nn.log_softmax(logits)
        log_u = jax.lax.stop_gradient(log_pi - log_ref)
        score = generator.slope(log_u) + generator.slope_at_one
        taken = jax.random.categorical(of_policy, log_pi, shape=(config.group,))
        paid = reward[taken]
        if point["sampling"] == "policy":
            paid = paid - beta * score[taken]
        # The mean of the others: with the answer's own, rewards count (group - 1)/group.
        advantage = (paid - jnp.mean(paid)) * config.group / (config.group - 1)
        surrogate = jnp.mean(advantage * log_pi[taken])
        if point["sampling"] == "reference":
            seen = jax.random.categorical(of_reference, log_ref, shape=(config.group,))
            surrogate -= beta * jnp.mean((jnp.exp(log_u) * score)[seen] * log_pi[seen])
        return surrogate

    return objective


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Answers kept against beta: sampled both ways, and exact for every row."""
    figure, axes = panels(3, width=4.0, height=4.4)
    results = results.sel(beta=[beta for beta in results.beta.values if beta > 0])
    mean, error = results.mean("seed"), results.std("seed") / results.sizes["seed"] ** 0.5
    exact = [name for name in results.penalty.values if name.endswith(", exact")]
    drawn = [name for name in results.penalty.values if name not in exact]
    for number, name in enumerate(drawn):
        look = style(number, marker=True) | {"label": _title(name).replace(", ", ", from ")}
        for axis, what in zip(axes, ("kept", "correct"), strict=False):
            y, bar = mean[what].sel(penalty=name), error[what].sel(penalty=name)
            axis.errorbar(results.beta, y, bar, **look)
    for number, name in enumerate(exact):
        look = style(number) | {"linestyle": ("-", "--")[number // 7]}
        title = _title(name).removesuffix(", exact")
        curve(axes[2], "beta", mean.kept.sel(penalty=name), label=title, **look)
    axes[0].set(ylabel=f"correct answers kept of {config.correct}", title="sampled")
    axes[1].set(ylabel="probability of a correct answer", title="sampled")
    axes[2].set(ylabel=f"correct answers kept of {config.correct}", title="exact gradient")
    for axis in axes:
        axis.set(xscale="log", xlabel="β")
        axis.title.set_fontsize("medium")
    for axis in axes[:2]:
        legend(axis, fontsize="x-small")
    legend(axes[2], fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return {
        "window": Picture(
            figure,
            "After training: in a window of β forward KL, KL(ref‖π), keeps answers that reverse KL"
            " loses; above it both keep all and reverse KL is the more accurate, below it none"
            " does. The optimum of every objective keeps all odds: the collapse is"
            " of the gradient flow, as the exact gradients show.",
        )
    }


def _title(penalty: str) -> str:
    """The label of a penalty, the two KL as the field writes them."""
    generator, _, sampling = penalty.partition(", ")
    names = {"kl": "KL(π‖ref)", "reverse_kl": "KL(ref‖π)"}
    return f"{names.get(generator, generator.replace('_', ' '))}, {sampling}"


# ------------------------------------------------------------------------------------------ claims


SWAPPED = {"reverse": FORWARD, "forward": REVERSE}


@claim(
    source=SOURCE,
    reference=tuple(REFERENCE.values()),
    reruns=(UNPENALIZED, REPELLED),
    wrong=(SWAPPED,),
)
def reference_table(results: xr.Dataset, reverse: str = REVERSE, forward: str = FORWARD) -> Finding:
    """Probability of a correct answer, correct answers kept, probability of the first: without
    penalty, with reverse KL in the reward, with forward KL from samples of the reference, at
    beta = .1, .01, .001. Bounds: four standard errors of the difference and the last digit."""
    places = {"none": reverse, "reverse": reverse, "forward": forward}
    table = results[["correct", "kept", "first"]].to_dataarray("number")
    draws = [
        table.sel(penalty=places[name], beta=0.0 if name == "none" else beta)
        for name, beta in REFERENCE
    ]
    return within(
        list(REFERENCE.values()),
        xr.concat(draws, "row", coords="minimal", compat="override"),
        behind=REFERENCE_SEEDS,
        rounding=(1e-3, 1e-2, 1e-3),
    )


@claim(
    source=f"{SOURCE}: 1 with reverse KL, 3 with forward KL",
    reference=(1, 3),
    reruns=(UNPENALIZED,),
    wrong=({"reverse": EXACT_FORWARD, "forward": EXACT_REVERSE},),
)
def exact_gradients_collapse_too(
    results: xr.Dataset, reverse: str = EXACT_REVERSE, forward: str = EXACT_FORWARD
) -> Finding:
    """With exact gradients at beta = .01, correct answers kept by reverse and forward KL: the
    collapse is no sampling noise."""
    kept = results.kept.mean("seed").sel(beta=0.01)
    return equals((1, 3), kept.sel(penalty=[reverse, forward]))


@claim(
    source="Stationarity: f'(pi/ref) is the same for equal rewards",
    wrong=({"policy": "log_odds"},),
)
def optimum_keeps_the_odds(results: xr.Dataset, policy: str = "optimal_log_odds") -> Finding:
    """The log-odds 3 : 1 of the two likeliest correct answers in the optimum, largest deviation
    over divergences and beta. The trained policies do not keep them."""
    exact = results[policy].where(results.sampling == "exact", drop=True)
    return at_most(1e-9, abs(exact - np.log(3.0)).max())


@claim(source=SOURCE, reruns=(UNPENALIZED,), wrong=(SWAPPED,))
def window_of_beta(results: xr.Dataset, reverse: str = REVERSE, forward: str = FORWARD) -> Finding:
    """Answers kept by forward KL minus those by reverse KL, from samples, at beta = .01; and at .1
    the probability of a correct answer with reverse minus with forward KL, which keep equally
    many."""
    mean = results.mean("seed")
    kept, correct = mean.kept.sel(beta=0.01), mean.correct.sel(beta=0.1)
    more_kept = kept.sel(penalty=forward) - kept.sel(penalty=reverse)
    more_accurate = correct.sel(penalty=reverse) - correct.sel(penalty=forward)
    return at_least((0.5, 0.02), (more_kept, more_accurate))
