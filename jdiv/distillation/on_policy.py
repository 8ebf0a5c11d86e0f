"""Distillation on the student's own samples, or on a mixture of its samples and others.

Losses of logits take `[..., T, n]` of both sides and the tokens `[..., T]` that were sampled;
losses of log-probabilities take `[..., T]` of the sampled tokens. Out comes one number for each
position, `[..., T]`, 0 where masked, not averaged. KL(student‖teacher) is the field's reverse KL,
KL(teacher‖student) its forward KL. Teacher, reference and old policy are constants, and so are
rewards and weights. A loss with a reward A is `-A pi/stop_gradient(pi)`: its value is -A, and its
gradient that of `-A log pi`. Where the teacher has no mass its reward is -inf and the loss inf.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, estimators, numerics
from jdiv.distillation.token import Sides, sides
from jdiv.divergences import categorical
from jdiv.policy import clipped, kl_terms, ratio_weights
from jdiv.policy.tokens import Advantages, masked
from jdiv.types import (
    Categories,
    Indices,
    Logits,
    LogProbs,
    Mask,
    PerRow,
    PerSequence,
    PerToken,
    RandomKey,
    RowMask,
    Scalar,
)

# ------------------------------------------------------------------------------------ whose samples


def mixture(real: Any, generated: Any, key: RandomKey, *, share: Scalar) -> Any:
    """Each row of a batch is the student's own, `generated`, with this probability, else `real`.

    A share of 0 is a fixed data set, 1 the student's samples alone. Any trees of arrays `[n, ...]`,
    twice the same.

    >>> print(mixture(jnp.zeros(3), jnp.ones(3), jax.random.key(0), share=1.0))
    [1. 1. 1.]

    Reference: GKD (Agarwal et al. 2023, arXiv:2306.13649), algorithm 1, which draws once for a
    batch; in expectation it is the same.
    """
    share = checks.share("share", share)
    rows = jax.tree.leaves(real)[0].shape[0]
    own = jax.random.uniform(key, (rows,)) < share
    among = lambda x, y: jnp.where(own.reshape(-1, *(1,) * (x.ndim - 1)), y, x)
    return jax.tree.map(among, real, generated)


def teacher_mixed(student_logits: Logits, teacher_logits: Logits, *, share: PerRow = 0.2) -> Array:
    """Log-probabilities of `share teacher + (1 - share) student`, from which MiniLLM samples.

    Constants. Shapes: `[..., n]` twice to the same.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> [f"{p:.2f}" for p in jnp.exp(teacher_mixed(student, teacher, share=0.5))]
    ['0.70', '0.30']

    Reference: MiniLLM (Gu et al. 2023, arXiv:2306.08543), equation 4.
    """
    both = jax.lax.stop_gradient(sides(student_logits, teacher_logits))
    share = jnp.asarray(checks.share("share", share, rows=both.student))
    log_student, log_teacher = (numerics.log_softmax(x) for x in (both.student, both.teacher))
    return jnp.logaddexp(jnp.log1p(-share) + log_student, jnp.log(share) + log_teacher)


def _of_tokens(logits: Array, tokens: Indices) -> Array:
    """The sampled tokens' entries; NaN for tokens that are none."""
    tokens = checks.as_integers("tokens", tokens)
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(
            f"tokens must be of shape {tuple(logits.shape[:-1])}, got {tuple(tokens.shape)}"
        )
    at = jnp.where(tokens < 0, logits.shape[-1], tokens)[..., None]
    return jnp.take_along_axis(logits, at, axis=-1, mode="fill")[..., 0]


def _sampled(both: Sides, tokens: Indices) -> tuple[Array, Array]:
    """Log-probabilities of the sampled tokens by the student, and their `log student/teacher`."""
    tokens = jnp.where(both.counts, tokens, 0)
    log_s, log_t, t = numerics.log_ratio(both.student, jax.lax.stop_gradient(both.teacher))
    log_s, log_t, t = (_of_tokens(x, tokens) for x in (log_s, log_t, t))
    both_there = (log_s > -jnp.inf) & (log_t > -jnp.inf)
    cost = jnp.where(both_there, t, numerics.sampled_log_ratio(log_s, log_t))
    return log_s, jax.lax.stop_gradient(cost)


