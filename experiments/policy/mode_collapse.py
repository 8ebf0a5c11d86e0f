"""Mode collapse: what a penalty towards the initial policy keeps alive, by divergence and beta.

The claim of DMPO (arXiv:2605.19461) and DPH-RL, that reverse KL loses correct answers and a
mass-covering penalty keeps them, in a softmax bandit. The papers report language models only; the
reference numbers are an independent computation of this toy with 200 seeds. They fit a baseline
that is the mean of the other answers of the group.
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
from jdiv import divergences, generators, regularized
from jdiv.checks import known

TRACED = ("beta", "seed", "variant")
SAMPLING = ("exact", "policy", "reference")
SOURCE = "DMPO (arXiv:2605.19461) and DPH-RL, abstracts; this toy recomputed"
# P(correct), correct answers kept, probability of the first, by (generator, sampling) and beta.
REFERENCE = {
    ("none", 0.1): (1.000, 1.00, 0.999),
    ("kl", 0.1): (0.996, 5.00, 0.607),
    ("reverse_kl", 0.1): (0.953, 5.00, 0.573),
    ("kl", 0.01): (0.999, 1.00, 0.998),
    ("reverse_kl", 0.01): (0.994, 2.59, 0.912),
    ("kl", 0.001): (1.000, 1.00, 0.998),
    ("reverse_kl", 0.001): (0.999, 1.00, 0.997),
}
VARIANTS = {"none": 2, "kl": 2, "reverse_kl": 3}  # of the reference's columns
REFERENCE_SEEDS = 200


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown rows and ways of sampling, and a negative coefficient."""
    known("config.sweep.generator", point["generator"], generators.TABLE)
    known("config.sweep.sampling", point["sampling"], SAMPLING)
    if point["beta"] < 0:
        raise ValueError(f"config.sweep.beta must not be negative, got {point['beta']}")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """The policy after training, and the optimum of its objective."""
    generator = generators.get(point["generator"], **config.parameters.get(point["generator"], {}))
    log_ref = jnp.log(jnp.array(config.reference))
    reward = (jnp.arange(len(config.reference)) < config.correct).astype(log_ref.dtype)
    beta = config.sign * point["beta"]

    def exact(logits: Array, key: Array) -> Array:
        """`E[r] - beta D(pi‖ref)`."""
        expected = jnp.sum(jax.nn.softmax(logits) * reward)
        return expected - beta * divergences.f_divergence(generator, logits, log_ref)

    def sampled(logits: Array, key: Array) -> Array:
        """Its gradient from a group of the policy, and for `reference` another of the reference.

        Of the policy `E_pi[f'(u) grad log pi]`, of the reference `E_ref[u f'(u) grad log pi]`.
        """
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

    objective = exact if point["sampling"] == "exact" else sampled

    def ascend(logits, key):
        return logits + config.rate * jax.grad(objective)(logits, key), None

    logits, _ = jax.lax.scan(ascend, log_ref, jax.random.split(key, config.steps))
    policy = jax.nn.softmax(logits)
    right = policy[: config.correct]
    numbers = {
        "correct": jnp.sum(right),
        "kept": jnp.sum(right >= config.alive, dtype=right.dtype),
        "first": right[0],
    }
    if point["sampling"] == "exact":  # of beta = 0 the limit
        temperature = jnp.maximum(point["beta"], 1e-4)
        best = regularized.greedy(reward, log_ref, temperature, generator=generator).log_policy
        of_two = best[0] - best[1]
    else:
        of_two = log_ref[0] - log_ref[1]
    return numbers | {"optimal_log_odds": of_two}


