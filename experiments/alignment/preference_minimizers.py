"""What each preference loss is least for: policies of three answers, in closed form.

The comparisons are those of a Bradley-Terry model without noise, so the answer of every paper can
be written down: the optimum of the regularized reward for losses of differences, other policies for
the rest. The papers report language models only; minimizers without a closed form are numbers of an
independent computation, by another solver, of formulas written anew. Some losses are least for a
function that is no policy, for it need not be normalized, and one for none.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict
from scipy import optimize

from experiments.lab.axes import between, inside, non_negative, positive, proper_fraction, real
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import COLORS, Picture
from experiments.lab.results import Labelled, labelled
from jdiv.alignment import preference, reference_free, rewards, unpaired
from jdiv.divergences import generators

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"flipped": proper_fraction}
FIELDS = {
    "beta": positive,
    "noise": inside(0, 0.5),
    "alpha": between(0.01, 1),
    "gamma": non_negative,
    "likelihood": non_negative,
    "odds": non_negative,
    "bonus": non_negative,
    "kl": real,
    "away": positive,
}
SCORES = np.array([4.0, 2.0, 1.0])
"""The answers' odds to win, of which the config's wins are made."""
# Independent computations at the config's numbers, SciPy's solver and 40 digits.
SOLVED = {
    "EXO": (0.84869204630855, 0.13019876037008, 0.021109193321367),
    "DiscoPOP": (0.89733483363248, 0.093172826010321, 0.0094923403572019),
    "SimPO with gamma": (0.97167528154628, 0.028324062550306, 6.5590341096198e-7),
    "CPO": (0.41194120044391, 0.41147021954812, 0.17658858000797),
    "ORPO": (0.59996032041659, 0.32572365367408, 0.074316025909325),
    "XPO": (0.88870587123027, 0.095588718656278, 0.015705410113448),
    "APO-zero": (0.73522909030946, 0.26477090969054, 0.0),
    "KTO": (0.73907277303788, 0.26092722696212, 0.0),
}
UNCLOSED = ("EXO", "DiscoPOP", "SimPO with gamma", "CPO", "ORPO", "XPO")
RESTS = {
    "DPO": "tilt", "robust": "tilt", "AOT": "tilt", "IPO": "IPO", "SLiC": "SLiC", "EXO": "EXO",
    "DiscoPOP": "DiscoPOP", "chi2-PO": "chi2-PO", "DPO by token": "DPO by token",
    "AOT unpaired": "AOT unpaired", "XPO": "XPO", "CPO": "CPO",
    "CPO without likelihood": "tilt of 1",
    "SimPO": "SimPO", "SimPO with gamma": "SimPO with gamma", "AlphaPO": "AlphaPO", "ORPO": "ORPO",
    "odds of ORPO": "odds", "SFT": "chosen", "f-SFT": "chosen", "APO-zero": "APO-zero",
    "APO-zero unpaired": "APO-zero", "KTO with the KL of the data": "APO-zero", "KTO": "KTO",
    "NCA": "NCA", "BCO": "BCO", "SPPO": "SPPO", "rewards": "rewards",
}  # fmt: skip
"""Losses, and the name of the policy that each is least for."""
FREE = ("NCA", "BCO", "SPPO", "rewards")
"""Least for functions of the answer that are no log-probabilities."""
POLICIES = tuple(dict.fromkeys(RESTS.values()))
ALL = (*RESTS, "APO-down")
FLIPPED = {"sweep.flipped": (0.2,)}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses what is not three answers."""
    for name in ("wins", "reference", "lengths"):
        if len(config[name]) != len(SCORES):
            raise ValueError(f"config.{name} must be of {len(SCORES)} answers")


# ---------------------------------------------------------------------------------- what is stated


