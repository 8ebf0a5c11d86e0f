"""Relative entropy policy search on a process: its dual, solved for the temperature and values."""

from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots
from jdiv.divergences import generators
from jdiv.mdp import model, occupancy
from jdiv.mdp.model import AnyMdp


class RepsStep(NamedTuple):
    """A step of REPS on a process, with the evidence that it meets its radius."""

    log_policy: Array
    """`[S, A]` `log p(a|s)` of `p ~ q exp(advantage/temperature)`."""
    temperature: Array
    """`[]` of the dual."""
    value: Array
    """`[S]` the other variables of the dual."""
    divergence: Array
    """`[]` KL of the policy's occupancy from the old one, the radius where it binds."""
    dual: Array
    """`[]` `eta radius + eta log E_q exp(advantage/eta) + (1 - discount) E_start[value]`."""
    gap: Array
    """`[]` the dual minus `(1 - discount) J` of the policy: no policy in the radius is better by
    more."""
    active: Array
    """`[]` whether the radius binds."""


def reps(mdp: AnyMdp, log_reference: Array, radius: ArrayLike) -> RepsStep:
    """`max sum p r` over occupancy measures p with KL(p‖q) at most the radius.

    `p ~ q exp((r + discount E v' - v)/eta)` with (eta, v) from the dual. For every eta v is solved
    by `occupancy.Problem`, an interior-point method, and eta by Newton's method on the logarithm of
    the KL. `log_reference`, `[S, A]`, are logarithms of q, the occupancy of the old policy. Where
    even the optimum is within the radius, eta ends at a 1e-6th of the range of rewards. Call it
    under jit and in float64.

    Reference: Peters, Muelling and Altun 2010, from memory; discount and start are of this form.
    """
    log_reference = checks.as_float("log_reference", log_reference)
    if log_reference.shape != mdp.reward.shape:
        raise ValueError(
            f"log_reference must have the reward's shape {tuple(mdp.reward.shape)},"
            f" got {tuple(log_reference.shape)}"
        )
    checks.positive("radius", radius)
    shape, dtype = log_reference.shape, log_reference.dtype
    log_reference = numerics.log_softmax(log_reference.ravel()).reshape(shape)
    radius = jnp.asarray(radius, dtype)
    kl = generators.kl()
    # Mass that is no float counts as none.
    seen = jnp.where(log_reference < jnp.log(jnp.finfo(dtype).tiny), -jnp.inf, log_reference)
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
    high = jnp.log(spread / jnp.sqrt(2 * radius))
    floor = jnp.log(1e-6 * spread)
    log_eta, value = roots.decreasing(
        excess,
        floor,
        high,
        jnp.zeros(shape[0], dtype),
        tolerance=jnp.finfo(dtype).eps ** 0.6,
    )
    eta = jnp.exp(log_eta)

    tilted = log_reference + problem.advantage(value) / eta
    never = jnp.max(log_reference, axis=-1, keepdims=True) == -jnp.inf
    log_policy = numerics.log_softmax(jnp.where(never, 0, tilted))
    mass = jnp.maximum(model.occupancy(mdp, jnp.exp(log_policy)), 0)
    dual = eta * (radius + jax.nn.logsumexp(tilted)) + (1 - mdp.discount) * (mdp.start @ value)
    return RepsStep(
        log_policy=log_policy,
        temperature=eta,
        value=value,
        divergence=occupancy.divergence(jnp.log(mass), log_reference, generator=kl),
        dual=dual,
        gap=dual - jnp.sum(mass * mdp.reward),
        active=log_eta > floor,
    )
