"""Closed forms between Gaussians, against sums over a grid, and what they tell of transport.

Pairs of correlated Gaussians in two dimensions, at random. The grid knows nothing of Gaussians: it
has the logarithms of two densities in cells, and sums over these, whose error falls faster than any
power of their size. What holds for all such pairs is looked at as well: which divergences survive a
change of coordinates, what a marginal keeps, and what a transport costs in nats.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import count, fraction, positive, seeds
from experiments.lab.claims import Finding, at_most, claim, equals
from experiments.lab.plots import Picture, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences as dv
from jdiv import generators
from jdiv.divergences import gaussian

AXES = {"correlated": fraction, "seed": seeds}
"""1 for covariances as they are drawn, 0 for closed forms that see their diagonals alone."""
FIELDS = {"pairs": count, "cells": axes.at_least(8), "reach": positive}
CLOSED = {
    "kl": gaussian.kl,
    "reverse_kl": gaussian.reverse_kl,
    "jeffreys": gaussian.jeffreys,
    "tsallis": lambda p, q: gaussian.tsallis(p, q, index=1.5),
    "pearson_chi2": gaussian.pearson_chi2,
    "neyman_chi2": gaussian.neyman_chi2,
    "squared_hellinger": gaussian.squared_hellinger,
    "bhattacharyya": gaussian.bhattacharyya,
}
DISTANCES = {
    "squared_wasserstein_2": gaussian.squared_wasserstein_2,
    "wasserstein_2": gaussian.wasserstein_2,
}
ALL = (*CLOSED, *DISTANCES)
VIEWS = ("as drawn", "sheared", "marginal", "p to another", "q to another")
SHEAR = np.array([[3.0, 1.0], [0.0, 0.5]])
"""A change of coordinates that keeps no distance."""
DIAGONAL = {"sweep.correlated": (0.0,)}


def covariance(key: Array, count: int) -> Array:
    """Positive definite matrices `[count, 2, 2]`, correlated and of several scales."""
    factor = jnp.tril(0.25 * jax.random.normal(key, (count, 2, 2)))
    factor = factor * (1 - jnp.eye(2))[None] + jnp.exp(factor) * jnp.eye(2)[None]
    return factor @ jnp.swapaxes(factor, 1, 2)


def seen(law: tuple[Array, Array], correlated: Array) -> gaussian.Gaussian:
    """The law with its correlations, in other coordinates, and its first marginal, `[3, pairs]`.

    The marginal is given a standard normal beside it, which no divergence sees.
    """
    mean, cov = law
    cov = jnp.where(jnp.eye(2, dtype=bool)[None], cov, correlated * cov)
    first = jnp.array([[[1.0, 0.0], [0.0, 0.0]]])
    shear = jnp.asarray(SHEAR)
    means = jnp.stack([mean, mean @ shear.T, mean * first[:, 0]])
    alone = first * cov + jnp.array([[[0.0, 0.0], [0.0, 1.0]]])
    return gaussian.from_covariance(means, jnp.stack([cov, shear @ cov @ shear.T, alone]))


def on_grid(config: ConfigDict, law: tuple[Array, Array]) -> Array:
    """Logits `[pairs, cells^2]` of the densities."""
    mean, cov = law
    line = jnp.linspace(-config.reach, config.reach, config.cells)
    cells = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(1, -1, 2)
    away = cells - mean[:, None]
    return -jnp.sum(away * (away @ jnp.linalg.inv(cov)), axis=-1) / 2


def by_sums(p_logits: Array, q_logits: Array) -> Array:
    """The divergences of `CLOSED`, of categories."""
    parameters = {"tsallis": {"index": 1.5}}
    rows = [x for x in CLOSED if x != "bhattacharyya"]
    rows = [generators.get(x, **parameters.get(x, {})) for x in rows]
    found = [dv.f_divergence(row, p_logits, q_logits) for row in rows]
    return jnp.stack([*found, dv.bhattacharyya(p_logits, q_logits)])


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Closed forms in three views, sums over the grid, and both sides of two inequalities."""
    of_means, of_p, of_q = jax.random.split(key, 3)
    p_mean, q_mean = 0.7 * jax.random.normal(of_means, (2, config.pairs, 2))
    p, q = (p_mean, covariance(of_p, config.pairs)), (q_mean, covariance(of_q, config.pairs))
    both = [seen(law, point["correlated"]) for law in (p, q)]
    # The q of the next pair is the third corner of a triangle.
    third = jax.tree.map(lambda x: jnp.roll(x[:1], 1, axis=1), both[1])
    of_p = jax.tree.map(lambda x, y: jnp.concatenate([x, x[:1], y[:1]]), *both)
    of_q = jax.tree.map(lambda y, z: jnp.concatenate([y, z, z]), both[1], third)
    closed = jnp.stack([of(of_p, of_q) for of in (*CLOSED.values(), *DISTANCES.values())])
    inverse = jnp.linalg.inv(q[1])
    difference = inverse - jnp.linalg.inv(p[1])
    drift = jnp.sum((inverse @ (p_mean - q_mean)[..., None]) ** 2, axis=(1, 2))
    spread = jnp.trace(difference @ p[1] @ difference, axis1=1, axis2=2)
    pair = {"pair": range(config.pairs)}
    return {
        "closed": labelled(closed, divergence=ALL, view=VIEWS, **pair),
        "sums": labelled(
            by_sums(on_grid(config, p), on_grid(config, q)), integral=tuple(CLOSED), **pair
        ),
        "relative": labelled(relative(p[1], q[1]), end=("least", "largest"), **pair),
        "scales": labelled(jnp.linalg.eigvalsh(q[1]).T, end=("least", "largest"), **pair),
        "fisher": labelled(drift + spread, **pair),
    }


