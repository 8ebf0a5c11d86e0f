"""What is forgotten on other tasks when a policy is tuned on one: by SFT, by RFT, by KL and replay.

Eight questions of three tasks share six features, so that a step on one task moves the others.
Task A is trained, B and C are what the model can do already. All gradients are exact, and trainings
are compared where the reward on A is the same. RFT is the policy gradient of the model's own
answers, SFT the cross-entropy of given ones: the model's own right ones, all right ones alike, or a
foreign answer that is right and that the model hardly gives. The papers report language models
only; this toy is ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, between, claim
from experiments.lab.plots import Picture, legend, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences
from jdiv.lm import tabular
from jdiv.policy.recipes.ibro import information_bottleneck
from jdiv.policy.recipes.recap import recap_weights

AXES = {
    "factor": axes.real,
    "foreign": axes.fraction,
    "temperature": axes.positive,
    "seed": axes.seeds,
}
FIELDS = {
    "features": axes.count,
    "reward": axes.fraction,
    "step_size": axes.non_negative,
    "steps": axes.count,
    "beta": axes.non_negative,
    "entropy_weight": axes.non_negative,
    "window": axes.count,
}
SHAPE = tabular.table_shape(3)
SEQUENCES = tabular.enumerate_sequences(SHAPE)
TASKS = {"A": slice(0, 4), "B": slice(4, 6), "C": slice(6, 8)}
RIGHT = 4
"""Right answers to a question of task A, of fifteen."""


class Row(NamedTuple):
    """What a training is made of: weights of its terms, and whose answers it is given."""

    rft: float = 0.0
    own: float = 0.0
    uniform: float = 0.0
    foreign: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    ibro: float = 0.0
    replay: float = 0.0
    recap: float = 0.0


ROWS = {
    "RFT": Row(rft=1),
    "RFT, KL": Row(rft=1, kl=1),
    "SFT, own": Row(own=1),
    "SFT, uniform": Row(uniform=1),
    "SFT, foreign": Row(foreign=1),
    "SFT, foreign, KL": Row(foreign=1, kl=1),
    "RFT, entropy": Row(rft=1, entropy=1),
    "RFT, IBRO": Row(rft=1, ibro=1),
    "RFT, replay": Row(rft=1, replay=1),
    "RFT, RECAP": Row(rft=1, replay=1, recap=1),
}
TERMS = Row(*(np.array(x) for x in zip(*ROWS.values(), strict=True)))
SOURCE = "the papers' claims are about language models; this toy is ours"
RFT_SOURCE = f"RL's Razor (arXiv:2509.04259) and arXiv:2507.05386: RFT forgets less; {SOURCE}"
THINNED = 5


# -------------------------------------------------------------------------------------- the tasks


class Problem(NamedTuple):
    """Features of the questions, parameters to start from, right answers and those that are given.

    Fields:
        features: `[questions, features]`
        start: `[features, prefixes, V]`
        log_base: `[questions, sequences]` of the model before training.
        right: `[questions, sequences]`
        given: `[3, questions, sequences]` laws of answers: own, uniform, foreign.
    """

    features: Array
    start: Array
    log_base: Array
    right: Array
    given: Array


def problem(config: ConfigDict, point: dict, key: Array) -> Problem:
    """Random features and parameters; what B and C ask is what the model says by nine tenths."""
    of_features, of_start, of_right = jax.random.split(key, 3)
    count = TASKS["C"].stop
    features = jax.random.normal(of_features, (count, config.features)) / config.features**0.5
    start = 1.5 * jax.random.normal(of_start, (config.features, *SHAPE))
    log_base = answers(features, start)
    base = jnp.exp(log_base)
    order = jnp.argsort(-base, axis=-1)
    before = jnp.cumsum(jnp.take_along_axis(base, order, axis=-1), axis=-1)
    said = jnp.take_along_axis(before, jnp.argsort(order, axis=-1), axis=-1) - base < 0.9
    drawn = jax.random.permutation(
        of_right, jnp.broadcast_to(jnp.arange(base.shape[1]), base.shape), axis=1, independent=True
    )
    in_a = jnp.arange(count)[:, None] < TASKS["A"].stop
    right = jnp.where(in_a, drawn < RIGHT, said).astype(base.dtype)
    own = right * base / jnp.sum(right * base, axis=-1, keepdims=True)
    uniform = right / jnp.sum(right, axis=-1, keepdims=True)
    least = jnp.argmin(jnp.where(right > 0, base, jnp.inf), axis=-1)
    foreign = jax.nn.one_hot(least, base.shape[1], dtype=base.dtype)
    foreign = point["foreign"] * foreign + (1 - point["foreign"]) * own
    return Problem(features, start, log_base, right, jnp.stack([own, uniform, foreign]))


def tables(features: Array, parameters: Array) -> Array:
    """Logits `[questions, prefixes, V]`."""
    return jnp.einsum("qk,kpv->qpv", features, parameters)


def answers(features: Array, parameters: Array) -> Array:
    """Log-probabilities of all answers to all questions."""
    return jax.vmap(tabular.sequence_log_probs)(tables(features, parameters))


# ------------------------------------------------------------------------------------ the trainings


def loss(
    config: ConfigDict, given: Problem, parameters: Array, terms: Row, factor: Array, weights: Array
) -> Array:
    """The expected loss of one training; weights are of the tasks."""
    log_policy = answers(given.features, parameters)
    policy = jnp.exp(log_policy)
    task = TASKS["A"]
    wrong = 1 - jnp.sum(policy * given.right, axis=-1)
    weights = jnp.where(terms.recap > 0, weights, 1)
    replayed = weights[1] * jnp.mean(wrong[TASKS["B"]]) + weights[2] * jnp.mean(wrong[TASKS["C"]])
    crossed = -jnp.mean(jnp.sum(given.given * log_policy[None], axis=-1)[:, task], axis=-1)
    kl = jnp.mean(divergences.kl(log_policy[task], given.log_base[task]))
    # The entropy of each token; samples and their advantages are held.
    rows = tables(given.features, parameters)
    entropy = -jnp.sum(jax.nn.softmax(rows) * jax.nn.log_softmax(rows), axis=-1)
    entropy = entropy[task][:, jnp.asarray(SEQUENCES.prefixes)]
    paid = jax.lax.stop_gradient((given.right - (1 - wrong)[:, None])[task])
    mask = jnp.broadcast_to(jnp.asarray(SEQUENCES.mask), entropy.shape)
    held = jax.lax.stop_gradient(policy[task])[..., None]
    bottleneck = jnp.sum(held * information_bottleneck(entropy, paid, mask)) / task.stop
    bonus = -jnp.sum(held * jnp.where(mask, entropy, 0)) / task.stop
    return (
        terms.rft * jnp.where(terms.recap > 0, weights[0], 1) * jnp.mean(wrong[task])
        + terms.own * crossed[0] + terms.uniform * crossed[1] + terms.foreign * crossed[2]
        + factor * config.beta * terms.kl * kl
        + factor * config.entropy_weight * (terms.entropy * bonus + terms.ibro * bottleneck)
        + factor * terms.replay * replayed
    )  # fmt: skip


def measured(given: Problem, parameters: Array) -> dict[str, Array]:
    """By task: probability of a right answer and KL(pi‖base); entropy of answers on A."""
    log_policy = answers(given.features, parameters)
    right = jnp.sum(jnp.exp(log_policy) * given.right, axis=-1)
    kl = divergences.kl(log_policy, given.log_base)
    by_task = lambda x: jnp.stack([jnp.mean(x[task]) for task in TASKS.values()])
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1)
    return {"right": by_task(right), "kl": by_task(kl), "entropy": jnp.mean(entropy[TASKS["A"]])}


def train(config: ConfigDict, point: dict, given: Problem) -> dict[str, Array]:
    """What was measured before each step `[step, training, ...]`, and RECAP's weights."""
    window = 2 * config.window

    def step(carry: tuple[Array, Array], number: Array):
        parameters, history = carry
        found = jax.vmap(lambda x: measured(given, x))(parameters)
        history = jnp.concatenate([history[..., 1:], 1 - found["right"][..., None]], axis=-1)
        weigh = jax.vmap(lambda x: recap_weights(x, temperature=point["temperature"]))
        weights = jnp.where(number < window, 1, weigh(history))
        slopes = jax.vmap(
            jax.grad(lambda x, terms, w: loss(config, given, x, terms, point["factor"], w))
        )(parameters, jax.tree.map(jnp.asarray, TERMS), weights)
        return (parameters - config.step_size * slopes, history), found | {"weights": weights}

    count = len(ROWS)
    parameters = jnp.broadcast_to(given.start, (count, *given.start.shape))
    history = jnp.ones((count, len(TASKS), window), given.start.dtype)
    return jax.lax.scan(step, (parameters, history), jnp.arange(config.steps))[1]


