"""Advantages from groups of answers to one question: for pass@1, for pass@k, of least variance.

Rewards are `[groups, size]`, a group the answers to one question: numbers, or 0 and 1, which may
be booleans and integers. Flat ones `[n]` are refused, as they would be one group. Advantages are
constants. With a loss of `jdiv.policy.clipped`, an average of `jdiv.policy.tokens` and a KL term
of `jdiv.policy.kl_terms` they make up the methods:

============  ==============================  ========================  =====================
method        advantages                      loss                      average
============  ==============================  ========================  =====================
GRPO          `grpo_advantages`               `ppo_clip`, `kl_penalty`  `sequence_mean`
Dr. GRPO      `grpo_advantages(scale=False)`  `ppo_clip`                `constant_mean`
DAPO          `grpo_advantages`               `ppo_clip(high=.28)`      `token_mean`
GSPO          `grpo_advantages`               `gspo`                    `sequence_mean`
CISPO         `grpo_advantages`               `cispo`                   `token_mean`
VESPO         `grpo_advantages`               `vespo`                   `token_mean`
SAPO          `grpo_advantages`               `sapo`                    `sequence_mean`
LUSPO         `grpo_advantages`               `luspo`                   `sequence_mean`
GMPO          `grpo_advantages`               `gmpo`                    `sequence_mean`
DPPO          `grpo_advantages`               `dppo`                    `token_mean`
RLOO          `rloo_advantages`               `reinforce`               `constant_mean`, 1
REINFORCE++   `batch_advantages`              `ppo_clip`                `token_mean`
OPO           `opo_advantages`                `reinforce`               `token_mean`
OTB           `optimal_token_advantages`      `ppo_clip`                `token_mean`
PKPO          `pass_at_k_advantages`          `reinforce`               `constant_mean`, 1
pass@k GRPO   `pass_at_k_grpo_advantages`     `ppo_clip`                `sequence_mean`
============  ==============================  ========================  =====================

RLOO and REINFORCE++ have KL in the rewards: the sum of `kl_rewards` over a sequence, and their
`to_go`. DAPO leaves out groups that are not `varied`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, parallel
from jdiv.policy.metrics import chances_of_largest
from jdiv.policy.tokens import kept, masked_mean
from jdiv.types import Indices, Logits, Mask, PerToken, Rewards


def grouped(rewards: Rewards, name: str = "rewards") -> Array:
    """Checked rewards `[groups, size]`, or more axes before these; one axis is refused."""
    rewards = checks.as_rewards(name, rewards)
    if rewards.ndim < 2 or rewards.shape[-1] == 0:
        raise ValueError(
            f"{name} must be of shape [groups, size], such as {name}.reshape(-1, size), got"
            f" {tuple(rewards.shape)}"
        )
    return rewards


def _centered(rewards: Array) -> Array:
    """Rewards less the mean of their group, exactly 0 where all are equal."""
    # The mean of equal numbers may not be that number in floating point.
    relative = rewards - rewards[..., :1]
    return relative - jnp.mean(relative, axis=-1, keepdims=True)


def grpo_advantages(rewards: Rewards, *, scale: bool = True) -> Array:
    """`(r - mean)/std` of each group, 0 where all are equal; `scale=False` leaves out std.

    The standard deviation is that of the group (n, not n - 1). Shapes: `[groups, size]` to the
    same.

    >>> grpo_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0]]))
    Array([[ 1., -1., -1.,  1.]], dtype=float32)

    Reference: GRPO (Shao et al. 2024, arXiv:2402.03300), section 4.1.2; without std Dr. GRPO (Liu
    et al. 2025, arXiv:2503.20783).
    """
    centered = _centered(jax.lax.stop_gradient(grouped(rewards)))
    if not scale:
        return centered
    # In units of the largest no square over- or underflows.
    largest = jnp.max(jnp.abs(centered), axis=-1, keepdims=True)
    centered = centered / jnp.where(largest == 0, 1, largest)
    spread = jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True))
    return centered / jnp.where(spread == 0, 1, spread)


def mean_of_others(rewards: Rewards) -> Array:
    """The mean reward of the other answers of the group: a baseline independent of the answer.

    A mean that includes the answer itself makes the gradient (n - 1)/n of what it should be.
    No reward is added and taken off again, so a large one leaves its own baseline exact.
    Shapes: `[..., size]` to the same, size > 1.

    >>> mean_of_others(jnp.array([[3.0, 1.0, 2.0]]))
    Array([[1.5, 2.5, 2. ]], dtype=float32)

    Reference: Ahmadian et al. 2024 (arXiv:2402.14740), section 3.
    """
    rewards = checks.as_rewards("rewards", rewards)
    if rewards.ndim == 0 or rewards.shape[-1] < 2:
        raise ValueError(f"rewards must have at least two samples, got shape {rewards.shape}")
    last = rewards.ndim - 1
    before = jax.lax.cumsum(rewards, axis=last)[..., :-1]
    after = jax.lax.cumsum(rewards, axis=last, reverse=True)[..., 1:]
    none = jnp.zeros_like(rewards[..., :1])
    sums = jnp.concatenate([none, before], axis=-1) + jnp.concatenate([after, none], axis=-1)
    mean = sums / (rewards.shape[-1] - 1)
    # The mean of equal numbers may not be that number in floating point.
    equal = jnp.all(rewards == rewards[..., :1], axis=-1, keepdims=True)
    return mean + jax.lax.stop_gradient(jnp.where(equal, rewards - mean, 0))


def _less_others(rewards: Array) -> Array:
    """`r - mean_of_others(r) = n/(n - 1) (r - mean)`."""
    return _centered(rewards) * (rewards.shape[-1] / (rewards.shape[-1] - 1))


def rloo_advantages(rewards: Rewards) -> Array:
    """Reward less `mean_of_others`, `n/(n - 1) (r - mean)`.

    A single answer has no others and keeps its reward. Shapes: `[groups, size]` to the same.

    >>> rloo_advantages(jnp.array([[3.0, 1.0, 2.0]]))
    Array([[ 1.5, -1.5,  0. ]], dtype=float32)

    Reference: Ahmadian et al. 2024 (arXiv:2402.14740), section 3.
    """
    rewards = jax.lax.stop_gradient(grouped(rewards))
    return rewards if rewards.shape[-1] == 1 else _less_others(rewards)


def batch_advantages(returns: PerToken, mask: Mask, *, axis_name: str | None = None) -> Array:
    """`(x - mean)/std` of tokens' returns over the whole batch, not the group; 0 where masked.

    0 if all are equal, by the resolution of the mean. Shapes: `[..., T]` twice to the same.

    >>> batch_advantages(jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]]))
    Array([[-1.,  1.,  0.]], dtype=float32)

    Reference: REINFORCE++ (Hu et al. 2025, arXiv:2501.03262).
    Reconstructed: the formula is from memory of the paper.
    """
    x, mask = kept("returns", jax.lax.stop_gradient(jnp.asarray(returns)), mask)
    mean = masked_mean(x, mask, axis_name)
    centered = jnp.where(mask, x - mean, 0)
    # In units of the largest no square over- or underflows.
    largest = parallel.max_over(jnp.max(jnp.abs(centered)), axis_name)
    unit = jnp.where(largest == 0, 1, largest)
    spread = jnp.sqrt(masked_mean((centered / unit) ** 2, mask, axis_name))
    # The mean of equal numbers may not be that number: what is left then is rounding.
    equal = spread * unit <= 4 * jnp.finfo(x.dtype).eps * jnp.abs(mean)
    return jnp.where(mask & ~equal, centered / unit / jnp.where(equal, 1, spread), 0)


def varied(rewards: Rewards) -> Array:
    """Whether a group has different rewards: the others have no gradient, and DAPO samples anew.

    Shapes: `[groups, size]` to `[groups]`.

    >>> varied(jnp.array([[0.0, 1.0], [1.0, 1.0]]))
    Array([ True, False], dtype=bool)

    Reference: DAPO (arXiv:2503.14476), section 3.2, dynamic sampling.
    """
    rewards = grouped(rewards)
    return jnp.any(rewards != rewards[..., :1], axis=-1)


# ------------------------------------------------------------------------------------- for pass@k


def _of_k(rewards: Array, k: int) -> Array:
    """Chances that k - 1 others are among the i - 1 smallest, of the rewards' shape."""
    n = rewards.shape[-1]
    k = checks.whole("k", k, 1, n, f"from 1 to {n}, the answers of a group")
    chances = jnp.asarray(chances_of_largest(n, k) * n / k, rewards.dtype)
    return jnp.broadcast_to(chances, rewards.shape)


