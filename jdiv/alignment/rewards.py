"""Rewards from comparisons, ensembles of them, and what to subtract for not being sure.

Comparisons are fitted as Bradley and Terry have it, `P(i beats j) = sigmoid(r_i - r_j)`: by
gradients (`bradley_terry_loss`), from win counts (`bradley_terry`), or linear in features
(`linear_bradley_terry`). Optimized hard enough, one reward model is exploited where it errs most.
Ensembles that take the worst member or subtract the variance are cautious there; a mean is not.
Members that agree by their training alone are made to differ by `nuclear_diversity`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jdiv import checks, roots
from jdiv.types import PerPair, Rewards

# ----------------------------------------------------------------------------------- Bradley-Terry


def bradley_terry_loss(chosen: Rewards, rejected: Rewards) -> PerPair:
    """`-log sigmoid(r_chosen - r_rejected)` of each pair. Shapes: any, twice the same, to the same.

    >>> print(f"{bradley_terry_loss(jnp.array(1.0), jnp.array(0.0)):.4f}")
    0.3133

    Reference: Bradley and Terry 1952; Ouyang et al. 2022 (arXiv:2203.02155), equation 1.
    """
    chosen, rejected = checks.alike(chosen=chosen, rejected=rejected)
    return jax.nn.softplus(rejected - chosen)


class BradleyTerry(NamedTuple):
    """Rewards fitted to win counts, with the evidence that they are the likeliest.

    Fields:
        rewards: `[..., n]` with mean 0: only differences matter.
        log_likelihood: `[...]` at these rewards.
        residual: `[...]` the largest difference of what an answer wins against the odds and what it
            loses against them, over their sum: these are equal where the likelihood is largest.
        iterations: `[]` Newton steps, one number for the whole batch.
        converged: `[...]` whether the residual is rounding.
    """

    rewards: Array
    log_likelihood: Array
    residual: Array
    iterations: Array
    converged: Array


def bradley_terry(wins: ArrayLike) -> BradleyTerry:
    """The likeliest rewards with `P(i beats j) = sigmoid(r_i - r_j)`, from counts `wins[i, j]`.

    Concave, by `roots.damped_newton`, which cannot overshoot; r has mean 0. The maximum exists
    exactly if everyone has beaten everyone, directly or through others: data that fall apart are
    refused, and have rewards NaN if they are traced. Half a win each is a tie.
    Shapes: `[..., n, n]`, the diagonal does not count; integers are taken. Call it under jit.

    >>> fit = bradley_terry(jnp.array([[0.0, 3.0], [1.0, 0.0]]))
    >>> print(f"{fit.rewards[0] - fit.rewards[1]:.4f}", fit.converged)  # log 3
    1.0986 True

    Reference: Ford 1957 for existence; Hunter 2004 for the likelihood.
    """
    wins, connected = _counts(wins)
    n = wins.shape[-1]
    played = wins + jnp.swapaxes(wins, -1, -2)
    difference = lambda r: r[..., :, None] - r[..., None, :]
    resolution = 64 * n * jnp.finfo(wins.dtype).eps

    def surplus(r: Array) -> tuple[Array, Array]:
        """Wins less expected ones, the gradient, and its size in terms of the sum.

        As wins against the odds less losses against them it keeps its digits for any odds.
        """
        upset = wins * jax.nn.sigmoid(-difference(r))
        won, lost = jnp.sum(upset, axis=-1), jnp.sum(upset, axis=-2)
        return won - lost, jnp.max(jnp.abs(won - lost) / (won + lost), axis=-1)

    def newton(r: Array) -> tuple[Array, Array, Array]:
        weight = played * jax.nn.sigmoid(difference(r)) * jax.nn.sigmoid(-difference(r))
        laplacian = jnp.where(_diagonal(wins), jnp.sum(weight, axis=-1)[..., None], -weight)
        # All ones are its null space: any multiple of them fixes the gauge.
        scale = jnp.sum(weight, axis=(-1, -2))[..., None, None] / n**2
        gradient, residual = surplus(r)
        move = jnp.linalg.solve(laplacian + scale, gradient[..., None])[..., 0]
        distance = jnp.max(move, axis=-1) - jnp.min(move, axis=-1)
        # A row that is NaN need not be waited for.
        return move, distance, (residual <= resolution) | ~jnp.isfinite(distance)

    start = jnp.where(connected[..., None], jnp.zeros_like(wins[..., 0]), jnp.nan)
    rewards, _, iterations = roots.damped_newton(newton, start)
    rewards -= jnp.mean(rewards, axis=-1, keepdims=True)
    residual = surplus(rewards)[1]
    return BradleyTerry(
        rewards=rewards,
        log_likelihood=-jnp.sum(wins * jax.nn.softplus(-difference(rewards)), axis=(-1, -2)),
        residual=residual,
        iterations=iterations,
        converged=residual <= resolution,
    )


def _counts(wins: ArrayLike) -> tuple[Array, Array]:
    """Checked counts with 0 on the diagonal, and whether everyone beats everyone, `[...]`."""
    wins = _numbers("wins", wins)
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise ValueError(f"wins must be square, [..., n, n], got shape {tuple(wins.shape)}")
    wins = jnp.where(_diagonal(wins), 0, wins)
    wins = jnp.asarray(checks.not_negative("wins", wins))
    reached = (wins > 0) | _diagonal(wins)
    for _ in range(wins.shape[-1].bit_length()):
        steps = reached.astype(jnp.float32)
        reached = steps @ steps > 0
    connected = jnp.all(reached, axis=(-1, -2))
    if not isinstance(wins, jax.core.Tracer) and not np.all(connected):
        raise ValueError("wins must let everyone beat everyone, if through others: it falls apart")
    return wins, connected


def _numbers(name: str, x: ArrayLike, dtype: DTypeLike = float) -> Array:
    """Counts or outcomes: floating-point numbers, integers or booleans, as floating-point ones."""
    x = jnp.asarray(x)
    if x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(dtype)
    return checks.as_float(name, x)


def _diagonal(matrix: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=bool), matrix.shape)


class LinearBradleyTerry(NamedTuple):
    """Weights fitted to comparisons of features, with the evidence that they are the likeliest.

    Fields:
        weights: `[d]` with reward `<weights, features>`.
        residual: `[]` the largest derivative of the penalized log-likelihood, over the sum of the
            sizes of its terms.
        iterations: `[]` Newton steps.
        converged: `[]` whether the residual is rounding.
    """

    weights: Array
    residual: Array
    iterations: Array
    converged: Array


def linear_bradley_terry(
    differences: ArrayLike, wins: ArrayLike, counts: ArrayLike, ridge: ArrayLike
) -> LinearBradleyTerry:
    """The likeliest weights w with `P(first wins) = sigmoid(<w, difference>)`, and a ridge.

    Maximizes the log-likelihood less `ridge ‖w‖^2 / 2`, by `roots.damped_newton`. Shapes: features
    of the first answer less those of the second `[pairs, d]`; wins `[pairs]`, 1 where the first was
    preferred, else 0; counts `[pairs]`, how often each pair counts, 0 for not at all; a positive
    number. Wins and counts may be integers or booleans. Call it under jit.

    >>> apart = jnp.array([[1.0], [1.0], [1.0], [1.0]])
    >>> fit = linear_bradley_terry(apart, jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.ones(4), 1e-6)
    >>> print(f"{fit.weights[0]:.4f}", fit.converged)  # log 3
    1.0986 True

    Reference: Bradley and Terry 1952.
    """
    ridge = checks.positive("ridge", ridge)
    differences = checks.as_float("differences", differences)
    dtype = differences.dtype
    wins, counts = (
        _numbers(name, x, dtype).astype(dtype) for name, x in (("wins", wins), ("counts", counts))
    )
    if differences.ndim != 2 or not wins.shape == counts.shape == differences.shape[:1]:
        raise ValueError(
            "differences, wins and counts must be of shapes [pairs, d], [pairs] and [pairs], got"
            f" {differences.shape}, {wins.shape} and {counts.shape}"
        )
    counts = jnp.asarray(checks.not_negative("counts", counts))
    # A pair that does not count has no features, and did not win either.
    counted = jnp.where(counts[:, None] == 0, 0, differences)
    wins = jnp.where(counts == 0, 0, wins)
    wins = jnp.asarray(checks.in_range("wins", wins, 0, 1, "from 0 to 1", closed="both"))
    ridge, resolution = jnp.asarray(ridge, dtype), 64 * jnp.finfo(dtype).eps

    def slope(weights: Array) -> tuple[Array, Array]:
        """The derivative, and its largest entry in terms of the sizes that it is made of."""
        odds = counted @ weights
        won = counts * wins * jax.nn.sigmoid(-odds)
        lost = counts * (1 - wins) * jax.nn.sigmoid(odds)
        gradient = counted.T @ (won - lost) - ridge * weights
        size = jnp.abs(counted).T @ (won + lost) + ridge * jnp.abs(weights)
        relative = jnp.abs(gradient) / jnp.where(size == 0, 1, size)
        return gradient, jnp.max(relative, initial=0)

    def newton(weights: Array) -> tuple[Array, Array, Array]:
        odds = counted @ weights
        steepness = counts * jax.nn.sigmoid(odds) * jax.nn.sigmoid(-odds)
        curvature = ridge * jnp.eye(counted.shape[1], dtype=dtype)
        curvature += (counted * steepness[:, None]).T @ counted
        gradient, residual = slope(weights)
        move = jnp.linalg.solve(curvature, gradient)
        distance = jnp.max(jnp.abs(counted @ move), initial=0)
        return move, distance, (residual <= resolution) | ~jnp.isfinite(distance)

    start = jnp.zeros(differences.shape[1], dtype)
    weights, _, iterations = roots.damped_newton(newton, start)
    residual = slope(weights)[1]
    return LinearBradleyTerry(weights, residual, iterations, residual <= resolution)


# --------------------------------------------------------------------------------------- ensembles


def _members(rewards: ArrayLike) -> Array:
    """`[k, ...]` rewards by k models."""
    rewards = checks.as_rewards("rewards", rewards)
    if rewards.ndim == 0 or rewards.shape[0] == 0:
        raise ValueError(f"rewards must be [k, ...] with k models, got shape {rewards.shape}")
    return rewards


def mean_reward(rewards: ArrayLike) -> Array:
    """Mean of the members: averages errors out, and follows the largest.

    Shapes: `[k, ...]` to `[...]`.
    """
    return jnp.mean(_members(rewards), axis=0)


def worst_case(rewards: ArrayLike) -> Array:
    """Worst-case optimization (WCO): the smallest reward of all members.

    Shapes: `[k, ...]` to `[...]`.

    Reference: Coste et al. 2024 (arXiv:2310.02743), equation 4.
    """
    return jnp.min(_members(rewards), axis=0)


def uncertainty_weighted(
    rewards: ArrayLike, coefficient: ArrayLike = 0.5, *, unbiased: bool = False
) -> Array:
    """Uncertainty-weighted optimization (UWO): `mean - coefficient * variance` of the members.

    The released code divides the variance by k for best-of-n (`np.var`), which is the default here,
    and by k - 1 in PPO (`torch.var`), `unbiased`: with five members the same coefficient weighs a
    quarter more. Shapes: `[k, ...]` to `[...]`.

    >>> print(f"{uncertainty_weighted(jnp.array([1.0, 3.0])):.2f}")
    1.50
    >>> print(f"{uncertainty_weighted(jnp.array([1.0, 3.0]), unbiased=True):.2f}")
    1.00

    Reference: Coste et al. 2024 (arXiv:2310.02743), equation 5; tlc4418/llm_optimization.
    """
    rewards, coefficient = _members(rewards), checks.finite("coefficient", coefficient)
    if unbiased and rewards.shape[0] == 1:
        raise ValueError("rewards must have two members for a variance over k - 1, got one")
    return jnp.mean(rewards, axis=0) - coefficient * jnp.var(rewards, axis=0, ddof=int(unbiased))


# --------------------------------------------------------------------------------------- penalties


def deviation_penalized(rewards: ArrayLike, coefficient: ArrayLike) -> Array:
    """UP-RLHF: `mean - coefficient * standard deviation` of the members.

    Unlike a variance it scales with the rewards. Shapes: `[k, ...]` to `[...]`.

    Reconstructed: the abstract has the reward less the uncertainty of a diverse ensemble; that the
    deviation, with 1/k, measures it is inferred.
    Reference: UP-RLHF (arXiv:2401.00243), abstract.
    """
    rewards, coefficient = _members(rewards), checks.finite("coefficient", coefficient)
    return jnp.mean(rewards, axis=0) - coefficient * jnp.std(rewards, axis=0)


# --------------------------------------------------------------------------------------- diversity


def nuclear_diversity(members: ArrayLike) -> Array:
    """Sum of the singular values of the matrix whose rows are the members, to be maximized.

    Of rows of length 1 it is `sqrt(k)` if all are alike and k if all are orthogonal; it grows with
    their lengths, too, which a ridge has to hold. The derivative is `U V^T`: every direction, used
    or not, is pushed alike; where singular values are 0 it is one of the subgradients. Shapes:
    `[k, ...]` parameters of k models, each flattened, such as the adapters of rewards, to a number.

    >>> print(f"{nuclear_diversity(jnp.eye(4)):.4f}", f"{nuclear_diversity(jnp.eye(4)[:1]):.4f}")
    4.0000 1.0000

    Reconstructed: the abstract has a diverse ensemble of adapters; that its nuclear norm is that of
    rows with all parameters of a member is inferred.
    Reference: UP-RLHF (arXiv:2401.00243), abstract.
    """
    members = checks.finite("members", checks.as_float("members", members))
    if members.ndim < 2 or 0 in members.shape:
        raise ValueError(f"members must be [k, ...] of k models, got shape {members.shape}")
    rows = members.reshape(members.shape[0], -1)
    return jnp.sum(jnp.linalg.svd(rows, compute_uv=False))
