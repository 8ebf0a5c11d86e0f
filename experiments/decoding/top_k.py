"""Top-k decoding as the least Bregman divergence with a price on tokens (arXiv:2505.19371).

The paper's text was not at hand. The formulas follow from its definitions, and the reference
numbers are an independent computation.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, equals
from experiments.lab.plots import COLORS, MARKERS, Picture, curve, marks, panels, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, numerics
from jdiv.decoding import bregman
from jdiv.lm import sampling

AXES = {"proportional": fraction, "seed": seeds}
FIELDS = {
    "probabilities": each(fraction),
    "draws": count,
    "vectors": count,
    "vocabulary": count,
}
SOURCE = "Noarov et al. 2025 (arXiv:2505.19371)"
# The top three of (.5, .3, .1, .06, .04) by alpha.
PRIMAL = {
    0.5: (0.56494, 0.32954, 0.10552), 1.0: (0.55556, 0.33333, 0.11111),
    1.5: (0.54467, 0.33482, 0.12051), 2.0: (0.53333, 0.33333, 0.13333),
    3.0: (0.51531, 0.32487, 0.15982), 5.0: (0.50227, 0.31005, 0.18769),
    20.0: (0.5, 0.30001, 0.19999), 100.0: (0.5, 0.3, 0.2),
}  # fmt: skip
DUAL = {
    1.5: (0.54434, 0.33477, 0.12089), 2.0: (0.53333, 0.33333, 0.13333),
    3.0: (0.51697, 0.32685, 0.15618), 5.0: (0.50375, 0.31530, 0.18095),
}  # fmt: skip
BEST = {0.01: 5, 0.05: 4, 0.1: 3, 0.3: 2, 0.6: 1}
"""How many tokens to keep, by price in nats."""
PRIMAL_TRIED, DUAL_TRIED = (0.5, 1.0, 2.5), (1.5, 3.0)
"""The alphas of the decoders that all supports are tried with."""
DECODERS = tuple(f"{a:g}" for a in PRIMAL_TRIED) + tuple(f"dual {a:g}" for a in DUAL_TRIED)
TOKENS, PRICE, SHARE, TEMPERATURE = 6, 0.02, 0.1, 0.7
SUPPORTS = np.array([x for x in itertools.product((False, True), repeat=TOKENS) if any(x)])
SAMPLERS = "temperature", "top-p", "min-p", "eta"

PROPORTION = {"sweep.proportional": (1.0,), "draws": 5, "vectors": 10, "vocabulary": 1000}
SAVINGS = "KL", "total variation"
"""What one token more saves: the fall of KL, or the mass that it brings."""


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The table, all supports, the samplers as minima, and the search on a vocabulary."""
    of_laws, of_vectors = jax.random.split(key)
    log_x = jnp.log(jnp.array(config.probabilities))
    laws = jax.random.dirichlet(of_laws, jnp.full(TOKENS, 0.7), (config.draws,))
    prices, ks = jnp.array(tuple(BEST)), jnp.arange(1.0, log_x.size + 1)
    mass = jnp.cumsum(jnp.sort(jnp.exp(log_x))[::-1])
    costs = -jnp.log(mass)[None] + prices[:, None] * ks[None]
    each_price = jnp.broadcast_to(log_x, (prices.size, log_x.size))
    return {
        "best_k": labelled(best(each_price, prices), saving=SAVINGS, price=tuple(BEST)),
        "cost": labelled(costs, price=tuple(BEST), k=range(1, log_x.size + 1)),
        **tried(point, log_x, laws),
        "sampler_excess": labelled(samplers(laws), saving=SAVINGS, sampler=SAMPLERS),
        "differing": labelled(searched(config, of_vectors), saving=SAVINGS),
    }


def best(logits: Array, prices: Array) -> Array:
    """The best k `[saving, rows]`: by the binary search, and the tokens with more mass than price.

    The second is the best k with total variation in place of KL.
    """
    heavy = jnp.exp(numerics.log_softmax(logits)) > prices[:, None]
    of_mass = jnp.maximum(jnp.sum(heavy, axis=-1, dtype=jnp.int32), 1)
    return jnp.stack([bregman.best_primal_k(logits, price=prices), of_mass])


# ----------------------------------------------------------------------------------- all supports