def stated(config: ConfigDict) -> dict[str, np.ndarray]:
    """Logarithms of the minimizers by name, as the papers' formulas give them."""
    wins, log_ref = np.array(config.wins), np.log(config.reference)
    played, gain = wins + wins.T, np.log(SCORES) / config.beta
    won = wins.sum(axis=1) / played.sum(axis=1)
    laplacian = np.diag(played.sum(axis=1)) - played
    surplus = (wins - wins.T).sum(axis=1) / (2 * config.beta)
    steps = np.array([2.0, 1.0, 0.0]) / config.beta
    n, scale = np.array(config.lengths), config.alpha
    normalized = lambda log: log - np.logaddexp.reduce(log)
    found = {
        "tilt": normalized(log_ref + gain),
        "tilt of 1": normalized(gain),
        "IPO": normalized(log_ref + np.linalg.pinv(laplacian) @ surplus),
        "SLiC": normalized(log_ref + steps),
        "AOT unpaired": normalized(log_ref + np.log(1 / config.noise - 1) * steps),
        "DPO by token": with_constant(lambda c: log_ref + n * (gain + c)),
        "SimPO": with_constant(lambda c: n * (gain + c)),
        "AlphaPO": with_constant(lambda c: -n * np.log1p(-scale * (gain + c)) / scale),
        "odds": with_constant(lambda c: -n * np.logaddexp(0, -np.log(SCORES) - c)),
        "chosen": np.log(wins.sum(axis=1) / wins.sum()),
        "NCA": log_ref + np.log(2 * won) / config.beta,
        "BCO": log_ref + np.log(won / (1 - won)) / config.beta,
        "SPPO": log_ref + (2 * won - 1) / (2 * config.beta),
        "rewards": np.log(SCORES),
    }
    with np.errstate(divide="ignore"):
        return found | {name: np.log(policy) for name, policy in SOLVED.items()}


def with_constant(log_policy) -> np.ndarray:
    """The policy of a family of increasing functions of a constant that sums to 1."""
    excess = lambda c: np.exp(log_policy(c)).sum() - 1
    high = next(c for c in np.linspace(-20, 40, 6001) if excess(c) > 0)
    return log_policy(optimize.brentq(excess, -60, high, xtol=1e-15, rtol=1e-15))


# -------------------------------------------------------------------------------------- the losses


def losses(config: ConfigDict, log_pi: Array) -> dict[str, Callable[[], Array]]:
    """Losses of all comparisons, the second half with the labels turned round, yet to be called."""
    wins, log_ref = np.array(config.wins), jnp.log(jnp.array(config.reference))
    better, worse = (np.repeat(x.ravel(), wins.ravel()) for x in np.indices(wins.shape))
    first, second = np.stack([better, worse]), np.stack([worse, better])
    pair = log_pi[first], log_pi[second], log_ref[first], log_ref[second]
    answers = np.concatenate([first, second], axis=1)
    desirable = np.broadcast_to(np.arange(answers.shape[1]) < len(better), answers.shape)
    n = np.array(config.lengths)
    return (
        of_differences(config, pair)
        | of_one_policy(config, pair[:2], (n[first], n[second]))
        | of_single_answers(config, pair, (log_pi[answers], log_ref[answers], desirable))
        | of_samples(config, pair, log_pi, log_ref)
        | {"DPO by token": by_token(config, preference.sigmoid_norm, pair, n[first], n[second])}
    )


def weighed(config: ConfigDict, loss: Callable, arrays: tuple, **options: ArrayLike) -> Callable:
    """The loss of these arrays at the config's beta."""
    return lambda: loss(*arrays, beta=config.beta, **options)


def by_token(config: ConfigDict, loss: Callable, arrays: tuple, *lengths, **options) -> Callable:
    """The same of a loss that takes lengths."""
    return lambda: loss(*arrays, beta=config.beta, lengths=lengths, **options)


def of_differences(config: ConfigDict, pair: tuple) -> dict[str, Callable[[], Array]]:
    """Functions of the difference of two log-ratios."""
    smoothed = {"label_smoothing": config.noise}

    def robust():
        """Of labels that are wrong as often as it believes."""
        loss = preference.robust(*pair, beta=config.beta, **smoothed)
        return (1 - config.noise) * loss + config.noise * loss[::-1]

    return {
        "DPO": weighed(config, preference.dpo, pair),
        "robust": robust,
        "AOT": weighed(config, preference.aot, pair),
        "IPO": weighed(config, preference.ipo, pair),
        "SLiC": weighed(config, preference.slic, pair),
        "EXO": weighed(config, preference.exo, pair, **smoothed),
        "DiscoPOP": weighed(config, preference.discopop, pair),
        "chi2-PO": weighed(config, preference.chi2_po, pair),
        "AOT unpaired": weighed(config, preference.aot_unpaired, pair, **smoothed),
    }


