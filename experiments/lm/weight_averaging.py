"""Averages of the weights of trained transformers: WARP and SALSA, with exact rewards and KLs.

Transformers that are small enough to enumerate are pretrained on a grammar, fine-tuned on
demonstrations and trained by REINFORCE, with a KL penalty, for a reward that a judge sees through
noise. Every policy, along training and on the lines between weights, is then measured over all of
its answers, beside the front of what is possible at all.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import above, count, fraction, non_negative, positive, seeds
from experiments.lab.claims import Finding, at_least, claim
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences
from jdiv.alignment import averaging
from jdiv.policy.advantages import mean_of_others

if TYPE_CHECKING:
    from jdiv import lm
    from jdiv.lm import train

AXES = {"apart": fraction, "follow": fraction, "seed": seeds}
FIELDS = {
    "width": count,
    "layers": count,
    "hidden": count,
    "longest": above(1),
    "general": fraction,
    "special": fraction,
    "demonstrations": count,
    "pretraining": count,
    "tuning": count,
    "steps": count,
    "moments": count,
    "batch": above(1),
    "rate": non_negative,
    "rl_rate": non_negative,
    "beta": positive,
    "noise": non_negative,
}
END, LETTER = 6, 5
"""The end, which is the prompt as well, and the letter b, of which an answer should have many."""
RUNS = 4
ANCHORS = (*["moves"] * RUNS, "rests", "average")
"""Runs whose anchor follows the policy, is the start, and is the average of two tuned models."""
KINDS = {"single": 4, "mixture": 4, "lerp 2": 2, "slerp 2": 2, "slerp 4": 1}
"""How many lines there are of each kind."""
BETAS = tuple(float(x) for x in np.geomspace(0.2, 20, 41))

Tensors = dict[str, Array]


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses lines that do not begin at the start, and steps that are not divided by moments."""
    if config.shares[0] != 0 or config.shares[-1] != 1:
        raise ValueError(f"config.shares must go from 0 to 1, got {config.shares}")
    if config.steps % config.moments:
        raise ValueError(
            f"config.moments must divide config.steps = {config.steps}, got {config.moments}"
        )


def shape(config: ConfigDict) -> lm.Config:
    """The transformer's: tokens are those of `lm.data.brackets`."""
    from jdiv import lm

    return lm.Config(vocabulary=END + 1, width=config.width, layers=config.layers, heads=2,
                     key_heads=2, head_width=config.width // 2, hidden=config.hidden)  # fmt: skip


def rewards(tokens: Array, mask: Array) -> Array:
    """How many letters b there are in each answer."""
    return jnp.sum((tokens == LETTER) & mask, axis=-1).astype(jnp.float32)


# --------------------------------------------------------------------------------------- training


def after_prompt(tokens: Array, mask: Array) -> train.Text:
    """Answers, behind the prompt, as text to train on."""
    from jdiv.lm import train

    pad = lambda x, fill: jnp.pad(x, ((0, 0), (1, 0)), constant_values=fill)
    return train.Text(pad(tokens, END), pad(mask, False))


def demonstrations(config: ConfigDict, share: float, key: Array) -> train.Text:
    """Sequences of the grammar with this share of brackets."""
    from jdiv.lm import data

    drawn = data.sample(
        data.brackets(share), key, count=config.demonstrations, max_tokens=config.longest
    )
    return after_prompt(drawn.tokens, drawn.mask)


def supervised(config: ConfigDict, apart: Array, key: Array) -> Tensors:
    """Two models `[2, ...]`: pretrained as one, then tuned on demonstrations of their own."""
    import optax

    from jdiv.lm import train
    from jdiv.lm.model import Transformer

    first, draw, general = jax.random.split(key, 3)
    optimizer = optax.adam(config.rate)
    state = train.begin(Transformer.random(shape(config), first), optimizer)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    own = [demonstrations(config, config.special, jax.random.fold_in(draw, i * apart))
           for i in range(2)]  # fmt: skip
    own = jax.tree.map(lambda *x: jnp.stack(x), *own)
    update = functools.partial(
        train.update, loss=train.sft, config=shape(config), optimizer=optimizer
    )

    def step(two, number):
        shared = demonstrations(config, config.general, jax.random.fold_in(general, number))
        early = number < config.pretraining
        batch = jax.tree.map(lambda one, each: jnp.where(early, one[None], each), shared, own)
        return jax.vmap(update)(two, batch)[0], None

    numbers = jnp.arange(config.pretraining + config.tuning)
    return jax.lax.scan(step, two, numbers)[0].tensors


def reinforced(config: ConfigDict, point: dict, two: Tensors, key: Array) -> Tensors:
    """Weights of all runs, `[moments, runs, ...]`; all begin with the first of the two models."""
    import optax

    from jdiv import lm
    from jdiv.lm import train

    optimizer = optax.adam(config.rl_rate)
    state = train.begin(lm.Transformer(shape(config), first_of(two)), optimizer)
    states = jax.tree.map(lambda x: jnp.stack([x] * len(ANCHORS)), state)
    average = averaging.average(two)
    anchors = jax.tree.map(lambda x, y: x.at[-1].set(y), states.tensors, average)
    follow = point["follow"] * np.array([x == "moves" for x in ANCHORS], np.float32)
    streams = point["apart"] * np.arange(len(ANCHORS))

    def one(state, anchor, follow, key):
        state = reinforce(config, state, anchor, optimizer, key)
        return state, averaging.interpolate(anchor, state.tensors, follow)

    def step(carry, number):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, number), streams)
        return jax.vmap(one)(*carry, follow, keys), None

    def moment(carry, numbers):
        carry, _ = jax.lax.scan(step, carry, numbers)
        return carry, carry[0].tensors

    numbers = jnp.arange(config.steps).reshape(config.moments, -1)
    return jax.lax.scan(moment, (states, anchors), numbers)[1]