def _sorted(rewards: Array) -> tuple[Array, Array]:
    """Rewards from the smallest to the largest, and their places in the group."""
    place = jax.lax.broadcasted_iota(jnp.int32, rewards.shape, rewards.ndim - 1)
    ordered, places = jax.lax.sort((rewards, place), num_keys=1)
    return ordered, places


def _in_order(of_sorted: Array, places: Array) -> Array:
    """What belongs to the sorted rewards, back at their places."""
    return jax.lax.sort((places, of_sorted), num_keys=1)[1]


def pass_at_k_rewards(rewards: Rewards, k: int) -> Array:
    """The mean of the largest of k rewards, the answer's own among them: a correct answer has 1.

    Times k, and with the mean over the group, `reinforce` has the gradient of pass@k (of the mean
    of the largest for rewards that are any numbers) without bias. No baseline is taken off.
    Shapes: `[groups, size]` to the same.

    >>> pass_at_k_rewards(jnp.array([[1.0, 0.0, 0.0]]), 2)
    Array([[1. , 0.5, 0.5]], dtype=float32)

    Reference: Walder and Karkhanis 2025 (arXiv:2505.15201), n/k times the s of their theorems.
    """
    rewards = jax.lax.stop_gradient(grouped(rewards))
    (ordered, places), below = _sorted(rewards), _of_k(rewards, k)
    larger = ordered[..., 1:] * jnp.diff(below, axis=-1)
    after = jax.lax.cumsum(larger, axis=rewards.ndim - 1, reverse=True)
    after = jnp.concatenate([after, jnp.zeros_like(ordered[..., :1])], axis=-1)
    return _in_order(below * ordered + after, places)


