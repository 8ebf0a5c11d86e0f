"""One driver for all schemes: iterate with errors, and measure how good the policies truly are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv.mdp.model import AnyMdp, SparseMdp, optimum, policy_action_values
from jdiv.mdp.operators import Iterate, Scheme


class Run(NamedTuple):
    """What came out of a run."""

    last: Iterate
    """The last iterate."""
    measured: Any
    """`[iterations, ...]` what was measured of each."""


def run(
    mdp: AnyMdp,
    scheme: Scheme,
    iterations: int,
    *,
    errors: Array | None = None,
    samples: int | None = None,
    key: Array | None = None,
    q: Array | None = None,
    measure: Callable[[Iterate], Any] | None = None,
) -> Run:
    """Iterates a scheme from `q`, or from zero action values, in one scan.

    `errors`, `[iterations, S, A]`, are added to what each iteration computes. With `samples` its
    expectation over next states is a mean over so many, drawn with the key. `measure` maps an
    iterate to what is kept; by default that is `suboptimality`.
    """
    if errors is not None and errors.shape != (iterations, *mdp.reward.shape):
        raise ValueError(
            f"errors must have shape {(iterations, *mdp.reward.shape)}, got {errors.shape}"
        )
    if samples is not None and key is None:
        raise ValueError("samples need a key")
    measure = suboptimality(mdp) if measure is None else measure
    q = jnp.zeros_like(jnp.asarray(mdp.reward)) if q is None else q
    keys = None if key is None else jax.random.split(key, iterations)

    def iterate(at: Iterate, inputs: tuple[Array | None, Array | None]) -> tuple[Iterate, Any]:
        error, key = inputs
        model = mdp if samples is None else sampled(mdp, key, samples)
        at = scheme.step(model, at, 0.0 if error is None else error)
        return at, measure(at)

    return Run(*jax.lax.scan(iterate, scheme.init(q), (errors, keys), length=iterations))


def suboptimality(mdp: AnyMdp) -> Callable[[Iterate], Array]:
    """`max |q* - q_pi|` of an iterate's policy, both exact."""
    of_policy = policy_suboptimality(mdp)
    return lambda at: of_policy(jnp.exp(at.log_policy))


def policy_suboptimality(mdp: AnyMdp) -> Callable[[Array], Array]:
    """`max |q* - q_pi|` of a policy `[S, A]`."""
    best = policy_action_values(mdp, optimum(mdp).policy)
    return lambda policy: jnp.max(jnp.abs(best - policy_action_values(mdp, policy)))


def sampled(mdp: AnyMdp, key: Array, samples: int) -> SparseMdp:
    """The same process with `samples` next states drawn for each state and action."""
    sparse = isinstance(mdp, SparseMdp)
    rows = jnp.log(mdp.probability if sparse else mdp.transition)[:, :, None]
    drawn = jax.random.categorical(key, rows, shape=(*mdp.reward.shape, samples))
    successor = jnp.take_along_axis(mdp.successor, drawn, axis=-1) if sparse else drawn
    probability = jnp.full(successor.shape, 1 / samples, jnp.asarray(mdp.reward).dtype)
    return SparseMdp(successor, probability, mdp.reward, mdp.discount, mdp.start)
