"""Texts under a constraint, weighted so that they stand for the model's law of accepted texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.decoding.automata import Automaton, reachable
from jdiv.decoding.constrained import Weighted, locally_constrained
from jdiv.types import Indices, PerSample, RandomKey, Scalar


class Particles(NamedTuple):
    """Weighted texts.

    Fields:
        tokens: `[particles, horizon]`
        log_weights: `[particles]`; the mean weight estimates the mass of accepted texts without
            bias, and weighted means of functions of texts converge to those under their exact law.
        calls: `[particles]` evaluations of the constraint along each text.
        sizes: `[horizon]` effective sample size over particles, after each token and before it is
            decided whether to resample.
    """

    tokens: Indices
    log_weights: PerSample
    calls: Indices
    sizes: Array


def smc(
    step: Callable[[Any, Array], tuple[Any, Array]],
    memory: Any,
    tokens: Indices,
    automaton: Automaton,
    key: RandomKey,
    *,
    horizon: int,
    threshold: Scalar = 0.5,
    sampler: Callable[[Array, Array, Array], Weighted] = locally_constrained,
) -> Particles:
    """Texts of exactly `horizon` tokens that an automaton accepts, by sequential Monte Carlo.

    `step(memory, tokens)` reads a token of each particle and gives the memory and the logits
    `[particles, n]` of the next ones; it begins with these tokens `[particles]`, the last of a
    prompt. Arrays of the memory have particles first. A sampler of `constrained` draws among the
    tokens that leave a way to the end. Particles are resampled (systematically) where the effective
    sample size over particles is below the threshold: 0 is importance sampling, whose texts alone
    are those of locally constrained decoding; 1 resamples at every step.

    Reference: Lipkin et al. 2025 (arXiv:2504.05410); Loula et al. 2025 (arXiv:2504.13139).
    """
    horizon = checks.whole("horizon", horizon, 1, 2**31 - 1, "at least 1")
    threshold = checks.share("threshold", threshold)
    tokens = checks.as_integers("tokens", tokens)
    automaton = jax.tree.map(jnp.asarray, automaton)
    open_after = reachable(automaton, horizon=horizon - 1)[::-1]

    def extend(carry, at):
        memory, token, state, texts, log_weights, calls = carry
        number, ways, key = at
        draw, choose = jax.random.split(key)
        memory, logits = step(memory, token)
        after = automaton.successors[state]
        allowed = (after >= 0) & ways[jnp.maximum(after, 0)]
        new = sampler(logits, allowed, draw)
        token = jnp.maximum(new.tokens, 0).astype(token.dtype)
        state = jnp.take_along_axis(after, token[:, None].astype(after.dtype), axis=1)[:, 0]
        texts = texts.at[:, number].set(new.tokens.astype(texts.dtype))
        log_weights = log_weights + new.log_weights.astype(log_weights.dtype)
        size = _effective(log_weights) / len(log_weights)
        carry = memory, token, jnp.maximum(state, 0), texts, log_weights, calls + new.calls
        return _resampled(carry, choose, size < threshold), size

    particles = len(tokens)
    dtype = jax.eval_shape(step, memory, tokens)[1].dtype
    start = (
        memory,
        tokens,
        jnp.zeros(particles, automaton.successors.dtype),
        jnp.zeros((particles, horizon), jnp.int32),
        jnp.zeros(particles, checks.wide(dtype)),
        jnp.zeros(particles, jnp.int32),
    )
    each = jnp.arange(horizon), open_after, jax.random.split(key, horizon)
    (*_, texts, log_weights, calls), sizes = jax.lax.scan(extend, start, each)
    return Particles(texts, log_weights, calls, sizes)


def _effective(log_weights: Array) -> Array:
    """`(sum w)^2 / sum w^2`, 0 if all weights are."""
    top = jnp.max(log_weights)
    weights = jnp.exp(log_weights - jnp.where(top == -jnp.inf, 0, top))
    squares = jnp.sum(weights**2)
    return jnp.sum(weights) ** 2 / jnp.where(squares == 0, 1, squares)


def _resampled(carry: tuple, key: Array, wanted: Array) -> tuple:
    """Particles in proportion to their weights, by one uniform number, which all weigh the same."""
    *others, log_weights, calls = carry
    n, top = len(log_weights), jnp.max(log_weights)
    wanted = wanted & (top > -jnp.inf)
    weights = jnp.exp(log_weights - jnp.where(top == -jnp.inf, 0, top))
    below = jnp.cumsum(weights)
    place = (jnp.arange(n, dtype=below.dtype) + jax.random.uniform(key, (), below.dtype)) / n
    # Rounded to 1 it would be behind the last.
    place = jnp.minimum(place, jnp.nextafter(jnp.ones_like(place), jnp.zeros_like(place)))
    chosen = jnp.searchsorted(below, place.astype(below.dtype) * below[-1], side="right")
    source = jnp.where(wanted, jnp.minimum(chosen, n - 1), jnp.arange(n, dtype=chosen.dtype))
    mean = jnp.log(below[-1]) - jnp.log(jnp.asarray(n, below.dtype)) + top
    log_weights = jnp.where(wanted, mean, log_weights)
    return *jax.tree.map(lambda x: x[source], tuple(others)), log_weights, calls[source]
