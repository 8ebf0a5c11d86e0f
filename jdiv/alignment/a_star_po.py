"""A*-PO: regression on the optimal advantage.

The value is `beta log E_ref e^(r/beta)`, as in `q_sharp`, from a few answers of the reference.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.divergences import generators
from jdiv.regularized import greedy
from jdiv.types import PerSequence, Rewards, SequenceLogProbs, Values

_KL = generators.kl()


def optimal_value_estimate(rewards: Values, beta: ArrayLike) -> Array:
    """`beta log mean exp(r / beta)` of n answers of the reference, below V* in the mean (Jensen).

    V* itself is the value of `tilts.tilted` with KL. Shapes: `[..., n]` to `[...]`.

    >>> print(f"{optimal_value_estimate(jnp.array([1.0, 0.0]), 0.5):.4f}")
    0.7169

    Reference: A*-PO, V_hat of the released code (ZhaolinGao/A-PO), which has n = 8, beta = 1/2.
    """
    beta = checks.positive("beta", beta)
    rewards = checks.as_rewards("rewards", rewards)
    if rewards.ndim == 0 or rewards.shape[-1] < 1:
        raise ValueError(f"rewards must have at least one answer, got shape {rewards.shape}")
    return greedy(rewards, jnp.zeros_like(rewards), beta, generator=_KL).value


class BinaryValue(NamedTuple):
    """Value of a prompt whose answers are right or wrong, reward 1 or 0, and its estimate.

    Fields:
        optimal: `[...]` `V* = beta log(1 - p + p e^(1/beta))`.
        expected: `[...]` `E[V_hat]` of n answers of the reference.
    """

    optimal: Array
    expected: Array


def binary_value(accuracy: PerSequence, beta: ArrayLike, *, n: int) -> BinaryValue:
    """V* and the mean of its estimate from n answers, a sum over how many are right.

    Shapes: accuracy in [0, 1], any, to the same twice.

    >>> exact, estimate = binary_value(jnp.array(0.5), 0.5, n=8)
    >>> print(f"{exact:.4f} {estimate:.4f}")
    0.7169 0.6964
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    beta = checks.positive("beta", beta)
    accuracy = checks.as_float("accuracy", accuracy)
    allowed = "probabilities from 0 to 1"
    accuracy = jnp.asarray(checks.in_range("accuracy", accuracy, 0, 1, allowed, closed="both"))
    right = jnp.arange(n + 1, dtype=accuracy.dtype)
    right = jnp.broadcast_to(right, (*accuracy.shape, n + 1))

    def value(share: Array) -> Array:
        log_ref = jnp.stack([jnp.log1p(-share), jnp.log(share)], axis=-1)
        rewards = jnp.broadcast_to(jnp.array([0.0, 1.0], log_ref.dtype), log_ref.shape)
        return greedy(rewards, log_ref, beta, generator=_KL).value

    ways = jnp.array([math.log(math.comb(n, k)) for k in range(n + 1)], accuracy.dtype)
    log_ways = jnp.broadcast_to(ways, right.shape)
    p = jnp.broadcast_to(accuracy[..., None], right.shape)
    of_right = jnp.where(right > 0, right * jnp.log(p), 0)
    of_wrong = jnp.where(right < n, (n - right) * jnp.log1p(-p), 0)
    probability = jnp.exp(log_ways + of_right + of_wrong)
    return BinaryValue(value(accuracy), jnp.sum(probability * value(right / n), axis=-1))


def a_star_po_loss(
    log_probs: SequenceLogProbs,
    ref_log_probs: SequenceLogProbs,
    rewards: Rewards,
    value: PerSequence,
    *,
    beta: ArrayLike,
) -> PerSequence:
    """`(beta log(pi/ref) + V - r)^2` for answers of the policy itself.

    It vanishes at the optimum, where `beta log(pi/ref) = r - V*`. With the samples held fixed its
    gradient has the mean `2 beta E[(beta log(pi/ref) - r) grad log pi]`: V adds `E[grad log pi]`,
    which is 0, and serves the variance only. Shapes: `[...]` four times to `[...]`.

    Reference: A*-PO, the loss of the released code (ZhaolinGao/A-PO), which has beta = 1/1000.
    """
    beta = checks.positive("beta", beta)
    rewards = checks.as_rewards("rewards", rewards, jnp.asarray(value).dtype)
    log_probs, ref_log_probs, rewards, value = checks.alike(
        log_probs=log_probs, ref_log_probs=ref_log_probs, rewards=rewards, value=value
    )
    return (jnp.asarray(beta, value.dtype) * (log_probs - ref_log_probs) + value - rewards) ** 2
