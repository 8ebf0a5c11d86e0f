"""Losses over a vocabulary from hidden states: the plain ones, without logits of all tokens.

Student and teacher are hidden states and heads whose logits are capped softly, as some models do;
a loss that makes logits of its own has to know of the cap. Of the teacher, a server then sends a
few log-probabilities: what is lost with the others is known exactly, by the chain rule of KL.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import count, fraction, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.plots import Picture, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences as dv
from jdiv import generators, numerics
from jdiv.divergences import sparse, vocabulary

AXES = {"capped": fraction, "seed": seeds}
"""1 if the plain loss knows of the cap, 0 if it leaves it out."""
FIELDS = {
    "tokens": count,
    "vocabulary": axes.at_least(8),
    "width": count,
    "tile": count,
    "soft_cap": positive,
    "spread": positive,
    "known": axes.each(count),
}
UNCAPPED = {"sweep.capped": (0.0,)}
PARTS = ("value", "by hidden states", "by head")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Errors of the loss in tiles against the plain one, and what k log-probabilities tell."""
    of_student, of_teacher, of_heads, of_tokens = jax.random.split(key, 4)
    shape = (config.tokens, config.width)
    states = jax.random.normal(of_student, shape), jax.random.normal(of_teacher, shape)
    scale = config.spread / config.width**0.5
    heads = scale * jax.random.normal(of_heads, (2, config.vocabulary, config.width))
    cap = config.soft_cap
    student, teacher = (
        vocabulary.FromHidden(x, head, soft_cap=cap) for x, head in zip(states, heads, strict=True)
    )

    def plain(hidden: Array, head: Array) -> Array:
        product = hidden @ head.T
        return jnp.where(point["capped"] > 0, cap * jnp.tanh(product / cap), product)

    logits = [plain(*side[:2]) for side in (student, teacher)]
    return {
        "error": labelled(errors(config, student, teacher, plain, of_tokens), part=PARTS),
        **directions(config, student, teacher, *logits),
        **by_known(config, student, *logits),
    }


def errors(config: ConfigDict, student, teacher, plain, key: Array) -> Array:
    """Relative errors of the loss in tiles and of its gradients, `[part]`."""
    tokens = jax.random.randint(key, (config.tokens,), 0, config.vocabulary)
    weights = jnp.linspace(0.5, 1.5, config.tokens)

    def in_tiles(hidden: Array, head: Array) -> Array:
        side = student._replace(hidden=hidden, head=head)
        return vocabulary.weighted_loss(
            generators.kl(), side, teacher, weights,
            tokens=tokens, token_weights=0.3, tile=config.tile,
        ).total  # fmt: skip

    def at_once(hidden: Array, head: Array) -> Array:
        logits = plain(hidden, head)
        own = jnp.take_along_axis(numerics.log_softmax(logits), tokens[:, None], axis=1)
        return weights @ dv.kl(logits, plain(*teacher[:2])) - 0.3 * jnp.sum(own)

    found = [jax.value_and_grad(loss, (0, 1))(*student[:2]) for loss in (in_tiles, at_once)]
    (value, slopes), (expected, known) = found
    size = lambda x: jnp.sqrt(jnp.sum(x**2))
    pairs = [(value, expected), *zip(slopes, known, strict=True)]
    return jnp.stack([size(x - y) / size(y) for x, y in pairs])


def directions(config: ConfigDict, student, teacher, p: Array, q: Array) -> dict[str, Labelled]:
    """`D(student, teacher)` of KL's row and of the swapped one, and both KLs, `[.., token]`."""
    rows = generators.kl(), generators.swapped(generators.kl())
    losses = [
        vocabulary.weighted_loss(row, student, teacher, 1.0, tile=config.tile).divergence
        for row in rows
    ]
    token = {"token": range(config.tokens)}
    return {
        "by_row": labelled(jnp.stack(losses), row=("kl", "swapped"), **token),
        "both": labelled(jnp.stack([dv.kl(p, q), dv.kl(q, p)]), of=("student", "teacher"), **token),
    }


