"""The entropy mechanism: what a step does to the entropy, and what entropy says of the reward.

Cui et al. 2025 (arXiv:2505.22617) in tables instead of language models. The reference numbers are
an independent recomputation of these tables, with one run each as far as is known. The sampled runs
are in single precision: on another number of devices their entropies differ by some 1e-5, which is
rounding that their updates have carried on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict
from scipy import stats

from experiments.lab.axes import (
    above,
    count,
    in_order,
    inside,
    non_negative,
    real,
    seeds,
)
from experiments.lab.claims import Finding, at_least, between, claim, equals
from experiments.lab.plots import COLORS, Picture, curves, panels
from experiments.lab.results import Labelled, labelled
from jdiv.policy.advantages import grpo_advantages
from jdiv.policy.recipes.entropy_mechanism import clip_cov, kl_cov, predicted_entropy_change

AXES = {"seed": seeds}
FIELDS = {
    "exact.early": inside(0, 1),
    "sampled.samples": above(1),
    "exact.actions": above(1),
    "exact.right": count,
    "exact.states": count,
    "exact.steps": count,
    "one_step.actions": above(1),
    "one_step.seed": seeds,
    "sampled.actions": above(1),
    "sampled.coefficient_factor": real,
    "sampled.inner": count,
    "sampled.right": count,
    "sampled.states": count,
    "sampled.step_size": non_negative,
    "sampled.steps": count,
}
PLAIN, NATURAL = KINDS = "policy gradient", "natural gradient"


class Rule(NamedTuple):
    """One of the ways to hold the entropy, all of which are one program."""

    share: float
    """Tokens that KL-Cov penalizes."""
    coefficient: float
    """What multiplies their |log w|."""
    dropped: float
    """Tokens that Clip-Cov drops."""
    width: float
    """How far ratios may go from 1."""


RULES = {
    "no clip": Rule(0.02, 0.0, 0.0, np.inf),
    "PPO clip": Rule(0.02, 0.0, 0.0, 0.2),
    "KL-Cov, 2%": Rule(0.02, 1.0, 0.0, np.inf),
    "KL-Cov, 20%": Rule(0.2, 5.0, 0.0, np.inf),
    "Clip-Cov": Rule(0.02, 0.0, 0.2, 1.0),
}
SWAPPED_RULES = {"rules": ("no clip", "PPO clip", "KL-Cov, 20%", "KL-Cov, 2%", "Clip-Cov")}
SWAPPED_KINDS = {"kinds": (NATURAL, PLAIN)}
UNPENALIZED = {
    "sampled.coefficient_factor": 0.0,
    "exact.states": 4,
    "exact.steps": 50,
    "sweep.seed": tuple(range(8)),
}
SOURCE = "Cui et al. 2025 (arXiv:2505.22617)"
TABLES = f"{SOURCE}; in tables, not there"
ONE_STEP = ((1.03200, 1.00319, 1.00032), (1.46780, 1.04554, 1.00454))
R2 = ((0.950, 0.987), (0.9965, 0.967))
CEILING = (0.914, 1.160)
FINAL = (0.020, 0.051, 0.023, 0.453, 0.054)
FIRST = (0.62, 0.74, 0.65, 1.03, 1.01)
THINNED, BATCHES_THINNED = 5, 4


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses more right answers than there are."""
    in_order(config, "exact.right", "exact.actions")
    in_order(config, "sampled.right", "sampled.actions")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """One step, the exact runs, the sampled runs."""
    of_exact, of_sampled = jax.random.split(key)
    return one_step(config) | exact(config, of_exact) | sampled(config, of_sampled)


def _entropy(log_policy: Array) -> Array:
    return -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1)


def _directions(log_policy: Array, reward: Array) -> Array:
    """`pi A` of the policy gradient and `A` of the natural one, `[kind, ..., A]`."""
    policy = jnp.exp(log_policy)
    advantage = reward - jnp.sum(policy * reward, axis=-1, keepdims=True)
    return jnp.stack([policy * advantage, advantage])


