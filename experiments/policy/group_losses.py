"""Group-based policy gradients (GRPO, Dr. GRPO, DAPO, RLOO, CISPO) token by token, exactly.

The methods differ in what divides the rewards, what bounds the ratios, and over what the loss is
averaged. Here each of these is taken alone: how much of the gradient a sequence has by its length,
what happens at tokens that a right and a wrong answer share, what a clip leaves of the gradient at
each ratio, and, on a language model whose sequences and groups can be enumerated, whether the
expected gradient is that of the expected reward.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from jdiv.checks import known
from jdiv.lm import tabular
from jdiv.policy.advantages import grpo_advantages, rloo_advantages
from jdiv.policy.clipped import cispo, dual_clip, ppo_clip
from jdiv.policy.recipes.gtpo import conflict_weights
from jdiv.policy.tokens import constant_mean, sequence_mean, token_mean

TRACED = ("seed", "sign")
DIMS = {
    "share": ("average", "length"),
    "prefix": ("rule", "length"),
    "pull": ("clip", "advantage", "ratio"),
    "error": ("recipe",),
    "cosine": ("recipe",),
    "factor": ("recipe",),
}
AVERAGES = {"token": "DAPO", "sequence": "GRPO", "constant": "Dr. GRPO"}
RULES = (*AVERAGES, "conflict weights")
RATIOS = np.geomspace(0.1, 10, 401)
CLIPS = "PPO", "DAPO", "dual", "CISPO"
RECIPES = {
    # Advantages, average.
    "RLOO": (rloo_advantages, "constant"),
    "Dr. GRPO": (lambda rewards: grpo_advantages(rewards, scale=False), "constant"),
    "GRPO": (grpo_advantages, "sequence"),
    "GRPO, no std": (lambda rewards: grpo_advantages(rewards, scale=False), "sequence"),
    "DAPO": (grpo_advantages, "token"),
}


def averaged(name: str, x: Array, mask: Array) -> Array:
    """One of `AVERAGES`; the constant length is 1."""
    if name == "constant":
        return constant_mean(x, mask, 1.0)
    return {"token": token_mean, "sequence": sequence_mean}[name](x, mask)


# --------------------------------------------------------------------------------------- tokens


def shares(config: ConfigDict, sign: Array) -> Array:
    """`[average, length]` of the gradient by log-probabilities, summed over each sequence."""
    longest = max(config.lengths)
    mask = jnp.arange(longest)[None] < jnp.array(config.lengths)[:, None]
    still = jnp.full(mask.shape, -1.0)
    advantages = sign * jnp.ones(len(config.lengths))

    def losses(log_probs: Array) -> Array:
        loss = ppo_clip(log_probs, still, advantages, mask).loss
        return jnp.stack([averaged(name, loss, mask) for name in AVERAGES])

    by_sequence = jnp.sum(jax.jacrev(losses)(still), axis=-1)
    return by_sequence / jnp.sum(by_sequence, axis=-1, keepdims=True)


def at_prefix(config: ConfigDict, sign: Array) -> Array:
    """`[rule, length of the wrong answer]`: ascent on the first shared token.

    In units of what the right answer alone would have. Both answers are of the same policy, so its
    log-probability is one number.
    """
    longest = max(*config.lengths, config.right)
    place = jnp.arange(longest)
    # Equal tokens where they share the prefix, else different ones.
    written = jnp.stack([jnp.zeros_like(place), (place >= config.shared).astype(place.dtype)])
    advantages = sign * grpo_advantages(jnp.array([[1.0, 0.0]]))[0]

    def of_length(length: Array) -> Array:
        mask = place[None] < jnp.stack([jnp.asarray(config.right, length.dtype), length])[:, None]
        weights = conflict_weights(written, advantages, mask)

        def losses(shift: Array) -> Array:
            still = jnp.full(mask.shape, -1.0)
            first = still.at[:, 0].add(shift)
            loss = ppo_clip(first, still, advantages, mask).loss
            found = [averaged(name, loss, mask) for name in AVERAGES]
            return jnp.stack([*found, averaged("sequence", weights * loss, mask)])

        def alone(shift: Array) -> Array:
            still = jnp.full(mask.shape, -1.0)
            right = jnp.array([1.0, 0.0])
            loss = ppo_clip(still.at[:, 0].add(shift), still, right, mask).loss
            found = [averaged(name, loss, mask) for name in AVERAGES]
            return jnp.stack([*found, found[list(AVERAGES).index("sequence")]])

        zero = jnp.zeros(())
        return jax.jacfwd(losses)(zero) / -jax.jacfwd(alone)(zero)

    return -jax.vmap(of_length, out_axes=1)(jnp.array(config.lengths))


def pulls(config: ConfigDict, sign: Array) -> Array:
    """`[clip, advantage, ratio]` what gradient descent adds to log pi, for advantages 1 and -1."""
    log_ratio = jnp.log(jnp.asarray(RATIOS))
    old, mask = jnp.full(log_ratio.shape, -5.0), jnp.full(log_ratio.shape, True)

    def of_advantage(advantage: Array) -> Array:
        advantages = jnp.full(log_ratio.shape, 1.0) * advantage

        def losses(x: Array) -> Array:
            here = x, old, advantages, mask
            low, high = config.low, config.high
            return jnp.stack([
                ppo_clip(*here, low=low, high=high).loss,
                ppo_clip(*here, low=low, high=config.higher).loss,
                dual_clip(*here, low=low, high=high, ceiling=config.ceiling).loss,
                cispo(*here, high=config.open).loss,
            ])  # fmt: skip

        _, slopes = jax.jvp(losses, (old + log_ratio,), (jnp.ones_like(old),))
        return -slopes

    return jax.vmap(of_advantage, out_axes=1)(sign * jnp.array([1.0, -1.0]))


# -------------------------------------------------------------------------------------- gradients


def expected(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Of every recipe the error and direction of the mean gradient over all groups of two."""
    policy, _ = tabular.normal_logits(point["seed"], tuple(config.sweep.seed))
    sequences = tabular.enumerate_sequences(policy.shape)
    count = len(sequences.lengths)
    rewards = jax.random.uniform(key, (count,))
    pairs = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2)
    mask = jnp.asarray(sequences.mask)[pairs]
    weight = jnp.exp(tabular.sequence_log_probs(policy))
    chance = weight[pairs[:, 0]] * weight[pairs[:, 1]]

    def losses(logits: Array) -> Array:
        log_probs = tabular.token_log_probs(logits)[pairs]
        found = []
        for advantages, average in RECIPES.values():
            paid = point["sign"] * advantages(rewards[pairs])
            loss = ppo_clip(log_probs, jax.lax.stop_gradient(log_probs), paid, mask).loss
            found.append(jax.vmap(lambda x, m, a=average: averaged(a, x, m))(loss, mask) @ chance)
        return -jnp.stack(found)

    gradients = jax.jacrev(losses)(policy).reshape(len(RECIPES), -1)
    true = jax.grad(tabular.expectation)(policy, rewards).ravel()
    size, length = jnp.linalg.norm(true), jnp.linalg.norm(gradients, axis=1)
    along = gradients @ true
    return {
        "error": jnp.linalg.norm(gradients - true[None], axis=1) / size,
        "cosine": along / (size * length),
        "factor": along / size**2,
    }


