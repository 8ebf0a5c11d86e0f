"""Steering within a bound on KL (arXiv:2507.04742), and tracing a change by KL (arXiv:2507.09082).

Of both the abstracts alone were at hand. Steering moves the last hidden state of a softmax head; on
an enumerated language model whose rows are such heads it is measured what that does to lengths.
Tracing asks a predictor of frames whose patches shift by a known displacement: most patches are
copied, a share is unsure, dark or bright, with odds that lean on two patches of the frame.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import at_least, count, fraction, inside, positive, real, seeds
from experiments.lab.claims import Finding, at_most, between, claim, equals
from experiments.lab.claims import at_least as no_less
from experiments.lab.plots import COLORS, Picture, curve, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import numerics
from jdiv.decoding import steering, tracing
from jdiv.lm import tabular

AXES = {"budget": positive, "sign": real, "unsure": fraction, "seed": seeds}
FIELDS = {
    "heads": count,
    "tokens": at_least(4),
    "width": count,
    "longest": count,
    "frames": count,
    "patches": at_least(3),
    "colors": at_least(16),
    "copied": inside(0, 1),
    "lean": positive,
}
STRENGTHS = "closed form", "quadratic", "exact"
VOCABULARY = 3
STEERING = "Azizi, Baghaei Potraghloo and Pedram 2025 (arXiv:2507.04742)"
TRACING = "Kim et al. 2025 (arXiv:2507.09082)"
MEASURES = "KL", "squared difference"


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """KL that each strength spends, lengths of steered answers, and traces of a changed patch."""
    of_heads, of_frames = jax.random.split(key)
    logits, direction, table, towards = heads(config, point, of_heads)
    # Rows of the language model are filled up with tokens that it cannot say: one program.
    fill = lambda x, by: jnp.pad(x, ((0, 0), (0, config.tokens - VOCABULARY)), constant_values=by)
    rows = jnp.concatenate([logits, fill(table, -jnp.inf)])
    along = jnp.concatenate([direction, fill(towards, 0.0)])
    budget = point["budget"]
    exact = steering.exact_strength(rows, along, budget=budget)
    closed = jnp.stack([
        steering.safe_strength(rows, along, budget=budget),
        steering.quadratic_strength(rows, along, budget=budget),
    ])  # fmt: skip
    moved = jax.vmap(lambda s: steering.steered(rows, along, strength=s))(closed)
    moved = jnp.concatenate([moved, exact.log_policy[None]])
    of_heads, of_model = moved[:, : config.heads], moved[:, config.heads :, :VOCABULARY]
    spent = jnp.stack([both_kls(x, logits) for x in of_heads]) / budget
    lengths = jax.vmap(tabular.mean_length)(of_model)
    kls = jax.vmap(tabular.kl, (0, None))(of_model, table)
    ratio = closed[:, : config.heads] / exact.strength[None, : config.heads]
    by = {"strength": STRENGTHS}
    first = ("steered", "model")
    return {
        "most": labelled(jnp.max(spent, axis=2), **by, first=first),
        "least": labelled(jnp.min(spent, axis=2), **by, first=first),
        "off": labelled(jnp.mean(jnp.abs(ratio - 1), axis=1), closed=STRENGTHS[:2]),
        "reached": jnp.mean(exact.converged.astype(budget.dtype)),
        "length": labelled(lengths, **by),
        "kl": labelled(kls, **by),
        "model_length": tabular.mean_length(table),
        **traces(config, point, of_frames),
    }


def heads(config: ConfigDict, point: dict, key: Array) -> tuple[Array, ...]:
    """Logits and directions of random heads, and those of the rows of a language model.

    The vector added to the model's hidden states is that which the end's row of the head has above
    the mean of the others, away from it for a negative sign.
    """
    shapes = (config.heads, config.width), (config.tokens, config.width), (1, config.width)
    prefixes, _ = tabular.table_shape(config.longest, VOCABULARY)
    shapes += (prefixes, config.width), (VOCABULARY, config.width)
    keys = jax.random.split(key, len(shapes))
    hidden, head, vector, states, own = map(jax.random.normal, keys, shapes)
    scale = 1.5 / np.sqrt(config.width)
    to_end = point["sign"] * (own[-1] - jnp.mean(own[:-1], axis=0))[None]
    spread = lambda x, n: jnp.broadcast_to(x, (n, x.shape[-1]))
    return (
        scale * hidden @ head.T,
        spread(vector @ head.T, config.heads),
        scale * states @ own.T,
        spread(to_end @ own.T, prefixes),
    )


def both_kls(log_p: Array, logits: Array) -> Array:
    """`KL(steered‖model)` and `KL(model‖steered)` of each head, `[2, heads]`, written out."""
    log_q = numerics.log_softmax(logits)
    kl = lambda a, b: jnp.sum(jnp.exp(a) * (a - b), axis=1)
    return jnp.stack([kl(log_p, log_q), kl(log_q, log_p)])


# ----------------------------------------------------------------------------------------- tracing


def traces(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """How far from where the patch went KL and the squared difference of means are largest."""
    frames, patches = config.frames, config.patches
    keys = jax.random.split(key, 5)
    colors = jax.random.randint(keys[0], (frames, patches), 8, config.colors - 8)
    source, shift = jax.random.randint(keys[1], (2, frames), 1, patches)
    step = jax.random.choice(keys[2], jnp.array([-8, -6, -4, 4, 6, 8]), (frames,))
    goal = (source + shift) % patches
    unsure = jax.random.uniform(keys[3], (frames, patches)) < point["unsure"]
    unsure &= jnp.arange(patches)[None] != goal[:, None]
    seen = jax.random.randint(keys[4], (2, frames, patches), 0, patches)
    changed = colors + jax.nn.one_hot(source, patches, dtype=colors.dtype) * step[:, None]
    clean, after = (
        jax.vmap(predicted, (None, 0, 0, 0, 1))(config, x, shift, unsure, seen)
        for x in (colors, changed)
    )
    trace = tracing.kl_trace(after, clean)
    means = [jnp.exp(x) @ jnp.arange(config.colors, dtype=x.dtype) for x in (after, clean)]
    squared = (means[0] - means[1]) ** 2
    found = jnp.stack([trace.position, jnp.argmax(squared, axis=1)])
    distance = jnp.abs(found - goal[None]) % patches
    distance = jnp.minimum(distance, patches - distance)
    shown = jnp.argmax(distance[1] > 0)  # the first frame on which they differ, if they do
    maps = jnp.stack([trace.kl[shown], squared[shown]])
    by = {"measure": MEASURES}
    return {
        "wrong": labelled(jnp.mean(distance > 0, axis=1, dtype=clean.dtype), **by),
        "distance": labelled(jnp.mean(distance, axis=1, dtype=clean.dtype), **by),
        "at_goal": jnp.take_along_axis(trace.kl, goal[:, None], axis=1)[0, 0],
        "change": labelled(maps, **by, patch=range(patches)),
        "goal": goal[shown],
    }


def predicted(config: ConfigDict, colors: Array, shift: Array, unsure: Array, seen: Array) -> Array:
    """Log-probabilities `[patches, colors]` of the next frame's patches.

    A sure patch is the one that the shift brings; an unsure one is among the darkest or among the
    brightest colors, by odds that lean on the colors of two patches. All are mixed with noise.
    """
    brought = jnp.roll(colors, shift)
    copy = jax.nn.one_hot(brought, config.colors)
    light = (colors[seen].astype(float) - config.colors / 2) / config.colors
    odds = jax.nn.sigmoid(config.lean * jnp.sum(light, axis=0))[:, None]
    dark, bright = (jax.nn.one_hot(c, config.colors)[None] for c in (1, config.colors - 2))
    sure = jnp.where(unsure[:, None], (1 - odds) * dark + odds * bright, copy)
    return jnp.log(config.copied * sure + (1 - config.copied) / config.colors)


# ---------------------------------------------------------------------------------------- figures


def _first(results: xr.Dataset) -> xr.Dataset:
    return results.isel(sign=0, unsure=0, seed=0)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """KL spent by budget, lengths by budget; the maps of one changed patch."""
    at = _first(results)
    figure, (left, right) = panels(2)
    for number, name in enumerate(STRENGTHS):
        look, own = style(number), at.sel(strength=name, first="steered")
        left.fill_between(at.budget, own.least, own.most, color=look["color"], alpha=0.25)
        curve(left, "budget", own.most, label=name, **look)
        curve(
            right, "budget", at.length.sel(strength=name), label=name, **style(number, marker=True)
        )
    left.axhline(1, color="black", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlabel="bound on KL, nats", ylabel="KL spent / bound")
    right.axhline(float(at.model_length[0]), color="black", linewidth=0.8)
    right.set(xscale="log", xlabel="bound on KL of a token, nats", ylabel="expected length, tokens")
    legend_above(figure, right, columns=3, title="strength")
    trace, plots = panels(2, height=3.4)
    for axis, name, label in zip(plots, MEASURES, ("KL, nats", "squared difference"), strict=True):
        goal = int(at.goal[0])
        height = at.change.sel(measure=name).isel(budget=0)
        color = [COLORS[1] if patch == goal else COLORS[0] for patch in at.patch.values]
        axis.bar(at.patch, height, color=color)
        axis.set(xlabel="patch of the next frame", ylabel=label)
    plots[1].bar([0], [0], color=COLORS[1], label="where the changed patch goes")
    plots[1].bar([0], [0], color=COLORS[0], label="other patches")
    legend_above(trace, plots[1], columns=2)
    return {
        "steering": Picture(
            figure,
            f"Left: the KL that a step spends of its bound, over {config.heads} random heads (bands"
            " from least to most). The closed form never passes the bound, the quadratic strength"
            " does at large ones, the exact root spends all of it. Right: answers of an enumerated"
            " model get shorter, steered towards the end; the black line is the model's length.",
        ),
        "tracing": Picture(
            trace,
            "A frame in which one patch was changed, the first on which the measures disagree. KL"
            " of the predicted laws (left) is largest where the patch goes; the squared difference"
            " of their means (right) is larger at a patch that the predictor is unsure of.",
        ),
    }


# ------------------------------------------------------------------------------------------ claims

REACHED = 0.03
"""The largest bound that every row has a step for; some have their limit below the others."""
BACKWARDS = {"sweep.sign": (-1.0,)}
SURE = {"sweep.unsure": (0.0,), "sweep.budget": (0.1,)}


@claim(source=f"{STEERING}: a closed form that bounds KL", wrong=({"strength": "quadratic"},))
def the_closed_form_keeps_the_bound(results: xr.Dataset, strength: str = "closed form") -> Finding:
    """The largest KL(steered‖model) and KL(model‖steered) of any head over its bound, at all
    bounds: at most 1."""
    return at_most(1.0, _first(results).most.sel(strength=strength).max("budget"))


@claim(source=f"{STEERING}: the bound, spent", wrong=({"strength": "quadratic"},))
def the_exact_strength_spends_it(results: xr.Dataset, strength: str = "exact") -> Finding:
    """The largest relative difference of KL(steered‖model), written out, from bounds up to .03, and
    the share of rows that no strength takes to the bound, at the worst: a few in a hundred."""
    at = _first(results).sel(budget=slice(0, REACHED))
    spent = at.sel(first="steered", strength=strength)
    off = np.abs(np.stack([spent.most, spent.least]) - 1).max()
    return at_most((1e-9, 0.05), np.array([off, 1 - at.reached.min()]))


@claim(
    source="Derived: KL = s² Var/2 + s³ κ₃/3 + ..., so the error of s grows like the root of KL",
    wrong=({"strength": "closed form"},),
)
def the_quadratic_strength_is_its_limit(
    results: xr.Dataset, strength: str = "quadratic"
) -> Finding:
    """The slope of the log of the mean relative error of the strength, by the log of the bound,
    from 1e-4 to 1e-2: one half."""
    off = _first(results).off.sel(closed=strength, budget=[1e-4, 1e-2])
    return between(0.45, float(np.diff(np.log(off))[0]) / np.log(100), 0.55)


@claim(source=f"{STEERING}: shorter answers", reruns=(BACKWARDS,))
def answers_get_shorter(results: xr.Dataset) -> Finding:
    """By how much the expected length falls from each bound to the next, from that of the model on,
    with the closed form and with the exact strength: the least fall; and the tokens that the exact
    strength saves over the closed form at the largest bound."""
    at = _first(results)
    length = at.length.sel(strength=["closed form", "exact"]).transpose("strength", "budget")
    start = np.broadcast_to(at.model_length[0], (2, 1))
    fall = -np.diff(np.hstack([start, length]), axis=1).max(axis=1)
    return no_less(0.0, np.append(fall, length[0, -1] - length[1, -1]))


@claim(
    source="The chain rule of KL",
    wrong=({"strength": "closed form"},),
)
def a_bound_for_tokens_is_one_for_answers(results: xr.Dataset, strength: str = "exact") -> Finding:
    """KL of the steered model from the model, over answers, by the bound of a token times the
    expected length, with the exact strength: 1 to 1e-9 up to .03, and never more."""
    at = _first(results).sel(strength=strength)
    share = at.kl / (at.budget * at.length)
    return between(np.where(at.budget <= REACHED, 1 - 1e-9, 0), share, 1 + 1e-9)


@claim(source=f"{TRACING}: KL finds the flow", wrong=({"measure": "squared difference"},))
def kl_finds_the_displacement(results: xr.Dataset, measure: str = "KL") -> Finding:
    """The share of frames in which the largest KL is not where the changed patch goes, half of the
    other patches being unsure."""
    return equals(0, _first(results).wrong.isel(budget=0).sel(measure=measure))


@claim(source=f"{TRACING}: better than differences of what is predicted", reruns=(SURE,))
def squared_differences_go_astray(results: xr.Dataset) -> Finding:
    """The share of frames in which the squared difference of the predicted means is largest
    elsewhere; if every patch is sure there is none."""
    return no_less(0.1, _first(results).wrong.isel(budget=0).sel(measure="squared difference"))


@claim(
    source="Derived: (a - b) log a/b of a copied color's probability a and any other's b",
    wrong=({"of": "a"},),
)
def kl_of_a_copied_patch(results: xr.Dataset, config: ConfigDict, of: str = "a - b") -> Finding:
    """KL where the changed patch goes."""
    b = (1 - config.copied) / config.colors
    a = config.copied + b
    weight = a - b if of == "a - b" else a
    expected = weight * np.log(a / b)
    return equals(expected, _first(results).at_goal.isel(budget=0), tolerance=1e-12)
