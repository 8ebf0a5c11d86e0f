"""GRPO-CARE (arXiv:2506.16141): a bonus where the reasoning makes its right answer likely.

The likelihood is a reference's, which follows the policy slowly (in the code by .995 every ten
steps), and stands for a judge of consistency; there is no KL penalty.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.policy.advantages import grouped
from jdiv.policy.tokens import kept
from jdiv.types import LogProbs, Mask, Scalar, Values


def answer_likelihood(ref_log_probs: LogProbs, mask: Mask) -> Array:
    """`exp(mean log ref)` over the tokens of the answer, the geometric mean; 0 without any.

    The mask is True for the tokens of the answer, and not for those of the reasoning before it.
    Shapes: `[..., T]` twice to `[...]`.

    >>> log_ref, answer = jnp.log(jnp.array([0.9, 0.25, 1.0])), jnp.array([False, True, True])
    >>> answer_likelihood(log_ref, answer)
    Array(0.5, dtype=float32)

    Reference: GRPO-CARE (arXiv:2506.16141), its code at 03c3a7c.
    """
    log_probs, mask = kept("ref_log_probs", ref_log_probs, mask)
    length = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    mean = jnp.sum(log_probs, axis=-1) / jnp.maximum(length, 1).astype(log_probs.dtype)
    return jnp.where(length > 0, jnp.exp(mean), 0)


def care_bonus(
    rewards: Values,
    confidence: ArrayLike,
    *,
    coefficient: Scalar = 0.5,
    margin: Scalar = 0.01,
    threshold: Scalar = 0.1,
    ceiling: Scalar = 0.95,
) -> Array:
    """`coefficient r` for accurate answers that are as likely as the accurate ones' mean, else 0.

    Accurate is a reward above the threshold and not below its group's mean. The confidence is the
    `answer_likelihood`, at most the ceiling, and may be a margin below the mean. To be added to the
    rewards before advantages are taken. Constants. Shapes: `[groups, size]` twice to the same.

    >>> care_bonus(jnp.array([[1.0, 1.0, 0.0]]), jnp.array([[0.2, 0.9, 0.9]]))
    Array([[0. , 0.5, 0. ]], dtype=float32)

    Reference: GRPO-CARE (arXiv:2506.16141), its code at 03c3a7c.
    """
    rewards = grouped(rewards)
    confidence = jnp.asarray(checks.share("confidence", confidence), rewards.dtype)
    checks.same_shape(rewards=rewards, confidence=confidence)
    parameters = {"coefficient": coefficient, "margin": margin, "threshold": threshold}
    coefficient, margin, threshold = (
        checks.not_negative(name, x, rows=rewards.ravel()) for name, x in parameters.items()
    )
    confidence = jnp.minimum(confidence, checks.share("ceiling", ceiling, rows=rewards.ravel()))
    # The mean of equal rewards may be above them in floating point.
    relative = rewards - rewards[..., :1]
    typical = relative >= jnp.mean(relative, axis=-1, keepdims=True)
    accurate = (rewards > threshold) & typical
    count = jnp.maximum(jnp.sum(accurate, axis=-1, keepdims=True, dtype=jnp.int32), 1)
    summed = jnp.sum(jnp.where(accurate, confidence, 0), axis=-1, keepdims=True)
    consistent = confidence >= summed / count.astype(rewards.dtype) - margin
    bonus = jnp.where(accurate & consistent, coefficient * rewards, 0)
    everything = jnp.sum(rewards + confidence, axis=-1, keepdims=True)
    return jax.lax.stop_gradient(checks.spread_nan(bonus, everything, threshold, margin))
