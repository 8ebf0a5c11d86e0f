"""HAEPO (arXiv:2508.18884): a batch weighted by the softmax of whole trajectories' likelihoods.

Reconstructed: from the abstract; that entropy and KL are of the weights is inferred, the
coefficients are unknown.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, parallel
from jdiv.types import PerSample, Scalar


class TrajectoryTerms(NamedTuple):
    """Terms of a loss that is their sum over a batch of trajectories, and the batch's weights.

    Fields:
        terms: `[n]`, to be summed over all trajectories of all devices, not averaged: no loss of
            tokens.
        weights: `[n]` softmax of the trajectories' log-probabilities.
        entropy: `[]` entropy of the weights.
        kl: `[]` KL of the weights from those of the reference.
    """

    terms: Array
    weights: Array
    entropy: Array
    kl: Array


def haepo(
    log_probs: PerSample,
    ref_log_probs: PerSample,
    rewards: PerSample,
    *,
    entropy_weight: Scalar = 0.0,
    kl_weight: Scalar = 0.0,
    axis_name: str | None = None,
) -> TrajectoryTerms:
    """`w (-R + entropy_weight log w + kl_weight log w/w_ref)`, w the softmax over trajectories.

    Log-probabilities are those of whole trajectories, and the loss is the sum of the terms. Over
    trajectories that are each enumerated once w is the policy and the sum the objective; over
    sampled ones each counts by pi again, which is greedier than REINFORCE. The gradient by a
    log-probability is `w (f - sum w f)`, also across devices. Shapes: `[n]` three times to `[n]`.

    >>> policy, rewards = jnp.array([0.25, 0.75]), jnp.array([1.0, 0.0])
    >>> haepo(jnp.log(policy), jnp.log(policy), rewards).terms.sum()  # minus the expected reward
    Array(-0.25, dtype=float32)

    Reference: HAEPO (arXiv:2508.18884), abstract.
    """
    log_probs = checks.as_float("log_probs", log_probs)
    rewards = checks.as_rewards("rewards", rewards, log_probs.dtype)
    log_probs, log_ref, rewards = checks.alike(
        log_probs=log_probs, ref_log_probs=ref_log_probs, rewards=rewards
    )
    entropy_weight = checks.not_negative("entropy_weight", entropy_weight, rows=rewards.ravel())
    kl_weight = checks.not_negative("kl_weight", kl_weight, rows=rewards.ravel())

    def total(x: Array) -> Array:
        return parallel.sum_over(jnp.sum(x), axis_name)

    def log_softmax(x: Array) -> Array:
        x = jax.lax.stop_gradient(x)
        x = x - parallel.max_over(jnp.max(x), axis_name)
        return x - jnp.log(total(jnp.exp(x)))

    log_w, log_w_ref = log_softmax(log_probs), log_softmax(log_ref)
    w, log_ratio = jnp.exp(log_w), log_w - log_w_ref
    each = -rewards + entropy_weight * log_w + kl_weight * log_ratio
    slope = w * (each - total(w * each))
    terms = w * each + slope * (log_probs - jax.lax.stop_gradient(log_probs))
    return TrajectoryTerms(terms, w, -total(w * log_w), total(w * log_ratio))
