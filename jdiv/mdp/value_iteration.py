"""One driver for all schemes: iterate with errors, and measure how good the policies truly are.

>>> from jdiv.mdp import environments, operators
>>> chain = environments.chain(length=3)
>>> found = run(chain, operators.value_iteration(), 3, measure=suboptimality(chain))
>>> [f"{gap:.3f}" for gap in found.measured]
['15.411', '12.824', '4.271']
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.mdp.model import AnyMdp, SparseMdp, optimum, policy_action_values
from jdiv.mdp.operators import AnyIterate, Scheme
from jdiv.types import RandomKey, StateActions


class Run(NamedTuple):
    """Final iterate and what was measured along the way.

    Fields:
        last: The final iterate.
        measured: `[iterations, ...]` what `measure` gave for each iterate; None without one.
    """

    last: AnyIterate
    measured: Any


def run(
    mdp: AnyMdp,
    scheme: Scheme,
    iterations: int,
    key: RandomKey | None = None,
    *,
    errors: Array | None = None,
    samples: int | None = None,
    q: StateActions | None = None,
    measure: Callable[[AnyIterate], Any] | None = None,
) -> Run:
    """Iterates a scheme from `q`, or from zero action values, in one scan.

    `errors`, `[iterations, S, A]`, are added to what each iteration computes. With `samples` its
    expectation over next states is a mean over so many, drawn with the key. `measure` maps an
    iterate to what is kept of it, such as `suboptimality(mdp)`; by default that is nothing.
    """
    checks.in_range("iterations", iterations, 0, jnp.inf, "at least 0", closed="low")
    if errors is not None and errors.shape != (iterations, *mdp.reward.shape):
        raise ValueError(
            f"errors must have shape {(iterations, *mdp.reward.shape)}, got {errors.shape}"
        )
    if samples is not None and key is None:
        raise ValueError("samples need a key")
    q = jnp.zeros_like(jnp.asarray(mdp.reward)) if q is None else q
    keys = None if key is None else jax.random.split(key, iterations)

    def iterate(at: AnyIterate, inputs: tuple[Array | None, Array | None]):
        error, key = inputs
        model = mdp if samples is None else sampled(mdp, samples, key)
        at = scheme.step(model, at, 0.0 if error is None else error)
        return at, None if measure is None else measure(at)

    return Run(*jax.lax.scan(iterate, scheme.init(q), (errors, keys), length=iterations))


def suboptimality(mdp: AnyMdp) -> Callable[[AnyIterate], Array]:
    """`max |q* - q_pi|` of an iterate's policy, both exact: a measure for `run`.

    To make it takes a run of policy iteration, and each use a linear system of S unknowns.
    """
    measure = policy_suboptimality(mdp)
    return lambda at: measure(jnp.exp(at.log_policy))


def policy_suboptimality(mdp: AnyMdp) -> Callable[[Array], Array]:
    """`max |q* - q_pi|` as a function of a policy's probabilities `[S, A]`."""
    best = policy_action_values(mdp, optimum(mdp).policy)
    return lambda policy: jnp.max(jnp.abs(best - policy_action_values(mdp, policy)))


def sampled(mdp: AnyMdp, samples: int, key: RandomKey) -> SparseMdp:
    """The same process with `samples` next states drawn for each state and action, all alike."""
    checks.in_range("samples", samples, 1, jnp.inf, "at least 1", closed="low")
    sparse = isinstance(mdp, SparseMdp)
    rows = jnp.log(mdp.probability if sparse else mdp.transition)[:, :, None]
    drawn = jax.random.categorical(key, rows, shape=(*mdp.reward.shape, samples))
    successor = jnp.take_along_axis(mdp.successor, drawn, axis=-1) if sparse else drawn
    probability = jnp.full(successor.shape, 1 / samples, jnp.asarray(mdp.reward).dtype)
    return SparseMdp(successor, probability, mdp.reward, mdp.discount, mdp.start)
