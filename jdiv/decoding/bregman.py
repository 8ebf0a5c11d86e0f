"""Sparse decoders: the law on few tokens that is nearest to the model's in a Bregman divergence.

Let x be the model's law of the next token and `phi(x) = x^a / (a (a - 1))`, x log x at a = 1. A
decoder minimizes over all p a divergence plus a price for each token that p keeps:

* primal: `D_phi(p, x) + price |p|_0`; KL(p‖x) at a = 1, half the squared distance at a = 2;
* dual: `D_phi(x, p) + price |p|_0`, finite for a > 1 only, for p drops mass.

The optimum keeps the k most probable tokens, and the divergence is discretely convex in k, so the
best k is found by a binary search. What is left is how the lost mass is shared among those kept,
one number to be found. The samplers in use are members:

* temperature T (`lm.sampling.law`): the least `KL(p‖x) + (1 - T) H(p)`, which keeps every token;
* top-k: the primal at a = 1, KL, with k given in place of its price;
* top-p: the fewest tokens whose best law has `KL(p‖x) <= -log top_p`;
* min-p, eta: total variation in place of D, with price `min_p max x`, `min(e, sqrt(e) e^-H)`.
  Every p >= x on the kept tokens is as good there; that of the least KL is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, divergences, numerics, roots
from jdiv.types import Indices, Logits, LogPolicy, PerRow


def primal(logits: Logits, *, k: ArrayLike, alpha: PerRow = 1.0) -> LogPolicy:
    """The law on k tokens with the least `D_phi(p, x)`: `p^(a-1) = x^(a-1) + nu` on the k largest.

    At alpha = 1 it is x renormalized, ordinary top-k; at 2 each gets the same mass more; in the
    limit of large alpha the small ones are filled up to one level, `max(x, level)`; below 1 the
    large ones gain more than in proportion. Of equal tokens the first are kept; k above the number
    of tokens keeps them all. Differentiable in logits and alpha.
    Shapes: `[..., vocabulary]` to the same; k, an integer of at least 1, and alpha > 0 are numbers
    or `[...]`. Values that are traced and not allowed give NaN.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.06, 0.04]))
    >>> for alpha in (1.0, 1.5, 2.0):
    ...     print([f"{p:.5f}" for p in jnp.exp(primal(logits, k=3, alpha=alpha))[:3]])
    ['0.55556', '0.33333', '0.11111']
    ['0.54467', '0.33482', '0.12051']
    ['0.53333', '0.33333', '0.13333']

    Reference: Noarov et al. 2025 (arXiv:2505.19371).
    Reconstructed: the formula, derived from the definition of primal decoders.
    """
    log_x = _log_law(logits)
    alpha = checks.positive("alpha", alpha, rows=log_x)
    ranks = _ranks(log_x)
    return _decoded(log_x, ranks, _tokens(k, ranks), alpha - 1, _primal_gain)


def dual(logits: Logits, *, k: ArrayLike, alpha: PerRow = 2.0) -> LogPolicy:
    """The law on k tokens with the least `D_phi(x, p)`: `p^(a-2) (p - x) = nu` on the k largest.

    At alpha = 2 it is the primal. Shapes and ties as there, but alpha > 1: below, a law that drops
    a token is infinitely far away.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.06, 0.04]))
    >>> print([f"{p:.5f}" for p in jnp.exp(dual(logits, k=3, alpha=1.5))[:3]])
    ['0.54434', '0.33477', '0.12089']

    Reference: Noarov et al. 2025 (arXiv:2505.19371).
    Reconstructed: the formula, derived from the definition of dual decoders.
    """
    log_x = _log_law(logits)
    alpha = _above_one(alpha, log_x)
    ranks = _ranks(log_x)
    return _decoded(log_x, ranks, _tokens(k, ranks), alpha - 1, _dual_gain)


def best_primal_k(logits: Logits, *, price: PerRow, alpha: PerRow = 1.0) -> Indices:
    """The k that minimizes `D_phi(p_k, x) + price k` for the primal decoder, by binary search.

    It is the first k at which one token more saves no more than the price: for KL
    `log(1 + x_(k+1) / (x_1 + ... + x_k)) <= price`. Shapes: `[..., n]` to `[...]`; about log2 n
    evaluations. The price is not negative, alpha positive; each a number or `[...]`. Traced values
    that are not allowed, and rows that are NaN, give 0.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.06, 0.04]))
    >>> [best_primal_k(logits, price=price).item() for price in (0.01, 0.05, 0.1, 0.3, 0.6)]
    [5, 4, 3, 2, 1]

    Reference: Noarov et al. 2025 (arXiv:2505.19371).
    """
    log_x = _log_law(logits)
    price = checks.not_negative("price", price, rows=log_x)
    if isinstance(alpha, int | float) and alpha == 1:
        return _first(_kl_saving(log_x), log_x, price)
    alpha = checks.positive("alpha", alpha, rows=log_x)
    return _first(_saving(log_x, alpha, _primal_gain), log_x, price)


def best_dual_k(logits: Logits, *, price: PerRow, alpha: PerRow = 2.0) -> Indices:
    """The k that minimizes `D_phi(x, p_k) + price k` for the dual decoder, by binary search.

    Shapes as of `best_primal_k`; alpha above 1.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.06, 0.04]))
    >>> best_dual_k(logits, price=0.005).item()
    3

    Reference: Noarov et al. 2025 (arXiv:2505.19371).
    """
    log_x = _log_law(logits)
    price = checks.not_negative("price", price, rows=log_x)
    return _first(_saving(log_x, _above_one(alpha, log_x), _dual_gain), log_x, price)


def eta(logits: Logits, *, epsilon: PerRow) -> LogPolicy:
    """Tokens of probability at least `min(epsilon, sqrt(epsilon) e^-H)`, renormalized.

    H is the entropy of the model's law. The most probable token stays, with its equals. Shapes:
    `[..., vocabulary]` to the same; epsilon, from 0 to 1, a number or `[...]`.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    >>> print([f"{p:.3f}" for p in jnp.exp(eta(logits, epsilon=0.1))])
    ['0.526', '0.316', '0.158', '0.000']

    Reference: Hewitt, Manning and Liang 2022 (arXiv:2210.15191).
    """
    log_x = _log_law(logits)
    epsilon = checks.share("epsilon", epsilon, rows=log_x)
    possible = log_x != -jnp.inf
    log_epsilon = jnp.log(jnp.asarray(epsilon, log_x.dtype))
    by_token = jnp.exp(log_x) * jnp.where(possible, log_x, 0)
    least = jnp.minimum(log_epsilon, log_epsilon / 2 + jnp.sum(by_token, axis=-1, keepdims=True))
    least = jnp.minimum(least, jnp.max(log_x, axis=-1, keepdims=True))
    return numerics.log_softmax(jnp.where(log_x >= least, log_x, -jnp.inf))


# ---------------------------------------------------------------------------- input, as it is used


def _log_law(logits: Logits) -> Array:
    """Log-probabilities of logits with a token in every row; a traced row without one is NaN."""
    logits = checks.some_category("logits", checks.as_float("logits", logits))
    return numerics.log_softmax(logits)


def _ranks(log_x: Array) -> Array:
    """The place of each token in the order of falling probability, from 0; equals as they stand."""
    return jnp.argsort(jnp.argsort(-log_x, axis=-1), axis=-1).astype(jnp.int32)


def _tokens(k: ArrayLike, ranks: Array) -> Array:
    """How many tokens to keep; too few are refused, and traced they keep nothing, which is NaN."""
    k = checks.as_integers("k", k)
    if not isinstance(k, jax.core.Tracer) and (k < 1).any():
        raise ValueError(f"k must be at least 1, got {k.min()}")
    return checks.per_row("k", k, ranks)


def _above_one(alpha: PerRow, log_x: Array) -> ArrayLike:
    return checks.in_range("alpha", alpha, 1, jnp.inf, "above 1 and finite", rows=log_x)


# ------------------------------------------------------------------- how the lost mass is shared

Gain = Callable[[Array, Array, Array], Array]
"""Log p/x of a token from that of the anchor, its log x above the anchor's, and a - 1."""


