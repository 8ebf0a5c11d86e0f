"""The table of f-divergences: `D(p, q) = sum q f(p/q)`, one row for each.

A row is a class whose fields are its parameters (they may be traced, so a sweep over alpha is a
vmap) and whose methods are formulas in the logarithms of p and q and in `t = log p/q`:

=================  ================================================================================
`perspective`      `q f(p/q)`, each term non-negative
`perspective_p`    `p f'(p/q)`, its derivative by log p
`perspective_q`    `q f(p/q) - p f'(p/q)`, its derivative by log q
`shift(t, step)`   the log-ratio at which the slope f' is `step` more than at t
`at_zero` ...      f(0), f'(0) and f'(inf), which settle every zero of p or q
=================  ================================================================================

Everything else in jdiv follows from these: the slope and its inverse, the convex conjugate, exact
divergences and gradients (`categorical`), estimators, regularised policies (`regularized`).
The generator of every row is the centred one, `f(u) - f'(1) (u - 1)`: it gives the same divergence,
is nowhere negative, and has f(1) = f'(1) = 0. `slope_at_one` is what was taken out: f'(1) of the
customary generator, which the docstring of each row states.

To add a divergence, write a row and list it in `TABLE`.
"""

import abc
import dataclasses
import difflib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics


def row(cls: type) -> type:
    """A frozen dataclass that is a pytree of its parameters."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class Generator(abc.ABC):
    """What every row provides, and what follows from it. All arrays are elementwise."""

    at_zero: ArrayLike
    """f(0); a zero of p under mass q costs q f(0)."""
    slope_at_zero: ArrayLike
    """f'(0); finite means that a regularised policy can drop actions."""
    slope_at_infinity: ArrayLike
    """f'(inf); mass p on a zero of q costs p f'(inf)."""
    slope_at_one: ArrayLike = 0.0
    """f'(1) of the customary generator, before centring."""

    @abc.abstractmethod
    def perspective(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q)` for finite logarithms."""

    @abc.abstractmethod
    def perspective_p(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`p f'(p/q)` for finite logarithms."""

    @abc.abstractmethod
    def perspective_q(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q) - p f'(p/q)` for finite logarithms."""

    @abc.abstractmethod
    def shift(self, t: Array, step: Array) -> Array:
        """The log-ratio whose slope is `slope(t) + step`: -inf below f'(0), inf above f'(inf)."""

    def customary(self, log_p: Array, log_q: Array, t: Array) -> Array:
        """`q f(p/q)` before centring, for finite logarithms: what plain estimators average.

        A row overrides this sum where its customary f is much the smaller one, at 0 or at infinity.
        """
        difference = self.slope_at_one * numerics.probability_difference(log_p, log_q, t)
        return self.perspective(log_p, log_q, t) + difference

    def value(self, t: Array) -> Array:
        """`f(e^t)`."""
        return _at_ends(
            t, self.at_zero, jnp.inf, lambda t: self.perspective(t, jnp.zeros_like(t), t)
        )

    def slope(self, t: Array) -> Array:
        """`f'(e^t)`: the score of f-DPO, minus the pseudo-reward of f-DPG."""
        ends = self.slope_at_zero, self.slope_at_infinity
        return _at_ends(t, *ends, lambda t: self.perspective_p(jnp.zeros_like(t), -t, t))

    def inverse_slope(self, s: Array) -> Array:
        """The log-ratio t with `f'(e^t) = s`; -inf below the range of f', inf above it."""
        return self.shift(jnp.zeros_like(s), s)

    def conjugate(self, s: Array) -> Array:
        """`f*(s) = max_u (s u - f(u))` over u >= 0."""
        t = self.inverse_slope(s)
        of_finite = lambda t: -self.perspective_q(t, jnp.zeros_like(t), t)
        return _at_ends(t, -jnp.asarray(self.at_zero), jnp.inf, of_finite)


def _at_ends(t: Array, at_minus_inf: ArrayLike, at_inf: ArrayLike, f: Callable) -> Array:
    """`f(t)` with given values at t = -inf and t = inf; f sees finite numbers only."""
    inside = f(jnp.where(jnp.isinf(t), 0, t))
    at_minus_inf, at_inf = (jnp.asarray(x, t.dtype) for x in (at_minus_inf, at_inf))
    return jnp.where(t == -jnp.inf, at_minus_inf, jnp.where(t == jnp.inf, at_inf, inside))


