"""What samplers cost: KL to the model at a given entropy, and how often a text repeats itself.

One token, of laws of SmolLM2: among all laws q of one entropy the tempered one, p^(1/T), has the
least KL(q‖p), and another's exceeds it by `T KL(q‖tempered)`. Whole texts, of Markov chains: there
the same holds of the probability of texts, whose tempered law is a chain again, by the largest
eigenvector of p^(1/T), and is not the one whose tokens are tempered one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import smollm2
from experiments.lab.axes import count, fraction, non_negative, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, together
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, numerics
from jdiv.decoding import bregman, constrained
from jdiv.lm import sampling

AXES = {"matched": fraction, "whole": fraction, "seed": seeds}
FIELDS = {
    "tokens": count,
    "chains": count,
    "states": count,
    "noise": non_negative,
    "window": count,
}
STRENGTHS = "strong", "medium", "weak"
TEMPERATURES, TOP_K, TOP_P = (0.5, 0.7, 0.9), (3, 5, 9), (0.6, 0.8, 0.95)
MIN_P, EPSILONS, PRICES = (0.2, 0.1, 0.02), (0.2, 0.05, 0.01), (0.1, 0.02, 0.004)
SAMPLERS = (
    "temperature", "top-p", "min-p", "eta", "top-k", "best k", "primal 2, best k",
    "dual 1.5, best k",
)  # fmt: skip
"""The k of the last three is the best one of KL at the price of a token."""
PROPORTIONAL = "top-p", "min-p", "eta", "top-k", "best k"
"""Truncations that share the lost mass in proportion."""
UNEVEN = "primal 2, best k", "dual 1.5, best k"


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Every sampler on all laws and on the rows of all chains: one array of laws for both."""
    laws = jnp.asarray(smollm2.laws()[:, : config.tokens])
    chains = random_chains(config, key)
    wide = (0, 0), (0, config.tokens - config.states)
    flat = chains.reshape(-1, config.states)
    rows = jnp.concatenate([laws, jnp.pad(flat, wide, constant_values=-jnp.inf)])
    log_p = numerics.log_softmax(rows)
    log_q = bent(log_p)
    of_chains = log_q[:, :, len(laws) :, : config.states].reshape(*log_q.shape[:2], *chains.shape)
    one = of_laws(point, log_p[: len(laws)], log_q[:, :, : len(laws)])
    return one | of_texts(config, point, numerics.log_softmax(chains), of_chains)


def bent(log_p: Array) -> Array:
    """`[sampler, strength, rows, n]` the laws that the samplers make of these."""
    at = lambda f, strengths: jax.vmap(f)(jnp.array(strengths))
    best = at(lambda s: bregman.best_primal_k(log_p, price=s), PRICES)
    top = jnp.broadcast_to(jnp.array(TOP_K, best.dtype)[:, None], best.shape)
    wide = jnp.broadcast_to(log_p, (3, len(STRENGTHS), *log_p.shape))
    alpha = jnp.broadcast_to(jnp.array([1.0, 1.0, 2.0])[:, None, None], wide.shape[:-1])
    few = jnp.stack([
        at(lambda s: sampling.law(log_p, temperature=s), TEMPERATURES),
        at(lambda s: sampling.law(log_p, top_p=s), TOP_P),
        at(lambda s: sampling.law(log_p, min_p=s), MIN_P),
        at(lambda s: bregman.eta(log_p, epsilon=s), EPSILONS),
    ])  # fmt: skip
    primal = bregman.primal(wide, k=jnp.stack([top, best, best]), alpha=alpha)
    dual = bregman.dual(wide[:1], k=best[None], alpha=1.5)
    return jnp.concatenate([few, primal, dual])


def random_chains(config: ConfigDict, key: Array) -> Array:
    """Logits `[chains, states, states]`: Zipf's law with lognormal noise in every row."""
    zipf = -jnp.log(jnp.arange(1.0, config.states + 1))
    shape = config.chains, config.states, config.states
    return jnp.broadcast_to(zipf, shape) + config.noise * jax.random.normal(key, shape)


def entropy(log_q: Array) -> Array:
    """Of the last axis."""
    return -jnp.sum(jnp.exp(log_q) * jnp.where(log_q > -jnp.inf, log_q, 0), axis=-1)


def of_entropy(entropy_at: Callable[[Array], Array], target: Array) -> Array:
    """The log 1/T at which an entropy that falls in it is the target, by bisection."""

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        above = entropy_at(middle) > target
        return jnp.where(above, middle, ends[0]), jnp.where(above, ends[1], middle)

    low, high = jnp.full_like(target, -3), jnp.full_like(target, 6)
    low, high = jax.lax.fori_loop(0, 50, halve, (low, high))
    return (low + high) / 2


# ---------------------------------------------------------------------------------------- one token


