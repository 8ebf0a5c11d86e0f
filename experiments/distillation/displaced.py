"""Two histograms moved apart: who still knows how far, and which way to go.

A student and a teacher are bumps on a line of bins, with zeros around them. Once they share no bin
a divergence of the table is as large as it gets, at any distance, and its gradient by the student's
logits is 0 or no number. Distances that know the places of the bins (Wasserstein, the energy
distance, MMD) go on, and pull the student's mass to the teacher's side. SinKD transports too, but
between the rows of a batch, whose distance is twice the total variation: it does not know places,
nor which teacher row belongs to which sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import count, non_negative, one_of, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences as dv
from jdiv.distillation import transport as of_rows
from jdiv.divergences import transport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"displacement": non_negative, "seed": seeds}
FIELDS = {
    "bins": axes.at_least(8),
    "width": count,
    "rows": axes.at_least(2),
    "floor": non_negative,
    "places": one_of(("in order", "shuffled")),
    "bandwidth": positive,
    "epsilon": positive,
    "temperature": positive,
}
ROWS = ("kl", "reverse_kl", "jensen_shannon", "total_variation", "squared_hellinger")
PLACED = {
    "wasserstein_1": transport.wasserstein_1,
    "energy_distance": transport.energy_distance,
    "squared_mmd": transport.squared_mmd,
}
LOSSES = (*ROWS[1:], *PLACED, "sinkd", "sinkd of reversed teacher rows")
OVERLAPPING = {"floor": 0.05}
"""Nothing is an exact zero: every bin around a bump has a small weight."""
SHUFFLED = {"places": "shuffled"}


def bumps(config: ConfigDict, point: dict, key: Array) -> tuple[Array, Array]:
    """Logits `[rows, bins]` of student and teacher: equal bumps, displaced; row i begins at bin i.

    Around them every bin has the weight of the floor, 0 for exact zeros.
    """
    shape = config.rows, config.width
    values = jax.random.normal(key, shape)
    start = jnp.arange(config.rows)[:, None]
    place = jnp.arange(config.bins)[None, :] - start

    def at(shift: Array) -> Array:
        inside = place - shift.reshape(1, 1)
        within = (inside >= 0) & (inside < config.width)
        bump = jnp.take_along_axis(values, jnp.clip(inside, 0, config.width - 1), axis=1)
        return jnp.where(within, bump, jnp.log(jnp.asarray(config.floor, bump.dtype)))

    return at(jnp.zeros_like(start[0])), at(jnp.asarray(point["displacement"]).astype(start.dtype))


def places(config: ConfigDict) -> Array:
    """Where the bins are: in order, or, as a control, anywhere."""
    order = np.arange(config.bins)
    if config.places == "shuffled":
        order = np.random.default_rng(0).permutation(order)
    return jnp.asarray(order, float)


def losses(config: ConfigDict, student: Array, teacher: Array) -> Array:
    """Every loss that is differentiated, a mean over the rows, `[loss]`."""
    at = places(config)
    apart = jnp.abs(at[:, None] - at[None, :])
    kernel = jnp.exp(-jnp.square(apart / config.bandwidth) / 2)
    # An infinite divergence has no gradient: KL(student‖teacher) is not among these.
    found = [getattr(dv, name)(student, teacher).mean() for name in ROWS[1:]]
    geometry = {"wasserstein_1": at, "energy_distance": apart, "squared_mmd": kernel}
    found += [of(student, teacher, geometry[name]).mean() for name, of in PLACED.items()]
    found += [sinkd(config, student, rows) for rows in (teacher, teacher[::-1])]
    return jnp.stack(found)


def sinkd(config: ConfigDict, student: Array, teacher: Array) -> Array:
    """SinKD of the batch, for each of its rows."""
    options = {"temperature": config.temperature, "epsilon": config.epsilon}
    return of_rows.sinkd(student, teacher, **options) / config.rows


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The losses, and by how much a small step along each moves the student to the right.

    `pull` is the derivative of the student's mean place by the size of a gradient step.
    """
    student, teacher = bumps(config, point, key)
    gradients = jax.jacrev(losses, 1)(config, student, teacher)
    p, at = jax.nn.softmax(student), jnp.arange(config.bins, dtype=student.dtype)[None, :]
    away = p * (at - jnp.sum(p * at, axis=-1, keepdims=True))
    debiased = of_rows.debiased_sinkd(
        student, teacher[::-1], temperature=config.temperature, epsilon=config.epsilon
    )
    return {
        "kl": dv.kl(student, teacher).mean(),
        "value": labelled(losses(config, student, teacher), loss=LOSSES),
        "pull": labelled(-jnp.sum(away[None] * gradients, axis=(-2, -1)), loss=LOSSES),
        "debiased": debiased.value,
        "residual": debiased.residual,
    }


