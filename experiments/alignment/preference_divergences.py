"""f-DPO on five answers: optima of every divergence, their fit from preferences, their entropy.

Wang et al. 2024 (arXiv:2309.16240), Theorem 1 with its failing case, chi2-PO's repair (Huang et al.
2024, arXiv:2407.13399), and the paper's claim on diversity. The papers report language models only;
the reference numbers are an independent computation of this toy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from jdiv import divergences, generators, regularized, roots
from jdiv.alignment import margins, preference
from jdiv.divergences.generator import Generator

TRACED = ("beta", "row")
# By the field's names: which of the rows below, for powers the exponent, scale and f'(1) of f as
# the paper writes it, and how many times the row it is. Its alpha is 1 minus ours, its JS twice.
ROWS = {
    "RKL": (0, 1.0, 1.0, 1.0, 1.0),
    "alpha .3": (0, 0.7, 1.0, 0.0, 1.0),
    "alpha .5": (0, 0.5, 1.0, 0.0, 1.0),
    "alpha .7": (0, 0.3, 1.0, 0.0, 1.0),
    "FKL": (0, 0.0, 1.0, -1.0, 1.0),
    "chi2": (0, 2.0, 2.0, 0.0, 1.0),
    "JS": (1, 1.0, 1.0, 0.0, 2.0),
    "chi2-PO": (2, 1.0, 1.0, 0.0, 1.0),
}
REFERENCES = ("uniform", "given")
DIMS = {
    **dict.fromkeys(("policy", "fit"), ("answer",)),
    **dict.fromkeys(("matched_entropy", "matched_kl"), ("of",)),
    **dict.fromkeys(("matched_forward_kl", "missed"), ("of",)),
    **dict.fromkeys(("reward", "entropy"), ("of", "temperature")),
}
SOURCE = "Wang et al. 2024 (arXiv:2309.16240)"
RECOMPUTED = f"{SOURCE}; this toy, recomputed independently"
# lambda and the optimum at beta = .5.
OPTIMA = {
    "RKL": (-0.421627, 0.31585, 0.19131, 0.06290, 0.38944, 0.04050),
    "alpha .3": (0.206867, 0.43072, 0.14796, 0.06155, 0.30282, 0.05695),
    "FKL": (1.042229, 0.59201, 0.08905, 0.06484, 0.16841, 0.08569),
    "JS": (0.681289, 0.87250, 0.03540, 0.00988, 0.07604, 0.00617),
    "chi2": (-0.295000, 0.11475, 0.22425, 0.15900, 0.39875, 0.10325),
    "chi2-PO": (-0.693615, 0.12396, 0.21446, 0.14364, 0.38734, 0.13059),
}
REPAIRED = (0.061423, 0.36931, 0.18028, 0.00073, 0.44968, 0.00001)
FAILED = (0.280, 0.3127, 0.2763, 0.0, 0.4110, 0.0)
# Entropies at equal reward; IMDB's predictive entropies in the paper, at equal beta.
MATCHED = {
    "RKL": 1.4335,
    "alpha .3": 1.4324,
    "JS": 1.4307,
    "alpha .5": 1.4305,
    "alpha .7": 1.4280,
    "FKL": 1.4234,
}
IMDB = {
    "RKL": 3.66,
    "JS": 3.75,
    "alpha .3": 4.03,
    "alpha .5": 4.07,
    "alpha .7": 4.09,
    "FKL": 4.12,
}


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Names of references, numbers of answers, temperatures."""
    return {
        "answer": range(1, 1 + len(config.reward)),
        "of": REFERENCES,
        "temperature": config.temperatures,
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses what has no optimum, and a reward that no policy has."""
    if not point["beta"] > 0:
        raise ValueError(f"config.sweep.beta must be positive, got {point['beta']}")
    if point["row"] not in range(len(ROWS)):
        raise ValueError(f"config.sweep.row must be from 0 to {len(ROWS) - 1}, got {point['row']}")
    low, high = np.mean(config.reward), max(config.reward)
    if not low < config.matched_reward < high:
        raise ValueError(
            f"config.matched_reward must be above the mean reward {low:g} and below {high:g}, got"
            f" {config.matched_reward}"
        )


@generators.row
class Choice(Generator):
    """One of the rows, by a number that may be traced: all divergences are one program."""

    number: ArrayLike
    rows: tuple[Generator, ...]

    def _chosen(self, of: Callable[[Generator], ArrayLike]) -> Array:
        first, *others = (jnp.asarray(of(row)) for row in self.rows)
        for number, other in enumerate(others, 1):
            first = jnp.where(self.number == number, other, first)
        return first

    at_zero = property(lambda self: self._chosen(lambda row: row.at_zero))
    slope_at_zero = property(lambda self: self._chosen(lambda row: row.slope_at_zero))
    slope_at_infinity = property(lambda self: self._chosen(lambda row: row.slope_at_infinity))
    slope_at_one = property(lambda self: self._chosen(lambda row: row.slope_at_one))

    def perspective(self, log_p, log_q, t):
        """Of the row."""
        return self._chosen(lambda row: row.perspective(log_p, log_q, t))

    def perspective_p(self, log_p, log_q, t):
        """Of the row."""
        return self._chosen(lambda row: row.perspective_p(log_p, log_q, t))

    def perspective_q(self, log_p, log_q, t):
        """Of the row."""
        return self._chosen(lambda row: row.perspective_q(log_p, log_q, t))

    def shift(self, t, step):
        """Of the row."""
        return self._chosen(lambda row: row.shift(t, step))


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Optima, fit, equal rewards, entropy at equal reward; the divergence is `factor` times row."""
    number, *power, factor = jnp.array(list(ROWS.values()))[jnp.asarray(point["row"], int)]
    rows = generators.Power(*power), generators.jensen_shannon(), generators.chi2_kl()
    row, beta = Choice(number, rows), point["beta"]
    log_ref, reward = jnp.log(jnp.array(config.reference)), jnp.array(config.reward)
    uniform = jnp.full_like(log_ref, -np.log(len(config.reference)))
    both = jnp.stack([uniform, log_ref])
    temperatures = jnp.array(config.temperatures)
    count = len(config.temperatures)

    # The optimum at beta, that of the equal rewards, both frontiers, and where rewards match.
    fill = len(config.reward) - len(config.equal.reward)
    equal = jnp.array((*config.equal.reward, *(0.0,) * fill))
    equal_ref = jnp.concatenate(
        [jnp.log(jnp.array(config.equal.reference)), jnp.full(fill, -jnp.inf)]
    )
    values = jnp.stack([reward, equal, *[reward] * (2 * count + 2)])
    references = jnp.concatenate(
        [log_ref[None], equal_ref[None], jnp.repeat(both, count, axis=0), both]
    )
    at = jnp.concatenate(
        [jnp.stack([beta, jnp.asarray(config.equal.beta)]), temperatures, temperatures]
    )

    def halve(_, state):
        low, high, _ = state
        middle = (low + high) / 2
        temperature = jnp.concatenate([factor * at, jnp.exp(middle)])
        best = regularized.greedy(values, references, temperature, generator=row)
        above = jnp.exp(best.log_policy[-2:]) @ reward > config.matched_reward
        found = best.log_policy, best.normalizer[0], best.residual[0]
        return jnp.where(above, middle, low), jnp.where(above, high, middle), found

    zero = jnp.zeros(())
    state = jnp.full(2, -7.0), jnp.full(2, 7.0), (references, zero, zero)
    *_, (log_policy, normalizer, residual) = jax.lax.fori_loop(0, 54, halve, state)
    optimum, matched = log_policy[0], log_policy[-2:]
    frontier = jnp.exp(log_policy[2:-2]).reshape(2, count, -1)

    def scores(log_pi):
        return preference.implicit_reward(log_pi, log_ref, beta=factor * beta, generator=row)

    win = jax.nn.sigmoid(reward[:, None] - reward[None, :])
    pairs = 1 - jnp.eye(len(reward))

    def loss(logits):
        s = scores(jax.nn.log_softmax(logits))
        return jnp.sum(pairs * win * margins.logistic(s[:, None] - s[None, :]))

    fit = roots.minimize(loss, log_ref, config.iterations)
    log_pi = jax.nn.log_softmax(fit.x)
    pair = jnp.broadcast_arrays(
        log_pi[:, None], log_pi[None, :], log_ref[:, None], log_ref[None, :]
    )
    of_pairs = preference.f_dpo(*pair, beta=factor * beta, generator=row)
    left = reward - scores(optimum)
    return {
        "normalizer": normalizer - beta * row.slope_at_one,
        "policy": jnp.exp(optimum),
        "residual": residual,
        "spread": jnp.max(left) - jnp.min(left),
        "fit": jax.nn.softmax(fit.x),
        "excess": jnp.sum(pairs * win * (of_pairs + jnp.log(win))),
        "slope": fit.slope,
        "log_odds": log_policy[1, 0] - log_policy[1, 1],
        "matched_entropy": entropy(jnp.exp(matched)),
        "matched_kl": divergences.kl(matched, both),
        "matched_forward_kl": divergences.reverse_kl(matched, both),
        "missed": jnp.abs(jnp.exp(matched) @ reward - config.matched_reward),
        "reward": frontier @ reward,
        "entropy": entropy(frontier),
    }


def entropy(p: Array) -> Array:
    """In nats."""
    return -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1)


