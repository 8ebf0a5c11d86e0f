"""Best of n: the exact law with ties, its KL, the bound and an estimator, and the optimal win rate.

Beirami et al. 2024 (arXiv:2401.01879) for bound and estimator, Gui et al. 2024, BoNBoN
(arXiv:2406.00832), for the optimal win rate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, fraction, one_of, seeds
from experiments.lab.claims import Finding, at_most, between, claim, equals
from experiments.lab.plots import COLORS, Picture, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.alignment import best_of_n, tilts

AXES = {"seed": seeds}
FIELDS = {
    "generator": one_of(("kl", "reverse_kl")),
    "bound_term": fraction,
    "rounds": count,
    "sampled": count,
}
# Answers, and how many of them have each reward.
BASES = {"2": (2, 1), "10": (10, 1), "100": (100, 1), "10 levels of 10": (100, 10)}
MOST = 100
OPTIMAL = (2, 3, 4, 5, 8, 10)
# Exact KL, bound and estimator.
REFERENCE = {
    ("10", 4): (0.62883, 0.63629, 0.63487),
    ("10", 64): (2.29345, 3.17451, 2.29461),
    ("100", 4): (0.63622, 0.63629, 0.63629),
    ("100", 64): (3.15760, 3.17451, 3.16667),
    ("2", 4): (0.45936, 0.63629, 0.49912),
    ("2", 64): (0.69315, 3.17451, 0.69315),
    ("10", 1024): (2.30259, 5.93245, 2.30259),
}
# c, optimal win rate, gap to n/(n + 1), beta*.
BONBON = (
    (2.288641, 0.675907, 0.009240, 0.5),
    (3.727466, 0.756368, 0.006368, 0.166667),
    (4.916908, 0.803996, 0.003996, 0.090909),
    (6.001893, 0.835866, 0.002533, 0.06),
    (9.054541, 0.889675, 0.000786, 0.027548),
    (11.049593, 0.909515, 0.000424, 0.019638),
)
BEIRAMI = "Beirami et al. 2024 (arXiv:2401.01879)"
GUI = "Gui et al. 2024, BoNBoN (arXiv:2406.00832)"
# The law n p F^(n - 1), which forgets that two draws may be equal; KL(ref‖best of n); and log n.
NO_TIES = {"ties": False, "rounds": 200_000}
WRONG_DIRECTION = {"generator": "reverse_kl", "rounds": 50_000}
LOG_N = {"bound_term": 0.0, "rounds": 50_000}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses tables without the draws that they are about."""
    missing = {n for _, n in REFERENCE} - set(config.draws)
    if missing:
        raise ValueError(f"config.draws must have {sorted(missing)}, got {config.draws}")


