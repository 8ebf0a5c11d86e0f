"""Policy gradients from groups of answers: advantages, clips, averages and KL terms that compose.

Rewards are `[groups, size]`, a group the answers to one question. A loss takes log-probabilities
`[..., T]` of the tokens that were sampled, advantages `[...]` or `[..., T]` and a mask `[..., T]`
that is True where a token counts. It is minimised and not yet averaged; what was in masked places,
NaN included, has no influence. Half precision is widened. The methods are these compositions:

============  ==============================  ========================  =====================
method        advantages                      loss                      average
============  ==============================  ========================  =====================
GRPO          `grpo_advantages`               `ppo_clip`, `kl_penalty`  `sequence_mean`
Dr. GRPO      `grpo_advantages(scale=False)`  `ppo_clip`                `constant_mean`
DAPO          `grpo_advantages`               `ppo_clip(high=.28)`      `token_mean`
GSPO          `grpo_advantages`               `gspo`                    `sequence_mean`
CISPO         `grpo_advantages`               `cispo`                   `token_mean`
RLOO          `rloo_advantages`               `reinforce`               `constant_mean`
REINFORCE++   `batch_advantages`              `ppo_clip`                `token_mean`
============  ==============================  ========================  =====================

RLOO and REINFORCE++ have KL in the rewards: the sum of `kl_rewards` over a sequence, and their
`to_go`. DAPO leaves out groups that are not `varied`.

**KL terms and their gradients**, in expectation over samples of old, which is the policy itself
where nothing is said (old = stop_gradient):

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, parallel
from jdiv.checks import known
from jdiv.estimators import monte_carlo

Estimator = Callable[[ArrayLike, ArrayLike], Array]
"""`kl_k1`, `kl_k2` or `kl_k3` of `jdiv.estimators`: of log p and log q at samples of p."""


class TokenLoss(NamedTuple):
    """A loss before it is averaged."""

    loss: Array
    """`[..., T]` per token, 0 where masked, or `[...]` per sample."""
    aux: NamedTuple
    """Evidence, without derivatives."""


class Clipping(NamedTuple):
    """What a clip saw; 0 and False where masked."""

    ratio: Array
    """`pi/pi_old`."""
    clipped: Array
    """Whether a bound took the place of the ratio."""


def tokens(
    log_probs: ArrayLike, mask: ArrayLike, **others: ArrayLike
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Log-probabilities, mask and others in one precision and shape, 0 where masked.

    Others without the last axis count for all tokens of their sequence, and are constants.
    """
    arrays = {name: checks.as_float(name, x) for name, x in others.items()}
    log_probs, mask = checks.as_float("log_probs", log_probs), jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be a boolean array, got dtype {mask.dtype}")
    checks.same_shape(log_probs=log_probs, mask=mask)
    dtype = log_probs.dtype
    for name, x in arrays.items():
        if x.shape not in (log_probs.shape, log_probs.shape[:-1]):
            raise ValueError(
                f"{name} must be of shape {log_probs.shape}, or without the last axis,"
                f" got {x.shape}"
            )
        dtype = jnp.promote_types(dtype, x.dtype)

    def kept(x: Array) -> Array:
        x = x.astype(dtype) if x.ndim == mask.ndim else x.astype(dtype)[..., None]
        return jnp.where(mask, x, 0)

    constants = (jax.lax.stop_gradient(kept(x)) for x in arrays.values())
    return kept(log_probs), mask, tuple(constants)


# ------------------------------------------------------------------------------------------ losses


def clipped_surrogate(
    log_ratio: Array,
    advantages: Array,
    *,
    low: ArrayLike,
    high: ArrayLike,
    ceiling: ArrayLike = jnp.inf,
) -> TokenLoss:
    """`-min(w A, clip(w, 1 - low, 1 + high) A)`, and at most `-ceiling A` where A is negative.

    Where a bound counts the ratio may overflow. Shapes: any, twice the same.
    """
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    most = jnp.where(advantages > 0, 1 + high, ceiling).astype(ratio.dtype)
    above = ratio > most
    below = (ratio < 1 - low) & (advantages < 0)
    used = jnp.exp(jnp.where(above | below | (advantages == 0), 0, log_ratio))
    bounded = jnp.where(above, most, jnp.where(below, 1 - low, used).astype(ratio.dtype))
    clipped = (above | below) & (advantages != 0)
    return TokenLoss(-bounded * advantages, Clipping(ratio, clipped))


