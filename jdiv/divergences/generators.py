"""The table of f-divergences: `D(p, q) = sum q f(p/q)`, one class for each; `generator` says how.

A class of the table is its own factory and has its name here in lower case, too:
`generators.alpha(alpha=0.5)`, or `generators.get("alpha", alpha=0.5)`. Sums of rows are rows:
`weighted_sum`, and `chi2_kl` of chi2-PO.

To add a divergence to the table write its class here, with `@listed`: the function
`divergences.<name>`, its documentation, the ranges of its parameters and the tests follow. A row
of your own needs no place in the table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences.generator import Generator, checked_row, number_or_array, parameter, row

TABLE: dict[str, type[Generator]] = {}
"""The rows by name."""


def listed(cls: type) -> type:
    """Decorator of a row of the table: its name in `TABLE` and in this module."""
    cls = row(cls)
    TABLE[cls.name] = globals()[cls.name] = cls
    return cls


def get(name: str, **parameters: ArrayLike) -> Generator:
    """The row of this name, with its parameters.

    >>> print(f"{get('alpha', alpha=2.0).slope(jnp.log(3.0)):.4f}")
    2.0000
    >>> get("jensen_shanon")
    Traceback (most recent call last):
    ValueError: generator: no 'jensen_shanon'; did you mean jensen_shannon?
    """
    checks.known("generator", name, TABLE)
    taken = TABLE[name].parameters()
    for given in parameters:
        if given not in taken:
            allowed = f"it takes {', '.join(taken)}" if taken else "it takes none"
            raise TypeError(f"{given} is not a parameter of {name}: {allowed}")
    return TABLE[name](**parameters)


def __getattr__(name: str) -> type[Generator]:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---------------------------------------------------------------------------------- shared formulas


def _kl_term(log_p: Array, log_q: Array, t: Array) -> Array:
    """`p log(p/q) - p + q`."""
    close, p = jnp.abs(t) < 0.5, jnp.exp(log_p)
    near = p * numerics.exp_residual_near(jnp.where(close, -t, 0))
    return jnp.where(close, near, p * (t - 1) + jnp.exp(log_q))


def _power_shift(t: Array, step: Array, c: ArrayLike) -> Array:
    """The t' with `(e^{c t'} - e^{c t})/c = step`, or `t' - t = step` at c = 0."""
    return _powers_shifted(t, step, jnp.asarray(c, t.dtype))


@jax.custom_jvp
def _powers_shifted(t: Array, step: Array, c: Array) -> Array:
    """`_power_shift` of three arrays."""
    size = c * step
    log_size = jnp.log(jnp.where(size == 0, 1, jnp.abs(size)))
    # Next to such a step e^{c t} is nothing, and in units of it the step may overflow.
    far = (size != 0) & (log_size - c * t > 60)
    exponent = -c * t / 2
    half = jnp.exp(jnp.where(exponent > numerics.largest_exponent(exponent), 0, exponent))
    taken = jnp.where(far | (step == 0), 0, step * half * half)
    near = t + numerics.scaled_log1p(taken, c)
    alone = jnp.where(size > 0, log_size, -jnp.inf) / jnp.where(far, c, 1)
    return jnp.where(far, alone, near)


def _powers_shifted_jvp(primals, tangents):
    """`e^{c t'} dt' = e^{c t} dt + dstep`, with no difference that could cancel."""
    (t, step, c), (dt, dstep, dc) = primals, tangents
    shifted = _powers_shifted(t, step, c)
    finite = jnp.isfinite(shifted)
    inside = jnp.where(finite, shifted, 0)
    change = jnp.zeros_like(shifted)
    if not isinstance(dt, SymbolicZero):
        change += jnp.exp(c * (jnp.where(finite, t, 0) - inside)) * dt
    if not isinstance(dstep, SymbolicZero):
        change += jnp.exp(-c * inside) * dstep
    change = jnp.where(finite, change, 0)
    if not isinstance(dc, SymbolicZero):
        change += jax.jvp(lambda c: _powers_shifted.fun(t, step, c), (c,), (dc,))[1]
    return shifted, change


_powers_shifted.defjvp(_powers_shifted_jvp, symbolic_zeros=True)


# -------------------------------------------------------------------------------------------- rows


@listed
class KL(Generator):
    """Kullback-Leibler, `sum p log(p/q)`: f(u) = u log u.

    With p a policy and q its reference this is the field's reverse KL: mode seeking, infinite
    where p has mass on a zero of q. Range: 0 to inf.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.kl(p, q):.4f}")
    0.5108

    Reference: Kullback and Leibler 1951.
    """

    at_zero = 1.0
    slope_at_zero = -jnp.inf
    slope_at_infinity = jnp.inf
    slope_at_one = 1.0

    def perspective(self, log_p, log_q, t):
        """`p log(p/q) - p + q`."""
        return _kl_term(log_p, log_q, t)

    def perspective_p(self, log_p, log_q, t):
        """`p log(p/q)`."""
        return jnp.exp(log_p) * t

    def perspective_q(self, log_p, log_q, t):
        """`q - p`."""
        return -numerics.probability_difference(log_p, log_q, t)

    def customary(self, log_p, log_q, t):
        """`p log(p/q)`."""
        return jnp.exp(log_p) * t

    def rest_q(self, log_p, log_q, t):
        """`-p`."""
        return -jnp.exp(log_p)

    def shift(self, t, step):
        """`f' = t`."""
        return t + step


