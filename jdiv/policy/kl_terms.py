"""KL to a reference in a policy gradient: in the rewards, per token, or of whole sequences.

Every placement has another gradient. In expectation over samples of old, which is the policy itself
where nothing is said (old = stop_gradient), the gradient is

=====================================  =============================================================
`kl_rewards`, k1, `to_go`              that of KL(pi‖ref), exactly, on-policy
`sequence_kl_penalty`, weighted        exact for k1 and k3 from any old
`sequence_kl_penalty`, not weighted    on-policy k2 is exact, k3 that of KL(ref‖pi), k1 is 0
`kl_penalty`, weights of prefixes      exact for k1 and k3 from any old
`kl_penalty`, weights of tokens        k1, k3: what a token does to later tokens' KL is missing
`kl_penalty`, not weighted             k2 as above, on-policy; k3 is of the other direction; k1 is 0
=====================================  =============================================================

With one token the four weighted ones are the same. Averages that divide by the length of each
sequence make all of them inexact. Coefficients are not negative, one or one for each sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.estimators import monte_carlo
from jdiv.policy.tokens import Advantages, masked
from jdiv.types import LogProbs, Mask, PerRow

Estimator = Callable[[ArrayLike, ArrayLike], Array]
"""`kl_k1`, `kl_k2` or `kl_k3` of `jdiv.estimators`, from log p and log q at samples of p."""


def _refuse_no_estimator(estimator: Estimator) -> None:
    if not callable(estimator):
        raise TypeError(
            "estimator must be a function such as kl_k1, kl_k2 or kl_k3 of jdiv.estimators, got"
            f" {estimator!r}"
        )


def kl_rewards(
    log_probs: LogProbs,
    ref_log_probs: LogProbs,
    rewards: Advantages,
    mask: Mask,
    *,
    coefficient: PerRow,
    estimator: Estimator = monte_carlo.kl_k1,
) -> Array:
    """Rewards of tokens: `-coefficient k_t`, and at the last one also the answer's reward.

    Their sum over a sequence is RLOO's reward, `to_go` what REINFORCE++ and PPO have. Constants. An
    answer without tokens keeps its reward, at the first place, so that the sum has it; no token is
    there to be credited with it, and `to_go` is 0.
    Shapes: rewards `[...]`, the others `[..., T]`, to `[..., T]`.

    >>> log_probs, ref_log_probs = jnp.array([[-1.0, -2.0]]), jnp.array([[-2.0, -2.0]])
    >>> kl_rewards(log_probs, ref_log_probs, jnp.ones(1), jnp.full((1, 2), True), coefficient=0.5)
    Array([[-0.5,  1. ]], dtype=float32)

    Reference: Ahmadian et al. 2024 (arXiv:2402.14740), equation 4.
    Reconstructed: the equation is from memory of the paper.
    """
    _refuse_no_estimator(estimator)
    log_probs, mask, (ref, _) = masked(
        log_probs, mask, ref_log_probs=ref_log_probs, rewards=rewards
    )
    coefficient = checks.not_negative("coefficient", coefficient, rows=log_probs)
    # Not masked: an answer without tokens has a reward, too.
    rewards = checks.as_rewards("rewards", rewards, log_probs.dtype).astype(log_probs.dtype)
    rewards = jax.lax.stop_gradient(rewards if rewards.ndim == mask.ndim else rewards[..., None])
    counts = mask.astype(jnp.int32)
    last = mask & (jax.lax.cumsum(counts, axis=mask.ndim - 1, reverse=True) == 1)
    empty = ~jnp.any(mask, axis=-1, keepdims=True)
    place = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
    paid = last | (empty & (place == 0))
    penalty = coefficient * jax.lax.stop_gradient(estimator(log_probs, ref))
    return jnp.where(paid, rewards, 0) - penalty


def token_log_ratio(log_ratio: Array) -> Array:
    """`log pi_t/old_t` of each token: weights that see no other token. Shapes: `[..., T]` twice."""
    return log_ratio


def prefix_log_ratio(log_ratio: Array) -> Array:
    """`sum_{s <= t} log pi_s/old_s`: weights of the prefix up to a token, the token included.

    Shapes: `[..., T]` twice.
    """
    return jax.lax.cumsum(log_ratio, axis=log_ratio.ndim - 1)


def kl_penalty(
    log_probs: LogProbs,
    ref_log_probs: LogProbs,
    mask: Mask,
    *,
    estimator: Estimator = monte_carlo.kl_k3,
    old_log_probs: LogProbs | None = None,
    log_weight: Callable[[Array], Array] = token_log_ratio,
) -> Array:
    """KL(pi‖ref) inside the loss, token by token: `w_t k(log pi_t, log ref_t)`.

    The weight is differentiated. It is the exponential of `token_log_ratio` or `prefix_log_ratio`
    of `log pi/pi_old`; without old log-probabilities it is 1, as GRPO has it. On-policy, pass
    stop_gradient(log_probs). The table of this module says whose gradient comes out. To be averaged
    as a token loss is. Shapes: `[..., T]` to the same.

    >>> log_probs, mask = jnp.log(jnp.array([[0.5, 0.5]])), jnp.full((1, 2), True)
    >>> penalty = kl_penalty(log_probs, jnp.log(jnp.array([[0.25, 0.5]])), mask)
    >>> [f"{k3:.4f}" for k3 in penalty[0]]  # 1/2 - 1 + log 2, and 0
    ['0.1931', '0.0000']

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), equation 4, with k3 and no weight; RPG
    (arXiv:2505.17508) for the weight.
    """
    _refuse_no_estimator(estimator)
    log_probs, mask, (ref,) = masked(log_probs, mask, ref_log_probs=ref_log_probs)
    penalty = estimator(log_probs, ref)
    if old_log_probs is None:
        return penalty
    _, _, (old,) = masked(log_probs, mask, old_log_probs=old_log_probs)
    return jnp.exp(jnp.where(mask, log_weight(log_probs - old), 0)) * penalty


def sequence_kl_penalty(
    log_probs: LogProbs,
    ref_log_probs: LogProbs,
    mask: Mask,
    *,
    estimator: Estimator = monte_carlo.kl_k2,
    old_log_probs: LogProbs | None = None,
) -> Array:
    """KL(pi‖ref) inside the loss, of whole sequences: `w k(sum log pi_t, sum log ref_t)`.

    The weight `prod pi_t/old_t` is differentiated; without old log-probabilities it is 1. One
    number for each sequence, to be averaged over sequences. Shapes: `[..., T]` to `[...]`.

    Reference: RPG (arXiv:2505.17508) for the weight.
    """
    _refuse_no_estimator(estimator)
    log_probs, mask, (ref,) = masked(log_probs, mask, ref_log_probs=ref_log_probs)
    total = jnp.sum(log_probs, axis=-1)
    penalty = estimator(total, jnp.sum(ref, axis=-1))
    if old_log_probs is None:
        return penalty
    _, _, (old,) = masked(log_probs, mask, old_log_probs=old_log_probs)
    return jnp.exp(total - jnp.sum(old, axis=-1)) * penalty
