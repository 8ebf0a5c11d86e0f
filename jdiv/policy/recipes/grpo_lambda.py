"""GRPO-lambda (arXiv:2505.18086): length penalties for the easiest groups only.

Reconstructed: from the abstract; how lengths are penalized and the share are unknown.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jdiv import checks, parallel
from jdiv.policy.advantages import grouped
from jdiv.policy.selection import among_largest
from jdiv.types import Scalar, Values


def grpo_lambda_rewards(
    correct: Values,
    penalized: Values,
    *,
    share: Scalar,
    axis_name: str | None = None,
) -> Array:
    """Length-penalized rewards for the share of groups with the highest pass rates, else 0 and 1.

    Only where answers are right is there something to shorten. Pass the penalized rewards, those of
    `arlcp_rewards` for one. Groups as good as the last one count, too; share 0 is no penalty.
    Shapes: `[groups, size]` twice to the same.

    >>> correct = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    >>> grpo_lambda_rewards(correct, 0.5 * correct, share=0.5)
    Array([[0.5, 0.5],
           [1. , 0. ]], dtype=float32)

    Reference: GRPO-lambda (arXiv:2505.18086), abstract.
    """
    correct, penalized = checks.alike(
        correct=grouped(correct, "correct"), penalized=grouped(penalized, "penalized")
    )
    share = checks.share("share", share)
    accuracy = jnp.mean(correct, axis=-1)
    groups = parallel.sum_over(jnp.asarray(accuracy.size, accuracy.dtype), axis_name)
    count = jnp.floor(share * groups).astype(jnp.int32)
    easiest = among_largest(accuracy, jnp.full(accuracy.shape, True), count, axis_name=axis_name)
    rewards = jnp.where((easiest & (count > 0))[..., None], penalized, correct)
    return checks.spread_nan(rewards, correct, share)