def on_support(x: Array, kept: Array, alpha: Array, *, dual: bool) -> Array:
    """The law `[n]` with the least divergence on a support, by bisection in the common slope."""
    c, most = alpha - 1, jnp.max(jnp.where(kept, x, 0))
    safe = jnp.where(kept, x, most)
    deformed = lambda p: numerics.scaled_expm1(jnp.log(p), c)

    def by_token(nu):
        if not dual:
            return jnp.exp(numerics.scaled_log1p(deformed(safe) + nu, c))
        slope = lambda p: p ** (alpha - 2) * (p - safe)
        return bisected(lambda p: slope(p) < nu, safe, jnp.ones_like(safe))

    total = lambda nu: jnp.sum(jnp.where(kept, by_token(nu), 0))
    # At the end the most probable token alone has all mass.
    high = jnp.ones_like(most) if dual else -deformed(most)
    nu = bisected(lambda nu: total(nu) < 1, jnp.zeros_like(most), high)
    return jnp.where(kept, by_token(nu), 0)


def bisected(below, low: Array, high: Array) -> Array:
    """Where a statement that holds at low, and not at high, begins to fail."""

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        holds = below(middle)
        return jnp.where(holds, middle, ends[0]), jnp.where(holds, ends[1], middle)

    ends = jax.lax.fori_loop(0, 60, halve, (low, high))
    return (ends[0] + ends[1]) / 2


def tried(point: dict, log_x: Array, laws: Array) -> dict[str, Labelled]:
    """The table, and against all supports: excess of the decoder's cost, and of the cheapest k.

    And the least second difference of the divergence, along supports that grow in the order of the
    probabilities and in the order in which the tokens stand.
    """
    of_primal = of_decoders(point, log_x, laws, tuple(PRIMAL), PRIMAL_TRIED, dual=False)
    of_dual = of_decoders(point, log_x, laws, tuple(DUAL), DUAL_TRIED, dual=True)
    (primal, *found), (dual, *more) = of_primal, of_dual
    excess, greedy, convex = (jnp.concatenate(x) for x in zip(found, more, strict=True))
    chains = "by probability", "as they stand"
    return {
        "primal": labelled(primal, alpha=tuple(PRIMAL), token=(1, 2, 3)),
        "dual": labelled(dual, alpha_of_dual=tuple(DUAL), token=(1, 2, 3)),
        "excess": labelled(excess, decoder=DECODERS),
        "greedy_excess": labelled(greedy, decoder=DECODERS),
        "second_difference": labelled(convex, decoder=DECODERS, chain=chains),
    }


def of_decoders(point: dict, log_x: Array, laws: Array, of_table, alphas, *, dual: bool):
    """The same of the decoders of one side, the worst of all laws: one program for all alphas."""
    best_k, law = (
        (bregman.best_dual_k, bregman.dual) if dual else (bregman.best_primal_k, bregman.primal)
    )
    draws, count = len(laws), len(of_table)
    rows = jnp.tile(jnp.log(laws), (len(alphas), 1))
    alpha = jnp.repeat(jnp.array(alphas), draws)
    k = best_k(rows, price=PRICE, alpha=alpha)
    padded = jnp.pad(log_x, (0, TOKENS - log_x.size), constant_values=-jnp.inf)
    rows = jnp.concatenate([jnp.broadcast_to(padded, (count, TOKENS)), rows])
    p = jnp.exp(law(
        rows,
        k=jnp.concatenate([jnp.full(count, 3, k.dtype), k]),
        alpha=jnp.concatenate([jnp.array(of_table), alpha]),
    ))  # fmt: skip
    plain = jnp.where(p > 0, jnp.exp(rows), 0)
    plain = plain / jnp.sum(plain, axis=1, keepdims=True)
    p = jnp.where(point["proportional"] > 0, plain, p)

    # All divergences at once, of the decoders behind those of all supports.
    kept = jnp.broadcast_to(jnp.array(SUPPORTS), (draws, len(SUPPORTS), TOKENS))
    every = jax.vmap(lambda x, kept, a: on_support(x, kept, a, dual=dual), (None, 0, None))
    laws_of = jax.vmap(lambda a: jax.vmap(every, (0, 0, None))(laws, kept, a))(jnp.array(alphas))
    own = p[count:].reshape(len(alphas), draws, 1, TOKENS)
    laws_of = jnp.concatenate([laws_of, own], axis=2)
    x = jnp.broadcast_to(laws[:, None], laws_of.shape[1:])
    sides = [jnp.log(laws_of), jnp.broadcast_to(jnp.log(x), laws_of.shape)]
    by_row = jnp.broadcast_to(jnp.array(alphas)[:, None, None], laws_of.shape[:-1])
    distance = divergences.bregman(*(sides[::-1] if dual else sides), alpha=by_row)

    size = jnp.array(SUPPORTS.sum(axis=1), laws.dtype)
    least = jnp.min(distance[:, :, :-1] + PRICE * size[None, None], axis=2)
    excess = distance[:, :, -1] + PRICE * k.reshape(len(alphas), draws).astype(laws.dtype) - least
    along = distance[:, jnp.arange(draws)[:, None, None], chains(laws)]
    greedy = jnp.min(along[:, :, 0] + PRICE * jnp.arange(1.0, TOKENS + 1)[None, None], axis=2)
    convex = jnp.min(jnp.diff(along, n=2, axis=3), axis=(1, 3))
    return p[:count, :3], jnp.max(jnp.abs(excess), axis=1), jnp.max(greedy - least, axis=1), convex