def relative(p: Array, q: Array) -> Array:
    """The least and the largest variance of p where q is the standard normal, `[2, pairs]`."""
    inverse = jnp.linalg.inv(jnp.linalg.cholesky(q))
    return jnp.linalg.eigvalsh(inverse @ p @ jnp.swapaxes(inverse, 1, 2)).T


# ---------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Closed forms by sums, and the bound of transport."""
    figure, (left, right) = panels(2)
    there = results.isel(correlated=0)
    for number, name in enumerate(("kl", "reverse_kl", "pearson_chi2", "squared_hellinger")):
        one = there.sel(divergence=name, integral=name, view="as drawn")
        kept = comparable(there) | (name not in LIMITED)
        look = style(number)
        left.plot(
            one.sums.where(kept).values.ravel(), one.closed.where(kept).values.ravel(),
            MARKS[number], color=look["color"], ms=4, label=NAMES[name],
        )  # fmt: skip
    ends = (1e-2, 1e2)
    left.plot(ends, ends, color="black", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlabel="sum over the grid", ylabel="closed form")
    left.set(xlim=ends, ylim=ends)
    left.legend(fontsize="small", loc="upper left")
    cost = drawn(there, "squared_wasserstein_2")
    for number, name in enumerate(("kl", "reverse_kl")):
        nats = drawn(there, name)
        bound = 2 * there.scales.sel(end="largest") * nats
        right.plot(
            bound.values.ravel(), cost.values.ravel(), MARKS[number],
            color=style(number)["color"], ms=4, label=NAMES[name],
        )  # fmt: skip
    right.plot(ends, ends, color="black", linewidth=0.8, label="equal")
    right.set(xscale="log", yscale="log", xlabel="2 λ D, λ the largest variance of q")
    right.set(ylabel="squared Wasserstein-2 distance", xlim=ends, ylim=ends)
    right.legend(fontsize="small", loc="upper left")
    return {
        "gaussians": Picture(
            figure,
            "Random pairs of correlated Gaussians. Left: closed forms are the sums over a grid"
            " (Pearson's where it is finite by a margin). Right: the squared transport distance is"
            " never above 2 λ KL(p‖q), Talagrand's bound; by KL(q‖p) it is, left of the line.",
        )
    }


NAMES = {
    "kl": "KL(p‖q)",
    "reverse_kl": "KL(q‖p)",
    "pearson_chi2": "Pearson χ²",
    "squared_hellinger": "squared Hellinger",
}
MARKS = "o", "^", "s", "x"

# ------------------------------------------------------------------------------------------ claims

LIMITED = ("pearson_chi2", "neyman_chi2", "tsallis")
"""Infinite for some pairs, and slow to come to an end on a grid near these."""
TALAGRAND = "Talagrand 1996; Otto and Villani 2000, theorem 1"


def comparable(results: xr.Dataset) -> xr.DataArray:
    """Pairs whose integrands all end well within the grid."""
    least, largest = (results.relative.sel(end=end) for end in ("least", "largest"))
    return (least > 1 / 1.5) & (largest < 1.5)


def drawn(results: xr.Dataset, name: str, view: str = "as drawn") -> xr.DataArray:
    """One closed form of every pair."""
    return results.closed.sel(divergence=name, view=view)


