"""Maximum a posteriori policy optimization: E-step, M-step, and the M-step's loss.

The E-step reweights a policy exponentially and solves the dual of `KL <= radius` for the
temperature; for one row it is REPS for a bandit. The M-step moves the policy to the reweighted one
within a radius of the other direction of KL, in closed form or, for networks, along a loss.
"""

from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots
from jdiv.divergences import categorical
from jdiv.policy.tokens import TokenLoss


class EStep(NamedTuple):
    """`q ~ prior exp(value/temperature)`, with the evidence that it meets its radius."""

    log_policy: Array
    """`[..., n]`"""
    temperature: Array
    """`[]` the dual's solution; 0 where the radius does not bind."""
    divergence: Array
    """`[]` mean KL(q‖prior), the radius where it binds."""
    dual: Array
    """`[]` `temperature (radius + E log E_prior exp(value/temperature))`, which is E_q[value]."""
    active: Array
    """`[]` whether the radius binds: else even the best values alone are near enough."""


def e_step(
    values: ArrayLike,
    log_prior: ArrayLike,
    radius: ArrayLike,
    weights: ArrayLike | None = None,
) -> EStep:
    """`max E_q[values]` where the mean of KL(q‖prior) over rows is at most the radius.

    `q ~ prior exp(values/eta)` with one eta for all rows, the minimum of the dual
    `eta radius + eta E log E_prior exp(values/eta)`: REPS for a bandit (one row), the E-step of MPO
    (rows are states, prior the policy, or zeros for n samples of it). Solved by Newton's method on
    the logarithm of the KL. Shapes: values and log_prior `[..., n]`; weights of rows `[...]`, which
    sum to 1, by default all alike. Not to be differentiated: what comes out is constant.

    Reference: Peters, Muelling and Altun 2010 (REPS), the bandit case; Abdolmaleki et al. 2018
    (arXiv:1806.06920), equations 4 and 5.
    """
    values = checks.as_float("values", values)
    log_prior = checks.as_float("log_prior", log_prior)
    checks.same_shape(values=values, log_prior=log_prior)
    checks.positive("radius", radius)
    dtype = jnp.promote_types(values.dtype, log_prior.dtype)
    values, log_prior = jax.lax.stop_gradient((values.astype(dtype), log_prior.astype(dtype)))
    log_prior = numerics.log_softmax(log_prior)
    weights = _row_weights(weights, values)
    supported = log_prior != -jnp.inf
    best = jnp.max(jnp.where(supported, values, -jnp.inf), axis=-1, keepdims=True)
    drop = jnp.where(supported, values - best, 0)
    mean = lambda rows: jnp.sum(weights * rows)

    def excess(log_eta: Array, _):
        """`log(KL/radius)`, and `-d KL/d log eta = Var_q(value)/eta^2` of a row."""
        scaled = drop * jnp.exp(-log_eta)
        log_sum = jax.nn.logsumexp(log_prior + scaled, axis=-1, keepdims=True)
        log_q = log_prior + scaled - log_sum
        kl = mean(categorical.kl(log_q, log_prior))
        q = jnp.exp(log_q)
        centred = scaled - jnp.sum(q * scaled, axis=-1, keepdims=True)
        variance = mean(jnp.sum(q * centred**2, axis=-1))
        return jnp.log(kl / radius), -variance / kl, (log_q, kl, log_sum[..., 0])

    # KL(q‖prior) <= (range/eta)^2/8, by Hoeffding's lemma.
    widest = -jnp.min(drop)
    high = jnp.log(jnp.where(widest > 0, widest, 1) / jnp.sqrt(8 * jnp.asarray(radius, dtype)))
    log_eta, (log_q, kl, log_sum) = roots.decreasing(
        excess,
        high - 100,
        high,
        (log_prior, high, best[..., 0]),
        tolerance=64 * jnp.finfo(dtype).eps,
    )

    # The best of the supported actions alone, if they are near enough.
    hardest = jnp.where(supported & (drop == 0), log_prior, -jnp.inf)
    farthest = mean(-jax.nn.logsumexp(hardest, axis=-1))
    active = farthest > radius
    eta = jnp.where(active, jnp.exp(log_eta), 0)
    return EStep(
        log_policy=jnp.where(active, log_q, numerics.log_softmax(hardest)),
        temperature=eta,
        divergence=jnp.where(active, kl, farthest),
        dual=eta * radius + mean(best[..., 0] + eta * log_sum),
        active=active,
    )