@listed
class ReverseKL(Generator):
    """Reverse Kullback-Leibler, `KL(q‖p) = sum q log(q/p)`: f(u) = -log u.

    With p a policy and q its reference this is the field's forward KL: mass covering, infinite
    where p misses mass of q. Range: 0 to inf.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.reverse_kl(p, q):.4f}")
    0.3681

    Reference: Kullback and Leibler 1951.
    """

    at_zero = jnp.inf
    slope_at_zero = -jnp.inf
    slope_at_infinity = 1.0
    slope_at_one = -1.0

    def perspective(self, log_p, log_q, t):
        """`q log(q/p) - q + p`."""
        return _kl_term(log_q, log_p, -t)

    def perspective_p(self, log_p, log_q, t):
        """`p - q`."""
        return numerics.probability_difference(log_p, log_q, t)

    def perspective_q(self, log_p, log_q, t):
        """`q log(q/p)`."""
        return -jnp.exp(log_q) * t

    def customary(self, log_p, log_q, t):
        """`q log(q/p)`."""
        return -jnp.exp(log_q) * t

    def rest_p(self, log_p, log_q, t):
        """`-q`."""
        return -jnp.exp(log_q)

    def shift(self, t, step):
        """`f' = 1 - e^-t`."""
        return _power_shift(t, step, -1.0)


@listed
class Jeffreys(Generator):
    """Jeffreys, `KL(p‖q) + KL(q‖p) = sum (p - q) log(p/q)`: f(u) = (u - 1) log u.

    Symmetric; infinite unless the zeros agree. Not to be confused with Jensen-Shannon.
    Range: 0 to inf.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.jeffreys(p, q):.4f}")
    0.8789

    Reference: Jeffreys 1946.
    """

    at_zero = jnp.inf
    slope_at_zero = -jnp.inf
    slope_at_infinity = jnp.inf

    def perspective(self, log_p, log_q, t):
        """`(p - q) log(p/q)`."""
        return numerics.probability_difference(log_p, log_q, t) * t

    def perspective_p(self, log_p, log_q, t):
        """`p log(p/q) + p - q`."""
        return jnp.exp(log_p) * t + numerics.probability_difference(log_p, log_q, t)

    def perspective_q(self, log_p, log_q, t):
        """`q log(q/p) + q - p`."""
        return -jnp.exp(log_q) * t - numerics.probability_difference(log_p, log_q, t)

    def shift(self, t, step):
        """`f' = log u + 1 - 1/u`; with v = 1/u, `log v + v` is the inverse of Wright's omega."""
        over = -t > numerics.largest_exponent(t)  # e^-t overflows: no step is of that size
        guess = -numerics.log_wright_omega(jnp.exp(-jnp.where(over, 0, t)) - t - step)
        # One Newton step on the slope itself restores the accuracy near u = 1.
        safe = jnp.maximum(guess, -30)
        error = (safe - t) * (1 + numerics.exp_difference(-jnp.where(over, 0, t), -safe)) - step
        moved = jnp.where(guess > -30, safe - error / (1 + jnp.exp(-safe)), guess)
        return jnp.where(over, t - jnp.log1p(-step * jnp.exp(t)), moved)