def ppo_clip(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> TokenLoss:
    """PPO's loss per token, `-min(w A, clip(w, 1 - low, 1 + high) A)`, w = pi/pi_old.

    A bound that is not wanted is `low=1` or `high=inf`. Shapes: `[..., T]`, advantages also
    `[...]`, to `[..., T]`.

    Reference: Schulman et al. 2017 (arXiv:1707.06347), equation 7; two bounds as in DAPO
    (arXiv:2503.14476), which has .2 and .28.
    """
    log_probs, mask, (old, advantages) = tokens(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    loss, (ratio, clipped) = clipped_surrogate(log_probs - old, advantages, low=low, high=high)
    return TokenLoss(loss, Clipping(jnp.where(mask, ratio, 0), clipped))


def gspo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    low: ArrayLike = 3e-4,
    high: ArrayLike = 4e-4,
) -> TokenLoss:
    """PPO's loss with `(pi/pi_old)^(1/length)` of the whole sequence for the ratio of each token.

    The same value at all tokens, with the derivative by their own log-probabilities: after
    `sequence_mean` value and gradient are those of `-min(s A, clip(s) A)` per sequence.
    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: Zheng et al. 2025 (arXiv:2507.18071), as GSPO-token; formula and bounds from memory.
    """
    log_probs, mask, (old, advantages) = tokens(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    length = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(log_probs.dtype)
    mean = jnp.sum(log_probs - old, axis=-1, keepdims=True) / length
    log_ratio = jax.lax.stop_gradient(mean - log_probs) + log_probs
    loss, (ratio, clipped) = clipped_surrogate(log_ratio, advantages, low=low, high=high)
    return TokenLoss(loss, Clipping(jnp.where(mask, ratio, 0), clipped))


def cispo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    low: ArrayLike = 1.0,
    high: ArrayLike,
) -> TokenLoss:
    """`-stop_gradient(clip(w, 1 - low, 1 + high)) A log pi`: every token keeps a gradient.

    Without clipping its gradient is that of `-w A`. Shapes: `[..., T]`, advantages also `[...]`, to
    `[..., T]`.

    Reference: MiniMax-M1 (arXiv:2506.13585), from memory: no lower bound, `high` tuned.
    """
    log_probs, mask, (old, advantages) = tokens(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    ratio = jax.lax.stop_gradient(jnp.exp(log_probs - old))
    weight = jnp.clip(ratio, 1 - low, 1 + high).astype(ratio.dtype)
    evidence = Clipping(jnp.where(mask, ratio, 0), mask & (weight != ratio))
    return TokenLoss(-weight * advantages * log_probs, evidence)


def reinforce(log_probs: ArrayLike, advantages: ArrayLike, mask: ArrayLike) -> TokenLoss:
    """`-A log pi` for samples of the policy. Shapes: `[..., T]`, advantages also `[...]`.

    Reference: Williams 1992.
    """
    log_probs, mask, (advantages,) = tokens(log_probs, mask, advantages=advantages)
    one = mask.astype(log_probs.dtype)
    return TokenLoss(-advantages * log_probs, Clipping(one, jnp.zeros_like(mask)))


# ---------------------------------------------------------------------------------------- KL terms


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
    log_probs, mask, (ref, rewards) = tokens(
        log_probs, mask, ref_log_probs=ref_log_probs, rewards=rewards
    )
    counts = mask.astype(jnp.int32)
    last = mask & (jax.lax.cumsum(counts, axis=mask.ndim - 1, reverse=True) == 1)
    penalty = coefficient * jax.lax.stop_gradient(estimator(log_probs, ref))
    return jnp.where(last, rewards, 0) - penalty


def to_go(token_rewards: ArrayLike, mask: ArrayLike) -> Array:
    """Sums of what a token and those after it get; 0 where masked. Shapes: `[..., T]` twice.

    >>> to_go(jnp.array([1.0, 2.0, 4.0]), jnp.array([True, True, False]))
    Array([3., 2., 0.], dtype=float32)
    """
    token_rewards, mask, _ = tokens(token_rewards, mask)
    sums = jax.lax.cumsum(token_rewards, axis=mask.ndim - 1, reverse=True)
    return jnp.where(mask, sums, 0)


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
    log_probs, mask, (ref,) = tokens(log_probs, mask, ref_log_probs=ref_log_probs)
    penalty = estimator(log_probs, ref)
    if old_log_probs is None:
        return penalty
    _, _, (old,) = tokens(log_probs, mask, old_log_probs=old_log_probs)
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
    log_probs, mask, (ref,) = tokens(log_probs, mask, ref_log_probs=ref_log_probs)
    total = jnp.sum(log_probs, axis=-1)
    penalty = estimator(total, jnp.sum(ref, axis=-1))
    if old_log_probs is None:
        return penalty
    _, _, (old,) = tokens(log_probs, mask, old_log_probs=old_log_probs)
    return jnp.exp(total - jnp.sum(old, axis=-1)) * penalty


# ---------------------------------------------------------------------------------------- averages


def _kept(x: ArrayLike, mask: ArrayLike) -> tuple[Array, Array]:
    """x with 0 where masked, and the mask as numbers."""
    x, mask = checks.as_float("x", x), jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be a boolean array, got dtype {mask.dtype}")
    checks.same_shape(x=x, mask=mask)
    return jnp.where(mask, x, 0), mask.astype(x.dtype)


def _mean_of_counted(x: Array, counts: Array, axis_name: str | None) -> Array:
    """`sum x / sum counts` over all devices; 0 if nothing counts."""
    total, count = parallel.sum_over((jnp.sum(x), jnp.sum(counts)), axis_name)
    return total / jnp.maximum(count, 1)


def token_mean(x: ArrayLike, mask: ArrayLike, *, axis_name: str | None = None) -> Array:
    """The mean over all tokens that count, each alike: a sequence weighs as much as it is long.

    Shapes: `[n, T]` twice to `[]`; 0 if nothing counts.

    >>> token_mean(jnp.array([[1.0, 9.0], [4.0, 4.0]]), jnp.array([[True, False], [True, True]]))
    Array(3., dtype=float32)

    Reference: DAPO (arXiv:2503.14476), equation 8.
    """
    return _mean_of_counted(*_kept(x, mask), axis_name)


def sequence_mean(x: ArrayLike, mask: ArrayLike, *, axis_name: str | None = None) -> Array:
    """The mean over sequences of the mean over their tokens: all sequences weigh the same.

    Sequences without tokens do not count. Shapes: `[n, T]` twice to `[]`; 0 if nothing counts.

    >>> sequence_mean(jnp.array([[1.0, 9.0], [4.0, 4.0]]), jnp.array([[True, False], [True, True]]))
    Array(2.5, dtype=float32)

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), equation 3.
    """
    x, mask = _kept(x, mask)
    length = jnp.sum(mask, axis=-1)
    means = jnp.sum(x, axis=-1) / jnp.maximum(length, 1)
    return _mean_of_counted(means, jnp.minimum(length, 1), axis_name)


def constant_mean(
    x: ArrayLike, mask: ArrayLike, length: ArrayLike, *, axis_name: str | None = None
) -> Array:
    """The mean over sequences of the sum over their tokens, divided by a constant length.

    Sequences without tokens do not count. Shapes: `[n, T]` twice and `[]` to `[]`; 0 if nothing
    counts.

    Reference: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), section 3.2.
    """
    x, mask = _kept(x, mask)
    return _mean_of_counted(jnp.sum(x, axis=-1), jnp.max(mask, axis=-1), axis_name) / length


# -------------------------------------------------------------------------------------- advantages


def _centred(rewards: ArrayLike) -> Array:
    """Rewards less the mean of their group, exactly 0 where all are equal."""
    rewards = jax.lax.stop_gradient(checks.as_float("rewards", rewards))
    # The mean of equal numbers may not be that number in floating point.
    relative = rewards - rewards[..., :1]
    return relative - jnp.mean(relative, axis=-1, keepdims=True)


def grpo_advantages(rewards: ArrayLike, *, scale: bool = True) -> Array:
    """`(r - mean)/std` of each group, 0 where all are equal; `scale=False` leaves out std.

    The standard deviation is that of the group (n, not n - 1). Shapes: `[groups, size]` to the
    same.

    >>> grpo_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0]]))
    Array([[ 1., -1., -1.,  1.]], dtype=float32)

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), section 4.1.2; without std Dr. GRPO (Liu
    et al. 2025, arXiv:2503.20783).
    """
    centred = _centred(rewards)
    if not scale:
        return centred
    spread = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True))
    return centred / jnp.where(spread > 0, spread, 1)


