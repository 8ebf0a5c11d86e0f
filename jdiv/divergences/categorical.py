"""Exact divergences between categorical distributions given by logits.

`D(p, q)` means D(p‖q). Inputs are unnormalised log-probabilities of any leading batch shape with
the categories on `axis`; `-inf` is an exact zero and `where` leaves categories out. Half precision
is widened to float32 and the result is float32; float64 stays float64.

Values are never negative, exactly 0 for identical logits, relatively accurate however close p and
q are, and `inf` exactly where the divergence is infinite. The gradient is right wherever the value
is finite, zeros included. A row that `where` empties gives 0; a row of `-inf` alone gives NaN.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import generators
from jdiv.divergences.generators import Generator

# ----------------------------------------------------------------- the f-divergences of the table


def _weigh(log_mass: Array, cost: ArrayLike) -> Array:
    """`mass * cost` for a positive mass that may have underflowed, and a cost that may be inf."""
    cost = jnp.asarray(cost, log_mass.dtype)
    finite = jnp.isfinite(cost)
    return jnp.where(finite, jnp.exp(log_mass) * jnp.where(finite, cost, 0), cost)


def _values(generator: Generator, log_p: Array, log_q: Array, t: Array) -> Array:
    """`q f(p/q)` of each category: at a zero of p it is q f(0), at a zero of q p f'(inf)."""
    p_zero, q_zero = log_p == -jnp.inf, log_q == -jnp.inf
    inside = ~p_zero & ~q_zero
    value = generator.perspective(*(jnp.where(inside, x, 0) for x in (log_p, log_q, t)))
    value = jnp.where(p_zero, _weigh(log_q, generator.at_zero), value)
    value = jnp.where(q_zero, _weigh(log_p, generator.slope_at_infinity), value)
    return jnp.where(p_zero & q_zero, 0, value)


terms = jax.custom_jvp(_values)


def _terms_jvp(primals, tangents):
    """By log p: p f'(p/q). By log q: q f(p/q) - p f'(p/q). `t` is log p - log q, no third input."""
    generator, log_p, log_q, t = primals
    dgenerator, dlog_p, dlog_q, _ = tangents
    p_zero, q_zero = log_p == -jnp.inf, log_q == -jnp.inf
    inside = ~p_zero & ~q_zero
    safe = [jnp.where(inside, x, 0) for x in (log_p, log_q, t)]
    dvalue = jnp.zeros_like(t)
    if not isinstance(dlog_p, SymbolicZero):
        by_log_p = generator.perspective_p(*safe)
        by_log_p = jnp.where(q_zero, _weigh(log_p, generator.slope_at_infinity), by_log_p)
        dvalue += jnp.where(p_zero, 0, by_log_p) * jnp.where(p_zero, 0, dlog_p)
    if not isinstance(dlog_q, SymbolicZero):
        by_log_q = generator.perspective_q(*safe)
        by_log_q = jnp.where(p_zero, _weigh(log_q, generator.at_zero), by_log_q)
        dvalue += jnp.where(q_zero, 0, by_log_q) * jnp.where(q_zero, 0, dlog_q)
    if not all(isinstance(x, SymbolicZero) for x in jax.tree.leaves(dgenerator)):
        dgenerator = jax.tree.map(
            lambda x, dx: jnp.zeros_like(x) if isinstance(dx, SymbolicZero) else dx,
            generator,
            dgenerator,
        )
        of_parameters = lambda g: _values(g, log_p, log_q, t)
        dvalue += jax.jvp(of_parameters, (generator,), (dgenerator,))[1]
    return terms(generator, log_p, log_q, t), dvalue


terms.defjvp(_terms_jvp, symbolic_zeros=True)


