"""The estimators k1, k2 and k3 of KL, as numbers and as losses (Schulman 2020).

As numbers: bias and standard deviation between two unit Gaussians, by quadrature and by samples,
against closed forms. As losses: the expected gradient on a categorical, by enumeration, with the
samples held fixed as automatic differentiation does; from the policy's own samples and from those
of an older one, with and without the importance ratio.
"""

import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from jdiv import checks, divergences, estimators, generators, numerics
from jdiv.divergences import gaussian

TRACED = ("shift", "seed")
_MOMENTS = "mean", "deviation", "exact_mean", "exact_deviation", "exact_kurtosis"
DIMS = dict.fromkeys(_MOMENTS, ("side", "estimator"))
DIMS |= dict.fromkeys(("size", "error", "error_of_other"), ("sampler", "loss"))
DIMS |= {"example": ("loss", "action")}
SAMPLERS = "policy", "old", "reference"
ESTIMATORS = {"k1": estimators.kl_k1, "k2": estimators.kl_k2, "k3": estimators.kl_k3}
NODES = 160

SCHULMAN = {
    0.1: ((0, 0.002, 0), (20, 1.42, 1.42)),
    1.0: ((0, 0.25, 0), (2, 1.73, 1.7)),
}
"""By shift: bias, and standard deviation, of k1, k2, k3 in units of the divergence."""
EXAMPLE = {"policy": (0.5, 0.3, 0.2), "old": (0.2, 0.5, 0.3), "reference": (0.3, 0.3, 0.4)}
EXAMPLE_GRADIENTS = (
    (0.197021, -0.035035, -0.161986),
    (0.205616, -0.069019, -0.136597),
    (0.190, 0.066, -0.256),
)
"""Of k3 and k2 with the ratio and k3 without, by an independent computation in NumPy."""
EXAMPLE_DIGITS = (1e-6, 1e-6, 1e-3)
"""The last digit of each."""


# -------------------------------------------------------------------------------------- numbers


