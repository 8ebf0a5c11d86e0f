"""RL with KL penalties is Bayesian inference: the identity, the posterior, and the collapse.

Korbak, Perez and Buckley 2022 (arXiv:2205.11275): theory, no experiments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import at_least, count, non_negative, one_of, positive
from experiments.lab.claims import Finding, at_most, claim, equals
from experiments.lab.plots import Picture, curves, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators, regularized

AXES = {"beta": non_negative}
FIELDS = {
    "beta": positive,
    "generator": one_of(("kl", "reverse_kl")),
    "answers": at_least(2),
    "cases": count,
    "step_size": positive,
    "steps": count,
}
SIDES = ("J* - J", "beta KL(pi‖pi*)", "KL(pi‖pi*)", "beta KL(pi*‖pi)")
SOURCE = "Korbak, Perez and Buckley 2022 (arXiv:2205.11275)"
GAP, BEST = 0.20783326, 0.63031558
LARGE = (0.4, 1.0)
# KL(ref‖pi) as the penalty.
WRONG_DIRECTION = {"generator": "reverse_kl", "steps": 4000, "cases": 50}
WRONG_SIDES = ({"side": "KL(pi‖pi*)"}, {"side": "beta KL(pi*‖pi)"})


def kept_steps(config: ConfigDict) -> np.ndarray:
    """Steps of the flow that are kept: 0, and evenly on a logarithmic axis."""
    return np.append(0, np.unique(np.geomspace(1, config.steps, 80).astype(int)))


def objective(
    config: ConfigDict, log_policy: Array, ref_logits: Array, reward: Array, beta: Array
) -> Array:
    """`E_pi[r] - beta D(pi‖ref)`, D the config's: KL."""
    penalty = divergences.f_divergence(generators.get(config.generator), log_policy, ref_logits)
    return jnp.sum(jnp.exp(log_policy) * reward, axis=-1) - beta * penalty


