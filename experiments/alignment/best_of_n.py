"""Best of n: the exact law with ties, its KL, the bound and an estimator, and the optimal win rate.

Beirami et al. 2024 (arXiv:2401.01879) for bound and estimator, Gui et al. 2024, BoNBoN
(arXiv:2406.00832), for the optimal win rate. The reference numbers are an independent computation.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import Picture
from jdiv import divergences
from jdiv.alignment import best_of_n, tilts

TRACED = ("seed",)
# Answers, and how many of them have each reward.
BASES = {"2": (2, 1), "10": (10, 1), "100": (100, 1), "10 levels of 10": (100, 10)}
LAWS = ("exact", "ties ignored")
MOST = 100
OPTIMAL = (2, 3, 4, 5, 8, 10)
DIMS = {
    "kl": ("law", "base", "draws"),
    "estimate": ("law", "base", "draws"),
    "bound": ("draws",),
    "log_law": ("law", "answer"),
    "frequency": ("answer",),
    "c": ("n",),
    "optimal_win": ("n",),
    "beta": ("n",),
    "converged": ("n",),
}
BOUND = "Beirami et al. 2024 (arXiv:2401.01879); an independent computation"
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
BONBON = {
    2: (2.288641, 0.675907, 0.009240, 0.5),
    3: (3.727466, 0.756368, 0.006368, 0.166667),
    4: (4.916908, 0.803996, 0.003996, 0.090909),
    5: (6.001893, 0.835866, 0.002533, 0.06),
    8: (9.054541, 0.889675, 0.000786, 0.027548),
    10: (11.049593, 0.909515, 0.000424, 0.019638),
}


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Laws, bases, numbers of draws."""
    return {
        "law": LAWS,
        "base": tuple(BASES),
        "draws": config.draws,
        "answer": tuple(range(MOST)),
        "n": OPTIMAL,
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses tables without the draws that they are about."""
    missing = {n for _, n in REFERENCE} - set(config.draws)
    if missing:
        raise ValueError(f"config.draws must have {sorted(missing)}, got {config.draws}")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """KL of exact and wrong law, bound and estimate for every base and n; samples; win rates."""
    answers = jnp.arange(MOST)
    size, tied = jnp.asarray(list(BASES.values())).T
    draws = jnp.asarray(config.draws, jnp.result_type(float))

    def laws(size: Array, tied: Array, n: Array) -> tuple[Array, Array]:
        """The log-reference, and both laws of the best of n."""
        log_ref = jnp.where(answers < size, -jnp.log(size.astype(n.dtype)), -jnp.inf)
        rewards = (answers // tied).astype(n.dtype)
        exact = best_of_n.best_of_n(rewards, log_ref, n)
        # As if no two draws could have equal rewards: n p F^(n-1), normalised.
        density = log_ref + (n - 1) * best_of_n.ranks(rewards, log_ref).log_at_most
        return log_ref, jnp.stack([exact, tilts.pointwise(log_ref, density - log_ref)])

    def numbers(size: Array, tied: Array, n: Array) -> tuple[Array, Array]:
        log_ref, both = laws(size, tied, n)
        estimate = best_of_n.kl_estimate(jnp.where(answers < size, log_ref, 0), n)
        references = jnp.broadcast_to(log_ref, both.shape)
        return divergences.kl(both, references), jnp.exp(both) @ estimate

    over_draws = jax.vmap(numbers, (None, None, 0), 1)
    kl, estimate = jax.vmap(over_draws, (0, 0, None), 1)(size, tied, draws)

    # Ten answers, by sampling.
    n = jnp.asarray(config.sampled, draws.dtype)
    _, log_law = laws(size[1], tied[1], n)
    drawn = jax.random.randint(key, (config.sampled, config.rounds), 0, 10)
    counts = jnp.bincount(jnp.max(drawn, axis=0), length=MOST)
    frequency = counts.astype(n.dtype) / config.rounds

    of_n = jnp.asarray(OPTIMAL, draws.dtype)
    best = best_of_n.win_rate_optimal_to(best_of_n.kl_bound(of_n))
    return {
        "kl": kl,
        "estimate": estimate,
        "bound": best_of_n.kl_bound(draws),
        "log_law": log_law,
        "frequency": frequency,
        "c": best.c,
        "optimal_win": best.win,
        "beta": best_of_n.bonbon_beta(of_n),
        "converged": best.converged,
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """KL of best of n, and how close it is to the optimal win rate."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9))
    kl = results.isel(seed=0).kl.sel(law="exact")
    estimate = results.isel(seed=0).estimate.sel(law="exact")
    left.plot(results.draws, results.bound.isel(seed=0), "k:", label="bound log n − (n − 1)/n")
    names = {"2": "2 answers", "10": "10 answers", "100": "100 answers"}
    for (base, name), style in zip(names.items(), ("o-", "s-", "^-"), strict=True):
        (line,) = left.plot(results.draws, kl.sel(base=base), style, label=name, markersize=5)
        left.plot(results.draws, estimate.sel(base=base), "x", color=line.get_color(), markersize=9)
    left.plot([], [], "x", color="grey", markersize=9, label="estimator")
    left.set(xscale="log", xlabel="n", ylabel="KL(best of n‖ref), nats")
    left.set_xscale("log", base=2)
    left.legend()
    gap = 100 * (results.optimal_win.isel(seed=0) - results.n / (results.n + 1))
    right.plot(results.n, gap, "o-")
    right.set(xlabel="n", ylabel="optimal win rate above best of n, points")
    right.set_ylim(0, None)
    right.set_xticks(results.n.values)
    return {
        "kl": Picture(
            figure,
            "Left: the divergence of the best of n stays below the bound and ends at the entropy of"
            " the reference; the estimator (crosses) follows it. Right: no policy at the KL of the"
            " best of n wins more often by a point, for rewards without ties.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The table, the bound, tied rewards, samples, BoNBoN."""
    only = results.isel(seed=0)
    law = config.claims.law
    ignored = ({"claims.law": "ties ignored"},)
    measured = [
        (
            float(only.kl.sel(law=law, base=base, draws=n)),
            float(only.bound.sel(draws=n)),
            float(only.estimate.sel(law=law, base=base, draws=n)),
        )
        for base, n in REFERENCE
    ]
    reference = np.array(list(REFERENCE.values()))
    exact = only.kl.sel(law="exact")
    at = config.claims.bound_at * only.draws
    bound = np.log(at) - (at - 1) / at
    coarse = only.kl.sel(law=law, base=config.claims.coarse) - exact.sel(base="10")
    expected = np.exp(only.log_law.sel(law=law))[:10].values
    error = np.sqrt(expected * (1 - expected) / config.rounds)
    often = expected * config.rounds >= 25
    score = np.abs(only.frequency[:10].values - expected) / np.where(often, error, np.inf)
    table = np.array(list(BONBON.values()))
    won = only.n / (only.n + 1)
    win = only.optimal_win if config.claims.win == "optimal" else won
    columns = np.stack([only.c, win, win - won, only.beta], axis=1)
    columns = np.where(only.converged.values[:, None] > 0, columns, np.nan)
    return [
        Claim(
            "exact-kl-bound-and-estimator",
            BOUND,
            "KL of the best of n, bound, and mean estimate, for 10 answers (n = 4, 64, 1024), 100"
            " and 2 (n = 4, 64), to the reference's five digits. The control has the law"
            " n p F^(n - 1), which forgets that two draws may be equal.",
            measured,
            low=reference - 5.1e-6,
            high=reference + 5.1e-6,
            controls=ignored,
        ),
        Claim(
            "the-bound-holds",
            "Beirami et al. 2024 (arXiv:2401.01879); Yang et al. 2024 (arXiv:2404.01730), Lemma 6,"
            " has log n",
            "KL of the best of n less log n - (n - 1)/n, largest over references and n. The control"
            " has the bound of n/2.",
            float((exact - bound).max()),
            high=1e-12,
            controls=({"claims.bound_at": 0.5},),
        ),
        Claim(
            "equal-rewards-count-as-one-answer",
            "The law F^n - F_<^n, shared among tied answers",
            "The KL of 100 answers with ten levels of reward less that of ten answers, largest over"
            " n. Controls: a hundred levels, and the law without ties. (The estimator knows answers"
            " only: .63629 for both kinds of 100 at n = 4.)",
            float(np.abs(coarse).max()),
            high=1e-12,
            controls=({"claims.coarse": "100"}, *ignored),
        ),
        Claim(
            "samples-agree",
            f"{config.rounds} rounds of {config.sampled} draws of ten answers",
            "Largest standard score of the frequency of an answer among the best, where 25 rounds"
            " or more are expected; bound 4.5.",
            float(score.max()),
            high=4.5,
            controls=ignored,
        ),
        Claim(
            "bonbon-table",
            "Gui et al. 2024, BoNBoN (arXiv:2406.00832), formulas; values of an independent"
            " computation",
            "c, optimal win rate at the KL of the best of n, what it is above n/(n + 1), and beta*,"
            " for n = 2, 3, 4, 5, 8, 10, to six digits. The control has the best of n's win rate.",
            columns,
            low=table - 5.1e-7,
            high=table + 5.1e-7,
            controls=({"claims.win": "best of n"},),
        ),
        Claim(
            "best-of-n-is-within-a-point",
            "Gui et al. 2024, BoNBoN (arXiv:2406.00832): the gap is largest at n = 2 and less than"
            " one point of a hundred",
            "The largest gap in points, and the n of it. In the control there is none.",
            [100 * columns[:, 2].max(), OPTIMAL[int(np.argmax(columns[:, 2]))]],
            low=(0.9, 2),
            high=(1, 2),
            controls=({"claims.win": "best of n"},),
        ),
    ]
