"""Losses towards a reference: its support, its answers, a target over a group, a KL threshold.

Of these methods the abstracts are known, and code where it is named; the docstrings say what is
inferred. Sequence log-probabilities are sums over tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, estimators, numerics, parallel
from jdiv.divergences.generators import Generator
from jdiv.policy.group import TokenLoss, ppo_clip, tokens

# ----------------------------------------------------------------------------- support of reference


def support(ref_logits: ArrayLike, *, size: int) -> Array:
    """The `size` likeliest tokens of the reference, and those equal to the last one.

    Shapes: `[..., V]` to booleans of the same.
    """
    ref_logits = checks.as_float("ref_logits", ref_logits)
    if not 1 <= size <= ref_logits.shape[-1]:
        raise ValueError(f"size must be from 1 to {ref_logits.shape[-1]}, got {size}")
    return ref_logits >= jax.lax.top_k(ref_logits, size)[0][..., -1:]


class Anchored(NamedTuple):
    """How far the policy has left the support."""

    ratio: Array
    """`[..., T]`"""
    coverage: Array
    """`[..., T]` probability of the support, over that of the old policy."""


def apo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    log_coverage: ArrayLike,
    old_log_coverage: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    push: ArrayLike = 1.0,
    pull: ArrayLike = 0.1,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> TokenLoss:
    """PPO's loss; where A is negative `push` times it, `+ pull A M/M_old`, M the support's mass.

    A wrong token is pushed down and the reference's support, `log_coverage` being the logarithm of
    its probability, is pulled up. That there is a push and a pull, on errors only and towards the
    top tokens of the reference, is the authors' description; how they enter the ratio and both
    coefficients are inferred. With push 1 and pull 0 it is `ppo_clip`.
    Shapes: `[..., T]`, advantages `[...]` or `[..., T]`.

    Reference: APO (arXiv:2602.05717), abstract and the README of its code.
    """
    log_probs, mask, (old_log_probs, advantages) = tokens(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    coverage, _, (old_coverage,) = tokens(log_coverage, mask, old_log_coverage=old_log_coverage)
    parent = ppo_clip(log_probs, old_log_probs, advantages, mask, low=low, high=high)
    wrong = mask & (advantages < 0)
    relative = jnp.exp(jnp.where(wrong, coverage - old_coverage, 0))
    pulled = push * parent.loss + pull * jnp.where(wrong, advantages, 0) * relative
    return TokenLoss(
        jnp.where(wrong, pulled, parent.loss),
        Anchored(parent.aux.ratio, jax.lax.stop_gradient(relative)),
    )


# ------------------------------------------------------------------------------ targets over groups


class Target(NamedTuple):
    """What a group is fitted to, and by what."""

    log_target: Array
    """`[..., G]`"""
    log_policy: Array
    """`[..., G]` softmax of the sequence log-probabilities over the group."""


def dmpo_target(rewards: ArrayLike) -> Array:
    """`log(R_i / sum R)`: -inf for no reward, and everywhere in a group without any.

    Shapes: `[..., G]` rewards that are not negative, to the same; a negative one has no logarithm
    and counts as no reward.

    Reference: DMPO (arXiv:2605.19461), abstract: a target proportional to the reward.
    """
    rewards = checks.as_float("rewards", rewards)
    rewards = jnp.maximum(rewards, 0)
    total = jnp.sum(rewards, axis=-1, keepdims=True)
    share = rewards / jnp.where(total > 0, total, 1)
    return jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1)), -jnp.inf)


def tpo_target(old_sequence_log_probs: ArrayLike, utilities: ArrayLike) -> Array:
    """`log q`, `q_i ∝ p_i^old e^(u_i)` over the group. Shapes: `[..., G]` twice to the same.

    Reference: TPO (arXiv:2604.06159).
    """
    old, utilities = checks.alike(
        old_sequence_log_probs=old_sequence_log_probs, utilities=utilities
    )
    return numerics.log_softmax(old + utilities)


def group_forward_kl(sequence_log_probs: ArrayLike, log_target: ArrayLike) -> TokenLoss:
    """`q_i log(q_i/p_i)` per sample, summing to KL(q‖p): p is softmax of the log-probabilities.

    Its gradient by a log-probability is `p - q`, 0 at the target; nothing for a group without
    target. That the policy is normalised over the group is TPO's, and inferred for DMPO.
    Shapes: `[..., G]` twice to the same.

    Reference: DMPO (arXiv:2605.19461), abstract; TPO (arXiv:2604.06159).
    """
    log_probs, log_target = checks.alike(
        sequence_log_probs=sequence_log_probs, log_target=log_target
    )
    log_p = numerics.log_softmax(log_probs)
    inside = log_target > -jnp.inf
    log_q = jax.lax.stop_gradient(jnp.where(inside, log_target, 0))
    loss = jnp.where(inside, jnp.exp(log_q) * (log_q - log_p), 0)
    return TokenLoss(loss, Target(log_target, jax.lax.stop_gradient(log_p)))


# ------------------------------------------------------------------------ samples of the reference


def dph_rl_penalty(
    generator: Generator,
    sequence_log_probs: ArrayLike,
    ref_sequence_log_probs: ArrayLike,
    solved: ArrayLike,
) -> Array:
    """`f(pi/pi_ref)` of samples of the initial policy, for the questions that it solves already.

    Any row of the table: reverse_kl is the forward KL(ref‖pi), the alpha of the code is this alpha
    of `1 - a`, its JS twice jensen_shannon. With the samples fixed its gradient is the
    divergence's. Shapes: `[...]` twice and booleans, to the same.

    Reference: DPH-RL, code (core_algos.py).
    """
    log_probs, log_ref = checks.alike(
        sequence_log_probs=sequence_log_probs, ref_sequence_log_probs=ref_sequence_log_probs
    )
    log_probs = jnp.where(solved, log_probs, log_ref)
    return jnp.where(solved, estimators.centred_from_q(generator, log_probs, log_ref), 0)


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


# ------------------------------------------------------------------------ penalty of a threshold


SAFE_PHASES = {"warmup": 1.5, "climbing": 1.2, "plateau": 0.8, "converged": 1.0}
"""Factors of the threshold; how a phase is recognised is unknown."""


def softmin(values: ArrayLike, *, temperature: ArrayLike = 0.3, axis: int = -1) -> Array:
    """`-t log mean exp(-v/t)`: between the least value, at t = 0, and the mean.

    Shapes: `[..., n]` to `[...]`, the values of the critics last.

    Reference: ryyzn9/SAFE, code, which has two critics.
    """
    values = checks.as_float("values", values)
    count = jnp.asarray(values.shape[axis], values.dtype)
    summed = jax.nn.logsumexp(-values / temperature, axis=axis)
    return -temperature * (summed - jnp.log(count))


def safe_penalty(
    kl: ArrayLike, entropy: ArrayLike, threshold: ArrayLike, *, as_released: bool = False
) -> Array:
    """`.1 (kl - threshold)_+^2 max(1/2, 2/(H + .1))`, added to the policy's loss.

    The code builds it from Python floats, and so it has a value and no gradient: `as_released`.
    Shapes: any, broadcast; `kl` is smoothed by `safe_control`.

    Reference: ryyzn9/SAFE, code.
    """
    kl, entropy = checks.as_float("kl", kl), checks.as_float("entropy", entropy)
    excess = jnp.maximum(kl - threshold, 0)
    penalty = 0.1 * excess**2 * jnp.maximum(2 / (entropy + 0.1), 0.5)
    return jax.lax.stop_gradient(penalty) if as_released else penalty


def safe_penalty_asymmetric(kl: ArrayLike, previous_kl: ArrayLike, *, steps: float = 50) -> Array:
    """`.1 (kl - .3)_+^2 + 5 max(0, rise / steps)`, the rise squared: falls of the KL are free.

    That the rise is the one since the KL of 50 steps ago is inferred. Shapes: any, twice the same.

    Reference: ryyzn9/SAFE, code.
    """
    kl = checks.as_float("kl", kl)
    rise = jnp.maximum((kl - previous_kl) / steps, 0)
    return 0.1 * jnp.maximum(kl - 0.3, 0) ** 2 + 5 * rise**2


class SafeState(NamedTuple):
    """What SAFE's controller keeps; zeros to start with."""

    kl: Array
    """Smoothed by .9."""
    reward: Array
    """Of the step before."""
    velocity: Array
    """Of the reward, smoothed by .95."""
    integral: Array
    """Of the errors of the velocity."""
    error: Array
    """Of the step before."""


def safe_control(
    state: SafeState, kl: ArrayLike, reward: ArrayLike, *, phase: ArrayLike
) -> tuple[SafeState, Array]:
    """The next state and the threshold `clip((.3 + PID) phase, .1, .6)`.

    PID has gains .3, .01, .05 on the velocity of the reward less .001. The KL keeps its gradient;
    that velocity is the difference of rewards is inferred. Shapes: `[]`.

    Reference: ryyzn9/SAFE, code.
    """
    kl = 0.9 * state.kl + 0.1 * kl
    velocity = 0.95 * state.velocity + 0.05 * (reward - state.reward)
    error = velocity - 0.001
    integral = state.integral + error
    pid = 0.3 * error + 0.01 * integral + 0.05 * (error - state.error)
    reward = jnp.asarray(reward, jnp.result_type(state.reward))
    threshold = jax.lax.stop_gradient(jnp.clip((0.3 + pid) * phase, 0.1, 0.6))
    return SafeState(kl, reward, velocity, integral, error), threshold
