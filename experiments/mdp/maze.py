"""The maze: which regularizer averages the errors of value iteration.

Value iteration with a standard normal error on each action value, without a regularizer, with KL to
the previous policy, with entropy, and with both; all are Munchausen value iteration with
temperature kl_weight + entropy_weight. Setting and published numbers: case study 2 of the notebook
that reproduces Vieillard et al. 2020 (arXiv:2003.14089) with ShinRL (arXiv:2112.04123), one seed.
"""

import jax
import jax.numpy as jnp
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, labels, non_negative, one_of, seeds
from experiments.lab.claims import Finding, at_least, between, claim, equals
from experiments.lab.plots import Picture, curve, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv.mdp import environments, model, operators, value_iteration

AXES = {
    "regularizer": labels,
    "kl_weight": non_negative,
    "entropy_weight": non_negative,
    "seed": seeds,
}
FIELDS = {
    "iterations": count,
    "kl_factor": non_negative,
    "noise": non_negative,
    "walls": one_of(("S", "#")),
}
HORIZON = 25
GAPS = (9.670, 1.188, 9.621, 6.765)
SCORES = (2.066, 10.933, 2.065, 5.076)
OPTIMAL = 11.973273
SOURCE = "ShinRL, reproduction notebook of Vieillard et al. 2020, case study 2"
FEW = {"sweep.seed": (0, 1)}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Gap and undiscounted return of the greedy policy of each iteration."""
    maze = environments.maze(walls=config.walls)
    kl_weight = point["kl_weight"] * config.kl_factor
    temperature = kl_weight + point["entropy_weight"]
    alpha = kl_weight / jnp.where(temperature == 0, 1, temperature)
    best_score, _ = model.finite_horizon_optimum(maze, HORIZON)
    _, best = model.finite_horizon_optimum(maze, HORIZON, discount=maze.discount)

    def measure(at: operators.Iterate) -> dict[str, Array]:
        policy = jnp.exp(operators.greedy(at.q).log_policy)
        score = model.finite_horizon_value(maze, policy, HORIZON)
        after = model.finite_horizon_value(maze, policy, HORIZON - 1, discount=maze.discount)
        gap = jnp.max(jnp.abs(best[0] - model.action_values(maze, after)))
        return {"gap": gap, "score": maze.start @ score}

    run = value_iteration.run(
        maze,
        operators.munchausen(alpha, temperature),
        config.iterations,
        errors=config.noise * jax.random.normal(key, (config.iterations, *maze.reward.shape)),
        measure=measure,
    )
    iteration = range(1, config.iterations + 1)
    by_iteration = {name: labelled(x, iteration=iteration) for name, x in run.measured.items()}
    return by_iteration | {"optimal": maze.start @ best_score}


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Return and gap by iteration."""
    figure, axes = panels(2)
    for number, name in enumerate(results.regularizer.values):
        here = results.sel(regularizer=name)
        for axis, what in zip(axes, (here.score, here.gap), strict=True):
            curve(axis, "iteration", what, over="seed", label=name, **style(number))
    axes[0].axhline(results.optimal.mean().item(), color="black", linewidth=1, linestyle=":")
    axes[0].set(xlabel="iteration", ylabel=f"return of {HORIZON} steps (dotted: the best)")
    axes[1].set(xlabel="iteration", ylabel="optimality gap, max |q* - q|")
    legend_above(figure, axes[0], columns=4)
    return {
        "learning": Picture(
            figure,
            "The greedy policy of each iteration, mean and 10th to 90th percentile over seeds. With"
            " KL to the previous policy the errors average out and the return becomes the best one;"
            " entropy alone does nothing; both together are in between.",
        )
    }


@claim(
    source=SOURCE,
    published=GAPS,
    reruns=({"kl_factor": 0.0, **FEW}, {"noise": 0.0, **FEW}),
)
def mean_gaps(results: xr.Dataset) -> Finding:
    """The mean gap over iterations without a regularizer, with KL, with entropy and with both; the
    bounds are the ranges of ten single runs of an independent recomputation."""
    gap = results.gap.mean(("iteration", "seed"))
    return between((9.3, 0.7, 9.3, 6.1), gap, (10.1, 1.7, 10.0, 7.0))


@claim(
    source=SOURCE,
    published=(SCORES[1] - SCORES[3], SCORES[3] - SCORES[0], -abs(SCORES[2] - SCORES[0])),
    reruns=({"kl_factor": 0.0, **FEW},),
)
def mean_returns_are_ordered(results: xr.Dataset) -> Finding:
    """The mean return with KL is the largest, with both it is between, and entropy alone is no
    better than nothing: the three differences, in this order, and minus the last."""
    none, kl, entropy, both = results.score.mean(("iteration", "seed")).values
    return at_least((2.0, 1.0, -1.0), (kl - both, both - none, -abs(entropy - none)))


@claim(
    source=SOURCE, published=OPTIMAL, reruns=({"walls": "#", **FEW},), needs={"regularizer": ...}
)
def optimal_return(results: xr.Dataset) -> Finding:
    """The best return of 25 steps, with the released code's mistake about walls."""
    return equals(OPTIMAL, results.optimal.mean(), tolerance=1e-4)
