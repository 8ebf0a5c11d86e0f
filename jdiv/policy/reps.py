"""Relative entropy policy search on a process: its dual, solved for the temperature and values."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics, roots
from jdiv.divergences import generators
from jdiv.mdp import model, occupancy
from jdiv.mdp.model import AnyMdp
from jdiv.types import Scalar, StateActions


class RepsStep(NamedTuple):
    """The new policy, the dual's solution, and the evidence that the step meets its radius.

    Fields:
        log_policy: `[S, A]` `log p(a|s)` of `p ~ q exp(advantage/temperature)`.
        temperature: `[]` eta, the dual's first variable.
        value: `[S]` the dual's other variables.
        divergence: `[]` KL of the policy's occupancy from the old one, the radius where it binds.
        dual: `[]` `eta radius + eta log E_q exp(advantage/eta) + (1 - discount) E_start[value]`.
        gap: `[]` the dual minus `(1 - discount) J` of the policy: no policy in the radius is better
            by more.
        active: `[]` whether the radius binds.
    """

    log_policy: Array
    temperature: Array
    value: Array
    divergence: Array
    dual: Array
    gap: Array
    active: Array


def reps(mdp: AnyMdp, ref_logits: StateActions, radius: Scalar) -> RepsStep:
    """`max sum p r` over occupancy measures p with KL(p‖q) at most the radius.

    `p ~ q exp((r + discount E v' - v)/eta)` with the temperature eta and the values v from the
    dual. For every eta an interior-point method, `occupancy.Problem`, solves for v, and Newton's
    method on the logarithm of the KL for eta. `ref_logits`, `[S, A]`, are logarithms of q, the
    occupancy of the old policy; they are normalized over both axes. Where even the optimum is
    within the radius, eta ends at a 1e-6th of the range of rewards. Call it under jit and in
    float64.

    Reference: Peters, Muelling and Altun 2010.
    Reconstructed: from memory of the paper; discount and start distribution are of this form.
    """
    ref_logits = checks.as_float("ref_logits", ref_logits)
    if ref_logits.shape != mdp.reward.shape:
        raise ValueError(
            f"ref_logits must have the reward's shape {tuple(mdp.reward.shape)},"
            f" got {tuple(ref_logits.shape)}"
        )
    radius = checks.positive("radius", radius)
    shape, dtype = ref_logits.shape, ref_logits.dtype
    ref_logits = numerics.log_softmax(ref_logits.ravel()).reshape(shape)
    radius = jnp.asarray(radius, dtype)
    kl = generators.kl()
    # Mass that is no float counts as none.
    seen = jnp.where(ref_logits < jnp.log(jnp.finfo(dtype).tiny), -jnp.inf, ref_logits)
    problem = occupancy.Problem(mdp, seen, jnp.ones((), dtype), kl)

    def excess(log_eta: Array, _):
        """`log(KL/radius)`, and how the mass follows eta: `dp = D (A dv - log p/q) d eta`."""
        here = problem._replace(temperature=jnp.exp(log_eta))
        at, _ = here.solve()
        gain, slope, inverse = here.system(at)
        value = inverse(here.imbalance(gain * slope))
        change = jnp.sum(slope * gain * (here.advantage_change(value) - slope))
        distance = occupancy.divergence(jnp.log(at.mass), seen, generator=kl)
        return jnp.log(distance / radius), here.temperature * change / distance, at.value

    # eta KL <= <p - q, r> <= range sqrt(KL/2), by Pinsker's inequality.
    spread = jnp.max(mdp.reward) - jnp.min(mdp.reward)
    spread = jnp.where(spread == 0, 1, spread)  # equal rewards: any temperature will do
    high, floor = jnp.log(spread / jnp.sqrt(2 * radius)), jnp.log(1e-6 * spread)
    start, tolerance = jnp.zeros(shape[0], dtype), jnp.finfo(dtype).eps ** 0.6
    log_eta, value = roots.decreasing(excess, floor, high, start, tolerance=tolerance)
    active = log_eta > floor
    return _step(problem._replace(temperature=jnp.exp(log_eta)), ref_logits, radius, value, active)


def _step(
    problem: occupancy.Problem, ref_logits: Array, radius: Array, value: Array, active: Array
) -> RepsStep:
    """The policy that a solution of the dual stands for, and the evidence."""
    mdp, eta = problem.mdp, problem.temperature
    tilted = ref_logits + problem.advantage(value) / eta
    never = jnp.max(ref_logits, axis=-1, keepdims=True) == -jnp.inf
    log_policy = numerics.log_softmax(jnp.where(never, 0, tilted))
    mass = jnp.maximum(model.occupancy(mdp, jnp.exp(log_policy)), 0)
    dual = eta * (radius + jax.nn.logsumexp(tilted)) + (1 - mdp.discount) * (mdp.start @ value)
    return RepsStep(
        log_policy=log_policy,
        temperature=eta,
        value=value,
        divergence=occupancy.divergence(jnp.log(mass), ref_logits, generator=generators.kl()),
        dual=dual,
        gap=dual - jnp.sum(mass * mdp.reward),
        active=active,
    )
