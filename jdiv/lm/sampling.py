"""Sampling from a transformer with a cache: one compiled program for a batch of prompts.

Each sequence has a key of its own, so that its sample does not depend on the others of its batch.
Two log-probabilities come with each token: of the law it was sampled from, and of the model itself,
which is another one as soon as a temperature or a filter bends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.lm.model import Cache, Transformer, empty_cache
from jdiv.lm.rules import Rule, as_rule
from jdiv.types import Indices, Logits, LogPolicy, LogProbs, Mask, RandomKey, Scalar


class Samples(NamedTuple):
    """What was sampled after each prompt.

    Fields:
        tokens: `[batch, max_tokens]`; 0 behind the end.
        mask: `[batch, max_tokens]` True for what was sampled, the stop token included.
        log_probs: `[batch, max_tokens]` of the law they were sampled from; 0 behind the end.
        model_log_probs: `[batch, max_tokens]` of the model at temperature 1 without rule or filter.
    """

    tokens: Indices
    mask: Mask
    log_probs: LogProbs
    model_log_probs: LogProbs


def law(
    logits: Logits,
    *,
    temperature: Scalar = 1.0,
    top_k: int | None = None,
    top_p: Scalar | None = None,
    min_p: Scalar | None = None,
) -> LogPolicy:
    """Log-probabilities of the next token: tempered, then filtered in this order.

    `top_k` keeps the k most probable tokens, `top_p` the fewest whose mass reaches p, `min_p` those
    with at least p times the largest probability; ties with the last one stay. Temperature 0 is all
    mass on the most probable token. Shapes: `[..., vocabulary]` to the same.

    >>> p = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    >>> for options in ({"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.2}, {"temperature": 0.0}):
    ...     print([f"{x:.3f}" for x in jnp.exp(law(p, **options))])
    ['0.625', '0.375', '0.000', '0.000']
    ['0.526', '0.316', '0.158', '0.000']
    ['0.526', '0.316', '0.158', '0.000']
    ['1.000', '0.000', '0.000', '0.000']
    """
    logits = checks.as_float("logits", logits)
    temperature = checks.not_negative("temperature", temperature)
    temperature = jnp.asarray(temperature, logits.dtype)
    first = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    greedy = jnp.where(first, 0.0, -jnp.inf).astype(logits.dtype)
    cold = temperature == 0
    log_p = jnp.where(cold, greedy, logits / jnp.where(cold, 1, temperature))
    keep = lambda log_p, least: jnp.where(log_p >= least, log_p, -jnp.inf)
    if top_k is not None:
        checks.whole("top_k", top_k, 1, 2**31 - 1, "at least 1")
        kept = jax.lax.top_k(log_p, min(top_k, log_p.shape[-1]))[0]
        log_p = keep(log_p, kept[..., -1:])
    if top_p is not None:
        share = jnp.asarray(checks.share("top_p", top_p), logits.dtype)
        ordered = -jnp.sort(-numerics.log_softmax(log_p), axis=-1)
        before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
        needed = (before < share) & (ordered != -jnp.inf)
        needed = needed.at[..., 0].set(True)
        least = jnp.min(jnp.where(needed, ordered, jnp.inf), axis=-1, keepdims=True)
        log_p = keep(numerics.log_softmax(log_p), least)
    if min_p is not None:
        share = jnp.asarray(checks.share("min_p", min_p), logits.dtype)
        log_p = keep(log_p, jnp.max(log_p, axis=-1, keepdims=True) + jnp.log(share))
    return numerics.log_softmax(log_p)


def generate(
    model: Transformer,
    tokens: Indices,
    key: RandomKey,
    *,
    max_tokens: int,
    mask: Mask | None = None,
    stop: tuple[int, ...] = (),
    rule: Rule | Callable[[Array], Array] | None = None,
    temperature: Scalar = 1.0,
    top_k: int | None = None,
    top_p: Scalar | None = None,
    min_p: Scalar | None = None,
) -> Samples:
    """Samples of up to `max_tokens` tokens after each prompt, to the first of the `stop` tokens.

    A rule changes the logits first, and temperature and filters what it left: a function of logits,
    such as `functools.partial(decoding.bregman.eta, epsilon=0.001)`, or one with a state, such as
    `decoding.automata.rule`. Shapes: tokens `[batch, prompt]`; the mask is True for the tokens of a
    prompt, on whichever side the others fill it up. The key is one, from which each row gets its
    own by its index, or one for each row. Made for jit, with `max_tokens`, `stop` and `top_k`
    static and the rule of the function that is compiled.
    """
    max_tokens = checks.whole("max_tokens", max_tokens, 1, 2**31 - 1, "at least 1")
    tokens, mask, keys = _prompts(tokens, mask, key)
    rule = as_rule(rule)
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    hidden, lengths, cache = _read(model, tokens, mask, max_tokens)

    def unfinished(carry):
        _, _, _, running, _, count = carry
        return jnp.any(running) & (count < max_tokens)

    def step(carry):
        hidden, cache, state, running, samples, count = carry
        logits = model.logits(hidden[:, 0])
        bent, own = law(rule.logits(logits, state), **options), numerics.log_softmax(logits)
        each = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
        token = jax.vmap(jax.random.categorical)(each, bent).astype(samples.tokens.dtype)
        at = lambda log_p: jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0]
        new = Samples(token, running, at(bent), at(own))
        put = lambda whole, x: whole.at[:, count].set(jnp.where(running, x, jnp.zeros_like(x)))
        samples = jax.tree.map(put, samples, new)
        ended = jnp.isin(token, jnp.asarray(stop, token.dtype)) if stop else jnp.zeros_like(running)
        position = (lengths + count)[:, None]
        hidden, cache = model(token[:, None], position, jnp.zeros_like(position), cache)
        state = rule.read(state, token)
        return hidden, cache, state, running & ~ended, samples, count + 1

    batch = len(tokens)
    nothing = jnp.zeros((batch, max_tokens), checks.wide(model.head.dtype))
    samples = Samples(nothing.astype(jnp.int32), nothing > 0, nothing, nothing)
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *jnp.shape(x))), rule.start)
    start = hidden, cache, state, jnp.ones(batch, bool), samples, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unfinished, step, start)[4]


def _prompts(tokens: Indices, mask: Mask | None, key: RandomKey) -> tuple[Array, Array, RandomKey]:
    """Prompts, which of their tokens count, and a key for each."""
    tokens = checks.as_integers("tokens", tokens)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens must be [batch, prompt], got {tuple(tokens.shape)}")
    mask = jnp.ones(tokens.shape, bool) if mask is None else checks.as_mask("mask", mask)
    checks.same_shape(tokens=tokens, mask=mask)
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(tokens)))
    return tokens, mask, key


def _read(model: Transformer, tokens: Array, mask: Array, room: int) -> tuple[Array, Array, Cache]:
    """The last hidden state of each prompt, its length, and a cache with room for more tokens.

    The rest of a prompt's row is a segment of its own, which nobody else looks at.
    """
    batch, length = tokens.shape
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    cache = empty_cache(model.config, batch, length + room, model.head.dtype)
    hidden, cache = model(tokens, positions, jnp.where(mask, 0, 1), cache)
    last = jnp.argmax(jnp.where(mask, jnp.arange(length)[None], -1), axis=1)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    return hidden, jnp.sum(mask, axis=1, dtype=jnp.int32), cache
