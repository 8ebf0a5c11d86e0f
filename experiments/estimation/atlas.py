"""The atlas of divergences: the table's generators, and values between simple families.

It reproduces no paper; its claims are the textbook order relations between the rows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, at_most, claim, equals
from experiments.lab.plots import COLORS, GREY, Picture, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"intact": axes.fraction}
FIELDS = {
    "points": axes.at_least(3),
    "bernoulli_references": axes.each(axes.inside(0, 1)),
    "bins": axes.at_least(2),
    "mixture_mode": axes.real,
    "mixture_scale": axes.positive,
    "mixture_weight": axes.fraction,
}
ROWS = tuple(generators.TABLE)
BEYOND = {
    "renyi": divergences.renyi,
    "bhattacharyya": divergences.bhattacharyya,
    "cauchy_schwarz": divergences.cauchy_schwarz,
    "bregman": divergences.bregman,
}
BETWEEN = (*ROWS, *BEYOND)
OWN = "quartic", "flat"
CURVATURES = {
    "kl": 1, "reverse_kl": 1, "jeffreys": 2, "jensen_shannon": 1 / 4, "skew_kl": 0.01,
    "squared_hellinger": 1 / 4, "pearson_chi2": 2, "neyman_chi2": 2, "le_cam": 1 / 2, "alpha": 1,
    "tsallis": 2, "chi2_kl": 2,
}  # fmt: skip
"""f''(1) of the smooth rows, by hand; the quartic one's is 1."""
DIRECTIONS = "moving‖fixed", "fixed‖moving"
TITLES = {
    "kl": "KL",
    "reverse_kl": "reverse KL",
    "jeffreys": "Jeffreys",
    "jensen_shannon": "Jensen-Shannon",
    "skew_kl": "skew KL, s = .1",
    "total_variation": "total variation",
    "squared_hellinger": "squared Hellinger",
    "pearson_chi2": "Pearson χ²",
    "neyman_chi2": "Neyman χ²",
    "le_cam": "Le Cam",
    "alpha": "alpha = 1/2",
    "tsallis": "Tsallis, index 2",
    "chi2_kl": "χ²/2 + KL",
    "renyi": "Rényi, order 2",
    "bhattacharyya": "Bhattacharyya",
    "cauchy_schwarz": "Cauchy-Schwarz",
    "bregman": "Bregman, a = 2",
}
TSYBAKOV = "Tsybakov 2009, Introduction to nonparametric estimation, section 2.4"
WRONG = {"sweep.intact": (0.0,)}
"""KL's inverse slope for all rows, customary generators, with f'(1) (u - 1) in them, in place of
centered ones, and equals of which one was stored in single precision: at once, since each is read
by one claim."""


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """All curves."""
    intact = point["intact"] > 0
    return _rows(config, intact) | _bernoulli(config) | _gaussians(config, intact)


def _rows(config: ConfigDict, intact: Array) -> dict[str, Labelled]:
    """Each row by the log-ratio: f, its slope, and the slope followed by an inverse."""
    log_ratio = np.linspace(*config.log_ratio_range, config.points)
    t, rows = jnp.asarray(log_ratio), [generators.get(name) for name in ROWS]
    slope = jnp.stack([row.slope(t) for row in rows])
    inverse = jnp.stack([row.inverse_slope(s) for row, s in zip(rows, slope, strict=True)])
    value = jnp.stack([row.value(t) for row in rows])
    customary = jnp.stack([row.slope_at_one * jnp.expm1(t) for row in rows])
    curves = {
        "value": jnp.where(intact, value, value + customary),
        "slope": slope,
        "inverse": jnp.where(intact, inverse, generators.kl().inverse_slope(slope)),
    }
    return {name: labelled(x, row=ROWS, log_ratio=log_ratio) for name, x in curves.items()}


def _bernoulli(config: ConfigDict) -> dict[str, Labelled]:
    """Every divergence between two Bernoulli distributions; 0 and 1 are exact zeros."""
    p = np.linspace(0, 1, config.points)
    shares = jnp.broadcast_to(p, (len(config.bernoulli_references), config.points))
    references = jnp.asarray(config.bernoulli_references)[:, None] * jnp.ones_like(shares)
    p_logits, q_logits = (jnp.log(jnp.stack([x, 1 - x], axis=-1)) for x in (shares, references))
    found = _between(p_logits, q_logits)
    references = config.bernoulli_references
    return {"bernoulli": labelled(found, divergence=BETWEEN, reference=references, p=p)}


