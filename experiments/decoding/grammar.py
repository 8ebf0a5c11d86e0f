"""A grammar over characters on the tokens of a real model: valid texts, and what their weights say.

SmolLM2 answers two questions by a JSON list, as it did in the example before. Lists of `true`,
`false` and `null` are a finite automaton over characters; lifted onto the model's vocabulary it has
45 tokens, which write the same list in several ways. All its lists of up to six tokens, the end of
the line included, are few enough to be enumerated, so that the model's probability of writing one,
and its law of those it writes, are known.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import smollm2
from experiments.lab.axes import count, fraction, non_negative, seeds
from experiments.lab.claims import Finding, at_most, claim, equals, within
from experiments.lab.plots import COLORS, Picture, panels
from experiments.lab.results import Labelled, labelled
from jdiv.decoding import Automaton, automata, constrained, smc

AXES = {"constrained": fraction, "weighted": non_negative, "seed": seeds}
"""1, or 0 to allow every token; the power of the weights, of which 0 leaves them away."""
FIELDS = {"particles": count}
SAMPLERS = {
    "everywhere": constrained.locally_constrained,
    "AWRS": constrained.awrs_recursive,
}
RESAMPLING = {"never": 0.0, "always": 1.0}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The probability of a list by sums from the end backwards, and weighted texts."""
    table = smollm2.table()
    log_p, children = jnp.asarray(table.log_p, float), jnp.asarray(table.children)
    automaton = lines(table.words, point["constrained"])
    mass = automata.log_acceptance(log_p, children, automaton, horizon=smollm2.LONGEST)

    def step(row, token):
        row = jnp.where(token < 0, row, children[row, jnp.maximum(token, 0)])
        return row, log_p[row]

    def drawn(sampler, key):
        start = jnp.zeros(config.particles, jnp.int32)
        return jax.vmap(
            lambda threshold, key: smc.smc(
                step, start, start - 1, automaton, key, horizon=smollm2.LONGEST,
                threshold=threshold, sampler=sampler,
            )
        )(jnp.array(tuple(RESAMPLING.values())), jax.random.split(key))  # fmt: skip

    keys = jax.random.split(key, len(SAMPLERS))
    found = [drawn(x, key) for x, key in zip(SAMPLERS.values(), keys, strict=True)]
    found = jax.tree.map(lambda *x: jnp.moveaxis(jnp.stack(x), 2, 0), *found)
    kinds = {"sampler": tuple(SAMPLERS), "resampling": tuple(RESAMPLING)}
    weights = point["weighted"] * found.log_weights
    return {
        "mass": jnp.exp(mass[-1, 0, 0]),
        "tokens": labelled(jnp.moveaxis(found.tokens, -1, 1), "particle", "place", **kinds),
        "log_weights": labelled(weights, "particle", **kinds),
        "estimate": labelled(jnp.mean(jnp.exp(weights), axis=0), **kinds),
        "calls": labelled(jnp.mean(found.calls, axis=0, dtype=float), **kinds),
    }


def lines(words: np.ndarray, only: Array) -> Automaton:
    """Lists and the end of the line, which goes on for ever; or all tokens, if not only lists."""
    end, lists = len(words) - 1, smollm2.json_lists()
    lifted = automata.lifted(lists, smollm2.in_symbols(words[:end].tolist()))
    ended = jnp.where(lifted.accepting, len(lists.accepting), -1)
    successors = jnp.column_stack([lifted.successors, ended])
    free = jnp.where(jnp.arange(end + 1) < end, 0, len(lists.accepting))
    successors = jnp.where(only > 0, successors, free[None].astype(successors.dtype))
    at_end = jnp.where(jnp.arange(end + 1) < end, -1, len(lists.accepting))
    successors = jnp.concatenate([successors, at_end[None].astype(successors.dtype)])
    return Automaton(successors, jnp.arange(len(successors)) == len(lists.accepting))


# ------------------------------------------------------------------- the same, by the JSON parser


def is_list(text: str) -> bool:
    """Whether a parser reads a list of true, false and null."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, list) and all(x is None or isinstance(x, bool) for x in found)


@functools.cache
def enumerated() -> dict[tuple[int, ...], tuple[str, float, float]]:
    """Of each list in its tokens: the text, the model's probability, and that of exclusion alone.

    Along the stored beginnings; which of them is a list is the parser's word.
    """
    table = smollm2.table()
    end = len(table.words) - 1
    found = {}

    def walk(row, tokens, text, p, q):
        ends = is_list(text)
        after = [x for x in np.flatnonzero(table.children[row]) if x < end] + [end] * ends
        law = np.exp(table.log_p[row].astype(float))
        law = law / law.sum()
        for token in after:
            own = p * law[token], q * law[token] / law[after].sum()
            if token == end:
                padded = *tokens, *[end] * (smollm2.LONGEST - len(tokens))
                found[padded] = text, *own
            else:
                walk(table.children[row, token], (*tokens, token), text + table.words[token], *own)

    walk(0, (), "", 1.0, 1.0)
    return found


def by_text(x: dict[tuple[int, ...], float]) -> dict[str, float]:
    """What is known of lists in tokens, summed over all ways to write one, spaces or not."""
    summed = {}
    for tokens, value in x.items():
        text = json.dumps(json.loads(enumerated()[tokens][0]))
        summed[text] = summed.get(text, 0.0) + value
    return summed


def exact() -> dict[tuple[int, ...], float]:
    """The model's law of the lists that it writes."""
    total = sum(p for _, p, _ in enumerated().values())
    return {tokens: p / total for tokens, (_, p, _) in enumerated().items()}


