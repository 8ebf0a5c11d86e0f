"""Weights of the ratio off-policy, exactly: bias and variance of every method's gradient.

Answers are the old policy's and the gradient is the new one's. On a language model that can be
enumerated the mean and the variance of one answer's gradient are sums, and so is the gradient of
the expected reward that all of these methods stand for. Rows are those of `clipped.TABLE`, with the
bounds of their papers, and the ratio of tokens, and its geometric mean, without any bound.
The methods' own figures are of large models; what is claimed is what their formulas say of bias.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, non_negative, real, seeds
from experiments.lab.claims import Finding, at_least, at_most, between, claim, together
from experiments.lab.plots import Picture, curve, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv.lm import tabular
from jdiv.policy import clipped, ratio_weights
from jdiv.policy.tokens import AVERAGES, bnpo_weights, sequence_weights, token_weights

AXES = {"sign": real, "reach": non_negative, "seed": seeds}
FIELDS = {"distances": each(non_negative), "lengths": each(count)}
FREE = {
    "token": lambda log_ratio, advantages, mask: jnp.where(
        mask, ratio_weights.clipped(log_ratio, advantages, low=1.0, high=jnp.inf), 0
    ),
    "geometric": lambda log_ratio, advantages, mask: ratio_weights.gspo(
        log_ratio, advantages, mask, low=1.0, high=jnp.inf
    ),
}
"""No bounds: the ratio of each token; and the geometric mean of the sequence's."""
WEIGHTS = {**{name: row.weight for name, row in clipped.TABLE.items()}, **FREE}
BY_SEQUENCE = ("gspo", "gmpo", "luspo")
"""Methods that are averaged over each sequence; the others' tokens are summed."""
LOG_RATIOS = np.linspace(-3, 3, 401)
ENDS = (-50.0, 50.0)
ADVANTAGES = (1.0, -1.0)
INVERTED = {"sweep.sign": (-1.0,)}
"""old/pi for pi/old."""
STILL = {"sweep.reach": (0.0,)}
"""The policy that gave the answers is the one that learns."""


# ------------------------------------------------------------------------------------ estimators


def moments(new: Array, old: Array, rewards: Array, sign: Array) -> dict[str, Array]:
    """Bias, direction and variance `[weight]` of one answer's gradient, next to the exact one."""
    sequences = tabular.enumerate_sequences(new.shape)
    mask = jnp.asarray(sequences.mask)
    log_new, log_old = tabular.token_log_probs(new), tabular.token_log_probs(old)
    advantages = rewards - tabular.expectation(old, rewards)
    every = jnp.broadcast_to(advantages[:, None], mask.shape)
    weights = jnp.stack([f(sign * (log_new - log_old), every, mask) for f in WEIGHTS.values()])
    mean = jnp.array([name in BY_SEQUENCE for name in WEIGHTS])[:, None, None]
    length = jnp.asarray(sequences.lengths, weights.dtype)[None, :, None]
    scores = jax.jacrev(tabular.token_log_probs)(new).reshape(*mask.shape, -1)
    gradients = jnp.einsum("wst,stp->wsp", jnp.where(mean, weights / length, weights), scores)
    exact = jax.grad(tabular.expectation)(new, rewards).ravel()
    chance = jnp.exp(log_old.sum(axis=1))
    found = jnp.einsum("s,wsp->wp", chance, gradients)
    size = jnp.sum(exact**2)
    square = jnp.einsum("s,wsp->w", chance, gradients**2)
    counts = mask[None] & (weights != 0)
    slopes = jax.jacrev(lambda x: jnp.stack([
        jnp.sum(row.loss(x, log_old, every, mask).loss) for row in clipped.TABLE.values()
    ]))(log_new)  # fmt: skip
    slopes = jnp.concatenate([-slopes, weights[len(clipped.TABLE) :]])
    logarithm = jnp.log(jnp.where(counts, jnp.abs(weights / every[None]), jnp.nan))
    return {
        "bias": jnp.sqrt(jnp.sum((found - exact[None]) ** 2, axis=1) / size),
        "cosine": found @ exact / jnp.sqrt(jnp.sum(found**2, axis=1) * size),
        "variance": (square - jnp.sum(found**2, axis=1)) / size,
        "slope_error": jnp.max(jnp.abs(slopes - weights), axis=(1, 2)),
        "range": jnp.nanmax(logarithm, axis=(1, 2)) - jnp.nanmin(logarithm, axis=(1, 2)),
    }


