"""Self-play with losses that language models are trained with: where each of them comes to rest.

INPO (Zhang et al. 2024, arXiv:2407.00617), SPPO and RSPO (arXiv:2503.00030), SPIN with a reference
(arXiv:2404.04291), on rock-paper-scissors. The papers report language models; the numbers are an
independent computation of this toy. RSPO's penalties are a share of KL(pi‖ref) and a Cressie-Read
alpha divergence: exponent 0 is forward KL, 1 reverse KL, in the field's names.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from matplotlib.axes import Axes
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, GREY, Picture
from jdiv import generators, regularized
from jdiv.games import preferences, self_play

TRACED = ("variant", "share", "exponent", "weight")
FITS = ("loss", "update", "loss without the reference")
MIXTURES = ("penalties", "mixture", "mixture exchanged")
RUNS = ("sppo", "rspo")
DIMS = {
    "inpo": ("fit", "answer"),
    "spin": ("mixture", "answer"),
    "spin_rest": ("base_share", "answer"),
    "trajectory": ("run", "step", "answer"),
    "last": ("run", "answer"),
    "equilibrium": ("answer",),
    "gap": ("end",),
}
KL = generators.kl()
TOY = "an independent computation of this toy"


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Names of what is compared, and the steps that are drawn."""
    return {
        "fit": FITS,
        "mixture": MIXTURES,
        "run": RUNS,
        "end": ("last", "start"),
        "base_share": config.base_shares,
        "step": np.arange(config.drawn + 1),
        "answer": np.arange(3),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses penalties that are none, or that drop answers."""
    if not point["weight"] > 0 or not 0 <= point["share"] <= 1:
        raise ValueError(
            "config.sweep.weight must be positive and config.sweep.share in [0, 1], got"
            f" {point['weight']} and {point['share']}"
        )
    if point["exponent"] > 1:
        raise ValueError(f"config.sweep.exponent must be at most 1, got {point['exponent']}")
    if config.drawn > config.regularised_steps:
        raise ValueError("config.drawn must be at most config.regularised_steps")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """The last policies and their certificates, and the identities of INPO and SPIN."""
    game = preferences.rock_paper_scissors()
    log_ref, log_start = (jnp.log(jnp.array(x)) for x in (config.reference, config.start))
    # Names of RSPO: its loss has eta, and 1/eta is the weight of KL(pi‖pi_t).
    penalties = (
        (point["weight"] * point["share"], KL),
        (point["weight"] * (1 - point["share"]), generators.alpha(point["exponent"])),
    )
    free = self_play.play(
        lambda x: self_play.sppo(x, game, step_size=config.eta), log_start, config.steps
    )
    held = self_play.play(
        lambda x: self_play.rspo(x, game, log_ref, step_size=config.eta, penalties=penalties),
        log_start,
        config.regularised_steps,
    )
    row = generators.weighted_sum(penalties)
    ends = jnp.stack([held[-1], log_start])
    gap = jax.vmap(
        lambda x: preferences.regularized_exploitability(x, game, log_ref, 1.0, generator=row)
    )(ends)
    trajectories = jnp.stack([free[: config.drawn + 1], held[: config.drawn + 1]])
    star = preferences.nash(game, log_ref, point["weight"], generator=KL)
    return {
        "trajectory": jnp.exp(trajectories),
        "last": jnp.exp(jnp.stack([free[-1], held[-1]])),
        "gap": jnp.abs(gap),
        "equilibrium": jnp.exp(star.log_policy),
        "inpo": inpo(config, game, log_start, log_ref),
        "spin": spin(config, log_start, log_ref),
        "spin_rest": spin_rest(config, log_start, log_ref),
    }


def inpo(config: ConfigDict, game: Array, log_previous: Array, log_ref: Array) -> Array:
    """The minimiser of the mean loss over pairs of the previous policy, and the update."""
    options = {"beta": config.inpo_tau, "step_size": 1 / config.inpo_eta}
    pi = jnp.exp(log_previous)
    weight = game * pi[:, None] * pi[None]  # of the pair (a, b), a winning

    def minimiser(log_ref):
        """The loss is quadratic in the logits: one step of Newton's method."""

        def loss(logits):
            policies = jax.nn.log_softmax(logits), log_ref, log_previous
            pairs = [
                jnp.broadcast_to(log[at], weight.shape)
                for log in policies
                for at in ((slice(None), None), (None, slice(None)))
            ]
            return jnp.sum(weight * self_play.inpo_loss(*pairs, **options))

        zero = jnp.zeros(3)
        step = jnp.linalg.pinv(jax.hessian(loss)(zero)) @ jax.grad(loss)(zero)
        return jax.nn.softmax(-step)

    update = jnp.exp(self_play.inpo(log_previous, game, log_ref, **options))
    return jnp.stack([minimiser(log_ref), update, minimiser(log_previous)])


def spin(config: ConfigDict, log_previous: Array, log_base: Array) -> Array:
    """Two penalties against one penalty towards a mixture."""
    rewards, (a, b) = jnp.array(config.rewards), config.spin_weights
    best = regularized.greedy_between(
        rewards, log_base, log_previous, b, a, generator=KL
    ).log_policy

    def towards(share):
        mixture = self_play.geometric_mixture(log_previous, log_base, share)
        return regularized.greedy(rewards, mixture, a + b, generator=KL).log_policy

    return jnp.exp(jnp.stack([best, towards(b / (a + b)), towards(a / (a + b))]))


def spin_rest(config: ConfigDict, log_start: Array, log_base: Array) -> Array:
    """Where SPIN comes to rest, for each share of the base."""
    log_data = jnp.log(jnp.array(config.data))

    def rest(share):
        def step(x):
            return self_play.spin(x, log_data, log_base, beta=config.spin_beta, share=share)

        return jnp.exp(self_play.play(step, log_start, 200)[-1])

    return jax.vmap(rest)(jnp.array(config.base_shares))


def _triangle(axis: Axes) -> None:
    corners = np.array([[0, 0], [1, 0], [0.5, 3**0.5 / 2], [0, 0]])
    axis.plot(*corners.T, color="black", linewidth=1)
    names = ("rock", "paper", "scissors")
    for (x, y), name, shift in zip(corners, names, (-0.05, -0.05, 0.03), strict=False):
        axis.text(x, y + shift, name, ha="center", va="bottom" if shift > 0 else "top")
    axis.set(xlim=(-0.12, 1.12), ylim=(-0.12, 1.0), aspect="equal")
    axis.axis("off")


def _part(axis: Axes, title: str, left: float, low: float, width: float) -> None:
    """A part of the triangle, in a frame."""
    axis.set(xlim=(left, left + width), ylim=(low, low + 0.8 * width), aspect="equal")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize="medium")
    axis.spines[["top", "right"]].set_visible(True)


