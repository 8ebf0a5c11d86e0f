"""Asymptotics of tilts and of the best of n: cumulants, entropies and rates of the reward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.alignment.tilts import MomentFit, checked_answers, with_moments
from jdiv.types import Logits, LogPolicy, Values


def cumulants(rewards: Values, log_policy: LogPolicy) -> Array:
    """The first four cumulants of the reward: mean, variance, `m3`, `m4 - 3 m2^2`.

    Those under the tilt `ref exp(t r)` are the derivatives by t of `log sum ref e^(t r)`.
    Shapes: `[..., n]` twice to `[..., 4]`.

    Reference: Yang et al. 2024 (arXiv:2404.01730), cumulants and Rényi cross-entropy.
    """
    rewards, log_policy = checked_answers(log_policy, rewards=rewards)
    mass = jnp.exp(log_policy)
    rewards = jnp.where(mass > 0, rewards, 0)
    mean = jnp.sum(mass * rewards, axis=-1, keepdims=True)
    second, third, fourth = (jnp.sum(mass * (rewards - mean) ** k, axis=-1) for k in (2, 3, 4))
    return jnp.stack([mean[..., 0], second, third, fourth - 3 * second**2], axis=-1)


def renyi_cross_entropy(p_logits: Logits, q_logits: Logits, order: ArrayLike) -> Array:
    """`H_t(p‖q) = log(sum p q^(t-1)) / (1 - t)`; the cross-entropy `-sum p log q` at t = 1.

    With reward log q, `-H_(1+rho)(p‖q)` is `log E_p[e^(rho r)] / rho`, the reward's normalized
    cumulant. inf where p has mass on a zero of q and t <= 1. Shapes: `[..., n]` twice, t a number
    or `[...]`, to `[...]`.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> [f"{renyi_cross_entropy(p, q, order):.4f}" for order in (1.0, 2.0)]
    ['1.2040', '0.6931']

    Reference: Yang et al. 2024 (arXiv:2404.01730), cumulants and Rényi cross-entropy.
    """
    order = checks.finite("order", order)
    q_logits = numerics.log_softmax(checks.as_float("q_logits", q_logits))
    log_q, log_p = checked_answers(p_logits, q_logits=q_logits)
    s = jnp.broadcast_to(jnp.asarray(order, log_p.dtype) - 1, log_p.shape[:-1])
    both = (log_p != -jnp.inf) & (log_q != -jnp.inf)
    missing = jnp.any((log_p != -jnp.inf) & (log_q == -jnp.inf), axis=-1)
    safe = jnp.where(both, log_q, 0)
    log_sum = jax.nn.logsumexp(jnp.where(both, log_p + s[..., None] * safe, -jnp.inf), axis=-1)
    # Near order 1 the sum is near 1: log(1 + s x) / s with x = sum p (q^s - 1)/s.
    near = (jnp.abs(log_sum) < 0.5) & ~missing
    power = numerics.scaled_expm1(jnp.where(near[..., None], safe, 0), s[..., None])
    by_power = numerics.scaled_log1p(jnp.sum(jnp.exp(log_p) * power, axis=-1), s)
    value = -jnp.where(near, by_power, log_sum / jnp.where(s == 0, 1, s))
    return jnp.where(missing & (s <= 0), jnp.inf, value)


def rate_function(rewards: Values, ref_logits: Logits, level: ArrayLike) -> MomentFit:
    """Cramér's rate function of the mean reward of independent draws: `.divergence` is J(level).

    `P(mean of m rewards beyond level)` falls like `e^(-m J)` with J the least `KL(pi‖ref)` of a
    policy with `E r = level`, a tilt: `with_moments` of one feature. With reward log q and a tilted
    reference this is J of the paper at the cross-entropy `-level`. Shapes: `[n]` twice and `[]`.

    Reference: Yang et al. 2024 (arXiv:2404.01730), J(t) of the large deviations principle.
    """
    rewards = checks.as_rewards("rewards", rewards)
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be [n], got shape {rewards.shape}: vmap for more")
    level = checks.finite("level", level)
    return with_moments(ref_logits, rewards[:, None], jnp.asarray(level, rewards.dtype)[None])