def pass_at_k_advantages(rewards: Rewards, k: int) -> Array:
    """k times what the answer adds to the largest reward of k - 1 others, in the mean over these.

    Unbiased for the gradient of pass@k; the baseline is what the others have without the answer,
    which for rewards 0 and 1 varies less than k `pass_at_k_rewards`, and for others need not.
    Nowhere negative, and 0 for the smallest; with k the size of the group only the best one counts,
    by its distance to the second. `k = 1` has `rloo_advantages`. Shapes: `[groups, size]` to the
    same.

    >>> pass_at_k_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0]]), 2)  # the other one of two is wrong
    Array([[1.3333334, 0.       , 0.       , 1.3333334]], dtype=float32)

    Reference: Walder and Karkhanis 2025 (arXiv:2505.15201), "leave one out minus one", n times the
    s; with k = n Tang et al. 2025 (arXiv:2503.19595).
    """
    rewards = jax.lax.stop_gradient(grouped(rewards))
    (ordered, places), below = _sorted(rewards), _of_k(rewards, k)
    if k == 1:
        return rloo_advantages(rewards)
    # Chances that all k - 1 are below a step of the rewards: what the answer gains there.
    steps = jnp.diff(ordered, axis=-1, prepend=ordered[..., :1]) * below
    return _in_order(k * jax.lax.cumsum(steps, axis=rewards.ndim - 1), places)


def pass_at_k_grpo_advantages(correct: Rewards, k: int) -> Array:
    """`(pass_at_k_rewards - mean)/std`, the std that of one subset's pass@k, `sqrt(m (1 - m))`.

    GRPO's own times a factor of the group, `sqrt(c/(n - c) F/(1 - F))` with c of n correct and
    `F = C(n - c, k)/C(n, k)`: so easy questions, of which no subset fails, have no gradient. All 0
    where all are right or wrong. Answers are 0 and 1. Shapes: `[groups, size]` to the same.

    >>> print(pass_at_k_grpo_advantages(jnp.array([[1, 0, 0, 0], [1, 1, 1, 0]]), 2).round(3))
    [[ 1.    -0.333 -0.333 -0.333]
     [ 0.     0.     0.    -0.   ]]

    Reference: Chen et al. 2025 (arXiv:2508.10751), the analytical derivation.
    Reconstructed: from code of others that cites its equations 14 and 15.
    """
    correct = checks.zeros_and_ones("correct", jax.lax.stop_gradient(grouped(correct, "correct")))
    n = correct.shape[-1]
    k = checks.whole("k", k, 1, n, f"from 1 to {n}, the answers of a group")
    factor = jnp.asarray(_factors(n, k), correct.dtype)
    which = jnp.sum(correct == 1, axis=-1, dtype=jnp.int32)
    return grpo_advantages(correct) * factor[which][..., None]


@functools.cache
def _factors(n: int, k: int) -> np.ndarray:
    """`sqrt(c/(n - c) F/(1 - F))` by c, from 0 to n, in double precision; 0 at both ends."""
    chances, c = chances_of_largest(n, k), np.arange(1, n)
    fails, passes = np.cumsum(chances)[n - 1 - c], np.cumsum(chances[::-1])[c - 1]
    return np.concatenate([[0], np.sqrt(c / (n - c) * fails / passes), [0]])


# -------------------------------------------------------------------------------- least variance