def reinforce(config: ConfigDict, state, anchor: Tensors, optimizer, key: Array) -> train.State:
    """One step of REINFORCE on the model's own answers, with a KL penalty towards the anchor."""
    from jdiv import lm
    from jdiv.lm import train

    of_answers, of_judge = jax.random.split(key)
    prompts = jnp.full((config.batch, 1), END, jnp.int32)
    model, other = (lm.Transformer(shape(config), x) for x in (state.tensors, anchor))
    # Without a token to stop at, which would make every step copy the caches of all lanes.
    said = lm.generate(model, prompts, of_answers, max_tokens=config.longest)
    is_end = (said.tokens == END).astype(jnp.int32)
    answered = jnp.cumsum(is_end, axis=1) - is_end == 0
    text = after_prompt(said.tokens, answered)
    reward = rewards(said.tokens, answered)
    seen = reward + config.noise * jax.random.normal(of_judge, reward.shape)
    batch = train.Rollouts(
        text, said.log_probs, train.log_probs(other, text, remember=False),
        seen - mean_of_others(seen),
    )  # fmt: skip
    loss = functools.partial(train.kl_rl, coefficient=config.beta)
    return train.update(state, batch, loss, config=shape(config), optimizer=optimizer)[0]


# -------------------------------------------------------------------------------------- measuring


def first_of(models: Tensors) -> Tensors:
    """The first of stacked models."""
    return jax.tree.map(lambda x: x[0], models)


def ends_of_lines(config: ConfigDict, start: Tensors, models: Tensors) -> Tensors:
    """`[lines, ...]`: four models, then two pairs by line and by arc, then all four by arc.

    An arc is that of each layer's task vectors, all weights of a layer as one vector.
    """
    from jdiv.lm import weights

    apart = functools.partial(weights.layer_vectors, shape(config))
    pairs = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), models)

    def arc(stacked):
        found = averaging.merge(apart(start), jax.vmap(apart)(stacked))
        return weights.from_layer_vectors(shape(config), found)

    four = jax.tree.map(lambda x: x[None], arc(models))
    ends = models, jax.vmap(averaging.average)(pairs), jax.vmap(arc)(pairs), four
    return jax.tree.map(lambda *x: jnp.concatenate(x), *ends)


