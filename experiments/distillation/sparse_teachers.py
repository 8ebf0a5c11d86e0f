"""Teachers of which k tokens are known: what each way of comparing them does to a student.

With a tail, the other tokens as one, it is a divergence and a lower bound of the whole one.
Renormalized it is blind to what a student has elsewhere. Truncated it is no divergence: forward KL
falls below 0 as a student gathers on the k tokens, and reverse KL is least where it has left them
with all but 1/e of the teacher's mass. All k are one program: what is more than k is filled up with
tokens that neither side has.

Beside it KL-Top (OSTQuant): scales and biases of a quantized softmax layer are fitted on few
contexts by the whole forward KL, by that of the teacher's top tokens, without and with the rest,
and by cross-entropy to the teacher's first token.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, at_most, between, claim, equals
from experiments.lab.plots import Picture, curve, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import generators
from jdiv.distillation import metrics, sparse, token
from jdiv.divergences.sparse import TopK, top_k, truncated
from jdiv.generators import TABLE

SIZE = 64
WAYS = {
    "with tail": sparse.with_tail,
    "renormalized": sparse.renormalized,
    "truncated": sparse.truncated,
}
DIRECTIONS = {"forward KL": "reverse_kl", "reverse KL": "kl"}
TRAINED = (*(f"{name}, {way}" for name in DIRECTIONS for way in WAYS), "reverse KL, own tokens")
FITTED = "KL", "KL-Top", "KL-Top with tail", "cross-entropy"
AXES = {"seed": axes.seeds, "rest": axes.fraction}
FIELDS = {
    "generators": axes.each(axes.one_of(TABLE)),
    "known": axes.each(axes.between(1, SIZE - 1)),
    "kept": axes.between(1, SIZE - 1),
    "cases": axes.count,
    "bits": axes.at_least(2),
    "contexts": axes.each(axes.count),
    "steps": axes.count,
    "fitting_steps": axes.count,
    "width": axes.count,
    "spread": axes.positive,
    "distance": axes.non_negative,
    "step_size": axes.positive,
}
LESS_REST = {"sweep.rest": (0.25,), "sweep.seed": (0,), "generators": ("kl",), "steps": 100}
"""A teacher's mass on the tokens that are not known is taken for a quarter of it."""


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Values and gradients by way, row and k; training by six losses; the quantized layer."""
    of_teacher, of_student, of_layer = jax.random.split(key, 3)
    shape = (config.cases, SIZE)
    teacher = config.spread * jax.random.normal(of_teacher, shape)
    student = teacher + config.distance * jax.random.normal(of_student, shape)
    return {
        **by_known(config, student, teacher, point["rest"]),
        **trained(config, student, teacher, point["rest"]),
        "held_out": labelled(
            quantized(config, of_layer), contexts=config.contexts, fitted_by=FITTED
        ),
    }


# ------------------------------------------------------------------------------ bias and gradient


def known_of(teacher: Array, k: Array, rest: Array, most: int) -> TopK:
    """A teacher's k most probable tokens, filled up to `most` by tokens that no one has."""
    top = top_k(teacher, most)
    place = jax.lax.broadcasted_iota(top.indices.dtype, (1, most), 1)
    here = place < k.astype(place.dtype)
    beyond = jnp.where(here, -jnp.inf, top.log_probs)
    beyond = jnp.concatenate([beyond, top.log_rest[..., None]], axis=-1)
    return TopK(
        jnp.where(here, top.log_probs, -jnp.inf),
        jnp.where(here, top.indices, teacher.shape[-1] + place),
        jax.nn.logsumexp(beyond, axis=-1) + jnp.log(rest),
    )


