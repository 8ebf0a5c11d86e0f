"""A student that is one Gaussian, a teacher that is two: what each divergence makes of it.

The picture with which MiniLLM (arXiv:2306.08543) argues for reverse KL, with numbers. Laws are
histograms on a fine grid, so that every row of the table is computed as it is for tokens; the
divergences are those of the densities as far as these are finite and the grid reaches. The student
descends along its natural gradient, by a step that halves whenever the loss would rise, from two
starts: on one of the modes and, wide, between them.

PACED (arXiv:2603.11178) turns from forward to reverse KL during training, and weighs problems by
p (1 - p). Both are looked at here: where the schedule ends, and where the signal-to-noise ratio
that the weight is derived from vanishes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, labels, one_of, positive, real
from experiments.lab.claims import Finding, at_most, claim, equals
from experiments.lab.plots import COLORS, Picture, panels
from experiments.lab.results import Labelled, labelled
from jdiv import generators
from jdiv.distillation import adaptive, token

AXES = {"loss": labels, "generator": one_of(generators.TABLE), "parameter": real,
        "phases": one_of(("one", "schedule"))}  # fmt: skip
FIELDS = {
    "modes": positive,
    "reach": positive,
    "places": count,
    "steps": count,
    "arguments": one_of(("student, teacher", "teacher, student")),
    "order": one_of(("forward first", "reverse first")),
    "pass_rates": each(fraction),
}
STARTS = {"mode": (2.0, 1.0), "between": (0.1, 2.5)}
"""Mean and deviation of the student before the first step."""
FITTED = ("mean", "deviation", "loss")
RECOMPUTED = "MiniLLM (arXiv:2306.08543), figure 2, and GKD (arXiv:2306.13649); recomputed"
REFERENCE = {
    ("forward KL", "mode"): (0.0, 3.1623, 0.46199),
    ("forward KL", "between"): (0.0, 3.1623, 0.46199),
    ("reverse KL", "mode"): (2.9843, 1.0234, 0.68877),
    ("reverse KL", "between"): (0.0, 2.7438, 0.84062),
    ("GKD, .1", "between"): (0.0, 3.1549, 0.04204),
    ("GKD, .5", "mode"): (2.9687, 1.0493, 0.21408),
    ("GKD, .5", "between"): (0.0, 3.1198, 0.12841),
    ("GKD, .9", "mode"): (2.9824, 1.0265, 0.06389),
    ("GKD, .9", "between"): (0.0, 3.0323, 0.05993),
}
SWAPPED = {
    "arguments": "teacher, student",
    "sweep.loss": ("forward KL", "reverse KL", "GKD, .1", "GKD, .5", "GKD, .9"),
    "sweep.generator": ("reverse_kl", "kl", "jensen_shannon", "jensen_shannon", "jensen_shannon"),
    "sweep.parameter": (0.0, 0.0, 0.1, 0.5, 0.9),
    "sweep.phases": ("one",) * 5,
}
SCHEDULE = "forward, then reverse KL"
REVERSE_FIRST = {
    "order": "reverse first",
    "sweep.loss": (SCHEDULE,),
    "sweep.generator": ("kl",),
    "sweep.parameter": (0.0,),
    "sweep.phases": ("schedule",),
}
SHORTEST = 1e-3
BASELINES = "the pass rate", "none"
POWERS = ("alpha, -1", "alpha, -.5", "alpha, 0", "alpha, .5", "alpha, 1")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Where the descents end, where the schedule does, and the noise of a problem's gradient."""
    places = jnp.linspace(-config.reach, config.reach, config.places)
    teacher = jnp.logaddexp(*(-((places - m) ** 2) / 2 for m in (config.modes, -config.modes)))
    row = _row(point)

    def loss(student, phase):
        if point["phases"] == "schedule":
            phase = phase if config.order == "forward first" else 1 - phase
            return adaptive.forward_then_reverse(student, teacher, phase)
        both = (teacher, student) if config.arguments == "teacher, student" else (student, teacher)
        return token.divergence(*both, generator=row)

    starts = jnp.array(list(STARTS.values()))
    fit = jax.vmap(lambda start: descent(config, places, loss, *start))(starts)
    return {"fit": labelled(fit, start=tuple(STARTS), number=FITTED)} | problems(config)


def _row(point: dict):
    """GKD's share is the teacher's, and the table's weight is that of the first argument."""
    name = point["generator"]
    parameters = {
        "jensen_shannon": {"weight": 1 - point["parameter"]},
        "alpha": {"alpha": point["parameter"]},
        "skew_kl": {"skew": point["parameter"]},
    }
    return generators.get(name, **parameters.get(name, {}))


