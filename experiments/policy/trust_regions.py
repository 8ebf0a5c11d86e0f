"""A divergence as the trust region of a token, against PPO's clip of the ratio, exactly.

DPPO (arXiv:2602.04879) drops a token when the divergence of new and old policy at its position is
above a threshold, where PPO drops it when its ratio leaves a range. What is measured: where each of
them stops a token of what probability, for every row of the table; the binary form, which needs the
sampled token alone, next to the divergence of all tokens; and updates by exact natural gradients of
a policy whose best token is rare. The paper's training runs are of large models; none is repeated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, inside, one_of, positive, real, seeds
from experiments.lab.claims import Finding, at_least, at_most, between, claim, together
from experiments.lab.plots import Picture, curve, curves, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.policy import ratio_weights
from jdiv.policy.dppo import binary_divergence, dppo, dppo_weight

AXES = {"sign": real, "threshold": positive, "rest": positive, "seed": seeds}
FIELDS = {
    "generators": each(one_of(generators.TABLE)),
    "trained": each(one_of(generators.TABLE)),
    "cases": count,
    "vocabulary": count,
    "rounds": count,
    "inner": count,
    "step_size": positive,
    "rare": inside(0.0, 1.0),
}
PROBABILITIES = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5)
LOG_RATIOS = np.linspace(1e-3, 9, 9000)
RULES = ("PPO", "DPPO")
CLIP = {"low": 0.2, "high": 0.2}
SOURCE = "DPPO (arXiv:2602.04879)"
BACKWARDS = {"sweep.sign": (-1.0,), "sweep.rest": (0.1,)}
"""A token is dropped when it has moved against its advantage; and, for the binary bound, all others
have a tenth of their mass. One run, as neither sees the other."""


# ------------------------------------------------------------------------------------ divergences


def edges(threshold: Array, sign: Array) -> tuple[Array, Array]:
    """Log-probabilities `[rule, probability]` up to which PPO, and DPPO by total variation, keep a
    token with a positive advantage, and those it started from."""
    old = jnp.log(jnp.array(PROBABILITIES))[:, None]
    new = jnp.minimum(old + jnp.asarray(LOG_RATIOS)[None], 0.0)
    old = jnp.broadcast_to(old, new.shape)
    log_ratio, gains = sign * (new - old), jnp.ones_like(new)
    apart = binary_divergence(new, old, generator=generators.total_variation())
    kept = (
        ratio_weights.clipped(log_ratio, gains, **CLIP) != 0,
        dppo_weight(log_ratio, gains, apart, threshold=threshold, ceiling=jnp.inf) != 0,
    )
    last = jnp.stack([jnp.max(jnp.where(x, new, old), axis=1) for x in kept])
    return last, jnp.broadcast_to(old[:, 0], last.shape)


def measured(config: ConfigDict, point: dict) -> dict[str, Labelled]:
    """By row the divergence that a token has at its edge, and the binary divergence of each token
    of random policies as a part of that of all."""
    last, start = edges(point["threshold"], point["sign"])
    shape = len(config.sweep.seed), 2, config.cases, config.vocabulary
    draws = jnp.asarray(2 * np.random.default_rng(0).normal(size=shape))
    new, old = draws[point["seed"].astype(jnp.int32) % shape[0]]
    sides = []
    for edge, logits in ((last, new), (start, old)):
        log_p = jax.nn.log_softmax(logits)
        # The mass of the others is multiplied by `rest`: 1 is right.
        tilted = log_p - jnp.log(jnp.exp(log_p) + point["rest"] * -jnp.expm1(log_p))
        sides.append(jnp.concatenate([edge.ravel(), tilted.ravel()]))
    reached, part = [], []
    for name in config.generators:
        row = generators.get(name)
        binary = binary_divergence(*sides, generator=row)
        reached.append(binary[: last.size].reshape(last.shape))
        whole = divergences.f_divergence(new, old, generator=row)
        part.append(jnp.max(binary[last.size :].reshape(new.shape) / whole[:, None], axis=1))
    part = jnp.stack(part)
    names, row = {"rule": RULES, "probability": PROBABILITIES}, {"generator": config.generators}
    return {
        "ratio": labelled(jnp.exp(last - start), **names),
        "edge": labelled(jnp.stack(reached), **row, **names),
        "largest": labelled(part.max(axis=1), **row),
        "typical": labelled(jnp.median(part, axis=1), **row),
    }


# --------------------------------------------------------------------------------------- updates


class Rule(NamedTuple):
    """A method by name: its row, None for the clip, and whether it sees all tokens."""

    generator: str | None
    whole: bool = False

    def __str__(self) -> str:
        if self.generator is None:
            return "PPO"
        return f"{self.generator} {'whole' if self.whole else 'binary'}"


def rules(config: ConfigDict) -> tuple[Rule, ...]:
    """PPO, and both forms of every row that is trained with."""
    forms = [Rule(name, whole) for name in config.trained for whole in (False, True)]
    return (Rule(None), *forms)


def radius(name: str, threshold: Array) -> Array:
    """The divergence of .5 + threshold from .5: thresholds of all rows in one unit."""
    half = jnp.log(jnp.array(0.5))
    return binary_divergence(jnp.log(0.5 + threshold), half, generator=generators.get(name))


def weights(
    config: ConfigDict, logits: Array, old: Array, gains: Array, radii: Array, sign: Array
) -> Array:
    """`[rule, V]` the weight of every token of policies `[rule, V]`; the first has PPO's."""
    new, before = jax.nn.log_softmax(logits), jax.nn.log_softmax(old)
    apart = []
    for number, rule in enumerate(rules(config)[1:], start=1):
        row = generators.get(rule.generator)
        if rule.whole:
            whole = divergences.f_divergence(new[number], before[number], generator=row)
            apart.append(jnp.broadcast_to(whole, new[number].shape))
        else:
            apart.append(binary_divergence(new[number], before[number], generator=row))
    moved = before + sign * (new - before)
    rest = before[1:], gains[1:], jnp.full(before[1:].shape, True), jnp.stack(apart)
    limits = {"threshold": radii, "ceiling": jnp.inf}
    slopes = jax.grad(lambda x: jnp.sum(dppo(x, *rest, **limits).loss))(moved[1:])
    clipped = ratio_weights.clipped((moved - before)[:1], gains[:1], **CLIP)
    return jnp.concatenate([clipped, -slopes])


