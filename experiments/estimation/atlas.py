"""The atlas of divergences: the table's generators, and values between simple families.

It reproduces no paper; its claims are the textbook order relations between the rows.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, GREY, Picture
from jdiv import checks, divergences, generators

TRACED = ()
DIMS = {
    "value": ("row", "log_ratio"),
    "slope": ("row", "log_ratio"),
    "inverse": ("inverse_of", "row", "log_ratio"),
    "bernoulli": ("divergence", "reference", "p"),
    "location": ("divergence", "direction", "centre"),
    "weights": ("divergence", "direction", "weight"),
    "equal": ("divergence", "centre"),
}
ROWS = tuple(generators.TABLE)
INVERSES = "each", "kl"  # each row's own, or that of KL for all
BETWEEN = (*ROWS, "renyi", "bhattacharyya", "cauchy_schwarz", "bregman")
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
    "renyi": "Rényi, order 2",
    "bhattacharyya": "Bhattacharyya",
    "cauchy_schwarz": "Cauchy-Schwarz",
    "bregman": "Bregman, a = 2",
}


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Names of the rows, and the points of the curves."""
    return {
        "row": list(ROWS),
        "inverse_of": list(INVERSES),
        "divergence": list(BETWEEN),
        "direction": ["moving‖fixed", "fixed‖moving"],
        "log_ratio": np.linspace(*config.log_ratio_range, config.points),
        "reference": list(config.bernoulli_references),
        "p": np.linspace(0, 1, config.points),
        "centre": np.linspace(-4, 4, config.points),
        "weight": np.linspace(0.02, 0.98, config.points),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown rows and curves without points."""
    if config.points < 3:
        raise ValueError(f"config.points must be at least 3, got {config.points}")
    checks.known("config.claims.inverse_of", config.claims.inverse_of, INVERSES)
    checks.known("config.claims.equal", config.claims.equal, ("equal", "location"))
    if not all(0 < q < 1 for q in config.bernoulli_references):
        raise ValueError(
            f"config.bernoulli_references must be in (0, 1), got {config.bernoulli_references}"
        )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """All curves."""
    at = {
        name: jnp.asarray(labels)
        for name, labels in coordinates(config).items()
        if isinstance(labels, np.ndarray)
    }
    t, share = at["log_ratio"], at["p"]
    rows = [generators.get(name) for name in ROWS]
    slopes = [row.slope(t) for row in rows]
    shares = jnp.broadcast_to(share, (len(config.bernoulli_references), config.points))
    references = jnp.asarray(config.bernoulli_references)[:, None] * jnp.ones_like(shares)
    mixture = functools.partial(gaussian_mixture, config)
    fixed = jnp.broadcast_to(mixture(config.mixture_weight), (config.points, config.bins))
    moving = jax.vmap(functools.partial(gaussian, config))(at["centre"])
    weighted = jax.vmap(mixture)(at["weight"])
    # All pairs at once: every divergence is compiled once for them.
    pairs = _between(
        jnp.stack([moving, fixed, weighted, fixed, moving]),
        jnp.stack([fixed, moving, fixed, weighted, moving]),
    )
    return {
        "value": jnp.stack([row.value(t) for row in rows]),
        "slope": jnp.stack(slopes),
        "inverse": jnp.stack([_inverses(row, s) for row, s in zip(rows, slopes, strict=True)], 1),
        "bernoulli": _between(bernoulli(shares), bernoulli(references)),
        "location": pairs[:, :2],
        "weights": pairs[:, 2:4],
        "equal": pairs[:, 4],
    }


def _inverses(row: generators.Generator, slope: jax.Array) -> jax.Array:
    """`[2, ...]` by `INVERSES`."""
    return jnp.stack([row.inverse_slope(slope), generators.kl().inverse_slope(slope)])


def bernoulli(share: jax.Array) -> jax.Array:
    """Logits `[..., 2]` of a Bernoulli distribution; a share of 0 or 1 is an exact zero."""
    return jnp.log(jnp.stack([share, 1 - share], axis=-1))


def _grid(config: ConfigDict) -> jax.Array:
    return jnp.linspace(-8.0, 8.0, config.bins)


def gaussian(config: ConfigDict, centre: jax.Array) -> jax.Array:
    """Logits `[bins]` of N(centre, 1.5^2) on the grid."""
    return -(((_grid(config) - centre) / 1.5) ** 2) / 2


def gaussian_mixture(config: ConfigDict, weight: jax.Array) -> jax.Array:
    """Logits `[bins]` of two modes at -m and m, `weight` on the left one."""
    log_density = [
        -(((_grid(config) - mode) / config.mixture_scale) ** 2) / 2
        for mode in (-config.mixture_mode, config.mixture_mode)
    ]
    return jnp.logaddexp(jnp.log(weight) + log_density[0], jnp.log1p(-weight) + log_density[1])


def _between(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """Every divergence, stacked in front."""
    return jnp.stack([getattr(divergences, name)(p_logits, q_logits) for name in BETWEEN])


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Small multiples: one panel a divergence."""
    t, slope = results.log_ratio.values, results.slope.values
    everywhere = np.broadcast_to(t, slope.shape)
    of_t = "log-ratio t = log p/q"
    labels = [f"q = {q}" for q in config.bernoulli_references]
    both_ways = [f"D({direction})" for direction in results.direction.values]
    others = "In grey the other rows."
    return {
        "generators": Picture(
            _family(everywhere, results.value.values, of_t, "f(e^t)", (-0.2, 4)),
            f"The centred generators f: none is negative, and all touch 0 at p = q. {others}",
        ),
        "slopes": Picture(
            _family(everywhere, slope, of_t, "f'(e^t)", (-4, 4)),
            "Slopes f'. One that is bounded above (Jensen-Shannon, Le Cam, total variation) cannot"
            f" follow a large value; one that is bounded below lets actions be dropped. {others}",
        ),
        "inverse_slopes": Picture(
            _family(
                slope, results.inverse.sel(inverse_of="each").values, "slope s",
                "log-ratio t with f'(e^t) = s", (-4, 4), x_range=(-4, 4),
            ),
            "Inverse slopes, from which regularised policies are made: a curve ends where f' takes"
            f" no such value. {others}",
        ),
        "bernoulli": Picture(
            _pairs(results.p.values, results.bernoulli.values, labels, "p, the first parameter"),
            "D(Bernoulli(p)‖Bernoulli(q)) for two q. Rows with an infinite slope at infinity or an"
            " infinite f(0) rise without bound at the ends. Curves leave the panel above 8.",
        ),
        "location": Picture(
            _pairs(
                results.centre.values, results.location.values, both_ways,
                "centre of the moving Gaussian",
            ),
            "A Gaussian N(c, 1.5²) against a fixed mixture of two modes at ±2. KL(moving‖fixed) is"
            " smallest towards the heavier mode, KL(fixed‖moving) at its mean. Curves leave the"
            " panel above 8.",
        ),
        "weights": Picture(
            _pairs(
                results.weight.values, results.weights.values, both_ways,
                "weight of the left mode",
            ),
            f"A mixture of moving weight against one of weight {config.mixture_weight}: close to"
            " the minimum the smooth rows are one parabola up to a factor.",
        ),
    }  # fmt: skip


def _family(xs, curves, x_label, y_label, y_range, x_range=None) -> plt.Figure:
    figure, axes = plt.subplots(3, 4, figsize=(10, 7), sharex=True, sharey=True)
    for name, x, curve, axis in zip(ROWS, xs, curves, axes.flat, strict=True):
        axis.plot(xs.T, curves.T, color=GREY, linewidth=0.6)
        axis.plot(x, curve, color=COLORS[0], linewidth=2)
        axis.set_title(TITLES[name], fontsize=10)
        axis.set(ylim=y_range, xlim=x_range)
    figure.supxlabel(x_label)
    figure.supylabel(y_label)
    return figure


def _pairs(x, curves, labels, x_label, ceiling=8.0) -> plt.Figure:
    figure, axes = plt.subplots(4, 4, figsize=(10, 8.6), sharex=True)
    for name, pair, axis in zip(BETWEEN, curves, axes.flat, strict=True):
        finite = np.where(np.isfinite(pair), pair, np.nan)
        for curve, colour, style in zip(finite, COLORS, ("-", "--"), strict=False):
            axis.plot(x, curve, color=colour, linestyle=style, linewidth=1.8)
        axis.set_title(TITLES[name], fontsize=10)
        axis.set_ylim(0, min(np.nanmax(finite), ceiling) * 1.05)
    figure.legend(axes[0, 0].lines, labels, loc="outside upper right", ncols=2)
    figure.supxlabel(x_label)
    figure.supylabel("divergence, nats where it is a logarithm")
    return figure


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Slopes are inverted, nothing is negative, and the rows are ordered as the textbooks say."""
    invertible = results.drop_sel(row="total_variation")  # a step has no inverse
    invertible = invertible.sel(inverse_of=config.claims.inverse_of)
    families = [results[name] for name in ("bernoulli", "location", "weights")]
    of = {
        name: np.concatenate([family.sel(divergence=name).values.ravel() for family in families])
        for name in BETWEEN
    }
    kl, chi2, variation = of[config.claims.below_chi2], of["pearson_chi2"], of["total_variation"]
    hellinger = of["squared_hellinger"]
    finite = np.isfinite(chi2)
    tilt = np.array([float(generators.get(name).slope_at_one) for name in ROWS])
    tilt = config.claims.tilt * tilt[:, None] * np.expm1(results.log_ratio.values)
    source = "Tsybakov 2009, Introduction to nonparametric estimation, section 2.4"
    return [
        Claim(
            "inverse-slopes-invert",
            "the definition of the table",
            "f'(e^t) followed by its inverse is t, for every row but total variation, whose slope"
            " is a step; the largest difference over the range.",
            np.max(np.abs(invertible.inverse - invertible.log_ratio)).item(),
            high=1e-9,
            controls=({"claims.inverse_of": "kl"},),
        ),
        Claim(
            "never-negative",
            "the definition of the table",
            "The centred generators f, and the divergences of all pairs, are at least 0; the"
            " smallest of each. Customary ones, like u log u, are not: f'(1) (u - 1) more.",
            [np.min(results.value.values + tilt), min(np.min(values) for values in of.values())],
            low=0,
            controls=({"claims.tilt": 1.0},),
        ),
        Claim(
            "zero-between-equals",
            "the definition of a divergence",
            "Between equal distributions every divergence is exactly 0: the largest.",
            np.max(np.abs(results[config.claims.equal])).item(),
            high=0,
            controls=({"claims.equal": "location"},),
        ),
        Claim(
            "pinsker",
            source,
            "KL is at least twice the square of total variation, and the factor 2 is the best one:"
            " the smallest difference over all pairs.",
            np.min(of["kl"] - config.claims.pinsker * variation**2),
            low=-1e-12,
            controls=({"claims.pinsker": 2.2},),
        ),
        Claim(
            "kl-below-log-chi2",
            source,
            "KL is at most log(1 + χ²) of the same two distributions: the smallest difference.",
            np.min(np.log1p(chi2[finite]) - kl[finite]),
            low=-1e-12,
            controls=({"claims.below_chi2": "reverse_kl"},),
        ),
        Claim(
            "hellinger-brackets-total-variation",
            source,
            "With H² the squared Hellinger distance 1 - BC, H² is at most total variation, and that"
            " is at most H sqrt(2 - H²): the smaller of the two smallest differences.",
            min(
                np.min(variation - config.claims.hellinger_scale * hellinger),
                np.min(np.sqrt(hellinger * (2 - hellinger)) - variation),
            ),
            low=-1e-12,
            controls=({"claims.hellinger_scale": 2.0},),
        ),
    ]
