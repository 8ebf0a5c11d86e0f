"""Losses that keep a policy exploring: by covariance, entropy, rare and conflicting tokens.

Log-probabilities are `[..., T]` of the tokens taken, masks boolean of the same shape, advantages
`[...]` of a sequence or `[..., T]`. A loss is per token and 0 where the mask is, or per sample; how
it is averaged is `group`'s business. Where no more than an abstract is known, the docstring says
what is inferred. `anchors` has losses towards a reference, `shaping` rewards and advantages.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, estimators, numerics, parallel
from jdiv.policy.group import TokenLoss, ppo_clip, tokens

LOG_2 = math.log(2)

# ------------------------------------------------------------------------------ batches of tokens


class _Tokens(NamedTuple):
    mask: Array
    log_probs: Array
    old_log_probs: Array
    advantages: Array
    ratio: Array


def _tokens(
    log_probs: ArrayLike, old_log_probs: ArrayLike, advantages: ArrayLike, mask: ArrayLike
) -> _Tokens:
    log_probs, mask, (old_log_probs, advantages) = tokens(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    ratio = jnp.exp(log_probs - old_log_probs)
    return _Tokens(mask, log_probs, old_log_probs, advantages, ratio)


def _mean(x: Array, mask: Array, axis_name: str | None) -> Array:
    """Mean of what the mask keeps over the whole batch, 0 for none."""
    total = parallel.sum_over(jnp.sum(jnp.where(mask, x, 0)), axis_name)
    return total / jnp.maximum(_count(mask, axis_name), 1).astype(x.dtype)


def _count(mask: Array, axis_name: str | None) -> Array:
    return parallel.sum_over(jnp.sum(mask, dtype=jnp.int32), axis_name)


def _share_of(count: Array, share: ArrayLike, dtype) -> Array:
    """That share of so many, at least one."""
    return jnp.maximum(jnp.floor(share * count.astype(dtype)), 1).astype(jnp.int32)


def kth_largest(
    scores: Array, eligible: Array, count: ArrayLike, *, axis_name: str | None = None
) -> Array:
    """The `count`-th largest of the eligible scores of the whole batch, -inf if there are fewer.

    Found bit by bit, because counting is all that devices have to do together. Shapes: any, twice
    the same, to `[]`.

    >>> float(kth_largest(jnp.array([3.0, 1.0, 2.0]), jnp.array([True, True, True]), 2))
    2.0
    """
    scores = jax.lax.stop_gradient(jnp.where(eligible, scores, -jnp.inf)) + 0.0  # no negative zero
    bits = jnp.finfo(scores.dtype).bits
    word = {32: jnp.uint32, 64: jnp.uint64}[bits]
    one, top = jnp.ones((), word), jnp.array(1 << (bits - 1), word)

    def key(x: Array) -> Array:  # in the order of the numbers
        pattern = jax.lax.bitcast_convert_type(x, word)
        return jnp.where(pattern >= top, ~pattern, pattern | top)

    keys = key(scores)

    def settle(i: Array, found: Array) -> Array:
        trial = found | (one << jnp.asarray(bits - 1 - i, word))
        enough = _count((keys >= trial) & eligible, axis_name) >= count
        return jnp.where(enough, trial, found)

    found = jax.lax.fori_loop(0, bits, settle, jnp.zeros((), word))
    found = jnp.maximum(found, key(jnp.full((), -jnp.inf, scores.dtype)))
    pattern = jnp.where(found >= top, found ^ top, ~found)
    return jax.lax.bitcast_convert_type(pattern, scores.dtype)


def among_largest(
    scores: Array, eligible: Array, count: ArrayLike, *, axis_name: str | None = None
) -> Array:
    """Which of the eligible are the `count` with the largest scores, or equal to the last of them.

    Shapes: any, twice the same, to the same.

    >>> among_largest(jnp.array([3.0, 1.0, 2.0, 2.0]), jnp.full(4, True), 2).tolist()
    [True, False, True, True]
    """
    return eligible & (scores >= kth_largest(scores, eligible, count, axis_name=axis_name))


# -------------------------------------------------------------------------------------- covariance


def predicted_entropy_change(log_policy: ArrayLike, change: ArrayLike) -> Array:
    """`-Cov_{a ~ pi}(log pi(a), dz(a))`: the change of entropy when logits change by dz.

    To first order; dz is `rate * pi * A` for the policy gradient and `rate * A` for the natural
    one. Shapes: `[..., A]` twice, normalised logarithms first, to `[...]`.

    Reference: Cui et al. 2025 (arXiv:2505.22617), the identity of its section on dynamics.
    """
    log_policy, change = checks.as_float("log_policy", log_policy), jnp.asarray(change)
    policy = jnp.exp(log_policy)
    log_policy = jnp.where(policy > 0, log_policy, 0)
    centred = change - jnp.sum(policy * change, axis=-1, keepdims=True)
    return -jnp.sum(policy * log_policy * centred, axis=-1)


class Covariance(NamedTuple):
    """Which tokens were singled out, and by what."""

    ratio: Array
    """`[..., T]`"""
    covariance: Array
    """`[..., T]` `(A - mean A)(log pi - mean log pi)`, of which the mean is the covariance."""
    chosen: Array
    """`[..., T]` tokens that the method treats in its own way."""


def _covariance(x: _Tokens, axis_name: str | None) -> Array:
    parts = (x.advantages, x.log_probs)
    advantages, log_probs = (p - _mean(p, x.mask, axis_name) for p in parts)
    return jax.lax.stop_gradient(jnp.where(x.mask, advantages * log_probs, 0))


def kl_cov(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    share: ArrayLike = 0.002,
    coefficient: ArrayLike = 1.0,
    axis_name: str | None = None,
) -> TokenLoss:
    """`-A w`, and `+ coefficient |log w|` for the share of tokens with the largest covariance.

    No clip. At least one token is chosen, and all that are equal to the last one; the share is
    of the batch: .002 and .0002 in the paper. At ratio 1 the gradient is that of `-A w`; a ratio
    that is 1 but for rounding has the whole slope of |log w|, so the first step on a batch needs
    old log-probabilities that are the policy's own to the last digit.
    Shapes: as at the top of the module.

    Reference: Cui et al. 2025 (arXiv:2505.22617), KL-Cov, and its code.
    """
    x = _tokens(log_probs, old_log_probs, advantages, mask)
    covariance = _covariance(x, axis_name)
    count = _share_of(_count(x.mask, axis_name), share, x.ratio.dtype)
    chosen = among_largest(covariance, x.mask, count, axis_name=axis_name)
    log_ratio = x.log_probs - x.old_log_probs
    # The derivative of |x| at 0 is 0 here, and 1 for jnp.abs.
    penalty = coefficient * log_ratio * jax.lax.stop_gradient(jnp.sign(log_ratio))
    loss = -x.advantages * x.ratio + jnp.where(chosen, penalty, 0)
    return TokenLoss(
        jnp.where(x.mask, loss, 0), Covariance(jax.lax.stop_gradient(x.ratio), covariance, chosen)
    )


def clip_cov(
    key: Array,
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    share: ArrayLike = 2e-4,
    lowest: ArrayLike = 1.0,
    highest: ArrayLike = 5.0,
    low: ArrayLike = 1.0,
    high: ArrayLike = 1.0,
    axis_name: str | None = None,
) -> TokenLoss:
    """PPO's loss without a random share of the tokens whose covariance is in (lowest, highest).

    Drawn uniformly from those that are not clipped already, at least one if there is any; their
    loss is 0. `low = high = 1` is the recipe's clip, which leaves no more than doubled ratios.
    With nothing in the band it is `ppo_clip`. Keys have to differ between devices.
    Shapes: as at the top of the module.

    Reference: Cui et al. 2025 (arXiv:2505.22617), Clip-Cov, and its code.
    """
    x = _tokens(log_probs, old_log_probs, advantages, mask)
    covariance = _covariance(x, axis_name)
    parent = ppo_clip(x.log_probs, x.old_log_probs, x.advantages, x.mask, low=low, high=high)
    inside = (covariance > lowest) & (covariance < highest)
    eligible = x.mask & inside & ~parent.aux.clipped
    scores = jax.random.uniform(key, covariance.shape, covariance.dtype)
    count = _share_of(_count(x.mask, axis_name), share, x.ratio.dtype)
    chosen = among_largest(scores, eligible, count, axis_name=axis_name)
    loss = jnp.where(chosen, 0, parent.loss)
    return TokenLoss(loss, Covariance(parent.aux.ratio, covariance, chosen))


# ------------------------------------------------------------------------- adaptive entropy bonus


def aer_coefficients(accuracy: ArrayLike, scale: ArrayLike, *, rho: ArrayLike) -> Array:
    """Entropy coefficient `scale max(0, rho - accuracy)` of each question: more for the harder.

    Inferred: of AER its abstract is known, a coefficient by difficulty and one for all. Shapes: any
    to the same; 0 from the accuracy rho on.

    Reference: adaptive entropy regularisation (arXiv:2510.10959), abstract.
    """
    return scale * jnp.maximum(rho - checks.as_float("accuracy", accuracy), 0)


def aer_scale(
    scale: ArrayLike,
    entropy: ArrayLike,
    initial_entropy: ArrayLike,
    *,
    target: ArrayLike = 0.4,
    rate: ArrayLike,
) -> Array:
    """`max(0, scale + rate (target H_0 - H))`: rests where the entropy is its target.

    That the target is a share of the initial entropy is the abstract's; the integral control is
    inferred, and .4 is from a summary by others. Shapes: any, broadcast.

    Reference: adaptive entropy regularisation (arXiv:2510.10959), abstract.
    """
    entropy = checks.as_float("entropy", entropy)
    return jnp.maximum(scale + rate * (target * initial_entropy - entropy), 0)


# ------------------------------------------------------------------------------------- rare tokens


def min_p_proxy(logits: ArrayLike, *, kappa: ArrayLike = 0.02) -> Array:
    """Log-probabilities without the tokens below `kappa max p`, renormalised.

    What is dropped has -inf; kappa 0 drops nothing. Shapes: `[..., V]` to the same.

    Reference: Lp-Reg (arXiv:2510.03222), code.
    """
    log_p = numerics.log_softmax(checks.as_float("logits", logits))
    least = jnp.log(jnp.asarray(kappa, log_p.dtype)) + jnp.max(log_p, axis=-1, keepdims=True)
    return numerics.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))


class LowProbability(NamedTuple):
    """Which tokens were protected."""

    ratio: Array
    """`[..., T]`"""
    chosen: Array
    """`[..., T]` rare tokens of negative advantage that the proxy keeps."""
    penalty: Array
    """`[..., T]` k3 of those, 0 of the others."""


def lp_reg(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    proxy_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    share: ArrayLike = 0.01,
    coefficient: ArrayLike = 1.0,
    low: ArrayLike = 1.0,
    high: ArrayLike = 9.0,
    axis_name: str | None = None,
) -> TokenLoss:
    """PPO's loss, but `-A w + coefficient k3` for rare tokens of negative advantage.

    Rare is the given share, by log-probability, of the tokens of negative advantage (at least one),
    if the proxy (of `min_p_proxy`, 0 gradient) gives them more: what the proxy drops is left to
    PPO. `k3 = e^d - 1 - d` at `d = log proxy/pi`, at most 10; its gradient always raises the token.
    With coefficient 0 and ratios within the clip it is `ppo_clip`. That the share is of the tokens
    of negative advantage is one reading. Shapes: as at the top of the module.

    Reference: Lp-Reg (arXiv:2510.03222), code.
    """
    x = _tokens(log_probs, old_log_probs, advantages, mask)
    _, _, (proxy,) = tokens(log_probs, mask, proxy_log_probs=proxy_log_probs)
    negative = x.mask & (x.advantages < 0)
    count = _share_of(_count(negative, axis_name), share, x.ratio.dtype)
    rare = among_largest(-x.log_probs, negative, count, axis_name=axis_name)
    chosen = rare & (x.log_probs < proxy)
    # k3 is beyond its bound from 2.62 on: a constant there, without overflow.
    log_ratio = jnp.clip(jnp.where(chosen, proxy - x.log_probs, 0), None, 3.0)
    k3 = jnp.minimum(estimators.kl_k3(jnp.zeros_like(log_ratio), log_ratio), 10.0)
    parent = ppo_clip(x.log_probs, x.old_log_probs, x.advantages, x.mask, low=low, high=high)
    # Only its own branch may overflow where it is not taken.
    ratio = jnp.exp(jnp.where(chosen, x.log_probs - x.old_log_probs, 0))
    loss = jnp.where(chosen, -x.advantages * ratio + coefficient * k3, parent.loss)
    return TokenLoss(loss, LowProbability(parent.aux.ratio, chosen, jax.lax.stop_gradient(k3)))


# ----------------------------------------------------------------------------- conflicting tokens


def conflict_weights(
    tokens: ArrayLike, advantages: ArrayLike, mask: ArrayLike, *, runs: bool = False
) -> Array:
    """2 and 0 for conflicting tokens in completions of positive and negative advantage, else 1.

    Conflicting are equal tokens at equal places in completions of both signs. With `runs` it is
    the released code: only those of the unbroken run from the start, times the same for the run to
    the end with completions aligned there, so that 4 is possible. Masks then have to be prefixes.
    Shapes: tokens and mask `[..., G, T]`, advantages `[..., G]` to `[..., G, T]`.

    Reference: GTPO (arXiv:2508.03772), and its code.
    """
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    advantages = checks.as_float("advantages", advantages)
    checks.same_shape(tokens=tokens, mask=mask)

    def conflicts(tokens: Array, mask: Array) -> Array:
        equal = tokens[..., :, None, :] == tokens[..., None, :, :]
        both = mask[..., :, None, :] & mask[..., None, :, :]
        opposite = advantages[..., :, None] * advantages[..., None, :] < 0
        return jnp.any(equal & both & opposite[..., None], axis=-2)

    def weights(conflict: Array) -> Array:
        sided = jnp.where(advantages[..., None] > 0, 2.0, 0.0)
        return jnp.where(conflict, sided, 1.0).astype(advantages.dtype)

    if not runs:
        return weights(conflicts(tokens, mask))
    length = tokens.shape[-1]
    place = jnp.arange(length).reshape((1,) * (tokens.ndim - 1) + (length,))
    shift = length - jnp.sum(mask, axis=-1, keepdims=True)
    right = (place - shift) % length
    ending = conflicts(*(jnp.take_along_axis(x, right, axis=-1) for x in (tokens, mask)))
    ending = jnp.flip(jnp.cumprod(jnp.flip(ending, -1).astype(jnp.int32), axis=-1), -1)
    back = (place + shift) % length
    starting = jnp.cumprod(conflicts(tokens, mask).astype(jnp.int32), axis=-1)
    return weights(starting > 0) * weights(jnp.take_along_axis(ending, back, axis=-1) > 0)


class Conflict(NamedTuple):
    """How much of each completion counts."""

    ratio: Array
    """`[..., G, T]`"""
    weights: Array
    """`[..., G, T]` 0, 1 or 2 (4 for runs) of each token."""
    kept: Array
    """`[..., G]` completions that are not dropped for their entropy."""


def gtpo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    entropy: ArrayLike,
    advantages: ArrayLike,
    weights: ArrayLike,
    mask: ArrayLike,
    *,
    initial_entropy: ArrayLike,
    coefficient: ArrayLike = 0.1,
    threshold: ArrayLike = LOG_2,
) -> TokenLoss:
    """`-keep (A - coefficient <H>) w weight`, to be reduced by `sequence_mean`.

    `<H>` is a completion's mean entropy, no gradient in it (not stated). A completion is kept if it
    is at most the threshold, or if the initial entropy was above it: any distribution with
    `max p <= 1/2` has at least log 2. The weights are of `conflict_weights`, the advantages
    rewards less their mean, without scale. With weights 1, coefficient 0 and everything kept it is
    `-A w`. Shapes: `[..., G, T]`, advantages `[..., G]`.

    Reference: GTPO (arXiv:2508.03772), and its code, which has threshold .7, no exception for the
    initial entropy, and divides by the number of conflicting tokens.
    """
    log_probs, mask, (old_log_probs, entropy, weights) = tokens(
        log_probs, mask, old_log_probs=old_log_probs, entropy=entropy, weights=weights
    )
    ratio = jnp.exp(log_probs - old_log_probs)
    advantages = checks.as_float("advantages", advantages).astype(ratio.dtype)
    lengths = jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.int32), 1)
    mean_entropy = jnp.sum(entropy, axis=-1) / lengths.astype(ratio.dtype)
    kept = (initial_entropy > threshold) | (mean_entropy <= threshold)
    gain = jnp.where(kept, advantages - coefficient * mean_entropy, 0)
    loss = jnp.where(mask, -gain[..., None] * ratio * weights, 0)
    return TokenLoss(loss, Conflict(jax.lax.stop_gradient(ratio), weights, kept))


# ------------------------------------------------------------------------------ whole trajectories


class Trajectories(NamedTuple):
    """How a batch is weighted."""

    weights: Array
    """`[n]` softmax of the trajectories' log-probabilities."""
    entropy: Array
    """`[]` of the weights."""
    kl: Array
    """`[]` of the weights to those of the reference."""