class Measured(NamedTuple):
    """Exact numbers of a policy."""

    reward: Array
    kl: Array
    from_language: Array


def laws(config: ConfigDict, models: Tensors) -> Array:
    """Log-probabilities `[models, answers]` of all answers."""
    from jdiv import lm
    from jdiv.lm import enumeration, tabular

    def law(tensors):
        model = lm.Transformer(shape(config), tensors)
        table = enumeration.table(model, jnp.array([END]), longest=config.longest, end=END)
        return tabular.sequence_log_probs(table)

    return jax.lax.map(law, models)


def language(config: ConfigDict) -> tuple[Array, Array]:
    """Of all answers the reward, and the log-probability by the grammar of the demonstrations."""
    from jdiv.lm import data, tabular

    every = tabular.enumerate_sequences(tabular.table_shape(config.longest, END + 1))
    by_token = data.log_probs(data.brackets(config.special), np.maximum(every.tokens, 0))
    log_p = jnp.sum(jnp.where(every.mask, by_token, 0), axis=-1)
    return rewards(every.tokens, every.mask), log_p


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Rewards and KLs along training, on the lines from the start, and of what is optimal."""
    of_tuning, of_training = jax.random.split(key)
    two = supervised(config, point["apart"], of_tuning)
    start = first_of(two)
    trained = reinforced(config, point, two, of_training)
    last = jax.tree.map(lambda x: x[-1, :RUNS], trained)
    ends = ends_of_lines(config, start, last)
    whole = jax.tree.map(lambda x, y: jnp.broadcast_to(x[None], y.shape), start, ends)
    lines = jax.vmap(averaging.interpolate, (None, None, 0))(whole, ends, jnp.array(config.shares))
    flat = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    parts = two, jax.tree.map(lambda x: x[None], averaging.average(two)), flat(trained), flat(lines)
    found = laws(config, jax.tree.map(lambda *x: jnp.concatenate(x), *parts))

    worth, log_language = language(config)
    on_lines = found[-len(config.shares) * len(jax.tree.leaves(ends)[0]) :]
    on_lines = on_lines.reshape(len(config.shares), -1, worth.size)
    part = jnp.array(config.shares)[:, None, None]
    mixed = jnp.logaddexp(
        jnp.log1p(-part) + on_lines[:1, :RUNS], jnp.log(part) + on_lines[-1:, :RUNS]
    )
    on_lines = jnp.concatenate([on_lines[:, :RUNS], mixed, on_lines[:, RUNS:]], axis=1)

    def measure(log_p: Array) -> Measured:
        kl = divergences.kl(log_p, found[0]), divergences.kl(log_language, log_p)
        return Measured(jnp.exp(log_p) @ worth, *kl)

    along = found[3 : 3 + config.moments * len(ANCHORS)].reshape(config.moments, -1, worth.size)
    each = lambda log_p: jax.vmap(jax.vmap(measure))(log_p)
    tuned, of_runs, of_lines = jax.vmap(measure)(found[:3]), each(along), each(on_lines)
    best = found[0][None] + worth[None] / jnp.array(BETAS)[:, None]
    optimal = jax.vmap(measure)(jax.nn.log_softmax(best, axis=-1))
    every = config.steps // config.moments
    kinds = np.repeat(list(KINDS), list(KINDS.values()))
    of_kind = lambda x: jnp.stack([x[:, kinds == kind].mean(1) for kind in KINDS], axis=1)
    steps = range(every, config.steps + 1, every)
    at_levels = levels(config, of_lines.kl, of_lines.reward)
    return {
        "tuned_from_language": labelled(tuned.from_language, tuned=("first", "second", "average")),
        "start_reward": tuned.reward[0],
        **{f"run_{name}": labelled(x, training=steps, run=range(len(ANCHORS)))
           for name, x in of_runs._asdict().items()},
        **{f"line_{name}": labelled(of_kind(x), share=config.shares, kind=tuple(KINDS))
           for name, x in of_lines._asdict().items()},
        "front": labelled(of_kind(at_levels), level=config.levels, kind=tuple(KINDS)),
        "front_of_training": labelled(
            levels(config, *(jnp.concatenate([x[:1] * 0 + y, x]) for x, y in (
                (of_runs.kl, 0), (of_runs.reward, tuned.reward[0]))))[:, :RUNS].mean(1),
            level=config.levels,
        ),
        "front_of_optimum": labelled(
            levels(config, optimal.kl[::-1, None], optimal.reward[::-1, None])[:, 0],
            level=config.levels,
        ),
        "optimal_reward": labelled(optimal.reward, optimal_beta=BETAS),
        "optimal_kl": labelled(optimal.kl, optimal_beta=BETAS),
        "angle": labelled(angles(config, start, last), part=(*range(config.layers), -1)),
    }  # fmt: skip


def levels(config: ConfigDict, kl: Array, reward: Array) -> Array:
    """Rewards `[levels, n]` at these KLs of policies `[along, n]`.

    Interpolated by the root of KL, in which rewards are close to linear near the start.
    """
    at = jnp.sqrt(jnp.array(config.levels))
    read = lambda kl, reward: jnp.interp(at, jnp.sqrt(jnp.maximum(kl, 0)), reward)
    return jax.vmap(read, (1, 1), 1)(kl, reward)


def angles(config: ConfigDict, start: Tensors, models: Tensors) -> Array:
    """Degrees between the task vectors of the first two models: of each layer, and of the rest."""
    from jdiv.lm import weights

    tasks = jax.tree.map(lambda x, y: x - y[None], models, start)
    vectors = jax.vmap(functools.partial(weights.layer_vectors, shape(config)))(tasks)
    return jnp.rad2deg(jnp.stack([averaging.angle(x[0], x[1]) for x in vectors]))


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The fronts of one seed, what is gained at equal KL, and where anchors lead."""
    only = results.isel(apart=0, follow=0)
    figure, plots = panels(3, width=4.0, height=4.4)
    _fronts(plots[0], only.isel(seed=0))
    _gains(plots[1], only)
    _anchors(plots[2], only)
    legend_above(figure, plots[0], columns=3)
    return {
        "fronts": Picture(
            figure,
            f"Exact numbers of policies with {config.longest} tokens; {len(only.seed)} starts, the"
            " left panel shows one. Left: reward against KL; each line goes from the start to"
            " weights at its right end. Middle: reward above that of lines to single policies, at"
            " equal KL, mean and standard error: merged policies are better, the policy in training"
            " is worse (mixtures of answers are below what is drawn). Right: a resting anchor holds"
            " the policy back, an anchor that follows does not.",
        )
    }