def _row_weights(weights: ArrayLike | None, values: Array) -> Array:
    """Weights `[...]` of rows `[..., n]`."""
    if weights is None:
        return jnp.full(values.shape[:-1], 1 / max(1, values[..., 0].size), values.dtype)
    weights = checks.as_float("weights", weights)
    if weights.shape != values.shape[:-1]:
        raise ValueError(f"weights must have shape {values.shape[:-1]}, got {weights.shape}")
    return weights.astype(values.dtype)


class MStep(NamedTuple):
    """A policy between the old one and a target."""

    log_policy: Array
    """`[..., n]`"""
    share: Array
    """`[]` of the target, `1/(1 + multiplier)`."""
    divergence: Array
    """`[]` mean KL(old‖policy), at most the radius."""


def m_step(
    log_target: ArrayLike,
    log_old: ArrayLike,
    radius: ArrayLike,
    weights: ArrayLike | None = None,
) -> MStep:
    """The M-step of MPO, exactly: `max E_target[log pi]` where the mean KL(old‖pi) <= radius.

    With the multiplier m of the constraint `pi = (target + m old)/(1 + m)`, one m for all rows.
    Shapes: logarithms `[..., n]`, weights of rows `[...]`, which sum to 1.

    Reference: Abdolmaleki et al. 2018 (arXiv:1806.06920), equation 12, for policies without
    parameters; the closed form follows from it and is not in the paper.
    """
    log_target = checks.as_float("log_target", log_target)
    log_old = checks.as_float("log_old", log_old)
    checks.same_shape(log_target=log_target, log_old=log_old)
    checks.positive("radius", radius)
    log_target, log_old = jax.lax.stop_gradient((log_target, log_old))
    log_target, log_old = numerics.log_softmax(log_target), numerics.log_softmax(log_old)
    weights = _row_weights(weights, log_target)

    def excess(x: Array, _):
        """`log(KL/radius)`; by x the KL has the slope -chi2(old‖mixture)."""
        mixture = _log_mixture(log_target, log_old, x)
        kl = jnp.sum(weights * categorical.kl(log_old, mixture))
        change = (jnp.exp(mixture) - jnp.exp(log_old)) ** 2 / jnp.exp(mixture)
        chi2 = jnp.sum(weights * jnp.sum(jnp.where(change > 0, change, 0), axis=-1))
        return jnp.log(kl / radius), -chi2 / kl, ()

    # KL(old‖(1 - s) old + s target) <= -log(1 - s).
    high = -jnp.log(-jnp.expm1(-jnp.asarray(radius, log_old.dtype)))
    all_of_it = jnp.sum(weights * categorical.kl(log_old, log_target)) <= radius
    x, _ = roots.decreasing(
        excess, jnp.zeros_like(high), high, tolerance=64 * jnp.finfo(high.dtype).eps
    )
    x = jnp.where(all_of_it, 0, x)
    mixture = jnp.where(all_of_it, log_target, _log_mixture(log_target, log_old, x))
    return MStep(mixture, jnp.exp(-x), jnp.sum(weights * categorical.kl(log_old, mixture)))


def _log_mixture(log_target: Array, log_old: Array, minus_log_share: Array) -> Array:
    """`log((1 - s) old + s target)`, s = exp(-minus_log_share)."""
    rest = jnp.log(-jnp.expm1(-minus_log_share))
    return jnp.logaddexp(log_old + rest, log_target - minus_log_share)


class Weighting(NamedTuple):
    """Of a weighted log-likelihood."""

    weight: Array
    """What the log-probabilities were multiplied with."""
    kl: Array
    """KL(old‖new) where there is a penalty, else 0."""


def m_step_loss(
    logits: ArrayLike, log_target: ArrayLike, log_old: ArrayLike, *, coefficient: ArrayLike
) -> TokenLoss:
    """The M-step's loss per state, `-E_target[log pi] + coefficient KL(old‖pi)`.

    Take the target from `e_step`, and raise the coefficient by `aux.kl - radius`. Shapes:
    `[..., n]` three times, the policy's logits and logarithms of probabilities over n actions, to
    `[...]`.

    Reference: Abdolmaleki et al. 2018 (arXiv:1806.06920), equation 12 as a Lagrangian.
    """
    logits = checks.as_float("logits", logits)
    others = (checks.as_float("log_target", log_target), checks.as_float("log_old", log_old))
    checks.same_shape(logits=logits, log_target=others[0], log_old=others[1])
    log_target, log_old = (jax.lax.stop_gradient(x.astype(logits.dtype)) for x in others)
    target = jnp.exp(numerics.log_softmax(log_target))
    log_policy = numerics.log_softmax(logits)
    likelihood = jnp.sum(target * jnp.where(target > 0, log_policy, 0), axis=-1)
    kl = categorical.kl(log_old, logits)
    return TokenLoss(coefficient * kl - likelihood, Weighting(target, jax.lax.stop_gradient(kl)))