def closed_forms(shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[3, ...]` of k1, k2, k3 over the KL between unit Gaussians.

    `1, 1 + mu^2/4, 1` and `2/mu, sqrt(2 + mu^2), 2 sqrt(e^(mu^2) - 1 - mu^2)/mu^2`.
    """
    square = shift**2
    mean = np.stack([np.ones_like(shift), 1 + square / 4, np.ones_like(shift)])
    third = 2 * np.sqrt(np.expm1(square) - square) / square
    return mean, np.stack([2 / shift, np.sqrt(2 + square), third])


def values(x: Array, shift: Array) -> Array:
    """k1, k2, k3 `[3, n]` at x for p = N(0, 1) and q = N(shift, 1), over their KL."""
    log_p, log_q = -jnp.square(x) / 2, -jnp.square(x - shift) / 2
    one = jnp.ones(1, x.dtype)
    truth = gaussian.kl(gaussian.Diagonal(0 * one, one), gaussian.Diagonal(shift * one, one))
    return jnp.stack([k(log_p, log_q) for k in ESTIMATORS.values()]) / truth


def quadrature(centre: Array, shift: Array) -> dict[str, Array]:
    """Moments `[3]` for x ~ N(centre, 1): the mean, the deviation, the fourth over its square."""
    nodes, weight = (jnp.asarray(x) for x in np.polynomial.hermite_e.hermegauss(NODES))
    weight = weight / weight.sum()
    value = values(nodes + centre, shift)
    mean = value @ weight
    square = jnp.square(value - mean[:, None])
    variance = square @ weight
    return {
        "exact_mean": mean,
        "exact_deviation": jnp.sqrt(variance),
        "exact_kurtosis": jnp.square(square) @ weight / jnp.square(variance),
    }


# --------------------------------------------------------------------------------------- losses


def _ratio(log_p: Array, log_old: Array) -> Array:
    return jnp.exp(log_p - log_old)


LOSSES = {
    "k1": lambda log_p, log_q, log_old: estimators.kl_k1(log_p, log_q),
    "k2": lambda log_p, log_q, log_old: estimators.kl_k2(log_p, log_q),
    "k3": lambda log_p, log_q, log_old: estimators.kl_k3(log_p, log_q),
    "ratio k1": lambda log_p, log_q, log_old: estimators.plain_from_p(
        generators.kl(), log_p, log_q, log_weights=log_p - log_old
    ),
    "ratio k2": lambda log_p, log_q, log_old: (
        _ratio(log_p, log_old) * estimators.kl_k2(log_p, log_q)
    ),
    "ratio k3": lambda log_p, log_q, log_old: estimators.centered_from_p(
        generators.kl(), log_p, log_q, log_weights=log_p - log_old
    ),
    "k1 in reward": lambda log_p, log_q, log_old: (
        _ratio(log_p, log_old) * jax.lax.stop_gradient(estimators.kl_k1(log_p, log_q))
    ),
}
"""By the log-probabilities of policy, reference and sampler; the ratio is differentiated too."""


def gradients(policy: Array, reference: Array, old: Array) -> Array:
    """Expected gradients `[loss, action]` by the policy's logits, for samples of `old`."""
    log_q, log_old = numerics.log_softmax(reference), numerics.log_softmax(old)

    def means(policy):
        log_p = numerics.log_softmax(policy)
        by_action = jnp.stack([loss(log_p, log_q, log_old) for loss in LOSSES.values()])
        return by_action @ jnp.exp(log_old)

    return jax.jacrev(means)(policy)


# -------------------------------------------------------------------------------- the experiment


def coordinates(config: ConfigDict) -> dict[str, list]:
    """Names of the estimators and losses."""
    return {
        "estimator": list(ESTIMATORS),
        "side": ["policy", "reference"],
        "sampler": list(SAMPLERS),
        "loss": list(LOSSES),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown names, sizes out of range, and sweeps without the published shifts."""
    sides = coordinates(config)["side"]
    checks.known("config.claims.sampled_from", config.claims.sampled_from, sides)
    for field in ("exact", "numbers"):
        for name in config.claims[field]:
            checks.known(f"config.claims.{field}", name, LOSSES)
    if config.actions < 2:
        raise ValueError(f"config.actions must be at least 2, got {config.actions}")
    if config.samples < 2:
        raise ValueError(f"config.samples must be at least 2, got {config.samples}")
    # By quadrature with this many nodes the closed forms are met up to there.
    if not 0.01 <= point["shift"] <= 3:
        raise ValueError(f"config.sweep.shift must be from 0.01 to 3, got {point['shift']}")
    if not set(SCHULMAN) <= set(config.sweep.shift):
        raise ValueError(
            f"config.sweep.shift must have {', '.join(map(str, SCHULMAN))},"
            f" got {', '.join(map(str, config.sweep.shift))}"
        )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Moments between Gaussians `shift` apart; gradients on categoricals as far apart in logits.

    The example does not depend on the point.
    """
    shift = point["shift"]
    key_x, *keys = jax.random.split(key, 4)
    centres = jnp.stack([0 * shift, shift])  # of the policy, of the reference
    x = jax.random.normal(key_x, (config.samples,), float)[None, :] + centres[:, None]
    value = jax.vmap(values, (0, None))(x, shift)
    policy, towards, away = (jax.random.normal(k, (config.actions,), float) for k in keys)
    reference, old = policy + shift * towards, policy + away
    samplers = jnp.stack([policy, old, reference])
    found = jax.vmap(gradients, (None, None, 0))(policy, reference, samplers)
    kl, right = jax.value_and_grad(divergences.kl)(policy, reference)
    other = jax.grad(divergences.reverse_kl)(policy, reference)
    example = (jnp.log(jnp.asarray(EXAMPLE[name])) for name in ("policy", "reference", "old"))
    return jax.vmap(quadrature, (0, None))(centres, shift) | {
        "mean": value.mean(axis=2),
        "deviation": value.std(axis=2, ddof=1),
        "kl": kl,
        "size": _norm(found) / _norm(right),
        "error": _norm(found - right[None, None]) / _norm(right),
        "error_of_other": _norm(found - other[None, None]) / _norm(other),
        "example": gradients(*example),
    }


def _norm(gradient: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(gradient), axis=-1))


# ------------------------------------------------------------------------------------- figures

_MARKS = {"k1": "o", "k2": "s", "k3": "^"}


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Moments by shift, and gradients by divergence."""
    return {"moments": _moments(config, results), "gradients": _gradients(results)}


def _moments(config: ConfigDict, results: xr.Dataset) -> Picture:
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.3))
    fine = np.geomspace(0.09, 3.2, 200)
    mean, deviation = closed_forms(fine)
    here = results.sel(side="policy")
    sampled = here["mean"].mean("seed") - 1, np.sqrt((here.deviation**2).mean("seed"))
    for number, (name, mark) in enumerate(_MARKS.items()):
        colour, style = COLORS[number], ("-", "--", "-.")[number]
        for axis, curve, points in zip(
            axes, (mean[number] - 1, deviation[number]), sampled, strict=True
        ):
            axis.plot(fine, curve, style, color=colour)
            axis.plot(
                results["shift"], points.sel(estimator=name), mark, color=colour, markersize=4.5,
                label=f"{name} from samples",
            )  # fmt: skip
    for shift, published in SCHULMAN.items():
        for axis, row in zip(axes, published, strict=True):
            axis.plot(
                [shift] * 3, row, "o", color="#707070", markersize=10, markerfacecolor="none",
                label="Schulman's table" if shift == 1 else None,
            )  # fmt: skip
    for axis in axes:
        axis.set(xscale="log", xlabel="distance of the means")
        axis.set_xticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
        axis.minorticks_off()
    axes[0].set(ylabel="bias / KL")
    axes[1].set(ylabel="standard deviation of a sample / KL", yscale="log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return Picture(
        figure,
        f"Unit Gaussians; lines are closed forms, marks {config.samples} samples, averaged over"
        " seeds. Close together k1 is noisy, and k2 is as good as k3 and hardly biased; far apart"
        " k2 is biased and the spread of k3 explodes, until samples hardly tell how large it is.",
    )


def _gradients(results: xr.Dataset) -> Picture:
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.3))
    shown = {
        "policy": {"k1": "o-", "k3": "^-.", "k2": "s--"},
        "old": {"k3": "^-.", "k2": "s--", "ratio k2": "D:", "ratio k3": "v-"},
    }
    colours = dict(zip(("k1", "k2", "k3", "ratio k2", "ratio k3"), COLORS, strict=False))
    kl = results.kl.median("seed")
    for axis, (sampler, losses) in zip(axes, shown.items(), strict=True):
        for loss, mark in losses.items():
            error = results.error.sel(sampler=sampler, loss=loss)
            quarters = error.quantile([0.25, 0.5, 0.75], "seed").transpose("quantile", "shift")
            low, middle, high = quarters.values
            axis.fill_between(kl, low, high, color=colours[loss], alpha=0.15, linewidth=0)
            axis.plot(kl, middle, mark, color=colours[loss], markersize=5, label=loss)
        axis.set(xscale="log", xlabel="KL(π‖ref), nats")
        axis.set_ylim(-0.05, None)
        axis.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
    axes[0].set(ylabel="relative error of the gradient", title="samples of the policy")
    axes[1].set_title("samples of an older policy")
    return Picture(
        figure,
        "Expected gradients against that of KL(π‖ref), on categoricals: median and quartiles over"
        " seeds. On-policy k1 has none and k2 is exact; k3 is close where the divergence is small,"
        " which hides that it follows the other direction. From samples of another policy only k3"
        " (and k1, not shown) times the importance ratio is exact.",
    )


# -------------------------------------------------------------------------------------- claims


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Closed forms, Schulman's table, identities of gradients."""
    chosen = config.claims
    sampled = results.sel(side=chosen.sampled_from)
    moments = sampled.isel(seed=0).transpose("estimator", ...)
    mean, deviation = closed_forms(moments["shift"].values)
    table = moments.sel(shift=list(SCHULMAN))
    bias, spread = np.array(list(SCHULMAN.values()), dtype=float).transpose(1, 2, 0)
    # Half of the last digit; .0025 stands as .002 there.
    bias_digit = np.array([[0.0006, 0.005]] * 3)
    spread_digit = np.array([[0.5, 0.5], [0.005, 0.005], [0.005, 0.05]])
    on, off = (results.sel(sampler=name) for name in (chosen.sampled_from, "old"))
    other_samples = {"claims.sampled_from": "reference"}
    example = results.example.isel(seed=0, shift=0).sel(loss=list(chosen.numbers)).values
    published, digit = np.array(EXAMPLE_GRADIENTS), np.array(EXAMPLE_DIGITS)[:, None]
    return [
        Claim(
            "closed-forms",
            "closed forms that follow from Gaussian moments",
            "Mean and standard deviation over KL of k1, k2, k3 between unit Gaussians, by"
            " quadrature, are `1, 1 + mu^2/4, 1` and `2/mu, sqrt(2 + mu^2), 2 sqrt(e^(mu^2) - 1 -"
            " mu^2)/mu^2` for every shift mu: the largest relative error of each. At mu = 3 that is"
            " a deviation of 20.0 for k3 and 0.667 for k1.",
            [
                np.max(np.abs(moments.exact_mean.values / mean - 1)),
                np.max(np.abs(moments.exact_deviation.values / deviation - 1)),
            ],
            high=1e-9,
            controls=(other_samples,),
        ),
        Claim(
            "schulmans-table",
            "Schulman 2020, Approximating KL divergence, both tables",
            "Bias and standard deviation over KL of k1, k2, k3 for means 0.1 and 1 apart, to the"
            " digits given.",
            np.stack([table.exact_mean.values - 1, table.exact_deviation.values]),
            low=np.stack([bias - bias_digit, spread - spread_digit]),
            high=np.stack([bias + bias_digit, spread + spread_digit]),
            controls=(other_samples,),
            published=np.stack([bias, spread]),
        ),
        Claim(
            "samples-agree",
            "Schulman 2020, where the numbers come from samples; bounds by the central limit",
            "Means and variances from samples for means 0.1 and 1 apart, all seeds together, less"
            " their closed forms, in standard errors: the largest.",
            np.stack(_standard_errors(config, sampled.sel(shift=list(SCHULMAN)))),
            low=-4,
            high=4,
            controls=(other_samples,),
        ),
        Claim(
            "k1-as-a-loss-has-no-gradient",
            "E[∇ log π] = 0",
            "On-policy the expected gradient of k1 is 0: its largest size, relative to the gradient"
            " of KL(π‖ref), over shifts and seeds.",
            on["size"].sel(loss="k1").max().item(),
            high=1e-11,
            controls=(other_samples,),
        ),
        Claim(
            "k2-follows-kl-and-k3-the-reverse",
            "identities; computed before on one categorical of four, to 1e-16",
            "On-policy the expected gradient of k2 is that of KL(π‖ref), and that of k3 is that of"
            " KL(ref‖π): the largest relative error of each over shifts and seeds.",
            [
                on.error.sel(loss="k2").max().item(),
                on.error_of_other.sel(loss="k3").max().item(),
            ],
            high=1e-11,
            controls=(other_samples,),
        ),
        Claim(
            "exact-with-the-ratio",
            "identities; computed before for one example",
            "Samples of another policy give the gradient of KL(π‖ref) by k1 or k3 times the"
            " differentiated importance ratio, and by k1 in the reward: largest relative errors.",
            [off.error.sel(loss=loss).max().item() for loss in chosen.exact],
            high=1e-11,
            controls=({"claims.exact": ("k1", "k3", "ratio k2")},),
        ),
        Claim(
            "published-off-policy-gradients",
            "computed before in NumPy",
            "For π = (.5, .3, .2), samples of (.2, .5, .3) and ref = (.3, .3, .4) the expected"
            " gradients by the logits of k3 with the ratio (the true one), of k2 with it and of k3"
            " without, to the digits given.",
            example,
            low=published - digit,
            high=published + digit,
            controls=({"claims.numbers": ("k3", "k2", "ratio k3")},),
            published=published,
        ),
    ]


def _standard_errors(config: ConfigDict, results: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """`[estimator, shift]` differences of means and of variances from their closed forms."""
    mean, deviation = closed_forms(results["shift"].values)
    count = config.samples * results.sizes["seed"]
    found = results.mean("seed").transpose("estimator", "shift", ...)
    variances = (results.deviation**2).mean("seed").transpose("estimator", "shift")
    of_variance = deviation**2 * np.sqrt((found.exact_kurtosis.values - 1) / count)
    return (
        (found["mean"].values - mean) / (deviation / math.sqrt(count)),
        (variances.values - deviation**2) / of_variance,
    )
