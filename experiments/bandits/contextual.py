"""Contextual bandits: exploring less where the best loss is small, and asking where it tells most.

Inverse gap weighting with the losses of FastCB (Foster and Krishnamurthy 2021), as used by Deb et
al. 2023 with neural regression, against SquareCB (Foster and Rakhlin 2020) and greedy choice, here
with a table of counts for the regression. Then the KL-regularised bandit of preferences (Xiong et
al. 2024): comparisons of the reference's answers, of the learner's own, or of both.
"""

import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from jax.typing import ArrayLike
from matplotlib import ticker
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from jdiv import checks
from jdiv.alignment import gshf
from jdiv.bandits import contextual

TRACED = ("seed",)
DIMS = {
    "regret": ("learner", "best_loss", "horizon", "share"),
    "offline": ("comparisons", "bonus"),
    "iterated": ("start", "round"),
}

# ---------------------------------------------------------------------- the table's setting
CONTEXTS, ARMS = 10, 5
HORIZONS = (2000, 20000)
SHARES = 40
LEARNERS = ("greedy", "SquareCB", "FastCB")
STYLES = (":", "--", "-")
REFERENCES = {
    ("greedy", 0.0): (192.0, 1437.0),
    ("SquareCB", 0.0): (577.0, 3447.0),
    ("FastCB", 0.0): (54.2, 55.4),
    ("FastCB", 0.05): (65.0, 145.0),
    ("FastCB", 0.25): (129.0, 518.0),
}
"""Regret after 2000 and 20000 rounds."""
RUNS = 10
RECOMPUTED = "an independent recomputation in NumPy, 10 runs; the paper has no table of this"