def sides(
    config: ConfigDict, log_policy: Array, ref_logits: Array, reward: Array
) -> tuple[Array, Array]:
    """The sides of the identity and two wrong ones; and `J*`, from `regularized.greedy`."""
    row, beta = generators.get(config.generator), config.beta
    best = regularized.greedy(reward, ref_logits, beta, generator=row)
    missing = best.value - objective(config, log_policy, ref_logits, reward, beta)
    gap = divergences.kl(log_policy, best.log_policy)
    wrong = divergences.kl(best.log_policy, log_policy)
    return jnp.stack([missing, beta * gap, gap, beta * wrong], axis=-1), best.value


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The identity in the toy and at random; the exact gradient flow with this penalty."""
    ref_logits, log_policy = jnp.log(jnp.array([config.ref_policy, config.policy]))
    reward, beta = jnp.array(config.reward), point["beta"]
    toy, best = sides(config, log_policy, ref_logits, reward)
    drawn = 2 * jax.random.normal(key, (3, config.cases, config.answers))
    random, _ = sides(config, *jax.nn.log_softmax(drawn[:2]), drawn[2])

    # The posterior by Bayes' rule; without a penalty it is all on the best answers.
    safe = jnp.where(beta > 0, beta, 1)
    posterior = jnp.where(beta > 0, ref_logits + reward / safe, ref_logits)
    posterior = jnp.where((beta > 0) | (reward == jnp.max(reward)), posterior, -jnp.inf)
    target = jax.nn.log_softmax(posterior)
    row = generators.get(config.generator)
    optimum = regularized.greedy(reward, ref_logits, safe, generator=row).log_policy

    def stretch(logits: Array, steps: Array) -> tuple[Array, Array]:
        slope = jax.grad(
            lambda x: objective(config, jax.nn.log_softmax(x), ref_logits, reward, beta)
        )
        ascend = lambda _, x: x + config.step_size * slope(x)
        return (after := jax.lax.fori_loop(0, steps, ascend, logits)), after

    step = kept_steps(config)
    _, path = jax.lax.scan(stretch, ref_logits, jnp.array(np.diff(step), jnp.int32))
    path = jax.nn.log_softmax(jnp.concatenate([ref_logits[None], path]))
    everywhere = jnp.broadcast_to(target, path.shape)
    # Towards a point mass KL(pi‖pi*) is infinite all along; the other direction is not.
    first, second = (jnp.where(beta > 0, *x) for x in ((path, everywhere), (everywhere, path)))
    answer = range(len(config.reward))
    return {
        "toy": labelled(toy, side=SIDES),
        "best": best,
        "log_partition": config.beta * jax.nn.logsumexp(ref_logits + reward / config.beta),
        "optimum": labelled(jnp.exp(optimum), answer=answer),
        "target": labelled(jnp.exp(target), answer=answer),
        "case": labelled(random, "number", side=SIDES),
        "path": labelled(jnp.exp(path), step=step, answer=answer),
        "distance": labelled(divergences.kl(first, second), step=step),
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The identity over random cases; entropy and distance along the flows."""
    figure, (left, middle, right) = panels(3, width=3.6)
    case = results.case.isel(beta=0, number=slice(0, 300))
    for number, (side, marker) in enumerate(zip(SIDES[1:], "o^x", strict=True)):
        left.plot(
            case.sel(side="J* - J"),
            case.sel(side=side),
            marker,
            markersize=4,
            alpha=0.8,
            color=style(number)["color"],
            label=side.replace("pi", "π").replace("beta", "β"),
        )
    limits = [0.01, 20]
    left.plot(limits, limits, "k-", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    left.set(xlabel="J* - J of random policies, nats", ylabel="divergence from the optimum, nats")
    left.legend(fontsize="small", loc="upper left")
    entropy = -(results.path * np.log(results.path.where(results.path > 0, 1))).sum("answer")
    curves(middle, "step", entropy, "beta")
    curves(right, "step", results.distance, "beta")
    middle.set(ylabel="entropy of the policy, nats", ylim=(0, None))
    right.set(yscale="log", ylim=(1e-12, 10), ylabel="KL(π‖π*), for β = 0 KL(π*‖π), nats")
    for axis in (middle, right):
        axis.set(xscale="log", xlim=(1, config.steps), xlabel="gradient step")
    middle.legend(title="β", fontsize="small", loc="lower left")
    return {
        "inference": Picture(
            figure,
            "Left: what a policy's objective lacks is β KL(π‖π*), on the line; without β or in the"
            " other direction it is not. Middle and right: exact gradient flows. With a penalty"
            " they stop at π* = ref e^(r/β)/Z, without one all entropy is lost, slowly.",
        )
    }


@claim(
    source=f"{SOURCE}, section 4; the numbers are computed from it",
    reference=(GAP, GAP, BEST),
    reruns=(WRONG_DIRECTION,),
    wrong=WRONG_SIDES,
    needs={"beta": ...},
)
def toy_numbers(results: xr.Dataset, side: str = SIDES[1]) -> Finding:
    """In three answers J* - J(pi) and beta KL(pi‖pi*) are both .20783326, and J* is .63031558."""
    first = results.isel(beta=0)
    measured = [first.toy.sel(side="J* - J"), first.toy.sel(side=side), first.best]
    return equals((GAP, GAP, BEST), measured, tolerance=5e-9)


@claim(
    source=f"{SOURCE}: maximizing J is minimizing KL(pi‖pi*)",
    reruns=(WRONG_DIRECTION,),
    wrong=WRONG_SIDES,
    needs={"beta": ...},
)
def the_identity(results: xr.Dataset, side: str = SIDES[1]) -> Finding:
    """J* - J(pi) is beta KL(pi‖pi*) for random policies, references and rewards, and J* is
    beta log Z: the largest difference of each."""
    first = results.isel(beta=0)
    difference = np.abs(first.case.sel(side="J* - J") - first.case.sel(side=side))
    return at_most(1e-12, [difference.max(), abs(first.best - first.log_partition)])


@claim(source=f"{SOURCE}: prior ref, evidence e^(r/beta)", reruns=(WRONG_DIRECTION,))
def the_optimum_is_a_posterior(results: xr.Dataset) -> Finding:
    """The optimum with a KL penalty is ref e^(r/beta)/Z, and the exact gradient flow ends there:
    the largest difference of the regularized greedy policy from either, at beta = .4 and 1 for the
    flow. At .1 it is not there yet: an answer moves at the pace of its probability."""
    penalized = results.isel(beta=results.beta.values > 0)
    posterior = np.abs(penalized.target - penalized.optimum)
    end = np.abs(penalized.path.isel(step=-1) - penalized.optimum).sel(beta=list(LARGE))
    return at_most(1e-9, [posterior.max(), end.max()])


@claim(
    source=f"{SOURCE}, section 3: the optimum of E[r] is a point mass",
    wrong=({"beta": 0.4},),
)
def collapse_without_the_penalty(
    results: xr.Dataset, config: ConfigDict, beta: float = 0.0
) -> Finding:
    """Without the penalty the flow ends with less than 10/steps off the best answer: the
    probability of the others, times steps. Pure policy gradients close the gap like 1/time; with a
    penalty it stays open."""
    best = int(np.argmax(config.reward))
    end = results.path.isel(step=-1, answer=best).sel(beta=beta)
    return at_most(10.0, (1 - end) * config.steps * config.step_size)