# -------------------------------------------------------------------------------- the experiment


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Names, lengths and ratios."""
    return {
        "average": list(AVERAGES),
        "rule": list(RULES),
        "length": list(config.lengths),
        "clip": list(CLIPS),
        "advantage": [1.0, -1.0],
        "ratio": RATIOS,
        "recipe": list(RECIPES),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown names, and lengths that are shorter than the shared prefix."""
    for field in ("flat", "proportional"):
        known(f"config.claims.{field}", config.claims[field], AVERAGES)
    known("config.claims.cancelling", config.claims.cancelling, RULES)
    for field in ("exact", "biased"):
        known(f"config.claims.{field}", config.claims[field], RECIPES)
    if not 1 <= config.shared <= config.right:
        raise ValueError(
            f"config.shared must be from 1 to config.right = {config.right}, got {config.shared}"
        )
    if min(config.sweep.seed) < 0:
        raise ValueError(f"config.sweep.seed must not be negative, got {min(config.sweep.seed)}")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """All of it; only the expected gradients depend on the seed."""
    return {
        "share": shares(config, point["sign"]),
        "prefix": at_prefix(config, point["sign"]),
        "pull": pulls(config, point["sign"]),
        **expected(config, point, key),
    }


# -------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Lengths, conflicts and expected gradients; and what clips leave."""
    results = results.sel(sign=1.0)
    return {"averages": _averages(config, results), "clips": _clips(config, results)}