def by_known(config: ConfigDict, student, p: Array, q: Array) -> dict[str, Labelled]:
    """KL(teacher‖student) by k, with the tail; of the kept mass alone; and within the rest."""
    log_q, tails, masses, rests, binary = numerics.log_softmax(q), [], [], [], []
    for k in config.known:
        sent = sparse.from_log_probs(*jax.lax.top_k(log_q, k))
        kept = vocabulary.retained_mass(student, sent.indices, tile=config.tile)
        tails.append(vocabulary.divergence(generators.kl(), sent, student, tile=config.tile))
        mass = jnp.stack([1 - kept, jnp.exp(sent.log_rest)])
        hidden = jnp.put_along_axis(jnp.ones_like(q, bool), sent.indices, False, 1, inplace=False)
        rests.append(dv.kl(q, p, where=hidden))
        both = jnp.stack([kept, jnp.sum(jnp.exp(sent.log_probs), axis=-1)])
        two = jnp.log(jnp.stack([both, mass], axis=-1))
        binary.append(dv.kl(two[1], two[0]))
        masses.append(mass)
    token = {"token": range(config.tokens)}
    by = {"known": config.known, **token}
    return {
        "with_tail": labelled(jnp.stack(tails), **by),
        "within_rest": labelled(jnp.stack(rests), **by),
        "of_masses": labelled(jnp.stack(binary), **by),
        "rest": labelled(
            jnp.stack(masses), known=config.known, of=("student", "teacher"), **token
        ),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """What of KL is seen with k log-probabilities."""
    figure, axis = panels(1, width=5.6)
    here = results.isel(capped=0)
    whole = here.both.sel(of="teacher").mean(("seed", "token")).item()
    known = here.known.values
    rest = (here.rest.sel(of="teacher") * here.within_rest).mean(("seed", "token"))
    tail = here.with_tail.mean(("seed", "token"))
    masses = here.of_masses.mean(("seed", "token"))
    axis.plot(known, tail + rest, label="with the tail and within the rest", **style(0))
    axis.plot(known, tail, label="with the tail as one token", **style(1, marker=True))
    axis.plot(known, masses, label="of the kept mass alone", **style(2, marker=True))
    axis.axhline(whole, color="black", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", xlabel=f"k, of {config.vocabulary} tokens", ylabel="KL, nats")
    axis.set(ylim=(0, 1.6 * whole))
    axis.set_xticks(known, [str(k) for k in known])
    axis.set_xticks([], minor=True)
    axis.legend(fontsize="small", loc="upper left")
    return {
        "known": Picture(
            figure,
            "KL(teacher‖student) where a server sends k log-probabilities, means over tokens. From"
            " below each line is a lower bound of the next; with what is within the rest, by its"
            " mass at the teacher, the whole (dotted) comes out at every k.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


@claim(source="the plain loss on logits", reruns=(UNCAPPED,))
def tiles_have_the_plain_loss_and_gradient(results: xr.Dataset) -> Finding:
    """KL and cross-entropy, weighted, tile by tile from hidden states: relative errors of value and
    gradients against logits of all tokens. A plain loss that leaves out the soft cap has others."""
    return at_most(1e-10, results.error.max(("capped", "seed")))


@claim(source="D(q, p) is the divergence of u f(1/u)", wrong=({"row": "kl"},))
def swapped_is_the_other_direction(results: xr.Dataset, row: str = "swapped") -> Finding:
    """With the swapped row of KL the student learns by KL(teacher‖student): the largest relative
    error over tokens."""
    known = results.both.sel(of="teacher")
    return at_most(1e-10, np.abs(results.by_row.sel(row=row) / known - 1).max())


@claim(
    source="Cover and Thomas 2006, theorem 2.5.3, the chain rule of relative entropy",
    reruns=(UNCAPPED,),
    wrong=({"by": "student"},),
)
def what_a_server_keeps_is_the_kl_within_the_rest(
    results: xr.Dataset, by: str = "teacher"
) -> Finding:
    """KL(teacher‖student) is that with the tail as one token, and the teacher's mass of the rest
    times the KL within it: the largest relative error over tokens and k. With the student's mass it
    is another number."""
    lost = results.rest.sel(of=by) * results.within_rest
    whole = results.both.sel(of="teacher")
    return at_most(1e-10, np.abs((results.with_tail + lost) / whole - 1).max())


@claim(
    source="Csiszar 1967, the data processing inequality, twice",
    wrong=({"least": "within_rest"},),
)
def fewer_categories_tell_less(results: xr.Dataset, least: str = "of_masses") -> Finding:
    """KL of the kept masses alone is at most that of k tokens with the tail, and that at most the
    whole one, and no smaller with more tokens: the smallest difference."""
    whole = results.both.sel(of="teacher")
    tail = results.with_tail
    steps = (whole - tail).min(), (tail - results[least]).min(), tail.diff("known").min()
    return at_least(-1e-12, steps)
