"""Rewards from comparisons, ensembles of them, and what to subtract for not being sure.

Optimised hard enough, one reward model is exploited where it errs most. Ensembles that take the
worst member or subtract the variance are cautious there; a mean is not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks

# ----------------------------------------------------------------------------------- Bradley-Terry


def bradley_terry_loss(chosen: ArrayLike, rejected: ArrayLike) -> Array:
    """`-log sigmoid(r_chosen - r_rejected)` of each pair. Shapes: any, twice the same, to the same.

    >>> print(f"{bradley_terry_loss(jnp.array(1.0), jnp.array(0.0)):.4f}")
    0.3133

    Reference: Bradley and Terry 1952; Ouyang et al. 2022 (arXiv:2203.02155), equation 1.
    """
    chosen, rejected = checks.alike(chosen=chosen, rejected=rejected)
    return jax.nn.softplus(rejected - chosen)


class BradleyTerry(NamedTuple):
    """Rewards fitted to win counts, with the evidence that they are the likeliest."""

    rewards: Array
    """`[..., n]` with mean 0: only differences matter."""
    log_likelihood: Array
    """`[...]`"""
    residual: Array
    """`[...]` largest difference of an answer's wins from those expected, per comparison."""
    iterations: Array
    """Newton steps, one number for the whole batch."""
    converged: Array
    """`[...]` whether a largest likelihood exists and the solver came to rest there."""


def _diagonal(matrix: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=bool), matrix.shape)


def _beats(wins: Array) -> Array:
    """`[..., n, n]` whether i has beaten j, or one who has beaten j, and so on."""
    reached = (wins > 0) | _diagonal(wins)
    for _ in range(wins.shape[-1].bit_length()):
        steps = reached.astype(jnp.float32)
        reached = steps @ steps > 0
    return reached


def bradley_terry(wins: ArrayLike) -> BradleyTerry:
    """The likeliest rewards with `P(i beats j) = sigmoid(r_i - r_j)`, from counts `wins[i, j]`.

    Concave, by Newton's method with the damping under which it cannot overshoot; r has mean 0. The
    maximum exists exactly if everyone has beaten everyone, directly or through others: data that
    fall apart are refused, or not converged if they are traced. Half a win each is a tie.
    Shapes: `[..., n, n]`, the diagonal does not count. Call it under jit.

    >>> fit = bradley_terry(jnp.array([[0.0, 3.0], [1.0, 0.0]]))
    >>> print(f"{fit.rewards[0] - fit.rewards[1]:.4f}", fit.converged)  # log 3
    1.0986 True

    Reference: Ford 1957 for existence; Hunter 2004 for the likelihood; Sun and Tran-Dinh 2019
    (arXiv:1703.04599), theorem 2, for the damping log(1 + d)/d.
    """
    wins = checks.as_float("wins", wins)
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise ValueError(f"wins must be square, [..., n, n], got shape {tuple(wins.shape)}")
    n = wins.shape[-1]
    wins = jnp.where(_diagonal(wins), 0, wins)
    connected = jnp.all(_beats(wins), axis=(-1, -2))
    if not isinstance(wins, jax.core.Tracer):
        if not np.all((np.asarray(wins) >= 0) & np.isfinite(wins)):
            raise ValueError("wins must be finite and not negative")
        if not np.all(connected):
            raise ValueError(
                "wins must let everyone beat everyone, if through others: it falls apart"
            )
    played = wins + jnp.swapaxes(wins, -1, -2)
    games = jnp.maximum(jnp.sum(wins, axis=(-1, -2)), jnp.finfo(wins.dtype).tiny)
    difference = lambda r: r[..., :, None] - r[..., None, :]

    def surplus(r):
        """Wins less expected ones: the gradient."""
        return jnp.sum(wins - played * jax.nn.sigmoid(difference(r)), axis=-1)

    def newton(r):
        weight = played * jax.nn.sigmoid(difference(r)) * jax.nn.sigmoid(-difference(r))
        laplacian = jnp.where(_diagonal(wins), jnp.sum(weight, axis=-1)[..., None], -weight)
        # All ones are its null space: any multiple of them fixes the gauge.
        scale = jnp.sum(weight, axis=(-1, -2))[..., None, None] / n**2
        return jnp.linalg.solve(laplacian + scale, surplus(r)[..., None])[..., 0]

    def step(state):
        r, resting, iteration = state
        change = newton(r)
        length = jnp.max(change, axis=-1) - jnp.min(change, axis=-1)
        damping = jnp.where(length > 0, jnp.log1p(length) / jnp.where(length > 0, length, 1), 1)
        moved = jnp.where(resting[..., None], r, r + damping[..., None] * change)
        size = jnp.maximum(jnp.max(jnp.abs(r), axis=-1), 1)
        return moved, resting | (length <= 64 * n * jnp.finfo(r.dtype).eps * size), iteration + 1

    def unfinished(state):
        *_, resting, iteration = state
        return ~jnp.all(resting) & (iteration < 200)

    start = jnp.zeros(wins.shape[:-1], wins.dtype), ~connected, jnp.zeros((), jnp.int32)
    rewards, resting, iterations = jax.lax.while_loop(unfinished, step, start)
    rewards -= jnp.mean(rewards, axis=-1, keepdims=True)
    return BradleyTerry(
        rewards=rewards,
        log_likelihood=-jnp.sum(wins * jax.nn.softplus(-difference(rewards)), axis=(-1, -2)),
        residual=jnp.max(jnp.abs(surplus(rewards)), axis=-1) / games,
        iterations=iterations,
        converged=connected & resting,
    )


# --------------------------------------------------------------------------------------- ensembles


def _members(rewards: ArrayLike) -> Array:
    """`[k, ...]` rewards by k models."""
    rewards = checks.as_float("rewards", rewards)
    if rewards.ndim == 0 or rewards.shape[0] == 0:
        raise ValueError(f"rewards must be [k, ...] with k models, got shape {rewards.shape}")
    return rewards


def mean_reward(rewards: ArrayLike) -> Array:
    """Mean of the members: averages errors out, and follows the largest. Shapes: `[k, ...]`."""
    return jnp.mean(_members(rewards), axis=0)


def worst_case(rewards: ArrayLike) -> Array:
    """Worst-case optimisation (WCO): the smallest reward of all members. Shapes: `[k, ...]`.

    Reference: Coste et al. 2024 (arXiv:2310.02743), equation 4.
    """
    return jnp.min(_members(rewards), axis=0)


def uncertainty_weighted(
    rewards: ArrayLike, coefficient: ArrayLike = 0.5, *, unbiased: bool = False
) -> Array:
    """Uncertainty-weighted optimisation (UWO): `mean - coefficient * variance` of the members.

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


def deviation_penalised(rewards: ArrayLike, coefficient: ArrayLike) -> Array:
    """UP-RLHF: `mean - coefficient * standard deviation` of the members.

    The abstract has the reward less the uncertainty of a diverse ensemble; that the deviation, with
    1/k, measures it is inferred. Unlike a variance it scales with the rewards.
    Shapes: `[k, ...]` to `[...]`.

    Reference: UP-RLHF (arXiv:2401.00243), abstract.
    """
    rewards = _members(rewards)
    return jnp.mean(rewards, axis=0) - coefficient * jnp.std(rewards, axis=0)