@listed
class JensenShannon(Generator):
    """Jensen-Shannon, `w KL(p‖m) + (1-w) KL(q‖m)` with `m = w p + (1-w) q`, 0 < w < 1.

    f(u) = w u log u - (w u + 1 - w) log(w u + 1 - w).
    Symmetric at w = 1/2; finite always. Divided by w it tends to KL(p‖q) as w -> 0; the weight
    itself has to lie inside (0, 1), where the divergence does not vanish. Range: 0 to the entropy
    of (w, 1-w), which disjoint supports reach.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.jensen_shannon(p, q):.4f}")
    0.1017

    Reference: Lin 1991.
    """

    weight: ArrayLike = parameter(0.5, 0.0, 1.0, "between 0 and 1, exclusive", example=0.3)

    @property
    def at_zero(self):
        """-(1 - w) log(1 - w)."""
        return -(1 - self.weight) * jnp.log1p(-jnp.asarray(self.weight))

    slope_at_zero = -jnp.inf

    @property
    def slope_at_infinity(self):
        """-w log w."""
        return -self.weight * jnp.log(jnp.asarray(self.weight))

    def perspective(self, log_p, log_q, t):
        """`w (p log(p/m) - p + m) + (1 - w) (q log(q/m) - q + m)`."""
        w, close = self.weight, jnp.abs(t) < 0.5
        of_p, of_q = w * jnp.exp(log_p), (1 - w) * jnp.exp(log_q)
        m_over_p, m_over_q = numerics.mixture_over(t, w, 1 - w)
        residual = lambda x: numerics.exp_residual_near(jnp.where(close, x, 0))
        near = of_p * residual(m_over_p) + of_q * residual(m_over_q)
        return jnp.where(close, near, -(of_p * m_over_p + of_q * m_over_q))

    def perspective_p(self, log_p, log_q, t):
        """`w p log(p/m)`."""
        w = self.weight
        return -w * jnp.exp(log_p) * numerics.mixture_over(t, w, 1 - w)[0]

    def perspective_q(self, log_p, log_q, t):
        """`(1 - w) q log(q/m)`."""
        w = self.weight
        return -(1 - w) * jnp.exp(log_q) * numerics.mixture_over(t, w, 1 - w)[1]

    def rest_p(self, log_p, log_q, t):
        """`w p log(w p/m)`."""
        w = self.weight
        return -w * jnp.exp(log_p) * jax.nn.softplus(_log_odds(1 - w, w, t) - t)

    def rest_q(self, log_p, log_q, t):
        """`(1 - w) q log((1 - w) q/m)`."""
        w = self.weight
        return -(1 - w) * jnp.exp(log_q) * jax.nn.softplus(t - _log_odds(1 - w, w, t))

    def shift(self, t, step):
        """`f' = w log(p/m)`, and w p/m is a logistic function of t."""
        w = self.weight
        return _logistic_shift(t, step / w, lambda y, step: y + step, w, 1 - w)


@listed
class SkewKL(Generator):
    """Skew Kullback-Leibler, `KL(p‖(1-s) p + s q)`, 0 < s < 1: f(u) = u log(u / ((1-s) u + s)).

    Finite always; tends to KL(p‖q) as s -> 1. Range: 0 to -log(1 - s), reached for disjoint
    supports. s is the weight of q: the skew of .1 in DistiLLM (arXiv:2402.03898) is the weight of p
    in the mixture, `skew=0.9` here.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.skew_kl(p, q, skew=0.5):.4f}")
    0.0872

    Reference: Lee 1999.
    """

    skew: ArrayLike = parameter(0.1, 0.0, 1.0, "between 0 and 1, exclusive", example=0.2)

    at_zero = property(lambda self: self.skew)
    slope_at_zero = -jnp.inf
    slope_at_one = property(lambda self: self.skew)

    @property
    def slope_at_infinity(self):
        """-log(1 - s) - s."""
        return numerics.exp_residual(jnp.log1p(-jnp.asarray(self.skew)))

    def _over_m(self, t):
        """`log(p/m)`."""
        return -numerics.mixture_over(t, 1 - self.skew, self.skew)[0]

    def perspective(self, log_p, log_q, t):
        """`p log(p/m) - p + m`."""
        p, q, over_m = jnp.exp(log_p), jnp.exp(log_q), self._over_m(t)
        close = jnp.abs(over_m) < 0.5
        near = p * numerics.exp_residual_near(jnp.where(close, -over_m, 0))
        return jnp.where(close, near, p * (over_m - self.skew) + self.skew * q)

    def perspective_p(self, log_p, log_q, t):
        """`p log(p/m) - (1 - s) p (p - m)/m`, in which no term of first order is left."""
        s, over_m = self.skew, self._over_m(t)
        return jnp.exp(log_p) * (s * over_m - (1 - s) * numerics.exp_residual(over_m))

    def perspective_q(self, log_p, log_q, t):
        """`-s q (p - m)/m`."""
        return -self.skew * jnp.exp(log_q) * jnp.expm1(self._over_m(t))

    def customary(self, log_p, log_q, t):
        """`p log(p/m)`."""
        return jnp.exp(log_p) * self._over_m(t)

    def rest_p(self, log_p, log_q, t):
        """`p (y + 1 - e^y)` with `y = log((1-s) p/m)`."""
        y = -jax.nn.softplus(_log_odds(self.skew, 1 - self.skew, t) - t)
        return -jnp.exp(log_p) * numerics.exp_residual(y)

    def rest_q(self, log_p, log_q, t):
        """`-s p q/m`."""
        _, m_over_q = numerics.mixture_over(t, 1 - self.skew, self.skew)
        return -self.skew * jnp.exp(log_p - m_over_q)

    def shift(self, t, step):
        """`f'(inf) - f' = e^y - 1 - y` with `y = log((1-s) p/m)`."""

        def move(y, step):
            return numerics.exp_residual_root(numerics.exp_residual(y) - step)

        return _logistic_shift(t, step, move, 1 - self.skew, self.skew)