# ------------------------------------------------------------------------------------- figures

NAMES = {
    "reverse_kl": "KL(teacher‖student)",
    "jensen_shannon": "Jensen-Shannon",
    "total_variation": "total variation",
    "wasserstein_1": "Wasserstein-1",
    "energy_distance": "energy distance",
    "squared_mmd": "squared MMD",
    "sinkd": "SinKD, of a row",
}


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture | str]:
    """Values and pulls by displacement."""
    return {
        "displaced": Picture(
            _displaced(config, results),
            f"Bumps {config.width} bins wide, moved apart; means over {results.sizes['seed']} draws"
            f" of {config.rows} rows. Beyond the dotted line a student's bump shares no bin with"
            " its teacher's, beyond the dashed one with no row's: KL is infinite there, and"
            " Jensen-Shannon, total variation and SinKD are flat, left, with a pull of 0, right."
            " Wasserstein-1 is the displacement itself; the energy distance pulls more;"
            f" MMD with a bandwidth of {config.bandwidth:g} bins stops pulling a few bandwidths"
            " away.",
        )
    }


def _displaced(config: ConfigDict, results: xr.Dataset) -> Figure:
    figure, plots = panels(2, height=4.6)
    for number, (name, label) in enumerate(NAMES.items()):
        look = style(number)
        for axis, quantity in zip(plots, ("value", "pull"), strict=True):
            line = results[quantity].sel(loss=name)
            line = line.where(np.isfinite(line)).mean("seed", skipna=False)
            axis.plot(line.displacement, line, label=label, **look)
    for axis in plots:
        axis.axvline(config.width, color="black", lw=0.8, ls=":")
        axis.axvline(config.width + config.rows - 1, color="black", lw=0.8, ls="--")
        axis.set(xlabel="displacement, bins")
    plots[0].set(ylabel="loss of a row (nats, bins, or none)")
    plots[0].set_yscale("symlog", linthresh=1)
    plots[0].set_ylim(bottom=-0.1)
    plots[1].set(ylabel="pull on the student's mean, bins per unit step")
    plots[1].set_yscale("symlog", linthresh=0.1)
    legend_above(figure, plots[0], columns=4)
    return figure


# ------------------------------------------------------------------------------------------ claims

SINKD = "Cui et al. 2024 (SinKD), its motivation: divergences between laws without a common support"


def _apart(results: xr.Dataset, config: ConfigDict) -> xr.Dataset:
    """Where no row of the student shares a bin with any row of the teacher."""
    return results.sel(displacement=results.displacement >= config.width + config.rows - 1)


@claim(source=SINKD, reference=(np.log(2), 1.0, 1.0), reruns=(OVERLAPPING,))
def divergences_do_not_know_how_far(results: xr.Dataset, config: ConfigDict) -> Finding:
    """Without a common bin KL is infinite in both directions, Jensen-Shannon is log 2, total
    variation and Hellinger are 1, at every displacement: largest deviation from these. The pull is
    0 (of KL(student‖teacher), whose gradient is no number there, it is not taken)."""
    apart = _apart(results, config)
    infinite = np.isposinf([apart.kl, apart.value.sel(loss="reverse_kl")])
    limits = xr.DataArray([np.log(2), 1.0, 1.0], dims="loss")
    bounded = apart.value.sel(loss=list(ROWS[2:]))
    pulls = apart.pull.sel(loss=list(ROWS[1:]))
    return together(
        equals(1, infinite.mean()),
        at_most(1e-12, np.abs(bounded - limits).max()),
        at_most(1e-12, np.abs(pulls).max()),
    )


@claim(source="Vallender 1974", reruns=(SHUFFLED,))
def wasserstein_is_the_displacement(results: xr.Dataset) -> Finding:
    """Wasserstein-1 between equal bumps is the displacement in bins: largest deviation."""
    distance = results.value.sel(loss="wasserstein_1")
    return at_most(1e-9, np.abs(distance - results.displacement).max())