def of_one_policy(config: ConfigDict, pair: tuple, lengths: tuple) -> dict[str, Callable]:
    """Those without a reference."""
    cpo, simpo, orpo = reference_free.cpo, reference_free.simpo, reference_free.orpo
    shape = {"gamma": 0.0, "alpha": config.alpha}
    odds = lambda coefficient: orpo(*pair, lengths=lengths, coefficient=coefficient)
    return {
        "CPO": weighed(config, cpo, pair, coefficient=config.likelihood),
        "CPO without likelihood": weighed(config, cpo, pair, coefficient=0.0),
        "SimPO": by_token(config, simpo, pair, *lengths, gamma=0.0),
        "SimPO with gamma": by_token(config, simpo, pair, *lengths, gamma=config.gamma),
        "AlphaPO": by_token(config, reference_free.alpha_po, pair, *lengths, **shape),
        "ORPO": lambda: odds(config.odds),
        "odds of ORPO": lambda: odds(1.0) - preference.sft(pair[0] / lengths[0]),
        "SFT": lambda: preference.sft(pair[0]),
        "rewards": lambda: rewards.bradley_terry_loss(*pair),
    }


def of_single_answers(config: ConfigDict, pair: tuple, judged: tuple) -> dict[str, Callable]:
    """Those that judge each answer apart, and pairs of them."""
    data_kl = lambda: unpaired.mismatched_kl(judged[0][0], judged[1][0])
    return {
        "APO-zero": weighed(config, preference.apo_zero, pair),
        "APO-down": weighed(config, preference.apo_down, pair),
        "APO-zero unpaired": weighed(config, unpaired.apo_zero_unpaired, judged),
        "KTO": weighed(config, unpaired.kto, (*judged, config.kl)),
        "KTO with the KL of the data": lambda: unpaired.kto(*judged, data_kl(), beta=config.beta),
        "NCA": weighed(config, preference.nca, pair),
        "BCO": weighed(config, preference.bco, pair),
        "SPPO": weighed(config, preference.sppo_hard, pair),
    }


def of_samples(config: ConfigDict, pair: tuple, log_pi: Array, log_ref: Array) -> dict:
    """Those with samples of the reference: each answer as often as its probability says."""
    drawn = np.repeat(np.arange(3), np.rint(10 * np.array(config.reference)).astype(int))
    drawn, row = np.stack([drawn, drawn]), generators.jensen_shannon()
    return {
        "f-SFT": lambda: preference.f_sft(
            pair[0], pair[2], log_pi[drawn], log_ref[drawn], generator=row
        ),
        "XPO": lambda: optimistic(config, pair, log_pi, log_ref),
    }


