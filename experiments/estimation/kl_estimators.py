"""The estimators k1, k2 and k3 of KL, as numbers and as losses (Schulman 2020).

As numbers: bias and standard deviation between two unit Gaussians, by quadrature and by samples,
against closed forms. As losses: the expected gradient on a categorical, by enumeration, with the
samples held fixed as automatic differentiation does; from the policy's own samples and from those
of an older one, with and without the importance ratio.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_most, between, claim, equals, together
from experiments.lab.plots import Picture, legend_above, marks, panels, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, estimators, generators, numerics
from jdiv.divergences import gaussian

# By quadrature with this many nodes the closed forms are met up to a shift of 3.
AXES = {"shift": axes.between(0.01, 3), "seed": axes.seeds}
NODES = 160
FIELDS = {
    "samples": axes.at_least(2),
    "actions": axes.at_least(2),
    "sampled_from": axes.one_of(("policy", "reference")),
    "ratio": axes.one_of(("differentiated", "detached")),
}
SAMPLERS = "policy", "old"
ESTIMATORS = {"k1": estimators.kl_k1, "k2": estimators.kl_k2, "k3": estimators.kl_k3}

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
SOURCE = "Schulman 2020, Approximating KL divergence"
BRIEF = {
    "samples": 10_000,
    "optimized": False,
    "sweep.shift": (0.1, 1.0),
    "sweep.seed": (0, 1, 2, 3),
}
OF_REFERENCE = {"sampled_from": "reference", **BRIEF}
"""Samples of the reference where those of the policy are wanted."""
DETACHED = {"ratio": "detached", **BRIEF}
"""The importance ratio as a constant to automatic differentiation."""


# ----------------------------------------------------------------------------------------- numbers


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


def quadrature(center: Array, shift: Array) -> dict[str, Array]:
    """Moments `[3]` for x ~ N(center, 1): the mean, the deviation, the fourth over its square."""
    nodes, weight = (jnp.asarray(x) for x in np.polynomial.hermite_e.hermegauss(NODES))
    weight = weight / weight.sum()
    value = values(nodes + center, shift)
    mean = value @ weight
    square = jnp.square(value - mean[:, None])
    variance = square @ weight
    return {
        "exact_mean": mean,
        "exact_deviation": jnp.sqrt(variance),
        "exact_kurtosis": jnp.square(square) @ weight / jnp.square(variance),
    }


# --------------------------------------------------------------------------------------- losses


LOSSES = {
    "k1": lambda log_p, log_q, log_ratio: estimators.kl_k1(log_p, log_q),
    "k2": lambda log_p, log_q, log_ratio: estimators.kl_k2(log_p, log_q),
    "k3": lambda log_p, log_q, log_ratio: estimators.kl_k3(log_p, log_q),
    "ratio k1": lambda log_p, log_q, log_ratio: estimators.plain_from_p(
        generators.kl(), log_p, log_q, log_weights=log_ratio
    ),
    "ratio k2": lambda log_p, log_q, log_ratio: jnp.exp(log_ratio) * estimators.kl_k2(log_p, log_q),
    "ratio k3": lambda log_p, log_q, log_ratio: estimators.centered_from_p(
        generators.kl(), log_p, log_q, log_weights=log_ratio
    ),
    "k1 in reward": lambda log_p, log_q, log_ratio: (
        jnp.exp(log_ratio) * jax.lax.stop_gradient(estimators.kl_k1(log_p, log_q))
    ),
}
"""By the log-probabilities of policy and reference, and the log-ratio of policy and sampler."""


def gradients(config: ConfigDict, policy: Array, reference: Array, old: Array) -> Array:
    """Expected gradients `[loss, action]` by the policy's logits, for samples of `old`."""
    log_q, log_old = numerics.log_softmax(reference), numerics.log_softmax(old)

    def means(policy):
        log_p = numerics.log_softmax(policy)
        log_ratio = log_p - log_old
        if config.ratio == "detached":
            log_ratio = jax.lax.stop_gradient(log_ratio)
        by_action = jnp.stack([loss(log_p, log_q, log_ratio) for loss in LOSSES.values()])
        return by_action @ jnp.exp(log_old)

    return jax.jacrev(means)(policy)


