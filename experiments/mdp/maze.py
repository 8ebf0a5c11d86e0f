"""The maze: which regulariser averages the errors of value iteration.

Value iteration with a standard normal error on each action value, without a regulariser, with KL to
the previous policy, with entropy, and with both; all are Munchausen value iteration with
temperature kl + entropy. Setting and published numbers: case study 2 of the notebook that
reproduces Vieillard et al. 2020 (arXiv:2003.14089) with ShinRL (arXiv:2112.04123), one seed.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import Picture
from jdiv.mdp import environments, model, operators, value_iteration

TRACED = ("variant", "kl", "entropy", "seed")
DIMS = {"gap": ("iteration",), "score": ("iteration",)}
METHODS = ("none", "KL", "entropy", "KL and entropy")
HORIZON = 25
PUBLISHED_GAP = (9.670, 1.188, 9.621, 6.765)
PUBLISHED_SCORE = (2.066, 10.933, 2.065, 5.076)
SOURCE = "ShinRL, reproduction notebook of Vieillard et al. 2020, case study 2"


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Iterations from 1."""
    return {"iteration": np.arange(1, config.iterations + 1)}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses coefficients that are none."""
    for name in ("kl", "entropy"):
        if point[name] < 0:
            raise ValueError(f"config.sweep.{name} must not be negative, got {point[name]}")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Gap and undiscounted return of the greedy policy of each iteration."""
    maze = environments.maze(walls=config.walls)
    kl, entropy = point["kl"] * config.kl_factor, point["entropy"]
    temperature = kl + entropy
    alpha = kl / jnp.where(temperature == 0, 1, temperature)
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
    return run.measured | {"optimal": maze.start @ best_score}


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Return and gap by iteration."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8))
    iteration = results.iteration
    styles = ("-", "-", "--", "-.")
    for variant, name in enumerate(METHODS):
        here = results.sel(variant=variant)
        for axis, what in zip(axes, (here.score, here.gap), strict=True):
            (line,) = axis.plot(iteration, what.mean("seed"), styles[variant], label=name)
            low, high = what.quantile((0.1, 0.9), "seed")
            axis.fill_between(iteration, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes[0].axhline(results.optimal.mean().item(), color="black", linewidth=1, linestyle=":")
    axes[0].set(xlabel="iteration", ylabel=f"return of {HORIZON} steps (dotted: the best)")
    axes[1].set(xlabel="iteration", ylabel="optimality gap, max |q* - q|")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return {
        "learning": Picture(
            figure,
            "The greedy policy of each iteration, mean and 10th to 90th percentile over seeds. With"
            " KL to the previous policy the errors average out and the return becomes the best one;"
            " entropy alone does nothing; both together are in between.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Mean gaps in the reference's ranges, the optimal return, and their order."""
    gap = results.gap.mean(("iteration", "seed")).values
    score = results.score.mean(("iteration", "seed")).values
    few = {"sweep.seed": (0, 1)}
    return [
        Claim(
            "mean-gaps",
            SOURCE,
            "The mean gap over iterations without a regulariser, with KL, with entropy and with"
            " both; the bounds are the ranges of ten single runs of an independent recomputation.",
            gap,
            low=(9.3, 0.7, 9.3, 6.1),
            high=(10.1, 1.7, 10.0, 7.0),
            controls=({"kl_factor": 0.0, **few}, {"noise": 0.0, **few}),
            published=PUBLISHED_GAP,
        ),
        Claim(
            "mean-returns-are-ordered",
            SOURCE,
            "The mean return with KL is the largest, with both it is between, and entropy alone is"
            " no better than nothing: the three differences, in this order, and minus the last.",
            [score[1] - score[3], score[3] - score[0], -abs(score[2] - score[0])],
            low=(2.0, 1.0, -1.0),
            controls=({"kl_factor": 0.0, **few},),
            published=[
                PUBLISHED_SCORE[1] - PUBLISHED_SCORE[3],
                PUBLISHED_SCORE[3] - PUBLISHED_SCORE[0],
                -abs(PUBLISHED_SCORE[2] - PUBLISHED_SCORE[0]),
            ],
        ),
        Claim(
            "optimal-return",
            SOURCE,
            "The best return of 25 steps, with the released code's mistake about walls.",
            results.optimal.mean().item(),
            low=11.97327 - 1e-4,
            high=11.97327 + 1e-4,
            controls=({"walls": "#", **few},),
            published=11.973273,
        ),
    ]
