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
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import lu_factor, lu_solve
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.divergences.generator import Generator, checked_row
from jdiv.regularized import greedy
from jdiv.types import Logits, Preference, RandomKey, Values

# ---------------------------------------------------------------------------------------- matrices


def checked(preference: Preference) -> Array:
    """The matrix as an array, `[..., n, n]`; refuses one that is no preference.

    A traced one that is none becomes NaN.

    >>> checked(jnp.array([[0.5, 0.7], [0.4, 0.5]]))
    Traceback (most recent call last):
    ValueError: preference must have P + P^T = 1, it is 0.1 away
    """
    preference = checks.as_float("preference", preference)
    shape = preference.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or not shape[-1]:
        raise ValueError(f"preference must be of shape [..., n, n], got {shape}")
    if isinstance(preference, jax.core.Tracer):
        away = jnp.abs(preference + jnp.swapaxes(preference, -1, -2) - 1)
        good = (preference >= 0) & (preference <= 1) & (away <= 8 * jnp.finfo(preference.dtype).eps)
        return jnp.where(jnp.all(good, axis=(-1, -2), keepdims=True), preference, jnp.nan)
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
    if isinstance(skew, jax.core.Tracer):
        # A compiled program may round the two sides of the diagonal differently.
        sums = jnp.abs(skew + jnp.swapaxes(skew, -1, -2))
        most = jnp.max(jnp.abs(skew), axis=(-1, -2), keepdims=True)
        even = jnp.max(sums, axis=(-1, -2), keepdims=True) <= 8 * jnp.finfo(skew.dtype).eps * most
        skew = jnp.where(even, skew, jnp.nan)
    elif np.any(skew + np.swapaxes(skew, -1, -2) != 0):
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
    scale, skew = checks.not_negative("scale", scale), checks.not_negative("skew", skew)
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
    beta = checks.positive("beta", beta)
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

    P is antisymmetric but for a constant, so this is a monotone problem, which an interior-point
    method (`_interior`) solves for every row and beta. What it finds is polished by Newton's method
    for the win rates v of the answers, `v = P greedy(v)`, whose matrix `I - P J`, J the symmetric
    derivative of `greedy`, has eigenvalues `1 + i x` and is never singular. On random games of 3
    and of 20 answers it converges in double precision for beta from 1e-4 to 1, in single precision
    from 1e-2. Rounding of v moves log-policies by `eps / beta`: `converged` and the gap tell.
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
    beta = jnp.asarray(checks.positive("beta", beta), log_ref.dtype)
    game = preference, log_ref, beta, generator

    def missing(values: Array) -> Array:
        best = greedy(values, log_ref, beta, generator=generator).log_policy
        return values - answer_win_rates(best, preference)

    values, (residual, iterations) = jax.lax.custom_root(
        missing,
        jnp.full_like(log_ref, 0.5),
        lambda _, start: _solved(jax.lax.stop_gradient(game)),
        lambda f, y: jnp.linalg.solve(jax.jacfwd(f)(y), y),
        has_aux=True,
    )
    log_policy = greedy(values, log_ref, beta, generator=generator).log_policy
    gap = regularized_exploitability(log_policy, preference, log_ref, beta, generator=generator)
    gap, residual, iterations = jax.lax.stop_gradient((gap, residual, iterations))
    eps = jnp.finfo(gap.dtype).eps
    # Rounding of v moves policies, by eps/beta and more where the slope saturates; the gap only by
    # the square of that.
    converged = (jnp.abs(gap) <= 16 * eps) & (residual <= eps**0.5)
    return Equilibrium(log_policy, gap, residual, iterations.astype(jnp.int32), converged)


class _Interior(NamedTuple):
    """A primal-dual point of the interior-point method, or a step from one.

    Fields:
        mass: `[n]` pi, positive where the reference is.
        price: `[n]` multipliers of `pi >= 0`.
        level: `[]` the multiplier of `sum pi = 1`.
    """

    mass: Array
    price: Array
    level: Array


