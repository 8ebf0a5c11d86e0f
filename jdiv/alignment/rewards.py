"""Rewards from comparisons, ensembles of them, and what to subtract for not being sure.

Comparisons are fitted as Bradley and Terry have it, `P(i beats j) = sigmoid(r_i - r_j)`: by
gradients (`bradley_terry_loss`), from win counts (`bradley_terry`), or linear in features
(`linear_bradley_terry`). Optimized hard enough, one reward model is exploited where it errs most.
Ensembles that take the worst member or subtract the variance are cautious there; a mean is not.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

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
        residual: `[...]` largest difference of an answer's wins from those expected, per
            comparison.
        iterations: `[]` Newton steps, one number for the whole batch.
        converged: `[...]` whether a largest likelihood exists and the solver came to rest there.
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
    refused, or not converged if they are traced. Half a win each is a tie.
    Shapes: `[..., n, n]`, the diagonal does not count. Call it under jit.

    >>> fit = bradley_terry(jnp.array([[0.0, 3.0], [1.0, 0.0]]))
    >>> print(f"{fit.rewards[0] - fit.rewards[1]:.4f}", fit.converged)  # log 3
    1.0986 True

    Reference: Ford 1957 for existence; Hunter 2004 for the likelihood.
    """
    wins, connected = _counts(wins)
    n = wins.shape[-1]
    played = wins + jnp.swapaxes(wins, -1, -2)
    games = jnp.maximum(jnp.sum(wins, axis=(-1, -2)), jnp.finfo(wins.dtype).tiny)
    difference = lambda r: r[..., :, None] - r[..., None, :]

    def surplus(r: Array) -> Array:
        """Wins less expected ones: the gradient."""
        return jnp.sum(wins - played * jax.nn.sigmoid(difference(r)), axis=-1)

    def newton(r: Array) -> tuple[Array, Array, Array]:
        weight = played * jax.nn.sigmoid(difference(r)) * jax.nn.sigmoid(-difference(r))
        laplacian = jnp.where(_diagonal(wins), jnp.sum(weight, axis=-1)[..., None], -weight)
        # All ones are its null space: any multiple of them fixes the gauge.
        scale = jnp.sum(weight, axis=(-1, -2))[..., None, None] / n**2
        move = jnp.linalg.solve(laplacian + scale, surplus(r)[..., None])[..., 0]
        move = jnp.where(connected[..., None], move, 0)
        distance = jnp.max(move, axis=-1) - jnp.min(move, axis=-1)
        size = jnp.maximum(jnp.max(jnp.abs(r), axis=-1), 1)
        return move, distance, distance <= 64 * n * jnp.finfo(r.dtype).eps * size

    start = jnp.zeros(wins.shape[:-1], wins.dtype)
    rewards, resting, iterations = roots.damped_newton(newton, start)
    rewards -= jnp.mean(rewards, axis=-1, keepdims=True)
    return BradleyTerry(
        rewards=rewards,
        log_likelihood=-jnp.sum(wins * jax.nn.softplus(-difference(rewards)), axis=(-1, -2)),
        residual=jnp.max(jnp.abs(surplus(rewards)), axis=-1) / games,
        iterations=iterations,
        converged=connected & resting,
    )


def _counts(wins: ArrayLike) -> tuple[Array, Array]:
    """Checked counts with 0 on the diagonal, and whether everyone beats everyone, `[...]`."""
    wins = checks.as_float("wins", wins)
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise ValueError(f"wins must be square, [..., n, n], got shape {tuple(wins.shape)}")
    wins = jnp.where(_diagonal(wins), 0, wins)
    reached = (wins > 0) | _diagonal(wins)
    for _ in range(wins.shape[-1].bit_length()):
        steps = reached.astype(jnp.float32)
        reached = steps @ steps > 0
    connected = jnp.all(reached, axis=(-1, -2))
    if not isinstance(wins, jax.core.Tracer):
        if not np.all((np.asarray(wins) >= 0) & np.isfinite(wins)):
            raise ValueError("wins must be finite and not negative")
        if not np.all(connected):
            raise ValueError(
                "wins must let everyone beat everyone, if through others: it falls apart"
            )
    return wins, connected


def _diagonal(matrix: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=bool), matrix.shape)


class LinearBradleyTerry(NamedTuple):
    """Weights fitted to comparisons of features, with the evidence that they are the likeliest.

    Fields:
        weights: `[d]` with reward `<weights, features>`.
        residual: `[]` the largest derivative of the penalized log-likelihood, by size.
        iterations: `[]` Newton steps.
        converged: `[]` whether the solver came to rest.
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
    number. Call it under jit.

    >>> apart = jnp.array([[1.0], [1.0], [1.0], [1.0]])
    >>> fit = linear_bradley_terry(apart, jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.ones(4), 1e-6)
    >>> print(f"{fit.weights[0]:.4f}", fit.converged)  # log 3
    1.0986 True

    Reference: Bradley and Terry 1952.
    """
    checks.positive("ridge", ridge)
    differences = checks.as_float("differences", differences)
    wins, counts = (jnp.asarray(x, differences.dtype) for x in (wins, counts))
    ridge = jnp.asarray(ridge, differences.dtype)
    eye = jnp.eye(differences.shape[1], dtype=differences.dtype)
    # Differences of rewards are what likelihoods are about; a pair that does not count has none.
    counted = jnp.where(counts[:, None] > 0, differences, 0)
    resolution = 64 * jnp.finfo(differences.dtype).eps

    def slope(weights: Array) -> Array:
        p = jax.nn.sigmoid(counted @ weights)
        return counted.T @ (counts * (wins - p)) - ridge * weights

    def newton(weights: Array) -> tuple[Array, Array, Array]:
        p = jax.nn.sigmoid(counted @ weights)
        curvature = ridge * eye + (counted * (counts * p * (1 - p))[:, None]).T @ counted
        move = jnp.linalg.solve(curvature, slope(weights))
        distance = jnp.max(jnp.abs(counted @ move), initial=0)
        size = jnp.maximum(jnp.max(jnp.abs(counted @ weights), initial=0), 1)
        return move, distance, distance <= resolution * size

    start = jnp.zeros(differences.shape[1], differences.dtype)
    weights, resting, iterations = roots.damped_newton(newton, start)
    return LinearBradleyTerry(weights, jnp.max(jnp.abs(slope(weights))), iterations, resting)


# --------------------------------------------------------------------------------------- ensembles


def _members(rewards: ArrayLike) -> Array:
    """`[k, ...]` rewards by k models."""
    rewards = checks.as_float("rewards", rewards)
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
    rewards = _members(rewards)
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
    rewards = _members(rewards)
    return jnp.mean(rewards, axis=0) - coefficient * jnp.std(rewards, axis=0)