def haepo(
    sequence_log_probs: ArrayLike,
    ref_sequence_log_probs: ArrayLike,
    rewards: ArrayLike,
    *,
    entropy: ArrayLike = 0.0,
    kl: ArrayLike = 0.0,
    axis_name: str | None = None,
) -> TokenLoss:
    """`w (-R + entropy log w + kl log w/w_ref)`, `w = softmax_i(log pi(trajectory_i))`: sum it.

    Over trajectories that are each enumerated once w is the policy and the sum the objective;
    over sampled ones each counts by pi again, which is greedier than REINFORCE. That entropy and KL
    are of the weights is inferred, the coefficients are unknown. The gradient by a log-probability
    is `w (f - sum w f)`, the last the sum of the loss, also across devices.
    Shapes: `[n]` three times to `[n]`.

    Reference: HAEPO (arXiv:2508.18884), abstract.
    """
    names = ("sequence_log_probs", "ref_sequence_log_probs", "rewards")
    given = (sequence_log_probs, ref_sequence_log_probs, rewards)
    arrays = {name: checks.as_float(name, x) for name, x in zip(names, given, strict=True)}
    checks.same_shape(**arrays)
    dtype = arrays["sequence_log_probs"].dtype
    log_probs, log_ref, rewards = (x.astype(dtype) for x in arrays.values())
    total = lambda x: parallel.sum_over(jnp.sum(x), axis_name)

    def log_softmax(x: Array) -> Array:
        x = jax.lax.stop_gradient(x)
        x = x - parallel.max_over(jnp.max(x), axis_name)
        return x - jnp.log(total(jnp.exp(x)))

    log_w, log_w_ref = log_softmax(log_probs), log_softmax(log_ref)
    w, log_ratio = jnp.exp(log_w), log_w - log_w_ref
    each = -rewards + entropy * log_w + kl * log_ratio
    slope = w * (each - total(w * each))
    loss = w * each + slope * (log_probs - jax.lax.stop_gradient(log_probs))
    return TokenLoss(loss, Trajectories(w, -total(w * log_w), total(w * log_ratio)))