def opo_advantages(rewards: Rewards, lengths: ArrayLike) -> Array:
    """Reward less `sum length r / sum length`: the best baseline if scores grow with the length.

    It takes the squared norm of an answer's `grad log pi` for proportional to its length. A single
    answer keeps its reward. Shapes: `[groups, size]` twice to the same.

    >>> opo_advantages(jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 1.0]]))
    Array([[ 0.25, -0.75]], dtype=float32)

    Reference: Hao et al. 2025 (arXiv:2505.23585), as verl has it.
    Reconstructed: the formula is that of verl's code.
    """
    rewards = jax.lax.stop_gradient(grouped(rewards))
    lengths = jnp.asarray(checks.not_negative("lengths", lengths), rewards.dtype)
    checks.same_shape(rewards=rewards, lengths=lengths)
    if rewards.shape[-1] == 1:
        return rewards
    # The mean of equal numbers may not be that number in floating point.
    relative = rewards - rewards[..., :1]
    total = jnp.sum(lengths, axis=-1, keepdims=True)
    mean = jnp.sum(lengths * relative, axis=-1, keepdims=True) / jnp.where(total == 0, 1, total)
    return relative - mean


def score_norms(logits: Logits, tokens: Indices) -> Array:
    """`|grad log pi|^2` by the logits, `1 - 2 pi + sum pi_v^2`: 0 where the token is certain.

    Shapes: logits `[..., n]`, tokens `[...]`, to `[...]`.

    >>> print(score_norms(jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array(0)))
    0.375

    Reference: Li et al. 2026 (arXiv:2602.07078), the logit-gradient proxy.
    """
    logits, tokens = checks.as_float("logits", logits), checks.as_integers("tokens", tokens)
    p = jax.lax.stop_gradient(jnp.exp(numerics.log_softmax(logits)))
    place = jax.lax.broadcasted_iota(tokens.dtype, p.shape, p.ndim - 1)
    # (1 - pi)^2 + sum of the others' squares: nothing is lost where pi is close to 1.
    others = jnp.where(place == tokens[..., None], 0, p)
    return jnp.sum(others, axis=-1) ** 2 + jnp.sum(others**2, axis=-1)


def optimal_token_advantages(returns: PerToken, weights: PerToken, mask: Mask) -> Array:
    """`G_t - sum w_t G_t / sum w_t`, sums over the answers of a group at their t-th token.

    With `w_t = score_norms` the variance of `sum_t grad log pi_t (G_t - b_t)` is least if scores of
    different tokens are orthogonal, as in a table; the paper (and verl) has their `jnp.cumsum` up
    to t. Tokens are counted by the mask, so that what a tool wrote shifts none. The baseline is 0
    for a token that no other answer has, and where all weights are 0. Not negative weights.
    Shapes: `[groups, size, T]` three times to the same; 0 where masked.

    >>> returns, mask = jnp.array([[[1.0], [0.0]]]), jnp.full((1, 2, 1), True)
    >>> print(optimal_token_advantages(returns, jnp.array([[[3.0], [1.0]]]), mask)[0, :, 0])
    [ 0.25 -0.75]

    Reference: Li et al. 2026 (arXiv:2602.07078), as verl has it for one and for many turns.
    """
    returns, mask = kept("returns", jax.lax.stop_gradient(returns), mask)
    weights, _ = kept("weights", jax.lax.stop_gradient(weights), mask)
    if returns.ndim < 3:
        raise ValueError(f"returns must be of shape [groups, size, T], got {returns.shape}")
    weights = weights.astype(returns.dtype)
    number = jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1
    # Tokens that count to the left, in their order.
    order = jnp.argsort(~mask, axis=-1, stable=True)
    g, w, there = (jnp.take_along_axis(x, order, axis=-1) for x in (returns, weights, mask))
    # Relative to one of them: the mean of equal numbers may not be that number.
    some = jnp.max(jnp.where(there, g, -jnp.inf), axis=-2, keepdims=True)
    some = jnp.where(some == -jnp.inf, 0, some)
    total = jnp.sum(w, axis=-2, keepdims=True)
    mean = jnp.sum(w * jnp.where(there, g - some, 0), axis=-2, keepdims=True)
    alone = jnp.sum(there, axis=-2, keepdims=True, dtype=jnp.int32) < 2
    none = alone | (total == 0)
    baseline = jnp.where(none, 0, some + mean / jnp.where(none, 1, total))
    baseline = jnp.broadcast_to(baseline, returns.shape)
    own = jnp.take_along_axis(baseline, jnp.maximum(number, 0), axis=-1)
    return jnp.where(mask, returns - own, 0)