# -------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Moments between Gaussians `shift` apart; gradients on categoricals as far apart in logits.

    The example does not depend on the point.
    """
    shift = point["shift"]
    of_reference = config.sampled_from == "reference"
    key_x, *keys = jax.random.split(key, 4)
    center = shift if of_reference else 0 * shift
    value = values(jax.random.normal(key_x, (config.samples,), float) + center, shift)
    policy, towards, away = (jax.random.normal(k, (config.actions,), float) for k in keys)
    reference, old = policy + shift * towards, policy + away
    samplers = jnp.stack([reference if of_reference else policy, old])
    found = jax.vmap(lambda sampler: gradients(config, policy, reference, sampler))(samplers)
    kl, right = jax.value_and_grad(divergences.kl)(policy, reference)
    other = jax.grad(divergences.reverse_kl)(policy, reference)
    example = (jnp.log(jnp.asarray(EXAMPLE[name])) for name in ("policy", "reference", "old"))
    moments = quadrature(center, shift) | {
        "mean": value.mean(axis=1),
        "deviation": value.std(axis=1, ddof=1),
    }
    by_loss = {
        "size": _norm(found) / _norm(right),
        "error": _norm(found - right[None, None]) / _norm(right),
        "error_of_other": _norm(found - other[None, None]) / _norm(other),
    }
    return {
        "kl": kl,
        "example": labelled(gradients(config, *example).T, "action", loss=tuple(LOSSES)),
        **{name: labelled(x, estimator=tuple(ESTIMATORS)) for name, x in moments.items()},
        **{name: labelled(x, sampler=SAMPLERS, loss=tuple(LOSSES)) for name, x in by_loss.items()},
    }


def _norm(gradient: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(gradient), axis=-1))


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Moments by shift, and gradients by divergence."""
    return {"moments": _moments(config, results), "gradients": _gradients(results)}


def _moments(config: ConfigDict, results: xr.Dataset) -> Picture:
    figure, plots = panels(2, width=4.3, height=4.3)
    fine = np.geomspace(0.09, 3.2, 200)
    mean, deviation = closed_forms(fine)
    sampled = results["mean"].mean("seed") - 1, np.sqrt((results.deviation**2).mean("seed"))
    for number, name in enumerate(ESTIMATORS):
        look = style(number, marker=True)
        line = {"color": look["color"], "linestyle": look.pop("linestyle")}
        lines = mean[number] - 1, deviation[number]
        for axis, exact, points in zip(plots, lines, sampled, strict=True):
            axis.plot(fine, exact, **line)
            here, label = points.sel(estimator=name), f"{name} from samples"
            axis.plot(results["shift"], here, linestyle="none", **look, label=label)
    for shift, published in SCHULMAN.items():
        for axis, row in zip(plots, published, strict=True):
            marks(axis, [shift] * 3, row, "Schulman's table" if shift == 1 else None)
    for axis in plots:
        axis.set(xscale="log", xlabel="distance of the means")
        ticks(axis, x=(0.1, 0.3, 1, 3))
    plots[0].set(ylabel="bias / KL")
    plots[1].set(ylabel="standard deviation of a sample / KL", yscale="log")
    legend_above(figure, plots[0], columns=4)
    return Picture(
        figure,
        f"Unit Gaussians; lines are closed forms, marks {config.samples} samples, averaged over"
        " seeds. Close together k1 is noisy, and k2 is as good as k3 and hardly biased; far apart"
        " k2 is biased and the spread of k3 explodes, until samples hardly tell how large it is.",
    )


def _gradients(results: xr.Dataset) -> Picture:
    figure, plots = panels(2, width=4.3, height=4.3)
    shown = {"policy": ("k1", "k2", "k3"), "old": ("k2", "k3", "ratio k2", "ratio k3")}
    looks = {name: style(i, marker=True) for i, name in enumerate(("k1", "k2", "k3"))}
    looks |= {name: style(i, marker=True) for i, name in enumerate(("ratio k2", "ratio k3"), 3)}
    kl = results.kl.median("seed")
    for axis, (sampler, losses) in zip(plots, shown.items(), strict=True):
        for loss in losses:
            error = results.error.sel(sampler=sampler, loss=loss)
            low, middle, high = error.quantile([0.25, 0.5, 0.75], "seed").transpose("quantile", ...)
            color = looks[loss]["color"]
            axis.fill_between(kl, low, high, color=color, alpha=0.15, linewidth=0)
            axis.plot(kl, middle, label=loss, **looks[loss])
        axis.set(xscale="log", xlabel="KL(π‖ref), nats")
        axis.set_ylim(-0.05, None)
        axis.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
    plots[0].set(ylabel="relative error of the gradient", title="samples of the policy")
    plots[1].set_title("samples of an older policy")
    return Picture(
        figure,
        "Expected gradients against that of KL(π‖ref), on categoricals: median and quartiles over"
        " seeds. On-policy k1 has none and k2 is exact; k3 is close where the divergence is small,"
        " which hides that it follows the other direction. From samples of another policy only k3"
        " (and k1, not shown) times the importance ratio is exact.",
    )


# ------------------------------------------------------------------------------------------ claims


@claim(source="closed forms that follow from Gaussian moments", reruns=(OF_REFERENCE,))
def closed_forms_of_the_moments(results: xr.Dataset) -> Finding:
    """Mean and standard deviation over KL of k1, k2, k3 between unit Gaussians, by quadrature, are
    `1, 1 + mu^2/4, 1` and `2/mu, sqrt(2 + mu^2), 2 sqrt(e^(mu^2) - 1 - mu^2)/mu^2` for every shift
    mu: the largest relative error of each. At mu = 3 that is a deviation of 20.0 for k3 and 0.667
    for k1."""
    here = results.isel(seed=0).transpose("estimator", ...)
    mean, deviation = closed_forms(here["shift"].values)
    errors = here.exact_mean / mean - 1, here.exact_deviation / deviation - 1
    return at_most(1e-9, [abs(error).max() for error in errors])


