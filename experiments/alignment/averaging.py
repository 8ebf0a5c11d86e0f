"""Averages of weights: SLERP, WARP and SALSA in bandits whose rewards are noisy.

WARP (Rame et al. 2024, arXiv:2406.16768) and SALSA (arXiv:2411.01798, abstract) report language
models; here are their mechanisms: noise of single runs averages out, and the line from the start to
the merged weights is a front of reward against KL.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import above, count, fraction, non_negative, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, between, claim, equals, together
from experiments.lab.plots import Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators, regularized
from jdiv.alignment import averaging
from jdiv.policy.advantages import rloo_advantages

AXES = {"intact": fraction, "seed": seeds}
FIELDS = {
    "follow": fraction,
    "share": fraction,
    "noise": non_negative,
    "answers": above(1),
    "batch": count,
    "beta": positive,
    "demonstrations": count,
    "prior": positive,
    "rounds": count,
    "step_size": non_negative,
    "steps": count,
}
POLICIES = ("single", "mixture", "lerp 2", "slerp 2", "slerp 4")
WARP = "WARP, Rame et al. 2024 (arXiv:2406.16768)"
TOY = "; reported for language models, this toy is ours and the shape is the claim"
LINE = (0.7071, 0.8660, 0.9659)
ENOUGH = 4
"""Standard errors over seeds."""
NONE_OF_IT = {"sweep.intact": (0.0,), "sweep.seed": tuple(range(64))}
"""All models are trained on the same draws, and so are copies of one; neither the anchor nor the
start of the next round moves. At once: each claim reads one of them."""


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses what is no average."""
    if config.shares[0] != 0 or config.shares[-1] != 1:
        raise ValueError(f"config.shares must go from 0 to 1, got {config.shares}")


def train(config: ConfigDict, reward: Array, follow: Array, start: Array, key: Array) -> Array:
    """REINFORCE from noisy rewards, with a KL penalty towards an anchor that follows the policy."""
    of_answers, of_noise = jax.random.split(key)
    gumbels = jax.random.gumbel(of_answers, (config.steps, config.batch, len(start)))
    noise = config.noise * jax.random.normal(of_noise, (config.steps, config.batch))

    def step(state, drawn):
        (logits, anchor), (gumbels, noise) = state, drawn
        log_policy = jax.nn.log_softmax(logits)
        taken = jnp.argmax(log_policy[None] + gumbels, axis=-1)
        penalty = config.beta * (log_policy - jax.nn.log_softmax(anchor))
        paid = (reward - penalty)[taken] + noise
        advantage = rloo_advantages(paid[None])[0]
        surrogate = lambda x: jnp.mean(advantage * jax.nn.log_softmax(x)[taken])
        logits += config.step_size * jax.grad(surrogate)(logits)
        return (logits, averaging.interpolate(anchor, logits, follow)), None

    (logits, _), _ = jax.lax.scan(step, (start, start), (gumbels, noise))
    return logits


def lengths(config: ConfigDict) -> Labelled:
    """Length of what lies between unit vectors at these angles."""
    angles = jnp.deg2rad(jnp.array(config.degrees))
    ends = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    shares, first = jnp.array(config.shares), jnp.array([1.0, 0.0])

    def along(way: Callable) -> Array:
        of_end = lambda end: jax.vmap(lambda s: jnp.linalg.norm(way(first, end, s)))(shares)
        return jax.vmap(of_end)(ends)

    length = jnp.stack([along(averaging.slerp), along(averaging.interpolate)])
    return labelled(length, way=("slerp", "lerp"), degree=config.degrees, share=config.shares)


def front(
    config: ConfigDict, reward: Array, start: Array, log_policies: Array
) -> tuple[Array, Array, Array]:
    """KL from the start and reward of policies `[shares, n]`, and reward at levels of KL."""
    kl = divergences.kl(log_policies, jnp.broadcast_to(start, log_policies.shape))
    gained = jnp.exp(log_policies) @ reward
    return kl, gained, jnp.interp(jnp.array(config.levels), kl, gained)


def fronts(config: ConfigDict, reward: Array, start: Array, models: Array) -> dict[str, Labelled]:
    """Lines from the start to four models, to what they merge to, and mixtures with the start."""
    shares = jnp.array(config.shares)
    pairs = models.reshape(2, 2, -1)
    merge = jax.vmap(functools.partial(averaging.merge, start))
    ends = {
        "single": models,
        "lerp 2": jax.vmap(averaging.average)(pairs),
        "slerp 2": merge(pairs),
        "slerp 4": merge(models[None]),
    }
    log_policies = lines(config, start, jnp.concatenate(list(ends.values())))
    singles, part = jnp.exp(log_policies[:4]), shares[None, :, None]
    mixtures = jnp.log((1 - part) * singles[:, :1] + part * singles[:, -1:])
    measure = jax.vmap(functools.partial(front, config, reward, start))
    measured = measure(jnp.concatenate([log_policies, mixtures]))
    # Each policy of its kind counts: four single ones, two pairs.
    kinds = [*np.repeat(list(ends), [len(x) for x in ends.values()]), *["mixture"] * 4]
    share_of_kind = np.array([[kind == name for kind in kinds] for name in POLICIES], float)
    share_of_kind /= share_of_kind.sum(axis=1, keepdims=True)
    kl, gained, at_level = (jnp.asarray(share_of_kind) @ x for x in measured)
    return {
        "kl": labelled(kl, policy=POLICIES, share=config.shares),
        "reward": labelled(gained, policy=POLICIES, share=config.shares),
        "at_level": labelled(at_level, policy=POLICIES, level=config.levels),
    }