def _averages(config: ConfigDict, results: xr.Dataset) -> Picture:
    figure, axes = plt.subplots(1, 3, figsize=(11.6, 3.9))
    at = results.isel(seed=0)
    markers = dict(zip(AVERAGES, ("o-", "s-", "^--"), strict=True))
    for (name, method), colour in zip(AVERAGES.items(), COLORS, strict=False):
        axes[0].plot(
            config.lengths, at.share.sel(average=name), markers[name], color=colour,
            label=f"{name} ({method})", markersize=5,
        )  # fmt: skip
        axes[1].plot(
            config.lengths, at.prefix.sel(rule=name), markers[name], color=colour, markersize=5
        )
    axes[1].plot(
        config.lengths, at.prefix.sel(rule="conflict weights"), "D:", color=COLORS[3],
        label="sequence, conflict weights (GTPO)", markersize=5,
    )  # fmt: skip
    axes[1].axvline(config.right, color="#707070", linewidth=0.8)
    axes[0].set(xscale="log", yscale="log", xlabel="length, tokens", ylabel="share of the gradient")
    axes[0].legend(title="average over", fontsize="small", title_fontsize="small")
    axes[1].set(
        xscale="log", xlabel="length of the wrong answer, tokens",
        ylabel="ascent on a shared token",
    )  # fmt: skip
    axes[1].set_ylim(None, 3)
    axes[1].legend(fontsize="small")
    for axis in axes[:2]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.lengths, config.lengths)
    for row, name in enumerate(RECIPES):
        values = results.cosine.sel(recipe=name)
        axes[2].plot(values, np.full(values.shape, row), "|", color=COLORS[5], markersize=12)
        axes[2].plot(values.median(), row, "o", color=COLORS[0], markersize=6)
    axes[2].set_yticks(range(len(RECIPES)), list(RECIPES))
    axes[2].invert_yaxis()
    axes[2].set(xlabel="cosine of the expected gradient to ∇E[r]", xlim=(None, 1.01))
    return Picture(
        figure,
        "Left: all sequences have the same share of the gradient only if each is averaged over its"
        f" own length. Middle: ascent on a token that a right answer, of {config.right} tokens"
        " (line), and a wrong one share, in units of the right one alone: opposites cancel, but"
        " averages over each sequence leave a rest with the sign of the difference of lengths."
        " Right: expected gradients over all groups of two on a language model, random rewards;"
        " ticks are draws, dots medians.",
    )


def _clips(config: ConfigDict, results: xr.Dataset) -> Picture:
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.9))
    at = results.pull.isel(seed=0)
    styles = {"PPO": "-", "DAPO": "--", "dual": ":", "CISPO": "-."}
    colours = (COLORS[0], COLORS[2], COLORS[1], COLORS[3])
    for axis, advantage in zip(axes, (1.0, -1.0), strict=True):
        for (name, style), colour in zip(styles.items(), colours, strict=True):
            axis.plot(
                RATIOS, at.sel(clip=name, advantage=advantage), style, color=colour,
                label="dual clip" if name == "dual" else name, linewidth=2,
            )  # fmt: skip
        axis.axvline(1, color="#707070", linewidth=0.8)
        axis.set(xscale="log", xlabel="ratio π/π_old", title=f"advantage {advantage:+.0f}")
        axis.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        axis.title.set_fontsize("medium")
    axes[0].set_ylabel("what descent adds to log π")
    axes[1].legend(loc="lower left")
    return Picture(
        figure,
        "What is left of a token's gradient by its ratio. PPO's clip drops a token whose ratio has"
        " moved far enough with its advantage, but for negative ones nothing bounds large ratios;"
        f" dual clip drops those, too, beyond {config.ceiling:g}. CISPO bounds the weight and keeps"
        " all tokens.",
    )