# ---------------------------------------------------------------------- the preferences' setting
DIMENSION, ANSWERS, TEMPERATURE, RIDGE = 4, 10, 0.3, 1.0
PAIRS, ROUNDS, ASKED = 100, 9, (100, 200, 400, 800)
GIVEN = 400
PROBLEMS = 8
BONUSES = (-1.0, 0.0)
STARTS = ("online, no bonus", "online", "hybrid")


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Labels of the learners, and where regret is recorded."""
    return {
        "learner": LEARNERS,
        "best_loss": config.best_losses,
        "horizon": HORIZONS,
        "share": np.arange(1, SHARES + 1) / SHARES,
        "comparisons": ASKED,
        "bonus": BONUSES,
        "start": STARTS,
        "round": np.arange(ROUNDS),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses names that the claims cannot take, and losses out of range."""
    checks.known("config.claims.fast", config.claims.fast, LEARNERS)
    for name in config.claims.others:
        checks.known("config.claims.others", name, LEARNERS)
    for field in ("online", "hybrid"):
        checks.known(f"config.claims.{field}", config.claims[field], (*STARTS, "offline"))
    if 0 not in config.best_losses or not all(0 <= loss <= 0.3 for loss in config.best_losses):
        raise ValueError(
            "config.best_losses must have 0, and be between 0 and 0.3, got"
            f" {', '.join(map(str, config.best_losses))}"
        )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Regret of the three learners, and of what was learned from comparisons."""
    of_table, of_preferences = jax.random.split(key)
    return {
        "regret": table(jnp.asarray(config.best_losses, jnp.float32), of_table),
        **jax.tree.map(
            lambda x: jnp.mean(x, axis=0),
            jax.vmap(lambda key: preferences(config.skew, key))(
                jax.random.split(of_preferences, PROBLEMS)
            ),
        ),
    }


def table(best_losses: Array, key: Array) -> Array:
    """`[learner, best_loss, horizon, share]` regrets."""
    of_means, of_place, of_play = jax.random.split(key, 3)
    means = jax.random.uniform(of_means, (CONTEXTS, ARMS), minval=0.3, maxval=0.8)
    place = jax.random.randint(of_place, (CONTEXTS,), 0, ARMS)

    def played(learner: Array, best_loss: Array, horizon: Array) -> Array:
        instance = jnp.where(jax.nn.one_hot(place, ARMS, dtype=bool), best_loss, means)
        # The regret of a table of means in squared and in log loss, up to a constant.
        oracle = CONTEXTS * ARMS * jnp.log(horizon)
        square = contextual.square_cb_step_size(ARMS, horizon, oracle)
        fast = contextual.fast_cb_step_size(ARMS, horizon, oracle, best_loss)

        def policy(losses: Array) -> Array:
            square_cb, fast_cb = (
                contextual.square_cb(losses, square),
                contextual.fast_cb(losses, fast),
            )
            # One program for all: lanes differ in numbers, not in code.
            return jnp.stack([contextual.greedy(losses), square_cb, fast_cb])[learner]

        # Who plans for fewer rounds is read there; the rounds after them do not count.
        regret = contextual.play(policy, instance, HORIZONS[-1], of_play)
        shares = jnp.arange(1, SHARES + 1)
        return regret[shares * (horizon.astype(int) // SHARES) - 1]

    for_horizons = jax.vmap(played, (None, None, 0))
    for_losses = jax.vmap(for_horizons, (None, 0, None))
    return jax.vmap(for_losses, (0, None, None))(
        jnp.arange(len(LEARNERS)), best_losses, jnp.array(HORIZONS, jnp.float32)
    )


def preferences(skew: float, key: Array) -> dict[str, Array]:
    """Regularised regrets with comparisons of the reference, of the learner, and of both."""
    of_features, of_weights, of_given, of_rounds = jax.random.split(key, 4)
    features = jax.random.normal(of_features, (CONTEXTS, ANSWERS, DIMENSION))
    weights = jax.random.normal(of_weights, (DIMENSION,))
    weights = 3 * weights / jnp.linalg.norm(weights) / math.sqrt(DIMENSION)
    problem = gshf.LinearProblem(features, weights, -skew * (features @ weights), TEMPERATURE)
    reference = problem.ref_logits
    given = gshf.compare(problem, reference, reference, ASKED[-1], of_given)

    def counted(pairs: Array) -> gshf.Comparisons:
        return given._replace(counts=(jnp.arange(ASKED[-1]) < pairs).astype(jnp.float32))

    def offline(pairs: Array, bonus: Array) -> Array:
        policy = gshf.learned_policy(problem, counted(pairs), RIDGE, bonus)
        return gshf.regularized_regret(problem, policy)

    def iterated(start: gshf.Comparisons, bonus: ArrayLike) -> Array:
        return gshf.online_regret(
            problem, start, ROUNDS, PAIRS, of_rounds, ridge=RIDGE, bonus=bonus
        )

    # Given or not, one program: of comparisons with weight 0 nothing is learned.
    given_too = jax.tree.map(lambda x: x[:GIVEN], given)
    starts = jnp.array([0.0, 0.0, 1.0])[:, None] * jnp.ones(GIVEN)[None]
    each = jax.vmap(lambda w, bonus: iterated(given_too._replace(counts=w), bonus))
    return {
        "offline": jax.vmap(lambda n: jax.vmap(lambda b: offline(n, b))(jnp.array(BONUSES)))(
            jnp.array(ASKED)
        ),
        "iterated": each(starts, jnp.array([0.0, 1.0, 1.0])),
    }


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Regret over time, and what comparisons are worth."""
    return {"regret": regret_figure(results), "preferences": preference_figure(results)}


def regret_figure(results: xr.Dataset) -> Picture:
    """One panel for each best loss."""
    losses = results.best_loss.values
    figure, axes = plt.subplots(1, len(losses), figsize=(2.7 * len(losses) + 0.6, 3.7), sharey=True)
    horizon = HORIZONS[-1]
    for axis, loss in zip(axes, losses, strict=True):
        here = results.regret.sel(best_loss=loss, horizon=horizon)
        for place, learner in enumerate(LEARNERS):
            curve = here.sel(learner=learner)
            rounds = results.share * horizon
            low, high = curve.quantile((0.1, 0.9), "seed")
            axis.fill_between(rounds, low, high, color=COLORS[place], alpha=0.15, linewidth=0)
            axis.plot(rounds, curve.mean("seed"), STYLES[place], color=COLORS[place], label=learner)
            if (learner, loss) in REFERENCES:
                published = REFERENCES[learner, float(loss)][1]
                axis.plot(horizon, published, "o", color=COLORS[place], markerfacecolor="white")
        axis.set(title=f"best arms lose {loss:g}", xlabel="rounds", xscale="log", yscale="log")
    axes[0].set_ylabel("regret")
    axes[0].legend(loc="upper left")
    return Picture(
        figure,
        "Mean regret and the range of 80 % of the runs, planned for 20000 rounds; circles are the"
        " reference's means. Where the best arms lose nothing FastCB soon stops paying, while"
        " SquareCB explores at its rate for ever and greedy choice stays with the wrong arm.",
    )