def lines(config: ConfigDict, start: Array, ends: Array) -> Array:
    """`[ends, shares, answers]` log-policies of the weights between the start and each end."""
    along = jax.vmap(averaging.interpolate, (None, None, 0))
    return jax.nn.log_softmax(
        jax.vmap(along, (None, 0, None))(start, ends, jnp.array(config.shares))
    )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """One bandit: models, fronts, rounds, and a policy towards averaged references."""
    keys = jax.random.split(key, 5)
    reward, start = jax.random.normal(keys[0], (2, config.answers)) * jnp.array([[1.0], [0.5]])
    fit = functools.partial(train, config, reward)
    intact = point["intact"]
    follow = intact * jnp.array([config.follow] * 4 + [0.0])
    draws = jax.random.split(keys[1], 4)
    draws = draws[jnp.where(intact > 0, jnp.array([0, 1, 2, 3, 0]), 0)]
    models = jax.vmap(fit, (0, None, 0))(follow, start, draws)
    _, merged = averaging.warp(
        functools.partial(fit, intact * config.follow),
        start,
        jax.random.split(keys[2], (config.rounds, 2)),
        share=intact * config.share,
    )
    measure = jax.vmap(functools.partial(front, config, reward, start))
    round_kl, round_reward, by_round = measure(lines(config, start, merged))
    final = jax.nn.softmax(models[jnp.array([0, 4])]) @ reward
    number = range(1, config.rounds + 1)
    return fronts(config, reward, start, models[:4]) | {
        "length": lengths(config),
        "angle": jnp.rad2deg(averaging.angle(models[0] - start, models[1] - start)),
        "round_kl": labelled(round_kl, round=number, share=config.shares),
        "round_reward": labelled(round_reward, round=number, share=config.shares),
        "by_round": labelled(by_round, round=number, level=config.levels),
        "final": labelled(final, anchor=("ema", "fixed")),
        "value": labelled(salsa(config, intact, reward, keys[3:]), reference=("single", "average")),
    }


def salsa(config: ConfigDict, intact: Array, reward: Array, keys: Array) -> Array:
    """`E[r] - beta KL(pi‖truth)` of the best policies towards one model and towards two averaged.

    A supervised model is the posterior mean after demonstrations of the truth, its weights logits.
    """
    of_truth, of_demonstrations = keys
    truth = jax.nn.log_softmax(jax.random.normal(of_truth, (config.answers,)))
    drawn = jax.random.categorical(of_demonstrations, truth, shape=(2, config.demonstrations))
    counts = jnp.sum(jax.nn.one_hot(drawn, config.answers), axis=1)
    counts = counts[jnp.where(intact > 0, jnp.array([0, 1]), 0)]
    models = jnp.log(counts + config.prior * config.demonstrations / config.answers)
    references = jnp.stack([models[0], averaging.average(models)])
    rewards = jnp.broadcast_to(reward, references.shape)
    best = regularized.greedy(rewards, references, 1.0, generator=generators.kl()).log_policy
    return jnp.exp(best) @ reward - divergences.kl(best, jnp.broadcast_to(truth, best.shape))


