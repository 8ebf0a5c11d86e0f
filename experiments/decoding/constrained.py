"""Sampling under a constraint: how many calls it takes, and the law that is sampled from.

One token: seven of which three are allowed, of mass Z. A sampler's weights have to have the mean
`p_a` for each allowed token a. Texts: two tokens that have to end in `a`, by a model that writes
`a` first and `b` after it; renormalized token by token they have another law than the model's texts
that end so, which importance weights or resampling correct and more texts alone do not.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, inside, non_negative, seeds
from experiments.lab.claims import Finding, at_most, claim, equals, together
from experiments.lab.plots import Picture, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences
from jdiv.decoding import Automaton, automata, constrained, smc

AXES = {"first": inside(0, 1), "weighted": non_negative, "also": fraction, "seed": seeds}
"""Of the mass of `a` in the first place, of `b` after `a` and of `a` after `b`; the power of the
weights, of which 0 leaves them away; and 1 if the first of seven tokens is allowed as well."""
FIELDS = {
    "probabilities": each(inside(0, 1)),
    "draws": count,
}
SAMPLERS = ("everywhere", "recursive", "geometric, 2", "geometric, 4")
ENDS_IN_A = Automaton(np.array([[0, 1], [0, 1]]), np.array([True, False]))
CHILDREN = np.array([[1, 2]] * 3)
MASSES = np.geomspace(0.01, 0.9, 40)
TEXTS = ("aa", "ba")
WITHOUT_BB = Automaton(np.array([[0, 1], [0, -1]]), np.array([True, True]))
PIECES = ("a", "b", "ab", "ba", "bb")
READ = ("all letters", "first letters")
"""How tokens of several letters are led through an automaton over letters."""


def samples(config: ConfigDict, log_p: Array, where: Array, key: Array) -> constrained.Weighted:
    """`[samplers, draws]` of every sampler, the constraint a function of the last three."""
    wide = jnp.broadcast_to(log_p[None], (config.draws, len(log_p)))
    allows = lambda tokens: where[tokens]
    twice = [
        constrained.awrs_geometric(wide, allows, key, accepts=accepts) for accepts in (2.0, 4.0)
    ]
    all_of_them = [
        constrained.locally_constrained(wide, where, key),
        constrained.awrs_recursive(wide, allows, key),
        *twice,
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *all_of_them)


def one_token(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Weights by token, calls, and what both are exactly."""
    log_p, where = jnp.log(jnp.array(config.probabilities)), jnp.array(config.allowed)
    where = where.at[0].set(where[0] | (point["also"] > 0))
    found = samples(config, log_p, where, key)
    weights = jnp.exp(point["weighted"] * found.log_weights)
    indicator = jax.nn.one_hot(found.tokens, len(log_p), dtype=weights.dtype)
    law = constrained.exclude(log_p, where)
    by = {"sampler": SAMPLERS}
    # Calls by mass: all allowed tokens scaled together, the others likewise.
    share = lambda z: jnp.where(where, law + jnp.log(z), _others(log_p, where) + jnp.log1p(-z))
    scaled = jax.vmap(share)(jnp.array(MASSES))
    return {
        "weight": labelled(jnp.mean(weights[..., None] * indicator, axis=1), "sampler", "token"),
        "square": labelled(
            jnp.mean(weights[..., None] ** 2 * indicator, axis=1), "sampler", "token"
        ),
        "calls": labelled(jnp.mean(found.calls, axis=1, dtype=float), **by),
        "kl": divergences.kl(law, log_p),
        "log_mass": constrained.log_mass(log_p, where),
        "expected": labelled(_expected(log_p[None], where)[:, 0], expected_for=(1, 2, 4)),
        "by_mass": labelled(_expected(scaled, where), expected_for=(1, 2, 4), mass=MASSES),
    }


def _others(log_p: Array, where: Array) -> Array:
    return constrained.exclude(log_p, ~where)


def _expected(log_p: Array, where: Array) -> Array:
    accepts = jnp.array([1.0, 2.0, 4.0])
    return jax.vmap(lambda r: constrained.expected_calls(log_p, where, accepts=r))(accepts)