def optimistic(config: ConfigDict, pair: tuple, log_pi: Array, log_ref: Array) -> Array:
    """XPO's loss, the mean over what the reference samples."""
    shape = len(SCORES), *pair[0].shape
    pair = (jnp.broadcast_to(x, shape) for x in pair)
    sampled = jnp.broadcast_to(log_pi[:, None, None], shape)
    loss = preference.xpo(*pair, sampled, beta=config.beta, coefficient=config.bonus)
    return jnp.einsum("y,y...->...", jnp.exp(log_ref), loss)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Slopes of all losses at all policies, and what a step from its own costs each."""
    gain, log_ref = jnp.log(SCORES), jnp.log(jnp.array(config.reference))
    known = stated(config)
    known["chi2-PO"] = preference.chi2_po_policy(gain, log_ref, beta=config.beta).log_policy
    log_policy = jnp.stack([jnp.asarray(known[name]) for name in POLICIES])
    free = jnp.array([name in FREE for name in POLICIES])[:, None]
    moves = config.away * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    moved = log_policy[:, None] + moves[None]
    mixed = jnp.logaddexp(log_policy + jnp.log1p(-1e-3), log_ref[None] + jnp.log(1e-3))
    moved = jnp.concatenate([moved, mixed[:, None]], axis=1)
    moved = jnp.where(free[:, None], moved, jax.nn.log_softmax(moved))
    places = jnp.concatenate([log_policy[:, None], moved], axis=1).reshape(-1, 3)
    half = log_policy[:1] - jnp.log(2.0)

    share = jnp.stack([1 - point["flipped"], point["flipped"]])

    def everything(log_pi):
        """Values and derivatives of the mean losses, each apart: some are infinite."""

        def mean(log_pi, name):
            loss = losses(config, log_pi)[name]()
            return share @ jnp.mean(loss.reshape(2, -1), axis=1)

        return [jax.value_and_grad(mean)(log_pi, name) for name in ALL]

    found = jax.vmap(everything)(jnp.concatenate([places, half]))
    value, slope = (jnp.stack(x, axis=1) for x in zip(*found, strict=True))
    at = lambda x: x[:-1].reshape(len(POLICIES), -1, *x.shape[1:])
    own = np.array([POLICIES.index(name) for name in RESTS.values()])
    row = np.arange(len(own))
    lead = (at(value)[:, 1:] - at(value)[:, :1])[own, :, row]
    # What is dropped stays dropped, and only policies are mixed.
    gone = log_policy == -jnp.inf
    stays = jnp.concatenate([gone, gone, free], axis=1)
    lead = jnp.where(stays[own], jnp.inf, lead).min(axis=1)
    slope = at(slope)[:, 0]
    of_logits = slope - jnp.exp(log_policy)[:, None] * jnp.sum(slope, axis=-1, keepdims=True)
    steep = jnp.max(jnp.abs(jnp.stack([of_logits, slope])), axis=-1)
    steep = jnp.where(jnp.isnan(steep), jnp.inf, steep)  # at what is no policy for this loss
    wins = jnp.array(config.wins, log_ref.dtype)
    turned = share[0] * wins + share[1] * wins.T
    return {
        "probability": labelled(jnp.exp(log_policy), policy=POLICIES, answer=(1, 2, 3)),
        "steep": labelled(steep, by=("logits", "values"), policy=POLICIES, loss=ALL),
        "lead": labelled(lead, least=tuple(RESTS)),
        "halved": labelled(value[-1] - value[0], loss=ALL),
        "fitted": labelled(rewards.bradley_terry(turned).rewards, answer=(1, 2, 3)),
    }


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Which loss is at rest where, and the policies."""
    return {
        "minimizers": Picture(
            _figure(results.isel(flipped=0)),
            "Policies of three answers, each with the losses that it is the minimizer of. The first"
            " answer wins most comparisons. KTO and APO-zero have dropped the third, which loses"
            " more often than it wins; likelihood of the chosen answers, as in CPO, ORPO and SFT,"
            " draws towards their own shares.",
        )
    }


def _figure(at: xr.Dataset) -> Figure:
    """Stacked bars of the policies, most mass on the first answer above."""
    import matplotlib.pyplot as plt

    names = [name for name in POLICIES if name not in FREE]
    policy = at.probability.sel(policy=names)
    policy = policy.isel(policy=np.argsort(policy.sel(answer=1).values))
    label = lambda name: textwrap.fill(
        ", ".join(loss for loss, own in RESTS.items() if own == name), 32
    )
    figure, axis = plt.subplots(figsize=(7.2, 5.4))
    left, place = np.zeros(len(names)), np.arange(len(names))
    for answer, color in zip(policy.answer.values, COLORS, strict=False):
        width = policy.sel(answer=answer).values
        axis.barh(place, width, left=left, color=color, label=f"answer {answer}", edgecolor="white")
        left = left + width
    axis.set_yticks(place, [label(name) for name in policy.policy.values], fontsize="small")
    axis.set(xlabel="probability", xlim=(0, 1))
    axis.grid(False, axis="y")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


# ------------------------------------------------------------------------------------------ claims


