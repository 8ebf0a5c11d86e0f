"""The atlas of divergences: the table's generators, and values between simple families."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from ml_collections import ConfigDict

from jdiv import divergences, generators

ROWS = tuple(generators.TABLE)
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
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#c8c8c8"  # told apart by every kind of colour vision


def run(config: ConfigDict) -> dict[str, np.ndarray]:
    """All curves: generators `[row, points]`, divergences `[name, family, points]`."""
    t = jnp.linspace(*config.log_ratio_range, config.points)
    rows = [generators.get(name) for name in ROWS]
    results = {
        "log_ratio": t,
        "value": jnp.stack([row.value(t) for row in rows]),
        "slope": jnp.stack([row.slope(t) for row in rows]),
        "inverse": jnp.stack([row.inverse_slope(row.slope(t)) for row in rows]),
    }
    share = jnp.linspace(0.0, 1.0, config.points)
    results["bernoulli_p"] = share
    results["bernoulli"] = _between(
        jnp.stack([bernoulli(share)] * 2),
        jnp.stack([bernoulli(jnp.full_like(share, q)) for q in config.bernoulli_references]),
    )
    mixture = functools.partial(gaussian_mixture, config)
    centre = jnp.linspace(-4.0, 4.0, config.points)
    fixed = jnp.broadcast_to(mixture(config.mixture_weight), (config.points, config.bins))
    single = jax.vmap(functools.partial(gaussian, config))(centre)
    results["centre"], results["location"] = centre, _between_both_ways(single, fixed)
    weights = jnp.linspace(0.02, 0.98, config.points)
    results["weight"] = weights
    results["weights"] = _between_both_ways(jax.vmap(mixture)(weights), fixed)
    return {name: np.asarray(value) for name, value in results.items()}


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


def _between_both_ways(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    return jnp.stack([_between(p_logits, q_logits), _between(q_logits, p_logits)], axis=1)


def figures(config: ConfigDict, results: dict[str, np.ndarray]) -> dict[str, plt.Figure]:
    """Small multiples: one panel a divergence, the others of the same figure in grey behind."""
    t, slope = results["log_ratio"], results["slope"]
    everywhere = np.broadcast_to(t, slope.shape)
    of_t = "log-ratio t = log p/q"
    drawn = {
        "generators": _family(
            everywhere, results["value"], of_t, "f(e^t)", (-0.2, 4), "Centred generators f"
        ),
        "slopes": _family(everywhere, slope, of_t, "f'(e^t)", (-4, 4), "Slopes f'"),
        "inverse_slopes": _family(
            slope, results["inverse"], "slope s", "log-ratio t with f'(e^t) = s", (-4, 4),
            "Inverse slopes: a curve ends where f' takes no such value", x_range=(-4, 4),
        ),
    }  # fmt: skip
    labels = [f"q = {q}" for q in config.bernoulli_references]
    drawn["bernoulli"] = _pairs(
        results["bernoulli_p"], results["bernoulli"], labels, "p, the first parameter",
        "Divergence from Bernoulli(p) to Bernoulli(q)",
    )  # fmt: skip
    both_ways = ["D(moving‖fixed)", "D(fixed‖moving)"]
    drawn["location"] = _pairs(
        results["centre"], results["location"], both_ways, "centre of the moving Gaussian",
        "A Gaussian N(c, 1.5²) against a fixed mixture of two modes at ±2",
    )  # fmt: skip
    drawn["weights"] = _pairs(
        results["weight"], results["weights"], both_ways, "weight of the left mode",
        f"A mixture of moving weight against one of weight {config.mixture_weight}",
    )  # fmt: skip
    return drawn


def _family(xs, curves, x_label, y_label, y_range, title, x_range=None) -> plt.Figure:
    figure, axes = plt.subplots(
        3, 4, figsize=(10, 7), sharex=True, sharey=True, layout="constrained"
    )
    for name, x, curve, axis in zip(ROWS, xs, curves, axes.flat, strict=True):
        axis.plot(xs.T, curves.T, color=GREY, linewidth=0.6)
        axis.plot(x, curve, color=BLUE, linewidth=2)
        axis.set_title(TITLES[name], fontsize=10)
        axis.set(ylim=y_range, xlim=x_range)
    figure.supxlabel(x_label)
    figure.supylabel(y_label)
    figure.suptitle(title)
    return figure


def _pairs(x, curves, labels, x_label, title, ceiling=8.0) -> plt.Figure:
    figure, axes = plt.subplots(4, 4, figsize=(10, 8.6), sharex=True, layout="constrained")
    for name, pair, axis in zip(BETWEEN, curves, axes.flat, strict=True):
        finite = np.where(np.isfinite(pair), pair, np.nan)
        for curve, colour, style in zip(finite, (BLUE, ORANGE), ("-", "--"), strict=True):
            axis.plot(x, curve, color=colour, linestyle=style, linewidth=1.8)
        axis.set_title(TITLES[name], fontsize=10)
        axis.set_ylim(0, min(np.nanmax(finite), ceiling) * 1.05)
    figure.legend(axes[0, 0].lines, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.supxlabel(x_label)
    figure.supylabel(f"divergence (curves above {ceiling:g} leave the panel)")
    figure.suptitle(title)
    return figure


def table(results: dict[str, np.ndarray]) -> str:
    """Values at the quarter points of each family, as comma-separated lines."""
    count = len(results["bernoulli_p"])
    at = [count // 4, count // 2, 3 * count // 4]
    lines = ["divergence,family,x,first,second"]
    families = (("bernoulli", "bernoulli_p"), ("location", "centre"), ("weights", "weight"))
    for family, axis in families:
        for name, pair in zip(BETWEEN, results[family], strict=True):
            for i in at:
                x, first, second = results[axis][i], pair[0, i], pair[1, i]
                lines.append(f"{name},{family},{x:.6g},{first:.9g},{second:.9g}")
    return "\n".join(lines) + "\n"
