"""Maximum a posteriori policy optimization: E-step, M-step, and the M-step's loss.

The E-step reweights a policy exponentially and solves the dual of `KL <= radius` for the
temperature; for one row it is REPS for a bandit. The M-step moves the policy to the reweighted one
within a radius of the other direction of KL, in closed form or, for networks, along a loss.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics, roots
from jdiv.divergences import categorical
from jdiv.types import Logits, PerRow, PerState, Scalar, Values


class EStep(NamedTuple):
    """The policy `q ~ ref exp(value/temperature)`, and the evidence that it meets its radius.

    Fields:
        log_policy: `[..., n]` log q.
        temperature: `[]` the dual's solution; 0 where the radius does not bind.
        divergence: `[]` mean KL(q‖ref), the radius where it binds.
        dual: `[]` `temperature (radius + E log E_ref exp(value/temperature))`, which is E_q[value].
        active: `[]` whether the radius binds: else even the best values alone are near enough.
    """

    log_policy: Array
    temperature: Array
    divergence: Array
    dual: Array
    active: Array


def e_step(
    values: Values,
    ref_logits: Logits,
    radius: Scalar,
    weights: PerState | None = None,
) -> EStep:
    """`max E_q[values]` where the mean of KL(q‖ref) over states is at most the radius.

    `q ~ ref exp(values/eta)` with one temperature eta for all states, which minimizes the dual
    `eta radius + eta E log E_ref exp(values/eta)` and is found by Newton's method on the logarithm
    of the KL. For one state it is REPS for a bandit; for n samples of the policy in each state,
    ref_logits are zeros. Shapes: values and ref_logits `[..., n]`; weights of states `[...]`, which
    sum to 1, by default all alike. The result is constant.

    Reference: Peters, Muelling and Altun 2010 (REPS), the bandit case; Abdolmaleki et al. 2018
    (arXiv:1806.06920), equations 4 and 5.
    """
    values, ref_logits = jax.lax.stop_gradient(checks.alike(values=values, ref_logits=ref_logits))
    radius = _radius(radius, values)
    log_ref = numerics.log_softmax(ref_logits)
    weights = _state_weights(weights, values)
    supported = log_ref != -jnp.inf
    best = jnp.max(jnp.where(supported, values, -jnp.inf), axis=-1, keepdims=True)
    drop = jnp.where(supported, values - best, 0)
    mean = lambda rows: jnp.sum(weights * rows)

    def excess(log_eta: Array, _):
        """`log(KL/radius)`, and `-d KL/d log eta = Var_q(value)/eta^2` of a row."""
        scaled = drop * jnp.exp(-log_eta)
        log_sum = jax.nn.logsumexp(log_ref + scaled, axis=-1, keepdims=True)
        log_q = log_ref + scaled - log_sum
        kl = mean(categorical.kl(log_q, log_ref))
        q = jnp.exp(log_q)
        centered = scaled - jnp.sum(q * scaled, axis=-1, keepdims=True)
        variance = mean(jnp.sum(q * centered**2, axis=-1))
        return jnp.log(kl / radius), -variance / kl, (log_q, kl, log_sum[..., 0])

    # KL(q‖ref) <= (range/eta)^2/8, by Hoeffding's lemma.
    widest = -jnp.min(drop)
    spread = jnp.where(widest > 0, widest, 1)
    high = jnp.log(spread / jnp.sqrt(8 * radius))
    tolerance = 64 * jnp.finfo(values.dtype).eps
    log_eta, (log_q, kl, log_sum) = roots.decreasing(
        excess, high - 100, high, (log_ref, high, best[..., 0]), tolerance=tolerance
    )

    # The best of the supported actions alone, if they are near enough.
    hardest = jnp.where(supported & (drop == 0), log_ref, -jnp.inf)
    farthest = mean(-jax.nn.logsumexp(hardest, axis=-1))
    active = farthest > radius
    eta = checks.spread_nan(jnp.where(active, jnp.exp(log_eta), 0), farthest, radius)
    log_policy = jnp.where(active, log_q, numerics.log_softmax(hardest))
    return EStep(
        log_policy=checks.spread_nan(log_policy, farthest, radius),
        temperature=eta,
        divergence=jnp.where(active, kl, farthest),
        dual=eta * radius + mean(best[..., 0] + jnp.where(eta == 0, 0, eta * log_sum)),
        active=active,
    )


def _radius(radius: Scalar, rows: Array) -> Array:
    """The checked radius, one for all rows."""
    return checks.positive("radius", radius, rows=rows.ravel())


def _state_weights(weights: PerState | None, values: Array) -> Array:
    """Weights `[...]` of states, given or all alike, for values `[..., n]`."""
    if weights is None:
        return jnp.full(values.shape[:-1], 1 / max(1, values[..., 0].size), values.dtype)
    weights = checks.as_float("weights", weights)
    if weights.shape != values.shape[:-1]:
        raise ValueError(f"weights must have shape {values.shape[:-1]}, got {weights.shape}")
    checked = checks.probabilities("weights", weights.ravel())
    return checked.reshape(weights.shape).astype(values.dtype)


class MStep(NamedTuple):
    """A mixture of the old policy and a target, and how far it is from the old one.

    Fields:
        log_policy: `[..., n]`
        share: `[]` the target's share of the mixture, `1/(1 + multiplier)`.
        divergence: `[]` mean KL(old‖policy), at most the radius.
    """

    log_policy: Array
    share: Array
    divergence: Array


def m_step(
    target_logits: Logits,
    old_logits: Logits,
    radius: Scalar,
    weights: PerState | None = None,
) -> MStep:
    """The M-step of MPO, exactly: `max E_target[log pi]` where the mean KL(old‖pi) <= radius.

    With the multiplier m of the constraint `pi = (target + m old)/(1 + m)`, one m for all states.
    Shapes: logits `[..., n]` twice; weights of states `[...]`, which sum to 1, by default all
    alike. The result is constant.

    >>> step = m_step(jnp.log(jnp.array([0.9, 0.1])), jnp.zeros(2), 0.02)
    >>> print(f"{step.share:.4f} {jnp.exp(step.log_policy[0]):.4f} {step.divergence:.4f}")
    0.2475 0.5990 0.0200

    Reference: Abdolmaleki et al. 2018 (arXiv:1806.06920), equation 12, for policies without
    parameters; the closed form follows from it and is not in the paper.
    """
    alike = checks.alike(target_logits=target_logits, old_logits=old_logits)
    log_target, log_old = map(numerics.log_softmax, jax.lax.stop_gradient(alike))
    weights, radius = _state_weights(weights, log_target), _radius(radius, log_target)

    def excess(x: Array, _):
        """`log(KL/radius)`; by x the KL has the slope -chi2(old‖mixture)."""
        mixture = _log_mixture(log_target, log_old, x)
        kl = jnp.sum(weights * categorical.kl(log_old, mixture))
        change = (jnp.exp(mixture) - jnp.exp(log_old)) ** 2 / jnp.exp(mixture)
        chi2 = jnp.sum(weights * jnp.sum(jnp.where(change > 0, change, 0), axis=-1))
        return jnp.log(kl / radius), -chi2 / kl, ()

    # KL(old‖(1 - s) old + s target) <= -log(1 - s).
    high = -jnp.log(-jnp.expm1(-radius))
    farthest = jnp.sum(weights * categorical.kl(log_old, log_target))
    all_of_it = farthest <= radius
    x, _ = roots.decreasing(
        excess, jnp.zeros_like(high), high, tolerance=64 * jnp.finfo(high.dtype).eps
    )
    x = checks.spread_nan(jnp.where(all_of_it, 0, x), farthest, radius)
    mixture = jnp.where(all_of_it, log_target, _log_mixture(log_target, log_old, x))
    return MStep(mixture, jnp.exp(-x), jnp.sum(weights * categorical.kl(log_old, mixture)))


def _log_mixture(log_target: Array, log_old: Array, minus_log_share: Array) -> Array:
    """`log((1 - s) old + s target)`, s = exp(-minus_log_share).

    `numerics.mixture_over` takes the share itself, of which 1 - s is rounded where s is nearly 1.
    """
    rest = jnp.log(-jnp.expm1(-minus_log_share))
    return jnp.logaddexp(log_old + rest, log_target - minus_log_share)


class MStepLoss(NamedTuple):
    """A loss per state, to be averaged with the weights of states, and how far the policy moved.

    Fields:
        loss: `[...]`, one number for each state: no loss of tokens.
        divergence: `[...]` KL(old‖pi) of each state, without derivatives.
    """

    loss: Array
    divergence: Array


def m_step_loss(
    logits: Logits, target_logits: Logits, old_logits: Logits, *, coefficient: PerRow
) -> MStepLoss:
    """The M-step for networks, `-E_target[log pi] + coefficient KL(old‖pi)` in each state.

    The target comes from `e_step`; raise the coefficient by `divergence - radius`. All three are
    normalized here. Shapes: `[..., n]` three times to `[...]`.

    >>> target = jnp.log(jnp.array([0.9, 0.1]))
    >>> out = m_step_loss(jnp.zeros(2), target, jnp.zeros(2), coefficient=1.0)
    >>> print(f"{out.loss:.4f} {out.divergence:.4f}")
    0.6931 0.0000

    Reference: Abdolmaleki et al. 2018 (arXiv:1806.06920), equation 12 as a Lagrangian.
    """
    logits, target_logits, old_logits = checks.alike(
        logits=logits, target_logits=target_logits, old_logits=old_logits
    )
    coefficient = checks.not_negative("coefficient", coefficient, rows=logits)
    coefficient = coefficient[..., 0] if coefficient.ndim else coefficient
    target_logits, old_logits = jax.lax.stop_gradient((target_logits, old_logits))
    target = jnp.exp(numerics.log_softmax(target_logits))
    log_policy = numerics.log_softmax(logits)
    likelihood = jnp.sum(target * jnp.where(target > 0, log_policy, 0), axis=-1)
    kl = categorical.kl(old_logits, logits)
    return MStepLoss(coefficient * kl - likelihood, jax.lax.stop_gradient(kl))