def descent(config: ConfigDict, places: Array, loss, mean: Array, deviation: Array) -> Array:
    """`[3]` mean, deviation and loss after natural gradient steps from here.

    The Fisher matrix of (mean, log deviation) is diag(1/deviation^2, 2).
    """

    def at(parameters, phase):
        return loss(-(((places - parameters[0]) / jnp.exp(parameters[1])) ** 2) / 2, phase)

    def step(carry, phase):
        parameters, size = carry
        value, slope = jax.value_and_grad(at)(parameters, phase)
        direction = slope * jnp.array([jnp.exp(2 * parameters[1]), 0.5])
        # No step is longer than a fifth of the deviation.
        length = jnp.hypot(direction[0] / jnp.exp(parameters[1]), direction[1])
        moved = parameters - size * direction / jnp.maximum(1, 5 * size * length)
        lower = at(moved, phase) <= value
        parameters = jnp.where(lower, moved, parameters)
        # Where nothing falls any more the step stays long enough for a loss that changes.
        size = jnp.where(lower, 1.2 * size, jnp.maximum(size / 2, SHORTEST))
        return (parameters, size), None

    start = jnp.stack([mean, jnp.log(deviation)])
    phases = jnp.linspace(0, 1, config.steps)
    (parameters, _), _ = jax.lax.scan(step, (start, jnp.ones_like(mean)), phases)
    return jnp.array([parameters[0], jnp.exp(parameters[1]), at(parameters, phases[-1])])


