"""Self-play with losses that language models are trained with: where each of them comes to rest.

INPO (Zhang et al. 2024, arXiv:2407.00617), SPPO and RSPO (arXiv:2503.00030), SPIN with a reference
(arXiv:2404.04291), on rock-paper-scissors. The papers report language models; the numbers are an
independent computation of this toy. RSPO's penalties are a share of KL(pi‖ref) and a Cressie-Read
alpha divergence: exponent 0 is forward KL, 1 reverse KL, in the field's names.
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

from experiments.lab.axes import (
    at_least,
    between,
    count,
    each,
    fraction,
    labels,
    non_negative,
    positive,
)
from experiments.lab.claims import Finding, at_most, claim, equals
from experiments.lab.plots import COLORS, GREY, MARKERS, Picture, panels, pick, style
from experiments.lab.results import Labelled, labelled
from jdiv import generators, regularized
from jdiv.games import preferences, self_play

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {
    "penalty": labels,
    "share": fraction,
    "exponent": between(-math.inf, 1),  # above 1 a penalty may drop answers
    "weight": positive,
}
FIELDS = {
    "steps": at_least(1),
    "step_size": positive,
    "inpo_step_size": positive,
    "inpo_beta": positive,
    "ref_shares": each(fraction),
    "drawn": count,
    "penalty_factor": non_negative,
    "regularized_steps": count,
    "spin_beta": positive,
}
ANSWERS = ("rock", "paper", "scissors")
RUNS = ("sppo", "rspo")
KL = generators.kl()
PLAIN, OPPOSITE = "KL(π‖ref)", "KL(ref‖π)"
# Numbers of the independent computation, to five digits.
STEP = (0.54711, 0.23726, 0.21564)
BORDER = (0.99893, 0.0, 0.00107)
EQUILIBRIA = {0.1: (0.29579, 0.44419, 0.26002), 0.3: (0.36972, 0.49322, 0.13706)}
TILT = (0.45976, 0.47848, 0.06176)
TOY = "numbers of an independent computation of this toy"
NO_REFERENCE = {
    "reference": (1 / 3, 1 / 3, 1 / 3),
    "penalty_factor": 0.0,
    "sweep.penalty": (PLAIN, OPPOSITE),
    "sweep.share": (1.0, 0.0),
    "sweep.exponent": (1.0, 0.0),
}
"""A uniform reference, and RSPO without its penalties."""


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses to draw more steps than there are."""
    if config.drawn > config.regularized_steps:
        raise ValueError("config.drawn must be at most config.regularized_steps")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The last policies and their certificates, and the identities of INPO and SPIN."""
    game = preferences.rock_paper_scissors()
    ref_logits, start = (jnp.log(jnp.array(x)) for x in (config.reference, config.start))
    weight = point["weight"]
    penalties = (
        (weight * point["share"], KL),
        (weight * (1 - point["share"]), generators.alpha(point["exponent"])),
    )
    used = tuple((config.penalty_factor * weight, row) for weight, row in penalties)
    free = self_play.play(
        lambda x: self_play.sppo(x, game, step_size=config.step_size), start, config.steps
    )
    held = self_play.play(
        lambda x: self_play.rspo(x, game, ref_logits, step_size=config.step_size, penalties=used),
        start,
        config.regularized_steps,
    )
    row = generators.weighted_sum(penalties)
    gap = jax.vmap(
        lambda x: preferences.regularized_exploitability(x, game, ref_logits, 1.0, generator=row)
    )(jnp.stack([held[-1], start]))
    drawn = jnp.exp(jnp.stack([x[: config.drawn + 1] for x in (free, held)]))
    last = jnp.exp(jnp.stack([free[-1], held[-1]]))
    star = preferences.nash(game, ref_logits, weight, generator=KL)
    steps = range(config.drawn + 1)
    return {
        "trajectory": labelled(drawn, run=RUNS, step=steps, answer=ANSWERS),
        "last": labelled(last, run=RUNS, answer=ANSWERS),
        "gap": labelled(jnp.abs(gap), end=("last", "start")),
        "equilibrium": labelled(jnp.exp(star.log_policy), answer=ANSWERS),
        "inpo": inpo(config, game, start, ref_logits),
        "spin": spin(config, start, ref_logits),
        "spin_rest": spin_rest(config, start, ref_logits),
    }


def inpo(config: ConfigDict, game: Array, old_log_policy: Array, ref_logits: Array) -> Labelled:
    """The minimizer of the mean loss over pairs of the previous policy, and the update."""
    options = {"beta": config.inpo_beta, "step_size": config.inpo_step_size}
    pi = jnp.exp(old_log_policy)
    weight = game * pi[:, None] * pi[None]  # of the pair (a, b), a winning

    def minimizer(ref_logits):
        """The loss is quadratic in the logits: one step of Newton's method."""

        def loss(logits):
            policies = jax.nn.log_softmax(logits), ref_logits, old_log_policy
            pairs = [
                jnp.broadcast_to(log[at], weight.shape)
                for log in policies
                for at in ((slice(None), None), (None, slice(None)))
            ]
            return jnp.sum(weight * self_play.inpo_loss(*pairs, **options))

        zero = jnp.zeros(3)
        step = jnp.linalg.pinv(jax.hessian(loss)(zero)) @ jax.grad(loss)(zero)
        return jax.nn.softmax(-step)

    update = jnp.exp(self_play.inpo(old_log_policy, game, ref_logits, **options))
    fits = jnp.stack([minimizer(ref_logits), update, minimizer(old_log_policy)])
    return labelled(fits, fit=("loss", "update", "loss without the reference"), answer=ANSWERS)


