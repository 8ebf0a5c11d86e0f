"""Group-based policy gradients (GRPO, Dr. GRPO, DAPO, RLOO, CISPO) token by token, exactly.

The methods differ in what divides the rewards, what bounds the ratios, and over what the loss is
averaged. Here each of these is taken alone: how much of the gradient a sequence has by its length,
what happens at tokens that a right and a wrong answer share, what a clip leaves of the gradient at
each ratio, and, on a language model whose sequences and groups can be enumerated, whether the
expected gradient is that of the expected reward.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import at_least, each, fraction, in_order, non_negative, one_of, seeds
from experiments.lab.claims import Finding, at_most, between, claim
from experiments.lab.plots import COLORS, Picture, curve, curves, panels, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv.lm import tabular
from jdiv.policy.advantages import grpo_advantages, rloo_advantages
from jdiv.policy.clipped import cispo, dual_clip, ppo_clip
from jdiv.policy.recipes.gtpo import conflict_weights
from jdiv.policy.tokens import constant_mean, sequence_mean, token_mean

AXES = {"seed": seeds}
FIELDS = {
    "lengths": each(at_least(1)),
    "right": at_least(1),
    "shared": at_least(1),
    "sign": one_of((1.0, -1.0)),
    "ceiling": at_least(1),
    "high": non_negative,
    "higher": non_negative,
    "low": fraction,
    "open": non_negative,
}
AVERAGES = {"token": "DAPO", "sequence": "GRPO", "constant": "Dr. GRPO"}
RULES = (*AVERAGES, "conflict weights")
RATIOS = np.geomspace(0.1, 10, 401)
CLIPS = "PPO", "DAPO", "dual clip", "CISPO"
RECIPES = {
    # Advantages, average.
    "RLOO": (rloo_advantages, "constant"),
    "Dr. GRPO": (lambda rewards: grpo_advantages(rewards, scale=False), "constant"),
    "GRPO": (grpo_advantages, "sequence"),
    "GRPO, no std": (lambda rewards: grpo_advantages(rewards, scale=False), "sequence"),
    "DAPO": (grpo_advantages, "token"),
}
FLIPPED = {"sign": -1.0, "sweep.seed": (0, 1)}


def averaged(name: str, x: Array, mask: Array) -> Array:
    """One of `AVERAGES`; the constant length is 1."""
    if name == "constant":
        return constant_mean(x, mask, 1.0)
    return {"token": token_mean, "sequence": sequence_mean}[name](x, mask)


# --------------------------------------------------------------------------------------- tokens


def shares(config: ConfigDict) -> Labelled:
    """Shares of the gradient by log-probabilities, summed over each sequence."""
    longest = max(config.lengths)
    mask = jnp.arange(longest)[None] < jnp.array(config.lengths)[:, None]
    still = jnp.full(mask.shape, -1.0)
    advantages = config.sign * jnp.ones(len(config.lengths))

    def losses(log_probs: Array) -> Array:
        loss = ppo_clip(log_probs, still, advantages, mask).loss
        return jnp.stack([averaged(name, loss, mask) for name in AVERAGES])

    by_sequence = jnp.sum(jax.jacrev(losses)(still), axis=-1)
    share = by_sequence / jnp.sum(by_sequence, axis=-1, keepdims=True)
    return labelled(share, average=AVERAGES, length=config.lengths)


def at_prefix(config: ConfigDict) -> Labelled:
    """Ascent on the first shared token by the length of the wrong answer.

    In units of what the right answer alone would have. Both answers are of the same policy, so its
    log-probability is one number.
    """
    longest = max(*config.lengths, config.right)
    place = jnp.arange(longest)
    # Equal tokens where they share the prefix, else different ones.
    written = jnp.stack([jnp.zeros_like(place), (place >= config.shared).astype(place.dtype)])
    advantages = config.sign * grpo_advantages(jnp.array([[1.0, 0.0]]))[0]

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

    ascent = -jax.vmap(of_length, out_axes=1)(jnp.array(config.lengths))
    return labelled(ascent, rule=RULES, length=config.lengths)


def pulls(config: ConfigDict) -> Labelled:
    """What gradient descent adds to log pi by ratio, for advantages 1 and -1."""
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

    pull = jax.vmap(of_advantage, out_axes=1)(config.sign * jnp.array([1.0, -1.0]))
    return labelled(pull, clip=CLIPS, advantage=(1.0, -1.0), ratio=RATIOS)


# -------------------------------------------------------------------------------------- gradients


def expected(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """Error and direction of each recipe's mean gradient over all groups of two."""
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
            paid = config.sign * advantages(rewards[pairs])
            loss = ppo_clip(log_probs, jax.lax.stop_gradient(log_probs), paid, mask).loss
            found.append(jax.vmap(lambda x, m, a=average: averaged(a, x, m))(loss, mask) @ chance)
        return -jnp.stack(found)

    gradients = jax.jacrev(losses)(policy).reshape(len(RECIPES), -1)
    true = jax.grad(tabular.expectation)(policy, rewards).ravel()
    size, length = jnp.linalg.norm(true), jnp.linalg.norm(gradients, axis=1)
    along = gradients @ true
    found = {
        "error": jnp.linalg.norm(gradients - true[None], axis=1) / size,
        "cosine": along / (size * length),
        "factor": along / size**2,
    }
    return {name: labelled(x, recipe=RECIPES) for name, x in found.items()}