def problems(config: ConfigDict) -> dict[str, Labelled]:
    """Of one problem, by its pass rate: the gradient's signal-to-noise ratio and the weight.

    Enumerated over success and failure: the gradient of a sample is `(r - baseline)(r - p)`.
    """
    p = jnp.array(config.pass_rates)
    baseline = jnp.stack([p, jnp.zeros_like(p)])
    law = jnp.stack([1 - p, p])[None]
    reward = jnp.broadcast_to(jnp.array([0.0, 1.0])[:, None], law.shape)
    gradient = (reward - baseline[:, None]) * (reward - p[None, None])
    mean = jnp.sum(law * gradient, axis=1)
    variance = jnp.sum(law * (gradient - mean[:, None]) ** 2, axis=1)
    known = adaptive.signal_to_noise(jnp.stack([p, p]), baseline)
    by = {"baseline": BASELINES, "pass_rate": config.pass_rates}
    rates = np.linspace(0, 1, 301)
    weight = adaptive.paced(jnp.array(rates), a=2.0, b=1.0)
    return {
        "variance": labelled(variance, **by),
        "expected": labelled(mean**2 / known, **by),
        "ratio": labelled(known, **by),
        "heaviest": jnp.array(rates)[jnp.argmax(weight)],
    }


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The fits over the teacher; where each row's two descents end."""
    figure, (left, right) = panels(2, width=5.6, height=4.4)
    x = np.linspace(-9, 9, 400)
    normal = lambda m, s: np.exp(-(((x - m) / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi))
    shade = 0.5 * normal(config.modes, 1) + 0.5 * normal(-config.modes, 1)
    left.fill_between(x, shade, color="#dddddd", label="teacher")
    names = [name for name in ("forward KL", "reverse KL", "GKD, .5") if name in results.loss]
    for color, name in zip(COLORS, names, strict=False):
        for start, line in zip(STARTS, ("-", "--"), strict=True):
            mean, deviation, _ = results.fit.sel(loss=name, start=start).values
            left.plot(x, normal(mean, deviation), color=color, ls=line, label=f"{name}, {start}")
    left.set(xlabel="x", ylabel="density", ylim=(0, None))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.28), ncols=3, fontsize="small")
    rows = np.arange(results.sizes["loss"])
    for start, marker, color in zip(STARTS, "os", COLORS, strict=False):
        here = results.fit.sel(start=start, number="deviation")
        label = {"mode": "from a mode", "between": "from between the modes"}[start]
        right.plot(here, rows, marker, color=color, label=label, mfc="none", ms=8)
    right.set_yticks(rows, results.loss.values)
    right.invert_yaxis()
    right.set(xlabel="deviation of the fitted Gaussian (each mode has 1)")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2, fontsize="small")
    return {
        "fits": Picture(
            figure,
            "One Gaussian fitted to two modes, from a start on a mode and from a wide one. Left:"
            " forward KL covers both from either start; reverse KL and GKD's Jensen-Shannon have a"
            " basin of each kind. Right: for each row how wide the Gaussian is where the descents"
            " end.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


@claim(source=RECOMPUTED, reference=list(REFERENCE.values()), reruns=(SWAPPED,))
def optima_are_those_of_the_reference(results: xr.Dataset) -> Finding:
    """Mean, deviation and loss where the descents end, to a thousandth: forward KL from both
    starts, reverse KL and GKD's Jensen-Shannon of .5 and .9 in both of their basins."""
    found = [results.fit.sel(loss=loss, start=start).values for loss, start in REFERENCE]
    return equals(list(REFERENCE.values()), np.array(found), tolerance=1e-3)


@claim(source="Moments of the mixture: 0 and 10", reference=(0.0, 10.0), reruns=(SWAPPED,))
def forward_kl_matches_moments(results: xr.Dataset) -> Finding:
    """Mean and variance of the fit of forward KL, from both starts, are those of the teacher."""
    fit = results.fit.sel(loss="forward KL")
    mean, deviation = fit.sel(number="mean"), fit.sel(number="deviation")
    return equals([(0.0, 10.0)] * 2, np.stack([mean, deviation**2], -1), tolerance=1e-4)


@claim(
    source="Minka 2005, divergence measures and message passing, on the order",
    wrong=({"rows": tuple(reversed(POWERS))},),
    needs={"loss": POWERS},
)
def deviation_falls_along_the_powers(
    results: xr.Dataset, rows: tuple[str, ...] = POWERS
) -> Finding:
    """The better of both fits is ever narrower from Neyman's chi2 (alpha -1) by forward KL (0) and
    Hellinger (1/2) to reverse KL (1): largest step up, in deviations."""
    fit = results.fit.sel(loss=list(rows))
    best = fit.sel(number="loss").argmin("start")
    return at_most(0, fit.sel(number="deviation").isel(start=best).diff("loss").max())


@claim(
    source="PACED (arXiv:2603.11178), abstract: forward KL first and then reverse KL",
    reference=(0.0, 2.7438, 0.84062),
    reruns=(REVERSE_FIRST,),
    needs={"loss": (SCHEDULE,)},
)
def the_schedule_ends_wide(results: xr.Dataset) -> Finding:
    """With forward KL in the first half of the steps both starts end in the wide optimum of reverse
    KL, also the one from which reverse KL alone finds the deeper one, of a mode: on this toy the
    schedule covers, and pays .15 nats of the reverse KL for it."""
    fit = results.fit.sel(loss=SCHEDULE)
    return equals([(0.0, 2.7438, 0.84062)] * 2, fit, tolerance=1e-3)


@claim(
    source="PACED (arXiv:2603.11178): the ratio vanishes at both ends; by enumeration",
    reference=(0.0010, 0.0103, 0.1406, 0.1406, 0.0103, 0.0010),
    wrong=({"baseline": "none"},),
    needs={"loss": ...},
)
def signal_to_noise_vanishes_at_both_ends(
    results: xr.Dataset, baseline: str = BASELINES[0]
) -> Finding:
    """Squared signal-to-noise ratio of REINFORCE with a baseline at the pass rates .001, .01, .1,
    .9, .99 and .999. Without one it is p/(1 - p), which does not vanish towards 1: there the claim
    fails."""
    at = [0.001, 0.01, 0.1, 0.9, 0.99, 0.999]
    ratio = results.ratio.isel(loss=0).sel(pass_rate=at, baseline=baseline)
    return equals((0.0010, 0.0103, 0.1406, 0.1406, 0.0103, 0.0010), ratio, decimals=4)


@claim(
    source="By enumeration of success and failure",
    wrong=({"of": "ratio"},),
    needs={"loss": ...},
)
def signal_to_noise_is_the_enumerated_one(results: xr.Dataset, of: str = "expected") -> Finding:
    """Variance of the gradient over success and failure, less what `adaptive.signal_to_noise` says
    it is with and without a baseline: largest difference over the pass rates."""
    return at_most(1e-12, abs(results.variance - results[of]).max())


@claim(
    source="PACED (arXiv:2603.11178): p^a (1 - p)^b is largest at a/(a + b)",
    wrong=({"expected": 1 / 3},),
    needs={"loss": ...},
)
def heaviest_problem(results: xr.Dataset, expected: float = 2 / 3) -> Finding:
    """The pass rate with the largest weight for a = 2 and b = 1, on a grid of 300 steps."""
    return equals(expected, results.heaviest.isel(loss=0), tolerance=1e-3)