LOOKS = {"single": 0, "slerp 2": 1, "slerp 4": 2, "mixture": 3}
LABELS = {
    "single": "line to one policy",
    "slerp 2": "line to two merged",
    "slerp 4": "line to four merged",
    "mixture": "mixture of answers with one policy's",
}


def _fronts(axis, one: xr.Dataset) -> None:
    axis.plot(one.optimal_kl, one.optimal_reward, color="black", lw=1, label="optimum")
    for kind, number in LOOKS.items():
        here = one.sel(kind=kind)
        axis.plot(here.line_kl, here.line_reward, label=LABELS[kind], **style(number))
    runs = one.isel(run=slice(0, RUNS))
    axis.plot(runs.run_kl.mean("run"), runs.run_reward.mean("run"), "o", color=style(5)["color"],
              markersize=4, label="along training")  # fmt: skip
    top = float(one.line_kl.max())
    axis.set(xlim=(0, top), ylim=(float(one.start_reward) - 0.1, None))
    axis.set(xlabel="KL(policy‖start) (nats per answer)", ylabel="reward (letters b per answer)")


def _gains(axis, only: xr.Dataset) -> None:
    base = only.front.sel(kind="single")
    merged = {kind: number for kind, number in LOOKS.items() if kind != "mixture"}
    lines = {kind: (only.front.sel(kind=kind), number) for kind, number in merged.items()}
    lines["training"] = (only.front_of_training, 5)
    for kind, (values, number) in lines.items():
        gain = values - base
        error = gain.std("seed", ddof=1) / gain.sizes["seed"] ** 0.5
        look = style(number) | ({"linestyle": "none", "marker": "o", "markersize": 4}
                                if kind == "training" else {})  # fmt: skip
        axis.errorbar(only.level, gain.mean("seed"), error, capsize=2, **look)
    axis.set(xlabel="KL(policy‖start) (nats per answer)",
             ylabel="reward above lines to one policy")  # fmt: skip