def _log_odds(other: ArrayLike, weight: ArrayLike, t: Array) -> Array:
    """`log(other/weight)`."""
    return jnp.log(jnp.asarray(other, t.dtype)) - jnp.log(jnp.asarray(weight, t.dtype))


def _logistic_shift(
    t: Array, step: Array, move: Callable, weight: ArrayLike, other: ArrayLike
) -> Array:
    """The t' that `move` reaches on the scale `y = -softplus(k - t)`, `k = log(other/weight)`.

    On that scale y < 0 and y -> 0 as t -> inf, so nothing is lost where the slope saturates.
    """
    k = _log_odds(other, weight, t)
    y = move(-jax.nn.softplus(k - t), step)
    inside = ~(y >= 0)  # NaN stays NaN
    moved = k - numerics.log_expm1(-jnp.where(inside, y, -1))
    # A step down cannot lead to infinity: where y underflows, the log-ratio stays.
    return jnp.where(inside, moved, jnp.where(step > 0, jnp.inf, t))


@listed
class TotalVariation(Generator):
    """Total variation, `sum |p - q| / 2`, half the L1 distance: f(u) = |u - 1| / 2.

    Symmetric. Its gradient is piecewise constant and takes 0 where p = q. Range: 0 to 1.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.total_variation(p, q):.4f}")
    0.4000

    Reference: Csiszar 1967.
    """

    invertible = False
    at_zero = 0.5
    slope_at_zero = -0.5
    slope_at_infinity = 0.5

    def perspective(self, log_p, log_q, t):
        """`|p - q| / 2`."""
        return jnp.abs(numerics.probability_difference(log_p, log_q, t)) / 2

    def perspective_p(self, log_p, log_q, t):
        """`p sign(p - q) / 2`."""
        return jnp.exp(log_p) * jnp.sign(t) / 2

    def perspective_q(self, log_p, log_q, t):
        """`q sign(q - p) / 2`."""
        return -jnp.exp(log_q) * jnp.sign(t) / 2

    def rest_p(self, log_p, log_q, t):
        """`p (sign(p - q) - 1) / 2`."""
        return jnp.exp(log_p) * (jnp.sign(t) - 1) / 2

    def rest_q(self, log_p, log_q, t):
        """`q (sign(q - p) - 1) / 2`."""
        return -jnp.exp(log_q) * (jnp.sign(t) + 1) / 2

    def shift(self, t, step):
        """`f' = sign(t) / 2`: no function has this inverse, so u = 1 inside (-1/2, 1/2)."""
        s = jnp.sign(t) / 2 + step
        return jnp.where(jnp.abs(s) <= 0.5, 0, jnp.inf * jnp.sign(s))

    def conjugate(self, s):
        """`max(s, -1/2)` up to s = 1/2, then inf."""
        return jnp.where(s > 0.5, jnp.inf, jnp.maximum(s, -0.5))


