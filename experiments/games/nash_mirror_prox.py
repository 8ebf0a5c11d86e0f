"""Nash mirror prox: linear convergence of the last policy to the regularized equilibrium.

Tiapkin et al. 2025 (arXiv:2505.19731). The abstract and secondary notes were at hand: the games of
the paper are unknown, and the reference numbers are an independent computation on rock-paper-
scissors and on a random sigmoid game of 20 answers. The same step without its second query, and
Nash-MD, for comparison.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import at_least, non_negative, one_of, positive, real
from experiments.lab.claims import Finding, at_most, claim, equals, together
from experiments.lab.plots import COLORS, Picture, curve, legend_above, panels, some, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.games import preferences, self_play

AXES = {"beta": positive, "game": non_negative}
FIELDS = {
    "answers": at_least(3),
    "iterations": at_least(200),
    "generator": one_of(generators.TABLE),
    "step_size": positive,
    "nash_md_step_size": positive,
    "skew": real,
    "spread": non_negative,
}
ALGORITHMS = ("mirror prox", "self-play", "Nash-MD")
BETAS = (0.3, 0.1, 0.03, 0.01)
# Rock-paper-scissors at these betas: the equilibrium, KL_0, the factor of KL per iteration.
EQUILIBRIA = (
    (0.36972, 0.49322, 0.13706),
    (0.29579, 0.44419, 0.26002),
    (0.31446, 0.36928, 0.31626),
    (0.32635, 0.34532, 0.32834),
)
STARTS = (0.10941, 0.21359, 0.2377, 0.24019)
FACTORS = (0.3258, 0.5415, 0.6921, 0.7517)
# KL after so many queries at a beta, and half of the last digit printed.
DISTANCES = {
    ("mirror prox", 0.1, 20): (5.46e-4, 5e-7),
    ("mirror prox", 0.03, 20): (6.78e-3, 5e-6),
    ("mirror prox", 0.03, 100): (1.65e-9, 5e-12),
    ("mirror prox", 0.01, 20): (1.54e-2, 5e-5),
    ("mirror prox", 0.01, 100): (1.11e-7, 5e-10),
}
FAILURES = {
    ("self-play", 0.03, 20): (0.559, 5e-4),
    ("self-play", 0.03, 100): (0.743, 5e-4),
    ("self-play", 0.03, 400): (0.767, 5e-4),
    ("self-play", 0.01, 20): (1.20, 5e-3),
    ("self-play", 0.01, 100): (1.83, 5e-3),
    ("self-play", 0.01, 400): (2.03, 5e-3),
    ("Nash-MD", 0.01, 20): (0.263, 5e-4),
    ("Nash-MD", 0.01, 100): (0.339, 5e-4),
    ("Nash-MD", 0.01, 400): (0.494, 5e-4),
}
ZERO = 1e-22
"""KL below this is rounding: the square of what a policy is off by."""
SOURCE = "Tiapkin et al. 2025 (arXiv:2505.19731), abstract"
RECOMPUTED = f"{SOURCE}; its games are unknown, the numbers are an independent computation"
REVERSED = {"generator": "reverse_kl", "sweep.game": (0,)}
SMALL_STEPS = {"step_size": 0.2, "sweep.game": (0,)}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """KL(pi*‖pi_k) of each algorithm; game 0 is rock-paper-scissors, the others are random."""
    beta, kl = point["beta"], generators.kl()
    game, ref_logits = problem(config, jax.random.fold_in(key, point["game"]), point["game"])
    row = generators.get(config.generator)
    star = preferences.nash(game, ref_logits, beta, generator=row).log_policy

    def stepping(step, step_size):
        return lambda x: step(x, game, ref_logits, beta=beta, step_size=step_size)

    prox = stepping(self_play.mirror_prox, config.step_size)
    descent = stepping(self_play.online_mirror_descent, config.step_size)
    nash_md = stepping(self_play.nash_md, config.nash_md_step_size)
    # Two iterations of the others take two queries as well.
    steps = (prox, lambda x: descent(descent(x)), lambda x: nash_md(nash_md(x)))
    distance = [
        self_play.play(step, ref_logits, config.iterations, lambda x: divergences.kl(star, x))
        for step in steps
    ]

    def evidence(log_policy):
        """An independent check of the equilibrium, by the definition, and the certificate."""
        fixed = jax.nn.softmax(ref_logits + preferences.answer_win_rates(log_policy, game) / beta)
        gap = preferences.regularized_exploitability(
            log_policy, game, ref_logits, beta, generator=kl
        )
        return jnp.max(jnp.abs(fixed - jnp.exp(log_policy))), jnp.abs(gap)

    residual, gap = jax.vmap(evidence)(jnp.stack([star, ref_logits]))
    queries = range(0, 2 * config.iterations + 1, 2)
    candidates = ("equilibrium", "reference")
    return {
        "distance": labelled(jnp.stack(distance), algorithm=ALGORITHMS, queries=queries),
        "policy": labelled(jnp.exp(star), "answer"),
        "residual": labelled(residual, candidate=candidates),
        "gap": labelled(gap, candidate=candidates),
    }


def problem(config: ConfigDict, key: Array, game: Array) -> tuple[Array, Array]:
    """Preference and reference. In rock-paper-scissors other answers have probability zero."""
    of_game, of_reference = jax.random.split(key)
    random = preferences.random_game(config.answers, of_game, skew=config.skew)
    spread = config.spread * jax.random.normal(of_reference, (config.answers,))
    known = jnp.full((config.answers, config.answers), 0.5)
    known = known.at[:3, :3].set(preferences.rock_paper_scissors())
    log_known = np.full(config.answers, -np.inf)
    log_known[:3] = np.log(config.reference)
    first = game == 0
    ref_logits = jnp.where(first, log_known, jax.nn.log_softmax(spread))
    return jnp.where(first, known, random), ref_logits


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """KL against queries."""
    betas = some(results.beta, (0.1, 0.01))[:2]
    known, random = results.distance.sel(game=results.game == 0), results.game > 0
    on_known = betas * known.sizes["game"]
    figure, axes = panels(len(on_known) + random.any().item(), sharey=True, squeeze=False)
    axes = axes[0]
    for axis, beta in zip(axes, on_known, strict=False):
        of_rps = known.sel(beta=beta).isel(game=0)
        for number, algorithm in enumerate(ALGORITHMS):
            here = of_rps.sel(algorithm=algorithm)
            curve(axis, "queries", here, label=algorithm, lw=2, **style(number))
        first = of_rps.sel(algorithm="mirror prox", queries=0)
        bound = first * (1 + 2 * beta) ** -(of_rps.queries / 2)
        curve(axis, "queries", bound, color="black", linewidth=1, label="bound for mirror prox")
        axis.set(title=f"rock-paper-scissors, β = {beta:g}")
    random = results.distance.sel(beta=betas[-1], game=random)
    for number, algorithm in enumerate(ALGORITHMS[:2] if random.size else ()):
        here = random.sel(algorithm=algorithm)
        # Medians, since the distances spread over many powers of ten.
        look = style(number) | {"label": algorithm}
        curve(axes[-1], "queries", here.median("game"), lw=2, **look)
        low, high = here.quantile((0.1, 0.9), "game").values
        axes[-1].fill_between(here.queries, low, high, color=COLORS[number], alpha=0.15)
        axes[-1].set(title=f"{random.sizes['game']} random games, β = {betas[-1]:g}")
    axes[0].set(yscale="log", ylim=(1e-20, 10), ylabel="KL(π*‖π_k), nats")
    for axis in axes:
        axis.set(xlabel="queries of the preference", xlim=(0, 400))
    legend_above(figure, axes[0], columns=4)
    return {
        "nash_mirror_prox": Picture(
            figure,
            "Distance to the regularized equilibrium. On rock-paper-scissors with a small penalty"
            " only mirror prox comes closer, and faster than its bound; the same step without the"
            " second query is driven away. Right, medians and the middle 80%: on most random"
            " games both converge, so one such game cannot tell them apart.",
        )
    }


# -------------------------------------------------------------------------------------- claims


def compared(
    results: xr.Dataset,
    table: dict[tuple[str, float, int], tuple[float, float]],
    algorithm: str | None = None,
) -> Finding:
    """KL on rock-paper-scissors beside a table; `algorithm` in place of the one it names."""
    distance = results.distance.sel(game=0)
    measured = [
        distance.sel(algorithm=algorithm or named, beta=beta, queries=queries).item()
        for named, beta, queries in table
    ]
    number, half = np.array(list(table.values())).T
    return equals(number, measured, tolerance=half)


@claim(
    source=f"{RECOMPUTED}; softmax(log ref + P pi*/beta) = pi*",
    reference=np.append(EQUILIBRIA, STARTS),
    reruns=(REVERSED,),
    needs={"game": (0,)},
)
def equilibria(results: xr.Dataset) -> Finding:
    """The equilibria of rock-paper-scissors with reference (.6, .3, .1) at beta = .3, .1, .03, .01
    to five digits, and KL_0 = KL(pi*‖ref) = .10941, .21359, .23770, .24019."""
    rps = results.sel(game=0, beta=list(BETAS))
    policies = rps.policy.isel(answer=slice(3)).transpose("beta", "answer")
    starts = rps.distance.sel(algorithm="mirror prox", queries=0)
    return together(equals(EQUILIBRIA, policies, decimals=5), equals(STARTS, starts, decimals=5))


@claim(
    source="Munos et al. 2023 (arXiv:2312.00886), the definition of the regularized equilibrium",
    reruns=(REVERSED,),
    wrong=({"candidate": "reference"},),
)
def certificates(results: xr.Dataset, candidate: str = "equilibrium") -> Finding:
    """In all games, the largest distance of softmax(log ref + P pi*/beta) from pi*, and the largest
    regularized exploitability."""
    found = results.sel(candidate=candidate)
    return at_most(1e-13, [found.residual.max(), found.gap.max()])


@claim(source=SOURCE, reruns=(SMALL_STEPS, REVERSED), wrong=({"algorithm": "self-play"},))
def linear_rate(results: xr.Dataset, algorithm: str = "mirror prox") -> Finding:
    """KL(pi*‖pi_k) <= KL_0 (1 + 2 beta)^-k for every k up to the last, on rock-paper-scissors and
    all random games; the largest ratio for k > 0, KL below 1e-22 being rounding."""
    distance = results.distance.sel(algorithm=algorithm)
    bound = distance.sel(queries=0) * (1 + 2 * results.beta) ** -(results.queries / 2)
    ratio = (distance / bound).where(distance > ZERO, 0)
    return at_most(1.0, ratio.sel(queries=slice(2, None)).max())


@claim(source=RECOMPUTED, reference=FACTORS, reruns=(SMALL_STEPS, REVERSED), needs={"game": (0,)})
def factor_per_iteration(results: xr.Dataset) -> Finding:
    """The factor by which KL falls per iteration on rock-paper-scissors, over the first 20, .3258,
    .5415, .6921, .7517 at beta = .3, .1, .03, .01. The bound is .6250, .8333, .9434, .9804."""
    distance = results.distance.sel(game=0, beta=list(BETAS), algorithm="mirror prox")
    factor = (distance.sel(queries=40) / distance.sel(queries=0)) ** (1 / 20)
    return equals(FACTORS, factor, tolerance=5e-5)


@claim(
    source=RECOMPUTED,
    reference=[number for number, _ in DISTANCES.values()],
    reruns=(SMALL_STEPS,),
    wrong=({"algorithm": "Nash-MD"},),
    needs={"game": (0,)},
)
def distances_of_mirror_prox(results: xr.Dataset, algorithm: str | None = None) -> Finding:
    """KL on rock-paper-scissors after 10 and 50 iterations, at beta = .1 (10 only), .03, .01, to
    the digits of the reference."""
    return compared(results, DISTANCES, algorithm)


@claim(
    source=RECOMPUTED,
    reference=[number for number, _ in FAILURES.values()],
    reruns=(REVERSED,),
    wrong=({"algorithm": "mirror prox"},),
    needs={"game": (0,)},
)
def without_the_second_query_it_is_driven_away(
    results: xr.Dataset, algorithm: str | None = None
) -> Finding:
    """KL on rock-paper-scissors after 20, 100, 400 queries: self-play with the same step at beta =
    .03 and .01, Nash-MD with step .5 at .01; they rise, to the digits of the reference."""
    return compared(results, FAILURES, algorithm)


@claim(
    source=f"{RECOMPUTED}: on its random game of 20 answers self-play converges, too",
    wrong=({"random": False},),
)
def most_random_games_cannot_tell(results: xr.Dataset, random: bool = True) -> Finding:
    """The median over random games of KL after 400 queries of self-play over KL_0, at each beta. On
    rock-paper-scissors it is above 1 at .03 and .01."""
    asked = results.distance.where((results.game > 0) == random, drop=True)
    shrunk = asked.sel(queries=400) / asked.sel(queries=0)
    return at_most(1.0, shrunk.sel(algorithm="self-play").median("game"))