# -------------------------------------------------------------------------------- the experiment


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses a right answer that is shorter than the shared prefix."""
    in_order(config, "shared", "right")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """All of it; only the expected gradients depend on the seed."""
    exact = {"share": shares(config), "prefix": at_prefix(config), "pull": pulls(config)}
    return exact | expected(config, point, key)


# -------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Lengths, conflicts and expected gradients; and what clips leave."""
    return {"averages": _averages(config, results), "clips": _clips(config, results)}


def _averages(config: ConfigDict, results: xr.Dataset) -> Picture:
    figure, (left, middle, right) = panels(3, width=3.9, height=3.9)
    at, small = results.isel(seed=0), {"fontsize": "small", "title_fontsize": "small"}
    titles = [f"{name} ({recipe})" for name, recipe in AVERAGES.items()]
    curves(left, "length", at.share.assign_coords(average=titles), "average", marker=True)
    rules = [*AVERAGES, "sequence, conflict weights (GTPO)"]
    curves(middle, "length", at.prefix.assign_coords(rule=rules), "rule", marker=True)
    middle.axvline(config.right, color="#707070", linewidth=0.8)
    left.set_yscale("log")
    left.set(xlabel="length, tokens", ylabel="share of the gradient")
    middle.set(xlabel="length of the wrong answer, tokens", ylabel="ascent on a shared token")
    middle.set_ylim(None, 3)
    left.legend(title="average over", **small)
    middle.legend(handles=middle.lines[3:4], fontsize="small")
    for axis in (left, middle):
        axis.set_xscale("log", base=2)
        ticks(axis, x=config.lengths)
    for row, name in enumerate(RECIPES):
        values = results.cosine.sel(recipe=name)
        right.plot(values, np.full(values.shape, row), "|", color=COLORS[5], markersize=12)
        right.plot(values.median(), row, "o", color=COLORS[0], markersize=6)
    right.set_yticks(range(len(RECIPES)), list(RECIPES))
    right.invert_yaxis()
    right.set(xlabel="cosine of the expected gradient to ∇E[r]", xlim=(None, 1.01))
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
    figure, axes = panels(2, height=3.9)
    for axis, advantage in zip(axes, (1.0, -1.0), strict=True):
        for number, name in enumerate(CLIPS):
            pull = results.pull.isel(seed=0).sel(clip=name, advantage=advantage)
            curve(axis, "ratio", pull, label=name, linewidth=2, **style(number))
        axis.axvline(1, color="#707070", linewidth=0.8)
        axis.set(xscale="log", xlabel="ratio π/π_old", title=f"advantage {advantage:+.0f}")
        ticks(axis, x=(0.1, 0.3, 1, 3, 10))
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