def _kl_term(log_p: Array, log_q: Array, t: Array) -> Array:
    """`p log(p/q) - p + q`."""
    close = jnp.abs(t) < 1
    near = jnp.exp(log_p) * numerics.exp_residual(jnp.where(close, -t, 0))
    return jnp.where(close, near, jnp.exp(log_p) * (t - 1) + jnp.exp(log_q))


def _power_shift(t: Array, step: Array, c: ArrayLike) -> Array:
    """The t' with `(e^{c t'} - e^{c t})/c = step`, or `t' - t = step` at c = 0."""
    t, step, c = jnp.broadcast_arrays(t, step, jnp.asarray(c, t.dtype))
    far = -c * t > 30  # e^{-c t} may overflow: work with its logarithm
    near = t + numerics.scaled_log1p(step * jnp.exp(jnp.where(far, 0, -c * t)), c)
    size = c * step
    log_size = jnp.log(jnp.where(far & (size != 0), jnp.abs(size), 1)) - c * t
    shrinks = (size < 0) & (log_size < 0)
    growth = jnp.where(
        size > 0,
        jax.nn.softplus(log_size),
        jnp.where(shrinks, jnp.log1p(-jnp.exp(jnp.where(shrinks, log_size, -1))), 0),
    )
    beyond = t + growth / jnp.where(far, c, 1)
    beyond = jnp.where((size < 0) & ~shrinks, jnp.where(c > 0, -jnp.inf, jnp.inf), beyond)
    return jnp.where(far, jnp.where(size == 0, t, beyond), near)


@row
class KL(Generator):
    """Kullback-Leibler, KL(p‖q): f(u) = u log u; `reverse KL` where p is the policy."""

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

    def shift(self, t, step):
        """`f' = t`."""
        return t + step


@row
class ReverseKL(Generator):
    """Reverse Kullback-Leibler, KL(q‖p): f(u) = -log u; `forward KL` where p is the policy."""

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

    def shift(self, t, step):
        """`f' = 1 - e^-t`."""
        return _power_shift(t, step, -1.0)


@row
class Power(Generator):
    """`scale` times Cressie-Read: f(u) = (u^a - a u + a - 1) / (a (a - 1)).

    With `g = a log p + (1 - a) log q`, q f(p/q) is t^2 times the second divided difference of exp
    at log p, log q and g. That is positive, symmetric and smooth in a, so KL (a = 1) and reverse
    KL (a = 0) are values like any other.
    """

    exponent: ArrayLike
    scale: ArrayLike = 1.0
    slope_at_one: ArrayLike = 0.0

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
        return self.scale * t * (t * numerics.exp_difference_2(log_q, log_p, log_mean))

    def perspective_p(self, log_p, log_q, t):
        """`(p^a q^(1-a) - p) / (a - 1)`."""
        log_p, _, t, log_mean = self._with_mean(log_p, log_q, t)
        return self.scale * t * numerics.exp_difference(log_p, log_mean)

    def perspective_q(self, log_p, log_q, t):
        """`(q - p^a q^(1-a)) / a`."""
        _, log_q, t, log_mean = self._with_mean(log_p, log_q, t)
        return -self.scale * t * numerics.exp_difference(log_q, log_mean)

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


@row
class Jeffreys(Generator):
    """Jeffreys, KL(p‖q) + KL(q‖p): f(u) = (u - 1) log u."""

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
        guess = -numerics.log_wright_omega(jnp.exp(-t) - t - step)
        # One Newton step on the slope itself restores the accuracy near u = 1.
        safe = jnp.maximum(guess, -30)
        error = safe - t + jnp.exp(-safe) * jnp.expm1(safe - t) - step
        return jnp.where(guess > -30, safe - error / (1 + jnp.exp(-safe)), guess)