class _CressieRead(Generator):
    """`scale` times Cressie-Read with exponent a: f(u) = (u^a - a u + a - 1) / (a (a - 1)).

    With `g = a log p + (1 - a) log q`, q f(p/q) is t^2 times the second divided difference of exp
    at log p, log q and g. That is positive, symmetric and smooth in a, so KL (a = 1) and reverse
    KL (a = 0) are values like any other.
    """

    exponent: ArrayLike
    scale: ArrayLike

    @property
    def at_zero(self):
        """1/a, or inf for a <= 0."""
        positive = jnp.asarray(self.exponent) > 0
        return jnp.where(positive, self.scale / jnp.where(positive, self.exponent, 1), jnp.inf)

    @property
    def slope_at_zero(self):
        """-1/(a - 1), or -inf for a <= 1."""
        above = jnp.asarray(self.exponent) > 1
        return jnp.where(above, -self.scale / jnp.where(above, self.exponent - 1, 1), -jnp.inf)

    @property
    def slope_at_infinity(self):
        """1/(1 - a), or inf for a >= 1."""
        below = jnp.asarray(self.exponent) < 1
        return jnp.where(below, self.scale / jnp.where(below, 1 - self.exponent, 1), jnp.inf)

    def _with_mean(self, log_p, log_q, t):
        """The arguments and `log p^a q^(1-a)`, from the larger of p and q so that it is exact.

        Logits of -1e38, used in place of -inf, overflow on the way to a finite result: clipped.
        """
        log_p, log_q, t = (jnp.clip(x, -1e15, 1e15) for x in (log_p, log_q, t))
        a = self.exponent
        return log_p, log_q, t, jnp.where(t > 0, log_p + (a - 1) * t, log_q + a * t)

    def perspective(self, log_p, log_q, t):
        """`(p^a q^(1-a) - a p + (a - 1) q) / (a (a - 1))`."""
        log_p, log_q, t, log_mean = self._with_mean(log_p, log_q, t)
        return self.scale * numerics.exp_difference_2(log_q, log_p, log_mean, t * t)

    def perspective_p(self, log_p, log_q, t):
        """`(p^a q^(1-a) - p) / (a - 1)`."""
        log_p, _, t, log_mean = self._with_mean(log_p, log_q, t)
        return self.scale * t * numerics.exp_difference(log_p, log_mean)

    def perspective_q(self, log_p, log_q, t):
        """`(q - p^a q^(1-a)) / a`."""
        _, log_q, t, log_mean = self._with_mean(log_p, log_q, t)
        return -self.scale * t * numerics.exp_difference(log_q, log_mean)

    def rest_p(self, log_p, log_q, t):
        """`p^a q^(1-a) / (a - 1)`."""
        *_, log_mean = self._with_mean(log_p, log_q, t)
        return self._share(1 - jnp.asarray(self.exponent), log_mean)

    def rest_q(self, log_p, log_q, t):
        """`-p^a q^(1-a) / a`."""
        *_, log_mean = self._with_mean(log_p, log_q, t)
        return self._share(jnp.asarray(self.exponent), log_mean)

    def _share(self, a, log_mean):
        """`-scale e^log_mean / a` for a positive a; for others the end is infinite."""
        return jnp.where(a > 0, -self.scale * jnp.exp(log_mean) / jnp.where(a > 0, a, 1), 0)

    def customary(self, log_p, log_q, t):
        """`P + Q + s (p - q)`, P and Q the derivatives by log p and log q, s = f'(1).

        With `scale (p - q) = (1 - a) P - a Q` that is a sum of a share of P and a share of Q. One
        share is 0 for tsallis and squared_hellinger, and what it would have multiplied is large.
        """
        a, s = self.exponent, self.slope_at_one / self.scale
        of_p, of_q = 1 - s * (a - 1), 1 - s * a
        near = (jnp.abs(t) < 1) | (s == 0)

        def where_needed(f, skip):
            return f(*(jnp.where(skip, 0, x) for x in (log_p, log_q, t)))

        summed = where_needed(super().customary, ~near)
        by_p = where_needed(self.perspective_p, near | (of_p == 0))
        by_q = where_needed(self.perspective_q, near | (of_q == 0))
        return jnp.where(near, summed, of_p * by_p + of_q * by_q)

    def shift(self, t, step):
        """`f' = (u^(a-1) - 1) / (a - 1)`."""
        return _power_shift(t, step / self.scale, self.exponent - 1)


@listed
class SquaredHellinger(_CressieRead):
    """Squared Hellinger, `1 - sum sqrt(p q) = sum (sqrt p - sqrt q)^2 / 2`: f(u) = 1 - sqrt(u).

    A quarter of alpha = 1/2. Symmetric; finite always. Range: 0 to 1.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.squared_hellinger(p, q):.4f}")
    0.1056

    Reference: Hellinger 1909.
    """

    exponent = 0.5
    scale = 0.25
    slope_at_one = -0.5

    def perspective(self, log_p, log_q, t):
        """`(sqrt p - sqrt q)^2 / 2`."""
        return numerics.probability_difference(log_p / 2, log_q / 2, t / 2) ** 2 / 2


@listed
class PearsonChi2(_CressieRead):
    """Pearson's chi2, `sum (p - q)^2 / q`, also written chi2(p‖q): f(u) = (u - 1)^2.

    Twice alpha = 2. Infinite where p has mass on a zero of q. Range: 0 to inf.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.pearson_chi2(p, q):.4f}")
    1.7778

    Reference: Pearson 1900.
    """

    exponent = 2.0
    scale = 2.0

    def perspective(self, log_p, log_q, t):
        """`(p/sqrt q - sqrt q)^2`."""
        return numerics.probability_difference((log_p + t) / 2, log_q / 2, t) ** 2


@listed
class NeymanChi2(_CressieRead):
    """Neyman's chi2, `sum (p - q)^2 / p`, which is chi2(q‖p): f(u) = (u - 1)^2 / u.

    Twice alpha = -1. Infinite where p misses mass of q. Range: 0 to inf.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.neyman_chi2(p, q):.4f}")
    0.6400

    Reference: Neyman 1949.
    """

    exponent = -1.0
    scale = 2.0

    def perspective(self, log_p, log_q, t):
        """`(sqrt p - q/sqrt p)^2`."""
        return numerics.probability_difference(log_p / 2, (log_q - t) / 2, t) ** 2