# E|X - Y| of disjoint bumps is the difference of their means.
@claim(
    source="Szekely and Rizzo 2013, definition 1: 2 E|X - Y| less what does not move",
    reference=2.0,
    reruns=(SHUFFLED,),
)
def the_energy_distance_grows_by_two_a_bin(results: xr.Dataset, config: ConfigDict) -> Finding:
    """Without a common bin the energy distance grows by 2 a bin: smallest and largest growth."""
    energy = _apart(results, config).value.sel(loss="energy_distance")
    growth = energy.diff("displacement") / results.displacement.diff("displacement")
    return equals(2, [growth.min(), growth.max()], tolerance=1e-9)


@claim(source=SINKD, reruns=(SHUFFLED,), wrong=({"loss": "jensen_shannon"},))
def places_give_a_pull(
    results: xr.Dataset, config: ConfigDict, loss: str = "wasserstein_1"
) -> Finding:
    """A step along the gradient of Wasserstein-1 or of the energy distance moves the student's
    mean towards the teacher at every displacement but 0, also without a common bin: smallest pull
    of both."""
    moved = results.sel(displacement=results.displacement > 0)
    return at_least(0.1, moved.pull.sel(loss=[loss, "energy_distance"]).min())


@claim(
    source="Gretton et al. 2012: a bounded kernel",
    wrong=({"loss": "energy_distance"},),
)
def mmd_sees_as_far_as_its_kernel(
    results: xr.Dataset, config: ConfigDict, loss: str = "squared_mmd"
) -> Finding:
    """Squared MMD with a Gaussian kernel grows at first (1) and is flat six bandwidths away: its
    growth over the displacements there. What is left of its gradient spreads the student's own
    mass."""
    value = results.value.sel(loss=loss)
    far = results.displacement >= config.width + 6 * config.bandwidth
    last = value.sel(displacement=far)
    flat = (last.max("displacement") / last.min("displacement") - 1).max()
    grows = float(value.isel(displacement=1).min() > value.isel(displacement=0).max())
    return together(equals(1, grows), at_most(1e-6, flat))


@claim(
    source=f"{SINKD}; the released code's cost is twice the total variation between rows",
    reference=2.0,
    reruns=(OVERLAPPING,),
)
def sinkd_does_not_know_places(results: xr.Dataset, config: ConfigDict) -> Finding:
    """Where no rows share a bin SinKD is 2 a row, its upper bound, at every displacement, and pulls
    nowhere: largest deviations. That it sees a displacement where divergences do not is true of
    transport between places, not of this loss."""
    apart = _apart(results, config).sel(loss="sinkd")
    return at_most(1e-9, (np.abs(apart.value - 2).max(), np.abs(apart.pull).max()))


@claim(
    source=f"{SINKD}; from its formula",
    wrong=({"losses": ("jensen_shannon", "total_variation")},),
)
def sinkd_does_not_know_whose_answer_it_is(
    results: xr.Dataset, losses: tuple[str, str] = ("sinkd", "sinkd of reversed teacher rows")
) -> Finding:
    """Whether teacher rows belong to their samples or are in reverse makes no difference to SinKD:
    largest difference over all displacements."""
    first, second = (results.value.sel(loss=name) for name in losses)
    return at_most(1e-6, np.abs(first - second).max())


@claim(
    source=f"{SINKD}; the reference value is of other rows, six at random, whose sum is .0316",
    reference=0.0316 / 6,
    reruns=({"epsilon": 0.002},),
)
def sinkd_is_not_zero_at_the_teacher(results: xr.Dataset) -> Finding:
    """A student that is its teacher has a SinKD of more than 1e-4 a row, for the plan spreads over
    pairs of rows; of a plan that does not, at an epsilon of .002, it is 0. Smallest value."""
    return at_least(1e-4, results.value.sel(loss="sinkd", displacement=0).min())


@claim(
    source="Feydy et al. 2019, equation 3",
    reruns=(OVERLAPPING,),
    wrong=({"name": "value"},),
)
def debiased_it_is_zero_at_the_teacher(results: xr.Dataset, name: str = "debiased") -> Finding:
    """The Sinkhorn divergence of the same cost is 0 at the teacher, whose rows are in reverse
    order: largest value. Without a common bin it is at least 1."""
    values = results[name].sel(loss="sinkd") if name == "value" else results[name]
    there = np.abs(values.sel(displacement=0)).max()
    return together(at_most(1e-4, there), at_least(1, values.isel(displacement=-1).min()))