def by_prefix(given: Problem, factor: Array) -> dict[str, Array]:
    """How a step along IBRO's term changes the entropy of each token, for a table of its own.

    The largest error of `P(prefix) E[A | prefix] |grad H|^2`, relative to the largest change; and
    the share of prefixes whose change has the sign of their advantage.
    """
    logits = tables(given.features, given.start)[0]
    policy = jnp.exp(tabular.sequence_log_probs(logits))
    paid = given.right[0] - jnp.sum(policy * given.right[0])
    prefixes, mask = jnp.asarray(SEQUENCES.prefixes), jnp.asarray(SEQUENCES.mask)

    def entropies(logits: Array) -> Array:
        return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)

    def term(logits: Array) -> Array:
        each = information_bottleneck(entropies(logits)[prefixes], paid, mask)
        return factor * jnp.sum(policy * jnp.sum(each, axis=-1))

    slopes = jax.grad(lambda x: jnp.sum(entropies(x)))(logits)
    change = jnp.sum(slopes * -jax.grad(term)(logits), axis=-1)
    passed = jnp.where(mask, (policy * paid)[:, None], 0).ravel()
    credit = jax.ops.segment_sum(passed, prefixes.ravel(), SHAPE[0])
    error = jnp.max(jnp.abs(change - credit * jnp.sum(slopes**2, axis=-1)))
    same = jnp.mean(jnp.sign(change) == jnp.sign(credit), dtype=change.dtype)
    return {"ibro_error": error / jnp.max(jnp.abs(credit)), "ibro_sign": same}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The trainings on the way, and where they first have the reward on A."""
    given = problem(config, point, key)
    found = train(config, point, given)
    reached = jnp.argmax(found["right"][..., 0] >= config.reward, axis=0)
    at = lambda x: jax.vmap(lambda x, i: x[i], (1, 0))(x, reached)
    by = {"training": ROWS}
    same = {f"{name}_at": at(found[name]) for name in ("right", "kl")}
    thinned = {name: found[name][::THINNED] for name in ("right", "kl", "weights")}
    steps = range(0, config.steps, THINNED)
    return {
        **{name: labelled(x, **by, task=TASKS) for name, x in same.items()},
        **{name: labelled(x, step=steps, **by, task=TASKS) for name, x in thinned.items()},
        **by_prefix(given, point["factor"]),
        "entropy_at": labelled(at(found["entropy"]), **by),
        "reached": labelled(reached.astype(float), **by),
    }


# ----------------------------------------------------------------------------------------- figures

DRAWN = ("RFT", "RFT, KL", "SFT, own", "SFT, uniform", "SFT, foreign", "RFT, replay")


def only(results: xr.Dataset) -> xr.Dataset:
    """The trainings of the sweep's one factor, teacher and temperature, mean over seeds."""
    return results.isel(factor=0, foreign=0, temperature=0).mean("seed")


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """KL on the other tasks by the reward on the first, and what is right there."""
    figure, (left, right) = panels(2, width=4.8, height=4.4)
    at, others = only(results), ["B", "C"]
    for number, name in enumerate(DRAWN):
        way = at.sel(training=name)
        left.plot(
            way.right.sel(task="A"), way.kl.sel(task=others).mean("task"), label=name,
            **style(number),
        )  # fmt: skip
    left.axvline(config.reward, color="#707070", linewidth=0.8)
    left.set(xlabel="probability of a right answer on A", ylabel="KL(π‖base) on B and C, nats")
    left.set_yscale("symlog", linthresh=0.1)
    left.set_ylim(0, None)
    legend(left, fontsize="small")
    names = list(at.training.values)
    kept = at.right_at.sel(task=others).mean("task")
    right.barh(np.arange(len(names)), kept, color=style(0)["color"])
    before = float(at.right.isel(step=0).sel(task=others).mean(("task", "training")))
    right.axvline(before, color="black", linestyle="--", linewidth=1.2)
    right.set_yticks(np.arange(len(names)), names)
    right.invert_yaxis()
    right.set(xlim=(0.5, 1.0), xlabel=f"right on B and C where A is {config.reward:g}")
    return {
        "forgetting": Picture(
            figure,
            "Left: how far the policy has gone on the tasks that are not trained, by the reward on"
            " the one that is. Right: what is right there at the same reward (line on the left);"
            " dashed before training. Foreign answers move the policy most, its own least, a KL on"
            " the task in training holds little of the others, and replay holds them.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


def by_side(x: xr.DataArray) -> xr.DataArray:
    """Of the task in training, and the mean of the others."""
    others = x.sel(task=["B", "C"]).mean("task")
    return xr.concat([x.sel(task="A", drop=True), others], "side").assign_coords(
        side=["A", "others"]
    )


OWN = {"sweep.foreign": (0.0,), "sweep.seed": (0, 1, 2, 3)}
WITHOUT = {"sweep.factor": (0.0,), "sweep.seed": (0, 1, 2, 3)}
SHARP = {"sweep.temperature": (0.2,), "sweep.seed": (0, 1, 2, 3)}


@claim(source=RFT_SOURCE, reruns=(OWN,), wrong=({"supervised": "SFT, own"},))
def foreign_answers_move_the_policy_more(
    results: xr.Dataset, supervised: str = "SFT, foreign"
) -> Finding:
    """KL(pi‖base) by SFT on foreign answers over that by RFT, at the same reward on A, on A and on
    B and C: at least 1.5; then the same with a KL penalty in both."""
    kl = by_side(only(results).kl_at)
    plain = kl.sel(training=supervised) / kl.sel(training="RFT")
    held = kl.sel(training="SFT, foreign, KL") / kl.sel(training="RFT, KL")
    return at_least(1.5, np.concatenate([plain, held]))


@claim(source=RFT_SOURCE, wrong=({"supervised": "SFT, uniform"},))
def it_is_the_answers_more_than_the_loss(
    results: xr.Dataset, supervised: str = "SFT, own"
) -> Finding:
    """KL(pi‖base) by SFT on the model's own right answers over that by RFT, on the task in training
    and on B and C: within .7 and 1.4, neither forgets more; by SFT on all right answers alike on B
    and C at least 1.5."""
    kl = by_side(only(results).kl_at)
    ratio = kl / kl.sel(training="RFT")
    found = [
        *ratio.sel(training=supervised).values,
        ratio.sel(training="SFT, uniform", side="others"),
    ]
    return between((0.7, 0.7, 1.5), found, (1.4, 1.4, np.inf))


@claim(
    source=f"RECAP (arXiv:2510.21978): a KL on the current task does not hold others; {SOURCE}",
    reruns=(WITHOUT,),
    wrong=({"held": "RFT, KL"},),
)
def a_kl_on_one_task_leaves_the_others_free(
    results: xr.Dataset, held: str = "RFT, replay"
) -> Finding:
    """The probability of a right answer on B and C at the same reward on A: with replay at least
    .04 more than without, with a KL on A at most .02 more. The KL on B and C that replay ends with,
    over that without it: within .7 and 1.3, it holds what is right and not the policy."""
    right, kl = (by_side(only(results)[name]).sel(side="others") for name in ("right_at", "kl_at"))
    more = right - right.sel(training="RFT")
    farther = kl.sel(training=held) / kl.sel(training="RFT")
    found = more.sel(training=held), more.sel(training="RFT, KL"), farther
    return between((0.04, -1, 0.7), found, (1, 0.02, 1.3))


@claim(
    source=f"RECAP (arXiv:2510.21978), temperature 5; its gains are of language models; {SOURCE}",
    reruns=(SHARP,),
)
def recaps_weights_are_almost_equal(results: xr.Dataset) -> Finding:
    """The smallest and the largest weight of a task over training, within .8 and 1.25; and what it
    brings on B and C beyond replay with equal weights, at most .005 in probability of a right
    answer: what holds the tasks here is the replay."""
    weights = results.isel(factor=0, foreign=0, temperature=0).weights.sel(training="RFT, RECAP")
    right = only(results).right_at.sel(task=["B", "C"])
    brought = abs(right.sel(training="RFT, RECAP") - right.sel(training="RFT, replay")).max()
    return between((0.8, 1.0, 0.0), (weights.min(), weights.max(), brought), (1.0, 1.25, 0.005))


@claim(
    source="IBRO (arXiv:2507.18391), sum of A H; about 2 points avg@32 of a language model;"
    f" {SOURCE}",
    reruns=(WITHOUT,),
)
def entropy_moves_by_advantage(results: xr.Dataset) -> Finding:
    """A step along IBRO's term, by enumeration: the largest error of the change of a token's
    entropy, `P(prefix) E[A | prefix] |grad H|^2`, and the share of prefixes at which it has the
    sign of the advantage."""
    at = results.isel(factor=0, foreign=0, temperature=0)
    return between((0, 1), (at.ibro_error.max(), at.ibro_sign.min()), (1e-12, 1))


@claim(
    source=f"IBRO (arXiv:2507.18391), whose entropy others note to be stable; {SOURCE}",
    wrong=({"term": "RFT, entropy"},),
)
def ibro_is_no_entropy_bonus(results: xr.Dataset, term: str = "RFT, IBRO") -> Finding:
    """Entropy of answers on A with IBRO's term over that without, at the same reward: between .9
    and 1.1, as advantages average to nothing; an entropy bonus of the same weight has more."""
    entropy = only(results).entropy_at
    return between(0.9, entropy.sel(training=term) / entropy.sel(training="RFT"), 1.1)
