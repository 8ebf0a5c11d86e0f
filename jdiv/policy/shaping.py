"""Rewards, advantages and weights of questions, shaped by difficulty, length and progress.

Rewards and what is known of answers are `[groups, size]`, a group the answers to one question.
Nothing here is differentiated: what comes out are weights. Where no more than an abstract is known,
the docstring says what is inferred.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, divergences, parallel
from jdiv.policy.exploration import among_largest
from jdiv.policy.group import grpo_advantages

# -------------------------------------------------------------------------------------- difficulty


def pass_rate(rewards: ArrayLike) -> Array:
    """Mean reward of each group. Shapes: `[..., size]` to `[...]`."""
    return jnp.mean(checks.as_float("rewards", rewards), axis=-1)


def difficulty_filter(rewards: ArrayLike, *, low: ArrayLike = 0.2, high: ArrayLike = 0.8) -> Array:
    """Which groups to keep: those with a pass rate in [low, high].

    The band .2 to .8 is from a note by others. Without variance in a group there is no gradient:
    any band within (0, 1) drops those. Shapes: `[..., size]` to `[...]`.

    Reference: online difficulty filtering (arXiv:2504.03380).
    """
    rate = pass_rate(rewards)
    return (rate >= low) & (rate <= high)


def kl_to_optimum(rate: ArrayLike, beta: ArrayLike) -> Array:
    """`KL(pi_0‖pi*) = log(1 - p + p e^(1/beta)) - p/beta` for a pass rate p and reward 0 or 1.

    pi* maximises `E[r] - beta KL(pi‖pi_0)`. For large beta it is `p (1 - p) / (2 beta^2)`, which is
    no lower bound in general: see `learnability`. Shapes: any, broadcast; 0 at p = 0 and 1.

    >>> print(f"{kl_to_optimum(0.3, 1.0):.4f}")
    0.1157

    Reference: derived; online difficulty filtering (arXiv:2504.03380) for the relation.
    """
    return divergences.kl(*_bernoulli(rate, beta))


def kl_from_optimum(rate: ArrayLike, beta: ArrayLike) -> Array:
    """`KL(pi*‖pi_0)`, the other direction of `kl_to_optimum`. Shapes: any, broadcast."""
    return divergences.kl(*_bernoulli(rate, beta)[::-1])


def _bernoulli(rate: ArrayLike, beta: ArrayLike) -> tuple[Array, Array]:
    """Logits of wrong and right, of pi_0 and of pi*."""
    rate = jnp.asarray(rate, jnp.result_type(float))
    rate, gain = jnp.broadcast_arrays(rate, jnp.asarray(1 / beta, rate.dtype))
    logits = jnp.stack([jnp.log1p(-rate), jnp.log(rate)], axis=-1)
    return logits, logits + jnp.stack([jnp.zeros_like(gain), gain], axis=-1)


def learnability(rate: ArrayLike, beta: ArrayLike) -> Array:
    """`p (1 - p) / (2 beta^2)`: what `kl_to_optimum` is for large beta.

    At beta 1 it is below it for p = .1 and .3, and above it from .5 on: the next order is
    `p (1 - p) (1 - 2 p) / (6 beta^3)`. Shapes: any, broadcast.

    Reference: online difficulty filtering (arXiv:2504.03380), whose exact statement is unknown.
    """
    return rate * (1 - rate) / (2 * beta**2)


def fg_expo_weights(rate: ArrayLike, *, width: ArrayLike, axis_name: str | None = None) -> Array:
    """Weights of questions `exp(-(p - 1/2)^2 / (2 width^2))`, with mean 1 over the batch.

    The abstract has a Gaussian in the accuracy centred near .5; form, width and scale are inferred.
    An infinite width weighs all alike. Shapes: `[n]` to the same.

    Reference: FG-ExPO (arXiv:2605.11403), abstract.
    """
    rate = checks.as_float("rate", rate)
    exponent = -(((rate - 0.5) / width) ** 2) / 2
    # The largest is 1, however narrow the Gaussian.
    weights = jnp.exp(exponent - parallel.max_over(jnp.max(exponent), axis_name))
    return weights / parallel.mean_over(jnp.mean(weights), axis_name)


def fg_expo_coefficient(
    rate: ArrayLike, *, low: ArrayLike, high: ArrayLike, axis_name: str | None = None
) -> Array:
    """KL coefficient `low + (high - low) a^2 (3 - 2 a)` of the batch's mean accuracy a.

    The abstract has a smooth increasing function; which one is unknown, and this one is inferred.
    Shapes: `[n]` to `[]`.

    Reference: FG-ExPO (arXiv:2605.11403), abstract.
    """
    mean = parallel.mean_over(jnp.mean(checks.as_float("rate", rate)), axis_name)
    return low + (high - low) * mean**2 * (3 - 2 * mean)


# ------------------------------------------------------------------------------------- confidence


def ace_advantages(
    advantages: ArrayLike,
    log_ratio: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    scale: Callable[[Array], Array] = jax.nn.softplus,
) -> Array:
    """`A (1 + alpha scale(c))` where A is negative, `c = log pi/pi_ref` of the sequence; else A.

    Wrong answers that the policy has become surer of are pushed down harder. The structure is the
    abstract's; softplus is from one secondary source, `jax.nn.relu` with alpha .5 to 2 from
    another; whether c is divided by the length is unknown. Shapes: any, twice the same.

    Reference: ACE (arXiv:2602.21420), abstract.
    """
    advantages, confidence = checks.alike(advantages=advantages, log_ratio=log_ratio)
    factor = jnp.where(advantages < 0, 1 + alpha * scale(confidence), 1)
    return jax.lax.stop_gradient(advantages * factor)


# ------------------------------------------------------------------------------------------ length


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


def dler_rewards(rewards: ArrayLike, lengths: ArrayLike, *, limit: ArrayLike) -> Array:
    """0 for answers longer than the limit: cut off there, they have none.

    Shapes: any, twice the same.

    Reference: DLER (arXiv:2510.15110), abstract, for truncation as the penalty.
    """
    rewards = checks.as_float("rewards", rewards)
    return jnp.where(jnp.asarray(lengths) > limit, 0, rewards)


def dler_advantages(rewards: ArrayLike, *, axis_name: str | None = None) -> Array:
    """Rewards less their group's mean, over the standard deviation of that in the whole batch.

    The abstract has normalisation by the batch instead of the group; the formula is inferred. 0 if
    all groups have equal rewards. Shapes: `[groups, size]` to the same.

    Reference: DLER (arXiv:2510.15110), abstract.
    """
    rewards = checks.as_float("rewards", rewards)
    centred = grpo_advantages(rewards, scale=False)
    variance = parallel.mean_over(jnp.mean(centred**2), axis_name)
    return jnp.where(variance > 0, centred / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)


def arlcp_rewards(correct: ArrayLike, lengths: ArrayLike, reflections: ArrayLike) -> Array:
    """`1 - w sigmoid(z_reflections) - (.2 - w) sigmoid(z_lengths)` for right answers, else 0.

    z is standardised over the right answers of the group, with n - 1; reflections are counts of
    words such as `wait`. w is .05 up to 40 reflections, .1 up to 80, .15 beyond.
    Shapes: `[groups, size]` three times to the same.

    Reference: ARLCP (arXiv:2602.12113), code at c8ff44f.
    """
    correct = checks.as_float("correct", correct)
    lengths, reflections = (jnp.asarray(x, correct.dtype) for x in (lengths, reflections))
    checks.same_shape(correct=correct, lengths=lengths, reflections=reflections)
    right = correct > 0
    count = jnp.sum(right, axis=-1, keepdims=True).astype(correct.dtype)

    def standardised(x: Array) -> Array:
        kept = jnp.where(right, x, 0)
        centred = x - jnp.sum(kept, axis=-1, keepdims=True) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.where(right, centred**2, 0), axis=-1, keepdims=True)
        spread = jnp.sqrt(squares / jnp.maximum(count - 1, 1))
        return centred / jnp.where(spread > 0, spread, 1)

    weight = jnp.where(reflections <= 40, 0.05, jnp.where(reflections <= 80, 0.1, 0.15))
    weight = weight.astype(correct.dtype)
    of_reflections, of_lengths = (jax.nn.sigmoid(standardised(x)) for x in (reflections, lengths))
    return jnp.where(right, 1 - weight * of_reflections - (0.2 - weight) * of_lengths, 0)


# ---------------------------------------------------------------------------------------- progress


def step_potential(correctness: ArrayLike, confidence: ArrayLike) -> Array:
    """SPAE's potential `3/2 a c + a/2 - c` of a step: 1 if sure and right, -1 if sure and wrong.

    Correctness a is the probability of the right answer and confidence c in [0, 1], both of answers
    forced at the end of the step; 0 for neither. Shapes: any, twice the same.

    Reference: SPAE (arXiv:2601.03823), code at 1f8c839.
    """
    correctness = checks.as_float("correctness", correctness)
    confidence = checks.as_float("confidence", confidence).astype(correctness.dtype)
    return 1.5 * correctness * confidence + 0.5 * correctness - confidence


def spae_advantages(
    advantages: ArrayLike,
    potential: ArrayLike,
    *,
    saturation: ArrayLike = 0.9,
    damping: ArrayLike,
    shaping: ArrayLike,
) -> Array:
    """`A (1 - damping [saturated before]) + shaping (Phi_k - Phi_(k-1))` for each step.

    Credit of the outcome is less once the potential has been above its saturation, and what a step
    adds to the potential counts, 0 for the first. Known are these two terms in words, and the
    threshold and the difference from the released probe; how they combine is inferred.
    Shapes: advantages `[...]`, potential `[..., steps]`, to `[..., steps]`.

    Reference: SPAE (arXiv:2601.03823), abstract, and its code at 1f8c839.
    """
    potential = checks.as_float("potential", potential)
    advantages = checks.as_float("advantages", advantages).astype(potential.dtype)
    before = jnp.concatenate([potential[..., :1], potential[..., :-1]], axis=-1)
    above = jnp.cumsum((potential > saturation).astype(jnp.int32), axis=-1)
    saturated = jnp.concatenate([jnp.zeros_like(above[..., :1]), above[..., :-1]], axis=-1) > 0
    kept = jnp.where(saturated, 1 - damping, 1)
    return jax.lax.stop_gradient(advantages[..., None] * kept + shaping * (potential - before))