@row
class JensenShannon(Generator):
    """Jensen-Shannon with weight w: w KL(p‖m) + (1-w) KL(q‖m), m = w p + (1-w) q.

    f(u) = w u log u - (w u + 1 - w) log(w u + 1 - w).
    """

    weight: ArrayLike

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
        log_m, p_over_m, q_over_m = numerics.log_mixture(log_p, log_q, t, self.weight)
        of_p, of_q = _kl_term(log_p, log_m, p_over_m), _kl_term(log_q, log_m, q_over_m)
        return self.weight * of_p + (1 - self.weight) * of_q

    def perspective_p(self, log_p, log_q, t):
        """`w p log(p/m)`."""
        _, p_over_m, _ = numerics.log_mixture(log_p, log_q, t, self.weight)
        return self.weight * jnp.exp(log_p) * p_over_m

    def perspective_q(self, log_p, log_q, t):
        """`(1 - w) q log(q/m)`."""
        _, _, q_over_m = numerics.log_mixture(log_p, log_q, t, self.weight)
        return (1 - self.weight) * jnp.exp(log_q) * q_over_m

    def shift(self, t, step):
        """`f' = w log(p/m)`, and w p/m is a logistic function of t."""
        return _logistic_shift(t, step / self.weight, lambda y, step: y + step, 1 - self.weight)


@row
class SkewKL(Generator):
    """Skew Kullback-Leibler with skew s: KL(p‖(1-s) p + s q); f(u) = u log(u / ((1-s) u + s))."""

    skew: ArrayLike

    at_zero = property(lambda self: self.skew)
    slope_at_zero = -jnp.inf
    slope_at_one = property(lambda self: self.skew)

    @property
    def slope_at_infinity(self):
        """-log(1 - s) - s."""
        return -jnp.log1p(-jnp.asarray(self.skew)) - self.skew

    def perspective(self, log_p, log_q, t):
        """`p log(p/m) - p + m`."""
        log_m, p_over_m, _ = numerics.log_mixture(log_p, log_q, t, 1 - self.skew)
        return _kl_term(log_p, log_m, p_over_m)

    def perspective_p(self, log_p, log_q, t):
        """`p log(p/m) - (1 - s) p (p - m)/m`."""
        _, p_over_m, _ = numerics.log_mixture(log_p, log_q, t, 1 - self.skew)
        return jnp.exp(log_p) * (p_over_m - (1 - self.skew) * jnp.expm1(p_over_m))

    def perspective_q(self, log_p, log_q, t):
        """`-s q (p - m)/m`."""
        _, p_over_m, _ = numerics.log_mixture(log_p, log_q, t, 1 - self.skew)
        return -self.skew * jnp.exp(log_q) * jnp.expm1(p_over_m)

    def customary(self, log_p, log_q, t):
        """`p log(p/m)`."""
        _, p_over_m, _ = numerics.log_mixture(log_p, log_q, t, 1 - self.skew)
        return jnp.exp(log_p) * p_over_m

    def shift(self, t, step):
        """`f'(inf) - f' = e^y - 1 - y` with `y = log((1-s) p/m)`."""

        def move(y, step):
            rest = numerics.exp_residual(y) - step
            return jnp.where(rest > 0, numerics.exp_residual_root(jnp.maximum(rest, 0)), 0)

        return _logistic_shift(t, step, move, self.skew)


def _logistic_shift(t: Array, step: Array, move: Callable, other: ArrayLike) -> Array:
    """The t' that `move` reaches on the scale `y = -softplus(k - t)`, `k = log(other/(1-other))`.

    On that scale y < 0 and y -> 0 as t -> inf, so nothing is lost where the slope saturates.
    """
    k = jnp.log(jnp.asarray(other, t.dtype)) - jnp.log1p(-jnp.asarray(other, t.dtype))
    y = move(-jax.nn.softplus(k - t), step)
    inside = y < 0
    moved = k - numerics.log_expm1(-jnp.where(inside, y, -1))
    # A step down cannot lead to infinity: where y underflows, the log-ratio stays.
    return jnp.where(inside, moved, jnp.where(step > 0, jnp.inf, t))


@row
class TotalVariation(Generator):
    """Total variation, half the L1 distance: f(u) = |u - 1| / 2."""

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

    def shift(self, t, step):
        """`f' = sign(t) / 2`: no function has this inverse, so u = 1 inside (-1/2, 1/2)."""
        s = jnp.sign(t) / 2 + step
        return jnp.where(jnp.abs(s) <= 0.5, 0, jnp.inf * jnp.sign(s))

    def conjugate(self, s):
        """`max(s, -1/2)` up to s = 1/2, then inf."""
        return jnp.where(s > 0.5, jnp.inf, jnp.maximum(s, -0.5))