@listed
class LeCam(Generator):
    """Le Cam or triangular discrimination, `sum (p - q)^2 / (2 (p + q))`.

    f(u) = (u - 1)^2 / (2 (u + 1)). Symmetric; finite always. Range: 0 to 1.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.le_cam(p, q):.4f}")
    0.1905

    Reference: Le Cam 1986.
    """

    at_zero = 0.5
    slope_at_zero = -1.5
    slope_at_infinity = 0.5

    def perspective(self, log_p, log_q, t):
        """`(p - q)^2 / (2 (p + q))`."""
        return numerics.probability_difference(log_p, log_q, t) * jnp.tanh(t / 2) / 2

    def perspective_p(self, log_p, log_q, t):
        """`p (h - h^2/2)` with `h = (p - q)/(p + q)`."""
        h = jnp.tanh(t / 2)
        return jnp.exp(log_p) * h * (1 - h / 2)

    def perspective_q(self, log_p, log_q, t):
        """`-q (h + h^2/2)`."""
        h = jnp.tanh(t / 2)
        return -jnp.exp(log_q) * h * (1 + h / 2)

    def rest_p(self, log_p, log_q, t):
        """`-2 p q^2 / (p + q)^2`."""
        return -2 * jnp.exp(log_p - 2 * jax.nn.softplus(t))

    def rest_q(self, log_p, log_q, t):
        """`-2 q p^2 / (p + q)^2`."""
        return -2 * jnp.exp(log_q - 2 * jax.nn.softplus(-t))

    def shift(self, t, step):
        """`f' = 1/2 - 2 / (1 + u)^2`."""
        size = jnp.abs(step) / 2
        log_size = jnp.log(jnp.where(size > 0, size, 1)) + 2 * jax.nn.softplus(t)
        # Where f' has hardly anything left the step counts alone; its square must not overflow.
        far = (size > 0) & (log_size > -2.5 * math.log(jnp.finfo(t.dtype).eps))
        # A step of 0 stays, also where u^2 overflows.
        stays = (size == 0) & (t > numerics.largest_exponent(t) / 2)
        # Beyond it every step is one of the two.
        inside = jnp.where(t > numerics.largest_exponent(t), 0, t)
        near = self._shift_near(inside, jnp.where(far | stays, 0, step))
        near = jnp.where(stays, t, near)
        share = jnp.sqrt(jnp.where(far, size, 0.25))  # q/(p + q)
        inside = share < 1
        share = jnp.where(inside, share, 0.5)
        alone = jnp.where(inside, jnp.log1p(-share) - jnp.log(share), -jnp.inf)
        return jnp.where(far, jnp.where(step > 0, jnp.inf, alone), near)

    def _shift_near(self, t, step):
        """`u' = (u + 1 - r)/r`, `r^2 = 1 - step (1 + u)^2 / 2`; a negative u' is below f'(0)."""
        taken = step / 2 * (1 + jnp.exp(t)) * (1 + jnp.exp(t))
        inside = ~(taken >= 1)  # NaN stays NaN
        taken = jnp.where(inside, taken, 0)
        gain = taken / (1 + jnp.sqrt(1 - taken))  # 1 - r
        small = t < -1  # u and the gain are added, else their ratio to 1
        ratio = gain * jnp.exp(-jnp.where(small, 0, t))
        total = jnp.exp(jnp.where(small, t, 0)) + gain
        positive = ~jnp.where(small, total <= 0, ratio <= -1)
        by_sum = jnp.log(jnp.where(small & positive, total, 1))
        by_ratio = t + jnp.log1p(jnp.where(positive & ~small, ratio, 0))
        moved = jnp.where(small, by_sum, by_ratio) - jnp.log1p(-taken) / 2
        return jnp.where(inside, jnp.where(positive, moved, -jnp.inf), jnp.inf)


@listed
class Alpha(_CressieRead):
    """Cressie-Read alpha divergence, `(sum p^a q^(1-a) - 1) / (a (a - 1))`, any real a.

    f(u) = (u^a - a u + a - 1) / (a (a - 1)).
    Tends to KL(p‖q) at a = 1 and KL(q‖p) at a = 0; both values are allowed. Infinite on a zero of
    q for a >= 1, on a zero of p for a <= 0. Range: 0 to inf, or to 1/(a (1 - a)) for 0 < a < 1.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.alpha(p, q, alpha=2.0):.4f}")
    0.8889

    Reference: Cressie and Read 1984.
    """

    alpha: ArrayLike = parameter(0.5, -jnp.inf, jnp.inf, "a finite number", example=0.7)

    exponent = property(lambda self: self.alpha)
    scale = 1.0


@listed
class Tsallis(_CressieRead):
    """Tsallis relative entropy, `(sum p^k q^(1-k) - 1) / (k - 1)` with index k > 0.

    f(u) = (u^k - u) / (k - 1), k times alpha = k: KL(p‖q) at index 1, Pearson's chi2 at 2.
    Infinite on a zero of q for an index of 1 or more. Range: 0 to inf, or to 1/(1 - index) below 1.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.tsallis(p, q, index=2.0):.4f}")
    1.7778

    Reference: Tsallis 1998.
    """

    index: ArrayLike = parameter(2.0, 0.0, jnp.inf, "positive and finite", example=1.6)

    exponent = property(lambda self: self.index)
    scale = property(lambda self: self.index)
    slope_at_one = 1.0