def _interior(game: tuple) -> tuple[_Interior, Array]:
    """`A pi - beta f'(pi/ref) + price = level`, `price pi = 0`, and the steps to it.

    A is P without its constant. Mehrotra's predictor and corrector, with one length for all
    variables; ends when the gap and all errors are rounding.

    Reference: Mehrotra 1992; Wright 1997, Primal-dual interior-point methods, chapters 8 and 10.
    """
    preference, log_ref, beta, generator = game
    inside = log_ref != -jnp.inf
    count = jnp.sum(inside.astype(log_ref.dtype))
    skew = (preference - preference.T) / 2

    def errors(at: _Interior) -> tuple[Array, Array, Array]:
        """What is missing in the first equation, and in the sum; the steepness of f'."""
        t = jnp.where(inside, jnp.log(jnp.where(inside, at.mass, 1)) - log_ref, 0)
        slope, steepness = jax.jvp(generator.slope, (t,), (jnp.ones_like(t),))
        payoff = jnp.matmul(skew, at.mass, precision="highest")
        missing = payoff - beta * slope + at.price - at.level
        return jnp.where(inside, missing, 0), 1 - jnp.sum(at.mass), steepness

    def newton(at: _Interior) -> Callable[[ArrayLike, ArrayLike], _Interior]:
        missing, rest, steepness = errors(at)
        mass = jnp.where(inside, at.mass, 1)
        gain = jnp.where(inside, jnp.sqrt(mass / (beta * steepness + at.price)), 0)
        system = jnp.eye(len(gain), dtype=gain.dtype) - gain[:, None] * skew * gain[None]
        factors = lu_factor(system)
        by_level = lu_solve(factors, gain)

        def step(target: ArrayLike, second_order: ArrayLike) -> _Interior:
            complement = jnp.where(inside, target - at.mass * at.price - second_order, 0)
            plain = lu_solve(factors, gain * (missing + complement / mass))
            level = (gain @ plain - rest) / (gain @ by_level)
            change = gain * (plain - level * by_level)
            return _Interior(change, (complement - at.price * change) / mass, level)

        return step

    def step(state):
        at, _, iteration = state
        direction = newton(at)
        affine = direction(0.0, 0.0)
        predicted, gap = _moved(at, affine, 1.0), at.mass @ at.price
        target = (predicted.mass @ predicted.price / gap) ** 3 * gap / count
        at = _moved(at, direction(target, affine.mass * affine.price), 0.995)
        missing, rest, _ = errors(at)
        # What little mass misses does not count: it is for `greedy` to find.
        return at, at.mass @ (at.price + jnp.abs(missing)) + jnp.abs(rest), iteration + 1

    def unfinished(state):
        _, error, iteration = state
        return (error > 16 * jnp.finfo(beta.dtype).eps * (1 + beta)) & (iteration < 100)

    even = inside.astype(log_ref.dtype)
    start = _Interior(even / count, (1 + beta) * even, jnp.zeros_like(beta))
    state = start, jnp.full_like(beta, jnp.inf), jnp.zeros((), jnp.int32)
    at, _, iterations = jax.lax.while_loop(unfinished, step, state)
    return at, iterations


def _moved(at: _Interior, move: _Interior, share: float) -> _Interior:
    """The point after the move, or a part of it: what must stay positive loses at most a share."""
    pairs = ((at.mass, move.mass), (at.price, move.price))
    lost = [jnp.max(jnp.where(dx < 0, -dx / jnp.where(dx < 0, x, 1), 0)) for x, dx in pairs]
    length = jnp.minimum(1, share / jnp.maximum(jnp.maximum(*lost), share))
    return jax.tree.map(lambda x, dx: x + length * dx, at, move)


def _solved(game: tuple) -> tuple[Array, tuple[Array, Array]]:
    """The win rates at the equilibrium, with the evidence."""
    at, before = _interior(game)
    values = jnp.matmul(game[0], at.mass / jnp.sum(at.mass), precision="highest")
    values, (residual, iterations) = _halving_newton(game, values)
    # Evidence travels as floats: custom_root wants to differentiate it.
    return values, (residual, (iterations + before).astype(values.dtype))


def _halving_newton(game: tuple, start: Array) -> tuple[Array, tuple[Array, Array]]:
    """Newton's method, each step the best of its lengths 1, 1/2, 1/4, ... until none helps."""
    preference, log_ref, beta, generator = game
    lengths = 0.5 ** jnp.arange(16, dtype=start.dtype)

    def evaluate(values):
        """The distance of v from P greedy(v), and Newton's step."""
        best = greedy(values, log_ref, beta, generator=generator)
        missing = values - answer_win_rates(best.log_policy, preference)
        kept = best.log_policy != -jnp.inf
        # The slope's steepness where the policy is: exact, too, where the slope saturates.
        t = jnp.where(kept, best.log_policy - log_ref, 0)
        _, steepness = jax.jvp(generator.slope, (t,), (jnp.ones_like(t),))
        weight = jnp.where(kept, jnp.exp(best.log_policy) / (beta * steepness), 0)
        derivative = jnp.diag(weight) - jnp.outer(weight, weight) / jnp.sum(weight)
        identity = jnp.eye(len(values), dtype=values.dtype)
        matrix = identity - jnp.matmul(preference, derivative, precision="highest")
        return missing, jnp.linalg.solve(matrix, missing)

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
    state = (
        start,
        zero,
        jnp.full_like(start, jnp.nan),
        jnp.full((), jnp.inf, start.dtype),
        true,
        jnp.zeros((), jnp.int32),
    )
    x, _, missing, *_, iterations = jax.lax.while_loop(improving, step, state)
    return x, (jnp.max(jnp.abs(missing)), iterations)