@row
class LeCam(Generator):
    """Le Cam (triangular discrimination): f(u) = (u - 1)^2 / (2 (u + 1))."""

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

    def shift(self, t, step):
        """`f' = 1/2 - 2 / (1 + u)^2`."""
        square = jax.nn.sigmoid(-t) ** 2 - step / 2
        inside = (square > 0) & (square < 1)
        share = jnp.sqrt(jnp.where(inside, square, 0.25))  # q/(p + q)
        moved = jnp.log1p(-share) - jnp.log(share)
        outside = jnp.where(square >= 1, -jnp.inf, jnp.inf)
        return jnp.where(inside, moved, outside)


# ------------------------------------------------------------------------------------ rows by name


def kl() -> Generator:
    """KL(p‖q). See `KL`."""
    return KL()


def reverse_kl() -> Generator:
    """KL(q‖p). See `ReverseKL`."""
    return ReverseKL()


def jeffreys() -> Generator:
    """KL(p‖q) + KL(q‖p). See `Jeffreys`."""
    return Jeffreys()


def jensen_shannon(weight: ArrayLike = 0.5) -> Generator:
    """Jensen-Shannon; 0 < weight < 1 is that of p. See `JensenShannon`."""
    return JensenShannon(checks.in_range("weight", weight, 0, 1, "between 0 and 1, exclusive"))


def skew_kl(skew: ArrayLike = 0.1) -> Generator:
    """KL(p‖(1-skew) p + skew q), 0 < skew < 1. See `SkewKL`."""
    return SkewKL(checks.in_range("skew", skew, 0, 1, "between 0 and 1, exclusive"))


def total_variation() -> Generator:
    """Half the L1 distance. See `TotalVariation`."""
    return TotalVariation()


def squared_hellinger() -> Generator:
    """One minus the Bhattacharyya coefficient: f(u) = 1 - sqrt(u), a quarter of alpha = 1/2."""
    return Power(0.5, 0.25, slope_at_one=-0.5)


def pearson_chi2() -> Generator:
    """sum (p - q)^2 / q: f(u) = (u - 1)^2, twice alpha = 2."""
    return Power(2.0, 2.0)


def neyman_chi2() -> Generator:
    """sum (p - q)^2 / p: f(u) = (u - 1)^2 / u, twice alpha = -1."""
    return Power(-1.0, 2.0)


def le_cam() -> Generator:
    """sum (p - q)^2 / (2 (p + q)). See `LeCam`."""
    return LeCam()


def alpha(alpha: ArrayLike = 0.5) -> Generator:
    """Cressie-Read: f(u) = (u^a - a u + a - 1)/(a (a-1)); kl at 1, reverse_kl at 0. See `Power`."""
    return Power(checks.in_range("alpha", alpha, -jnp.inf, jnp.inf, "a finite number"))


def tsallis(q_index: ArrayLike = 2.0) -> Generator:
    """Tsallis: f(u) = (u^q - u)/(q - 1), q times alpha = q; kl at 1, pearson_chi2 at 2."""
    q = checks.positive("q_index", q_index)
    return Power(q, q, slope_at_one=1.0)


TABLE: dict[str, Callable[..., Generator]] = {
    make.__name__: make
    for make in (
        kl,
        reverse_kl,
        jeffreys,
        jensen_shannon,
        skew_kl,
        total_variation,
        squared_hellinger,
        pearson_chi2,
        neyman_chi2,
        le_cam,
        alpha,
        tsallis,
    )
}


def get(name: str, **parameters: ArrayLike) -> Generator:
    """The row of this name, with its parameters.

    >>> print(f"{get('alpha', alpha=2.0).slope(jnp.log(3.0)):.4f}")
    2.0000
    >>> get("jensen_shanon")
    Traceback (most recent call last):
    ValueError: name must be a generator, got 'jensen_shanon'; did you mean 'jensen_shannon'?
    """
    if name not in TABLE:
        near = difflib.get_close_matches(name, TABLE, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"there are {', '.join(TABLE)}"
        )
        raise ValueError(f"name must be a generator, got {name!r}; {hint}")
    taken = TABLE[name].__code__.co_varnames[: TABLE[name].__code__.co_argcount]
    for parameter in parameters:
        if parameter not in taken:
            allowed = f"it takes {', '.join(taken)}" if taken else "it takes none"
            raise TypeError(f"{parameter} is not a parameter of {name}: {allowed}")
    return TABLE[name](**parameters)