@row
class Power(_CressieRead):
    """`scale` times Cressie-Read with this exponent, for a sweep over both; not in the table."""

    exponent: ArrayLike
    scale: ArrayLike = 1.0


# ------------------------------------------------------------------------------ a row from f alone


@row
class FromF(Generator):
    """A row that is made of its f; made by `from_f`."""

    function: Callable[[Array], Array] = dataclasses.field(metadata={"static": True})
    at_zero: ArrayLike
    slope_at_zero: ArrayLike
    slope_at_infinity: ArrayLike
    slope_at_one: ArrayLike

    def f(self, u):
        """The function, centered."""
        return self.function(u) - self.slope_at_one * (u - 1)


def from_f(
    f: Callable[[Array], Array],
    *,
    at_zero: ArrayLike,
    slope_at_zero: ArrayLike,
    slope_at_infinity: ArrayLike,
) -> Generator:
    """The row of a convex function with f(1) = 0, given with its ends f(0), f'(0) and f'(inf).

    f takes u = p/q to an array of the same shape and is twice differentiable; it is centered here,
    with the slope f'(1) that it has. All follows from it, see `generator`, which also says how a
    row with parameters is written.

    >>> from jdiv import divergences as dv
    >>> own = from_f(lambda u: 1 - jnp.sqrt(u), at_zero=1.0, slope_at_zero=-jnp.inf,
    ...              slope_at_infinity=0.0)
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.f_divergence(own, p, q):.4f} {dv.squared_hellinger(p, q):.4f}")
    0.1056 0.1056
    """
    ends = at_zero, slope_at_zero, slope_at_infinity
    for name, x in zip(("at_zero", "slope_at_zero", "slope_at_infinity"), ends, strict=True):
        checks.in_range(name, x, -jnp.inf, jnp.inf, "a number or infinite", closed="both")
    slope = jax.grad(f)(1.0)
    at_zero, slope_at_zero, slope_at_infinity = (
        at_zero + slope,
        slope_at_zero - slope,
        (slope_at_infinity - slope),
    )
    return FromF(f, at_zero, slope_at_zero, slope_at_infinity, slope)


# ------------------------------------------------------------------------------------ sums of rows

Penalties = Sequence[tuple[ArrayLike, Generator]]
"""Weights and rows: `((0.1, generators.kl()), (0.1, generators.reverse_kl()))`."""


class _Sum(Generator):
    """A weighted sum of rows. Rows of weight zero do not count, traced ones too."""

    weights: tuple[ArrayLike, ...]
    rows: tuple[Generator, ...]

    def _sum(self, of: Callable[[Generator], ArrayLike]) -> ArrayLike:
        def weighted(weight, x):
            # What is infinite does not grow with its weight, and has derivative 0 by it: inf, times
            # the cotangent 0 of all that it does not reach, would be NaN.
            infinite = jnp.isinf(x)
            end = jnp.where(infinite & (weight != 0), x, 0)
            return weight * jnp.where(infinite, 0, x) + end

        values = (
            (weight, jnp.asarray(of(one)))
            for weight, one in zip(self.weights, self.rows, strict=True)
        )
        return sum(weighted(*pair) for pair in values)

    at_zero = property(lambda self: self._sum(lambda one: one.at_zero))
    slope_at_zero = property(lambda self: self._sum(lambda one: one.slope_at_zero))
    slope_at_infinity = property(lambda self: self._sum(lambda one: one.slope_at_infinity))
    slope_at_one = property(lambda self: self._sum(lambda one: one.slope_at_one))

    def perspective(self, log_p, log_q, t):
        """The sum of theirs."""
        return self._sum(lambda one: one.perspective(log_p, log_q, t))

    def perspective_p(self, log_p, log_q, t):
        """The sum of theirs."""
        return self._sum(lambda one: one.perspective_p(log_p, log_q, t))

    def perspective_q(self, log_p, log_q, t):
        """The sum of theirs."""
        return self._sum(lambda one: one.perspective_q(log_p, log_q, t))

    def rest_p(self, log_p, log_q, t):
        """The sum of theirs."""
        return self._sum(lambda one: one.rest_p(log_p, log_q, t))

    def rest_q(self, log_p, log_q, t):
        """The sum of theirs."""
        return self._sum(lambda one: one.rest_q(log_p, log_q, t))

    def rise_from(self, t):
        """The sum of theirs."""
        rises = [one.rise_from(t) for one in self.rows]

        def to(end):
            by_row = iter(rises)  # `_sum` goes through the rows in this order
            return self._sum(lambda _: next(by_row)(end))

        return to


@row
class WeightedSum(_Sum):
    """A weighted sum of rows; made by `weighted_sum`, which checks them."""

    weights: tuple[ArrayLike, ...]
    rows: tuple[Generator, ...]

    def __post_init__(self):
        """Refuses weights and parameters of the rows out of range; traced ones become NaN."""
        weights = [number_or_array(checks.not_negative("weights", w)) for w in self.weights]
        object.__setattr__(self, "weights", tuple(weights))
        object.__setattr__(self, "rows", tuple(map(dataclasses.replace, self.rows)))
        super().__post_init__()


