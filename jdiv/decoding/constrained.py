"""One token under a constraint: exclusion, and sampling with few evaluations of the constraint.

A constraint is a mask `[..., n]`, or a function of tokens `[...]` that says which of them are
allowed, for constraints that are dear to evaluate. Exclusion is the KL projection onto what is
allowed; its minimum `-log Z`, Z the mass of what is allowed, is the KL that it costs. A sampler
`(logits, where, key) -> Weighted` draws a token of that law with a weight whose mean is Z, which
`smc` corrects whole texts by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.types import Categories, Indices, Logits, LogPolicy, PerSequence, RandomKey, Scalar

Constraint = Categories | Callable[[Array], Array]
"""A mask of the tokens that are allowed, or a function of tokens to booleans of their shape."""


class Weighted(NamedTuple):
    """Tokens with a weight each; where nothing was allowed the token is -1 and the weight 0.

    Fields:
        tokens: `[...]`
        log_weights: `[...]` of a weight w with `E[w f(token)] = sum over allowed p f`.
        calls: `[...]` how many different tokens the constraint was evaluated at.
    """

    tokens: Indices
    log_weights: PerSequence
    calls: Indices


def exclude(logits: Logits, where: Categories) -> LogPolicy:
    """`argmin KL(pi‖p)` over policies on what is allowed: `p / Z` there, and `-inf` elsewhere.

    Its ratios are the model's; gradients of what is excluded are 0. Where nothing is allowed there
    is no such law: refused, and NaN if traced. Shapes: `[..., n]`, the mask broadcast to it.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> print([f"{p:.3f}" for p in jnp.exp(exclude(logits, jnp.array([True, False, True])))])
    ['0.714', '0.000', '0.286']

    Reference: (G)I-DLE.
    Reconstructed: the formula, which is what the abstract says in words.
    """
    logits, where = _checked(logits, where)
    allowed = jnp.any(where & (logits > -jnp.inf) | jnp.isnan(logits), axis=-1)
    if not isinstance(allowed, jax.core.Tracer) and not allowed.all():
        raise ValueError("where must allow a token of positive probability in every row")
    return numerics.log_softmax(jnp.where(where, logits, -jnp.inf))


def log_mass(logits: Logits, where: Categories) -> PerSequence:
    """`log Z`, the log-probability of all that is allowed; `-log Z` is KL(exclude‖p).

    From `-inf` where nothing is allowed to 0, exactly, where nothing is excluded. Shapes:
    `[..., n]` to `[...]`.
    """
    logits, where = _checked(logits, where)
    return _log_share(numerics.log_softmax(logits), where)


def locally_constrained(logits: Logits, where: Constraint, key: RandomKey) -> Weighted:
    """A token of `exclude`, and Z itself for its weight: the constraint is evaluated everywhere.

    A text that is drawn so, token by token, without regard to the weights, does not have the law of
    the model's texts that meet the constraint.
    """
    logits = checks.as_float("logits", logits)
    if callable(where):
        tokens = jnp.arange(logits.shape[-1])[:, None]
        tokens = jnp.broadcast_to(tokens, (logits.shape[-1], logits[..., 0].size))
        by_token = jax.vmap(lambda x: where(x.reshape(logits.shape[:-1])))(tokens)
        where = jnp.moveaxis(by_token, 0, -1)
    logits, where = _checked(logits, where)
    log_weights = _log_share(numerics.log_softmax(logits), where)
    tokens = jax.random.categorical(key, jnp.where(where, logits, -jnp.inf))
    calls = jnp.sum(logits > -jnp.inf, axis=-1, dtype=jnp.int32)
    return Weighted(_or_none(tokens, log_weights > -jnp.inf), log_weights, calls)


def awrs_recursive(logits: Logits, where: Constraint, key: RandomKey) -> Weighted:
    """Adaptive weighted rejection sampling: tokens without replacement until one is allowed.

    With L the mass that is left when the token x is allowed, one more is drawn from the rest: the
    weight is L if that is allowed too, or if there is none, and p_x if it is not. Its mean is Z,
    and x has the law of `exclude`. Shapes: logits `[..., n]`; each row has its own draws.

    Reference: Lipkin et al. 2025 (arXiv:2504.05410), from its released code.
    """
    logits, allows = _with_test(logits, where)
    log_p = numerics.log_softmax(logits)
    order = log_p + jax.random.gumbel(key, log_p.shape, log_p.dtype)

    def draw(tried):
        rest = jnp.where(tried, -jnp.inf, order)
        return jnp.argmax(rest, axis=-1).astype(jnp.int32), jnp.max(rest, axis=-1) > -jnp.inf

    def step(state):
        tried, found, running, calls = state
        token, some = draw(tried)
        tested = running & some
        hit = tested & allows(token)
        rejected = (tested & ~hit)[..., None]
        tried = tried | rejected & _is(token, log_p)
        return tried, jnp.where(hit, token, found), tested & ~hit, _plus(calls, tested)

    rows = log_p.shape[:-1]
    nothing = jnp.zeros(log_p.shape, bool), jnp.full(rows, -1, jnp.int32)
    start = *nothing, jnp.ones(rows, bool), jnp.zeros(rows, jnp.int32)
    tried, found, _, calls = jax.lax.while_loop(lambda state: jnp.any(state[2]), step, start)
    second, some = draw(tried | _is(found, log_p))
    some = some & (found >= 0)
    high = _log_share(log_p, ~tried)
    low = jnp.take_along_axis(log_p, jnp.maximum(found, 0)[..., None], axis=-1)[..., 0]
    log_weights = jnp.where(some & ~allows(second), low, high)
    log_weights = jnp.where(found >= 0, log_weights, -jnp.inf)
    return Weighted(found, checks.spread_nan(log_weights, log_p[..., 0]), _plus(calls, some))


def awrs_geometric(
    logits: Logits, where: Constraint, key: RandomKey, *, accepts: Scalar = 2
) -> Weighted:
    """Adaptive weighted rejection sampling whose weight is that of draws with replacement.

    Draws go on to the r-th that is allowed. Rejected tokens are drawn no more, but how often they
    would have been is: N draws in all. The weight `(r - 1) / (N - 1)` is the unbiased estimate of Z
    of least variance that N allows; r = `accepts` is 2 or more. The token is the first allowed one.

    Reference: Lipkin et al. 2025 (arXiv:2504.05410), from its released code.
    """
    accepts = checks.in_range("accepts", accepts, 2, jnp.inf, "at least 2", closed="low")
    logits, allows = _with_test(logits, where)
    log_p = numerics.log_softmax(logits)
    accepts = jnp.asarray(accepts, log_p.dtype)
    rows = log_p.shape[:-1]

    def unfinished(state):
        return jnp.any(state.running)

    def step(state):
        draw, wait = jax.random.split(jax.random.fold_in(key, state.number))
        rest = jnp.where(state.rejected, -jnp.inf, log_p)
        running = state.running & (jnp.max(rest, axis=-1) > -jnp.inf)
        token = jax.random.categorical(draw, rest).astype(jnp.int32)
        is_token = _is(token, log_p)
        # Draws of what is rejected, before one of the rest: failures before a success.
        log_rejected = _log_share(log_p, state.rejected)
        waited = jnp.floor(-jax.random.exponential(wait, rows, log_p.dtype) / log_rejected)
        hit = running & allows(token)
        met = state.rejected | state.accepted
        accepted = _plus(state.count, hit)
        return _Draws(
            state.rejected | is_token & (running & ~hit)[..., None],
            state.accepted | is_token & hit[..., None],
            jnp.where(hit & (state.tokens < 0), token, state.tokens),
            accepted,
            state.total + jnp.where(running, waited + 1, 0),
            _plus(state.calls, running & ~jnp.any(met & is_token, axis=-1)),
            running & (accepted < accepts),
            state.number + 1,
        )

    none, zero = jnp.zeros(log_p.shape, bool), jnp.zeros(rows, log_p.dtype)
    whole = jnp.zeros(rows, jnp.int32)
    start = _Draws(none, none, whole - 1, zero, zero, whole, whole == 0, jnp.int32(0))
    found = jax.lax.while_loop(unfinished, step, start)
    log_weights = jnp.log(accepts - 1) - jnp.log(found.total - 1)
    log_weights = jnp.where(found.tokens >= 0, log_weights, -jnp.inf)
    log_weights = checks.spread_nan(log_weights, log_p[..., 0], accepts)
    return Weighted(found.tokens, log_weights, found.calls)


class _Draws(NamedTuple):
    """What draws with replacement have met so far."""

    rejected: Array
    accepted: Array
    tokens: Array
    count: Array
    total: Array
    calls: Array
    running: Array
    number: Array


def expected_calls(logits: Logits, where: Categories, *, accepts: Scalar = 1) -> PerSequence:
    """The mean number of different tokens that are met until r draws were allowed, exactly.

    `sum over allowed 1 - (1 - p/Z)^r + sum over others 1 - (Z / (p + Z))^r`. It is that of
    `awrs_geometric` for r = 2 and more, and for r = 1 one less than that of `awrs_recursive`, if
    there is a second token. Sampling again until a token is allowed takes `1/Z = exp(KL)`.
    """
    accepts = checks.in_range("accepts", accepts, 1, jnp.inf, "at least 1", closed="low")
    logits, where = _checked(logits, where)
    log_p = numerics.log_softmax(logits)
    accepts = jnp.asarray(accepts, log_p.dtype)
    log_z = _log_share(log_p, where)[..., None]
    log_odds = jnp.where(log_p > -jnp.inf, log_p - log_z, -jnp.inf)
    of_allowed = accepts * jnp.log1p(-jnp.exp(jnp.minimum(log_odds, 0)))
    of_others = -accepts * jax.nn.softplus(log_odds)
    met = -jnp.expm1(jnp.where(where, of_allowed, of_others))
    return checks.spread_nan(jnp.sum(met, axis=-1), log_p[..., 0])


# ------------------------------------------------------------------------------------------- parts


def _checked(logits: Logits, where: Categories) -> tuple[Array, Array]:
    logits, where = checks.as_float("logits", logits), checks.as_mask("where", where)
    try:
        return logits, jnp.broadcast_to(where, logits.shape)
    except ValueError:
        raise ValueError(
            f"where must broadcast to logits {tuple(logits.shape)}, got {tuple(where.shape)}"
        ) from None


def _with_test(logits: Logits, where: Constraint) -> tuple[Array, Callable[[Array], Array]]:
    """The logits, and whether tokens `[...]` are allowed."""
    if callable(where):
        return checks.as_float("logits", logits), where
    logits, mask = _checked(logits, where)
    return logits, lambda x: jnp.take_along_axis(mask, x[..., None], axis=-1)[..., 0]


def _log_share(log_p: Array, where: Array) -> Array:
    """`log sum p` over what counts, from the rest where that is less: no rounded 1 is lost."""
    some = jnp.any(where & (log_p > -jnp.inf), axis=-1, keepdims=True)
    # Of an empty sum the logarithm has no derivative: it is taken of another.
    kept = jax.nn.logsumexp(jnp.where(where | ~some, log_p, -jnp.inf), axis=-1)
    rest = jnp.sum(jnp.where(where, 0, jnp.exp(log_p)), axis=-1)
    small = rest < 0.5
    share = jnp.where(small, jnp.log1p(-jnp.where(small, rest, 0)), kept)
    return checks.spread_nan(jnp.where(some[..., 0], share, -jnp.inf), log_p[..., 0])


def _is(token: Array, log_p: Array) -> Array:
    """`[..., n]` True at the token; nowhere for -1."""
    return jax.nn.one_hot(token, log_p.shape[-1], dtype=bool)


def _plus(count: Array, more: Array) -> Array:
    """One more where this is True."""
    return count + more.astype(count.dtype)


def _or_none(tokens: Array, some: Array) -> Array:
    return jnp.where(some, tokens, -1).astype(jnp.int32)