def texts(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The exact law of texts that end in `a`, that of local renormalization, and particles."""
    first = point["first"]
    logits = jnp.log(jnp.array([[first, 1 - first], [1 - first, first], [first, 1 - first]]))
    exact = automata.conditional(logits, CHILDREN, ENDS_IN_A, horizon=2)[1, 0, 0]
    mass = automata.log_acceptance(logits, CHILDREN, ENDS_IN_A, horizon=2)[2, 0, 0]
    rule = automata.rule(ENDS_IN_A, max_tokens=2)
    local = jax.nn.log_softmax(rule.logits(logits[:1], jnp.array([[0, 2]]))[0])

    def step(row, token):
        row = jnp.where(token < 0, row, jnp.asarray(CHILDREN)[row, jnp.maximum(token, 0)])
        return row, logits[row]

    def particles(threshold, key):
        start = jnp.zeros(config.draws, jnp.int32)
        found = smc.smc(
            step, start.astype(int), start - 1, ENDS_IN_A, key, horizon=2, threshold=threshold
        )
        weights = jnp.exp(point["weighted"] * (found.log_weights - jnp.max(found.log_weights)))
        ends = jnp.stack([found.tokens[:, 0] == 0, found.tokens[:, 0] == 1]).astype(weights.dtype)
        valid = jnp.mean(found.tokens[:, 1] == 0, dtype=float)
        estimate = jnp.mean(jnp.exp(found.log_weights))
        return ends @ weights / jnp.sum(weights), ends.mean(1), estimate, found.sizes[-1], valid

    found = jax.vmap(particles)(jnp.array([0.0, 1.0]), jax.random.split(key))
    law, raw, estimate, sizes, valid = found
    kinds = {"resampling": ("never", "always")}
    both = kinds | {"text": TEXTS}
    return {
        "exact": labelled(jnp.exp(exact), text=TEXTS),
        "local": labelled(jnp.exp(local), text=TEXTS),
        "bias": divergences.kl(exact, local),
        "of_accepted": jnp.exp(mass),
        "weighted_law": labelled(law, **both),
        "unweighted_law": labelled(raw, **both),
        "estimate": labelled(estimate, **kinds),
        "size": labelled(sizes, **kinds),
        "valid": labelled(valid, **kinds),
    }


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """One token, texts of two, and those of tokens of several letters."""
    of_token, of_text = jax.random.split(key)
    of_pieces = jax.random.fold_in(key, 2)
    return one_token(config, point, of_token) | texts(config, point, of_text) | pieces(of_pieces)


def pieces(key: Array) -> dict[str, Labelled]:
    """Texts of two tokens without `bb`, a model's law of them `[read, first, second]`.

    By the lifted automaton, which reads each letter of a token, and by the first letters alone; and
    by enumeration, where a text is looked at as a whole.
    """
    log_p = jax.nn.log_softmax(jax.random.normal(key, (1 + len(PIECES), len(PIECES))))
    children = np.broadcast_to(np.arange(1, 1 + len(PIECES)), log_p.shape)
    letters = np.array([["ab".find(x) for x in piece.ljust(2)] for piece in PIECES])

    def law(tokens: np.ndarray) -> Array:
        lifted = automata.lifted(WITHOUT_BB, jnp.asarray(tokens))
        by_state = automata.conditional(log_p, children, lifted, horizon=2)
        after = lifted.successors[0]
        second = by_state[0, 1 + np.arange(len(PIECES)), jnp.maximum(after, 0)]
        return jnp.where(after[:, None] < 0, 0, jnp.exp(by_state[1, 0, 0][:, None] + second))

    clean = np.array([["bb" not in x + y for y in PIECES] for x in PIECES])
    exact = jnp.where(clean, jnp.exp(log_p[0][:, None] + log_p[1:]), 0)
    laws = jnp.stack([law(letters), law(letters[:, :1])])
    return {
        "law_error": labelled(
            jnp.max(jnp.abs(laws - (exact / jnp.sum(exact))[None]), axis=(1, 2)), read=READ
        ),
        "forbidden": labelled(jnp.sum(jnp.where(clean[None], 0, laws), axis=(1, 2)), read=READ),
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Calls by KL, and the laws of texts."""
    figure, (left, right) = panels(2)
    kl = -np.log(MASSES)
    first = alone(results).isel(seed=0)
    left.plot(kl, np.exp(kl), label="with replacement: exp(KL)", **style(0))
    for number, accepts in enumerate((1, 2, 4), 1):
        line = first.by_mass.sel(expected_for=accepts)
        left.plot(kl, line, label=f"without, to allowed draw {accepts}", **style(number))
    left.axhline(len(config.probabilities), color="black", linewidth=0.8, label="a mask of all")
    left.set(yscale="log", xlabel="KL(π‖p) = -log Z, nats", ylabel="calls of the constraint")
    left.set_ylim(1, 120)
    left.legend(fontsize="x-small", loc="upper left")
    x = np.arange(2)
    bars = {
        "exact": first.exact,
        "local": first.local,
        "weighted": alone(results).weighted_law.sel(resampling="never").mean("seed"),
        "resampled": alone(results).weighted_law.sel(resampling="always").mean("seed"),
    }
    for number, (name, y) in enumerate(bars.items()):
        look = {"color": style(number)["color"], "label": name}
        right.bar(x + 0.2 * (number - 1.5), y, width=0.18, **look)
    right.set(xlabel="text", ylabel="probability", ylim=(0, 1.25))
    right.set_xticks(x, TEXTS)
    right.legend(fontsize="small", ncols=2, loc="upper center")
    return {
        "constraint": Picture(
            figure,
            "Left: mean calls by what exclusion costs in KL; rejection with replacement takes"
            " exp(KL), without it no more than there are tokens. Right: texts that end in `a`;"
            " local renormalization has another law, weights and resampling the exact one.",
        )
    }


def alone(results: xr.Dataset) -> xr.Dataset:
    """By seed alone: of the other axes there is one value."""
    return results.isel(first=0, weighted=0, also=0)


# ------------------------------------------------------------------------------------------ claims

AWRS = "Lipkin et al. 2025 (arXiv:2504.05410), from its released code"
TOY = "an independent computation of the toy"
UNWEIGHTED = {"sweep.weighted": (0.0,)}
UNLIKE = {"sweep.also": (1.0,)}
EVEN = {"sweep.first": (0.5,)}


@claim(source=AWRS, reruns=(UNWEIGHTED,))
def weights_are_unbiased(results: xr.Dataset, config: ConfigDict) -> Finding:
    """The mean of the weight times the indicator of a token is the model's probability of it if it
    is allowed, and 0 else: of three adaptive samplers, all 21 numbers within four standard errors
    of all draws together."""
    adaptive = alone(results).isel(sampler=slice(1, None)).transpose("sampler", "token", ...)
    mean = adaptive.weight.mean("seed")
    expected = np.array(config.probabilities) * np.array(config.allowed)
    variance = adaptive.square.mean("seed") - mean**2
    error = np.sqrt(variance.values / (config.draws * results.sizes["seed"]))
    return equals(np.broadcast_to(expected, mean.shape), mean.values, tolerance=4 * error)


@claim(source=f"{AWRS}; {TOY}", reference=(3.54, 3.90, 5.21), reruns=(UNLIKE,))
def calls(results: xr.Dataset) -> Finding:
    """Calls of the constraint for a token of recursive and geometric weights, to the second or
    the fourth allowed: the reference, and the exact sum over tokens."""
    measured = results.calls.isel(sampler=slice(1, None))
    exact = results.expected.isel(seed=0).values + np.array([1, 0, 0])
    return together(
        equals((3.54, 3.90, 5.21), exact, decimals=2),
        equals(exact, measured.mean("seed"), tolerance=0.05),
    )


@claim(source="(G)I-DLE; exact", reference=(4, 2.5357), reruns=(UNLIKE,))
def calls_of_rejection(results: xr.Dataset) -> Finding:
    """Calls to the first allowed token with replacement, exp(KL), and without; the KL of exclusion
    is -log Z to a rounding."""
    first = alone(results).isel(seed=0)
    return together(
        equals((4, 2.5357), (np.exp(first.kl), first.expected[0]), decimals=(12, 4)),
        equals(0, first.kl + first.log_mass, tolerance=1e-14),
    )


@claim(source=TOY, reference=(0.5, 0.9, 0.5108, 0.18), reruns=(EVEN,))
def local_renormalization_is_biased(results: xr.Dataset) -> Finding:
    """The exact mass of `aa`, that under local renormalization, KL between them in nats, and the
    mass of all texts that end in `a`."""
    first = alone(results).isel(seed=0)
    measured = first.exact[0], first.local[0], first.bias, first.of_accepted
    return equals((0.5, 0.9, 0.5108, 0.18), np.array(measured), decimals=(12, 12, 4, 12))


@claim(source=TOY, reference=(0.5, 0.5, 0.18, 0.18), reruns=(UNWEIGHTED,))
def weights_correct_it(results: xr.Dataset) -> Finding:
    """The mass of `aa` among weighted texts, never and always resampled, and the mean weight: by
    seeds, to .04 and .01; every text ends in `a`."""
    law = alone(results).weighted_law.sel(text="aa").mean("seed")
    return together(
        equals(0.5, law, tolerance=0.04),
        equals(0.18, alone(results).estimate.mean("seed"), tolerance=0.01),
        equals(1, alone(results).valid.min(), tolerance=0),
    )


@claim(source=TOY, reference=0.36, reruns=(EVEN,))
def effective_size(results: xr.Dataset) -> Finding:
    """The effective sample size of the weights, over the number of texts."""
    size = alone(results)["size"].sel(resampling="never").mean("seed")
    return equals(0.36, size, tolerance=0.02)


@claim(source=TOY, wrong=({"law": "local"},))
def the_recursion_is_exact(results: xr.Dataset, law: str = "exact") -> Finding:
    """The law by sums from the end backwards against enumeration of both texts: the error."""
    first = alone(results).isel(seed=0)
    return at_most(1e-14, np.abs(first[law] - 0.5).max())


@claim(source="enumeration of all texts, letter by letter", wrong=({"read": READ[1]},))
def tokens_of_several_letters(results: xr.Dataset, read: str = READ[0]) -> Finding:
    """The law of texts without `bb`, from tokens of one letter and two by the automaton that reads
    every letter: the largest error, and the mass of texts with `bb`. By the first letters of tokens
    these are written."""
    first = alone(results)
    measured = first.law_error.sel(read=read).max(), first.forbidden.sel(read=read).max()
    return at_most((1e-12, 0), measured)
