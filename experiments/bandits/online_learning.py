"""Adversarial losses: what optimism, other regularizers and implicit updates are good for.

Optimistic mirror descent between stochastic and adversarial losses (Chen et al. 2024); Hedge, Exp3
and Tsallis-INF (Slivkins 2019; Zimmert and Seldin 2021) against their bounds; the log barrier where
the estimated losses are very negative (Dai et al. 2023); implicit updates with a step size that is
a hundred times too large (Chen and Orabona 2023). The papers' own settings are not known: all
settings are chosen here or by the reference's recomputation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import non_negative, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, between, claim, equals, within
from experiments.lab.plots import COLORS, Picture, curve, legend_above, panels, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv.bandits import adversarial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"seed": seeds}
FIELDS = {"noise": non_negative, "step_factor": positive}

# Optimistic descent: the reference's setting, where 5 = delta + 4 G^2 with both 1 is inferred.
DIMENSION, DIAMETER, OFFSET = 5, 2.0, 5.0
TIMES = (250, 1000, 4000)
CURVE = tuple(sorted({*TIMES, *np.unique(np.geomspace(10, 4000, 25).round().astype(int)).tolist()}))
CASES = ("nothing varies", "noise", "alternating")
DESCENTS = ("optimistic", "plain")
REFERENCES = {
    ("nothing varies", "optimistic"): (1.15, 1.15, 1.15),
    ("noise", "optimistic"): (14.9, 27.3, 49.7),
    ("alternating", "optimistic"): (23.4, 46.2, 92.6),
    ("alternating", "plain"): (13.4, 28.8, 59.9),
}
ALTERNATING = REFERENCES["alternating", "optimistic"]
RUNS = 8
EXPONENT = 0.43
RECOMPUTED = "numbers of an independent recomputation in NumPy, 8 runs; no paper has this table"

# Weights on arms.
ARMS, ROUNDS, EVERY = 5, 2000, 40
LEARNERS = ("Hedge", "Exp3", "Tsallis-INF")
CONTENDERS = ("log barrier", "Exp3")
HORIZONS = (500, 2000, 8000)

# Losses that are linear in features of the arms, or bent.
LINEAR_ARMS, LINEAR_FEATURES = 8, 3
ESTIMATORS = ("linear", "magnitude-reduced")
SHAPES = ("linear", "bent")

# Linear regression.
FEATURES, EXAMPLES, NOISE, TUNED = 5, 1000, 0.3, 0.05
UPDATES = ("implicit", "linear")
FACTORS = (1.0, 100.0)

# No noise in the descent, and a thousandth of the step sizes for weights on arms.
SPOILED = {"noise": 0.0, "step_factor": 0.001, "sweep.seed": tuple(range(8))}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The five parts, each with its own randomness."""
    of_noise, of_losses, of_negative, of_examples = jax.random.split(key, 4)
    return {
        "descent_regret": descent(config, of_noise),
        "weights_regret": weights(config, of_losses),
        **negative(config, of_negative),
        **implicit(of_examples),
        **absolute(of_examples),
        **estimates(jax.random.fold_in(key, 4)),
    }


def descent(config: ConfigDict, key: Array) -> Labelled:
    """Regrets `[case, descent, time]` on `||x - c_t||^2 / 2 + <noise_t, x>`."""
    steps = jnp.arange(TIMES[-1])
    first = jnp.zeros(DIMENSION).at[0].set(0.5)
    signs = jnp.stack([jnp.ones_like(steps), jnp.ones_like(steps), 1 - 2 * (steps % 2)])
    centers = signs[..., None].astype(first.dtype) * first[None, None]
    # Noise of norm 1 in the mean square.
    noise = config.noise * jax.random.normal(key, (TIMES[-1], DIMENSION)) / math.sqrt(DIMENSION)
    inputs = centers - jnp.array([0.0, 1.0, 0.0])[:, None, None] * noise[None]

    def regret(inputs: Array, optimistic: bool) -> Array:
        # The reference's step sizes count the present round in the second step.
        x = adversarial.optimistic_descent(
            jnp.subtract, inputs, DIMENSION,
            diameter=DIAMETER, offset=OFFSET, optimistic=optimistic, count_present=True,
        )  # fmt: skip
        counts = jnp.arange(1.0, TIMES[-1] + 1)
        mean = jnp.cumsum(inputs, axis=0) / counts[:, None]
        norm = jnp.linalg.norm(mean, axis=1, keepdims=True)
        best = mean * jnp.minimum(1, DIAMETER / 2 / norm.clip(DIAMETER / 4))
        # The loss of a fixed point is that of the mean input, up to what all points share.
        paid = jnp.cumsum(jnp.sum(x * (x / 2 - inputs), axis=1))
        least = counts * jnp.sum(best * (best / 2 - mean), axis=1)
        return (paid - least)[jnp.array(CURVE) - 1]

    each = [jax.vmap(lambda c, o=optimistic: regret(c, o))(inputs) for optimistic in (True, False)]
    return labelled(jnp.stack(each, axis=1), case=CASES, descent=DESCENTS, time=CURVE)


