"""SPIN from samples: what oscillates, by the opponent and by what the loss is anchored at.

The abstract of arXiv:2404.04291 has two regularizers of SPIN (Chen et al. 2024, arXiv:2401.01335):
a KL to the base model, which is a share of it in the mixture that the loss is anchored at, and an
opponent that averages over the previous policies, fictitious play, to smooth what is learned. It
has no toy and no numbers; those here are measured. Whether the loss is anchored at the average too,
as where the opponent is the reference of DPO, is not said there, and decides.
"""

import jax
import jax.numpy as jnp
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import at_least as from_on
from experiments.lab.axes import count, fraction, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, together
from experiments.lab.plots import Picture, curve, legend_above, panels, pick, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv import divergences
from jdiv.games import self_play

AXES = {
    "beta": positive,
    "share": fraction,
    "averaged_opponent": fraction,
    "averaged_anchor": fraction,
    "seed": seeds,
}
FIELDS = {"samples": count, "rounds": from_on(20)}
OPPONENTS = ("last", "two last", "all")
ANCHORS = ("last policy", "opponent")
LAWS = ("exact", "sampled")
ABSTRACT = "arXiv:2404.04291, abstract, which has no numbers"
FEW = {"sweep.seed": tuple(range(8))}
LAST_ONLY = {"sweep.averaged_opponent": (0.0,), **FEW}
OLD_ANCHOR = {"sweep.averaged_anchor": (0.0,), **FEW}
EXCHANGED = {"sweep.share": (0.3, 0.0), **FEW}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Distance from the data and from the policy before, round by round, of every variant."""
    log_data = jnp.log(jnp.array(config.data))
    log_ref = jnp.log(jnp.array(config.reference))
    grids = [jnp.arange(3), jnp.arange(2), jnp.arange(2)]

    def played(opponent, anchor, sampled):
        """Log-policies by round."""

        def step(state):
            history, before, key = state
            key, of_data, of_opponent = jax.random.split(key, 3)
            last = history.log_policy
            two = jnp.logaddexp(last, before) - jnp.log(2.0)
            against = jnp.stack([last, two, history.log_average])[opponent]
            against = jnp.where(point["averaged_opponent"] > 0, against, last)
            at = jnp.where((anchor == 1) & (point["averaged_anchor"] > 0), against, last)
            seen = (
                jnp.where(sampled == 1, estimated(config, law, key), law)
                for law, key in ((log_data, of_data), (against, of_opponent))
            )
            log_seen, log_against = seen
            weights = {"beta": point["beta"], "share": point["share"]}
            new = self_play.spin(at, log_seen, log_ref, log_opponent=log_against, **weights)
            return self_play.fictitious_play(history, lambda *_: new), last, key

        start = self_play.first_history(log_ref), log_ref, key
        return self_play.play(step, start, config.rounds, lambda state: state[0].log_policy)

    for axis in reversed(range(3)):
        played = jax.vmap(played, tuple(0 if i == axis else None for i in range(3)))
    log_policy = played(*grids)
    dims = {"opponent": OPPONENTS, "anchor": ANCHORS, "law": LAWS}
    return {
        "error": labelled(
            divergences.total_variation(log_policy, jnp.broadcast_to(log_data, log_policy.shape)),
            **dims,
            round=range(config.rounds + 1),
        ),
        "moved": labelled(
            divergences.total_variation(log_policy[..., 1:, :], log_policy[..., :-1, :]),
            **dims,
            to_round=range(1, config.rounds + 1),
        ),
        "off": labelled(off(point, log_policy, log_data), **dims),
    }


def estimated(config: ConfigDict, log_law: Array, key: Array) -> Array:
    """Log-frequencies of samples, each answer counted once more: none may be missing."""
    uniform = jax.random.uniform(key, (config.samples, 1))
    below = jnp.sum(uniform < jnp.cumsum(jnp.exp(log_law))[None, :-1], axis=0)
    counts = jnp.diff(below, prepend=0, append=config.samples)
    return jnp.log((1 + counts) / (config.samples + log_law.size))


def off(point: dict, log_policy: Array, log_data: Array) -> Array:
    """How far `log pi/data`, centered, is from `(1 - 1/beta)^k` of where it was, k = 1 to 10."""
    ratio = log_policy - jnp.broadcast_to(log_data, log_policy.shape)
    ratio -= jnp.mean(ratio, axis=-1, keepdims=True)
    shrunk = (1 - 1 / point["beta"]) ** jnp.arange(1.0, 11)
    apart = ratio[..., 1:11, :] - jnp.einsum("k,...a->...ka", shrunk, ratio[..., 0, :])
    return jnp.max(jnp.abs(apart), axis=(-1, -2))


# ---------------------------------------------------------------------------------------- figures


def late(results: xr.Dataset) -> xr.Dataset:
    """Means over the second half of the rounds."""
    results = results.isel(averaged_opponent=0, averaged_anchor=0)
    first = results["round"].max() // 2
    return xr.Dataset(
        {
            "error": results.error.where(results["round"] > first, drop=True).mean("round"),
            "moved": results.moved.where(results.to_round > first, drop=True).mean("to_round"),
        }
    )


VARIANTS = {
    "SPIN: last policy": ("last", "last policy"),
    "two last": ("two last", "opponent"),
    "all": ("all", "opponent"),
    "two last, anchor at last": ("two last", "last policy"),
    "all, anchor at last": ("all", "last policy"),
}


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Distance from the data by round, and how far policies move, against beta."""
    figure, (left, middle, right) = panels(3, width=3.9, height=3.9)
    beta, share = pick(results.beta, 0.55), pick(results.share, 0.0)
    first = {"seed": 0, "averaged_opponent": 0, "averaged_anchor": 0}
    half = late(results.sel(share=share)).mean("seed")
    for number, (label, (opponent, anchor)) in enumerate(VARIANTS.items()):
        look = style(number, marker=True) | {"label": label}
        at = {"opponent": opponent, "anchor": anchor}
        exact = results.error.isel(first).sel(**at, beta=beta, share=share, law="exact")
        curve(left, "round", exact, **style(number))
        for axis, name in ((middle, "moved"), (right, "error")):
            curve(axis, "beta", half[name].sel(**at, law="sampled"), **look)
    left.set(xlabel="round", ylabel="total variation from the data")
    left.set(yscale="log", ylim=(1e-6, 1.5))
    left.set_title(f"exact laws, β = {beta:g}", fontsize="medium")
    for axis, what in ((middle, "the policy before"), (right, "the data")):
        axis.set(xscale="log", xlabel="β of the loss", ylabel=f"total variation from {what}")
        axis.set_ylim(0, None)
        axis.set_title(f"{config.samples} samples a round", fontsize="medium")
        ticks(axis, x=results.beta.values)
    legend_above(figure, middle, columns=5)
    return {
        "spin": Picture(
            figure,
            "Self-play against the last policy, the mixture of the two last and that of all. Left:"
            " an opponent that averages, with the loss anchored at the last policy, swings for"
            " long. Middle and right: from samples, below β = 1, averages move less and are nearer"
            " to the data, if the anchor is averaged too; at large β the history is a burden.",
        )
    }