def by_known(config: ConfigDict, student: Array, teacher: Array, rest: Array) -> dict:
    """Each way's values, the whole divergence's, and the gradient's error, by row and k."""
    most = max(config.known)
    ks = jnp.array(config.known)
    teachers = jax.vmap(lambda k: known_of(teacher, k, rest, most))(ks)
    filled = jnp.pad(student, ((0, 0), (0, most)), constant_values=-jnp.inf)
    students = jnp.broadcast_to(filled, (len(config.known), *filled.shape))
    wholes, values, slopes, exact = [], [], [], []
    for name in config.generators:
        row = generators.get(name)
        divergence = functools.partial(token.divergence, teacher_logits=teacher, generator=row)
        whole, pull = jax.vjp(divergence, student)
        wholes.append(whole)
        exact.append(pull(jnp.ones_like(whole))[0])
        for way in WAYS.values():
            loss = functools.partial(way, teacher=teachers, generator=row)
            value, pull = jax.vjp(loss, students)
            values.append(value)
            slopes.append(pull(jnp.ones_like(value))[0][..., :SIZE])
    grid = (len(config.generators), len(WAYS), *students.shape[:2])
    value, slope = jnp.stack(values).reshape(grid), jnp.stack(slopes).reshape(*grid, SIZE)
    exact = jnp.stack(exact)[:, None, None]
    norm = lambda x: jnp.sqrt(jnp.sum(x * x, axis=-1))
    names = {"generator": config.generators, "way": WAYS, "known": config.known}
    error = jnp.mean(norm(slope - exact), axis=-1) / jnp.mean(norm(exact), axis=-1)
    return {
        "value": labelled(value, **names, case=range(config.cases)),
        "whole": labelled(jnp.stack(wholes), generator=config.generators, case=range(config.cases)),
        "error": labelled(error, **names),
    }


# --------------------------------------------------------------------------------------- training


def losses_of(config: ConfigDict, student: Array, teacher: Array, known: TopK) -> Array:
    """`[loss, case]` of students `[loss, case, n]`, each by its own loss."""
    found = []
    for name in DIRECTIONS.values():
        row = generators.get(name)
        for way in WAYS.values():
            found.append(way(student[len(found)], known, generator=row))
    own = top_k(student[len(found)], config.kept)
    found.append(truncated(generators.kl(), own, teacher))
    return jnp.stack(found)