def theory(learner: str, rounds: np.ndarray) -> np.ndarray:
    """The bound of a learner's regret."""
    return {
        "Hedge": np.sqrt(rounds * math.log(ARMS) / 2),
        "Exp3": 2 * np.sqrt(rounds * ARMS * math.log(ARMS)),
        "Tsallis-INF": 4 * np.sqrt(ARMS * rounds) + 1,
    }[learner]


def weights(config: ConfigDict, key: Array) -> Labelled:
    """Regrets `[learner, round]` on Bernoulli losses, one arm of five better by .4."""
    of_losses, of_pulls = jax.random.split(key)
    means = jnp.full(ARMS, 0.7).at[0].set(0.3)
    losses = (jax.random.uniform(of_losses, (ROUNDS, ARMS)) < means[None]).astype(means.dtype)
    weighting, factor = adversarial.importance_weighting(), config.step_factor
    hedge = adversarial.hedge(factor * math.sqrt(8 * math.log(ARMS) / ROUNDS))
    exp3 = adversarial.hedge(factor * math.sqrt(2 * math.log(ARMS) / (ROUNDS * ARMS)))
    tsallis = adversarial.tsallis_inf(2 * factor)
    plays = (
        adversarial.full_information(hedge, losses),
        adversarial.bandit(exp3, losses, weighting, of_pulls),
        adversarial.bandit(tsallis, losses, weighting, of_pulls),
    )
    regret = jnp.stack([adversarial.regret(play, losses)[EVERY - 1 :: EVERY] for play in plays])
    return labelled(regret, learner=LEARNERS, round=range(EVERY, ROUNDS + 1, EVERY))