# --------------------------------------------------------------------------------------- claims


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Shares, conflicts, signs, expected gradients."""
    chosen = config.claims
    results = results.sel(sign=chosen.sign)
    lengths = np.array(config.lengths, dtype=float)
    share, prefix, pull = (results[name].isel(seed=0) for name in ("share", "prefix", "pull"))
    flipped = {"claims.sign": -1.0}
    flat = share.sel(average=chosen.flat).values
    proportional = share.sel(average=chosen.proportional).values
    rest = prefix.sel(rule="sequence").values
    numbers = results.cosine.sel(recipe=chosen.biased)
    return [
        Claim(
            "gradient-share-by-length",
            "GRPO (arXiv:2402.03300) and DAPO (arXiv:2503.14476), by their averages",
            "The share of the gradient of a sequence of length L is 1/n for the average over"
            " sequences and L/sum L for that over tokens: largest differences.",
            [
                np.abs(flat - 1 / len(lengths)).max(),
                np.abs(proportional - lengths / lengths.sum()).max(),
            ],
            high=1e-12,
            controls=({"claims.flat": "token"}, {"claims.proportional": "sequence"}),
        ),
        Claim(
            "shared-tokens-cancel",
            "GTPO (arXiv:2508.03772), on conflicting tokens",
            "A token that a right and a wrong answer share has no gradient in an average over"
            " tokens or with a constant, whatever their lengths: largest, in units of the right"
            " answer alone.",
            [abs(prefix.sel(rule=rule)).max() for rule in (chosen.cancelling, "constant")],
            high=1e-12,
            controls=({"claims.cancelling": "sequence"},),
        ),
        Claim(
            "an-average-over-sequences-leaves-a-rest",
            "derived from GRPO's average; GTPO's weights as in its toy",
            f"Averaged over each sequence it has `1 - {config.right}/L`, L the length of the wrong"
            " answer; with GTPO's weights 2, that of the right answer twice: differences.",
            [
                np.abs(rest - (1 - config.right / lengths)).max(),
                abs(prefix.sel(rule="conflict weights") - 2).max(),
            ],
            high=1e-12,
            controls=(flipped,),
        ),
        Claim(
            "clips-leave-the-sign",
            "PPO (arXiv:1707.06347), DAPO (2503.14476), RPG (2505.17508), MiniMax-M1 (2506.13585)",
            "What descent adds to log pi, against the formula: `w A`, 0 where a token is clipped,"
            " for CISPO `min(w, bound) A`; largest difference over ratios from .1 to 10.",
            np.abs(pull.transpose("clip", "advantage", "ratio").values - _formula(config)).max(),
            high=1e-12,
            controls=(flipped,),
        ),
        Claim(
            "only-rloo-is-unbiased",
            "Ahmadian et al. 2024 (arXiv:2402.14740); Dr. GRPO (arXiv:2503.20783)",
            "Relative error of RLOO's expected gradient over all groups of two, largest over draws;"
            " and of Dr. GRPO's from half of it, (n - 1)/n at n = 2, by factor and direction.",
            [
                float(results.error.sel(recipe=chosen.exact).max()),
                float(abs(results.factor.sel(recipe="Dr. GRPO") - 0.5).max()),
                float(abs(results.cosine.sel(recipe="Dr. GRPO") - 1).max()),
            ],
            high=1e-12,
            controls=({"claims.exact": "GRPO"}, flipped),
        ),
        Claim(
            "averages-by-length-change-the-direction",
            "Dr. GRPO (arXiv:2503.20783), on the bias by length; the bound is chosen here",
            "Cosine of GRPO's expected gradient to that of the expected reward, mean over draws:"
            " the right half-space, but not the right direction.",
            float(numbers.mean()),
            low=0.5,
            high=0.9999,
            controls=({"claims.biased": "RLOO"}, flipped),
        ),
    ]


def _formula(config: ConfigDict) -> np.ndarray:
    """`[clip, advantage, ratio]`."""
    w = RATIOS
    up, down = 1 + config.high, 1 - config.low
    falling = np.where(w < down, 0, -w)
    cispo = np.minimum(w, 1 + config.open)
    return np.array([
        [np.where(w > up, 0, w), falling],
        [np.where(w > 1 + config.higher, 0, w), falling],
        [np.where(w > up, 0, w), np.where(w > config.ceiling, 0, falling)],
        [cispo, -cispo],
    ])  # fmt: skip
