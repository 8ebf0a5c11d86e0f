"""Averages of weights: SLERP, WARP and SALSA in bandits whose rewards are noisy.

WARP (Rame et al. 2024, arXiv:2406.16768) and SALSA (arXiv:2411.01798, abstract) report language
models; here are their mechanisms: noise of single runs averages out, and the line from the start to
the merged weights is a front of reward against KL.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import Picture
from jdiv import divergences, generators, regularized
from jdiv.alignment import averaging
from jdiv.policy.advantages import rloo_advantages

TRACED = ("seed",)
POLICIES = ("single", "mixture", "copies", "lerp 2", "slerp 2", "slerp 4")
REFERENCES = ("single", "copies", "average")
DIMS = {
    "length": ("way", "degree", "share"),
    "kl": ("policy", "share"),
    "reward": ("policy", "share"),
    "at_level": ("policy", "level"),
    "by_round": ("round", "level"),
    "round_kl": ("round", "share"),
    "round_reward": ("round", "share"),
    "final": ("anchor",),
    "value": ("reference",),
}
WARP = "WARP, Rame et al. 2024 (arXiv:2406.16768)"
TOY = "; reported for language models, this toy is ours and the shape is the claim"
LINE = (0.7071, 0.8660, 0.9659)


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Labels of ways, policies, shares and levels of KL."""
    return {
        "way": ("slerp", "lerp"),
        "degree": config.degrees,
        "share": config.shares,
        "policy": POLICIES,
        "level": config.levels,
        "round": range(1, config.rounds + 1),
        "anchor": ("ema", "fixed"),
        "reference": REFERENCES,
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses what is no average."""
    if config.shares[0] != 0 or config.shares[-1] != 1:
        raise ValueError(f"config.shares must go from 0 to 1, got {config.shares}")
    if not 0 <= config.follow <= 1:
        raise ValueError(f"config.follow must be in [0, 1], got {config.follow}")


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
        advantage = rloo_advantages(paid)
        surrogate = lambda x: jnp.mean(advantage * jax.nn.log_softmax(x)[taken])
        logits += config.rate * jax.grad(surrogate)(logits)
        return (logits, averaging.interpolate(anchor, logits, follow)), None

    (logits, _), _ = jax.lax.scan(step, (start, start), (gumbels, noise))
    return logits


def lengths(config: ConfigDict) -> Array:
    """`[way, degree, share]` of what lies between unit vectors at these angles."""
    angles = jnp.deg2rad(jnp.array(config.degrees))
    ends = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    shares, first = jnp.array(config.shares), jnp.array([1.0, 0.0])

    def along(way):
        of_end = lambda end: jax.vmap(lambda s: jnp.linalg.norm(way(first, end, s)))(shares)
        return jax.vmap(of_end)(ends)

    return jnp.stack([along(averaging.slerp), along(averaging.interpolate)])


def front(config: ConfigDict, reward: Array, start: Array, log_policies: Array):
    """KL from the start and reward of policies `[shares, n]`, and reward at levels of KL."""
    kl = divergences.kl(log_policies, jnp.broadcast_to(start, log_policies.shape))
    gained = jnp.exp(log_policies) @ reward
    return kl, gained, jnp.interp(jnp.array(config.levels), kl, gained)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """One bandit: models, fronts, rounds, and a policy towards averaged references."""
    keys = jax.random.split(key, 5)
    reward, start = jax.random.normal(keys[0], (2, config.answers)) * jnp.array([[1.0], [0.5]])
    fit = functools.partial(train, config, reward)
    follow = jnp.array([config.follow] * 4 + [0.0])
    seeds = jax.random.split(keys[1], 4)
    models = jax.vmap(fit, (0, None, 0))(follow, start, seeds[jnp.array([0, 1, 2, 3, 0])])

    shares = jnp.array(config.shares)
    line = lambda end: jax.vmap(lambda s: averaging.interpolate(start, end, s))(shares)
    first, pairs = models[:4], models[:4].reshape(2, 2, -1)
    merge = jax.vmap(functools.partial(averaging.merge, start))
    ends = {
        "single": first,
        "copies": jax.vmap(averaging.average)(jnp.stack([first, first], axis=1)),
        "lerp 2": jax.vmap(averaging.average)(pairs),
        "slerp 2": merge(pairs),
        "slerp 4": merge(first[None]),
    }
    lines = jax.nn.log_softmax(jax.vmap(line)(jnp.concatenate(list(ends.values()))))
    singles, part = jnp.exp(lines[:4]), shares[None, :, None]
    mixtures = jnp.log((1 - part) * singles[:, :1] + part * singles[:, -1:])
    measure = jax.vmap(functools.partial(front, config, reward, start))
    measured = measure(jnp.concatenate([lines, mixtures]))
    # Each policy of its kind counts: four single ones, two pairs.
    kinds = [*np.repeat(list(ends), [len(x) for x in ends.values()]), *["mixture"] * 4]
    share_of_kind = np.array([[kind == name for kind in kinds] for name in POLICIES], float)
    share_of_kind /= share_of_kind.sum(axis=1, keepdims=True)
    kl, gained, at_level = (jnp.asarray(share_of_kind) @ x for x in measured)

    _, merged = averaging.warp(
        functools.partial(fit, config.follow), start,
        jax.random.split(keys[2], (config.rounds, 2)), share=config.share,
    )  # fmt: skip
    round_kl, round_reward, by_round = measure(jax.nn.log_softmax(jax.vmap(line)(merged)))
    final = jax.nn.softmax(models[jnp.array([0, 4])]) @ reward
    return {
        "length": lengths(config),
        "kl": kl,
        "reward": gained,
        "at_level": at_level,
        "angle": jnp.rad2deg(averaging.angle(models[0] - start, models[1] - start)),
        "round_kl": round_kl,
        "round_reward": round_reward,
        "by_round": by_round,
        "final": final,
        "value": salsa(config, reward, keys[3:]),
    }


def salsa(config: ConfigDict, reward: Array, keys: Array) -> Array:
    """`E[r] - beta KL(pi‖truth)` of the best policies towards each of REFERENCES.

    A supervised model is the posterior mean after demonstrations of the truth, its weights logits.
    """
    of_truth, of_demonstrations = keys
    truth = jax.nn.log_softmax(jax.random.normal(of_truth, (config.answers,)))
    drawn = jax.random.categorical(of_demonstrations, truth, shape=(2, config.demonstrations))
    counts = jnp.sum(jax.nn.one_hot(drawn, config.answers), axis=1)
    models = jnp.log(counts + config.prior * config.demonstrations / config.answers)
    references = jnp.stack(
        [models[0], averaging.average(models[jnp.array([0, 0])]), averaging.average(models)]
    )
    rewards = jnp.broadcast_to(reward, references.shape)
    best = regularized.greedy(rewards, references, 1.0, generator=generators.kl()).log_policy
    return jnp.exp(best) @ reward - divergences.kl(best, jnp.broadcast_to(truth, best.shape))


def standard_errors(difference: xr.DataArray) -> xr.DataArray:
    """Mean over seeds in its standard errors."""
    return (
        difference.mean("seed") / difference.std("seed", ddof=1) * difference.sizes["seed"] ** 0.5
    )


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Lengths along lines and arcs; fronts of single, merged, and rounds."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.8, 3.9))
    length = results.length.isel(seed=0)
    for degree, style in zip(config.degrees, ("-", "--", "-."), strict=False):
        left.plot(
            length.share, length.sel(way="lerp", degree=degree), style, label=f"line, {degree:g}°"
        )
    left.plot(length.share, length.sel(way="slerp").mean("degree"), "k-", label="arc, every angle")
    left.set(xlabel="share of the second vector", ylabel="length", ylim=(0.65, 1.05))
    left.legend(fontsize="small", loc="lower left")
    mean = results.mean("seed")
    shown = ("mixture", "single", "lerp 2", "slerp 2", "slerp 4")
    for name, style in zip(shown, ("v:", "o-", "P--", "s--", "^-."), strict=True):
        at = mean.sel(policy=name)
        label = {"mixture": "mixture with the start", "single": "one policy"}.get(
            name, name.upper()
        )
        middle.plot(at.kl, at.reward, style, ms=4, label=label)
    for number in results["round"].values:
        at = mean.sel(round=number)
        style = ("o-", "s--", "^-.", "v:")[(number - 1) % 4]
        right.plot(at.round_kl, at.round_reward, style, ms=4, label=f"round {number}")
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


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Lengths, fronts, models, rounds, anchors, references."""
    arc, line = ("lerp", "slerp") if config.claims.swapped else ("slerp", "lerp")
    length = results.length.isel(seed=0)
    at_level = results.at_level
    gain = at_level.sel(policy=config.claims.merged) - at_level.sel(policy="single")
    more = at_level.sel(policy="slerp 4") - at_level.sel(
        policy="slerp 2" if config.claims.merged == "slerp 2" else "slerp 4"
    )
    mixed = at_level.sel(policy="mixture")
    along = at_level.sel(policy="mixture" if config.claims.merged == "copies" else "single")
    later = results.by_round.sel(round=config.claims.late) - results.by_round.sel(round=1)
    ends = results.round_reward.sel(share=1.0)
    reach = ends.sel(round=config.claims.late) - ends.sel(round=1)
    freed = results.final.sel(anchor=config.claims.anchor) - results.final.sel(anchor="fixed")
    soup = results.value.sel(reference=config.claims.salsa) - results.value.sel(reference="single")
    enough = "Mean over seeds in standard errors; the bound is four."
    copies = ({"claims.merged": "copies"},)
    return [
        Claim(
            "arcs-keep-the-length",
            f"{WARP}, section 3.2; lengths by sqrt(1 - 2 (1 - cos W)(s - s^2))",
            "Largest change of length along arcs at 90, 60 and 30 degrees, and the lengths half-way"
            " along lines, .7071, .8660, .9659.",
            [float(np.abs(length.sel(way=arc) - 1).max()), *length.sel(way=line, share=0.5).values],
            low=(0, *np.array(LINE) - 5.1e-5),
            high=(1e-14, *np.array(LINE) + 5.1e-5),
            controls=({"claims.swapped": True},),
        ),
        Claim(
            "merged-policies-lie-above-one",
            f"{WARP}, fronts by interpolation{TOY}",
            f"Reward of two merged policies less that of one, at KL of .2, .4, .6; means over two"
            f" pairs and four policies. {enough}",
            standard_errors(gain).values,
            low=4,
            controls=copies,
        ),
        Claim(
            "four-lie-above-two",
            f"{WARP}, more models{TOY}",
            f"Reward of four merged policies less the mean over two pairs of them. {enough}",
            standard_errors(more).values,
            low=4,
            controls=copies,
        ),
        Claim(
            "weights-beat-mixtures",
            f"{WARP}, interpolation towards the start{TOY}",
            "Reward on the line of weights between start and policy less that of mixtures of the"
            f" two, at KL of .2, .4, .6. {enough}",
            standard_errors(along - mixed).values,
            low=4,
            controls=copies,
        ),
        Claim(
            "later-rounds-reach-farther-and-not-higher",
            f"{WARP}, iterations: fronts of later rounds lie above{TOY}. That does not hold here:"
            " with free logits a longer line points to the best answers, and is worse near its"
            " start",
            "What the last round has merged has more reward than the first's, and less at KL of"
            " .2, .4, .6 on its line. Mean over seeds in standard errors; the bounds are four.",
            [float(standard_errors(reach)), *standard_errors(later).values],
            low=(4, -np.inf, -np.inf, -np.inf),
            high=(np.inf, -4, -4, -4),
            controls=({"claims.late": 1},),
        ),
        Claim(
            "a-moving-anchor-frees-the-policy",
            f"{WARP}: with the supervised model as anchor and beta .1 the reward stays lower{TOY}",
            f"Final reward with the EMA anchor less that with the fixed one. {enough}",
            float(standard_errors(freed)),
            low=4,
            controls=({"claims.anchor": "fixed"},),
        ),
        Claim(
            "an-averaged-reference-is-better",
            f"SALSA (arXiv:2411.01798), abstract{TOY}",
            "What the best policy towards the reference is worth, reward less KL from the truth"
            " that both supervised models have samples of: average of two less one of them."
            f" {enough}",
            float(standard_errors(soup)),
            low=4,
            controls=({"claims.salsa": "copies"},),
        ),
    ]