def named(results: xr.Dataset) -> xr.Dataset:
    """With names for the rows."""
    names = [list(ROWS)[row] for row in results.row.values]
    return results.assign_coords(row=names).rename(row="divergence")


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The frontiers, and what is fitted against the optimum."""
    results = named(results)
    at = results.isel(beta=0)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    shown = ("alpha .3", "alpha .5", "FKL", "JS", "chi2")
    for axis, of in zip(axes, REFERENCES, strict=True):
        best = at.sel(divergence="RKL", of=of).sortby("reward")
        axis.axhline(0, color=COLORS[0], label="RKL")
        for number, name in enumerate(shown, 1):
            line = at.sel(divergence=name, of=of)
            inside = (line.reward >= best.reward.min()) & (line.reward <= best.reward.max())
            lead = line.entropy - np.interp(line.reward, best.reward, best.entropy)
            style = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))[number - 1]
            axis.plot(line.reward, lead.where(inside), linestyle=style, color=COLORS[number],
                      label=name)  # fmt: skip
        axis.axvline(config.matched_reward, color="#808080", linewidth=0.8)
        axis.set(xlabel="mean reward", title=f"{of} reference", ylim=(-0.2, 0.08))
        axis.title.set_fontsize("medium")
    axes[0].set_ylabel("entropy minus that of RKL, nats")
    axes[0].legend(title="divergence", ncols=2, loc="lower left")
    fits, axis = plt.subplots(figsize=(6.4, 4.0))
    small = results.sel(beta=config.claims.small_beta)
    width, answers = 0.2, results.answer.values
    bars = (
        ("optimum of chi2", small.policy.sel(divergence="chi2"), COLORS[0], ""),
        ("its f-DPO fit", small.fit.sel(divergence="chi2"), COLORS[1], "//"),
        ("optimum of chi2-PO", small.policy.sel(divergence="chi2-PO"), COLORS[2], ""),
        ("its fit", small.fit.sel(divergence="chi2-PO"), COLORS[4], "//"),
    )
    for number, (label, height, colour, hatch) in enumerate(bars):
        axis.bar(answers + (number - 1.5) * width, height, width, label=label, color=colour,
                 hatch=hatch, edgecolor="white")  # fmt: skip
    axis.set(xlabel="answer", ylabel="probability", xticks=answers)
    axis.set_axisbelow(True)
    axis.grid(False, axis="x")
    axis.legend()
    return {
        "frontier": Picture(
            figure,
            "Entropy that each divergence leaves at a given mean reward, less what reverse KL"
            " leaves. Against a uniform reference reverse KL is the maximum-entropy solution;"
            " against another one the order changes, and chi2, which drops answers, leaves the"
            " picture. The grey line is where the claims compare.",
        ),
        "failure": Picture(
            fits,
            f"At β = {config.claims.small_beta:g} the optimum of chi2 drops answers 3 and 5, and"
            " what f-DPO fits is another policy; with chi2-PO's link both have some probability,"
            " .0007 and .00001, and the fit is the optimum.",
        ),
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The table, the theorem and its failure, the repair, diversity."""
    of, results = config.claims, named(results)
    at, small = results.sel(beta=of.beta), results.sel(beta=of.small_beta)
    table = np.array(list(OPTIMA.values()))
    rows = at.sel(divergence=list(OPTIMA))
    found = np.column_stack([rows.normalizer, rows.policy.transpose("divergence", "answer")])
    digits = np.array([5.1e-7, *[5.1e-6] * 5])
    failing, repaired = small.sel(divergence=of.failing), small.sel(divergence=of.repaired)
    last = np.array([5.1e-4, *[5.1e-5] * 5])
    matched = results.isel(beta=0)
    uniform = matched.matched_entropy.sel(of=of.uniform, divergence=list(MATCHED)).values
    given = matched.sel(of="given", divergence=list(MATCHED))
    entropies = np.array(list(MATCHED.values()))
    others = [name for name in MATCHED if name != of.largest]
    lead = matched.matched_entropy.sel(of="uniform")
    lead = lead.sel(divergence=of.largest) - lead.sel(divergence=others).max()
    two = results.policy.sel(beta=0.5, divergence=[of.largest, "FKL"])
    by_beta = -(two * np.log(two)).sum("answer").values
    paid = (two * xr.DataArray(list(config.reward), dims="answer")).sum("answer").values
    smallest = [
        given.matched_kl - given.matched_kl.sel(divergence=of.largest),
        given.matched_forward_kl
        - given.matched_forward_kl.sel(divergence="FKL" if of.largest == "RKL" else "RKL"),
    ]
    wrong = {"claims.beta": 0.1}
    return [
        Claim(
            "optima",
            RECOMPUTED,
            "lambda and pi* at beta = .5 of reverse KL, alpha = .3, forward KL, JS, chi2 and"
            " chi2-PO: the reference numbers to their last digit.",
            found,
            low=table - digits,
            high=table + digits,
            controls=(wrong,),
        ),
        Claim(
            "the-fit-is-the-optimum",
            f"{SOURCE}, Theorem 1",
            "At beta = .5, largest over divergences: spread of r - beta f'(pi*/ref), which should"
            " be a constant; excess of the loss of all pairs that is fitted; distance of the fit"
            " from pi*; derivative of the loss where it is said to be least.",
            [
                float(at.spread.max()),
                float(np.abs(at.excess).max()),
                float(np.abs(at.fit - at.policy).max()),
                float(at.slope.max()),
            ],
            high=(1e-8, 1e-12, 1e-6, 1e-9),
            controls=(wrong,),
        ),
        Claim(
            "chi2-fails-where-answers-are-dropped",
            RECOMPUTED,
            "At beta = .1 the optimum is (.275, .225, 0, .5, 0); the fit has an excess of .280 and"
            " is (.31267, .27633, 0, .411, 0): excess, fit and optimum. The fit's fifth digits are"
            " .27632 and .41102 here and by SciPy's solver; compared are four.",
            [float(failing.excess), *failing.fit.values, *failing.policy.values],
            low=[*(np.array(FAILED) - last), *(np.array([0.275, 0.225, 0, 0.5, 0]) - 1e-12)],
            high=[*(np.array(FAILED) + last), *(np.array([0.275, 0.225, 0, 0.5, 0]) + 1e-12)],
            controls=({"claims.failing": "chi2-PO"},),
        ),
        Claim(
            "chi2-po-repairs-it",
            "Huang et al. 2024 (arXiv:2407.13399), equation 8; this toy, recomputed independently",
            "At beta = .1, to the last digit: lambda and pi* of chi2-PO, all positive; then the"
            " spread of r - beta phi and the excess of its fit.",
            [
                float(repaired.normalizer),
                *repaired.policy.values,
                float(repaired.spread),
                float(repaired.excess),
                float(np.abs(repaired.fit - repaired.policy).max()),
            ],
            low=[*(np.array(REPAIRED) - digits), 0, -1e-12, 0],
            high=[*(np.array(REPAIRED) + digits), 1e-13, 1e-12, 1e-6],
            controls=({"claims.repaired": "chi2"},),
        ),
        Claim(
            "equal-rewards-keep-their-odds",
            "Stationarity: f'(pi/ref) is the same for equal rewards",
            "Odds of two equally good answers, 4 : 1 in the reference, at the optimum of every"
            " divergence: relative deviation.",
            np.exp(results.log_odds.values) / of.odds - 1,
            low=-1e-9,
            high=1e-9,
            controls=({"claims.odds": 2.0},),
        ),
        Claim(
            "entropy-at-equal-reward",
            RECOMPUTED,
            "Entropy at mean reward .4 with a uniform reference: RKL 1.4335, alpha = .3 1.4324, JS"
            " 1.4307, .5 1.4305, .7 1.4280, FKL 1.4234; to the last digit.",
            uniform,
            low=entropies - 5.1e-5,
            high=entropies + 5.1e-5,
            controls=({"claims.uniform": "given"},),
        ),
        Claim(
            "the-published-order-is-not-the-frontier's",
            f"{SOURCE}: IMDB, entropies RKL 3.66, JSD 3.75, .3 4.03, .5 4.07, .7 4.09, FKL 4.12",
            "At equal reward and with a uniform reference reverse KL has the largest entropy, by"
            " theory: its lead over the second. The paper compares trained models at equal beta,"
            " where forward KL has the largest entropy and the lowest accuracy; published is the"
            " lead of reverse KL over forward KL there. Of this toy's optima at beta = .5 that of"
            " reverse KL has the larger entropy and that of forward KL the larger reward, second"
            " and third number: the published order need not be that of optima.",
            [float(lead), float(by_beta[0] - by_beta[1]), float(paid[1] - paid[0])],
            low=1e-6,
            published=IMDB["RKL"] - IMDB["FKL"],
            controls=({"claims.largest": "FKL"},),
        ),
        Claim(
            "each-kl-is-least-for-its-own",
            f"{RECOMPUTED}: .6433 and .5262",
            "At mean reward .4 with the given reference: KL(pi‖ref) of every divergence minus that"
            " of reverse KL, KL(ref‖pi) minus that of forward KL, none negative; and these two.",
            [
                *np.concatenate(smallest),
                float(given.matched_kl.sel(divergence="RKL")),
                float(given.matched_forward_kl.sel(divergence="FKL")),
            ],
            low=[*[0.0] * (2 * len(MATCHED)), 0.6433 - 5.1e-5, 0.5262 - 5.1e-5],
            high=[*[np.inf] * (2 * len(MATCHED)), 0.6433 + 5.1e-5, 0.5262 + 5.1e-5],
            controls=({"claims.largest": "FKL"},),
        ),
    ]