def rloo_advantages(rewards: ArrayLike) -> Array:
    """Reward less the mean of the others of the group, `n/(n - 1) (r - mean)`.

    A single answer has no others and keeps its reward. Shapes: `[groups, size]` to the same.

    >>> rloo_advantages(jnp.array([[3.0, 1.0, 2.0]]))
    Array([[ 1.5, -1.5,  0. ]], dtype=float32)

    Reference: Ahmadian et al. 2024 (arXiv:2402.14740), section 3.
    """
    rewards = jax.lax.stop_gradient(checks.as_float("rewards", rewards))
    size = rewards.shape[-1]
    return rewards if size == 1 else _centred(rewards) * (size / (size - 1))


def batch_advantages(returns: ArrayLike, mask: ArrayLike, *, axis_name: str | None = None) -> Array:
    """`(x - mean)/std` of tokens' returns over the whole batch, not the group; 0 where masked.

    0 if all are equal, by the resolution of the mean. Shapes: `[..., T]` twice to the same.

    Reference: REINFORCE++ (Hu et al. 2025, arXiv:2501.03262), from memory.
    """
    x, mask, _ = tokens(jax.lax.stop_gradient(jnp.asarray(returns)), mask)
    counts = mask.astype(x.dtype)
    mean = _mean_of_counted(x, counts, axis_name)
    centred = jnp.where(mask, x - mean, 0)
    # The mean of equal numbers may not be that number: what is left then is rounding.
    spread = jnp.sqrt(_mean_of_counted(centred**2, counts, axis_name))
    resolution = 4 * jnp.finfo(x.dtype).eps * jnp.abs(mean)
    differs = spread > resolution
    return jnp.where(differs, centred / jnp.where(differs, spread, 1), 0)


def varied(rewards: ArrayLike) -> Array:
    """Which groups have different rewards: the others have no gradient, and DAPO samples anew.

    Shapes: `[groups, size]` to `[groups]`.

    >>> varied(jnp.array([[0.0, 1.0], [1.0, 1.0]]))
    Array([ True, False], dtype=bool)

    Reference: DAPO (arXiv:2503.14476), section 3.2, dynamic sampling.
    """
    rewards = checks.as_float("rewards", rewards)
    return jnp.any(rewards != rewards[..., :1], axis=-1)