def _paid(rewards: Array, log_probs: Array) -> Array:
    """`-A pi/stop_gradient(pi)`: the value -A, with the gradient of `-A log pi`."""
    change = numerics.sampled_log_ratio(log_probs, jax.lax.stop_gradient(log_probs))
    none = rewards == 0
    return jnp.where(none, 0, -rewards * jnp.exp(jnp.where(none, 0, change)))


def _weighted(weight: Array, x: Array) -> Array:
    """`weight * x`, where a weight of 0 counts nothing."""
    return jnp.where(weight == 0, 0, weight * jnp.where(weight == 0, 0, x))


# ------------------------------------------------------------------------------------------ MiniLLM


def minillm(
    student_logits: Logits,
    teacher_logits: Logits,
    tokens: Indices,
    *,
    share: PerRow = 0.0,
    normalized: bool = True,
    unbiased: bool = False,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerToken:
    """MiniLLM: `w_t (KL(S_t‖T_t) - R_{t+1} log S(y_t))`, a policy gradient of reverse KL.

    The first part is exact over the vocabulary. R is the sum of `log T/S` of the tokens behind,
    divided by their number if `normalized`. Tokens come from `teacher_mixed` with this share of
    the teacher; `w_t` is S/mixture of token t, as the paper approximates it. `unbiased` takes the
    products over the whole prefix, each later reward with its own: with it and without
    normalization, the sum over tokens has in expectation the gradient of KL(S‖T) over sequences,
    whatever the share. The value's first part is KL, of the second `-w_t R_{t+1}`.
    Shapes: `[..., T, n]` twice and `[..., T]` to `[..., T]`.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]]]))
    >>> print(minillm(logits[:, :1], logits[:, 1:], jnp.array([[0]])).round(4))
    [[0.5108]]

    Reference: Gu et al. 2023 (arXiv:2306.08543), equations 2 to 7; without the clip of the ratio,
    the whitening and the corpus term of the released code.
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    both = both._replace(teacher=jax.lax.stop_gradient(both.teacher))
    log_s, cost = _sampled(both, tokens)
    mixed = teacher_mixed(both.student, both.teacher, share=share)
    log_mixed = _of_tokens(mixed, jnp.where(both.counts, tokens, 0))
    log_weight = numerics.sampled_log_ratio(jax.lax.stop_gradient(log_s), log_mixed)
    log_weight = jnp.where(both.counts, log_weight, 0)
    last = log_weight.ndim - 1
    prefix = jnp.exp(jax.lax.cumsum(log_weight, axis=last))
    before = jnp.concatenate([jnp.ones_like(prefix[..., :1]), prefix[..., :-1]], axis=-1)
    own = jnp.exp(log_weight)
    single, inside, outside = (before, prefix, None) if unbiased else (own, None, own)
    rewards = jnp.where(both.counts, -cost, 0)
    rewards = rewards if inside is None else _weighted(inside, rewards)
    returns = _behind(rewards)
    if normalized:
        returns = returns / jnp.maximum(_behind(both.counts.astype(returns.dtype)), 1)
    returns = returns if outside is None else _weighted(outside, returns)
    exact = _weighted(single, categorical.kl(both.student, both.teacher))
    return jnp.where(both.counts, exact + _paid(returns, log_s), 0)


def _behind(x: Array) -> Array:
    """Sums over the tokens behind each, without its own."""
    later = jnp.concatenate([x[..., 1:], jnp.zeros_like(x[..., :1])], axis=-1)
    return jax.lax.cumsum(later, axis=x.ndim - 1, reverse=True)


# ---------------------------------------------------------- rewards of the teacher, token by token


def _between(x: Array, y: Array, weight: Array) -> Array:
    """`weight x + (1 - weight) y`; a weight of 0 counts nothing, and x's zero is one."""
    total = _weighted(weight, x) + _weighted(1 - weight, y)
    return jnp.where((x == -jnp.inf) & (weight != 0), -jnp.inf, total)


def g_opd(
    log_probs: LogProbs,
    teacher_log_probs: LogProbs,
    ref_log_probs: LogProbs,
    mask: Mask,
    *,
    scale: PerRow = 1.25,
) -> PerToken:
    """G-OPD: the reward of a token is `scale log(teacher/ref) - log(pi/ref)`.

    Towards `ref^(1 - scale) teacher^scale`: the teacher itself at 1 (plain on-policy distillation,
    without a reference), beyond it above 1 (ExOPD). The value is `log pi/target`. On one token its
    mean gradient is that of KL(pi‖target); the tokens behind are not credited. For the student's
    own samples. Shapes: `[..., T]` four times to the same.

    >>> log = lambda *p: jnp.log(jnp.array([p]))
    >>> print(f"{g_opd(log(0.5), log(0.9), log(0.5), jnp.array([[True]]), scale=1.0)[0, 0]:.4f}")
    -0.5878

    Reference: G-OPD, released code (`dp_actor.py`), whose example has a scale of 1.25.
    """
    log_probs, mask, (teacher, ref) = masked(
        log_probs, mask, teacher_log_probs=teacher_log_probs, ref_log_probs=ref_log_probs
    )
    scale = jnp.asarray(checks.not_negative("scale", scale, rows=log_probs))
    target = _between(teacher, ref, scale)
    return _paid(numerics.sampled_log_ratio(target, jax.lax.stop_gradient(log_probs)), log_probs)


def importance_weighted(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    teacher_log_probs: LogProbs,
    mask: Mask,
    *,
    ceiling: PerRow = 5.0,
) -> PerToken:
    """On-policy distillation of samples of an older student: `-min(pi/old, ceiling) A`.

    `A = log teacher/pi`. The weight is a constant; with `ceiling=inf` the mean gradient on one
    token is that of KL(pi‖teacher) from any old policy with its support.
    Shapes: `[..., T]` four times to the same.

    Reference: G-OPD, released code, for the ceiling of 5.
    Reconstructed: that the weight is of the token, and multiplies the reward.
    """
    log_probs, mask, (old, teacher) = masked(
        log_probs, mask, old_log_probs=old_log_probs, teacher_log_probs=teacher_log_probs
    )
    _, _, ceiling = ratio_weights.bounds(1.0, jnp.inf, ceiling, log_probs)
    now = jax.lax.stop_gradient(log_probs)
    weight = jnp.minimum(jnp.exp(numerics.sampled_log_ratio(now, old)), ceiling)
    return _paid(_weighted(weight, numerics.sampled_log_ratio(teacher, now)), log_probs)


def optimal_baseline(student_logits: Logits, teacher_logits: Logits) -> PerSequence:
    """`E[c |e - S|^2] / E|e - S|^2`, c = log S/T: the number that makes `vopd` vary least.

    By the gradient of the logits, e the sampled token's unit vector. It is not KL(S‖T), to which it
    comes close for large vocabularies. A constant; infinite where KL is, 0 for a student that is
    sure of one token. Shapes: `[..., n]` twice to `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.8, 0.2])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{optimal_baseline(student, teacher):.4f}, {categorical.kl(student, teacher):.4f}")
    -0.6390, 0.1927
    """
    both = jax.lax.stop_gradient(sides(student_logits, teacher_logits))
    log_s, log_t, t = numerics.log_ratio(both.student, both.teacher)
    s = jnp.exp(log_s)
    cost = jnp.where((log_t == -jnp.inf) & (s > 0), jnp.inf, t)
    # |e - S|^2 without the cancellation of 1 - 2 s + sum S^2 where s is nearly 1.
    others = jnp.sum(s, axis=-1, keepdims=True) - s
    square = jnp.square(others) + jnp.sum(jnp.square(s), axis=-1, keepdims=True) - jnp.square(s)
    weight = s * square
    total = jnp.sum(weight, axis=-1)
    return jnp.sum(_weighted(weight, cost), axis=-1) / jnp.where(total == 0, 1, total)


def vopd(
    student_logits: Logits,
    teacher_logits: Logits,
    tokens: Indices,
    *,
    top_k: int | None = None,
    baseline: PerSequence | None = None,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """vOPD: `(log S(y)/T(y) - b) log S(y)` in its gradient, with `b = KL(S‖T)` as the baseline.

    The mean gradient is that of KL(S‖T), reverse KL, for any b; it varies less with this one, and
    least with `optimal_baseline`. `top_k` takes b on the student's k most probable tokens, on which
    both sides sum to 1; `baseline` gives another one. The value is `log S/T - b`. A baseline that
    is infinite is none. For the student's own samples. Shapes: `[..., n]` twice and `[...]` to
    `[...]`.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(vopd(student, teacher, jnp.array(0)).round(4))
    -1.0986

    Reference: vOPD, released code (`opd_trainer.py`).
    """
    both = sides(
        student_logits,
        teacher_logits,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    log_s, cost = _sampled(both, tokens)
    student, teacher = jax.lax.stop_gradient((both.student, both.teacher))
    if baseline is not None:
        b = jax.lax.stop_gradient(checks.as_float("baseline", baseline).astype(cost.dtype))
    elif top_k is None:
        b = categorical.kl(student, teacher)
    else:
        size = student.shape[-1]
        top_k = checks.whole("top_k", top_k, 1, size, f"from 1 to {size}, the categories")
        at = jax.lax.top_k(student, top_k)[1]
        b = categorical.kl(*(jnp.take_along_axis(x, at, axis=-1) for x in (student, teacher)))
    b = jnp.where(jnp.isinf(b), 0, b)
    return jnp.where(both.counts, _paid(b - cost, log_s), 0)


# ------------------------------------------------------------------------- rewards and a teacher


def kdrl(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    teacher_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    coefficient: PerRow = 0.2,
    estimator: kl_terms.Estimator = estimators.kl_k2,
    low: PerRow = 0.2,
    high: PerRow = 0.2,
) -> PerToken:
    """KDRL: GRPO's loss plus `coefficient k(pi, teacher)`, k one of k1, k2, k3.

    On one token and its own samples, k2 adds the gradient of KL(pi‖teacher), reverse KL; k3 that
    of KL(teacher‖pi), forward KL; k1 nothing. The coefficient is annealed by
    `token.temperature_schedule(step, steps, high=0.2, low=0.002)`.
    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: KDRL, abstract.
    Reconstructed: that k2 is the default, and the schedule, which is that of a later paper.
    """
    surrogate = clipped.ppo_clip(log_probs, old_log_probs, advantages, mask, low=low, high=high)
    penalty = kl_terms.kl_penalty(log_probs, teacher_log_probs, mask, estimator=estimator)
    coefficient = checks.not_negative("coefficient", coefficient, rows=surrogate.loss)
    return surrogate.loss + _weighted(jnp.asarray(coefficient), penalty)


def trust_region_ratio(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    teacher_log_probs: LogProbs,
    mask: Mask,
    *,
    share: PerRow = 0.5,
) -> PerToken:
    """`log pi/(old^a teacher^(1 - a))`, a the share: the ratio to an anchor between the two.

    For `clipped.clipped_surrogate`. At a = 1 it is PPO's. It is not 0 where pi is old: tokens on
    which the teacher disagrees begin outside of the clip.
    Shapes: `[..., T]` four times to the same.

    >>> log = lambda p: jnp.log(jnp.array([p]))
    >>> print(jnp.exp(trust_region_ratio(log(0.4), log(0.4), log(0.1), jnp.array([True]))).round(4))
    [2.]

    Reference: RLAD, its trust region ratio.
    Reconstructed: the formula is from a note that quotes the paper.
    """
    log_probs, mask, (old, teacher) = masked(
        log_probs, mask, old_log_probs=old_log_probs, teacher_log_probs=teacher_log_probs
    )
    share = jnp.asarray(checks.share("share", share, rows=log_probs))
    return numerics.sampled_log_ratio(log_probs, _between(old, teacher, share))


def rlad(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    teacher_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    share: PerRow = 0.5,
    low: PerRow = 0.2,
    high: PerRow = 0.2,
    ceiling: PerRow = jnp.inf,
) -> PerToken:
    """RLAD: PPO's loss with `trust_region_ratio` for the ratio.

    The gradient has the sign of A, which the teacher never turns: it moves the clip alone, whose
    bounds are `(1 - low)` and `(1 + high)` times the anchor. At a share of 1 it is `ppo_clip` to
    the bit. Where the anchor has no mass the ratio is infinite; then a finite `ceiling` bounds the
    loss of negative advantages. Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: RLAD, its objective without the KL to the reference.
    Reconstructed: as `trust_region_ratio`.
    """
    log_ratio = trust_region_ratio(log_probs, old_log_probs, teacher_log_probs, mask, share=share)
    _, mask, (advantages,) = masked(log_probs, mask, advantages=advantages)
    return clipped.clipped_surrogate(
        log_ratio, advantages, low=low, high=high, ceiling=ceiling
    ).loss


def routed(
    student_logits: Logits,
    teacher_logits: Logits,
    crucial: RowMask,
    wrong: RowMask,
    *,
    coefficient: PerSequence | Scalar = 1.0,
    student_temperature: PerRow = 1.0,
    teacher_temperature: PerRow = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """TRACE: `c KL(T‖S)` at crucial positions, `c KL(S‖T)` at wrong ones, 0 elsewhere.

    Forward KL lifts a token that the student lacks at the rate T however little it has; reverse KL
    only at a rate that goes to 0 with it. c is annealed by the caller
    (`token.temperature_schedule`). The teacher is a constant.
    Shapes: `[..., n]` twice, masks `[...]`, to `[...]`.

    >>> student, teacher = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> print(routed(student, teacher, jnp.array([True]), jnp.array([False])).round(4))
    [0.3681]

    Reference: TRACE, abstract.
    Reconstructed: all but the directions of the two KLs; a position that is both has both.
    """
    both = sides(
        student_logits,
        jax.lax.stop_gradient(teacher_logits),
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        mask=mask,
        where=where,
    )
    crucial, wrong = checks.as_mask("crucial", crucial), checks.as_mask("wrong", wrong)
    checks.same_shape(counts=both.counts, crucial=crucial, wrong=wrong)

    def at(places: Array, divergence: Any) -> Array:
        # The student for its own teacher elsewhere: 0, also where the other KL is infinite.
        return divergence(both.student, jnp.where(places[..., None], both.teacher, both.student))

    total = at(crucial, categorical.reverse_kl) + at(wrong, categorical.kl)
    coefficient = jnp.asarray(checks.not_negative("coefficient", coefficient), total.dtype)
    return _weighted(jnp.broadcast_to(coefficient, total.shape), total)


def extreme_region_search(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    high: PerRow = 9.0,
) -> PerToken:
    """ERPD's first stage: PPO's loss of old samples with hardly a bound, `-min(w, 1 + high) A`.

    For A > 0; ratios below 1 and negative advantages are not clipped at all.
    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: ERPD, abstract.
    Reconstructed: "weakly constrained" as a wide upper clip.
    """
    return clipped.ppo_clip(log_probs, old_log_probs, advantages, mask, low=1.0, high=high).loss


def extreme_region(
    student_logits: Logits,
    teacher_logits: Logits,
    ref_logits: Logits,
    *,
    coefficient: PerSequence | Scalar = 1.0,
    mask: RowMask | None = None,
    where: Categories | None = None,
) -> PerSequence:
    """ERPD's second stage: `KL(S‖T) + c KL(S‖ref)`, T what the first stage found.

    Distillation of a policy that went too far, within a trust region about the reference. Its
    minimum is `T^(1/(1 + c)) ref^(c/(1 + c))`. Teacher and reference are constants.
    Shapes: `[..., n]` three times to `[...]`.

    >>> logits = jnp.zeros(2)
    >>> print(extreme_region(logits, logits, logits))
    0.0

    Reference: ERPD, abstract.
    Reconstructed: the trust region as a penalty, and the direction of both KLs.
    """
    constants = jax.lax.stop_gradient((teacher_logits, ref_logits))
    to_teacher, to_ref = (
        sides(student_logits, other, mask=mask, where=where) for other in constants
    )
    coefficient = jnp.asarray(checks.not_negative("coefficient", coefficient))
    far = categorical.kl(to_ref.student, to_ref.teacher)
    coefficient = jnp.broadcast_to(coefficient.astype(far.dtype), far.shape)
    return categorical.kl(to_teacher.student, to_teacher.teacher) + _weighted(coefficient, far)