def curves_of(sign: Array, log_ratio: np.ndarray) -> Array:
    """What ascent adds to log pi, `[weight, advantage, ratio]`, of answers of one token."""
    at = jnp.tile(sign * jnp.asarray(log_ratio), len(ADVANTAGES))[:, None]
    gains = jnp.repeat(jnp.array(ADVANTAGES), len(log_ratio))[:, None]
    one = jnp.full(at.shape, True)
    found = jnp.stack([f(at, gains, one) for f in WEIGHTS.values()])
    return found.reshape(len(WEIGHTS), len(ADVANTAGES), len(log_ratio))


# -------------------------------------------------------------------------------------- averages


def averages_of(config: ConfigDict) -> dict[str, Labelled]:
    """The weight of a token by the length of its sequence, in both terms; and in parts."""
    longest = max(config.lengths)
    mask = jnp.arange(longest)[None] < jnp.array(config.lengths)[:, None]
    own = lambda weights: jnp.max(weights, axis=-1)
    terms = [[own(average.loss(mask)), own(average.kl(mask))] for average in AVERAGES.values()]
    parts = bnpo_weights(mask[:, None])
    length = {"length": config.lengths}
    return {
        "average": labelled(
            jnp.stack([jnp.stack(x) for x in terms]),
            trainer=AVERAGES,
            term=("loss", "KL"),
            **length,
        ),
        "parts": labelled(own(parts[:, 0]), **length),
        "whole": labelled(own(token_weights(mask)), **length),
        "sequence": labelled(own(sequence_weights(mask)), **length),
    }


# -------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """Everything; the old policy, its direction and the rewards are the seed's."""
    old, away = tabular.normal_logits(point["seed"], tuple(config.sweep.seed))
    rewards = jax.random.uniform(key, tabular.enumerate_sequences(old.shape).lengths.shape)

    def at(distance: Array) -> dict[str, Array]:
        new = old + point["reach"] * distance * away
        return moments(new, old, rewards, point["sign"]) | {"kl": tabular.kl(new, old)}

    found = jax.vmap(at)(jnp.array(config.distances))
    kl = labelled(found.pop("kl"), distance=config.distances)
    by = {"distance": config.distances, "weight": tuple(WEIGHTS)}
    lines = curves_of(point["sign"], np.concatenate([LOG_RATIOS, ENDS]))
    names = {"weight": tuple(WEIGHTS), "advantage": ADVANTAGES}
    return {
        **{name: labelled(x, **by) for name, x in found.items()},
        "kl": kl,
        "pull": labelled(lines[..., :-2], **names, log_ratio=LOG_RATIOS),
        "end": labelled(lines[..., -2:], **names, at=ENDS),
        **averages_of(config),
    }


# --------------------------------------------------------------------------------------- figures