def _steep(results: xr.Dataset, names: tuple[str, ...], policy: str = "", by: str = "logits"):
    """The largest derivative of each loss at its own policy, or all at one."""
    steep = results.steep.isel(flipped=0).sel(by=by)
    return [steep.sel(loss=name, policy=policy or RESTS[name]) for name in names]


ROUNDING = 1e-12


@claim(
    source="Rafailov et al. 2023 (arXiv:2305.18290); Chowdhury et al. 2024 (arXiv:2403.00409);"
    " Melnyk et al. 2024 (arXiv:2406.05882); Bradley and Terry 1952; the toy solved by hand",
    reference=(0.85106, 0.12766, 0.02128),
    reruns=(FLIPPED,),
    wrong=({"policy": "tilt of 1"},),
)
def the_tilted_reference(results: xr.Dataset, policy: str = "tilt") -> Finding:
    """ref e^(r/beta), (.85106, .12766, .02128): derivatives there of DPO, of the robust loss with
    one label in ten wrong, and of AOT, whose sorted margins are paired as DPO's are where policy
    and reference order them alike; errors of the rewards fitted to the wins, log 4, log 2 and 0
    less their mean, and the derivative of their loss."""
    fitted = results.fitted.isel(flipped=0) - np.log(SCORES) + np.log(SCORES).mean()
    return together(
        at_most(ROUNDING, _steep(results, ("DPO", "robust", "AOT"), policy)),
        equals(0, fitted, tolerance=ROUNDING),
        at_most(ROUNDING, _steep(results, ("rewards",), by="values")),
    )


@claim(
    source="Xu et al. 2024 (arXiv:2401.08417); Meng et al. 2024 (arXiv:2405.14734); Gupta et al."
    " 2025 (arXiv:2501.03884); Hong et al. 2024 (arXiv:2403.07691); derived here",
    reruns=(FLIPPED,),
    wrong=({"policy": "tilt"},),
)
def without_a_reference(results: xr.Dataset, policy: str = "") -> Finding:
    """Derivatives of CPO without likelihood at C e^(r/beta), of SimPO without gamma at that to the
    power of the length, of AlphaPO at (1 - alpha (r/beta + C))^(-length/alpha), and of ORPO's odds
    ratio where p/(1 - p) = C e^r: a policy without any beta."""
    names = ("CPO without likelihood", "SimPO", "AlphaPO", "odds of ORPO")
    return at_most(ROUNDING, _steep(results, names, policy))


@claim(
    source="Azar et al. 2023 (arXiv:2310.12036); Tulu 3 (arXiv:2411.15124); Melnyk et al. 2024"
    " (arXiv:2406.05882); Huang et al. 2024 (arXiv:2407.13399); derived here",
    reruns=(FLIPPED,),
    wrong=({"policy": "tilt"},),
)
def other_margins_and_links(results: xr.Dataset, policy: str = "") -> Finding:
    """Derivatives of IPO at the least squares fit of log-ratios to (2 p - 1)/(2 beta); of DPO by
    token at ref e^(length (r/beta + C)); of AOT without pairs, labels smoothed by .1, where
    neighbors in rank are log 9 / beta apart; of chi2-PO at ref phi^-1((r - lambda)/beta)."""
    names = ("IPO", "DPO by token", "AOT unpaired", "chi2-PO")
    return at_most(ROUNDING, _steep(results, names, policy))


@claim(
    source="Ji et al. 2024 (arXiv:2402.00856); Lu et al. 2024 (arXiv:2406.08414); Meng et al. 2024"
    " (arXiv:2405.14734); Xu et al. 2024 (arXiv:2401.08417); Hong et al. 2024 (arXiv:2403.07691);"
    " Xie et al. 2024 (arXiv:2405.21046); an independent computation",
    reference=[
        SOLVED[name] for name in ("EXO", "DiscoPOP", "SimPO with gamma", "CPO", "ORPO", "XPO")
    ],
    reruns=(FLIPPED,),
    wrong=({"policy": "tilt"},),
)
def without_a_closed_form(results: xr.Dataset, policy: str = "") -> Finding:
    """Derivatives at (.84869, .13020, .02111) of EXO, (.89733, .09317, .00949) of DiscoPOP, one of
    its minima, (.97168, .02832, 7e-7) of SimPO with gamma = .5; and of CPO, ORPO and XPO, where a
    term of single answers has its weight: likelihood draws to (.41194, .41147, .17659) and (.59996,
    .32572, .07432), XPO's bonus away from the reference to (.88871, .09559, .01571)."""
    return at_most(ROUNDING, _steep(results, UNCLOSED, policy))