def _anchors(axis, only: xr.Dataset) -> None:
    names = {0: "anchor follows the policy", RUNS: "anchor rests", RUNS + 1: "anchor is an average"}
    for number, (run, name) in enumerate(names.items()):
        here = only.run_reward.sel(run=slice(0, RUNS - 1) if run == 0 else [run]).mean("run")
        error = here.std("seed", ddof=1) / here.sizes["seed"] ** 0.5
        look = style((0, 4, 6)[number])
        axis.errorbar(only.training, here.mean("seed"), error, capsize=2, label=name, **look)
    axis.set(xlabel="steps of training", ylabel="reward (letters b per answer)")
    axis.legend(fontsize="small", loc="upper left")


# ------------------------------------------------------------------------------------------ claims

WARP = "Rame et al. 2024, WARP (arXiv:2406.16768)"
SALSA = "SALSA (arXiv:2411.01798), abstract"
TOY = "; reported for large models, the shape is the claim, the bound is chosen here"
COPIES_AT_REST = {"sweep.apart": (0,), "sweep.follow": (0.0,)}
"""All models are trained on the same draws, and so are copies of one; and no anchor moves. Both at
once: claims about merging read the first alone, that about anchors the second."""


@claim(source=f"{WARP}, figure 1 and section 3.2{TOY}", reruns=(COPIES_AT_REST,))
def merged_policies_are_better_at_equal_kl(results: xr.Dataset) -> Finding:
    """The line from the start to four policies, merged by arcs of each layer, has more reward than
    the lines to each of them, at every level of KL: the smallest mean gain over starts."""
    gain = results.front.sel(kind="slerp 4") - results.front.sel(kind="single")
    return at_least(5e-4, gain.mean("seed").min())


@claim(source=f"{WARP}, section 3.3{TOY}", wrong=({"kind": "mixture"},))
def the_line_to_a_policy_is_above_its_training(
    results: xr.Dataset, kind: str = "single"
) -> Finding:
    """Weights between the start and a trained policy have more reward than the policy had in
    training at the same KL: the mean gain over starts and levels; at one level it may be a loss
    with so few starts. Mixtures of the answers of both have less."""
    gain = results.front.sel(kind=kind) - results.front_of_training
    return at_least(0.0, gain.mean(("seed", "level")).min())


@claim(source=f"{WARP}, section 3.1{TOY}", reruns=(COPIES_AT_REST,))
def an_anchor_that_follows_frees_the_policy(results: xr.Dataset) -> Finding:
    """With the same coefficient of KL, the reward at the end of training is higher with an anchor
    that is the moving average of the policy than with the start as anchor, mean over starts."""
    last = results.run_reward.isel(training=-1).mean("seed")
    return at_least(0.3, (last.isel(run=slice(0, RUNS)).mean("run") - last.sel(run=RUNS)).min())


@claim(source=f"{SALSA}{TOY}", reruns=(COPIES_AT_REST,))
def an_average_of_tuned_models_is_nearer_to_the_language(results: xr.Dataset) -> Finding:
    """KL(language‖model) of the average of two models, tuned on demonstrations of their own, is
    less than the mean of theirs: the difference over that mean, of means over starts."""
    kl = results.tuned_from_language.mean("seed")
    two = kl.sel(tuned=["first", "second"]).mean("tuned")
    return at_least(0.1, ((two - kl.sel(tuned="average")) / two).min())