def trained(config: ConfigDict, student: Array, teacher: Array, rest: Array) -> dict[str, Labelled]:
    """Losses, the mass on the teacher's k tokens and on the student's own, step by step."""
    known = known_of(teacher, jnp.array(config.kept), rest, config.kept)
    loss = lambda s: losses_of(config, s, teacher, known)

    every = max(config.steps // 100, 1)

    def step(s, _):
        value, pull = jax.vjp(loss, s)
        return s - config.step_size * pull(jnp.ones_like(value))[0], value

    def stretch(s, _):
        probs = jax.nn.softmax(s)
        mass = metrics.retained_mass(s, jnp.broadcast_to(teacher, s.shape), config.kept)
        own = jnp.sum(jax.lax.top_k(probs, config.kept)[0], axis=-1)
        s, value = jax.lax.scan(step, s, length=every)
        return s, (value[0], jnp.mean(value < 0, axis=0), mass, own)

    moments = range(0, config.steps, every)
    start = jnp.broadcast_to(student, (len(TRAINED), *student.shape))
    _, (value, negative, mass, own) = jax.lax.scan(stretch, start, length=len(moments))
    log_mass = jax.nn.log_softmax(teacher)
    there = jnp.sum(jnp.exp(jnp.take_along_axis(log_mass, known.indices, axis=-1)), axis=-1)
    case = {"case": range(config.cases)}
    return {
        "negative": labelled(jnp.mean(negative, axis=(0, 2)), loss=TRAINED),
        "mass": labelled(mass, step=moments, loss=TRAINED, **case),
        "own_mass": labelled(own, step=moments, loss=TRAINED, **case),
        "loss_value": labelled(value, step=moments, loss=TRAINED, **case),
        "teacher_mass": labelled(there, **case),
    }


# -------------------------------------------------------------------------------- a quantized layer


def quantized(config: ConfigDict, key: Array) -> Array:
    """Held-out KL(T‖S) `[contexts, loss]` of a layer of so many bits, its scales fitted by each."""
    of_weights, of_contexts, of_others = jax.random.split(key, 3)
    weights = jax.random.normal(of_weights, (SIZE, config.width)) * 4 / config.width**0.5
    largest = jnp.max(jnp.abs(weights), axis=-1, keepdims=True)
    levels = 2 ** (config.bits - 1) - 1
    codes = jnp.round(weights / largest * levels) / levels * largest
    contexts = jax.random.normal(of_contexts, (max(config.contexts), config.width))
    others = jax.random.normal(of_others, (256, config.width))
    mean = lambda x, counts: jnp.sum(jnp.where(counts, x, 0)) / jnp.sum(counts, dtype=x.dtype)

    def held_out(count: Array) -> Array:
        counts = jnp.arange(contexts.shape[0]) < count
        teacher = contexts @ weights.T
        logits = lambda fit, x: (x @ codes.T) * jnp.exp(fit[0])[None] + fit[1][None]

        def total(fits):
            students = [logits(fit, contexts) for fit in fits]
            first = jnp.argmax(teacher, axis=-1)[:, None]
            chosen = jnp.take_along_axis(jax.nn.log_softmax(students[3]), first, axis=-1)[:, 0]
            return (
                mean(token.latent_sft(students[0], teacher), counts)
                + mean(sparse.kl_top(students[1], teacher, k=config.kept), counts)
                + mean(sparse.kl_top(students[2], teacher, k=config.kept, tail=True), counts)
                - mean(chosen, counts)
            )

        step = lambda fits, _: (fits - 0.5 * jax.grad(total)(fits), None)
        fits, _ = jax.lax.scan(step, jnp.zeros((len(FITTED), 2, SIZE)), length=config.fitting_steps)
        after = jax.vmap(lambda fit: logits(fit, others))(fits)
        teachers = jnp.broadcast_to(others @ weights.T, after.shape)
        return jnp.mean(token.latent_sft(after, teachers), axis=-1)

    return jax.vmap(held_out)(jnp.array(config.contexts))


# --------------------------------------------------------------------------------------- figures

NAMED = {"kl": "reverse KL", "reverse_kl": "forward KL", "jensen_shannon": "JS"}


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Bias and gradient by k, and what training by each way does."""
    return {"by_known": by_known_figure(results), "training": training_figure(config, results)}


def by_known_figure(results: xr.Dataset) -> Picture:
    """Value over the whole divergence, and the gradient's error."""
    figure, plots = panels(2, width=4.8, height=4.4)
    here = results.isel(rest=0)
    ratio = (here.value / here.whole).mean(("seed", "case"))
    error = here.error.mean("seed")
    number = 0
    for name in (x for x in ("reverse_kl", "kl") if x in here.generator.values):
        for way in WAYS:
            look = style(number, marker=True)
            label = f"{NAMED[name]}, {way}"
            curve(plots[0], "known", ratio.sel(generator=name, way=way), label=label, **look)
            curve(plots[1], "known", error.sel(generator=name, way=way), **look)
            number += 1
    plots[0].axhline(1, color="black", linewidth=0.7)
    plots[0].axhline(0, color="black", linewidth=0.7)
    plots[0].set(xlabel=f"k, of {SIZE} tokens", ylabel="value / whole divergence", xscale="log")
    plots[1].set(xlabel=f"k, of {SIZE} tokens", ylabel="error of the gradient, relative")
    plots[1].set(xscale="log", ylim=(0, None))
    for axis in plots:
        axis.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
        axis.set_xticks([], minor=True)
    legend_above(figure, plots[0], columns=3)
    return Picture(
        figure,
        "Values over the whole divergence and relative errors of the gradient, means over random"
        " pairs. With a tail values come from below, are never negative, and have the best gradient"
        " of each direction; truncated reverse KL's is off by more than its length at k = 1, 2.",
    )


def training_figure(config: ConfigDict, results: xr.Dataset) -> Picture:
    """Loss and mass by step."""
    figure, plots = panels(2, width=4.8, height=4.6)
    here = results.isel(rest=0).mean(("seed", "case"))
    for number, loss in enumerate(TRAINED):
        look = style(number)
        curve(plots[0], "step", here.loss_value.sel(loss=loss), label=loss, **look)
        own = loss.endswith("own tokens")
        curve(plots[1], "step", (here.own_mass if own else here.mass).sel(loss=loss), **look)
    for level, text in ((1.0, "the teacher's"), (np.exp(-1.0), "1/e of it")):
        at = float(here.teacher_mass) * level
        plots[1].axhline(at, color="black", linewidth=0.7, linestyle=":")
        plots[1].text(config.steps * 0.98, at, text, fontsize="x-small", ha="right", va="bottom")
    plots[0].axhline(0, color="black", linewidth=0.7)
    for axis in plots:
        axis.set_xscale("symlog", linthresh=10)
        axis.set(xlabel="gradient step", xlim=(0, config.steps))
    plots[0].set(ylabel="loss, nats", ylim=(-0.45, 0.4))
    plots[1].set(ylabel=f"student's mass on {config.kept} tokens", ylim=(0, 1.03))
    legend_above(figure, plots[0], columns=3)
    return Picture(
        figure,
        f"Training by each loss with the teacher's {config.kept} tokens known; 'own tokens' are the"
        " student's most probable ones at each step, of which the mass is then shown. Truncated"
        " losses go below 0: forward KL's student gathers on the k tokens, reverse KL's leaves.",
    )


# ------------------------------------------------------------------------------------------ claims

PROCESSING = "the data processing inequality of f-divergences (Csiszar 1967)"
CALCULUS = "least values by calculus: M log M of forward KL, -M/e of reverse KL at the mass M/e"


@claim(source=PROCESSING, reruns=(LESS_REST,), wrong=({"way": "truncated"},))
def with_a_tail_it_is_a_bound(results: xr.Dataset, way: str = "with tail") -> Finding:
    """For every row and k the value is never negative and never above the whole divergence: the
    smallest value, and the largest excess over it, relative."""
    value = results.value.sel(way=way)
    return between((0, -np.inf), (value.min(), (value / results.whole - 1).max()), (np.inf, 1e-12))


@claim(source=PROCESSING, reruns=(LESS_REST,), wrong=({"way": "renormalized"},))
def more_tokens_tell_more(results: xr.Dataset, way: str = "with tail") -> Finding:
    """With a tail the value never falls as k grows, for every row and pair; with all but one token
    known it is the whole: smallest relative rise, largest relative distance at the last k."""
    share = results.value.sel(way=way) / results.whole
    last = np.abs(share.isel(known=-1) - 1).max()
    return between((-1e-12, 0), (share.diff("known").min(), last), (np.inf, 1e-12))


@claim(source="a finding of this run", reruns=(LESS_REST,), wrong=({"best": "truncated"},))
def a_tail_has_the_best_gradient(results: xr.Dataset, best: str = "with tail") -> Finding:
    """The error of the gradient over the smaller one of the other two ways, mean over k for every
    row: the largest."""
    error = results.error.mean("seed")
    others = error.sel(way=[way for way in WAYS if way != best]).min("way")
    return at_most(1, (error.sel(way=best) / others).mean("known").max())


@claim(source="of the formula", wrong=({"loss": "forward KL, with tail"},))
def renormalized_is_blind(results: xr.Dataset, loss: str = "forward KL, renormalized") -> Finding:
    """At the end of training renormalized the largest loss, in nats, is 0 and the mass on the k
    tokens is still off: the largest difference from the teacher's."""
    last = results.isel(step=-1).sel(loss=loss)
    off = np.abs(last.mass - results.teacher_mass).max()
    return between((0, 0.05), (last.loss_value.max(), off), (1e-4, 1))


@claim(
    source="public trainers' reports of negative losses; no number known, 'most' is half",
    wrong=({"loss": "forward KL, with tail"}, {"loss": "forward KL, renormalized"}),
)
def truncated_forward_kl_is_mostly_negative(
    results: xr.Dataset, loss: str = "forward KL, truncated"
) -> Finding:
    """The share of steps and pairs with a negative loss, in training by truncated forward KL."""
    return at_least(0.5, results.negative.sel(loss=loss).mean())


@claim(source=CALCULUS, wrong=({"loss": "reverse KL, with tail"},))
def truncated_reverse_kl_leaves_the_tokens(
    results: xr.Dataset, loss: str = "reverse KL, truncated"
) -> Finding:
    """At the end of training the student's mass on the teacher's k tokens over the teacher's: 1/e,
    largest and smallest of all pairs, within a hundredth."""
    left = results.mass.isel(step=-1).sel(loss=loss) / results.teacher_mass
    return equals(np.exp(-1.0), (left.min(), left.max()), tolerance=0.01)


@claim(
    source="the reverse form's collapse of the student's own top-k; the bound is chosen here",
    wrong=({"loss": "reverse KL, with tail"},),
)
def its_own_tokens_collapse(results: xr.Dataset, loss: str = "reverse KL, own tokens") -> Finding:
    """The mass of a student's k most probable tokens after training by truncated reverse KL on
    these, over that at the start, mean over pairs: at most two thirds."""
    own = results.own_mass.sel(loss=loss).mean(("seed", "case"))
    return at_most(2 / 3, own.isel(step=-1) / own.isel(step=0))


@claim(source=CALCULUS, wrong=({"loss": "forward KL, with tail"},))
def truncated_forward_kl_gathers(
    results: xr.Dataset, loss: str = "forward KL, truncated"
) -> Finding:
    """At the end of training the least mass of a student on the k tokens, and the largest distance
    of its loss from M log M, in nats."""
    last = results.isel(step=-1).sel(loss=loss)
    least = results.teacher_mass * np.log(results.teacher_mass)
    return between((0.99, 0), (last.mass.min(), np.abs(last.loss_value - least).max()), (1, 0.01))


@claim(source="of the formula", reruns=(LESS_REST,), wrong=({"loss": "forward KL, truncated"},))
def a_tail_keeps_the_mass(results: xr.Dataset, loss: str = "forward KL, with tail") -> Finding:
    """Trained with a tail the student has the teacher's mass on the k tokens: the difference."""
    mass = results.mass.isel(step=-1).sel(loss=loss)
    return at_most(0.01, np.abs(mass - results.teacher_mass).max())


@claim(
    source="OSTQuant (arXiv:2501.13987): KL-Top against cross-entropy; no number known",
    wrong=({"than": "KL"},),
)
def kl_top_beats_cross_entropy(results: xr.Dataset, than: str = "cross-entropy") -> Finding:
    """Held-out KL of a quantized layer fitted by KL-Top on the fewest contexts, without and with
    the tail, over that of one fitted by cross-entropy, means over seeds: at most half."""
    few = results.held_out.isel(contexts=0).mean("seed")
    fitted = few.sel(fitted_by=["KL-Top", "KL-Top with tail"])
    return at_most(0.5, fitted / few.sel(fitted_by=than))


# OSTQuant's other direction, that KL-Top is better than the whole KL, is not seen in this layer.
@claim(
    source="a finding of this run, against OSTQuant's direction (arXiv:2501.13987)",
    wrong=({"best": "KL-Top"},),
)
def the_whole_kl_is_no_worse_here(results: xr.Dataset, best: str = "KL") -> Finding:
    """Held-out KL of layers fitted on the fewest contexts by KL-Top and by the whole KL, over the
    latter's, means over seeds: at least 1."""
    few = results.held_out.isel(contexts=0).mean("seed")
    return at_least(1, few.sel(fitted_by=["KL-Top", "KL"]) / few.sel(fitted_by=best))
