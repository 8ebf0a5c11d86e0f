"""Rows made of rows of the table: weighted sums, and the chi2 plus KL of chi2-PO.

A sum is a row as any other: its divergence, greedy step, estimators and losses follow.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots
from jdiv.divergences.generators import KL, Generator, Jeffreys, TotalVariation, alpha, kl, row

Penalties = Sequence[tuple[ArrayLike, Generator]]
"""Weights and rows: `((0.1, generators.kl()), (0.1, generators.reverse_kl()))`."""


@row
class WeightedSum(Generator):
    """A weighted sum of rows, one of them kl or jeffreys, whose slopes take every value.

    Rows of weight zero do not count, traced ones too.
    """

    weights: tuple[ArrayLike, ...]
    rows: tuple[Generator, ...]

    def _sum(self, of: Callable[[Generator], ArrayLike]) -> ArrayLike:
        return sum(weight * of(one) for weight, one in zip(self.weights, self.rows, strict=True))

    at_zero = property(lambda self: self._sum(lambda one: one.at_zero))
    slope_at_zero = -jnp.inf
    slope_at_infinity = jnp.inf
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

    def shift(self, t, step):
        """Between the least and the most of what the rows do with all the weight.

        A bounded slope may have no answer to that; what an unbounded row does alone is enough.
        """
        t, step = jnp.broadcast_arrays(t, step)
        together = jnp.stack([one.shift(t, step / sum(self.weights)) for one in self.rows])
        low, high = jnp.min(together, axis=0), jnp.max(together, axis=0)
        for weight, one in zip(self.weights, self.rows, strict=True):
            if isinstance(one, KL | Jeffreys):
                alone = one.shift(t, step / jnp.where(weight > 0, weight, 1))
                counts = jnp.asarray(weight) > 0
                low = jnp.where(counts & (step < 0), jnp.maximum(low, alone), low)
                high = jnp.where(counts & (step > 0), jnp.minimum(high, alone), high)
        low, high = jax.lax.stop_gradient((low, high))
        target = self.slope(t) + step
        return roots.implicit(lambda x: self.slope(x) - target, (low + high) / 2, low, high).x


def weighted_sum(penalties: Penalties) -> Generator:
    """`sum_i w_i D_i` as one row, so that all that is made for a row has it.

    >>> from jdiv import generators
    >>> both = weighted_sum(((0.5, generators.kl()), (0.5, generators.reverse_kl())))
    >>> print(f"{both.slope(jnp.log(2.0)):.4f}")  # half of jeffreys: (log 2 + 1 - 1/2) / 2
    0.5966
    """
    weights, rows = zip(*penalties, strict=True)
    for weight in weights:
        if not isinstance(weight, jax.core.Tracer) and not 0 <= weight < jnp.inf:
            raise ValueError(f"weights must be non-negative and finite, got {weight}")
    if not any(isinstance(one, KL | Jeffreys) for one in rows):
        raise ValueError(
            "penalties must have kl or jeffreys among them, whose slopes are unbounded"
        )
    if any(isinstance(one, TotalVariation) for one in rows):
        raise TypeError("penalties must have slopes with an inverse, got total_variation")
    return WeightedSum(tuple(weights), tuple(rows))


@row
class Chi2KL(WeightedSum):
    """Half of Pearson's chi2 plus gamma KL: f(u) = (u^2 - 1)/2 + gamma (u log u - u + 1).

    Its slope before centring is chi2-PO's link `u + gamma log u`.
    """

    slope_at_one = 1.0

    def shift(self, t, step):
        """`f' = u - 1 + gamma log u`, whose inverse is Wright's omega."""
        gamma = jnp.asarray(self.weights[1], t.dtype)
        guess = log_inverse_link(jnp.exp(t) + gamma * t + step, gamma=gamma)
        # One Newton step on the slope itself restores the accuracy near t.
        move = guess - t
        error = jnp.exp(t) * jnp.expm1(move) + gamma * move - step
        return guess - error / (jnp.exp(guess) + gamma)


def chi2_kl(gamma: ArrayLike = 1.0) -> Generator:
    """Half of chi2 plus gamma KL. See `Chi2KL`."""
    checks.positive("gamma", gamma)
    return Chi2KL((1.0, gamma), (alpha(2.0), kl()))


def log_inverse_link(s: ArrayLike, *, gamma: ArrayLike = 1.0) -> Array:
    """`log z` of the z with `z + gamma log z = s`: for gamma 1, log W(e^s), W Lambert's.

    In logarithms: e^s overflows from 709 on. Shapes: any to the same.

    >>> print(f"{log_inverse_link(jnp.array(1.0)):.4f} {log_inverse_link(jnp.array(5000.0)):.4f}")
    0.0000 8.5155

    Reference: Huang et al. 2024 (arXiv:2407.13399), equation 8.
    """
    checks.positive("gamma", gamma)
    s = checks.as_float("s", s)
    gamma = jnp.asarray(gamma, s.dtype)
    return jnp.log(gamma) + numerics.log_wright_omega(s / gamma - jnp.log(gamma))