def preference_figure(results: xr.Dataset) -> Picture:
    """Regularised regret over the number of comparisons."""
    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    curves = {
        "offline, pessimistic": results.offline.sel(bonus=-1.0),
        "offline": results.offline.sel(bonus=0.0),
        **{start: results.iterated.sel(start=start) for start in STARTS},
    }
    for place, (label, curve) in enumerate(curves.items()):
        asked = np.array(ASKED) if "offline" in label else PAIRS * np.arange(ROUNDS)
        asked = asked + GIVEN * (label == "hybrid")
        mean, error = curve.mean("seed"), curve.std("seed", ddof=1) / math.sqrt(len(curve.seed))
        shown = asked > 0
        axis.errorbar(
            asked[shown], mean[shown], 2 * error[shown], color=COLORS[place], label=label,
            marker="osD^v"[place], markersize=4, linestyle=("--", "-", ":", "-", "-.")[place],
        )  # fmt: skip
    axis.set(xlabel="comparisons, given and asked", ylabel="regularised regret", yscale="log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.legend(loc="upper right")
    return Picture(
        figure,
        "Mean regret next to a reference that prefers bad answers, with two standard errors."
        " Comparisons of its own answers (offline) tell little about good ones, and pessimism then"
        " stays away from them; comparisons of the learner's answers, above all with those of an"
        " explorer, are worth many of these. Hybrid learning starts from 400 given ones, which"
        " are worth less than 400 of its own.",
    )


# -------------------------------------------------------------------------------------- claims


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The reference's table, what grows in it and what does not, and what to compare."""
    return [*table_claims(config, results), *preference_claims(config, results)]


def table_claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """FastCB is flat where the best loss is 0, the others are not."""
    # A difference of two means, of our runs and of the reference's.
    runs = results.sizes["seed"]
    errors = 4 * math.sqrt(1 / runs + 1 / RUNS)
    final = results.regret.sel(share=1.0)
    fast, others = config.claims.fast, tuple(config.claims.others)
    taken = {"FastCB": fast, **dict(zip(("greedy", "SquareCB"), others, strict=True))}
    cells = [cell for cell in REFERENCES if cell[1] in config.best_losses]
    found = [final.sel(learner=taken[learner], best_loss=loss) for learner, loss in cells]
    published = np.array([REFERENCES[cell] for cell in cells])
    margin = errors * np.array([x.std("seed", ddof=1).transpose("horizon").values for x in found])

    # Within the long runs, which at best loss 0 have the rate of the short ones.
    free = results.regret.sel(best_loss=0.0, horizon=HORIZONS[-1])
    early = HORIZONS[0] / HORIZONS[-1]
    curve = free.sel(learner=fast).mean("seed")
    explored = CONTEXTS * (ARMS - 1) / (10 * ARMS) * math.log(HORIZONS[-1] / HORIZONS[0])
    beyond = {
        name: final.sel(learner=name, best_loss=0.0, horizon=HORIZONS[1])
        - math.sqrt(HORIZONS[1] / HORIZONS[0])
        * final.sel(learner=name, best_loss=0.0, horizon=HORIZONS[0])
        for name in others
    }
    return [
        Claim(
            "regret-of-the-table",
            f"Foster and Krishnamurthy 2021; Foster and Rakhlin 2020; {RECOMPUTED}",
            "Mean regrets after 2000 and 20000 rounds of"
            f" {', '.join(f'{learner} at L* = {loss:g}' for learner, loss in cells)} are those of"
            " the reference within four standard errors of the difference of two means.",
            [x.mean("seed").transpose("horizon").values for x in found],
            low=published - margin,
            high=published + margin,
            published=published,
            controls=({"claims.fast": "SquareCB"}, {"claims.others": ("SquareCB", "greedy")}),
        ),
        Claim(
            "fastcb-is-flat-where-the-best-loss-is-0",
            f"Foster and Krishnamurthy 2021, regret O(sqrt(K L*) + K); {RECOMPUTED}",
            "In the long runs FastCB's regret at 20000 rounds is less than 10^(1/4) times that at"
            " 2000: it grows less than half as steeply as sqrt(T). Expected is a logarithm with a"
            f" small factor, contexts (K - 1)/rate log 10 = {explored:.1f} more.",
            (curve.sel(share=1.0) / curve.sel(share=early)).item(),
            high=(HORIZONS[-1] / HORIZONS[0]) ** (1 / 4),
            published=REFERENCES["FastCB", 0.0][1] / REFERENCES["FastCB", 0.0][0],
            controls=({"claims.fast": "SquareCB"},),
        ),
        Claim(
            "others-grow-where-the-best-loss-is-0",
            f"Foster and Rakhlin 2020, regret O(sqrt(K T)), for SquareCB; {RECOMPUTED}",
            "Greedy choice and SquareCB, whose bound grows as sqrt(T), have at 20000 rounds at"
            " least sqrt(10) times the regret of 2000: the difference of the one and sqrt(10) times"
            " the other is positive by four standard errors.",
            [x.mean().item() - four_errors(x) for x in beyond.values()],
            low=0,
            published=[
                REFERENCES[name, 0.0][1] - math.sqrt(10) * REFERENCES[name, 0.0][0]
                for name in ("greedy", "SquareCB")
            ],
            controls=({"claims.others": ("FastCB", "FastCB")},),
        ),
    ]


def preference_claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Who asks about its own answers learns more; differences are of the same problems."""
    offline = results.offline.sel(bonus=0.0, comparisons=ASKED[-1])
    worst = results.offline.sel(bonus=-1.0, comparisons=ASKED[-1])
    after = ASKED[-1] // PAIRS
    halfway = (ASKED[-1] - GIVEN) // PAIRS

    def iterated(start: str, rounds: int) -> xr.DataArray:
        return worst if start == "offline" else results.iterated.sel(start=start, round=rounds)

    online, hybrid = config.claims.online, config.claims.hybrid
    compared = {
        "online-beats-offline": (
            f"After {ASKED[-1]} comparisons who asks about its own answers has less regularised"
            " regret than who has as many of the reference",
            iterated(online, after) - offline,
            {"claims.online": "offline"},
        ),
        "the-explorer-helps": (
            f"After {PAIRS * halfway} comparisons with an explorer's answers there is less"
            " regularised regret than after as many of the main policy's with each other",
            iterated(online, halfway) - results.iterated.sel(start=STARTS[0], round=halfway),
            {"claims.online": "offline"},
        ),
        "hybrid-beats-offline": (
            f"With {GIVEN} comparisons of the reference and {PAIRS * halfway} asked for there is"
            f" less regularised regret than with {ASKED[-1]} of the reference",
            iterated(hybrid, halfway) - offline,
            {"claims.hybrid": "offline"},
        ),
    }
    return [
        Claim(
            name,
            "Xiong et al. 2024 (GSHF), the order only; no numbers of such a toy are published",
            f"{statement}: the mean difference and four of its standard errors are below 0.",
            (difference.mean("seed") + four_errors(difference)).values,
            high=0,
            controls=(control,),
        )
        for name, (statement, difference, control) in compared.items()
    ]


def four_errors(values: xr.DataArray) -> np.ndarray:
    """Four standard errors of the mean over seeds."""
    return 4 * values.std("seed", ddof=1).values / math.sqrt(values.sizes["seed"])