def standard_errors(difference: xr.DataArray) -> xr.DataArray:
    """The mean over seeds in its standard errors; 0 where they differ by rounding only."""
    difference = difference.isel(intact=0)
    spread = difference.std("seed", ddof=1) / difference.sizes["seed"] ** 0.5
    return (difference.mean("seed") / spread.where(spread > 1e-12)).fillna(0)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Lengths along lines and arcs; fronts of single, merged, and rounds."""
    figure, (left, middle, right) = panels(3, width=3.6)
    mean = results.isel(intact=0).mean("seed")
    for number, degree in enumerate(config.degrees):
        line = mean.length.sel(way="lerp", degree=degree)
        curve(left, "share", line, label=f"line, {degree:g}°", **style(number))
    arc = mean.length.sel(way="slerp").mean("degree")
    curve(left, "share", arc, color="black", label="arc, every angle")
    left.set(xlabel="share of the second vector", ylabel="length", ylim=(0.65, 1.05))
    left.legend(fontsize="small", loc="lower left")
    names = {
        "mixture": "mixture with the start",
        "single": "one policy",
        "lerp 2": "LERP 2",
        "slerp 2": "SLERP 2",
        "slerp 4": "SLERP 4",
    }
    for number, (policy, name) in enumerate(names.items()):
        at = mean.sel(policy=policy)
        middle.plot(at.kl, at.reward, **style(number, marker=True), label=name)
    for number, label in enumerate(results["round"].values):
        at = mean.sel(round=label)
        look = style(number, marker=True)
        right.plot(at.round_kl, at.round_reward, **look, label=f"round {label}")
    for axis in (middle, right):
        axis.set(xlabel="KL(π‖start), nats", ylabel="true reward")
        axis.legend(fontsize="small", loc="lower right")
    return {
        "averages": Picture(
            figure,
            "Left: lines between vectors of length 1 cut the corner, arcs do not. Middle: weights"
            " on the line from the start to what was trained are a front of reward against KL; the"
            " merged ones lie above one policy, four above two, and SLERP reaches farther than the"
            " plain average. Right: rounds of WARP, lines from the first start to what the round"
            " merged: later ones reach more reward, and have less at small KL.",
        )
    }


@claim(
    source=f"{WARP}, section 3.2; lengths by sqrt(1 - 2 (1 - cos W)(s - s^2))",
    reference=(0, *LINE),
    wrong=({"arc": "lerp"}, {"line": "slerp"}),
)
def arcs_keep_the_length(results: xr.Dataset, arc: str = "slerp", line: str = "lerp") -> Finding:
    """Arcs between unit vectors at 90, 60 and 30 degrees keep the length, the largest change; lines
    have .7071, .8660, .9659 of it half-way."""
    length = results.length.isel(seed=0, intact=0)
    return together(
        between(0, np.abs(length.sel(way=arc) - 1).max(), 1e-14),
        equals(LINE, length.sel(way=line, share=0.5), tolerance=5.1e-5),
    )


@claim(source=f"{WARP}, fronts by interpolation{TOY}", reruns=(NONE_OF_IT,))
def merged_policies_lie_above_one(results: xr.Dataset) -> Finding:
    """Reward of two merged policies less that of one, at KL of .2, .4, .6; means over two pairs and
    four policies. Mean over seeds in standard errors; the bound is four."""
    at_level = results.at_level
    gain = at_level.sel(policy="slerp 2") - at_level.sel(policy="single")
    return at_least(ENOUGH, standard_errors(gain))


@claim(source=f"{WARP}, more models{TOY}", reruns=(NONE_OF_IT,))
def four_lie_above_two(results: xr.Dataset) -> Finding:
    """Reward of four merged policies less the mean over two pairs of them, at KL of .2, .4, .6.
    Mean over seeds in standard errors; the bound is four."""
    at_level = results.at_level
    gain = at_level.sel(policy="slerp 4") - at_level.sel(policy="slerp 2")
    return at_least(ENOUGH, standard_errors(gain))


@claim(
    source=f"{WARP}, interpolation towards the start{TOY}",
    wrong=({"policy": "mixture"},),
)
def weights_beat_mixtures(results: xr.Dataset, policy: str = "single") -> Finding:
    """Reward on the line of weights between start and policy less that of mixtures of the two, at
    KL of .2, .4, .6. Mean over seeds in standard errors; the bound is four."""
    at_level = results.at_level
    gain = at_level.sel(policy=policy) - at_level.sel(policy="mixture")
    return at_least(ENOUGH, standard_errors(gain))


@claim(
    source=f"{WARP}, iterations: fronts of later rounds lie above{TOY}. That does not hold here:"
    " with free logits a longer line points to the best answers, and is worse near its start",
    reruns=(NONE_OF_IT,),
    wrong=({"late": 1},),
)
def later_rounds_reach_farther_and_not_higher(results: xr.Dataset, late: int = 3) -> Finding:
    """What the last round has merged has more reward than the first's, and less at KL of .2, .4, .6
    on its line. Mean over seeds in standard errors; the bounds are four."""
    ends, by_round = results.round_reward.sel(share=1.0), results.by_round
    reach = ends.sel(round=late) - ends.sel(round=1)
    later = by_round.sel(round=late) - by_round.sel(round=1)
    return together(
        at_least(ENOUGH, standard_errors(reach)), at_most(-ENOUGH, standard_errors(later))
    )


@claim(
    source=f"{WARP}: with the supervised model as anchor and beta .1 the reward stays lower{TOY}",
    reruns=(NONE_OF_IT,),
)
def a_moving_anchor_frees_the_policy(results: xr.Dataset) -> Finding:
    """Final reward with the EMA anchor less that with the fixed one. Mean over seeds in standard
    errors; the bound is four."""
    freed = results.final.sel(anchor="ema") - results.final.sel(anchor="fixed")
    return at_least(ENOUGH, standard_errors(freed))


@claim(source=f"SALSA (arXiv:2411.01798), abstract{TOY}", reruns=(NONE_OF_IT,))
def an_averaged_reference_is_better(results: xr.Dataset) -> Finding:
    """What the best policy towards the reference is worth, reward less KL from the truth that both
    supervised models have samples of: average of two less one of them. Mean over seeds in standard
    errors; the bound is four."""
    soup = results.value.sel(reference="average") - results.value.sel(reference="single")
    return at_least(ENOUGH, standard_errors(soup))