def chains(laws: Array) -> Array:
    """Indices `[laws, 2, k]` of supports that grow by probability, and as the tokens stand."""
    place = jnp.argsort(jnp.argsort(-laws, axis=1), axis=1)
    places = jnp.stack([place, jnp.broadcast_to(jnp.arange(TOKENS), place.shape)], axis=1)
    kept = places[:, :, None] < jnp.arange(1, TOKENS + 1)[None, None, :, None]
    bits = 2 ** jnp.arange(TOKENS)[::-1]
    return jnp.sum(jnp.where(kept, bits, 0), axis=3) - 1  # SUPPORTS counts in binary, from 1


# --------------------------------------------------------------------------- samplers and searches


def samplers(laws: Array) -> Array:
    """By how much each misses a minimum, `[saving, sampler]`, the worst of all laws.

    Temperature: the least `KL(p‖x) + (1 - T) H(p)`, `-T log sum x^(1/T)`. Top-p: the fewest tokens
    with `KL(p‖x) <= -log top_p`. Min-p, eta: the least total variation and price, not KL and price.
    """
    log_x, supports = jnp.log(laws), jnp.array(SUPPORTS)
    log_p = sampling.law(log_x, temperature=TEMPERATURE)
    p = jnp.exp(log_p)
    value = jnp.sum(p * (TEMPERATURE * log_p - log_x), axis=1)
    least = -TEMPERATURE * jax.nn.logsumexp(log_x / TEMPERATURE, axis=1)

    mass = laws @ supports.T.astype(laws.dtype)
    size = jnp.array(SUPPORTS.sum(axis=1), laws.dtype)
    fewest = jnp.min(jnp.where(mass >= 1 - SHARE, size[None], TOKENS), axis=1)
    of_top_p = jnp.sum(sampling.law(log_x, top_p=1 - SHARE) > -jnp.inf, axis=1, dtype=laws.dtype)

    entropy = -jnp.sum(laws * log_x, axis=1)
    prices = SHARE * jnp.max(laws, axis=1), jnp.minimum(SHARE, SHARE**0.5 * jnp.exp(-entropy))
    truncated = sampling.law(log_x, min_p=SHARE), bregman.eta(log_x, epsilon=SHARE)

    def excess(lost, price, log_p):
        costs = lost + price[:, None] * size[None]
        kept = jnp.all((log_p > -jnp.inf)[:, None] == supports[None], axis=2)
        return jnp.max(jnp.sum(jnp.where(kept, costs, 0), axis=1) - jnp.min(costs, axis=1))

    own = [jnp.max(jnp.abs(value - least)), jnp.max(jnp.abs(of_top_p - fewest))]
    of_price = list(zip(prices, truncated, strict=True))
    return jnp.stack([
        jnp.stack([*own, *(excess(lost, *x) for x in of_price)])
        for lost in (-jnp.log(mass), 1 - mass)
    ])  # fmt: skip


def searched(config: ConfigDict, key: Array) -> Array:
    """On how many vectors the binary search and trying every k differ.

    Zipf's laws of exponents .7 to 1.6 with lognormal noise, prices from 1e-6 to .3.
    """
    ranks = jnp.log(jnp.arange(1.0, config.vocabulary + 1))

    def one(key):
        of_noise, of_numbers = jax.random.split(key)
        exponent, place = jax.random.uniform(of_numbers, (2,))
        price = jnp.exp(jnp.log(1e-6) + place * jnp.log(0.3 / 1e-6))
        noise = jax.random.normal(of_noise, (config.vocabulary,))
        log_x = numerics.log_softmax(noise - (0.7 + 0.9 * exponent) * ranks)
        mass = jnp.cumsum(-jnp.sort(-jnp.exp(log_x)))
        costs = -jnp.log(mass) + price * jnp.arange(1.0, config.vocabulary + 1)
        return best(log_x[None], price[None])[:, 0] != (jnp.argmin(costs) + 1).astype(jnp.int32)

    found = jax.lax.map(one, jax.random.split(key, config.vectors))
    return jnp.sum(found, axis=0, dtype=jnp.int32)


# ---------------------------------------------------------------------------------------- figures


