"""RL with KL penalties is better viewed as Bayesian inference: the identity, and the collapse.

Korbak, Perez and Buckley 2022 (arXiv:2205.11275): theory, no experiments. The numbers of the three
answers are an independent computation.
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
from jdiv import divergences, generators, regularized

TRACED = ("beta",)
SIDES = ("J* - J", "beta KL(pi‖pi*)", "KL(pi‖pi*)", "beta KL(pi*‖pi)")
DIMS = {
    "toy": ("side",),
    "case": ("number", "side"),
    "optimum": ("answer",),
    "path": ("moment", "answer"),
    "objective": ("moment",),
    "distance": ("moment",),
    "target": ("answer",),
}
SOURCE = "Korbak, Perez and Buckley 2022 (arXiv:2205.11275)"
LARGE = [0.4, 1.0]
GAP, BEST = 0.20783326, 0.63031558


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Sides of the identity, steps of the flow."""
    return {"side": SIDES, "moment": moments(config)}


def moments(config: ConfigDict) -> np.ndarray:
    """Steps of the flow that are kept: 0, and evenly on a logarithmic axis."""
    return np.append(0, np.unique(np.geomspace(1, config.steps, 80).astype(int)))


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses negative penalties; 0 is the collapse."""
    if not point["beta"] >= 0:
        raise ValueError(f"config.sweep.beta must be at least 0, got {point['beta']}")
    if not config.beta > 0:
        raise ValueError(f"config.beta must be positive, got {config.beta}")


def objective(log_policy: Array, log_ref: Array, reward: Array, beta: Array) -> Array:
    """`E_pi[r] - beta KL(pi‖ref)`."""
    expected = jnp.sum(jnp.exp(log_policy) * reward, axis=-1)
    return expected - beta * divergences.kl(log_policy, log_ref)


def sides(log_policy: Array, log_ref: Array, reward: Array, beta: float) -> tuple[Array, Array]:
    """Of the identity, with two wrong ones; and `J*`, from the optimum by `regularized.greedy`."""
    best = regularized.greedy(reward, log_ref, beta, generator=generators.kl())
    gap = divergences.kl(log_policy, best.log_policy)
    wrong = divergences.kl(best.log_policy, log_policy)
    missing = best.value - objective(log_policy, log_ref, reward, beta)
    return jnp.stack([missing, beta * gap, gap, beta * wrong], axis=-1), best.value


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """The identity in the toy and at random; the exact gradient flow with this penalty."""
    log_ref, log_policy = jnp.log(jnp.array(config.reference)), jnp.log(jnp.array(config.policy))
    reward, beta = jnp.array(config.reward), point["beta"]
    toy, best = sides(log_policy, log_ref, reward, config.beta)
    drawn = 2 * jax.random.normal(key, (3, config.cases, config.answers))
    random, _ = sides(*jax.nn.log_softmax(drawn[:2]), drawn[2], config.beta)

    # The posterior by Bayes' rule: of no penalty it is all on the best answers.
    safe = jnp.where(beta > 0, beta, 1)
    posterior = jnp.where(beta > 0, log_ref + reward / safe, log_ref)
    posterior = jnp.where((beta > 0) | (reward == jnp.max(reward)), posterior, -jnp.inf)
    target = jax.nn.log_softmax(posterior)
    of_logits = lambda x: objective(jax.nn.log_softmax(x), log_ref, reward, beta)

    def stretch(logits, steps):
        ascend = lambda _, x: x + config.rate * jax.grad(of_logits)(x)
        return (after := jax.lax.fori_loop(0, steps, ascend, logits)), after

    lengths = jnp.array(np.diff(moments(config)), jnp.int32)
    _, path = jax.lax.scan(stretch, log_ref, lengths)
    path = jax.nn.log_softmax(jnp.concatenate([log_ref[None], path]))
    everywhere = lambda x: jnp.broadcast_to(x, path.shape)
    # Towards a point mass KL(pi‖pi*) is infinite all along; the other direction is not.
    first, second = (jnp.where(beta > 0, x, y) for x, y in ((path, target), (target, path)))
    return {
        "toy": toy,
        "best": best,
        "log_partition": config.beta * jax.nn.logsumexp(log_ref + reward / config.beta),
        "optimum": jnp.exp(
            regularized.greedy(reward, log_ref, safe, generator=generators.kl()).log_policy
        ),
        "target": jnp.exp(target),
        "case": random,
        "path": jnp.exp(path),
        "objective": objective(path, everywhere(log_ref), everywhere(reward), beta),
        "distance": divergences.kl(everywhere(first), everywhere(second)),
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The identity over random cases; entropy and distance along the flows."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.8, 3.8))
    case = results.case.isel(beta=0, number=slice(0, 300))
    missing = case.sel(side="J* - J")
    for side, marker in zip(SIDES[1:], ("o", "^", "x"), strict=True):
        label = side.replace("pi", "π").replace("beta", "β")
        left.plot(missing, case.sel(side=side), marker, ms=4, alpha=0.8, label=label)
    limits = [0.01, 20]
    left.plot(limits, limits, "k-", lw=0.8)
    left.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    left.set(xlabel="J* - J, random policies", ylabel="divergence from the optimum")
    left.legend(fontsize="small", loc="upper left")
    law = results.path
    entropy = -(law * np.log(law.where(law > 0, 1))).sum("answer")
    steps = results.moment
    for beta, style in zip(results.beta.values, ("-", "--", "-.", ":"), strict=False):
        label = f"β = {beta:g}"
        middle.plot(steps, entropy.sel(beta=beta), style, label=label)
        right.plot(steps, results.distance.sel(beta=beta), style, label=label)
    middle.set(xlabel="gradient step", ylabel="entropy of the policy, nats", ylim=(0, None))
    right.set(
        yscale="log",
        ylim=(1e-12, 10),
        xlabel="gradient step",
        ylabel="KL(π‖π*), for β = 0 KL(π*‖π)",
    )
    for axis in (middle, right):
        axis.set(xscale="log", xlim=(1, config.steps))
    middle.legend(fontsize="small", loc="lower left")
    return {
        "inference": Picture(
            figure,
            "Left: what a policy's objective lacks is β KL(π‖π*), on the line; without β or in the"
            " other direction it is not. Middle and right: exact gradient flows. With a penalty"
            " they stop at π* = ref e^(r/β)/Z, without one all entropy is lost, slowly.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The identity in numbers and in general, the posterior, the collapse."""
    first = results.isel(beta=0)
    other = config.claims.side
    difference = np.abs(first.case.sel(side="J* - J") - first.case.sel(side=other))
    penalised = results.sel(beta=[beta for beta in results.beta.values if beta > 0])
    optimum = penalised.optimum.transpose("beta", "answer")
    if config.claims.swapped:  # e^(r/beta) at another beta
        optimum = optimum.roll(beta=1).assign_coords(beta=penalised.beta)
    end = results.path.isel(moment=-1)
    at = end.sel(beta=config.claims.penalty)
    best = int(np.argmax(config.reward))
    return [
        Claim(
            "toy-numbers",
            f"{SOURCE}, section 4; reference numbers computed from it",
            f"J* - J, beta KL(pi‖pi*) and J* in three answers: {GAP}, {GAP}, {BEST}.",
            [first.toy.sel(side="J* - J"), first.toy.sel(side=other), first.best],
            low=np.array([GAP, GAP, BEST]) - 5e-9,
            high=np.array([GAP, GAP, BEST]) + 5e-9,
            controls=({"claims.side": "KL(pi‖pi*)"}, {"claims.side": "beta KL(pi*‖pi)"}),
        ),
        Claim(
            "the-identity",
            f"{SOURCE}: maximising J is minimising KL(pi‖pi*)",
            "Largest difference of J* - J and beta KL(pi‖pi*) over random policies, references and"
            " rewards; and of J* from beta log Z.",
            [float(difference.max()), abs(float(first.best - first.log_partition))],
            high=1e-12,
            controls=({"claims.side": "KL(pi‖pi*)"}, {"claims.side": "beta KL(pi*‖pi)"}),
        ),
        Claim(
            "the-optimum-is-a-posterior",
            f"{SOURCE}: prior ref, evidence e^(r/beta)",
            "Largest difference of ref e^(r/beta)/Z from the regularised greedy policy, and of that"
            " from where the exact gradient flow ends, at beta = .4 and 1. At .1 the flow is not"
            " there yet: an answer moves at the pace of its probability.",
            [
                float(np.abs(penalised.target.transpose("beta", "answer") - optimum).max()),
                float(np.abs(end.sel(beta=penalised.beta) - optimum).sel(beta=LARGE).max()),
            ],
            high=1e-9,
            controls=({"claims.swapped": True},),
        ),
        Claim(
            "collapse-without-the-penalty",
            f"{SOURCE}, section 3: the optimum of E[r] is a point mass",
            "Without the penalty the flow ends with less than 10/steps off the best answer: times"
            " steps, the probability of the others. Pure policy gradients close the gap like"
            " 1/time; with a penalty it stays open.",
            float((1 - at.isel(answer=best)) * config.steps * config.rate),
            high=10.0,
            controls=({"claims.penalty": 0.4},),
        ),
    ]