def _decoded(log_x: Array, ranks: Array, k: Array, exponent: Array, gain: Gain) -> Array:
    """The law on the tokens of the first k ranks whose gains add up to what was lost.

    The unknown is the largest gain, which is that of the smallest token kept, for a < 1 of the
    largest. It is at least the gain in proportion, and no token gets more than it can have.
    """
    kept = (ranks < k) & (log_x != -jnp.inf)
    part = jnp.where(kept, log_x, -jnp.inf)
    mass = jax.nn.logsumexp(part, axis=-1)
    least, most = jnp.min(jnp.where(kept, log_x, jnp.inf), axis=-1), jnp.max(part, axis=-1)
    count = jnp.sum(kept, axis=-1).astype(log_x.dtype)
    below_one = jnp.broadcast_to(exponent < 0, (*log_x.shape[:-1], 1))[..., 0]
    anchor = jnp.where(below_one, most, least)
    low, high = -mass, jnp.where(below_one, -most, -jnp.log(count) - least)
    above = jnp.where(kept, log_x - anchor[..., None], 0)
    full = low <= 0  # nothing is lost

    def gains(x):
        return gain(jnp.where(full, 1, x)[..., None], above, exponent)

    def excess(x):
        total = jax.nn.logsumexp(jnp.where(kept, log_x + gains(x), -jnp.inf), axis=-1)
        return jnp.where(full, x, total)

    low, high = jax.lax.stop_gradient((jnp.where(full, 0, low), jnp.where(full, 0, high)))
    found = roots.implicit(excess, low, low, jnp.maximum(low, high)).x
    gained = jnp.where(full[..., None], 0, gains(found))
    return numerics.log_softmax(jnp.where(kept, log_x + gained, -jnp.inf))