def law(config: ConfigDict, size: Array, tied: Array, n: Array) -> tuple[Array, Array]:
    """The reference of so many answers, uniform, and the law of its best of n."""
    answers = jnp.arange(MOST)
    ref_logits = jnp.where(answers < size, -jnp.log(size.astype(n.dtype)), -jnp.inf)
    rewards = (answers // tied).astype(n.dtype)
    if config.ties:
        return ref_logits, best_of_n.best_of_n(rewards, ref_logits, n)
    at_most = best_of_n.ranks(rewards, ref_logits).log_at_most
    return ref_logits, tilts.pointwise(ref_logits, (n - 1) * at_most)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """KL, bound and estimate for every base and n; frequencies in samples; optimal win rates."""
    size, tied = jnp.asarray(list(BASES.values())).T
    draws = jnp.asarray(config.draws, jnp.result_type(float))
    bound = lambda n: best_of_n.kl_bound(n) + (1 - config.bound_term) * (n - 1) / n

    def numbers(size: Array, tied: Array, n: Array) -> tuple[Array, Array]:
        ref_logits, best = law(config, size, tied, n)
        here = jnp.where(jnp.arange(MOST) < size, ref_logits, 0)
        estimate = jnp.exp(best) @ best_of_n.kl_estimate(here, n)
        row = generators.get(config.generator)
        return divergences.f_divergence(row, best, ref_logits), estimate

    over_draws = jax.vmap(numbers, (None, None, 0))
    kl, estimate = jax.vmap(over_draws, (0, 0, None))(size, tied, draws)
    each = {"base": BASES, "draws": config.draws}

    # Ten answers, by sampling.
    _, log_law = law(config, size[1], tied[1], jnp.asarray(config.sampled, draws.dtype))
    drawn = jax.random.randint(key, (config.sampled, config.rounds), 0, 10)
    counts = jnp.bincount(jnp.max(drawn, axis=0), length=10)

    n = jnp.asarray(OPTIMAL, draws.dtype)
    best = best_of_n.win_rate_optimal_to(bound(n))
    return {
        "kl": labelled(kl, **each),
        "estimate": labelled(estimate, **each),
        "bound": labelled(bound(draws), draws=config.draws),
        "log_law": labelled(log_law[:10], "answer"),
        "frequency": labelled(counts.astype(draws.dtype) / config.rounds, "answer"),
        "c": labelled(best.c, n=OPTIMAL),
        "optimal_win": labelled(best.win, n=OPTIMAL),
        "beta": labelled(best_of_n.bonbon_beta(n), n=OPTIMAL),
        "converged": labelled(best.converged, n=OPTIMAL),
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """KL of best of n, and how close it is to the optimal win rate."""
    only = results.isel(seed=0)
    figure, (left, right) = panels(2)
    left.plot(only.draws, only.bound, "k:", label="bound log n − (n − 1)/n")
    for number, base in enumerate(("2", "10", "100")):
        look = {**style(number, marker=True), "linestyle": "-"}
        left.plot(only.draws, only.kl.sel(base=base), **look, label=f"{base} answers")
        estimate = only.estimate.sel(base=base)
        left.plot(only.draws, estimate, "x", color=COLORS[number], markersize=9)
    left.plot([], [], "x", color="grey", markersize=9, label="estimator")
    left.set(xlabel="draws n", ylabel="KL(best of n‖ref), nats")
    left.set_xscale("log", base=2)
    left.legend()
    right.plot(only.n, 100 * (only.optimal_win - only.n / (only.n + 1)), **style(0, marker=True))
    right.set(xlabel="draws n", ylabel="optimal win rate above best of n, points", ylim=(0, None))
    right.set_xticks(only.n.values)
    return {
        "kl": Picture(
            figure,
            "Left: the divergence of the best of n stays below the bound and ends at the entropy of"
            " the reference; the estimator (crosses) follows it. Right: no policy at the KL of the"
            " best of n wins more often by a point, for rewards without ties.",
        )
    }


@claim(
    source=f"{BEIRAMI}, formulas; an independent computation",
    reference=tuple(REFERENCE.values()),
    reruns=(NO_TIES, WRONG_DIRECTION, LOG_N),
)
def exact_kl_bound_and_estimator(results: xr.Dataset) -> Finding:
    """KL of the best of n, bound, and mean estimate, for 10 answers (n = 4, 64, 1024), 100 and 2
    (n = 4, 64), to the reference's five digits."""
    only = results.isel(seed=0)
    measured = [
        (
            only.kl.sel(base=base, draws=n).item(),
            only.bound.sel(draws=n).item(),
            only.estimate.sel(base=base, draws=n).item(),
        )
        for base, n in REFERENCE
    ]
    return equals(tuple(REFERENCE.values()), measured, tolerance=5.1e-6)


@claim(
    source=f"{BEIRAMI}; Yang et al. 2024 (arXiv:2404.01730), Lemma 6, has log n",
    reruns=(WRONG_DIRECTION,),
)
def the_bound_holds(results: xr.Dataset) -> Finding:
    """KL of the best of n is at most log n - (n - 1)/n: the largest difference over references
    and n."""
    n = results.draws
    return at_most(1e-12, (results.kl - (np.log(n) - (n - 1) / n)).max())


@claim(
    source="The law F^n - F_<^n, shared among tied answers",
    wrong=({"base": "100"},),
)
def equal_rewards_count_as_one_answer(
    results: xr.Dataset, base: str = "10 levels of 10"
) -> Finding:
    """The best of n has the same KL for 100 answers with ten levels of reward as for ten answers:
    the largest difference over n. (The estimator knows answers only: .63629 for both kinds of 100
    at n = 4.)"""
    return at_most(1e-12, np.abs(results.kl.sel(base=base) - results.kl.sel(base="10")).max())


@claim(source="Rounds of draws of ten answers by a random generator", reruns=(NO_TIES,))
def samples_agree(results: xr.Dataset, config: ConfigDict) -> Finding:
    """Samples have the exact law: the largest standard score of the frequency of an answer as the
    best, where 25 rounds or more are expected."""
    expected = np.exp(results.log_law.isel(seed=0))
    error = np.sqrt(expected * (1 - expected) / config.rounds)
    score = np.abs(results.frequency.isel(seed=0) - expected) / error
    return at_most(4.5, score.where(expected * config.rounds >= 25, 0).max())


def bonbon(results: xr.Dataset, optimal: bool) -> np.ndarray:
    """c, win rate, what it is above n/(n + 1), and beta*, one row for each n; NaN if not found."""
    only = results.isel(seed=0)
    won = only.n / (only.n + 1)
    win = only.optimal_win if optimal else won
    columns = np.stack([only.c, win, win - won, only.beta], axis=1)
    return np.where(only.converged.values[:, None] > 0, columns, np.nan)


@claim(
    source=f"{GUI}, formulas; an independent computation",
    reference=BONBON,
    reruns=(LOG_N,),
    wrong=({"optimal": False},),
)
def bonbon_table(results: xr.Dataset, optimal: bool = True) -> Finding:
    """c, the optimal win rate at the KL of the best of n, what it is above n/(n + 1), and beta*,
    for n = 2, 3, 4, 5, 8, 10, to six digits."""
    return equals(BONBON, bonbon(results, optimal), tolerance=5.1e-7)


@claim(
    source=f"{GUI}: the gap is largest at n = 2 and less than one point of a hundred",
    reruns=(LOG_N,),
    wrong=({"optimal": False},),
)
def best_of_n_is_within_a_point(results: xr.Dataset, optimal: bool = True) -> Finding:
    """No policy at the KL of the best of n wins more often than it by a point of a hundred: the
    largest gap in points, and the n of it, 2."""
    gap = bonbon(results, optimal)[:, 2]
    return between((0.9, 2), (100 * gap.max(), OPTIMAL[int(np.argmax(gap))]), (1, 2))