def _first(results: xr.Dataset) -> xr.Dataset:
    return results.isel(proportional=0, seed=0)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """How the mass is shared by alpha, and what k tokens cost."""
    figure, (left, right) = panels(2)
    at = _first(results)
    for number, token in enumerate(at.token.values):
        look = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 5}
        curve(left, "alpha", at.primal.sel(token=token), label=f"token {token}, primal", **look)
        dual = at.dual.sel(token=token)
        curve(
            left,
            "alpha_of_dual",
            dual,
            linestyle="--",
            label=f"token {token}, dual",
            **look | {"mfc": "white"},
        )
        reference = [row[number] for row in PRIMAL.values()]
        marks(left, tuple(PRIMAL), reference, "reference" if number == 0 else "")
    left.set(xscale="log", xlabel="α of the divergence", ylabel="probability", ylim=(0, 0.85))
    ticks(left, x=(0.5, 1, 2, 5, 20, 100))
    left.legend(fontsize="small", ncols=2, loc="upper right")
    for number, price in enumerate(at.price.values):
        cost = at.cost.sel(price=price)
        curve(right, "k", cost, label=f"{price:g}", **style(number, marker=True))
        k = int(at.best_k.sel(saving="KL", price=price))
        right.plot(k, cost.sel(k=k), "o", mfc="none", mec="black", ms=12, clip_on=False)
    right.set(xlabel="k, tokens kept", ylabel="KL(p‖x) + price · k, nats", ylim=(0, 3.2))
    right.set_xticks(at.k.values)
    right.legend(title="price, nats", ncols=2, loc="upper left")
    return {
        "top_k": Picture(
            figure,
            "The law (.5, .3, .1, .06, .04). Left: how its top three share the mass of the others;"
            " in proportion at α = 1, alike at 2, at large α all goes to the smallest; the dual is"
            " near. Right: the cost of keeping k tokens is convex in k; circles are what the binary"
            " search finds.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


@claim(
    source=f"{SOURCE}; an independent computation",
    reference=[*PRIMAL.values(), *DUAL.values()],
    reruns=(PROPORTION,),
)
def renormalized_top_three(results: xr.Dataset) -> Finding:
    """The top three of (.5, .3, .1, .06, .04), for eight primal decoders and four dual ones, to the
    reference's five digits."""
    at = _first(results)
    found = [*at.primal.transpose("alpha", "token"), *at.dual.transpose("alpha_of_dual", "token")]
    return equals([*PRIMAL.values(), *DUAL.values()], np.stack(found), decimals=5)


@claim(
    source=f"{SOURCE}; an independent computation",
    reference=list(BEST.values()),
    wrong=({"saving": "total variation"},),
)
def tokens_by_price(results: xr.Dataset, saving: str = "KL") -> Finding:
    """With KL the same law keeps 5, 4, 3, 2, 1 tokens at prices .01, .05, .1, .3, .6."""
    return equals(list(BEST.values()), _first(results).best_k.sel(saving=saving))


@claim(source=f"{SOURCE}: all supports, by bisection", reruns=(PROPORTION,))
def no_support_is_cheaper(results: xr.Dataset) -> Finding:
    """The largest difference between the decoder's cost, at the k of its binary search, and the
    least of all 63 supports of six tokens, for random laws and each decoder."""
    return at_most(1e-12, _first(results).excess)


@claim(
    source=f"{SOURCE}: optimal decoders are greedy, and their cost convex in k",
    wrong=({"chain": "as they stand"},),
)
def convex_in_k(results: xr.Dataset, chain: str = "by probability") -> Finding:
    """The least second difference of the divergence as the support grows by the next most probable
    token; and by how much, negated, such a support is dearer than the best of all 63."""
    at = _first(results)
    return at_least(-1e-12, np.stack([at.second_difference.sel(chain=chain), -at.greedy_excess]))


@claim(source=f"{SOURCE}: the k by binary search", wrong=({"saving": "total variation"},))
def binary_search_is_exhaustive(results: xr.Dataset, saving: str = "KL") -> Finding:
    """The number of vectors, Zipf's with noise at random prices, on which the binary search finds
    another k than the least cost of all k."""
    return equals(0, _first(results).differing.sel(saving=saving))


@claim(
    source="Derived: temperature, top-p, min-p and eta (arXiv:2210.15191) as minima",
    wrong=({"saving": "KL"},),
)
def samplers_are_minima(results: xr.Dataset, saving: str = "total variation") -> Finding:
    """How far each sampler is from the minimum that it is: temperature of KL(p‖x) + (1 - T) H(p),
    top-p of the number of tokens within KL <= -log p, min-p and eta of total variation with prices
    .1 max x and min(.1, .1^.5 e^-H)."""
    return at_most(1e-12, _first(results).sampler_excess.sel(saving=saving))