@claim(
    source="Ethayarajh et al. 2024 (arXiv:2402.01306); D'Oosterlinck et al. 2024 (arXiv:2408.06266)"
    "; an independent computation",
    reference=[SOLVED["APO-zero"], SOLVED["KTO"]],
    wrong=({"policy": "tilt"},),
)
def what_loses_more_often_is_dropped(results: xr.Dataset, policy: str = "") -> Finding:
    """Derivatives of APO-zero, with pairs and without, and of KTO with the KL that trainers take
    from the data, at (.73523, .26477, 0), and of KTO with a KL of .3 at (.73907, .26093, 0): the
    third answer, preferred in 13 of 45 comparisons, has no probability left. From answers of the
    data the KL comes out negative, is taken for 0, and KTO is APO-zero."""
    names = ("APO-zero", "APO-zero unpaired", "KTO with the KL of the data", "KTO")
    return at_most(ROUNDING, _steep(results, names, policy))


@claim(
    source="Implicit Reward as the Bridge, abstract. Reconstructed: the objective for other rows",
    reruns=(FLIPPED,),
    wrong=({"policy": "tilt"},),
)
def likelihood_fits_the_chosen_answers(results: xr.Dataset, policy: str = "") -> Finding:
    """Derivatives of SFT, and of its form for Jensen-Shannon, at the shares of the chosen answers,
    (22, 25, 13)/60: the second answer is chosen most often, for it was compared most often."""
    return at_most(ROUNDING, _steep(results, ("SFT", "f-SFT"), policy))


@claim(
    source="Chen et al. 2024 (arXiv:2402.05369); Jung et al. 2024 (arXiv:2404.04656); Wu et al."
    " 2024 (arXiv:2405.00675); derived here",
    reruns=(FLIPPED,),
    wrong=({"policy": "tilt"},),
)
def functions_that_are_no_policies(results: xr.Dataset, policy: str = "") -> Finding:
    """With w the share of comparisons an answer wins: derivatives by log-probabilities of NCA where
    (pi/ref)^beta = 2 w, of BCO where it is w/(1 - w), of SPPO where log pi/ref = (2 w - 1)/(2
    beta); and how far the sums of these are from 1, so that the best policy is another."""
    names = ("NCA", "BCO", "SPPO")
    total = results.probability.isel(flipped=0).sel(policy=list(names)).sum("answer")
    return together(
        at_most(ROUNDING, _steep(results, names, policy, by="values")),
        at_least(0.01, np.abs(total - 1)),
    )


@claim(
    source="Zhao et al. 2023 (arXiv:2305.10425); the toy solved by hand",
    reruns=(FLIPPED,),
    wrong=({"name": "halved"},),
)
def every_step_from_there_costs(results: xr.Dataset, name: str = "lead") -> Finding:
    """The least rise of each loss when the logits of its minimizer move by .02, or .001 of the
    reference is mixed in; SLiC's is the policy whose neighbors are 1/beta apart, with a kink."""
    return at_least(1e-9, results[name].isel(flipped=0))


@claim(
    source="D'Oosterlinck et al. 2024 (arXiv:2408.06266): when to use which",
    wrong=({"down": "APO-zero"}, {"up": "APO-down"}),
)
def who_leaves_room_for_other_answers(
    results: xr.Dataset, up: str = "APO-zero", down: str = "APO-down"
) -> Finding:
    """Half of the tilt's mass goes to answers that were never compared: the rise of APO-zero's
    loss, the fall of APO-down's, which suits a policy that writes better answers than the data
    have, and the change of DPO's, none."""
    halved = results.halved.isel(flipped=0)
    change = [halved.sel(loss=up), -halved.sel(loss=down)]
    return together(at_least(1e-3, change), equals(0, halved.sel(loss="DPO"), tolerance=ROUNDING))