# ----------------------------------------------------------------------------------------- claims


@claim(
    source="Derived here: SPIN's update multiplies log pi/data by 1 - 1/beta",
    reruns=(EXCHANGED,),
    wrong=({"opponent": "two last"},),
    needs={"beta": ..., "seed": ...},
)
def spin_approaches_by_a_factor(results: xr.Dataset, opponent: str = "last") -> Finding:
    """With exact laws and no share of the reference, log pi/data less its mean is (1 - 1/beta)^k
    times where it was, for ten rounds: the largest deviation by beta."""
    at = {"opponent": opponent, "anchor": "last policy", "law": "exact"}
    here = results.isel(share=0, seed=0, averaged_opponent=0, averaged_anchor=0)
    return at_most(1e-11, here.off.sel(at))


@claim(source=ABSTRACT, reruns=(LAST_ONLY,), wrong=({"anchor": "opponent"},))
def an_averaged_opponent_alone_swings(results: xr.Dataset, anchor: str = "last policy") -> Finding:
    """With exact laws: the mean distance from the data in the second half, by beta, of fictitious
    play whose loss stays anchored at the last policy, then that of SPIN, which is below .0003."""
    here = late(results.isel(seed=0)).error.sel(share=0.0, law="exact")
    return together(
        at_least(0.05, here.sel(opponent="all", anchor=anchor)),
        at_most(3e-4, here.sel(opponent="last", anchor="last policy")),
    )


@claim(source=ABSTRACT, reruns=(LAST_ONLY, OLD_ANCHOR), wrong=({"beta": 2.0},))
def averages_steady_what_oscillates(results: xr.Dataset, beta: float = 0.55) -> Finding:
    """From samples, at beta = .55, anchor and opponent averaged: how far policies move a round, and
    are from the data, with the two last over SPIN, and with all over the two last."""
    here = late(results).mean("seed").sel(beta=beta, share=0.0, law="sampled", anchor="opponent")
    one, two, every = (here.sel(opponent=name).to_array() for name in OPPONENTS)
    return at_most(0.95, [two / one, every / two])


@claim(source="No paper: measured here", reruns=(LAST_ONLY,), wrong=({"beta": 0.55},))
def at_large_beta_the_history_is_a_burden(results: xr.Dataset, beta: float = 4.0) -> Finding:
    """From samples, at beta = 4: distance from the data of fictitious play, anchor and opponent
    averaged, over that of SPIN."""
    here = late(results).error.mean("seed").sel(beta=beta, share=0.0, law="sampled")
    here = here.sel(anchor="opponent")
    return at_least(2, here.sel(opponent="all") / here.sel(opponent="last"))


@claim(
    source="No paper: measured here",
    reruns=(EXCHANGED,),
)
def a_share_of_the_reference_does_not_steady(results: xr.Dataset) -> Finding:
    """From samples: how far SPIN moves a round with a share .3 of the reference in its anchor, over
    how far it moves with none, by beta."""
    here = late(results).moved.mean("seed").sel(opponent="last", anchor="last policy")
    here = here.sel(law="sampled")
    return at_least(1.05, here.isel(share=1) / here.isel(share=0))
