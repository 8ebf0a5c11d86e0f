"""Losses of single answers that are good or bad by themselves: no pairs.

Arguments are log-probabilities of whole answers, sums over tokens, `log_probs` of the policy and
`ref_log_probs` of the reference, and which answers are desirable, `[...]` to losses `[...]`,
not averaged. Half precision is widened.

With both kinds of weights 1 the mean loss is linear in the probability that an answer is desirable:
what is less often so than not is pushed down, to probability zero, whatever beta is. So its
minimizer is no optimum of a regularized reward.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.types import PerRow, PerSequence, Rewards


def kto(
    log_probs: PerSequence,
    ref_log_probs: PerSequence,
    desirable: Rewards,
    kl: PerRow,
    *,
    beta: ArrayLike,
    weights: tuple[ArrayLike, ArrayLike] = (1.0, 1.0),
) -> PerSequence:
    """`w sigmoid(beta (kl - t))` of a desirable answer, `w sigmoid(beta (t - kl))` of another.

    Here `t = log pi/ref`; `desirable` is 1 or True for answers that are good by themselves, and
    `weights` are those of desirable and of other ones. `kl` is the point from which answers count
    as gains, KL(pi‖ref) over the prompts of the data; nothing flows back through it, and below 0 it
    is taken for 0. What trainers put there, `mismatched_kl`, is another number.
    Shapes: `[...]` three times and `[]` or `[...]` to `[...]`.

    Reference: Ethayarajh et al. 2024 (arXiv:2402.01306), equation 8, less its constant.
    """
    log_ratio, good, beta = _unpaired(log_probs, ref_log_probs, desirable, beta)
    kl = jnp.asarray(jax.lax.stop_gradient(kl), log_ratio.dtype)
    shift = beta * (log_ratio - jnp.where(kl < 0, 0, kl))
    better, worse = (jnp.asarray(w, log_ratio.dtype) for w in weights)
    return jnp.where(good, better * jax.nn.sigmoid(-shift), worse * jax.nn.sigmoid(shift))


def apo_zero_unpaired(
    log_probs: PerSequence,
    ref_log_probs: PerSequence,
    desirable: Rewards,
    *,
    beta: ArrayLike,
    weights: tuple[ArrayLike, ArrayLike] = (1.0, 1.0),
) -> PerSequence:
    """`kto` without a baseline: desirable answers up, others down, from the reference on.

    Shapes: `[...]` three times to `[...]`.

    Reference: D'Oosterlinck et al. 2024 (arXiv:2408.06266), as TRL 1.16 has it.
    """
    return kto(log_probs, ref_log_probs, desirable, 0.0, beta=beta, weights=weights)


def mismatched_kl(log_probs: PerSequence, ref_log_probs: PerSequence) -> Array:
    """`max(0, mean log pi/ref)` of answers of other prompts: the baseline that trainers give `kto`.

    It is no estimate of KL(pi‖ref): its answers are not drawn from the policy after these prompts.
    Shapes: any, twice the same, to `[]`.

    Reference: Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.2.
    """
    log_probs, ref = checks.alike(log_probs=log_probs, ref_log_probs=ref_log_probs)
    mean = jnp.mean(log_probs - ref)
    return jnp.where(mean < 0, 0, mean)


def _unpaired(
    log_probs: PerSequence, ref_log_probs: PerSequence, desirable: Rewards, beta: ArrayLike
) -> tuple[Array, Array, Array]:
    """`log pi/ref`, which are desirable, and beta in their precision."""
    beta = checks.positive("beta", beta)
    log_probs, ref = checks.alike(log_probs=log_probs, ref_log_probs=ref_log_probs)
    good = checks.as_mask("desirable", desirable)
    checks.same_shape(log_probs=log_probs, desirable=good)
    return log_probs - ref, good, jnp.asarray(beta, log_probs.dtype)