def of_laws(point: dict, log_p: Array, log_q: Array) -> dict[str, Labelled]:
    """Divergences of each sampler, and of the tempered law of its entropy."""
    target = entropy(log_q)
    log_p = jnp.broadcast_to(log_p, log_q.shape)
    tempered = lambda x: numerics.log_softmax(jnp.exp(x)[..., None] * log_p)
    x = of_entropy(lambda x: entropy(tempered(x)), target)
    x = jnp.where(point["matched"] > 0, x, -jnp.log(0.7))
    log_t = tempered(x)
    kept = log_q > -jnp.inf
    size, price = jnp.sum(kept, axis=-1, dtype=target.dtype), PRICES[1]
    among = jnp.where(kept, log_p, -jnp.inf)
    first, second = jnp.stack([log_q, log_t, log_q, log_q]), jnp.stack([log_p, log_p, among, log_t])
    kl, of_tempered, sharing, apart = divergences.kl(first, second)
    lost, lost_by_tempered = divergences.total_variation(first[:2], second[:2])
    found = {
        "entropy": target,
        "kl": kl,
        "log_mass": constrained.log_mass(log_p, kept),
        "sharing": sharing,
        "gain": kl - of_tempered,
        "gain_of_variation": lost - lost_by_tempered,
        "to_tempered": jnp.exp(-x) * apart,
        "cost": kl + price * size,
        "cost_of_variation": lost + price * size,
        "agreement": jnp.sum(jnp.exp(2 * log_q), axis=-1),
        "agreement_of_tempered": jnp.sum(jnp.exp(2 * log_t), axis=-1),
    }
    by = {"sampler": SAMPLERS, "strength": STRENGTHS}
    return {k: labelled(jnp.moveaxis(y, -1, 0), "law", **by) for k, y in found.items()}


# -------------------------------------------------------------------------------------- whole texts


def of_texts(config: ConfigDict, point: dict, log_p: Array, log_q: Array) -> dict[str, Labelled]:
    """Rates of each sampler and of the tempered chain of its entropy: entropy, KL, repetition."""
    log_p = jnp.broadcast_to(log_p, log_q.shape)
    target, kl, again = rates(config, log_q, log_p)
    chain = lambda x: tempered_chain(log_p, x, point["whole"])
    x = of_entropy(lambda x: rates(config, chain(x), log_p, repeats=False)[0], target)
    _, least, again_of_tempered = rates(config, chain(x), log_p)
    found = {
        "entropy_rate": target,
        "kl_rate": kl,
        "gain_rate": kl - least,
        "repetition": again,
        "repetition_of_tempered": again_of_tempered,
    }
    by = {"sampler": SAMPLERS, "strength": STRENGTHS}
    return {k: labelled(jnp.moveaxis(y, -1, 0), "chain", **by) for k, y in found.items()}


def limit(x: Array) -> Array:
    """High powers of matrices, scaled to a largest entry of 1."""

    def square(_, x):
        x = x @ x
        return x / jnp.max(x, axis=(-2, -1), keepdims=True)

    return jax.lax.fori_loop(0, 12, square, x)


def tempered_chain(log_p: Array, x: Array, whole: Array) -> Array:
    """The chain whose texts have `p(text)^(1/T)`: rows `p^(1/T) v`, normalized, v the eigenvector.

    Or that of tempered tokens, without v.
    """
    logits = jnp.exp(x)[..., None, None] * log_p
    powers = jnp.exp(logits - jnp.max(logits, axis=(-2, -1), keepdims=True))
    log_v = jnp.log(jnp.sum(limit(powers), axis=-1))[..., None, :]
    return numerics.log_softmax(logits + jnp.where(whole > 0, log_v, 0))


def rates(config: ConfigDict, log_q: Array, log_p: Array, *, repeats: bool = True):
    """Entropy and KL of a token of a stationary text, and how often it is one of those before.

    The last is the mean over the window's distances s of `sum over a of pi(a) (Q^s)(a, a)`.
    """
    q = jnp.exp(log_q)
    # With itself mixed in a chain has the same stationary law, and no period.
    itself = jnp.broadcast_to(jnp.eye(q.shape[-1], dtype=q.dtype), q.shape)
    law = jnp.sum(limit((q + itself) / 2), axis=-2)
    law = law / jnp.sum(law, axis=-1, keepdims=True)
    mean = lambda by_state: jnp.sum(law * by_state, axis=-1)
    if not repeats:
        return (mean(entropy(log_q)),)

    def further(power, _):
        return power @ q, mean(jnp.diagonal(power, axis1=-2, axis2=-1))

    again = jnp.mean(jax.lax.scan(further, q, None, length=config.window)[1], axis=0)
    return mean(entropy(log_q)), mean(divergences.kl(log_q, log_p)), again


# ----------------------------------------------------------------------------------------- figures


