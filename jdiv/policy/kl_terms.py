"""KL to a reference in a policy gradient: in the rewards, per token, or of whole sequences.

Every placement has another gradient. In expectation over samples of the policy itself (old =
`stop_gradient(log_probs)`) and over those of an older policy it is

=================================  ===========================  ===========================
where it stands, weighted by       from samples of the policy   from samples of an older one
=================================  ===========================  ===========================
`kl_rewards`, k1, `to_go`          exact                        no
`kl_rewards`, k2 or k3             no                           no
`kl_penalty`, no weight            k2: each token's             no
the same                           k3: each token's, ref‖pi     no
the same                           k1: 0                        no
`kl_penalty`, `token_log_ratio`    k1, k3: each token's         the same, prefixes of old
... `held_log_ratio`               as without a weight          k2: the same, prefixes of old
... `clamped_log_ratio`            as without the clamp         no
`kl_penalty`, `prefix_log_ratio`   k1, k3: exact                k1, k3: exact
... held                           as without a weight          k2: each token's
... `sequence_log_ratio`           k1, k3: exact                k1, k3: exact
`sequence_kl_penalty`, no weight   k2: exact                    no
the same                           k3: that of KL(ref‖pi)       no
the same                           k1: 0                        no
`sequence_kl_penalty`, weighted    k1, k3: exact                k1, k3: exact
... held                           k2: exact                    k2: exact
=================================  ===========================  ===========================

*Exact* is the gradient of KL(pi‖ref) of sequences; *each token's* is that of the sum of the KLs of
single tokens, the law of the prefixes held fixed: what a token does to later tokens' KL is missing.
With one token both are the same. `straight_through` has k2's gradient where no weight is
differentiated, and is wrong where one is; `without_gradient` of k1 is exact with a differentiated
weight, as k1 is, and has a smaller variance. Averages that divide by the length of each sequence
make all of them inexact. Coefficients are not negative, one or one for each sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.estimators import monte_carlo
from jdiv.policy.tokens import Advantages, masked
from jdiv.types import LogProbs, Mask, PerRow, PerSample, Scalar

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


def sequence_log_ratio(log_ratio: Array) -> Array:
    """`sum_s log pi_s/old_s` at every token: the weight of the whole sequence.

    Shapes: `[..., T]` twice.
    """
    total = jnp.sum(log_ratio, axis=-1, keepdims=True)
    return jnp.broadcast_to(total, log_ratio.shape)


def held_log_ratio(
    log_ratio: Array, *, log_weight: Callable[[Array], Array] = token_log_ratio
) -> Array:
    """A weight that has no derivative: it corrects the samples, and not the missing score.

    Shapes: `[..., T]` twice.

    >>> float(jax.grad(lambda x: held_log_ratio(x[None])[0])(1.0))
    0.0
    """
    return jax.lax.stop_gradient(log_weight(log_ratio))


def clamped_log_ratio(
    log_ratio: Array, *, ceiling: Scalar, log_weight: Callable[[Array], Array] = token_log_ratio
) -> Array:
    """A weight of at most `ceiling`, positive; where it is clamped it has no derivative.

    A weight both held and clamped is `partial(held_log_ratio, log_weight=partial(clamped_log_ratio,
    ceiling=10.0))`, as `log_weight` of `kl_penalty`. Shapes: `[..., T]` twice.

    >>> print(jnp.exp(clamped_log_ratio(jnp.log(jnp.array([0.5, 3.0])), ceiling=2.0)))
    [0.5 2. ]
    """
    ceiling = jnp.asarray(checks.positive("ceiling", ceiling), log_ratio.dtype)
    weight = log_weight(log_ratio)
    most = jnp.where(weight > jnp.log(ceiling), jnp.log(ceiling), weight)
    return checks.spread_nan(most, ceiling)


def straight_through(
    log_p: PerSample, log_q: PerSample, *, estimator: Estimator = monte_carlo.kl_k3
) -> PerSample:
    """The value of an estimator with the gradient of k2: `log(p/q) grad log p`.

    What verl calls "k3+" and OpenRLHF an unbiased gradient. As `estimator` of the functions here,
    `partial(straight_through, estimator=kl_k1)`. Where q is zero the value is inf, without
    gradient. Shapes: any, twice the same, to the same.

    >>> value, slope = jax.value_and_grad(straight_through)(-1.0, -2.0)
    >>> print(f"{value:.4f} {slope:.4f}")  # of k3: 1/e, and of k2: 1
    0.3679 1.0000

    Reference: Liu et al. 2025, the straight-through form of verl pull request 2953.
    """
    _refuse_no_estimator(estimator)
    log_p, log_q = checks.alike(log_p=log_p, log_q=log_q)
    value = jax.lax.stop_gradient(estimator(log_p, log_q))
    t = numerics.sampled_log_ratio(log_p, log_q)
    finite = jnp.isfinite(t)
    nothing = jnp.where(finite, t - jax.lax.stop_gradient(t), 0)
    return value + jnp.where(finite, jax.lax.stop_gradient(t), 0) * nothing


def without_gradient(
    log_p: PerSample, log_q: PerSample, *, estimator: Estimator = monte_carlo.kl_k1
) -> PerSample:
    """The value of an estimator, held fixed: only a weight in front of it has a gradient.

    With a differentiated weight it is KL as a reward, `w stop_gradient(k)`. Shapes: any, twice the
    same, to the same.

    >>> float(jax.grad(without_gradient)(-1.0, -2.0))
    0.0
    """
    _refuse_no_estimator(estimator)
    return jax.lax.stop_gradient(estimator(log_p, log_q))


def linear_k3(log_p: PerSample, log_q: PerSample, *, limit: Scalar) -> PerSample:
    """k3 that goes on linearly where `log q/p` is above a limit: value and slope are continuous.

    A clamp takes the gradient away exactly where the policy has lost most; here it stays what it is
    at the limit, `e^limit - 1`, and nothing overflows. Less than k3 there, and so biased. At the
    other end k3 is linear by itself. The limit is positive, and `e^limit` finite.
    Shapes: any, twice the same, to the same. Zeros: inf where one of both is zero.

    >>> value, slope = jax.value_and_grad(linear_k3)(-1e4, -1.0, limit=2.0)
    >>> print(f"{value:.0f} {slope:.4f}")
    63876 -6.3891
    """
    t = numerics.sampled_log_ratio(*checks.alike(log_q=log_q, log_p=log_p))
    limit = _checked_limit(limit, t)
    infinite = jnp.isinf(t)
    t = jnp.where(infinite, 0, t)
    above = t > limit
    value = numerics.exp_residual(jnp.where(above, limit, t))
    value = value + jnp.expm1(limit) * jnp.where(above, t - limit, 0)
    return jnp.where(infinite, jnp.inf, value)


def saturated(log_p: PerSample, log_q: PerSample, *, limit: Scalar) -> Array:
    """Whether `log q/p` is above the limit of `linear_k3`, for `metrics.token_share`.

    Shapes: any, twice the same, to the same.

    >>> saturated(jnp.array([-9.0, -1.0]), jnp.array([-1.0, -9.0]), limit=5.0)
    Array([ True, False], dtype=bool)
    """
    t = numerics.sampled_log_ratio(*checks.alike(log_q=log_q, log_p=log_p))
    return t > _checked_limit(limit, t)


def _checked_limit(limit: Scalar, t: Array) -> Array:
    most = numerics.largest_exponent(t)
    allowed = f"positive and at most {most:.0f}"
    limit = checks.in_range("limit", limit, 0, most, allowed, closed="high")
    return jnp.asarray(limit, t.dtype)


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

    The weight is the exponential of what `log_weight` makes of `log pi/pi_old`, and differentiated
    unless that is `held_log_ratio`; without old log-probabilities it is 1, as GRPO has it.
    On-policy, pass stop_gradient(log_probs). The table of this module says whose gradient comes
    out. To be averaged as a token loss is. Shapes: `[..., T]` to the same.

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
    log_weight: Callable[[Array], Array] = token_log_ratio,
) -> Array:
    """KL(pi‖ref) inside the loss, of whole sequences: `w k(sum log pi_t, sum log ref_t)`.

    The weight `prod pi_t/old_t` is differentiated unless `log_weight` is `held_log_ratio`, here of
    the sequence's `[...]`; without old log-probabilities it is 1. One number for each sequence, to
    be averaged over sequences. Shapes: `[..., T]` to `[...]`.

    Reference: RPG (arXiv:2505.17508) for the weight.
    """
    _refuse_no_estimator(estimator)
    log_probs, mask, (ref,) = masked(log_probs, mask, ref_log_probs=ref_log_probs)
    total = jnp.sum(log_probs, axis=-1)
    penalty = estimator(total, jnp.sum(ref, axis=-1))
    if old_log_probs is None:
        return penalty
    _, _, (old,) = masked(log_probs, mask, old_log_probs=old_log_probs)
    return jnp.exp(log_weight(total - jnp.sum(old, axis=-1))) * penalty
