"""KL to a reference in a policy gradient: in the rewards, per token, or of whole sequences.

Every placement has another gradient. In expectation over samples of old, which is the policy itself
where nothing is said (old = stop_gradient), it is

=====================================  =============================================================
`kl_rewards`, k1, `to_go`              that of KL(pi‖ref), exactly, on-policy
`sequence_kl_penalty`, weighted        exact for k1 and k3 from any old
`sequence_kl_penalty`, not weighted    on-policy k2 is exact, k3 that of KL(ref‖pi), k1 is 0
`kl_penalty`, weights of prefixes      exact for k1 and k3 from any old
`kl_penalty`, weights of tokens        k1, k3: what a token does to later tokens' KL is missing
`kl_penalty`, not weighted             k2 as above, on-policy; k3 is of the other direction; k1 is 0
=====================================  =============================================================

With one token the four weighted ones are the same. Averages that divide by the length of each
sequence make all of them inexact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv.checks import known
from jdiv.estimators import monte_carlo
from jdiv.policy.tokens import masked

Estimator = Callable[[ArrayLike, ArrayLike], Array]
"""`kl_k1`, `kl_k2` or `kl_k3` of `jdiv.estimators`: of log p and log q at samples of p."""


def kl_rewards(
    rewards: ArrayLike,
    log_probs: ArrayLike,
    ref_log_probs: ArrayLike,
    mask: ArrayLike,
    *,
    coefficient: ArrayLike,
    estimator: Estimator = monte_carlo.kl_k1,
) -> Array:
    """Rewards of tokens: `-coefficient k_t`, and at the last one also the answer's reward.

    Their sum over a sequence is RLOO's reward, `to_go` what REINFORCE++ and PPO have. A constant.
    Shapes: rewards `[...]`, the others `[..., T]`, to `[..., T]`.

    Reference: Ahmadian et al. 2024 (arXiv:2402.14740), equation 4, as remembered.
    """
    log_probs, mask, (ref, rewards) = masked(
        log_probs, mask, ref_log_probs=ref_log_probs, rewards=rewards
    )
    counts = mask.astype(jnp.int32)
    last = mask & (jax.lax.cumsum(counts, axis=mask.ndim - 1, reverse=True) == 1)
    penalty = coefficient * jax.lax.stop_gradient(estimator(log_probs, ref))
    return jnp.where(last, rewards, 0) - penalty


def kl_penalty(
    log_probs: ArrayLike,
    ref_log_probs: ArrayLike,
    mask: ArrayLike,
    *,
    estimator: Estimator = monte_carlo.kl_k3,
    old_log_probs: ArrayLike | None = None,
    weights: str = "token",
) -> Array:
    """KL(pi‖ref) inside the loss, token by token: `w_t k(log pi_t, log ref_t)`.

    The weight is differentiated: `pi/pi_old` of the `token`, or of the `prefix` up to it; without
    old log-probabilities it is 1, as GRPO has it. On-policy give stop_gradient(log_probs). What the
    gradient follows is in the table of this module. Shapes: `[..., T]` to the same.

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), equation 4, with k3 and no weight; RPG
    (arXiv:2505.17508) for the weight.
    """
    known("weights", weights, ("token", "prefix"))
    log_probs, mask, (ref,) = masked(log_probs, mask, ref_log_probs=ref_log_probs)
    penalty = estimator(log_probs, ref)
    if old_log_probs is None:
        return penalty
    _, _, (old,) = masked(log_probs, mask, old_log_probs=old_log_probs)
    log_weight = log_probs - old
    if weights == "prefix":
        log_weight = jax.lax.cumsum(log_weight, axis=mask.ndim - 1)
    return jnp.exp(jnp.where(mask, log_weight, 0)) * penalty


def sequence_kl_penalty(
    log_probs: ArrayLike,
    ref_log_probs: ArrayLike,
    mask: ArrayLike,
    *,
    estimator: Estimator = monte_carlo.kl_k2,
    old_log_probs: ArrayLike | None = None,
) -> Array:
    """KL(pi‖ref) inside the loss, of whole sequences: `w k(sum log pi_t, sum log ref_t)`.

    The weight `prod pi_t/old_t` is differentiated; without old log-probabilities it is 1. Shapes:
    `[..., T]` to `[...]`.

    Reference: RPG (arXiv:2505.17508) for the weight.
    """
    log_probs, mask, (ref,) = masked(log_probs, mask, ref_log_probs=ref_log_probs)
    total = jnp.sum(log_probs, axis=-1)
    penalty = estimator(total, jnp.sum(ref, axis=-1))
    if old_log_probs is None:
        return penalty
    _, _, (old,) = masked(log_probs, mask, old_log_probs=old_log_probs)
    return jnp.exp(total - jnp.sum(old, axis=-1)) * penalty