def one_step(config: ConfigDict) -> dict[str, Labelled]:
    """Change of entropy over its prediction, by either kind's prediction."""
    settings = config.one_step
    rows = np.random.default_rng(settings.seed).normal(size=(3, settings.actions))
    logits, step_sizes = jnp.asarray(rows[0]), jnp.asarray(settings.step_sizes)
    log_policy = jax.nn.log_softmax(logits)
    directions = _directions(log_policy, jnp.asarray(rows[2]))
    moves = step_sizes[None, :, None] * directions[:, None]
    change = _entropy(jax.nn.log_softmax(logits[None, None] + moves)) - _entropy(log_policy)
    predicted = jax.vmap(jax.vmap(lambda move: predicted_entropy_change(log_policy, move)))(moves)
    ratio = change[:, None] / predicted[None]
    return {
        "one_step": labelled(ratio, kind=KINDS, prediction=KINDS, step_size=settings.step_sizes)
    }


def exact(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """Both gradients of `E[r]` in every state, and what their entropies say."""
    settings = config.exact
    start = jax.random.normal(key, (settings.states, settings.actions))
    reward = (jnp.arange(settings.actions) < settings.right).astype(start.dtype)[None]
    step_sizes = jnp.asarray(settings.step_sizes)

    def ascend(own: Array):
        def step(log_policy: Array, _: None):
            moves = (step_sizes[:, None, None] * _directions(log_policy, reward)).reshape(2, -1)
            moved = log_policy + (own @ moves).reshape(log_policy.shape)
            after = jax.nn.log_softmax(moved)
            predicted = jax.vmap(predicted_entropy_change, (None, 0))(
                log_policy, moves.reshape(2, *start.shape)
            )
            gained = jnp.mean(jnp.sum(jnp.exp(log_policy) * reward, axis=-1))
            return after, (jnp.mean(_entropy(log_policy)), gained, jnp.mean(predicted, axis=-1))

        return jax.lax.scan(step, jax.nn.log_softmax(start), length=settings.steps + 1)[1]

    entropy, gained, predicted = jax.vmap(ascend)(jnp.eye(2))
    driven = _driven(jnp.diff(entropy, axis=-1), predicted[:, :-1])
    entropy, gained = entropy[:, :-1], gained[:, :-1]
    iteration = range(0, settings.steps, THINNED)
    thinned = {"entropy": entropy[:, ::THINNED], "reward": gained[:, ::THINNED]}
    thinned = {name: labelled(x, kind=KINDS, iteration=iteration) for name, x in thinned.items()}
    return driven | thinned | _laws(entropy, gained, int(settings.early * settings.steps))


def _line(x: Array, y: Array) -> tuple[Array, Array]:
    """Value at 1 of the straight line, and the share of the variance that it explains."""
    dx, dy = x - jnp.mean(x), y - jnp.mean(y)
    slope = (dx @ dy) / (dx @ dx)
    return jnp.mean(y) + slope * (1 - jnp.mean(x)), (dx @ dy) ** 2 / (dx @ dx) / (dy @ dy)


def _driven(change: Array, predicted: Array) -> dict[str, Labelled]:
    """How changes of entropy `[kind, step]` follow predictions `[kind, step, prediction]`."""
    _, correlation = jax.vmap(jax.vmap(_line, (1, None)))(predicted, change)
    positive = jnp.stack([predicted[k, :, k] < 0 for k in (0, 1)])
    both = {"kind": KINDS, "prediction": KINDS}
    ratio = jnp.median(change[..., None] / predicted, axis=1)
    return {
        "correlation": labelled(jnp.sqrt(correlation), **both),
        "median_ratio": labelled(ratio, **both),
        "positive": labelled(jnp.mean(positive, axis=1, dtype=change.dtype), kind=KINDS),
    }


def _laws(entropy: Array, gained: Array, early: int) -> dict[str, Labelled]:
    """The fits of reward by e^H and by H; and of the first steps, the reward at entropy 0."""
    laws = jnp.stack([jnp.exp(entropy), entropy], axis=1)
    _, explained = jax.vmap(jax.vmap(_line, (0, None)))(laws, gained)
    at_zero, _ = jax.vmap(_line)(laws[:, 0, :early], gained[:, :early])  # e^H is 1 at H = 0
    return {
        "r2": labelled(explained, kind=KINDS, law=("exponential", "straight")),
        "ceiling": labelled(at_zero, kind=KINDS),
        "attained": labelled(gained[:, -1], kind=KINDS),
    }


def _rule_loss(
    rule: Rule, log_probs: Array, old: Array, advantages: Array, mask: Array, key: Array
) -> Array:
    """The loss of each token by a rule whose numbers are traced."""
    batch = log_probs, old, advantages, mask
    covered = kl_cov(*batch, share=rule.share, coefficient=rule.coefficient).loss
    highest = jnp.where(rule.dropped > 0, 5.0, 1.0)  # an empty band is no Clip-Cov
    clipped = clip_cov(
        *batch, key, share=rule.dropped, lowest=1.0, highest=highest,
        low=rule.width, high=rule.width,
    ).loss  # fmt: skip
    return jnp.where(rule.coefficient > 0, covered, clipped)


def sampled(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """Groups of samples of every state, and a few gradient steps on each batch, by every rule."""
    settings = config.sampled
    of_start, of_actions, of_rules = jax.random.split(key, 3)
    shape = settings.states, settings.samples
    single = jnp.float32  # twice as fast, and this part is statistics
    start = jax.random.normal(of_start, (settings.states, settings.actions), single)
    reward = (jnp.arange(settings.actions) < settings.right).astype(single)
    mask = jnp.full(shape, True)
    draws = jax.random.uniform(of_actions, (settings.steps, *shape), single)
    keys = jax.random.split(of_rules, (settings.steps, settings.inner))

    def train(rule: Rule):
        def step(logits: Array, drawn: tuple[Array, Array]):
            log_policy = jax.nn.log_softmax(logits)
            below = jnp.cumsum(jnp.exp(log_policy), axis=-1)[:, None, :-1] < drawn[0][..., None]
            taken = jnp.sum(below, axis=-1)
            advantages = grpo_advantages(reward[taken])
            old = jnp.take_along_axis(log_policy, taken, axis=-1)

            def inner(change: Array, key: Array):
                def total(change: Array) -> Array:
                    # `dz - log E e^dz`, exactly 0 at first: KL-Cov goes by the sign.
                    mean = jnp.sum(jnp.exp(log_policy) * jnp.expm1(change), -1, keepdims=True)
                    log_ratio = jnp.take_along_axis(change - jnp.log1p(mean), taken, axis=-1)
                    return jnp.sum(_rule_loss(rule, old + log_ratio, old, advantages, mask, key))

                slope = jax.grad(total)(change) / settings.samples
                return change - settings.step_size * slope, None

            change, _ = jax.lax.scan(inner, jnp.zeros_like(logits), drawn[1])
            gained = jnp.mean(jnp.sum(jnp.exp(log_policy) * reward[None], axis=-1))
            return logits + change, (jnp.mean(_entropy(log_policy)), gained)

        return jax.lax.scan(step, start, (draws, keys))[1]

    rules = Rule(*(jnp.asarray(x, single) for x in zip(*RULES.values(), strict=True)))
    rules = rules._replace(coefficient=settings.coefficient_factor * rules.coefficient)
    entropy, gained = jax.vmap(train)(rules)
    reached = jnp.argmax(gained > 0.9, axis=-1)
    first = jnp.take_along_axis(entropy, reached[:, None], axis=-1)[:, 0]
    batch = range(0, settings.steps, BATCHES_THINNED)
    return {
        "final": labelled(entropy[:, -1], rule=RULES),
        "first": labelled(jnp.where(jnp.any(gained > 0.9, axis=-1), first, jnp.nan), rule=RULES),
        "sampled_entropy": labelled(entropy[:, ::BATCHES_THINNED], rule=RULES, batch=batch),
    }


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Reward against entropy with the law; entropy by rule."""
    figure, (left, right) = panels(2, height=4.4)
    mean = results.mean("seed")
    for kind, color in zip(KINDS, COLORS, strict=False):
        entropy, gained = (mean[x].sel(kind=kind).values for x in ("entropy", "reward"))
        r2 = [mean.r2.sel(kind=kind, law=law).item() for law in ("exponential", "straight")]
        label = f"{kind}: R² {r2[0]:.3f} and {r2[1]:.3f}"
        left.plot(entropy, gained, color=color, linewidth=3, alpha=0.5, label=label)
        at = np.linspace(entropy.min(), entropy.max(), 200)
        for law, line in ((np.exp, "--"), (np.asarray, ":")):
            fit = np.polyval(np.polyfit(law(entropy), gained, 1), law(at))
            left.plot(at, fit, line, color=color)
    left.plot([], [], "--", color="black", label="b - a e^H")
    left.plot([], [], ":", color="black", label="b - a H")
    left.set(xlabel="entropy, nats", ylabel="mean reward")
    left.set_ylim(-0.45, 1.05)  # room for the legend
    left.set_yticks([0, 0.25, 0.5, 0.75, 1])
    left.legend(loc="lower left")
    curves(right, "batch", results.sampled_entropy, "rule", over="seed")
    right.set(xlabel="batches", ylabel="entropy, nats", yscale="log")
    right.legend(ncols=2)
    return {
        "entropy": Picture(
            figure,
            "Left: reward against entropy under exact gradients, with both laws fitted; R² of the"
            " exponential and of the straight one. The exponential law is the natural gradient's;"
            " the policy gradient is closer to a straight line. Right: KL-Cov holds the entropy"
            " with a share of 20% and not with 2%; Clip-Cov only delays its fall. Mean and 10th to"
            " 90th percentile over seeds.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


def by_own_prediction(x: xr.DataArray, predictions: tuple[str, ...]) -> np.ndarray:
    """Each kind of gradient against its own prediction, or against these."""
    pairs = zip(KINDS, predictions, strict=True)
    return np.array([x.sel(kind=kind, prediction=other).values for kind, other in pairs])


def as_single_run(reference: tuple, draws: xr.DataArray, *, digit: float) -> Finding:
    """The reference is a single run: 99.9% of the difference by Student's t, and its last digit."""
    count = draws.sizes["seed"]
    error = stats.t.isf(5e-4, count - 1) * draws.std("seed", ddof=1) * (1 + 1 / count) ** 0.5
    return equals(reference, draws.mean("seed"), tolerance=error.values + digit)


OTHER_PREDICTIONS = {"predictions": (NATURAL, PLAIN)}


@claim(source=TABLES, reference=ONE_STEP, wrong=(OTHER_PREDICTIONS,))
def one_step_ratios(results: xr.Dataset, predictions: tuple[str, ...] = KINDS) -> Finding:
    """Change of entropy over -Cov(log pi, dz) at step sizes .1, .01, .001, for the policy gradient
    and the natural one; to the reference's last digit."""
    ratio = by_own_prediction(results.one_step.mean("seed"), predictions)
    return equals(ONE_STEP, ratio, tolerance=5.1e-6)


@claim(source=f"{SOURCE}, the identity to first order", wrong=(OTHER_PREDICTIONS,))
def error_of_the_order_of_the_step(
    results: xr.Dataset, predictions: tuple[str, ...] = KINDS
) -> Finding:
    """A tenth of the step size leaves a tenth of the relative error of the prediction."""
    error = abs(by_own_prediction(results.one_step.mean("seed"), predictions) - 1)
    return between(9.5, error[:, :-1] / error[:, 1:], 10.5)


# Ten times as far from 1 as the reference; a hundredth of the steps, because some starts have a
# negative covariance for a few.
@claim(source=TABLES, reference=(0.99997, 0.9996, 1.0), wrong=({"prediction": NATURAL},))
def covariance_drives_the_entropy(results: xr.Dataset, prediction: str = PLAIN) -> Finding:
    """Over a run of the policy gradient: correlation of the change of entropy with its prediction,
    the median of their ratio, and the share of steps of positive covariance."""
    at = results.mean("seed").sel(kind=PLAIN, prediction=prediction)
    measured = at.correlation, at.median_ratio, at.positive
    return between((1 - 3e-4, 1 - 4e-3, 0.99), measured, (1.0, 1 + 4e-3, 1.0))


@claim(source=TABLES, reference=R2, wrong=(SWAPPED_KINDS,))
def fits_of_the_law(results: xr.Dataset, kinds: tuple[str, ...] = KINDS) -> Finding:
    """R2 of reward against e^H and against H, policy gradient and natural. Bounds: 99.9% of the
    difference from a single run, by Student's t and these seeds."""
    return as_single_run(R2, results.r2.sel(kind=list(kinds)), digit=5e-4)


@claim(
    source=f"{SOURCE}: R = b - a e^H for all models; in these tables for one of two gradients",
    wrong=(SWAPPED_KINDS,),
)
def exponential_law_is_the_natural_gradients(
    results: xr.Dataset, kinds: tuple[str, ...] = KINDS
) -> Finding:
    """R2 of the exponential law less that of a straight line: in all runs negative for the policy
    gradient and positive for the natural one."""
    law = results.r2.sel(law="exponential") - results.r2.sel(law="straight")
    plain, natural = (law.sel(kind=kind) for kind in kinds)
    return between((-1.0, 0.0), (plain.max(), natural.min()), (0.0, 1.0))


@claim(source=TABLES, reference=CEILING, wrong=(SWAPPED_KINDS,))
def ceiling_is_not_foretold(results: xr.Dataset, kinds: tuple[str, ...] = KINDS) -> Finding:
    """The reward at entropy 0 by the law fitted to the first tenth of the run, where .999 and 1.000
    are attained: too low for the policy gradient, above 1 for the natural. Bounds: 99.9% of the
    difference from a single run, by Student's t and these seeds."""
    return as_single_run(CEILING, results.ceiling.sel(kind=list(kinds)), digit=5e-4)


@claim(source=TABLES, reference=FINAL, reruns=(UNPENALIZED,), wrong=(SWAPPED_RULES,))
def final_entropy_by_rule(results: xr.Dataset, rules: tuple[str, ...] = tuple(RULES)) -> Finding:
    """After 200 batches: without clip, with PPO's, with KL-Cov of 2% and of 20% of the tokens, with
    Clip-Cov. Bounds: 99.9% of the difference from a single run, by Student's t and these seeds."""
    return as_single_run(FINAL, results.final.sel(rule=list(rules)), digit=5e-4)


@claim(source=TABLES, reference=FIRST, wrong=(SWAPPED_RULES,))
def entropy_where_the_reward_passes_nine_tenths(
    results: xr.Dataset, rules: tuple[str, ...] = tuple(RULES)
) -> Finding:
    """Entropy when the mean reward first is above .9, by the same rules. Bounds: 99.9% of the
    difference from a single run, by Student's t and these seeds."""
    return as_single_run(FIRST, results["first"].sel(rule=list(rules)), digit=5e-3)


@claim(
    source=f"{TABLES}; the paper's own shares have almost no effect on 512 tokens",
    reference=(0.41, 0.39),
    reruns=(UNPENALIZED,),
    wrong=({"rule": "KL-Cov, 2%"},),
)
def both_keep_entropy_on_the_way(results: xr.Dataset, rule: str = "KL-Cov, 20%") -> Finding:
    """Entropy at reward .9 above that without clip, for KL-Cov of a fifth of the tokens and for
    Clip-Cov: at least half of the reference's difference."""
    first = results["first"].mean("seed")
    return at_least(0.2, first.sel(rule=[rule, "Clip-Cov"]) - first.sel(rule="no clip"))


@claim(
    source=f"{SOURCE}: KL-Cov's plateau is over ten times higher",
    reference=(23, 2.7),
    reruns=(UNPENALIZED,),
    wrong=({"rule": "KL-Cov, 2%"},),
)
def kl_cov_holds_and_clip_cov_delays(results: xr.Dataset, rule: str = "KL-Cov, 20%") -> Finding:
    """Final entropy over that without clip: at least ten times for KL-Cov of a fifth of the tokens,
    less for Clip-Cov."""
    final = results.final.mean("seed")
    ratio = final.sel(rule=[rule, "Clip-Cov"]) / final.sel(rule="no clip")
    return between((10.0, 0.0), ratio, (np.inf, 10.0))
