"""RAPO (arXiv:2510.03865): forward KL to a reference that is reweighted by rewards."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel


def rapo_penalty(
    sequence_log_probs: ArrayLike,
    ref_sequence_log_probs: ArrayLike,
    weights: ArrayLike,
    *,
    axis_name: str | None = None,
) -> Array:
    """`v log(v pi_ref/pi)`, v the weights over their mean: samples of the reference, re-weighted.

    Its mean is KL(ref'‖pi) for `ref' ∝ weight ref`, exactly over an enumeration in which each
    counts as often as the reference has it. Forward KL and a reference re-weighted by rewards are
    the abstract's; the weights are unknown and the caller's, `exp(r/beta)` for one. With equal
    weights it is the plain forward KL. Shapes: `[n]` three times to the same.

    Reference: RAPO (arXiv:2510.03865), abstract.
    """
    log_probs, log_ref, weights = checks.alike(
        sequence_log_probs=sequence_log_probs,
        ref_sequence_log_probs=ref_sequence_log_probs,
        weights=weights,
    )
    mean = parallel.mean_over(jnp.mean(weights), axis_name)
    v = jax.lax.stop_gradient(weights / jnp.where(mean > 0, mean, 1))
    positive = v > 0
    log_v = jnp.log(jnp.where(positive, v, 1))
    return jnp.where(positive, v * (log_v + log_ref - log_probs), 0)