def f_divergence(
    generator: Generator,
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """`sum_i q_i f(p_i / q_i)` for any row of the table.

    Shapes: `[..., n, ...]` twice, categories on `axis`, to the shape without it. A zero of p costs
    q f(0), a zero of q costs p f'(inf).

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{f_divergence(generators.get('alpha', alpha=1.0), p, q):.4f}")
    0.5108

    Reference: Csiszar 1967; Cichocki and Amari 2010 for the table.
    """
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    generator = jax.tree.map(lambda x: jnp.asarray(x, p_logits.dtype), generator)
    log_p, log_q, t = numerics.log_ratio(p_logits, q_logits)
    return jnp.sum(terms(generator, log_p, log_q, t), axis=-1)


def kl(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Kullback-Leibler, `sum p log(p/q)`.

    With p a policy and q its reference this is the field's reverse KL: mode seeking, infinite
    where p has mass on a zero of q.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{kl(p, q):.4f}")
    0.5108

    Reference: Kullback and Leibler 1951.
    """
    return f_divergence(generators.kl(), p_logits, q_logits, axis=axis, where=where)


def reverse_kl(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Reverse Kullback-Leibler, `KL(q‖p) = sum q log(q/p)`.

    With p a policy and q its reference this is the field's forward KL: mass covering, infinite
    where p misses mass of q.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{reverse_kl(p, q):.4f}")
    0.3681

    Reference: Kullback and Leibler 1951.
    """
    return f_divergence(generators.reverse_kl(), p_logits, q_logits, axis=axis, where=where)


def jeffreys(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Jeffreys, `KL(p‖q) + KL(q‖p) = sum (p - q) log(p/q)`.

    Symmetric; infinite unless the zeros agree. Not to be confused with Jensen-Shannon.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{jeffreys(p, q):.4f}")
    0.8789

    Reference: Jeffreys 1946.
    """
    return f_divergence(generators.jeffreys(), p_logits, q_logits, axis=axis, where=where)


def jensen_shannon(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    weight: ArrayLike = 0.5,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Jensen-Shannon, `w KL(p‖m) + (1-w) KL(q‖m)` with `m = w p + (1-w) q`, 0 < w < 1.

    Symmetric at w = 1/2; finite always. Divided by w it tends to KL(p‖q) as w -> 0; the weight
    itself has to lie inside (0, 1), where the divergence does not vanish.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to the entropy of (w, 1-w),
    which disjoint supports reach.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{jensen_shannon(p, q):.4f}")
    0.1017

    Reference: Lin 1991.
    """
    return f_divergence(
        generators.jensen_shannon(weight), p_logits, q_logits, axis=axis, where=where
    )


def skew_kl(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    skew: ArrayLike = 0.1,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Skew Kullback-Leibler, `KL(p‖(1-s) p + s q)`, 0 < s < 1.

    Finite always; tends to KL(p‖q) as s -> 1.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to -log(1 - s), reached for disjoint supports.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{skew_kl(p, q, skew=0.5):.4f}")
    0.0872

    Reference: Lee 1999.
    """
    return f_divergence(generators.skew_kl(skew), p_logits, q_logits, axis=axis, where=where)


def total_variation(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Total variation, `sum |p - q| / 2`.

    Symmetric. Its gradient is piecewise constant and takes 0 where p = q.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to 1.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{total_variation(p, q):.4f}")
    0.4000

    Reference: Csiszar 1967.
    """
    return f_divergence(generators.total_variation(), p_logits, q_logits, axis=axis, where=where)


def squared_hellinger(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Squared Hellinger, `1 - sum sqrt(p q) = sum (sqrt p - sqrt q)^2 / 2`.

    Symmetric; finite always.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to 1.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{squared_hellinger(p, q):.4f}")
    0.1056

    Reference: Hellinger 1909.
    """
    return f_divergence(generators.squared_hellinger(), p_logits, q_logits, axis=axis, where=where)


def pearson_chi2(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Pearson's chi2, `sum (p - q)^2 / q`, also written chi2(p‖q).

    Infinite where p has mass on a zero of q.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{pearson_chi2(p, q):.4f}")
    1.7778

    Reference: Pearson 1900.
    """
    return f_divergence(generators.pearson_chi2(), p_logits, q_logits, axis=axis, where=where)


def neyman_chi2(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Neyman's chi2, `sum (p - q)^2 / p`, which is chi2(q‖p).

    Infinite where p misses mass of q.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{neyman_chi2(p, q):.4f}")
    0.6400

    Reference: Neyman 1949.
    """
    return f_divergence(generators.neyman_chi2(), p_logits, q_logits, axis=axis, where=where)


def le_cam(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Le Cam or triangular discrimination, `sum (p - q)^2 / (2 (p + q))`.

    Symmetric; finite always.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to 1.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{le_cam(p, q):.4f}")
    0.1905

    Reference: Le Cam 1986.
    """
    return f_divergence(generators.le_cam(), p_logits, q_logits, axis=axis, where=where)


def alpha(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    alpha: ArrayLike = 0.5,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Cressie-Read alpha divergence, `(sum p^a q^(1-a) - 1) / (a (a - 1))`, any real a.

    Tends to KL(p‖q) at a = 1 and KL(q‖p) at a = 0; both values are allowed. Infinite on a zero of
    q for a >= 1, on a zero of p for a <= 0.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf, or to 1/(a (1 - a)) for 0 < a < 1.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{alpha(p, q, alpha=2.0):.4f}")
    0.8889

    Reference: Cressie and Read 1984.
    """
    return f_divergence(generators.alpha(alpha), p_logits, q_logits, axis=axis, where=where)


def tsallis(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    q_index: ArrayLike = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Tsallis relative entropy, `(sum p^q q^(1-q) - 1) / (q - 1)` with index q > 0.

    KL(p‖q) at index 1, Pearson's chi2 at 2. Infinite on a zero of q for an index of 1 or more.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf, or to 1/(1 - index) below 1.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{tsallis(p, q, q_index=2.0):.4f}")
    1.7778

    Reference: Tsallis 1998.
    """
    return f_divergence(generators.tsallis(q_index), p_logits, q_logits, axis=axis, where=where)


# ------------------------------------------------------------------------ beyond the f-divergences


def renyi(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    alpha: ArrayLike = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Renyi, `log(sum p^a q^(1-a)) / (a - 1)` with order a > 0.

    Equals KL(p‖q) at a = 1. Infinite for disjoint supports, and for a >= 1 on a zero of q. Where
    the sum is near 1 it is `log1p(a (a - 1) D) / (a - 1)` of the alpha divergence D, which does
    not cancel; elsewhere it is taken in log space, which does not overflow.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{renyi(p, q, alpha=2.0):.4f}")
    1.0217

    Reference: van Erven and Harremoes 2014, equation 1.
    """
    checks.positive("alpha", alpha)
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    alpha = jnp.asarray(alpha, p_logits.dtype)
    log_sum = _log_power_sum(alpha, p_logits, q_logits)
    near = jnp.abs(log_sum) < 0.5
    # Where the sum is far from 1 the pair is replaced by (q, q): no overflow, no NaN gradient.
    near_p = jnp.where(near[..., None], p_logits, q_logits)
    power = f_divergence(generators.alpha(alpha), near_p, q_logits)
    by_alpha = numerics.scaled_log1p(alpha * power, alpha - 1)
    return jnp.where(near, by_alpha, log_sum / jnp.where(near, 1, alpha - 1))


def _log_power_sum(alpha: Array, p_logits: Array, q_logits: Array) -> Array:
    """`log sum p^a q^(1-a)`; inf where a >= 1 and q is zero under p, also at a = 1."""
    log_p, log_q = numerics.log_softmax(p_logits), numerics.log_softmax(q_logits)
    p_zero, q_zero = log_p == -jnp.inf, log_q == -jnp.inf
    inside = ~p_zero & ~q_zero
    log_p, log_q = (jnp.where(inside, x, 0) for x in (log_p, log_q))
    exponent = jnp.where(inside, alpha * log_p + (1 - alpha) * log_q, -jnp.inf)
    infinite = jnp.any(q_zero & ~p_zero, axis=-1) & (alpha >= 1)
    empty = ~jnp.any(inside, axis=-1)
    log_sum = jax.nn.logsumexp(jnp.where(empty[..., None], 0, exponent), axis=-1)
    return jnp.where(infinite, jnp.inf, jnp.where(empty, -jnp.inf, log_sum))


def bhattacharyya(
    p_logits: ArrayLike, q_logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None
) -> Array:
    """Bhattacharyya distance, `-log sum sqrt(p q)`: half the Renyi divergence of order 1/2.

    Symmetric; infinite for disjoint supports only.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{bhattacharyya(p, q):.4f}")
    0.1116

    Reference: Bhattacharyya 1943.
    """
    return renyi(p_logits, q_logits, alpha=0.5, axis=axis, where=where) / 2


def cauchy_schwarz(
    p_logits: ArrayLike, q_logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None
) -> Array:
    """Cauchy-Schwarz divergence, `-log((sum p q)^2 / (sum p^2 sum q^2))`.

    With p2 and q2 proportional to p^2 and q^2 the ratio is `(sum sqrt(p2 q2))^2`, so this is the
    Renyi divergence of order 1/2 between those. Symmetric; infinite for disjoint supports only.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{cauchy_schwarz(p, q):.4f}")
    0.4947

    Reference: Jenssen, Principe, Erdogmus and Eltoft 2006.
    """
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    return renyi(2 * p_logits, 2 * q_logits, alpha=0.5)


def bregman(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    alpha: ArrayLike = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Bregman divergence of the potential `x^a / (a (a - 1))`, for any real a.

    `sum phi(p) - phi(q) - phi'(q) (p - q)`, which is `sum q^a f_a(p/q)` with f_a of Cressie-Read:
    half the squared Euclidean distance at a = 2, KL(p‖q) at a = 1, Itakura-Saito at a = 0.
    Zeros: those of p cost q^a f_a(0); those of q alone cost p^a / (a (a - 1)) for a > 1, else inf.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{bregman(p, q, alpha=2.0):.4f}")
    0.1600

    Reference: Bregman 1967; Noarov et al. 2025 (arXiv:2505.19371) for its use in decoding.
    """
    generator = generators.alpha(alpha)
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    generator = jax.tree.map(lambda x: jnp.asarray(x, p_logits.dtype), generator)
    a = generator.exponent
    log_p, log_q, t = numerics.log_ratio(p_logits, q_logits)
    p_zero, q_zero = log_p == -jnp.inf, log_q == -jnp.inf
    safe_p, safe_q = (jnp.where(p_zero | q_zero, 0, x) for x in (log_p, log_q))
    shift = (a - 1) * safe_q
    inside = generator.perspective(safe_p + shift, safe_q + shift, t)
    above = a > 1
    at_q_zero = jnp.where(above, jnp.exp(a * log_p) / jnp.where(above, a * (a - 1), 1), jnp.inf)
    value = jnp.where(p_zero, _weigh(a * log_q, generator.at_zero), inside)
    value = jnp.where(q_zero, at_q_zero, value)
    return jnp.sum(jnp.where(p_zero & q_zero, 0, value), axis=-1)