def only(results: xr.Dataset) -> xr.Dataset:
    """Without the axes of the sweep, of which there is one value each."""
    return results.isel(matched=0, whole=0, seed=0)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Excess of KL by entropy for one token, and repetition by entropy for texts."""
    at = only(results)
    figure, axes = panels(3, width=4.0, height=4.0)
    for number, sampler in enumerate(SAMPLERS):
        own = at.sel(sampler=sampler)
        look = style(number, marker=True) | {"label": sampler}
        if number >= 7:
            look |= {"color": "#7f7f7f", "mfc": "white"}
        axes[0].plot(own.entropy.mean("law"), own.gain.mean("law").clip(0), **look)
        axes[1].plot(own.entropy_rate.mean("chain"), own.gain_rate.mean("chain"), **look)
        axes[2].plot(own.entropy_rate.mean("chain"), own.repetition.mean("chain"), **look)
    axes[0].set(xlabel="entropy of a token, nats", ylabel="KL above the tempered law's, nats")
    axes[1].set(
        xlabel="entropy of a token in texts, nats", ylabel="KL above the tempered text's, nats"
    )
    axes[2].set(
        xlabel="entropy of a token in texts, nats",
        ylabel=f"chance to be one of {config.window} before, each",
    )
    legend_above(figure, axes[0], columns=4)
    return {
        "samplers": Picture(
            figure,
            "Means over laws of SmolLM2 (left) and chains (middle, right), at three strengths of"
            " each sampler. Left: KL to the model above that of the tempered law of the same"
            " entropy; no sampler is below. Middle: the same for texts, where tempering token by"
            " token is above the tempered text as well. Right: the less entropy, the more often a"
            " token repeats one before it; of those that cut off most, fixed numbers of tokens the"
            " least.",
        )
    }


# ------------------------------------------------------------------------------------------ claims

FIXED = {"sweep.matched": (0.0,)}
BY_TOKEN = {"sweep.whole": (0.0,)}
DERIVED = "Derived: Lagrange's multiplier of the entropy; no number known"


@claim(source=DERIVED, reruns=(FIXED,), wrong=({"gain": "gain_of_variation"},))
def tempering_is_nearest_at_equal_entropy(results: xr.Dataset, gain: str = "gain") -> Finding:
    """The least KL(sampler‖model), of all laws and samplers, above that of the tempered law with
    the same entropy; total variation has no such order."""
    return at_least(-1e-9, only(results)[gain].min())


@claim(source=DERIVED, reruns=(FIXED,))
def the_excess_is_the_divergence_from_it(results: xr.Dataset) -> Finding:
    """By how much KL(sampler‖model) - KL(tempered‖model) differs from T KL(sampler‖tempered)."""
    at = only(results)
    return at_most(1e-9, np.abs(at.gain - at.to_tempered).max())


@claim(source="Derived; exact", wrong=({"shared": UNEVEN},))
def truncation_costs_the_logarithm_of_the_mass(
    results: xr.Dataset, shared: tuple[str, ...] = PROPORTIONAL
) -> Finding:
    """|KL + log mass| of truncations that share in proportion; and, of all of them, how far KL is
    from -log mass + KL(sampler‖in proportion), which other decoders add."""
    at = only(results)
    plain = np.abs(at.kl + at.log_mass).sel(sampler=list(shared)).max()
    every = np.abs(at.kl + at.log_mass - at.sharing).sel(sampler=[*PROPORTIONAL, *UNEVEN]).max()
    return together(at_most(1e-12, plain), at_most(1e-12, every))


@claim(
    source="Noarov et al. 2025 (arXiv:2505.19371): the best k",
    wrong=({"cost": "cost_of_variation"},),
)
def no_sampler_is_cheaper_than_the_best_k(results: xr.Dataset, cost: str = "cost") -> Finding:
    """KL and a price of .02 nats for each kept token, of any sampler, above that of the best k."""
    cost_of = only(results)[cost]
    best = cost_of.sel(sampler="best k", strength=STRENGTHS[1])
    return at_least(-1e-12, (cost_of - best).min())


@claim(source=f"{DERIVED}; Perron's eigenvector", reruns=(BY_TOKEN,))
def tempered_texts_are_not_texts_of_tempered_tokens(results: xr.Dataset) -> Finding:
    """KL of a token in a text above that of the tempered text with the same entropy: the least of
    all samplers and chains, and of temperature alone, which is not 0."""
    gain = only(results).gain_rate
    return together(
        at_least(-1e-9, gain.min()), at_least(1e-4, gain.sel(sampler="temperature").min())
    )


@claim(source="No number known", wrong=({"what": "entropy_rate"},))
def stronger_sampling_repeats_more(results: xr.Dataset, what: str = "repetition") -> Finding:
    """By how much the chance of a token to be one of those before it rises from each strength to
    the next stronger one, the mean of chains: the least of all samplers."""
    mean = only(results)[what].mean("chain").sel(strength=list(STRENGTHS))
    return at_most(0, mean.diff("strength").max())


@claim(
    source="No number known",
    wrong=({"of": ("temperature",)},),
)
def at_equal_entropy_truncation_agrees_less(
    results: xr.Dataset, of: tuple[str, ...] = PROPORTIONAL
) -> Finding:
    """The chance of two draws of SmolLM2's next token to agree, above that of two of the tempered
    law with the same entropy: the mean of laws, the most of all samplers."""
    at = only(results)
    apart = (at.agreement - at.agreement_of_tempered).mean("law")
    return at_most(-1e-4, apart.sel(sampler=list(of)).max())