@claim(source="the integrals, as sums over cells", reruns=(DIAGONAL,), wrong=({"of": "swapped"},))
def closed_forms_are_the_integrals(results: xr.Dataset, of: str = "as drawn") -> Finding:
    """Eight closed forms against sums over the cells of a grid: the largest relative error. What
    is infinite for some pairs is compared where no variance of p is below 1/1.5 or above 1.5 of
    q's. With diagonal covariances, as a model without correlations has them, they are off."""
    names = list(CLOSED)
    turned = [{"kl": "reverse_kl", "reverse_kl": "kl"}.get(x, x) for x in names]
    taken = names if of == "as drawn" else turned
    closed = results.closed.sel(view="as drawn", divergence=taken)
    closed = closed.assign_coords(divergence=names)
    kept = comparable(results) | ~closed.divergence.isin(LIMITED)
    return at_most(
        1e-9, np.abs(closed / results.sums.rename(integral="divergence") - 1).where(kept).max()
    )


@claim(
    source="Nielsen and Nock 2014: the integral of p^2/q exists where 2 Q - P is positive definite",
    reruns=(DIAGONAL,),
    wrong=({"limit": 3.0},),
)
def chi2_is_infinite_where_p_is_twice_as_wide(results: xr.Dataset, limit: float = 2.0) -> Finding:
    """Pearson's χ² is infinite for exactly the pairs in which p has, in some direction, twice the
    variance of q or more; Neyman's for those in which q has: how many pairs are otherwise. Both
    kinds are among the pairs."""
    wide = results.relative.sel(end="largest") >= limit
    narrow = results.relative.sel(end="least") <= 1 / limit
    pearson, neyman = (np.isinf(drawn(results, f"{x}_chi2")) for x in ("pearson", "neyman"))
    differ = (pearson != wide).sum() + (neyman != narrow).sum()
    return equals((0, 1), (differ, float(0 < pearson.mean() < 1)))


@claim(
    source="Csiszar 1967: densities change by one factor",
    wrong=({"also": "wasserstein_2"},),
)
def coordinates_do_not_matter(results: xr.Dataset, also: str = "bhattacharyya") -> Finding:
    """Closed forms of both Gaussians sheared and stretched are those of the Gaussians, where they
    are finite: the largest relative change. A transport distance changes: it has units."""
    names = [*(x for x in CLOSED if x not in LIMITED), also]
    before, after = (results.closed.sel(view=view) for view in ("as drawn", "sheared"))
    change = np.abs(after / before - 1)
    safe = change.sel(divergence=list(LIMITED)).where(comparable(results))
    return at_most(1e-9, max(change.sel(divergence=names).max(), safe.max()))


@claim(
    source="Csiszar 1967, the data processing inequality; Villani 2009, chapter 6, for transport",
    wrong=({"whole": "marginal", "part": "as drawn"},),
)
def a_marginal_is_never_farther(
    results: xr.Dataset, whole: str = "as drawn", part: str = "marginal"
) -> Finding:
    """Of the first coordinate alone no f-divergence is larger than of both, nor is a Wasserstein
    distance: the largest excess, relative."""
    before, after = (results.closed.sel(view=view) for view in (whole, part))
    return at_most(1e-9, (after / before - 1).where(np.isfinite(before + after)).max())


@claim(source=TALAGRAND, wrong=({"nats": "reverse_kl"}, {"end": "least"}))
def transport_costs_nats(results: xr.Dataset, nats: str = "kl", end: str = "largest") -> Finding:
    """The squared Wasserstein distance is at most 2 λ KL(p‖q), λ the largest variance of q: the
    largest quotient. With KL(q‖p), or the least variance, it is not."""
    bound = 2 * results.scales.sel(end=end) * drawn(results, nats)
    return at_most(1, (drawn(results, "squared_wasserstein_2") / bound).max())


@claim(source="Otto and Villani 2000, theorem 3 (HWI)", wrong=({"end": "least"},))
def nats_cost_transport(results: xr.Dataset, end: str = "largest") -> Finding:
    """KL(p‖q) is at most W sqrt(I) - W²/(2 λ), with the relative Fisher information I and λ the
    largest variance of q: the largest excess. With the least variance it is not."""
    distance = drawn(results, "wasserstein_2")
    bound = distance * np.sqrt(results.fisher) - distance**2 / 2 / results.scales.sel(end=end)
    return at_most(1e-12, (drawn(results, "kl") - bound).max())


@claim(source="Villani 2009, chapter 6", wrong=({"distance": "squared_wasserstein_2"},))
def wasserstein_is_a_metric(results: xr.Dataset, distance: str = "wasserstein_2") -> Finding:
    """The way from p to q is never longer than that by a third Gaussian: the largest quotient. For
    squared distances it is."""
    detour = sum(drawn(results, distance, view) for view in VIEWS[-2:])
    return at_most(1 + 1e-12, (drawn(results, distance) / detour).max())