def weighted_sum(penalties: Penalties) -> Generator:
    """`sum_i w_i D_i` as one row, so that all that is made for a row has it.

    >>> from jdiv import generators
    >>> both = weighted_sum(((0.5, generators.kl()), (0.5, generators.reverse_kl())))
    >>> print(f"{both.slope(jnp.log(2.0)):.4f}")  # half of jeffreys: (log 2 + 1 - 1/2) / 2
    0.5966
    """
    if not penalties:
        raise ValueError("penalties must have at least one row, got none")
    weights, rows = zip(*penalties, strict=True)
    for one in rows:
        checked_row(one, invertible=True)
    return WeightedSum(weights, rows)


@row
class Swapped(Generator):
    """The divergence of a row with its sides exchanged; made by `swapped`."""

    swapped: Generator

    invertible = False
    slope_at_zero = jnp.nan  # unknown, and nobody asks a row without an inverse
    at_zero = property(lambda self: self.swapped.slope_at_infinity)
    slope_at_infinity = property(lambda self: self.swapped.at_zero)
    slope_at_one = property(lambda self: -jnp.asarray(self.swapped.slope_at_one))

    def perspective(self, log_p, log_q, t):
        """That of the row, its arguments exchanged."""
        return self.swapped.perspective(log_q, log_p, -t)

    def perspective_p(self, log_p, log_q, t):
        """The row's `perspective_q`."""
        return self.swapped.perspective_q(log_q, log_p, -t)

    def perspective_q(self, log_p, log_q, t):
        """The row's `perspective_p`."""
        return self.swapped.perspective_p(log_q, log_p, -t)

    def customary(self, log_p, log_q, t):
        """That of the row, its arguments exchanged."""
        return self.swapped.customary(log_q, log_p, -t)

    def rest_p(self, log_p, log_q, t):
        """The row's `rest_q`."""
        return self.swapped.rest_q(log_q, log_p, -t)

    def rest_q(self, log_p, log_q, t):
        """The row's `rest_p`."""
        return self.swapped.rest_p(log_q, log_p, -t)


def swapped(generator: Generator) -> Generator:
    """The row of `D(q, p)`, for functions that take the one that learns first: u f(1/u).

    Its slope is not inverted.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.f_divergence(swapped(SkewKL(0.5)), p, q):.4f} {dv.skew_kl(q, p, skew=0.5):.4f}")
    0.1163 0.1163
    """
    return Swapped(checked_row(generator))


@listed
class Chi2KL(_Sum):
    """Half of Pearson's chi2 plus gamma KL: f(u) = (u^2 - 1)/2 + gamma (u log u - u + 1).

    Its slope before centering is chi2-PO's link `u + gamma log u`. Infinite where p has mass on a
    zero of q. Range: 0 to inf.

    >>> from jdiv import divergences as dv
    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{dv.chi2_kl(p, q, gamma=1.0):.4f}")
    1.3997

    Reference: Huang et al. 2024 (arXiv:2407.13399), equation 8.
    """

    gamma: ArrayLike = parameter(1.0, 0.0, jnp.inf, "positive and finite", example=0.6)

    weights = property(lambda self: (1.0, self.gamma))
    rows = Alpha(2.0), KL()
    slope_at_one = 1.0

    def shift(self, t, step):
        """`f' = u - 1 + gamma log u`, whose inverse is Wright's omega."""
        gamma = jnp.asarray(self.gamma, t.dtype)
        over = t > numerics.largest_exponent(t)  # e^t overflows: no step is of that size
        near = jnp.where(over, 0, t)
        guess = log_inverse_link(jnp.exp(near) + gamma * t + step, gamma=gamma)
        # One Newton step on the slope itself restores the accuracy near t.
        error = (guess - near) * (numerics.exp_difference(near, guess) + gamma) - step
        return jnp.where(
            over, t + jnp.log1p(step * jnp.exp(-t)), guess - error / (jnp.exp(guess) + gamma)
        )


def log_inverse_link(s: ArrayLike, *, gamma: ArrayLike = 1.0) -> Array:
    """`log z` of the z with `z + gamma log z = s`: for gamma 1, log W(e^s), W Lambert's.

    In logarithms: e^s overflows from 709 on. Shapes: any to the same.

    >>> print(f"{log_inverse_link(jnp.array(1.0)):.4f} {log_inverse_link(jnp.array(5000.0)):.4f}")
    0.0000 8.5155

    Reference: Huang et al. 2024 (arXiv:2407.13399), equation 8.
    """
    s = checks.as_float("s", s)
    gamma = jnp.asarray(checks.positive("gamma", gamma), s.dtype)
    return jnp.log(gamma) + numerics.log_wright_omega(s / gamma - jnp.log(gamma))
