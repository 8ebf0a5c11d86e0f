"""Texts that a finite automaton accepts: which tokens may come next, and with what probability.

A grammar over characters becomes one over a model's tokens (`lifted`). Which tokens leave a way to
the end is known of the automaton alone (`reachable`). Where the model is a finite table too, its
law of all accepted texts is known exactly, by sums from the end backwards (`conditional`). Any
other model writes them by a `rule` of `lm.sampling.generate`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from jdiv import checks, numerics
from jdiv.lm.rules import Rule
from jdiv.types import Indices, Logits

Successors = Int[Array | np.ndarray, "states n"]
"""The state after each token, from each state; -1 where the token is forbidden."""
Accepting = Bool[Array | np.ndarray, "states"]
"""True for the states in which a text may end."""


class Automaton(NamedTuple):
    """A deterministic automaton; it starts in state 0.

    Fields:
        successors: `[states, n]` the state after each token, -1 where the token is forbidden.
        accepting: `[states]` True where a text may end.
    """

    successors: Successors
    accepting: Accepting


def lifted(automaton: Automaton, tokens: Indices) -> Automaton:
    """The automaton over a vocabulary each of whose tokens is a string of symbols of this one.

    Shapes: tokens `[vocabulary, longest]` of symbols, behind whose last one stands -1; symbols that
    the automaton does not have are forbidden, and so are tokens without any.

    >>> letters = Automaton(jnp.array([[1, -1], [-1, 0]]), jnp.array([True, False]))  # (ab)*
    >>> lifted(letters, jnp.array([[0, 1], [0, -1], [1, 1], [-1, -1]])).successors.tolist()
    [[0, 1, -1, -1], [-1, -1, -1, -1]]
    """
    automaton = jax.tree.map(jnp.asarray, automaton)
    tokens = checks.as_integers("tokens", tokens)
    states, symbols = automaton.successors.shape
    start = jnp.broadcast_to(jnp.arange(states)[:, None], (states, len(tokens)))

    def read(state, symbol):
        known = (state >= 0) & (symbol[None] < symbols)
        at = jnp.where(known, state, 0), jnp.clip(symbol, 0, symbols - 1)[None]
        after = jnp.where(known, automaton.successors[at], -1)
        return jnp.where(symbol[None] < 0, state, after), None

    end, _ = jax.lax.scan(read, start.astype(automaton.successors.dtype), tokens.T)
    empty = jnp.all(tokens < 0, axis=1)
    return Automaton(jnp.where(empty[None], -1, end), automaton.accepting)


def reachable(automaton: Automaton, *, horizon: int) -> Array:
    """Whether a text may end after 0 to `horizon` more tokens, each number exactly.

    Shapes: `[horizon + 1, states]`.
    """
    automaton = jax.tree.map(jnp.asarray, automaton)
    horizon = checks.whole("horizon", horizon, 0, 2**31 - 1, "at least 0")

    def before(after, _):
        now = jnp.any(_next(after, automaton, False), axis=-1)
        return now, now

    _, earlier = jax.lax.scan(before, automaton.accepting, None, length=horizon)
    return jnp.concatenate([automaton.accepting[None], earlier])


def rule(automaton: Automaton, *, max_tokens: int, end: int | None = None) -> Rule:
    """Forbids every token after which no accepted text of up to `max_tokens` tokens is left.

    A text ends with the token `end`, which may come where the automaton accepts and is counted;
    without one it has exactly `max_tokens` tokens. The state is that of the automaton, and how many
    tokens are to come. A grammar without such texts is refused; if it is traced, its rows are -inf.

    >>> letters = Automaton(jnp.array([[1, -1, -1], [-1, 0, -1]]), jnp.array([True, False]))
    >>> pairs = rule(letters, max_tokens=3, end=2)  # (ab)* and the end: none, or one pair
    >>> first = pairs.logits(jnp.zeros((1, 3)), jnp.array([[0, 3]]))
    >>> print(first, pairs.logits(jnp.zeros((1, 3)), jnp.array([[0, 1]])))
    [[  0. -inf   0.]] [[-inf -inf   0.]]

    Reference: Lipkin et al. 2025 (arXiv:2504.05410), locally constrained decoding.
    """
    automaton = jax.tree.map(jnp.asarray, automaton)
    successors, accepting = automaton
    size = successors.shape[1]
    ways = reachable(automaton, horizon=max_tokens)
    if end is not None:
        checks.whole("end", end, 0, size - 1, "a token of the automaton")
        # Before the end a text is accepted after so many tokens, or after fewer.
        within = jnp.cumsum(ways, axis=0) > 0
        ways = jnp.concatenate([jnp.zeros_like(ways[:1]), within[:-1]])
        successors = successors.at[:, end].set(-1)
    if not isinstance(ways, jax.core.Tracer) and not ways[-1, 0]:
        raise ValueError(f"automaton must accept a text of max_tokens={max_tokens} tokens")

    def logits(logits: Array, state: Array) -> Array:
        at, left = state[:, 0], jnp.maximum(state[:, 1], 1)
        after = successors[at]
        allowed = (after >= 0) & ways[left[:, None] - 1, jnp.maximum(after, 0)]
        if end is not None:
            allowed = allowed.at[:, end].set(accepting[at])
        return jnp.where(allowed, logits, -jnp.inf)

    def read(state: Array, tokens: Array) -> Array:
        at = jnp.maximum(successors[state[:, 0], tokens], 0).astype(state.dtype)
        return jnp.stack([at, jnp.maximum(state[:, 1] - 1, 0)], axis=1)

    return Rule(logits, read, jnp.array([0, max_tokens], jnp.int32))


def log_acceptance(
    logits: Logits, children: Indices, automaton: Automaton, *, horizon: int
) -> Array:
    """Log-probability that a text is accepted after 0 to `horizon` more tokens of the model.

    The model is a table: `logits[row]` is its law of the next token, `children[row, token]` the row
    after that. Backwards, `P(h, row, s) = sum over tokens p(token|row) P(h - 1, child, successor)`.
    Shapes: `[rows, n]` twice to `[horizon + 1, rows, states]`.
    """
    automaton = jax.tree.map(jnp.asarray, automaton)
    horizon = checks.whole("horizon", horizon, 0, 2**31 - 1, "at least 0")
    log_p, children = _table(logits, children)
    accepted = jnp.where(automaton.accepting, 0, -jnp.inf).astype(log_p.dtype)
    accepted = jnp.broadcast_to(accepted[None], (len(log_p), len(accepted)))

    def before(after, _):
        now = _log_sum(_joint(log_p, children, automaton, after))
        return now, now

    _, earlier = jax.lax.scan(before, accepted, None, length=horizon)
    return jnp.concatenate([accepted[None], earlier])


def conditional(logits: Logits, children: Indices, automaton: Automaton, *, horizon: int) -> Array:
    """The law of the model's next token, given that the text will be accepted: exact.

    `p(token|row) P(h - 1, child, successor) / P(h, row, s)` with h tokens to come, 1 to `horizon`.
    It is -inf everywhere where no text is accepted. Shapes: `[rows, n]` twice to
    `[horizon, rows, states, n]`.

    >>> automaton = Automaton(jnp.array([[0, 1], [0, 1]]), jnp.array([True, False]))  # ends in a
    >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]))  # start, a, b
    >>> law = conditional(logits, jnp.array([[1, 2]] * 3), automaton, horizon=2)
    >>> print([f"{p:.3f}" for p in jnp.exp(law[1, 0, 0])])
    ['0.500', '0.500']
    """
    horizon = checks.whole("horizon", horizon, 1, 2**31 - 1, "at least 1")
    automaton = jax.tree.map(jnp.asarray, automaton)
    total = log_acceptance(logits, children, automaton, horizon=horizon)
    log_p, children = _table(logits, children)
    joint = jax.vmap(lambda after: _joint(log_p, children, automaton, after))(total[:-1])
    total = total[1:, ..., None]
    return jnp.where(total > -jnp.inf, joint - jnp.where(total > -jnp.inf, total, 0), -jnp.inf)


# ------------------------------------------------------------------------------------------- parts


def _table(logits: Logits, children: Indices) -> tuple[Array, Array]:
    log_p = numerics.log_softmax(checks.as_float("logits", logits))
    children = checks.as_integers("children", children)
    checks.same_shape(logits=log_p, children=children)
    return log_p, children


def _next(after: Array, automaton: Automaton, otherwise: bool | float) -> Array:
    """`[..., states, n]` of `[..., states]`: what the state after a token has."""
    allowed = automaton.successors >= 0
    found = after[..., jnp.where(allowed, automaton.successors, 0)]
    return jnp.where(jnp.broadcast_to(allowed, found.shape), found, otherwise)


def _joint(log_p: Array, children: Array, automaton: Automaton, after: Array) -> Array:
    """`[rows, states, n]`: log-probability of a token and of being accepted then."""
    allowed = automaton.successors >= 0
    state = jnp.where(allowed, automaton.successors, 0)
    then = after[children[:, None], state[None]]
    return log_p[:, None] + jnp.where(allowed[None], then, -jnp.inf)


def _log_sum(x: Array) -> Array:
    """`log sum e^x` over the last axis, -inf with derivative 0 where all are."""
    some = jnp.any(x > -jnp.inf, axis=-1, keepdims=True) | jnp.any(jnp.isnan(x), -1, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(some, x, 0), axis=-1)
    return jnp.where(some[..., 0], total, -jnp.inf)
