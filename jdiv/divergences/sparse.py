"""Divergences from a distribution of which only the k most probable categories are known.

A teacher's server answers with k log-probabilities, not with a vocabulary. Three ways are in use to
compare them with a full distribution, and only the first is a divergence:

`with_tail`     the other categories are one category more: a coarsening. Never negative, 0 for
                equal distributions, and by the data processing inequality never above the full
                divergence, of every row
`renormalized`  both sides are conditioned on the k categories: never negative, but blind to how
                much mass the other side has outside of them, which may grow to all of it
`truncated`     the sum of the k terms alone: may be negative, and lowest where the other side
                puts *more* than the teacher's mass on the k categories

How much mass the k categories have on each side is told by `retained_mass`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.divergences.generator import Generator, checked_row
from jdiv.types import Indices, Logits, LogPolicy, PerSequence, Reduced


class TopK(NamedTuple):
    """The k most probable categories of a distribution, and how much is left for the others.

    Fields:
        log_probs: `[..., k]` log-probabilities of these categories.
        indices: `[..., k]` which categories they are, all different.
        log_rest: `[...]` logarithm of the mass of all others; -inf if they have none.
    """

    log_probs: LogPolicy
    indices: Indices
    log_rest: PerSequence

    @property
    def logits(self) -> Array:
        """`[..., k + 1]` log-probabilities with the others as the last category."""
        return jnp.concatenate([self.log_probs, self.log_rest[..., None]], axis=-1)


def top_k(logits: Logits, k: int) -> TopK:
    """The k most probable categories of each row.

    Shapes: `[..., n]` to `[..., k]`. The mass of the others is their sum, not a difference from 1.

    >>> top = top_k(jnp.log(jnp.array([0.1, 0.6, 0.3])), 2)
    >>> [f"{p:.2f}" for p in jnp.exp(top.log_probs)], f"{jnp.exp(top.log_rest):.2f}"
    (['0.60', '0.30'], '0.10')
    """
    logits = checks.as_float("logits", logits)
    size = logits.shape[-1] if logits.ndim else 0
    k = checks.whole("k", k, 1, size, f"from 1 to {size}, the categories")
    indices = jax.lax.top_k(logits, k)[1]
    log_probs = numerics.log_softmax(coarsened(logits, indices))
    return TopK(log_probs[..., :k], indices, log_probs[..., k])


def from_log_probs(log_probs: LogPolicy, indices: Indices) -> TopK:
    """The k categories and log-probabilities that a server sent; the others have what is missing.

    Shapes: `[..., k]` twice. Where the probabilities sum to 1, or to more by rounding, nothing is
    left for the others.

    >>> top = from_log_probs(jnp.log(jnp.array([0.5, 0.25])), jnp.array([7, 3]))
    >>> print(f"{jnp.exp(top.log_rest):.2f}")
    0.25
    """
    log_probs = checks.as_float("log_probs", log_probs)
    indices = checks.categories("indices", indices)
    if log_probs.ndim == 0 or log_probs.shape != indices.shape:
        shapes = f"log_probs {tuple(log_probs.shape)}, indices {tuple(indices.shape)}"
        raise ValueError(f"log_probs and indices must have the same shape [..., k], got {shapes}")
    total = jnp.sum(jnp.exp(log_probs), axis=-1)
    total = checks.in_range(
        "the sum of exp(log_probs)", total, 0, 1 + checks.NORMALIZED, "at most 1", closed="both"
    )
    left = total < 1
    return TopK(
        checks.spread_nan(log_probs, total[..., None]),
        indices,
        jnp.where(left, jnp.log1p(-jnp.where(left, total, 0)), -jnp.inf) + 0 * total,
    )


def coarsened(logits: Logits, indices: Indices) -> Logits:
    """Unnormalized log-probabilities of some categories, and of all others as one category more.

    Shapes: `[..., n]` and `[..., k]` to `[..., k + 1]`. NaN for indices that are no categories.

    >>> logits = coarsened(jnp.log(jnp.array([1.0, 6.0, 3.0])), jnp.array([1]))
    >>> [f"{weight:.2f}" for weight in jnp.exp(logits)]
    ['6.00', '4.00']
    """
    logits = checks.as_float("logits", logits)
    indices = _of_rows(indices, logits)
    kept = _kept(logits, indices)
    if indices.shape[-1] == logits.shape[-1]:
        return jnp.concatenate([kept, jnp.full_like(kept[..., :1], -jnp.inf)], axis=-1)
    others = jnp.put_along_axis(
        logits, indices, jnp.asarray(-jnp.inf, logits.dtype), axis=-1, inplace=False
    )
    top = jax.lax.stop_gradient(jnp.max(others, axis=-1, keepdims=True))
    some = top != -jnp.inf
    weights = jnp.exp(others - jnp.where(some, top, 0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    rest = jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, -jnp.inf)
    return jnp.concatenate([kept, rest], axis=-1)


def retained_mass(logits: Logits, indices: Indices) -> Reduced:
    """Share of the probability that lies on some categories.

    Shapes: `[..., n]` and `[..., k]` to `[...]`.

    >>> print(f"{retained_mass(jnp.log(jnp.array([1.0, 6.0, 3.0])), jnp.array([1, 2])):.2f}")
    0.90
    """
    log_probs = numerics.log_softmax(coarsened(logits, indices))
    return jnp.sum(jnp.exp(log_probs[..., :-1]), axis=-1)


def with_tail(generator: Generator, p: Logits | TopK, q: Logits | TopK) -> Reduced:
    """The divergence of k categories and the rest as one: a lower bound of the full one.

    Shapes: one side is `TopK`, the other `[..., n]` logits; to `[...]`. Gradients flow to both.

    >>> from jdiv import generators
    >>> p, q = jnp.log(jnp.array([0.6, 0.3, 0.1])), jnp.log(jnp.array([0.3, 0.3, 0.4]))
    >>> print(f"{with_tail(generators.kl(), top_k(p, 1), q):.4f}")  # of (.6, .4) and (.3, .7)
    0.1920

    Reference: Csiszar 1967 for the data processing inequality of f-divergences.
    """
    p, q = (
        side.logits if isinstance(side, TopK) else coarsened(side, indices)
        for side, indices in _sides(p, q)
    )
    return categorical.f_divergence(generator, p, q)


def renormalized(generator: Generator, p: Logits | TopK, q: Logits | TopK) -> Reduced:
    """The divergence of both sides conditioned on the k categories.

    It does not see how much mass they have, so that a student may leave them without any loss. Of a
    side that has none at all on them it is the divergence of disjoint distributions.
    Shapes: one side is `TopK`, the other `[..., n]` logits; to `[...]`.

    >>> from jdiv import generators
    >>> p, q = jnp.log(jnp.array([0.6, 0.3, 0.1])), jnp.log(jnp.array([0.02, 0.01, 0.97]))
    >>> print(f"{renormalized(generators.kl(), top_k(p, 2), q):.4f}")
    0.0000
    """
    p, q = (
        _elsewhere(side.log_probs if isinstance(side, TopK) else _kept(side, indices))
        for side, indices in _sides(p, q)
    )
    return categorical.f_divergence(generator, p, q)


def _elsewhere(logits: Array) -> Array:
    """One category more, which is a zero unless all others are."""
    none = jnp.max(logits, axis=-1, keepdims=True) == -jnp.inf
    return jnp.concatenate(
        [logits, jnp.where(none, jnp.zeros_like(none, logits.dtype), -jnp.inf)], axis=-1
    )


def truncated(generator: Generator, p: Logits | TopK, q: Logits | TopK) -> Reduced:
    """The sum of the terms of the k categories, f as customary: `sum p log(p/q)` for KL.

    Not a divergence: negative where q has more than p's mass on them, and its minimum is no equal
    pair. Shapes: one side is `TopK`, the other `[..., n]` logits; to `[...]`.

    >>> from jdiv import generators
    >>> p, q = jnp.log(jnp.array([0.6, 0.3, 0.1])), jnp.log(jnp.array([0.7, 0.3, 0.0]))
    >>> print(f"{truncated(generators.kl(), top_k(p, 2), q):.4f}")
    -0.0925
    """
    log_p, log_q = (
        side.log_probs
        if isinstance(side, TopK)
        else _kept(numerics.log_softmax(checks.as_float("logits", side)), indices)
        for side, indices in _sides(p, q)
    )
    log_p, log_q = checks.alike(p=log_p, q=log_q)
    generator = checked_row(generator).per_row(log_p)
    log_ratio = numerics.sampled_log_ratio(log_p, log_q)
    terms = categorical.terms(generator, log_p, log_q, log_ratio)
    slope = jnp.asarray(generator.slope_at_one, log_p.dtype)
    return jnp.sum(terms + slope * (jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)


def _sides(p: Logits | TopK, q: Logits | TopK):
    """Both sides with the categories that are known of one of them."""
    if isinstance(p, TopK) == isinstance(q, TopK):
        raise TypeError("one of p and q must be TopK and the other logits of all categories")
    indices = p.indices if isinstance(p, TopK) else q.indices
    return (p, indices), (q, indices)


def _kept(logits: Logits, indices: Indices) -> Array:
    """The logits at these categories; NaN at indices that are none."""
    logits = checks.as_float("logits", logits)
    indices = _of_rows(indices, logits)
    return jnp.take_along_axis(logits, indices, axis=-1, mode="fill")


def _of_rows(indices: Indices, logits: Array) -> Array:
    """Refuses indices that are no categories of these rows."""
    indices = checks.categories("indices", indices, logits.shape[-1])
    if indices.shape[:-1] != logits.shape[:-1]:
        shapes = f"logits {tuple(logits.shape)}, indices {tuple(indices.shape)}"
        raise ValueError(f"indices must have a row for each row of logits, got {shapes}")
    return indices
