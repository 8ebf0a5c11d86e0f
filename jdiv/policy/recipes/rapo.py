"""RAPO (arXiv:2510.03865): forward KL to a reference that is reweighted by rewards.

Reconstructed: forward KL and the reweighted reference are the abstract's; the weights are unknown
and the caller's, `exp(r/beta)` for one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, parallel
from jdiv.types import PerSample


def rapo_penalty(
    log_probs: PerSample,
    ref_log_probs: PerSample,
    weights: PerSample,
    *,
    axis_name: str | None = None,
) -> Array:
    """`v log(v pi_ref/pi)`, v the weights over their mean, at samples of the reference.

    One number for each sample, to be averaged over all of the batch: the mean is KL(ref'‖pi) for
    `ref' ∝ weight ref`, exactly over an enumeration in which each answer counts as often as the
    reference has it. With equal weights it is the plain forward KL; a sample of weight 0 does
    not count, whatever its log-probabilities. Weights are not negative.
    Shapes: log-probabilities of sequences and weights, `[n]` three times, to the same.

    Reference: RAPO (arXiv:2510.03865), abstract.
    """
    log_probs, log_ref, weights = checks.alike(
        log_probs=log_probs, ref_log_probs=ref_log_probs, weights=weights
    )
    weights = jax.lax.stop_gradient(checks.not_negative("weights", weights))
    mean = parallel.mean_over(jnp.mean(weights), axis_name)
    v = weights / jnp.where(mean == 0, 1, mean)
    none = v == 0
    log_v = jnp.log(jnp.where(none, 1, v))
    return jnp.where(none, 0, v * (log_v + log_ref - log_probs))