def training(config: ConfigDict, point: dict) -> dict[str, Labelled]:
    """Rounds of natural gradient steps on each surrogate, by the exact advantages of the old
    policy: a step adds weight/ratio to a logit, A itself where nothing is dropped."""
    n, count_ = config.vocabulary, len(rules(config))
    other = np.random.default_rng(1).uniform(0, 0.5, (len(config.sweep.seed), n - 1))
    place = point["seed"].astype(jnp.int32) % len(other)
    rewards = jnp.concatenate([jnp.ones(1), jnp.asarray(other)[place]])
    radii = {name: radius(name, point["threshold"]) for name in config.trained}
    radii = jnp.stack([radii[rule.generator] for rule in rules(config)[1:]])
    start = jnp.log(jnp.full(n, (1 - config.rare) / (n - 1)).at[0].set(config.rare))

    def a_round(old: Array, _: None):
        log_old = jax.nn.log_softmax(old)
        gains = rewards[None] - (jnp.exp(log_old) @ rewards)[:, None]

        def step(logits: Array, _: None):
            ratio = jnp.exp(point["sign"] * (jax.nn.log_softmax(logits) - log_old))
            move = weights(config, logits, old, gains, radii, point["sign"]) / ratio
            return logits + config.step_size * move, None

        new = jax.lax.scan(step, old, length=config.inner)[0]
        log_new = jax.nn.log_softmax(new)
        found = {
            "reward": jnp.exp(log_new) @ rewards,
            "right": jnp.exp(log_new[:, 0]),
            "tv": divergences.total_variation(new, old),
            "kl": divergences.kl(old, new),
        }
        return new, found

    _, found = jax.lax.scan(a_round, jnp.tile(start, (count_, 1)), length=config.rounds)
    names = {"round": range(1, config.rounds + 1), "update": tuple(map(str, rules(config)))}
    return {name: labelled(x, **names) for name, x in found.items()}


# -------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """What can be measured without training, and training."""
    return measured(config, point) | training(config, point)


# --------------------------------------------------------------------------------------- figures

SHOWN = ("PPO", "total_variation binary", "total_variation whole", "reverse_kl binary",
         "reverse_kl whole")  # fmt: skip


def first(results: xr.Dataset) -> xr.Dataset:
    """The sweep's first sign, threshold and mass of the rest, as the config has one of each."""
    return results.isel(sign=0, threshold=0, rest=0)