@claim(
    source="GRPO (arXiv:2402.03300) and DAPO (arXiv:2503.14476), by their averages",
    wrong=({"flat": "token"}, {"proportional": "sequence"}),
)
def gradient_share_by_length(
    results: xr.Dataset, flat: str = "sequence", proportional: str = "token"
) -> Finding:
    """The share of the gradient of a sequence of length L is 1/n for the average over sequences and
    L/sum L for that over tokens: largest differences."""
    share, length = results.share.isel(seed=0), results.length
    equal = share.sel(average=flat) - 1 / length.size
    by_length = share.sel(average=proportional) - length / length.sum()
    return at_most(1e-12, (abs(equal).max(), abs(by_length).max()))


@claim(
    source="GTPO (arXiv:2508.03772), on conflicting tokens",
    wrong=({"average": "sequence"}, {"average": "conflict weights"}),
)
def shared_tokens_cancel(results: xr.Dataset, average: str = "token") -> Finding:
    """A token that a right and a wrong answer share has no gradient in an average over tokens or
    with a constant, whatever their lengths: largest, in units of the right answer alone."""
    prefix = results.prefix.isel(seed=0)
    return at_most(1e-12, [abs(prefix.sel(rule=rule)).max() for rule in (average, "constant")])


@claim(source="derived from GRPO's average; GTPO's weights as in its toy", reruns=(FLIPPED,))
def average_over_sequences_leaves_a_rest(results: xr.Dataset, config: ConfigDict) -> Finding:
    """Averaged over each sequence a shared token has `1 - R/L` of the gradient, R and L the lengths
    of the right and the wrong answer; with GTPO's weights it has that of the right answer twice:
    differences."""
    prefix = results.prefix.isel(seed=0)
    rest = prefix.sel(rule="sequence") - (1 - config.right / results.length)
    doubled = prefix.sel(rule="conflict weights") - 2
    return at_most(1e-12, (abs(rest).max(), abs(doubled).max()))


def clipped_by_formula(config: ConfigDict) -> np.ndarray:
    """`[clip, advantage, ratio]` what descent adds to log pi."""
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


@claim(
    source="PPO (arXiv:1707.06347), DAPO (2503.14476), RPG (2505.17508), MiniMax-M1 (2506.13585)",
    reruns=(FLIPPED,),
    wrong=({"clips": ("PPO", "PPO", "dual clip", "CISPO")},),
)
def clips_leave_the_sign(
    results: xr.Dataset, config: ConfigDict, clips: tuple[str, ...] = CLIPS
) -> Finding:
    """What descent adds to log pi, against the formula: `w A`, 0 where a token is clipped, for
    CISPO `min(w, bound) A`; largest difference over ratios from .1 to 10."""
    pull = results.pull.isel(seed=0).sel(clip=list(clips)).transpose("clip", "advantage", "ratio")
    return at_most(1e-12, abs(pull.values - clipped_by_formula(config)).max())


@claim(
    source="Ahmadian et al. 2024 (arXiv:2402.14740); Dr. GRPO (arXiv:2503.20783)",
    reruns=(FLIPPED,),
    wrong=({"recipe": "GRPO"}, {"recipe": "DAPO"}),
)
def only_rloo_is_unbiased(results: xr.Dataset, recipe: str = "RLOO") -> Finding:
    """Relative error of RLOO's expected gradient over all groups of two, largest over draws; and of
    Dr. GRPO's from half of it, (n - 1)/n at n = 2, by factor and direction."""
    half = results.sel(recipe="Dr. GRPO")
    deviations = abs(half.factor - 0.5), abs(half.cosine - 1)
    return at_most(1e-12, [results.error.sel(recipe=recipe).max(), *(x.max() for x in deviations)])


@claim(
    source="Dr. GRPO (arXiv:2503.20783), on the bias by length; the bound is chosen here",
    reruns=(FLIPPED,),
    wrong=({"recipe": "RLOO"},),
)
def averages_by_length_change_the_direction(results: xr.Dataset, recipe: str = "GRPO") -> Finding:
    """Cosine of GRPO's expected gradient to that of the expected reward, mean over draws: the right
    half-space, but not the right direction."""
    return between(0.5, results.cosine.sel(recipe=recipe).mean(), 0.9999)