def spin(config: ConfigDict, old_log_policy: Array, ref_logits: Array) -> Labelled:
    """Two penalties against one penalty towards a mixture."""
    rewards, (a, b) = jnp.array(config.rewards), config.spin_weights
    best = regularized.greedy_between(
        rewards, ref_logits, old_log_policy, b, a, generator=KL
    ).log_policy

    def towards(share):
        mixture = self_play.geometric_mixture(old_log_policy, ref_logits, share)
        return regularized.greedy(rewards, mixture, a + b, generator=KL).log_policy

    policies = jnp.exp(jnp.stack([best, towards(b / (a + b)), towards(a / (a + b))]))
    mixtures = ("penalties", "mixture", "mixture exchanged")
    return labelled(policies, mixture=mixtures, answer=ANSWERS)


def spin_rest(config: ConfigDict, start: Array, ref_logits: Array) -> Labelled:
    """Where SPIN comes to rest, for each share of the reference."""
    data = jnp.log(jnp.array(config.data))

    def rest(share):
        def step(x):
            return self_play.spin(x, data, ref_logits, beta=config.spin_beta, share=share)

        return jnp.exp(self_play.play(step, start, 200)[-1])

    policies = jax.vmap(rest)(jnp.array(config.ref_shares))
    return labelled(policies, ref_share=config.ref_shares, answer=ANSWERS)


# --------------------------------------------------------------------------------------- figures


def _triangle(axis: Axes) -> None:
    corners = np.array([[0, 0], [1, 0], [0.5, 3**0.5 / 2], [0, 0]])
    axis.plot(*corners.T, color="black", linewidth=1)
    for (x, y), name, shift in zip(corners, ANSWERS, (-0.05, -0.05, 0.03), strict=False):
        axis.text(x, y + shift, name, ha="center", va="bottom" if shift > 0 else "top")
    axis.set(xlim=(-0.12, 1.12), ylim=(-0.12, 1.0), aspect="equal")
    axis.axis("off")


def _part(axis: Axes, title: str, left: float, low: float, width: float) -> None:
    """A part of the triangle, in a frame."""
    axis.set(xlim=(left, left + width), ylim=(low, low + 0.8 * width), aspect="equal")
    axis.set(xticks=[], yticks=[], title=title)
    axis.spines[["top", "right"]].set_visible(True)


