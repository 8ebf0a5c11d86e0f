"""HAEPO (arXiv:2508.18884): weights of whole trajectories."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel
from jdiv.policy.tokens import TokenLoss


class TrajectoryTerms(NamedTuple):
    """How a batch is weighted."""

    weights: Array
    """`[n]` softmax of the trajectories' log-probabilities."""
    entropy: Array
    """`[]` of the weights."""
    kl: Array
    """`[]` of the weights to those of the reference."""


def haepo(
    sequence_log_probs: ArrayLike,
    ref_sequence_log_probs: ArrayLike,
    rewards: ArrayLike,
    *,
    entropy: ArrayLike = 0.0,
    kl: ArrayLike = 0.0,
    axis_name: str | None = None,
) -> TokenLoss:
    """`w (-R + entropy log w + kl log w/w_ref)`, `w = softmax_i(log pi(trajectory_i))`: sum it.

    Over trajectories that are each enumerated once w is the policy and the sum the objective;
    over sampled ones each counts by pi again, which is greedier than REINFORCE. That entropy and KL
    are of the weights is inferred, the coefficients are unknown. The gradient by a log-probability
    is `w (f - sum w f)`, the last the sum of the loss, also across devices.
    Shapes: `[n]` three times to `[n]`.

    Reference: HAEPO (arXiv:2508.18884), abstract.
    """
    names = ("sequence_log_probs", "ref_sequence_log_probs", "rewards")
    given = (sequence_log_probs, ref_sequence_log_probs, rewards)
    arrays = {name: checks.as_float(name, x) for name, x in zip(names, given, strict=True)}
    checks.same_shape(**arrays)
    dtype = arrays["sequence_log_probs"].dtype
    log_probs, log_ref, rewards = (x.astype(dtype) for x in arrays.values())
    total = lambda x: parallel.sum_over(jnp.sum(x), axis_name)

    def log_softmax(x: Array) -> Array:
        x = jax.lax.stop_gradient(x)
        x = x - parallel.max_over(jnp.max(x), axis_name)
        return x - jnp.log(total(jnp.exp(x)))

    log_w, log_w_ref = log_softmax(log_probs), log_softmax(log_ref)
    w, log_ratio = jnp.exp(log_w), log_w - log_w_ref
    each = -rewards + entropy * log_w + kl * log_ratio
    slope = w * (each - total(w * each))
    loss = w * each + slope * (log_probs - jax.lax.stop_gradient(log_probs))
    return TokenLoss(loss, TrajectoryTerms(w, -total(w * log_w), total(w * log_ratio)))