def _gaussians(config: ConfigDict, intact: Array) -> dict[str, Labelled]:
    """Every divergence between a mixture and a Gaussian or another mixture, and between equals."""
    center = np.linspace(-4, 4, config.points)
    weight = np.linspace(0.02, 0.98, config.points)
    mixture = functools.partial(gaussian_mixture, config)
    fixed = jnp.broadcast_to(mixture(config.mixture_weight), (config.points, config.bins))
    moving = jax.vmap(functools.partial(gaussian, config))(jnp.asarray(center))
    weighted = jax.vmap(mixture)(jnp.asarray(weight))
    stored = jnp.where(intact, moving, moving.astype(jnp.float32).astype(moving.dtype))
    # All pairs at once: every divergence is compiled once for them.
    pairs = _between(
        jnp.stack([moving, fixed, weighted, fixed, moving, coarse(config, moving)]),
        jnp.stack([fixed, moving, fixed, weighted, stored, coarse(config, fixed)]),
    )
    names = {"divergence": BETWEEN, "direction": DIRECTIONS}
    own = [divergences.f_divergence(row, weighted, fixed) for row in own_rows()]
    return {
        "of_own": labelled(jnp.stack(own), own=OWN, weight=weight),
        "location": labelled(pairs[:, :2], **names, center=center),
        "weights": labelled(pairs[:, 2:4], **names, weight=weight),
        "equal": labelled(pairs[:, 4], divergence=BETWEEN, center=center),
        "coarse": labelled(pairs[:, 5], divergence=BETWEEN, center=center),
    }


def own_rows() -> tuple[generators.Generator, generators.Generator]:
    """Two rows that are not in the table, each made of its f; the second has f''(1) = 0."""
    quartic = generators.from_f(
        lambda u: (u - 1) ** 2 / 2 + (u - 1) ** 4 / 12,
        at_zero=7 / 12, slope_at_zero=-4 / 3, slope_at_infinity=jnp.inf,
    )  # fmt: skip
    flat = generators.from_f(
        lambda u: (u - 1) ** 4, at_zero=1.0, slope_at_zero=-4.0, slope_at_infinity=jnp.inf
    )
    return quartic, flat


def _grid(config: ConfigDict) -> Array:
    return jnp.linspace(-8.0, 8.0, config.bins)


def gaussian(config: ConfigDict, center: Array) -> Array:
    """Logits `[bins]` of N(center, 1.5^2) on the grid."""
    return -(((_grid(config) - center) / 1.5) ** 2) / 2


def gaussian_mixture(config: ConfigDict, weight: Array) -> Array:
    """Logits `[bins]` of two modes at -m and m, `weight` on the left one."""
    log_density = [
        -(((_grid(config) - mode) / config.mixture_scale) ** 2) / 2
        for mode in (-config.mixture_mode, config.mixture_mode)
    ]
    return jnp.logaddexp(jnp.log(weight) + log_density[0], jnp.log1p(-weight) + log_density[1])


def coarse(config: ConfigDict, logits: Array) -> Array:
    """Logits whose bins beyond -4 are one, the first, and those beyond 4 the last."""
    left, right = _grid(config)[None] <= -4, _grid(config)[None] >= 4
    ends = [jax.nn.logsumexp(jnp.where(x, logits, -jnp.inf), axis=-1) for x in (left, right)]
    kept = jnp.where(left | right, -jnp.inf, logits)
    return kept.at[:, 0].set(ends[0]).at[:, -1].set(ends[1])