def _primal_gain(largest: Array, above: Array, exponent: Array) -> Array:
    """`log(1 + expm1(c largest) e^(-c above)) / c`, with its limit `largest` at c = a - 1 = 0."""
    far = exponent * largest > 1  # where expm1 may overflow
    scaled = jnp.where(far, exponent * largest, 1)
    of_far = jax.nn.softplus(numerics.log_expm1(scaled) - jnp.where(far, exponent, 1) * above)
    of_far = of_far / jnp.where(far, exponent, 1)
    own = jnp.where(far, 0, exponent)
    by_slope = numerics.scaled_expm1(jnp.where(far, 0, largest), own) * jnp.exp(-own * above)
    return jnp.where(far, of_far, numerics.scaled_log1p(by_slope, own))


@jax.custom_jvp
def _dual_gain(largest: Array, above: Array, exponent: Array) -> Array:
    """The g with `F(g) = F(largest) - c above`, where `F(g) = c g + log(1 - e^-g)`, c = a - 1.

    F is concave and rises. With g in place of 1 - e^-g its root is smaller, by Lambert's W: a start
    from which Newton's method is monotone.
    """
    y = exponent * (largest - above) + jnp.log(-jnp.expm1(-largest))
    start = jnp.exp(numerics.log_wright_omega(y + jnp.log(exponent))) / exponent
    positive = ~(start <= jnp.finfo(start.dtype).tiny)  # NaN stays NaN

    def newton(_, g):
        value = exponent * g + jnp.log(-jnp.expm1(-g)) - y
        return g - value / _dual_slope(g, exponent)

    g = jax.lax.fori_loop(0, 8, newton, jnp.where(positive, start, 1))
    return jnp.where(positive, g, 0)


def _dual_slope(g: Array, exponent: Array) -> Array:
    """F'."""
    return exponent + 1 / jnp.expm1(g)


@_dual_gain.defjvp
def _dual_gain_jvp(primals, tangents):
    (largest, above, exponent), (dlargest, dabove, dexponent) = primals, tangents
    g = _dual_gain(*primals)
    change = _dual_slope(largest, exponent) * dlargest - exponent * dabove
    change = change + (largest - above - g) * dexponent
    return g, jnp.where(g > 0, change / _dual_slope(jnp.where(g > 0, g, 1), exponent), 0)


# ------------------------------------------------------------------------------- how many to keep

Saving = Callable[[Array], Array]
"""By how much the divergence falls from k tokens to k + 1."""


def _first(saving: Saving, log_x: Array, price: ArrayLike) -> Array:
    """The first k that saves no more than the price by one token more; savings fall with k."""
    price = jnp.broadcast_to(jnp.asarray(price, log_x.dtype), (*log_x.shape[:-1], 1))[..., 0]
    valid = ~jnp.isnan(price) & ~jnp.any(jnp.isnan(log_x), axis=-1)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) // 2
        enough = saving(middle) <= price
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    high = jnp.sum(log_x != -jnp.inf, axis=-1).astype(jnp.int32)
    steps = (log_x.shape[-1] - 1).bit_length()
    _, k = jax.lax.fori_loop(0, steps, halve, (jnp.ones_like(high), high))
    return jnp.where(valid, k, 0)


def _kl_saving(log_x: Array) -> Saving:
    """`log(1 + x_(k+1) / Q_k)`, Q_k the mass of the k most probable tokens."""
    ordered = jnp.exp(-jnp.sort(-log_x, axis=-1))
    mass = jnp.cumsum(ordered, axis=-1)
    following = jnp.concatenate([ordered[..., 1:], jnp.zeros_like(ordered[..., :1])], axis=-1)

    def saving(k):
        at = lambda x: jnp.take_along_axis(x, k[..., None] - 1, axis=-1)[..., 0]
        return jnp.log1p(at(following) / at(mass))

    return saving


def _saving(log_x: Array, alpha: ArrayLike, gain: Gain) -> Saving:
    """The difference of two divergences, of the laws on k and on k + 1 tokens."""
    ranks = _ranks(log_x)
    per_row = jnp.broadcast_to(jnp.asarray(alpha, log_x.dtype), (*log_x.shape[:-1], 1))

    def divergence(k):
        log_p = _decoded(log_x, ranks, k[..., None], per_row - 1, gain)
        sides = (log_p, log_x) if gain is _primal_gain else (log_x, log_p)
        return divergences.bregman(*sides, alpha=per_row[..., 0])

    def saving(k):
        here, following = jax.vmap(divergence)(jnp.stack([k, k + 1]))
        return here - following

    return saving