SHOWN = {
    "importance": "product of the sequence's",
    "token": "each token's",
    "geometric": "geometric mean (LUSPO's, no clip)",
    "ppo": "PPO",
    "cispo": "CISPO",
    "sapo": "SAPO",
    "vespo": "VESPO",
}


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Bias and variance by distance; weights by ratio."""
    mean = results.isel(sign=0, reach=0).mean("seed")
    far = mean.sel(distance=mean.distance > 0)
    figure, (left, right) = panels(2, width=4.8, height=4.4)
    for number, (name, label) in enumerate(SHOWN.items()):
        for axes, value in ((left, far.bias), (right, far.variance)):
            line = value.sel(weight=name)
            axes.plot(far.kl, line.where(line > 1e-9), label=label, **style(number, marker=True))
    left.set(xscale="log", yscale="log", ylabel="bias, relative to the gradient")
    right.set(xscale="log", ylabel="variance of one answer, relative")
    for axes in (left, right):
        axes.set_xlabel("KL(π‖π_old), nats")
    legend_above(figure, left, columns=4)
    spread = Picture(
        figure,
        "Answers of an old policy, gradients of a new one, mean over random models. Left: relative"
        " error of the mean gradient; the product of the sequence's ratios has none and is not"
        " drawn, those of tokens, CISPO and SAPO are nearly one. Right: its price is variance,"
        " which all others hold down.",
    )
    figure, axes = panels(2, width=4.8, height=4.4)
    pull = results.pull.isel(sign=0, reach=0, seed=0)
    names = {"ppo": "PPO", "dual_clip": "dual clip", "cispo": "CISPO", "sapo": "SAPO",
             "vespo": "VESPO", "dro": "DRO", "gmpo": "GMPO"}  # fmt: skip
    for panel, advantage in zip(axes, ADVANTAGES, strict=True):
        for number, (name, label) in enumerate(names.items()):
            line = pull.sel(weight=name, advantage=advantage)
            line = line.assign_coords(log_ratio=np.exp(line.log_ratio))
            curve(panel, "log_ratio", line, label=label, linewidth=2, **style(number))
        panel.set(xscale="log", xlabel="ratio π/π_old of an answer of one token")
        panel.set_title(f"advantage {advantage:+.0f}", fontsize="medium")
    axes[0].set(ylabel="weight of ∇ log π", ylim=(-0.3, 3.6))
    axes[1].set(ylim=(-5, 0.5))
    legend_above(figure, axes[0], columns=7)
    shapes = Picture(
        figure,
        "The weight of a token by its ratio. Clips let a token go at once where it has moved with"
        " its advantage, or for a bad answer never if it became likely; SAPO and VESPO fade it"
        " out on both sides, CISPO keeps all tokens, DRO's falls with the logarithm.",
    )
    return {"bias_variance": spread, "weights": shapes}


# ---------------------------------------------------------------------------------------- claims


def farthest(results: xr.Dataset, value: str) -> xr.DataArray:
    """`[weight]` the mean over draws at the largest distance."""
    return results[value].isel(distance=-1, sign=0, reach=0).mean("seed")


@claim(
    source="importance sampling; Ionides 2008 for what a ceiling costs",
    reruns=(INVERTED,),
    wrong=({"weight": "token"}, {"weight": "truncated"}),
)
def the_product_of_ratios_is_unbiased(results: xr.Dataset, weight: str = "importance") -> Finding:
    """The mean gradient weighted by the product of a sequence's ratios is that of the expected
    reward at every distance: largest relative error."""
    return at_most(1e-10, results.bias.sel(weight=weight).max())


@claim(source="each method's loss and weight; the derivative is by JAX", reruns=(INVERTED,))
def losses_have_these_weights(results: xr.Dataset) -> Finding:
    """The derivative of every loss of the table by each log-probability is minus its weight, at all
    distances: largest difference."""
    return at_most(1e-11, results.slope_error.max())


EXACT_AT_HOME = tuple(name for name in WEIGHTS if name not in ("awr", "gspo", "gmpo"))


@claim(
    source="derived: every weight is A at ratio 1",
    wrong=({"weights": ("awr",)}, {"weights": ("gspo",)}, {"weights": ("gmpo",)}),
)
def all_are_one_without_a_step(
    results: xr.Dataset, weights: tuple[str, ...] = EXACT_AT_HOME
) -> Finding:
    """Where old and new policy are one, every method but AWR, GSPO and GMPO has the gradient of the
    expected reward: largest relative error."""
    return at_most(1e-12, results.bias.isel(distance=0).sel(weight=list(weights)).max())


@claim(
    source="LUSPO, on GSPO's bias to length; the bound is chosen here",
    wrong=({"without": "gspo"}, {"with_bias": "luspo"}),
)
def luspo_takes_the_lengths_out(
    results: xr.Dataset, without: str = "luspo", with_bias: str = "gspo"
) -> Finding:
    """Without a step, relative errors of the gradients of LUSPO and GSPO, means over draws: GSPO's
    average over each sequence makes short answers count more."""
    bias = results.bias.isel(distance=0, sign=0, reach=0).mean("seed")
    pair = bias.sel(weight=without), bias.sel(weight=with_bias)
    return between((-np.inf, 0.1), pair, (1e-12, np.inf))


BOUNDED = ("truncated", "ppo", "dual_clip", "two_sided", "cispo", "sapo", "vespo")


@claim(
    source="PPO, DAPO, RPG, INTELLECT-2, MiniMax-M1, SAPO and VESPO, by their weights",
    reruns=(STILL,),
    wrong=({"weights": ("importance",)},),
)
def bounds_trade_bias_for_variance(
    results: xr.Dataset, weights: tuple[str, ...] = BOUNDED
) -> Finding:
    """At the largest distance every bounded weight has a relative bias above .05, and less variance
    than the product of ratios, means over draws."""
    bias = farthest(results, "bias").sel(weight=list(weights))
    variance = farthest(results, "variance")
    share = variance.sel(weight=list(weights)) / variance.sel(weight="importance")
    return together(at_least(0.05, bias), at_most(0.99, share))


@claim(
    source="GSPO (arXiv:2507.18071), on the noise of token ratios; GMPO (arXiv:2507.20673)",
    reruns=(STILL,),
    wrong=({"levels": ("geometric", "token", "importance")},),
)
def variance_by_level(
    results: xr.Dataset, levels: tuple[str, ...] = ("importance", "token", "geometric")
) -> Finding:
    """At the largest distance, without bounds: the variance of the product of ratios over that of
    token ratios, and of those over that of their geometric mean summed over tokens; means."""
    first, second, third = (farthest(results, "variance").sel(weight=x) for x in levels)
    return at_least(1.05, (first / second, second / third))


@claim(
    source="GMPO (arXiv:2507.20673): a narrower range of ratios",
    reruns=(STILL,),
    wrong=({"narrow": "importance"},),
)
def geometric_means_are_narrower(results: xr.Dataset, narrow: str = "geometric") -> Finding:
    """The range of the logarithm of the geometric mean over all answers, as a part of that of token
    ratios, at the largest distance: mean over draws; and the least range of these."""
    spread = results.range.isel(distance=-1, sign=0, reach=0)
    of_tokens = spread.sel(weight="token")
    share = (spread.sel(weight=narrow) / of_tokens).mean("seed")
    return together(at_most(0.9, share), at_least(1e-3, of_tokens.min()))


def ends() -> dict[str, tuple[float, ...]]:
    """Weights at ratios e^-50 and e^50, of an advantage of 1 and of -1."""
    w, top = np.exp(ENDS)
    clip, soft = (w, 0, 0, -top), (w / np.cosh(0.5) ** 2, 0, -w / np.cosh(0.525) ** 2, 0)
    return {
        "reinforce": (1, 1, -1, -1),
        "importance": (w, top, -w, -top),
        "truncated": (w, 2, -w, -2),
        "ppo": clip,
        "dual_clip": (w, 0, 0, 0),
        "two_sided": (w, 0, 0, 0),
        "cispo": (w, 3, -w, -3),
        "sapo": soft,
        "dro": (1 + 0.1 * 50, 1 - 0.1 * 50, -1 + 0.1 * 50, -1 - 0.1 * 50),
        "awr": (np.e, np.e, 1 / np.e, 1 / np.e),
        "gspo": clip,
        "luspo": clip,
        "gmpo": clip,
        "vespo": (w**2 * np.exp(3), 0, -(w**3) * np.exp(2), 0),
        "off_policy_mask": clip,
        "token": (w, top, -w, -top),
        "geometric": (w, top, -w, -top),
    }


@claim(
    source="the formulas of each method, at the ends",
    reruns=(INVERTED,),
    wrong=({"swap": True},),
)
def where_ratios_go(results: xr.Dataset, swap: bool = False) -> Finding:
    """Every weight at ratios of e^-50 and e^50 and advantages of 1 and -1 against the limits of its
    formula: nothing bounds PPO, GSPO, LUSPO and GMPO where a bad answer has become likely, dual
    clip, SAPO and VESPO go to 0, CISPO to its bound, DRO beyond; largest relative error."""
    expected = np.array([ends()[name] for name in results.weight.values], float)
    found = results.end.isel(seed=0, sign=0, reach=0).transpose("weight", "advantage", "at")
    found = found.values[:, :, ::-1] if swap else found.values
    found = found.reshape(expected.shape)
    scale = np.where(expected == 0, 1, np.abs(expected))
    vanishing = np.exp(-50.0)  # what has gone to 0 may be any number below this
    error = np.where(expected == 0, np.abs(found) > vanishing, np.abs(found - expected) / scale)
    return at_most(1e-12, error.max())


@claim(
    source="SAPO and VESPO, as soft gates in place of a clip; the bounds are chosen here",
    wrong=({"soft": ("ppo",)}, {"hard": ("sapo",)}),
)
def soft_gates_have_no_step(
    results: xr.Dataset,
    soft: tuple[str, ...] = ("sapo", "vespo"),
    hard: tuple[str, ...] = ("ppo", "dual_clip", "two_sided", "gmpo"),
) -> Finding:
    """The largest change of a weight between ratios that are 1.5 % apart: small for SAPO and VESPO,
    the whole weight where a clip is."""
    pull = results.pull.isel(seed=0, sign=0, reach=0)
    step = abs(pull.diff("log_ratio")).max(("log_ratio", "advantage"))
    few = abs(pull.sel(advantage=1.0).diff("log_ratio")).max("log_ratio").sel(weight=list(hard))
    return together(at_most(0.05, step.sel(weight=list(soft))), at_least(1.0, few))


@claim(
    source="TRL 1.16 and verl 0.9, as read; DAPO (arXiv:2503.14476)",
    wrong=({"two": "GRPO"}, {"parts": "whole"}),
)
def averages_are_weights(
    results: xr.Dataset, config: ConfigDict, two: str = "SAPO and GMPO, verl", parts: str = "parts"
) -> Finding:
    """The KL term of SAPO and GMPO in verl weighs n L/N times as much as the policy's in an answer
    of L of the N tokens of n; in LUSPO it weighs the same; BNPO over parts of one answer each is
    an average over sequences: largest relative differences."""
    at, length = results.isel(seed=0, sign=0, reach=0), results.length
    factor = at.average.sel(term="KL") / at.average.sel(term="loss")
    uneven = factor.sel(trainer=two) / (length.size * length / length.sum()) - 1
    even = factor.sel(trainer="LUSPO") - 1
    alone = at[parts] / at.sequence - 1
    return at_most(1e-12, [abs(x).max() for x in (uneven, even, alone)])