def _between(p_logits: Array, q_logits: Array) -> Array:
    """Every divergence, stacked in front."""
    of_rows = [divergences.f_divergence(generators.get(x), p_logits, q_logits) for x in ROWS]
    return jnp.stack(of_rows + [beyond(p_logits, q_logits) for beyond in BEYOND.values()])


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Small multiples: one panel a divergence."""
    only = results.isel(intact=0)
    return _of_rows(only) | _of_pairs(config, only)


def _of_rows(results: xr.Dataset) -> dict[str, Picture]:
    t, slope = results.log_ratio.values, results.slope.values
    everywhere = np.broadcast_to(t, slope.shape)
    of_t, others = "log-ratio t = log p/q", "In grey the other rows."
    return {
        "generators": Picture(
            _family(everywhere, results.value.values, of_t, "f(e^t)", (-0.2, 4)),
            f"The centered generators f: none is negative, and all touch 0 at p = q. {others}",
        ),
        "slopes": Picture(
            _family(everywhere, slope, of_t, "f'(e^t)", (-4, 4)),
            "Slopes f'. One that is bounded above (Jensen-Shannon, Le Cam, total variation) cannot"
            f" follow a large value; one that is bounded below lets actions be dropped. {others}",
        ),
        "inverse_slopes": Picture(
            _family(
                slope, results.inverse.values, "slope s", "log-ratio t with f'(e^t) = s", (-4, 4),
                x_range=(-4, 4),
            ),
            "Inverse slopes, from which regularized policies are made: a curve ends where f' takes"
            f" no such value. {others}",
        ),
    }  # fmt: skip


def _of_pairs(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    both_ways = [f"D({direction})" for direction in DIRECTIONS]
    of_q = [f"q = {q}" for q in config.bernoulli_references]
    return {
        "bernoulli": Picture(
            _pairs(results.bernoulli, "p", of_q, "p, the first parameter"),
            "D(Bernoulli(p)‖Bernoulli(q)) for two q. Rows with an infinite slope at infinity or an"
            " infinite f(0) rise without bound at the ends. Curves leave the panel above 8.",
        ),
        "location": Picture(
            _pairs(results.location, "center", both_ways, "center of the moving Gaussian"),
            "A Gaussian N(c, 1.5²) against a fixed mixture of two modes at ±2. KL(moving‖fixed) is"
            " smallest towards the heavier mode, KL(fixed‖moving) at its mean. Curves leave the"
            " panel above 8.",
        ),
        "weights": Picture(
            _pairs(results.weights, "weight", both_ways, "weight of the left mode"),
            f"A mixture of moving weight against one of weight {config.mixture_weight}: close to"
            " the minimum the smooth rows are one parabola up to a factor.",
        ),
    }


def _small_multiples(names: tuple[str, ...], *, columns: int, sharey: bool):
    import matplotlib.pyplot as plt

    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 2.2 * rows), sharex=True, sharey=sharey
    )
    for name, axis in zip(names, grid.flat, strict=False):
        axis.set_title(TITLES[name], fontsize=10)
    for axis in grid.flat[len(names) :]:
        axis.set_axis_off()
    for axis in grid.flat[len(names) - columns : len(names)]:
        axis.xaxis.set_tick_params(labelbottom=True)
    return figure, grid.flat[: len(names)]


def _family(xs, curves, x_label, y_label, y_range, x_range=None) -> Figure:
    figure, panels = _small_multiples(ROWS, columns=5, sharey=True)
    for x, curve, axis in zip(xs, curves, panels, strict=True):
        axis.plot(xs.T, curves.T, color=GREY, linewidth=0.6)
        axis.plot(x, curve, color=COLORS[0], linewidth=2)
        axis.set(ylim=y_range, xlim=x_range)
    figure.supxlabel(x_label)
    figure.supylabel(y_label)
    return figure


def _pairs(data: xr.DataArray, x: str, names: list[str], x_label: str) -> Figure:
    figure, panels = _small_multiples(BETWEEN, columns=5, sharey=False)
    for pair, axis in zip(data.where(np.isfinite(data)), panels, strict=True):
        for number, curve in enumerate(pair):
            axis.plot(data[x], curve, linewidth=1.8, **style(number))
        axis.set_ylim(0, min(float(pair.max()), 8.0) * 1.05)
    figure.legend(panels[0].lines, names, loc="outside upper right", ncols=2)
    figure.supxlabel(x_label)
    figure.supylabel("divergence, nats where it is a logarithm")
    return figure


# ------------------------------------------------------------------------------------------ claims


def all_pairs(results: xr.Dataset, divergence: str) -> np.ndarray:
    """One divergence of every pair of the three families."""
    families = (results[name] for name in ("bernoulli", "location", "weights"))
    return np.concatenate([x.sel(divergence=divergence).values.ravel() for x in families])


@claim(source="the definition of the table", reruns=(WRONG,))
def inverse_slopes_invert(results: xr.Dataset) -> Finding:
    """f'(e^t) followed by its inverse is t, for every row but total variation, whose slope is a
    step; the largest difference over the range."""
    invertible = results.drop_sel(row="total_variation")
    return at_most(1e-9, abs(invertible.inverse - invertible.log_ratio).max())


@claim(source="the definition of the table", reruns=(WRONG,))
def never_negative(results: xr.Dataset) -> Finding:
    """The centered generators f, and the divergences of all pairs, are at least 0; the smallest of
    each. Customary ones, like u log u, are not."""
    smallest = min(all_pairs(results, name).min() for name in BETWEEN)
    return at_least(0, (results.value.min(), smallest))


@claim(source="the definition of a divergence", reruns=(WRONG,))
def zero_between_equals(results: xr.Dataset) -> Finding:
    """Between equal distributions every divergence is exactly 0: the largest. They are not equal
    any more when one has been stored in single precision."""
    return equals(0, abs(results.equal).max())


# The factor of sum |p - q|, total variation without its half, would be four times as large.
@claim(source=TSYBAKOV, wrong=({"factor": 2.2}, {"factor": 8.0}))
def pinsker(results: xr.Dataset, factor: float = 2.0) -> Finding:
    """KL is at least twice the square of total variation, and the factor 2 is the best one: the
    smallest difference over all pairs."""
    variation = all_pairs(results, "total_variation")
    return at_least(-1e-12, np.min(all_pairs(results, "kl") - factor * variation**2))


@claim(source=TSYBAKOV, wrong=({"below": "reverse_kl"},))
def kl_below_log_chi2(results: xr.Dataset, below: str = "kl") -> Finding:
    """KL is at most log(1 + χ²) of the same two distributions: the smallest difference."""
    chi2 = all_pairs(results, "pearson_chi2")
    difference = np.log1p(chi2) - all_pairs(results, below)
    return at_least(-1e-12, np.min(difference[np.isfinite(chi2)]))


# The other convention, sum (sqrt p - sqrt q)^2, is twice as large.
@claim(source=TSYBAKOV, wrong=({"convention": 2.0},))
def hellinger_brackets_total_variation(results: xr.Dataset, convention: float = 1.0) -> Finding:
    """With H² the squared Hellinger distance 1 - BC, H² is at most total variation, and that is at
    most H sqrt(2 - H²): the smaller of the two smallest differences."""
    square = convention * all_pairs(results, "squared_hellinger")
    variation = all_pairs(results, "total_variation")
    above = np.sqrt(square * (2 - square)) - variation
    return at_least(-1e-12, min(np.min(variation - square), np.min(above)))


@claim(
    source="Bretagnolle and Huber 1979; Tsybakov 2009, lemma 2.6",
    wrong=({"divergence": "jensen_shannon"},),
)
def bretagnolle_huber(results: xr.Dataset, divergence: str = "kl") -> Finding:
    """Total variation is at most sqrt(1 - exp(-KL)), below 1 also where Pinsker's bound is above
    it: the smallest difference over all pairs. Of Jensen-Shannon, at most log 2, that is false."""
    bound = np.sqrt(-np.expm1(-all_pairs(results, divergence)))
    return at_least(-1e-12, np.min(bound - all_pairs(results, "total_variation")))


@claim(
    source="van Erven and Harremoes 2014, theorem 3",
    wrong=({"order_one": "reverse_kl"}, {"order_one": "jeffreys"}),
)
def renyi_rises_with_its_order(results: xr.Dataset, order_one: str = "kl") -> Finding:
    """Rényi divergence of order 1/2, which is twice Bhattacharyya's, is at most KL, and that at
    most the one of order 2: the smallest difference."""
    half, one, two = (all_pairs(results, name) for name in ("bhattacharyya", order_one, "renyi"))
    finite = np.isfinite(two)
    return at_least(-1e-12, min(np.min(one - 2 * half), np.min((two - one)[finite])))


@claim(
    source="Csiszar 1967, the data processing inequality; van Erven and Harremoes 2014, theorem 1",
    wrong=({"also": "cauchy_schwarz"}, {"also": "bregman"}),
)
def coarser_is_never_farther(results: xr.Dataset, also: str = "bhattacharyya") -> Finding:
    """With all bins of either tail as one no row of the table is larger, nor are Rényi's and
    Bhattacharyya's: the largest rise. Cauchy-Schwarz and Bregman divergences do rise: they weigh
    a bin by its probability, and know no coarser law."""
    names = [*ROWS, "renyi", also]
    fine = results.location.sel(direction=DIRECTIONS[0], divergence=names)
    coarse = results.coarse.sel(divergence=names)
    return at_most(1e-12, (coarse - fine).where(np.isfinite(fine)).max())


@claim(
    source="Csiszar 1967: Taylor's formula of f at 1",
    reference=[*CURVATURES.values(), 1],
    wrong=({"own": "flat"},),
)
def smooth_rows_are_one_parabola(
    results: xr.Dataset, config: ConfigDict, own: str = "quartic"
) -> Finding:
    """Between mixtures of nearly one weight every smooth row is f''(1)/2 times Pearson's χ²: twice
    the quotient, to a twentieth, for the table and a row of one's own. One that is flat at 1 is
    not."""
    results = results.isel(intact=0)
    near = np.argmin(np.abs(results.weight.values - config.mixture_weight))
    there = results.isel(weight=near).sel(direction=DIRECTIONS[0]).weights
    values = [
        *there.sel(divergence=list(CURVATURES)),
        results.of_own.isel(weight=near).sel(own=own),
    ]
    measured = 2 * np.array(values) / there.sel(divergence="pearson_chi2").item()
    expected = np.array([*CURVATURES.values(), 1])
    return equals(expected, measured, tolerance=expected / 20)