def excluded() -> dict[tuple[int, ...], float]:
    """The law of texts whose tokens are drawn among those that are allowed."""
    return {tokens: q for tokens, (_, _, q) in enumerated().items()}


def drawn_law(results: xr.Dataset, sampler: str, resampling: str, power: float = 1.0) -> dict:
    """Of weighted texts of all seeds; each seed counts by its weights."""
    at = results.isel(constrained=0, weighted=0).sel(sampler=sampler, resampling=resampling)
    tokens = at.tokens.transpose("seed", "particle", "place").values.reshape(-1, smollm2.LONGEST)
    weights = np.exp(power * at.log_weights.transpose("seed", "particle").values.ravel())
    law = dict.fromkeys(enumerated(), 0.0)
    for row, weight in zip(map(tuple, tokens.tolist()), weights / weights.sum(), strict=True):
        law[row] = law.get(row, 0.0) + weight
    return law


def apart(p: dict, q: dict) -> float:
    """Total variation."""
    return sum(abs(p.get(x, 0.0) - q.get(x, 0.0)) for x in p.keys() | q.keys()) / 2


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The law of lists, and estimates of their probability."""
    figure, (left, right) = panels(2)
    laws = {"the model's": exact(), "allowed tokens": excluded()}
    laws |= {"AWRS, weighted": drawn_law(results, "AWRS", "never")}
    laws = {name: by_text({x: law[x] for x in enumerated()}) for name, law in laws.items()}
    texts = sorted(laws["the model's"], key=lambda x: -laws["the model's"][x])[:6]
    for number, (name, law) in enumerate(laws.items()):
        places = np.arange(len(texts)) + 0.27 * (number - 1)
        left.barh(places, [law[x] for x in texts], 0.25, color=COLORS[number], label=name)
    left.set_yticks(range(len(texts)), texts)
    left.invert_yaxis()
    left.set(xlabel="probability among lists")
    left.legend(loc="lower right", fontsize="small")
    at = results.isel(constrained=0, weighted=0)
    names = []
    for number, sampler in enumerate(SAMPLERS):
        for place, resampling in enumerate(RESAMPLING):
            y = at.estimate.sel(sampler=sampler, resampling=resampling)
            names.append(f"{sampler},\n{resampling}")
            x = np.full(y.size, 2 * number + place)
            right.plot(x, y, "o", color=COLORS[number], alpha=0.6, clip_on=False)
    right.axhline(at.mass.isel(seed=0).item(), color="black", label="exact")
    right.set_xticks(range(4), names)
    right.set(ylabel="mean weight", xlabel="constraint evaluated, resampled")
    right.margins(0.15)
    right.legend(loc="best", fontsize="small")
    return {
        "lists": Picture(
            figure,
            "JSON lists by SmolLM2, all ways to write one together. Left: the six most probable;"
            " tokens drawn among those that are allowed have another law of lists than the model,"
            " which weights restore. Right: the mean weight of each seed is about the probability"
            " that the model writes a list of at most six tokens.",
        )
    }


# ------------------------------------------------------------------------------------------ claims

FREE = {"sweep.constrained": (0.0,)}
UNWEIGHTED = {"sweep.weighted": (0.0,)}
BY_PARSER = "Enumeration, with Python's JSON parser"


@claim(source=BY_PARSER, reruns=(FREE,))
def every_text_is_a_list(results: xr.Dataset) -> Finding:
    """The share of texts, of each sampler with and without resampling, that a JSON parser reads as
    a list of true, false and null, and that are over at the end of the line."""
    shares = []
    for sampler in SAMPLERS:
        for resampling in RESAMPLING:
            law = drawn_law(results, sampler, resampling, power=0.0)
            shares.append(sum(p for tokens, p in law.items() if reads(tokens)))
    return equals(1, shares, tolerance=1e-12)


def reads(tokens: tuple[int, ...]) -> bool:
    """Whether a parser reads these tokens up to the first end, and ends follow."""
    words = smollm2.table().words
    end = len(words) - 1
    first = tokens.index(end) if end in tokens else len(tokens)
    text = "".join("?" if words[x] == "" else words[x] for x in tokens[:first])
    return first < len(tokens) and set(tokens[first:]) == {end} and is_list(text)


@claim(source=BY_PARSER, reruns=(FREE,))
def the_recursion_is_exact(results: xr.Dataset) -> Finding:
    """The probability of a list by sums over states, over that by the sum over all 89 lists, less
    one."""
    total = sum(p for _, p, _ in enumerated().values())
    return at_most(1e-12, np.abs(results.mass / total - 1).max())


@claim(source="Lipkin et al. 2025 (arXiv:2504.05410); enumeration", reruns=(UNWEIGHTED,))
def the_mean_weight_is_the_probability_of_a_list(results: xr.Dataset) -> Finding:
    """The mean weight over seeds, of each sampler with and without resampling, within four standard
    errors of the sum over all lists."""
    total = sum(p for _, p, _ in enumerated().values())
    return within(total, results.estimate.isel(constrained=0, weighted=0))


@claim(source="Lipkin et al. 2025 (arXiv:2504.05410); enumeration", wrong=({"power": 0.0},))
def weights_give_the_law_of_the_models_lists(results: xr.Dataset, power: float = 1.0) -> Finding:
    """The total variation between weighted texts of both samplers and the model's law of lists."""
    laws = [drawn_law(results, sampler, "never", power) for sampler in SAMPLERS]
    return at_most(0.05, [apart(law, exact()) for law in laws])
