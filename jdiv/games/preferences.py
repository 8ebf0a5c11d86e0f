"""Preference games on finite answer sets: matrices, exploitability, regularized equilibria.

`preference[a, b]` is the probability that answer a beats b, and two players choose answers to win:
a symmetric game of value 1/2. With a penalty each player has the payoff

    P(pi, other) - beta D(pi‖ref) + beta D(other‖ref)

and for a strictly convex row of the table one equilibrium, the same policy for both players. It is
`greedy` against its own answers: `pi = argmax <., P pi> - beta D(.‖ref)`. The gain of a best
response, the regularized exploitability, is 0 there and positive elsewhere: a certificate for any
policy, wherever it comes from.

Arguments come in the order `(log_policy, preference, ref_logits)`; policies need not be
normalized, every function does that.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.divergences.generator import Generator, checked_row
from jdiv.regularized import greedy
from jdiv.types import Logits, Preference, RandomKey, Values

# ---------------------------------------------------------------------------------------- matrices


def checked(preference: Preference) -> Array:
    """The matrix as an array, `[..., n, n]`; refuses one that is no preference.

    Values are looked at where they are known, not under jit.

    >>> checked(jnp.array([[0.5, 0.7], [0.4, 0.5]]))
    Traceback (most recent call last):
    ValueError: preference must have P + P^T = 1, it is 0.1 away
    """
    preference = checks.as_float("preference", preference)
    shape = preference.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or not shape[-1]:
        raise ValueError(f"preference must be of shape [..., n, n], got {shape}")
    if not isinstance(preference, jax.core.Tracer):
        p = np.asarray(preference)
        if not np.all((p >= 0) & (p <= 1)):
            raise ValueError(f"preference must be in [0, 1], got {p.min():g} to {p.max():g}")
        away = np.abs(p + np.swapaxes(p, -1, -2) - 1).max()
        if away > 8 * jnp.finfo(p.dtype).eps:
            raise ValueError(f"preference must have P + P^T = 1, it is {away:.3g} away")
    return preference


def rock_paper_scissors() -> Array:
    """`[3, 3]`: 1 beats 0, 2 beats 1, 0 beats 2.

    >>> print(answer_win_rates(jnp.array([0.0, -jnp.inf, -jnp.inf]), rock_paper_scissors()))
    [0.5 1.  0. ]
    """
    return jnp.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])


def sigmoid_game(scores: Values, skew: ArrayLike) -> Array:
    """`P = sigmoid(score_a - score_b + skew_ab)`: Bradley-Terry where the skew is 0.

    Shapes: scores `[..., n]`, skew `[..., n, n]` with `skew + skew^T = 0`, to `[..., n, n]`.
    """
    scores, skew = checks.as_float("scores", scores), checks.as_float("skew", skew)
    if skew.shape != (*scores.shape, *scores.shape[-1:]):
        raise ValueError(
            f"skew must be of shape {(*scores.shape, *scores.shape[-1:])}, got {skew.shape}"
        )
    if not isinstance(skew, jax.core.Tracer) and np.any(skew + np.swapaxes(skew, -1, -2) != 0):
        raise ValueError("skew must have skew + skew^T = 0")
    return jax.nn.sigmoid(scores[..., :, None] - scores[..., None, :] + skew.astype(scores.dtype))


def random_game(
    actions: int, key: RandomKey, *, scale: ArrayLike = 1.0, skew: ArrayLike = 1.0
) -> Array:
    """A sigmoid game of normal scores and of a normal antisymmetric skew, `[actions, actions]`.

    `scale` and `skew` are their standard deviations; without skew the game has a best answer.
    """
    if actions < 1:
        raise ValueError(f"actions must be at least 1, got {actions}")
    of_scores, of_skew = jax.random.split(key)
    upper = jnp.triu(jax.random.normal(of_skew, (actions, actions)), 1)
    return sigmoid_game(scale * jax.random.normal(of_scores, (actions,)), skew * (upper - upper.T))


# -------------------------------------------------------------------------------------- win rates


def _matched(preference: Preference, **policies: Logits) -> list[Array]:
    """The checked matrix and normalized policies, in one precision, of one number of answers."""
    preference = checked(preference)
    policies = {name: checks.as_float(name, x) for name, x in policies.items()}
    dtype = functools.reduce(jnp.promote_types, (x.dtype for x in (preference, *policies.values())))
    for name, x in policies.items():
        if x.shape[-1:] != preference.shape[-1:]:
            raise ValueError(
                f"{name} must have the {preference.shape[-1]} answers of preference, got shape"
                f" {x.shape}"
            )
    logs = (numerics.log_softmax(x.astype(dtype)) for x in policies.values())
    return [preference.astype(dtype), *logs]


def answer_win_rates(log_opponent: Logits, preference: Preference) -> Values:
    """`P pi'`: the probability of each answer to beat the opponent.

    Shapes: `[..., n]` and `[..., n, n]`, to `[..., n]`.
    """
    preference, log_opponent = _matched(preference, log_opponent=log_opponent)
    return jnp.einsum("...ab,...b->...a", preference, jnp.exp(log_opponent), precision="highest")


def win_rate(log_policy: Logits, preference: Preference, log_opponent: Logits) -> Array:
    """`<pi, P pi'>`: the probability of the policy to beat the opponent.

    Shapes: `[..., n]`, `[..., n, n]` and `[..., n]`, to `[...]`.
    """
    preference, log_policy, log_opponent = _matched(
        preference, log_policy=log_policy, log_opponent=log_opponent
    )
    return jnp.sum(jnp.exp(log_policy) * answer_win_rates(log_opponent, preference), axis=-1)


def exploitability(log_policy: Logits, preference: Preference) -> Array:
    """`max_a (P pi)_a - 1/2`: the gain of the best answer against the policy, 0 to 1/2.

    Twice that is the duality gap. Shapes: `[..., n]` and `[..., n, n]`, to `[...]`.
    """
    return jnp.max(answer_win_rates(log_policy, preference), axis=-1) - 0.5


def regularized_exploitability(
    log_policy: Logits,
    preference: Preference,
    ref_logits: Logits,
    beta: ArrayLike,
    *,
    generator: Generator,
) -> Array:
    """`max_pi' P(pi', pi) - beta D(pi'‖ref) - (1/2 - beta D(pi‖ref))`, 0 at the equilibrium only.

    At least `beta` times the Bregman divergence, by D, from the policy to its best response; for KL
    it is `beta KL(pi‖best response)`. Infinite where D is. Shapes: `[..., n]`, `[..., n, n]` and
    `[..., n]`, beta a number or `[...]`, to `[...]`.

    Reference: Munos et al. 2023 (arXiv:2312.00886), the regularized game; any row for its KL.
    """
    preference, log_policy, log_ref = _matched(
        preference, log_policy=log_policy, ref_logits=ref_logits
    )
    best = greedy(
        answer_win_rates(log_policy, preference), log_ref, beta, generator=generator
    ).value
    penalty = categorical.f_divergence(generator, log_policy, log_ref)
    return best - 0.5 + jnp.asarray(beta, best.dtype) * penalty


# ------------------------------------------------------------------------------------- equilibrium


class Equilibrium(NamedTuple):
    """Equilibrium of the regularized game, with the evidence that it is one.

    Fields:
        log_policy: `[n]` log-probabilities.
        gap: `[]` its regularized exploitability: the most that any other policy could gain.
        residual: `[]` `max |v - P greedy(v)|`, v the win rates that the policy is greedy for.
        iterations: `[]` steps of Newton's method.
        converged: `[]` whether the gap is zero up to rounding of the payoffs.
    """

    log_policy: Array
    gap: Array
    residual: Array
    iterations: Array
    converged: Array


def nash(
    preference: Preference, ref_logits: Logits, beta: ArrayLike, *, generator: Generator
) -> Equilibrium:
    """The equilibrium: no policy beats it by more than the difference of their penalties.

    Newton's method for the win rates v of the answers, `v = P greedy(v)`. Its matrix `I - P J`, J
    the symmetric derivative of `greedy`, has eigenvalues `1 + i x`: P is antisymmetric but for a
    constant, which J does not see. So it is never singular, and a step shortened until the residual
    falls always exists where `greedy` is smooth. Rows that drop answers have kinks, where it may
    stall; `converged` tells (on random games of 20 answers not before beta is below .01).
    Differentiable in all arguments. Shapes:
    `[n, n]`, `[n]`, a number; vmap over games. Not for total variation, with several equilibria.

    >>> from jdiv import generators
    >>> found = nash(rock_paper_scissors(), jnp.zeros(3), 0.1, generator=generators.kl())
    >>> [f"{p:.4f}" for p in jnp.exp(found.log_policy)], bool(found.converged)
    (['0.3333', '0.3333', '0.3333'], True)

    Reference: Munos et al. 2023 (arXiv:2312.00886), the regularized game, for KL; the solver is
    derived here.
    """
    checked_row(generator, invertible=True)
    preference, log_ref = _matched(preference, ref_logits=ref_logits)
    if preference.ndim != 2 or log_ref.ndim != 1:
        raise ValueError(
            f"preference and ref_logits must be [n, n] and [n], got {preference.shape} and"
            f" {log_ref.shape}: vmap over games"
        )
    checks.positive("beta", beta)

    beta = jnp.asarray(beta, log_ref.dtype)
    game = preference, log_ref, beta, generator

    def missing(values: Array) -> Array:
        best = greedy(values, log_ref, beta, generator=generator).log_policy
        return values - answer_win_rates(best, preference)

    values, (residual, iterations) = jax.lax.custom_root(
        missing,
        jnp.full_like(log_ref, 0.5),
        lambda _, start: _halving_newton(jax.lax.stop_gradient(game), start),
        lambda f, y: jnp.linalg.solve(jax.jacfwd(f)(y), y),
        has_aux=True,
    )
    log_policy = greedy(values, log_ref, beta, generator=generator).log_policy
    gap = regularized_exploitability(log_policy, preference, log_ref, beta, generator=generator)
    gap, residual, iterations = jax.lax.stop_gradient((gap, residual, iterations))
    rounding = 16 * jnp.finfo(gap.dtype).eps
    return Equilibrium(log_policy, gap, residual, iterations.astype(jnp.int32), gap <= rounding)


def _halving_newton(game: tuple, start: Array) -> tuple[Array, tuple[Array, Array]]:
    """Newton's method, each step the best of its lengths 1, 1/2, 1/4, ... until none helps."""
    preference, log_ref, beta, generator = game
    lengths = 0.5 ** jnp.arange(16, dtype=start.dtype)

    def evaluate(values):
        """The distance of v from P greedy(v), and Newton's step."""
        best = greedy(values, log_ref, beta, generator=generator)
        missing = values - answer_win_rates(best.log_policy, preference)
        kept = best.log_policy > -jnp.inf
        slope = jnp.where(kept, (values - best.normalizer) / beta, 0)
        _, by_slope = jax.jvp(generator.inverse_slope, (slope,), (jnp.ones_like(slope),))
        weight = jnp.where(kept, jnp.exp(best.log_policy) * by_slope, 0) / beta
        derivative = jnp.diag(weight) - jnp.outer(weight, weight) / jnp.sum(weight)
        matrix = jnp.eye(len(values)) - jnp.matmul(preference, derivative, precision="highest")
        return missing, jnp.linalg.solve(matrix.astype(values.dtype), missing)

    def improving(state):
        *_, improved, iteration = state
        return improved & (iteration < 200)

    def step(state):
        x, move, _, size, _, iteration = state
        candidates = x[None] - lengths[:, None] * move[None]
        all_missing, moves = jax.vmap(evaluate)(candidates)
        sizes = jnp.sum(all_missing**2, axis=-1)
        best = jnp.argmin(sizes)
        new = candidates[best], moves[best], all_missing[best], sizes[best]
        better = sizes[best] < size
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), new, state[:4])
        return *kept, better, iteration + 1

    # The first step has length 0: it evaluates the start.
    zero, true = jnp.zeros_like(start), jnp.full((), True)
    state = start, zero, zero, jnp.full((), jnp.inf, start.dtype), true, jnp.zeros((), jnp.int32)
    x, _, missing, *_, iterations = jax.lax.while_loop(improving, step, state)
    # Evidence travels as floats: custom_root wants to differentiate it.
    return x, (jnp.max(jnp.abs(missing)), iterations.astype(x.dtype))