def negative(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """Rewards as negative losses: the second arm starts to pay when the first has all the weight.

    Regrets `[contender, horizon]`, and the least `step_size * estimate` there was or could be.
    """

    def played(contender: str, horizon: int, explores: bool = False) -> tuple[Array, Array]:
        first = jnp.arange(horizon) < horizon // 2
        # Half of the rounds the first arm pays .5, then the second pays 1.
        of_arms = jnp.stack([jnp.where(first, -0.5, 0.0), jnp.where(first, 0.0, -1.0)], axis=1)
        losses = jnp.pad(of_arms, ((0, 0), (0, ARMS - 2)))
        make, step_size = {
            "log barrier": (adversarial.log_barrier, math.sqrt(ARMS * math.log(horizon) / horizon)),
            "Exp3": (adversarial.hedge, math.sqrt(2 * math.log(ARMS) / (horizon * ARMS))),
        }[contender]
        step_size *= config.step_factor
        learner = make(step_size)
        if explores:
            # No estimate is then above 1 / step_size.
            learner = adversarial.exploring(learner, step_size * ARMS)
        play = adversarial.bandit(learner, losses, adversarial.importance_weighting(), key)
        least = -step_size * jnp.exp(-jnp.min(play.log_policy[:, 1]))
        return adversarial.regret(play, losses)[-1], least

    found = jnp.stack([jnp.stack([jnp.stack(played(c, h)) for h in HORIZONS]) for c in CONTENDERS])
    regret, least = played("Exp3", HORIZONS[-1], explores=True)
    by_horizon = {
        name: labelled(found[..., place], contender=CONTENDERS, horizon=HORIZONS)
        for place, name in enumerate(("negative_regret", "least"))
    }
    return by_horizon | {"exploring_regret": regret, "exploring_least": least}


def examples(key: Array) -> tuple[Array, Array]:
    """Features `[example, feature]`, and targets linear in them with noise."""
    of_features, of_weights, of_noise = jax.random.split(key, 3)
    features = jax.random.normal(of_features, (EXAMPLES, FEATURES))
    best = jax.random.normal(of_weights, (FEATURES,))
    noise = NOISE * jax.random.normal(of_noise, (EXAMPLES,))
    return features, features @ best + noise


def implicit(key: Array) -> dict[str, Labelled]:
    """Squared losses `[update, factor, example]`, and terms of the bound by those of the theory."""
    features, targets = examples(key)

    def fitted(update: str, factor: Array) -> tuple[Array, Array]:
        step_size = factor * TUNED
        fit = adversarial.linear_predictor(
            features, targets, step_size, implicit=update == "implicit"
        )
        curvature = step_size * jnp.sum(features**2, axis=1)
        # The linear update has `curvature * loss` for its terms.
        return fit.losses, jnp.mean(fit.terms * (1 + curvature) / (curvature * fit.losses))

    each = [jax.vmap(lambda f, u=update: fitted(u, f))(jnp.array(FACTORS)) for update in UPDATES]
    loss, terms = (jnp.stack(x) for x in zip(*each, strict=True))
    trivial = jnp.mean(targets**2) / 2
    # As a share of what the prediction 0 loses; what overflows is recorded as 1e30.
    share = loss / trivial
    share = jnp.where(share < 1e30, share, 1e30)
    return {
        "loss": labelled(share, update=UPDATES, factor=FACTORS, example=range(EXAMPLES)),
        "terms": labelled(terms[:, 0], update=UPDATES),
    }


def absolute(key: Array) -> dict[str, Labelled]:
    """Absolute losses at a step size that is too large: `[update]`.

    The mean loss by that of predicting 0, and the share of examples that their own step passes.
    """
    features, targets = examples(key)

    def fitted(update: str) -> tuple[Array, Array]:
        fit = adversarial.linear_predictor(
            features, targets, FACTORS[-1] * TUNED,
            loss=adversarial.ABSOLUTE, implicit=update == "implicit",
        )  # fmt: skip
        residuals = lambda weights: jnp.sum(weights * features[:-1], axis=1) - targets[:-1]
        before, after = residuals(fit.weights[:-1]), residuals(fit.weights[1:])
        passed = jnp.sign(before) * after < -1e-9
        return jnp.mean(fit.losses) / jnp.mean(jnp.abs(targets)), jnp.mean(passed, dtype=float)

    loss, passed = (jnp.stack(x) for x in zip(*map(fitted, UPDATES), strict=True))
    return {
        "absolute_loss": labelled(loss, update=UPDATES),
        "passed": labelled(passed, update=UPDATES),
    }


def estimates(key: Array) -> dict[str, Labelled]:
    """Estimates of all arms' losses from that of one, by every arm that may be pulled.

    The largest error of their expectation `[shape, estimator]`, and the least estimate of an arm
    over its norm `[estimator]`.
    """
    of_features, of_policy, of_weights = jax.random.split(key, 3)
    features = jax.random.normal(of_features, (LINEAR_ARMS, LINEAR_FEATURES))
    # A few arms have nearly no probability: their estimates are the large ones.
    log_p = jax.nn.log_softmax(3 * jax.random.normal(of_policy, (LINEAR_ARMS,)))
    p = jnp.exp(log_p)
    loss = features @ jax.random.normal(of_weights, (LINEAR_FEATURES,))
    loss = loss / jnp.max(jnp.abs(loss))
    losses = jnp.stack([loss, jnp.abs(loss)])
    arms = jnp.arange(LINEAR_ARMS)
    made = (adversarial.linear(features), adversarial.magnitude_reduced(features, -1.0, 1.0))
    by_arm = jnp.stack([
        jax.vmap(jax.vmap(of, (None, 0, 0)), (None, None, 0))(log_p, arms, losses) for of in made
    ])  # fmt: skip
    error = jnp.max(jnp.abs(jnp.einsum("b,esba->esa", p, by_arm) - losses[None]), axis=-1)
    spread = jnp.linalg.inv((features * p[:, None]).T @ features)
    norm = jnp.sqrt(jnp.sum(features * (features @ spread), axis=1))
    return {
        "expectation_error": labelled(error, estimator=ESTIMATORS, shape=SHAPES),
        "least_estimate": labelled(
            jnp.min(by_arm / norm[None, None, None], axis=(1, 2, 3)), estimator=ESTIMATORS
        ),
    }


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """One figure for each part."""
    return {
        "optimism": _optimism(results),
        "weights": _weights(results),
        "barrier": _barrier(results),
        "implicit": _implicit(results),
    }


def _rounds(axis: Axes, **labels: str) -> None:
    """Logarithmic on both axes, with plain numbers."""
    from matplotlib.ticker import NullFormatter

    axis.set(xscale="log", yscale="log", **labels)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter(NullFormatter())


def _optimism(results: xr.Dataset) -> Picture:
    """Regret over time in the three cases."""
    figure, axes = panels(3, width=3.6, height=3.9, sharey=True)
    for axis, case in zip(axes, CASES, strict=True):
        for number, descent in enumerate(DESCENTS):
            mean = results.descent_regret.sel(case=case, descent=descent).mean("seed")
            curve(axis, "time", mean, label=descent, **style(number))
            if (case, descent) in REFERENCES:
                look = {"color": COLORS[number], "markerfacecolor": "white"}
                axis.plot(TIMES, REFERENCES[case, descent], "o", **look)
        _rounds(axis, title=case, xlabel="rounds")
    axes[0].set_ylabel("regret, losses")
    legend_above(figure, axes[0], columns=2)
    return Picture(
        figure,
        "Regret of mirror descent that takes the last gradient for the next, and of plain descent"
        " with the same rule for its step size; circles are the reference's. Where nothing varies"
        " regret stops (that of plain descent too, on so smooth a loss, and earlier); with noise"
        " optimism helps in the end; where losses alternate the last gradient is a wrong guess, and"
        " costs.",
    )


def _weights(results: xr.Dataset) -> Picture:
    """Regret over time and the bounds."""
    figure, axis = panels(1, width=6.2, height=4.1)
    for number, learner in enumerate(LEARNERS):
        regret = results.weights_regret.sel(learner=learner)
        curve(axis, "round", regret, over="seed", label=learner, **style(number))
        axis.plot(ROUNDS, theory(learner, ROUNDS), "v", color=COLORS[number], clip_on=False)
    axis.plot([], [], "v", color="#808080", label=f"bound at {ROUNDS} rounds")
    axis.set(xlabel="rounds", ylabel="regret, losses", ylim=(0, None))
    axis.legend(loc="upper left")
    return Picture(
        figure,
        "Mean regret and the range of 80 % of the runs on five arms, one better by .4. Hedge sees"
        " every loss, the others that of the arm they pull; Tsallis-INF does not know the horizon"
        " and levels off, as its regret is logarithmic where an arm is better.",
    )


def _barrier(results: xr.Dataset) -> Picture:
    """Regret by the root of the horizon."""
    figure, axis = panels(1, width=6.2, height=4.1)
    root = np.sqrt(HORIZONS)
    for number, name in enumerate(CONTENDERS):
        regret = results.negative_regret.sel(contender=name).transpose("horizon", "seed")
        mean, error = (x.values / root for x in (regret.mean("seed"), four_errors(regret) / 2))
        axis.errorbar(HORIZONS, mean, error, label=name, **style(number, marker=True))
        unmet = ", were its condition met" if name == "Exp3" else ""
        bound = negative_bound(name, np.array(HORIZONS)) / root
        axis.plot(HORIZONS, bound, ":", color=COLORS[number], label=f"{name}'s bound{unmet}")
    axis.set(xscale="log", xlabel="horizon, rounds", ylabel="regret / sqrt(horizon)")
    axis.set_ylim(bottom=0)
    ticks(axis, x=HORIZONS)
    axis.legend(loc="upper left")
    return Picture(
        figure,
        "Losses in [-1, 0]: the first arm pays .5 for half of the rounds, then another pays 1."
        " Exponential weights have given that one up by then and miss it, as their bound needs"
        " step size * loss >= -1; the log barrier keeps enough weight on it and stays below its"
        " bound. Bars are two standard errors.",
    )


def _implicit(results: xr.Dataset) -> Picture:
    """Loss of both updates at both step sizes."""
    figure, axis = panels(1, width=6.2, height=4.1)
    for number, (update, factor) in enumerate((u, f) for u in UPDATES for f in FACTORS):
        loss = results.loss.sel(update=update, factor=factor).mean("seed")
        smooth = loss.rolling(example=20, min_periods=1).mean()
        smooth = smooth.assign_coords(example=smooth.example + 1).where(smooth < 1e12)
        times = "tuned step size" if factor == 1 else f"{factor:g} times that"
        curve(axis, "example", smooth, label=f"{update}, {times}", **style(number))
    axis.axhline(1, color="#808080", linewidth=1)
    _rounds(axis, xlabel="examples", ylabel="squared loss / that of predicting 0")
    axis.set_ylim(0.003, 1e4)
    axis.legend(loc="upper right")
    return Picture(
        figure,
        "Squared loss of linear regression, the mean of the last twenty examples. A step size a"
        " hundred times too large makes the linear update explode at once (the line leaves the"
        " figure); the implicit one only keeps more of the noise.",
    )


# ---------------------------------------------------------------------------- optimistic descent


def four_errors(values: xr.DataArray) -> xr.DataArray:
    """Four standard errors of the mean over seeds."""
    return 4 * values.std("seed", ddof=1) / math.sqrt(values.sizes["seed"])


@claim(
    source=f"Chen et al. 2024 for the algorithm; {RECOMPUTED}",
    reference=list(REFERENCES.values()),
    reruns=(SPOILED,),
    wrong=({"optimistic": "plain"},),
)
def regret_of_optimistic_descent(results: xr.Dataset, optimistic: str = "optimistic") -> Finding:
    """Regrets after 250, 1000 and 4000 rounds where nothing varies, with noise, and alternating
    (optimistic and plain) are those of the reference: within one of the last printed digit without
    noise, within four standard errors of the difference of two means with it. Plain descent is the
    better one on alternating losses."""
    # By rounding alone one differs: plain descent's 59.845, printed 59.9.
    taken = {"optimistic": optimistic, "plain": "plain"}
    regret = results.descent_regret.sel(
        case=xr.DataArray([case for case, _ in REFERENCES], dims="cell"),
        descent=xr.DataArray([taken[descent] for _, descent in REFERENCES], dims="cell"),
        time=list(TIMES),
    )
    expected = np.array(list(REFERENCES.values()))
    return within(
        expected,
        regret.transpose("cell", "time", "seed"),
        behind=RUNS,
        rounding=np.where(expected < 2, 0.01, 0.1),
    )


@claim(
    source=f"Chen et al. 2024, regret of order sqrt(sigma^2) + sqrt(Sigma^2); {RECOMPUTED}",
    reference=0.0,
    wrong=({"case": "noise"},),
)
def constant_when_nothing_varies(results: xr.Dataset, case: str = "nothing varies") -> Finding:
    """Between 250 and 4000 rounds regret does not rise by half of its last printed digit where
    nothing varies. With noise it does."""
    regret = results.descent_regret.sel(case=case, descent="optimistic")
    return at_most(0.005, (regret.sel(time=TIMES[-1]) - regret.sel(time=TIMES[0])).mean())


@claim(
    source=f"Chen et al. 2024, at most T^(1/2); {RECOMPUTED}",
    reference=EXPONENT,
    reruns=(SPOILED,),
    wrong=({"case": "nothing varies"},),
)
def growth_with_noise(results: xr.Dataset, case: str = "noise") -> Finding:
    """With noise regret grows from 250 to 4000 rounds as T^.43, within four standard errors of the
    difference of two slopes."""
    regret = results.descent_regret.sel(case=case, descent="optimistic")
    first, last = regret.sel(time=TIMES[0]), regret.sel(time=TIMES[-1])
    period = math.log(TIMES[-1] / TIMES[0])
    slope = np.log(last.mean() / first.mean()) / period
    relative = (last / last.mean() - first / first.mean()) / period
    margin = math.sqrt(1 + relative.sizes["seed"] / RUNS) * four_errors(relative).item()
    return equals(EXPONENT, slope, tolerance=margin + 0.00501)


@claim(
    source=f"Chen et al. 2024, Sigma^2 grows as T; {RECOMPUTED}",
    reference=np.divide(ALTERNATING[1:], ALTERNATING[:-1]),
    wrong=({"case": "nothing varies"},),
)
def twice_the_regret_for_four_times_the_rounds(
    results: xr.Dataset, case: str = "alternating"
) -> Finding:
    """Where the losses alternate regret doubles as the rounds are four times as many: the ratios
    are those of the reference's printed numbers."""
    regret = results.descent_regret.sel(case=case, descent="optimistic", time=list(TIMES))
    regret, printed = regret.mean("seed").values, np.array(ALTERNATING)
    low = (printed[1:] - 0.05) / (printed[:-1] + 0.05)
    high = (printed[1:] + 0.05) / (printed[:-1] - 0.05)
    return between(low, regret[1:] / regret[:-1], high)


# ------------------------------------------------------------------------------- weights on arms


def negative_bound(name: str, horizon: np.ndarray) -> np.ndarray:
    """The log barrier's, with 1 for the mixed comparator; and Exp3's, were its condition met."""
    if name == "Exp3":
        return theory(name, horizon) / math.sqrt(2)
    return 2 * np.sqrt(ARMS * horizon * np.log(horizon)) + 1


@claim(
    source="Freund and Schapire 1997, sqrt(T log K / 2); Slivkins 2019, 2 sqrt(T K log K); Zimmert"
    " and Seldin 2021, 4 sqrt(K T) + 1",
    reruns=(SPOILED,),
)
def regret_within_the_bounds(results: xr.Dataset) -> Finding:
    """Mean regret after 2000 rounds and four standard errors, over the bound, for Hedge, Exp3 and
    Tsallis-INF. With a thousandth of the step size it is above."""
    final = results.weights_regret.sel(round=ROUNDS, learner=list(LEARNERS))
    above = final.mean("seed") + four_errors(final)
    return at_most(1, above / [theory(learner, ROUNDS) for learner in LEARNERS])


@claim(
    source="Dai et al. 2023; the bound K log T / step_size + step_size sum p^2 l^2"
    " <= 2 sqrt(K T log T)",
    reruns=(SPOILED,),
    wrong=({"contender": "Exp3"},),
)
def log_barrier_needs_no_condition(results: xr.Dataset, contender: str = "log barrier") -> Finding:
    """Where Exp3's condition step_size * loss >= -1 breaks, mean regret of the log barrier and four
    standard errors is below its bound at every horizon. Exp3's is not."""
    regret = results.negative_regret.sel(contender=contender, horizon=list(HORIZONS))
    above = regret.mean("seed") + four_errors(regret)
    return at_most(1, above / negative_bound("log barrier", np.array(HORIZONS)))


@claim(
    source="Slivkins 2019, section 6, losses in [0, 1]; the setting is chosen here",
    reruns=(SPOILED,),
    wrong=({"contender": "log barrier"},),
)
def without_its_condition_exp3_has_no_bound(
    results: xr.Dataset, contender: str = "Exp3"
) -> Finding:
    """At 8000 rounds the mean regret of Exp3 minus four standard errors is above
    sqrt(2 T K log K), its bound with the condition, and for lack of it: the step size times the
    loss that the other arm could be estimated at goes below -1."""
    here = results.sel(contender=contender, horizon=HORIZONS[-1])
    below = (here.negative_regret.mean("seed") - four_errors(here.negative_regret)).item()
    bound = negative_bound("Exp3", np.array(HORIZONS))[-1]
    return at_least(1, [below / bound, -here.least.max().item()])


@claim(
    source="Auer et al. 2002, Figure 1: a share of the step size times K keeps its condition; the"
    " bound log K / step_size + step_size T K / (1 - share) + share T",
    wrong=({"name": "negative_regret"},),
)
def exploration_restores_exp3(results: xr.Dataset, name: str = "exploring_regret") -> Finding:
    """On the same losses at 8000 rounds Exp3 with a share of uniform pulls has a bound again: mean
    regret and four standard errors over it, and the largest step size times minus an estimate,
    which is at most 1. Without exploration both are above."""
    regret = results[name]
    least = results.exploring_least
    if name == "negative_regret":
        there = {"contender": "Exp3", "horizon": HORIZONS[-1]}
        regret, least = regret.sel(there), results.least.sel(there)
    horizon = HORIZONS[-1]
    step_size = math.sqrt(2 * math.log(ARMS) / (horizon * ARMS))
    share = step_size * ARMS
    bound = math.log(ARMS) / step_size + step_size * horizon * ARMS / (1 - share) + share * horizon
    above = (regret.mean("seed") + four_errors(regret)) / bound
    return at_most(1 + 1e-9, (above, -least.min()))


# ------------------------------------------------------------------------ linear in features


@claim(
    source="Dani, Hayes and Kakade 2008, section 3; Dai et al. 2023 (arXiv:2301.12942)",
    wrong=({"shape": "bent"},),
)
def both_estimators_are_right_on_average(results: xr.Dataset, shape: str = "linear") -> Finding:
    """The expectation of the linear and of the magnitude-reduced estimate, by all arms that may be
    pulled, is the loss of every arm if losses are linear in the features: the largest error."""
    return at_most(1e-9, results.expectation_error.sel(shape=shape).max())


@claim(
    source="Dai et al. 2023 (arXiv:2301.12942): magnitudes, not squares; the bound derived here",
    wrong=({"estimator": "linear"},),
)
def reduced_estimates_are_never_far_below(
    results: xr.Dataset, estimator: str = "magnitude-reduced"
) -> Finding:
    """With losses in [-1, 1] the least magnitude-reduced estimate of an arm is minus its norm in
    the inverse of the features' covariance: the least quotient. The linear one goes further."""
    return at_least(-1 - 1e-9, results.least_estimate.sel(estimator=estimator).min())


# ------------------------------------------------------------------------------ implicit updates


@claim(
    source="Chen and Orabona 2023, the shape only; their experiments are not known",
    wrong=({"update": "linear"},),
)
def implicit_steps_survive_a_step_size_100_times_too_large(
    results: xr.Dataset, update: str = "implicit"
) -> Finding:
    """The mean loss over all examples, in every run, is below that of predicting 0. Linear updates
    with this step size are beyond any number."""
    mean = results.loss.sel(update=update, factor=FACTORS[-1]).mean("example")
    return at_most(1, mean.max(skipna=False))


@claim(
    source="Chen and Orabona 2023, regret bound minus H(g) - H(z); the value derived here",
    wrong=({"update": "linear"},),
)
def the_implicit_bound_is_below_the_linear_one(
    results: xr.Dataset, update: str = "implicit"
) -> Finding:
    """Each term of the bound is the linear update's, c times the loss with c = step_size ||w||^2,
    divided by 1 + c: the mean ratio is 1."""
    return equals(1, results.terms.sel(update=update).mean("seed"), tolerance=1e-9)


@claim(
    source="Chen and Orabona 2023; the step of the absolute loss derived here",
    wrong=({"update": "linear"},),
)
def implicit_absolute_steps_never_pass_their_target(
    results: xr.Dataset, update: str = "implicit"
) -> Finding:
    """At the same step size, with absolute losses, the share of examples whose prediction is on the
    other side of the target after their own update, and the largest mean loss over that of
    predicting 0. Linear updates pass most targets."""
    here = results.sel(update=update)
    return at_most((0, 1), (here.passed.max(), here.absolute_loss.max()))