def _name(results: xr.Dataset, variant: int) -> str:
    """Of the generator, the two KL as the field writes them."""
    name = str(results.generator.sel(variant=variant).item())
    return {"kl": "KL(π‖ref)", "reverse_kl": "KL(ref‖π)"}.get(name, name.replace("_", " "))


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Answers kept against beta: sampled both ways, and exact for every row."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4))
    mean, error = results.mean("seed"), results.std("seed") / results.sizes["seed"] ** 0.5
    beta = [b for b in results.beta.values if b > 0]
    exact = [v for v in results.variant.values if results.sampling.sel(variant=v) == "exact"]
    drawn = [v for v in results.variant.values if v not in exact]
    for variant, style in zip(drawn, ("o-", "s--", "^-.", "v:"), strict=False):
        name = _name(results, variant)
        label = f"{name}, from {results.sampling.sel(variant=variant).item()}"
        for axis, what in zip(axes, ("kept", "correct"), strict=False):
            axis.errorbar(
                beta, mean[what].sel(variant=variant, beta=beta),
                error[what].sel(variant=variant, beta=beta), fmt=style, label=label,
            )  # fmt: skip
    for number, variant in enumerate(exact):
        axes[2].plot(
            beta, mean.kept.sel(variant=variant, beta=beta), ("-", "--")[number // len(COLORS)],
            color=COLORS[number % len(COLORS)], label=_name(results, variant),
        )  # fmt: skip
    axes[0].set(ylabel=f"correct answers kept of {config.correct}", title="sampled")
    axes[1].set(ylabel="probability of a correct answer", title="sampled")
    axes[2].set(ylabel=f"correct answers kept of {config.correct}", title="exact gradient")
    for axis in axes:
        axis.set(xscale="log", xlabel="β")
        axis.title.set_fontsize("medium")
        if axis is not axes[2]:
            axis.legend(fontsize="x-small")
    axes[2].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return {
        "window": Picture(
            figure,
            "After training: in a window of β forward KL, KL(ref‖π), keeps answers that reverse KL"
            " loses; above it both keep all and reverse KL is the more accurate, below it none"
            " does. The optimum of every objective keeps all odds: the collapse is"
            " of the gradient flow, as the exact gradients show.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The table, the exact flow, the optimum, the window."""
    few = {"sweep.seed": (0, 1, 2, 3), "sweep.beta": (0.0, 0.001, 0.01, 0.1)}
    names = ("correct", "kept", "first")
    seeds = results.sizes["seed"]
    measured, reference, slack = [], [], []
    swap = {"kl": "reverse_kl", "reverse_kl": "kl"} if config.claims.swapped else {}
    for (name, beta), numbers in REFERENCE.items():
        column = swap.get(name, name)
        here = results.sel(variant=VARIANTS[column], beta=0.0 if name == "none" else beta)
        for what, number, digit in zip(names, numbers, (1e-3, 1e-2, 1e-3), strict=True):
            measured.append(float(here[what].mean()))
            reference.append(number)
            error = float(here[what].std(ddof=1)) * (1 / seeds + 1 / REFERENCE_SEEDS) ** 0.5
            slack.append(4 * error + digit)
    reference, slack = np.array(reference), np.array(slack)
    mean = results.mean("seed")
    forward, reverse = (0, 1) if config.claims.swapped else (1, 0)
    sampled_forward, sampled_reverse = (2, 3) if config.claims.swapped else (3, 2)
    exact = results.sampling == "exact"
    odds = np.abs(results.optimal_log_odds - np.log(config.claims.odds)).where(exact, 0).max()
    kept = mean.kept.sel(beta=0.01)
    return [
        Claim(
            "reference-table",
            SOURCE,
            "Probability of a correct answer, correct answers kept, probability of the first:"
            " without penalty, with reverse KL in the reward, with forward KL from samples of the"
            " reference, at beta = .1, .01, .001. Bounds: four standard errors of the difference"
            " and the last digit.",
            measured,
            low=reference - slack,
            high=reference + slack,
            published=reference,
            controls=({"claims.swapped": True}, {"sign": -1.0, **few}),
        ),
        Claim(
            "exact-gradients-collapse-too",
            f"{SOURCE}: 1 with reverse KL, 3 with forward KL",
            "With exact gradients at beta = .01, correct answers kept by reverse and forward KL:"
            " the collapse is no sampling noise.",
            [float(kept.sel(variant=reverse)), float(kept.sel(variant=forward))],
            low=(1, 3),
            high=(1, 3),
            controls=({"claims.swapped": True},),
        ),
        Claim(
            "the-optimum-keeps-the-odds",
            "Stationarity: f'(pi/ref) is the same for equal rewards",
            "The log-odds 3 : 1 of the two likeliest correct answers in the optimum, largest"
            " deviation over divergences and beta.",
            float(odds),
            high=1e-9,
            controls=({"claims.odds": 2.0},),
        ),
        Claim(
            "a-window-of-beta",
            SOURCE,
            "Answers kept by forward KL minus those by reverse KL, from samples, at beta = .01; and"
            " at .1 the probability of a correct answer with reverse minus with forward KL, which"
            " keep equally many.",
            [
                float(kept.sel(variant=sampled_forward) - kept.sel(variant=sampled_reverse)),
                float(
                    mean.correct.sel(variant=sampled_reverse, beta=0.1)
                    - mean.correct.sel(variant=sampled_forward, beta=0.1)
                ),
            ],
            low=(0.5, 0.02),
            controls=({"claims.swapped": True},),
        ),
    ]
