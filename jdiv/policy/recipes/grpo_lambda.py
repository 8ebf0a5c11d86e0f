"""GRPO-lambda (arXiv:2505.18086): length penalties for the easiest groups only."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel
from jdiv.policy.recipes.difficulty import pass_rate
from jdiv.policy.selection import among_largest


def grpo_lambda_rewards(
    correct: ArrayLike,
    penalised: ArrayLike,
    *,
    share: ArrayLike,
    axis_name: str | None = None,
) -> Array:
    """Length-penalised rewards for the share of groups with the highest pass rates, else 0 and 1.

    Only where answers are right is there something to shorten. How lengths are penalised and the
    share are unknown: pass the penalised rewards, of `arlcp_rewards` for one. Groups as good as the
    last one count, too; share 0 is no penalty. Shapes: `[groups, size]` twice to the same.

    Reference: GRPO-lambda (arXiv:2505.18086), abstract.
    """
    correct, penalised = checks.alike(correct=correct, penalised=penalised)
    rate = pass_rate(correct)
    groups = parallel.sum_over(jnp.asarray(rate.size, rate.dtype), axis_name)
    count = jnp.floor(share * groups).astype(jnp.int32)
    easiest = among_largest(rate, jnp.full(rate.shape, True), count, axis_name=axis_name)
    return jnp.where((easiest & (count > 0))[..., None], penalised, correct)