def named(name: str) -> str:
    """A row or an update in words."""
    return (
        name.replace("total_variation", "TV").replace("reverse_kl", "KL(old‖π)").replace("_", " ")
    )


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Edges, the binary bound, training."""
    at, mean = first(results).isel(seed=0), first(results).mean("seed")
    figure, (left, middle, right) = panels(3, width=4.3, height=4.0)
    for number, rule in enumerate(RULES):
        edge = at.edge.sel(generator="total_variation", rule=rule)
        curve(left, "probability", edge, label=rule, **style(number, marker=True))
    left.set(xscale="log", yscale="log", xlabel="probability under the old policy")
    left.set(ylabel="total variation when it is dropped")
    left.legend(title="rule", loc="lower right")
    shares = mean.typical.sortby(mean.typical)
    middle.barh([named(name) for name in shares.generator.values], shares, color="#0072b2")
    middle.axvline(1, color="black", linewidth=1)
    middle.set(xlim=(0, 1.05), xlabel="binary divergence, part of the whole")
    middle.tick_params(axis="y", labelsize="x-small")
    updates = [name for name in SHOWN if name in mean["update"].values]
    lines = mean.right.sel(update=updates)
    curves(right, "round", lines.assign_coords(update=[named(x) for x in updates]), "update")
    right.set(xlabel="round", ylabel="probability of the right token")
    right.set_xlim(0, 1.6 * config.rounds)
    right.legend(fontsize="small", loc="center right")
    picture = Picture(
        figure,
        "Left: PPO's clip drops a rare token at a divergence of nearly nothing, DPPO every token at"
        " the same. Middle: what the token that moved most shows of the divergence of the whole"
        " vocabulary, median over random policies; never more than 1 (line). Right: a right token"
        f" that starts at {config.rare:g} is learned in a few rounds where the clip lets it grow by"
        " a fifth in each.",
    )
    return {"regions": picture}


# ---------------------------------------------------------------------------------------- claims


@claim(source=SOURCE, wrong=({"rule": "DPPO"},))
def the_clip_stops_rare_tokens_early(results: xr.Dataset, rule: str = "PPO") -> Finding:
    """The divergence at which a token of probability .5 is dropped over that of one of .001, by
    row, least: PPO's clip lets common tokens move by 100 times as much and more."""
    edge = first(results).edge.isel(seed=0).sel(rule=rule)
    return at_least(100, (edge.sel(probability=0.5) / edge.sel(probability=1e-3)).min())


@claim(source=SOURCE, reruns=(BACKWARDS,), wrong=({"rule": "PPO"},))
def dppo_stops_all_at_one_divergence(results: xr.Dataset, rule: str = "DPPO") -> Finding:
    """With total variation the largest ratio that is kept is 1 + threshold/p: relative difference
    for probabilities p from 1e-4 to .5, on a grid of ratios that are .1 % apart."""
    ratio = results.ratio.isel(seed=0, sign=0, rest=0).sel(rule=rule)
    return at_most(2e-3, abs(ratio / (1 + results.threshold / results.probability) - 1).max())


@claim(source=f"{SOURCE}; data processing", reruns=(BACKWARDS,))
def binary_is_a_lower_bound(results: xr.Dataset) -> Finding:
    """The binary divergence of a token over that of all tokens, largest over random policies, by
    row: never above 1."""
    return at_most(1 + 1e-12, first(results).largest.max("seed"))


def rounds_to_half(results: xr.Dataset, update: str) -> xr.DataArray:
    """`[seed]` rounds until the right token has half of the mass; infinite if it never has."""
    there = first(results).right.sel(update=update) > 0.5
    return xr.where(there.any("round"), there.argmax("round") + 1, np.inf)


@claim(
    source=f"{SOURCE}, on rare tokens; there it is shown of large models only",
    reruns=(BACKWARDS,),
    wrong=({"faster": "PPO"},),
)
def a_rare_token_is_learned_sooner(
    results: xr.Dataset, faster: str = "total_variation whole"
) -> Finding:
    """Rounds that PPO's clip needs until the right token has half of the mass, over those of the
    divergence of the whole vocabulary, least over draws; and the largest total variation of a round
    of the latter over that of PPO: sooner, with smaller steps."""
    speed = rounds_to_half(results, "PPO") / rounds_to_half(results, faster)
    moved = first(results).tv.max("round")
    share = moved.sel(update=faster) / moved.sel(update="PPO")
    return between((2, 0), (speed.min(), share.max()), (np.inf, 1))


@claim(
    source="derived; the bounds are chosen here",
    reruns=(BACKWARDS,),
    wrong=({"whole": "total_variation binary"}, {"binary": "total_variation whole"}),
)
def only_the_whole_form_bounds_a_round(
    results: xr.Dataset,
    whole: str = "total_variation whole",
    binary: str = "total_variation binary",
) -> Finding:
    """The largest total variation of a round over the threshold, largest over draws: that of the
    whole vocabulary holds it up to the last step, the binary form, which holds each token for
    itself, does not."""
    moved = (first(results).tv.max("round") / results.threshold.isel(threshold=0)).max("seed")
    return together(at_most(1.2, moved.sel(update=whole)), at_least(1.5, moved.sel(update=binary)))