def _flat(policy: xr.DataArray | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Policies in the triangle; the last dimension of an array, `answer` of labelled ones."""
    if isinstance(policy, xr.DataArray):
        policy = policy.transpose(..., "answer").values
    return policy[..., 1] + policy[..., 2] / 2, policy[..., 2] * 3**0.5 / 2


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Trajectories in the simplex."""
    figure, axes = panels(3, width=3.8, height=4.0)
    weights = results.weight.values
    by_run = {run: results.sel(run=run) for run in RUNS}
    plain = pick(results.penalty, PLAIN)
    spiral = by_run["sppo"].trajectory.sel(penalty=plain, weight=weights[0])
    axes[0].plot(*_flat(spiral), color=GREY, lw=1.2, label="SPPO, no penalty")
    for number, weight in enumerate(weights):
        here = by_run["rspo"].sel(penalty=plain, weight=weight)
        name = "KL" if plain == PLAIN else plain
        _path(axes[0], here, number, f"RSPO, {name}, λ = {weight:g}")
    for number, penalty in enumerate(results.penalty.values):
        here = by_run["rspo"].sel(penalty=penalty, weight=weights[0])
        _path(axes[1], here, number, penalty)
    _rest(config, axes[2], results.spin_rest.sel(penalty=plain, weight=weights[0]))
    for axis in axes:
        axis.plot(*_flat(np.array(config.reference)), "k+", markersize=10, label="reference")
        axis.legend(
            fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2,
            labelspacing=0.9,
        )  # fmt: skip
    _triangle(axes[0])
    _part(axes[1], f"close-up, λ = {weights[0]:g}", 0.32, 0.05, 0.37)
    _part(axes[2], "close-up, SPIN", 0.31, 0.03, 0.38)
    return {
        "self_play": Picture(
            figure,
            "Left: from the same start SPPO spirals to the border, and a penalty λ KL(π‖ref) leads"
            " to the regularized equilibrium. Middle: RSPO with other penalties at"
            f" λ = {weights[0]:g} rests elsewhere. Right: SPIN ends at the data, and with a share"
            " of the reference in what it is compared with at a geometric mixture of both.",
        )
    }


def _path(axis: Axes, here: xr.Dataset, number: int, label: str) -> None:
    """A trajectory, and a point where it ends."""
    axis.plot(*_flat(here.trajectory), lw=1.5, label=label, **style(number))
    axis.plot(*_flat(here["last"]), "o", color=COLORS[number])


def _rest(config: ConfigDict, axis: Axes, rest: xr.DataArray) -> None:
    for share, marker in zip(rest.ref_share.values, MARKERS, strict=False):
        axis.plot(
            *_flat(rest.sel(ref_share=share)), marker, color=COLORS[0], fillstyle="none",
            markersize=9, markeredgewidth=1.5, label=f"SPIN, share of reference {share:g}",
        )  # fmt: skip
    between = _mixture(config, np.linspace(0, 1, 101))
    axis.plot(*_flat(between), "-", color=GREY, zorder=0, label="geometric mixtures")
    axis.plot(*_flat(np.array(config.data)), "k*", markersize=7, label="data")


def _mixture(config: ConfigDict, share: np.ndarray) -> np.ndarray:
    """`data^(1 - share) ref^share`, normalized, `[shares, answers]`."""
    share = share[:, None]
    mixed = np.array(config.data) ** (1 - share) * np.array(config.reference) ** share
    return mixed / mixed.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------- claims


@claim(
    source=f"Zhang et al. 2024 (arXiv:2407.00617), loss and update; {TOY}",
    reference=STEP,
    reruns=(NO_REFERENCE,),
    wrong=({"fit": "loss without the reference"},),
    needs={"penalty": ..., "weight": ...},
)
def inpo_fits_mirror_descent(results: xr.Dataset, fit: str = "loss") -> Finding:
    """The minimizer of the mean squared loss over pairs, and the mirror-descent step: (.54711,
    .23726, .21564), to five digits."""
    found = results.inpo.isel(weight=0, penalty=0).sel(fit=[fit, "update"])
    return equals([STEP] * 2, found.transpose("fit", "answer"), decimals=5)


@claim(
    source=f"Wu et al. 2024 (arXiv:2405.00675), the update; {TOY}",
    reference=BORDER,
    wrong=({"run": "rspo"},),
)
def multiplicative_self_play_spirals_to_the_border(
    results: xr.Dataset, run: str = "sppo"
) -> Finding:
    """SPPO's policy after 5000 steps: (.99893, 0, .00107), to five digits."""
    last = results["last"].isel(weight=0).sel(penalty=PLAIN, run=run)
    return equals(BORDER, last, decimals=5)


@claim(
    source=f"RSPO (arXiv:2503.00030), whose exact loss is unknown; {TOY}",
    reference=list(EQUILIBRIA.values()),
    reruns=(NO_REFERENCE,),
    wrong=({"run": "sppo"}, {"penalty": OPPOSITE}),
)
def rspo_rests_at_the_regularized_equilibrium(
    results: xr.Dataset, run: str = "rspo", penalty: str = PLAIN
) -> Finding:
    """With lambda KL(pi‖ref), lambda = .1 and .3, the last policy and, by another solver, the
    equilibrium: (.29579, .44419, .26002) and (.36972, .49322, .13706)."""
    here = results.sel(weight=list(EQUILIBRIA))
    last = here["last"].sel(run=run, penalty=penalty).transpose("weight", "answer")
    nash = here.equilibrium.sel(penalty=PLAIN).transpose("weight", "answer")
    return equals([list(EQUILIBRIA.values())] * 2, np.stack([last, nash]), decimals=5)


@claim(
    source="Definition; the abstract of arXiv:2503.00030 has forward and reverse KL together",
    reruns=(NO_REFERENCE,),
    wrong=({"end": "start"},),
)
def other_penalties_are_certified(results: xr.Dataset, end: str = "last") -> Finding:
    """Regularized exploitability of RSPO's last policy for every weight and penalty: KL(pi‖ref),
    KL(ref‖pi), half of each, alpha 1/2, alpha -1."""
    return at_most(1e-13, results.gap.sel(end=end))


@claim(
    source=f"arXiv:2404.04291, abstract; {TOY}",
    reference=TILT,
    reruns=(NO_REFERENCE,),
    wrong=({"mixture": "mixture exchanged"},),
    needs={"penalty": ..., "weight": ...},
)
def spin_a_mixture_is_two_penalties(results: xr.Dataset, mixture: str = "mixture") -> Finding:
    """argmax E[r] - a KL(pi‖pi_t) - b KL(pi‖pi_0), and the tilt of their geometric mixture,
    (.45976, .47848, .06176), to five digits."""
    found = results.spin.isel(weight=0, penalty=0).sel(mixture=["penalties", mixture])
    return equals([TILT] * 2, found.transpose("mixture", "answer"), decimals=5)


@claim(
    source="Derived here from the population minimizer of SPIN's loss",
    wrong=({"beta": 1.0},),
    needs={"penalty": ..., "weight": ...},
)
def spin_rests_between_data_and_reference(
    results: xr.Dataset, config: ConfigDict, beta: float | None = None
) -> Finding:
    """The last policy minus ref^(s beta) data to the power 1/(1 + s beta), normalized, for each
    share s of the reference. With beta left out it is elsewhere."""
    rest = results.spin_rest.isel(weight=0, penalty=0).transpose("ref_share", "answer")
    odds = rest.ref_share.values * (config.spin_beta if beta is None else beta)
    return at_most(1e-12, np.abs(rest - _mixture(config, odds / (1 + odds))))