@claim(
    source=f"{SOURCE}, both tables",
    published=np.array(list(SCHULMAN.values())).transpose(1, 2, 0),
    reruns=(OF_REFERENCE,),
    needs={"shift": SCHULMAN},
)
def schulmans_table(results: xr.Dataset) -> Finding:
    """Bias and standard deviation over KL of k1, k2, k3 for means 0.1 and 1 apart, to the digits
    given."""
    here = results.isel(seed=0).sel(shift=list(SCHULMAN)).transpose("estimator", "shift", ...)
    bias, spread = np.array(list(SCHULMAN.values())).transpose(1, 2, 0)
    # Half of the last digit; .0025 stands as .002 there.
    bias_digit = [[0.0006, 0.005]] * 3
    spread_digit = [[0.5, 0.5], [0.005, 0.005], [0.005, 0.05]]
    return together(
        equals(bias, here.exact_mean - 1, tolerance=bias_digit),
        equals(spread, here.exact_deviation, tolerance=spread_digit),
    )


@claim(
    source=f"{SOURCE}, where the numbers come from samples; bounds by the central limit",
    reruns=(OF_REFERENCE,),
    needs={"shift": SCHULMAN},
)
def samples_agree(results: xr.Dataset, config: ConfigDict) -> Finding:
    """Means and variances from samples for means 0.1 and 1 apart, all seeds together, less their
    closed forms, in standard errors: the largest."""
    here = results.sel(shift=list(SCHULMAN)).transpose("estimator", "shift", ...)
    mean, deviation = closed_forms(here["shift"].values)
    count = config.samples * here.sizes["seed"]
    variance = (here.deviation**2).mean("seed")
    of_mean = deviation / math.sqrt(count)
    of_variance = deviation**2 * np.sqrt((here.exact_kurtosis.mean("seed") - 1) / count)
    in_errors = (
        (here["mean"].mean("seed") - mean) / of_mean,
        (variance - deviation**2) / of_variance,
    )
    return between(-4, in_errors, 4)


@claim(source="E[∇ log π] = 0", reruns=(OF_REFERENCE,))
def k1_as_a_loss_has_no_gradient(results: xr.Dataset) -> Finding:
    """On-policy the expected gradient of k1 is 0: its largest size, relative to the gradient of
    KL(π‖ref), over shifts and seeds."""
    return at_most(1e-11, results["size"].sel(sampler="policy", loss="k1").max())


@claim(
    source="identities; computed before on one categorical of four, to 1e-16",
    reruns=(OF_REFERENCE,),
)
def k2_follows_kl_and_k3_the_reverse(results: xr.Dataset) -> Finding:
    """On-policy the expected gradient of k2 is that of KL(π‖ref), and that of k3 is that of
    KL(ref‖π): the largest relative error of each over shifts and seeds."""
    here = results.sel(sampler="policy")
    of_k2, of_k3 = here.error.sel(loss="k2"), here.error_of_other.sel(loss="k3")
    return at_most(1e-11, (of_k2.max(), of_k3.max()))


@claim(
    source="identities; computed before for one example",
    reruns=(DETACHED,),
    wrong=({"losses": ("k1", "k3", "ratio k2")},),
)
def exact_with_the_ratio(
    results: xr.Dataset, losses: tuple[str, ...] = ("ratio k1", "ratio k3", "k1 in reward")
) -> Finding:
    """Samples of another policy give the gradient of KL(π‖ref) by k1 or k3 times the differentiated
    importance ratio, and by k1 in the reward: largest relative errors."""
    here = results.error.sel(sampler="old", loss=list(losses))
    return at_most(1e-11, here.max(("shift", "seed")))


@claim(
    source="a recomputation in NumPy; nothing printed is known",
    reference=EXAMPLE_GRADIENTS,
    reruns=(DETACHED,),
    wrong=({"losses": ("k3", "k2", "ratio k3")},),
    needs={"shift": ...},
)
def off_policy_gradients_of_an_example(
    results: xr.Dataset, losses: tuple[str, ...] = ("ratio k3", "ratio k2", "k3")
) -> Finding:
    """For π = (.5, .3, .2), samples of (.2, .5, .3) and ref = (.3, .3, .4) the expected gradients
    by the logits of k3 with the ratio (the true one), of k2 with it and of k3 without, to the
    digits given."""
    here = results.example.isel(seed=0, shift=0).sel(loss=list(losses)).transpose("loss", "action")
    return equals(EXAMPLE_GRADIENTS, here, tolerance=np.array(EXAMPLE_DIGITS)[:, None])