def _flat(policy: xr.DataArray | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Policies `[..., 3]` in the triangle."""
    policy = np.asarray(policy)
    return policy[..., 1] + policy[..., 2] / 2, policy[..., 2] * 3**0.5 / 2


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Trajectories in the simplex."""
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 4.0))
    path = results.trajectory.transpose(..., "step", "answer")
    last = results["last"].transpose(..., "answer")
    weights = results.weight.values
    axes[0].plot(*_flat(path.sel(run="sppo", variant=0, weight=weights[0])), color=GREY, lw=1.2,
                 label="SPPO, no penalty")  # fmt: skip
    for weight, style, colour in zip(weights, ("-", "--"), COLORS, strict=False):
        here = path.sel(run="rspo", variant=0, weight=weight)
        axes[0].plot(*_flat(here), style, color=colour, lw=1.5, label=f"RSPO, KL, λ = {weight:g}")
        axes[0].plot(*_flat(here[-1]), "o", color=colour)
    for variant, name, colour in zip(results.variant.values, config.names, COLORS, strict=False):
        here = last.sel(run="rspo", variant=variant)
        style = ("-", "--", ":", "-.", "-")[int(variant)]
        at = path.sel(run="rspo", variant=variant, weight=weights[0])
        axes[1].plot(*_flat(at), style, color=colour, lw=1.5, label=name)
        axes[1].plot(*_flat(here.sel(weight=weights[0])), "o", color=colour)
    rest = results.spin_rest.sel(variant=0, weight=weights[0]).transpose(..., "answer")
    for share, marker in zip(results.base_share.values, ("o", "s", "^", "D"), strict=False):
        axes[2].plot(
            *_flat(rest.sel(base_share=share)), marker, color=COLORS[0], fillstyle="none",
            markersize=9, markeredgewidth=1.5, label=f"SPIN, share of base {share:g}",
        )  # fmt: skip
    mixtures = np.linspace(0, 1, 101)[:, None]
    between = np.array(config.data) ** (1 - mixtures) * np.array(config.reference) ** mixtures
    between /= between.sum(axis=1, keepdims=True)
    axes[2].plot(*_flat(between), "-", color=GREY, zorder=0, label="geometric mixtures")
    axes[2].plot(*_flat(np.array(config.data)), "k*", markersize=7, label="data")
    for axis in axes:
        axis.plot(*_flat(np.array(config.reference)), "k+", markersize=10, label="reference, base")
        axis.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2,
                    labelspacing=0.9)  # fmt: skip
    _triangle(axes[0])
    _part(axes[1], f"close-up, λ = {weights[0]:g}", 0.32, 0.05, 0.37)
    _part(axes[2], "close-up, SPIN", 0.31, 0.03, 0.38)
    return {
        "self_play": Picture(
            figure,
            "Left: from the same start SPPO spirals to the border, and a penalty λ KL(π‖ref) leads"
            " to the regularised equilibrium. Middle: RSPO with other penalties at"
            f" λ = {weights[0]:g} rests elsewhere. Right: SPIN ends at the data, and with a share"
            " of the base in its reference at a geometric mixture of both.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """INPO, SPPO, RSPO, SPIN."""
    half = 5.01e-6
    first = results.isel(weight=0).sel(variant=0)
    update = np.array([0.54711, 0.23726, 0.21564])
    fit = first.inpo.sel(fit=[config.claims.fit, "update"]).transpose("fit", "answer").values
    spiral = np.array([0.99893, 0.0, 0.00107])
    equilibria = {0.1: (0.29579, 0.44419, 0.26002), 0.3: (0.36972, 0.49322, 0.13706)}
    last = results["last"].sel(run=config.claims.run, variant=config.claims.variant)
    last = last.sel(weight=list(equilibria)).transpose("weight", "answer").values
    of_nash = results.equilibrium.sel(variant=0, weight=list(equilibria)).transpose(
        "weight", "answer"
    )
    expected = np.array(list(equilibria.values()))
    gap = results.gap.sel(end="start" if config.claims.at_start else "last")
    spin = first.spin.sel(mixture=["penalties", config.claims.mixture])
    spin = spin.transpose("mixture", "answer").values
    identity = np.array([0.45976, 0.47848, 0.06176])
    rest = first.spin_rest.transpose("base_share", "answer").values
    share = np.array(config.base_shares)[:, None] * config.spin_beta
    if config.claims.at_start:
        share = np.zeros_like(share)
    mixed = np.array(config.data) * np.array(config.reference) ** share
    mixed = mixed ** (1 / (1 + share))
    mixed /= mixed.sum(axis=1, keepdims=True)
    return [
        Claim(
            "inpo-fits-mirror-descent",
            f"Zhang et al. 2024 (arXiv:2407.00617); numbers of {TOY}",
            "The minimiser of the mean squared loss over pairs, and the mirror-descent step:"
            " (.54711, .23726, .21564), to five digits.",
            fit,
            low=[update - half] * 2,
            high=[update + half] * 2,
            controls=({"claims.fit": "loss without the reference"},),
        ),
        Claim(
            "multiplicative-self-play-spirals-to-the-border",
            f"Numbers of {TOY}",
            "SPPO's policy after 5000 steps: (.99893, 0, .00107), to five digits.",
            first["last"].sel(run=config.claims.free).values,
            low=spiral - half,
            high=spiral + half,
            controls=({"claims.free": "rspo"},),
        ),
        Claim(
            "rspo-rests-at-the-regularised-equilibrium",
            f"RSPO (arXiv:2503.00030), whose exact loss is unknown; numbers of {TOY}",
            "With lambda KL(pi‖ref), lambda = .1 and .3, the last policy and, by another solver,"
            " the equilibrium: (.29579, .44419, .26002) and (.36972, .49322, .13706).",
            np.stack([last, of_nash.values]),
            low=[expected - half] * 2,
            high=[expected + half] * 2,
            controls=({"claims.run": "sppo"}, {"claims.variant": 1}),
        ),
        Claim(
            "other-penalties-are-certified",
            "Definition; the abstract of arXiv:2503.00030 has forward and reverse KL together",
            "Regularised exploitability of RSPO's last policy for every penalty and weight:"
            f" {', '.join(config.names)}.",
            gap.values,
            high=1e-13,
            controls=({"claims.at_start": True},),
        ),
        Claim(
            "spin-a-mixture-is-two-penalties",
            f"arXiv:2404.04291, abstract; numbers of {TOY}",
            "argmax E[r] - a KL(pi‖pi_t) - b KL(pi‖pi_0), and the tilt of their geometric mixture,"
            " (.45976, .47848, .06176), to five digits.",
            spin,
            low=[identity - half] * 2,
            high=[identity + half] * 2,
            controls=({"claims.mixture": "mixture exchanged"},),
        ),
        Claim(
            "spin-rests-between-data-and-base",
            "Derived here from the population minimiser of SPIN's loss",
            "The last policy minus base^(s beta) data to the power 1/(1 + s beta), normalised, for"
            " each share s of the base.",
            np.abs(rest - mixed),
            high=1e-12,
            controls=({"claims.at_start": True},),
        ),
    ]
