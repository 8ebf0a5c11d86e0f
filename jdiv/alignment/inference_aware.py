"""Policies for what happens at inference: the best or the worst of n of their draws is used.

The objective is the win rate W of the best (worst) of n draws of the policy against the best
(worst) of n draws of the reference, `W(pi) - beta D(pi‖ref)`. Only the order of rewards counts. The
optimum is a common tilt for the reward that W has for slope there (`best_of_n_transform`), so it is
a fixed point, found by `aligned` at a temperature and by `aligned_to` at a divergence.

Answers are finite, and may tie. A reward without ties is, on its quantile u in [0, 1],
the finite set of `quantiles`: cells, exact up to the square of their width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.alignment import best_of_n, tilts
from jdiv.divergences import categorical
from jdiv.divergences.generator import Generator
from jdiv.types import Logits, LogPolicy, Probs, Values

# ------------------------------------------------------------------------------ calibrated rewards


def calibrated(rewards: Values, ref_logits: Logits) -> Values:
    """`C(y) = P(r(y) > r(z)) + P(r(y) = r(z))/2` for z of the reference: the reward's quantile.

    With draws of the reference that never tie it is uniform on [0, 1]. Shapes: `[..., n]` twice to
    the same.

    >>> calibrated(jnp.array([5.0, 7.0, 7.0]), jnp.log(jnp.array([0.5, 0.2, 0.3]))).tolist()
    [0.25, 0.75, 0.75]

    Reference: Balashankar et al. 2024 (arXiv:2412.19792), the calibrated reward.
    """
    of = best_of_n.ranks(rewards, ref_logits)
    return jnp.exp(of.log_at_most) - jnp.exp(of.log_tied) / 2


def log_transform(quantile: Values) -> Values:
    """`log u`: with KL the tilt by it is the law of the best of `1 + 1/beta` draws.

    Shapes: any to the same; -inf at 0.
    """
    return jnp.log(_quantile(quantile))


def exponential_transform(quantile: Values, exponent: ArrayLike) -> Values:
    """`e^(t u)`, or `-e^(t u)` for a negative exponent t, for the best and for the worst of n.

    Shapes: any to the same.

    Reconstructed: the exponents 10 and -10 are from a note on the paper.
    Reference: Balashankar et al. 2024 (arXiv:2412.19792).
    """
    exponent = checks.finite("exponent", exponent)
    return jnp.sign(exponent) * jnp.exp(exponent * _quantile(quantile))


def _quantile(quantile: Values) -> Array:
    """Checked quantiles."""
    quantile = checks.as_float("quantile", quantile)
    return jnp.asarray(checks.in_range("quantile", quantile, 0, 1, "from 0 to 1", closed="both"))


def quantiles(cells: int, dtype: jnp.dtype | None = None) -> tuple[Values, Logits]:
    """Quantiles u of the reward at the middle of cells of [0, 1], and the logarithms of their mass.

    The cells lie between Chebyshev's points `(1 - cos(pi k/cells))/2`: optimal densities may rise
    steeply at an end, within `beta/n^2`. A policy has the density `exp(log_policy - log_ref)`.
    Shapes: `[cells]` twice.
    """
    if cells < 2:
        raise ValueError(f"cells must be at least 2, got {cells}")
    half = jnp.pi / (2 * cells)
    angle = half * (2 * jnp.arange(cells, dtype=dtype or jnp.result_type(float)) + 1)
    u = (1 - jnp.cos(angle) * jnp.cos(jnp.asarray(half, angle.dtype))) / 2
    return u, jnp.log(jnp.sin(angle)) + jnp.log(jnp.sin(jnp.asarray(half, u.dtype)))


# --------------------------------------------------------------------------------------- win rates


def single_draw_win_rate(rewards: Values, log_policy: LogPolicy, ref_logits: Logits) -> Array:
    """`P(r(y) > r(z)) + P(r(y) = r(z))/2` for y of the policy, z of the reference.

    Shapes: `[..., n]` thrice to `[...]`.
    """
    policy = jnp.exp(numerics.log_softmax(checks.as_float("log_policy", log_policy)))
    return jnp.sum(policy * calibrated(rewards, ref_logits), axis=-1)


def best_of_n_win_rate(
    rewards: Values, log_policy: LogPolicy, ref_logits: Logits, n: ArrayLike
) -> Array:
    """Probability that the best of n draws of the policy beats the best of n of the reference.

    On quantiles with F the policy's law it is `1 - n int F^n u^(n-1) du`; `(a + 1)/(a + 2)` for
    `F = u^(a+1)` and every n. Shapes: `[..., n]` thrice, the number of draws a number or `[...]`.

    Reference: Balashankar et al. 2024 (arXiv:2412.19792), the win rate of best of n.
    """
    mine, yours = (best_of_n.best_of_n(rewards, law, n) for law in (log_policy, ref_logits))
    return single_draw_win_rate(rewards, mine, yours)


def worst_of_n_win_rate(
    rewards: Values, log_policy: LogPolicy, ref_logits: Logits, n: ArrayLike
) -> Array:
    """Probability that the worst of n draws of the policy beats the worst of n of the reference.

    One minus `best_of_n_win_rate` of the opposite rewards; on quantiles
    `n int (1 - F)^n (1 - u)^(n-1) du`. Shapes as there.
    """
    opposite = -checks.as_float("rewards", rewards)
    return 1 - best_of_n_win_rate(opposite, log_policy, ref_logits, n)


def best_of_n_transform(
    rewards: Values, log_policy: LogPolicy, ref_logits: Logits, n: ArrayLike
) -> Array:
    """Slope of `best_of_n_win_rate` by the probabilities of the policy, 0 for the best answer.

    On quantiles `-n^2 int_u^1 F^(n-1) v^(n-1) dv`; here `-sum n F^(n-1) dC` over the answers from y
    upwards, with C calibrated on the best of n of the reference. At the optimum of the regularized
    win rate, a tilt by this is the policy itself. The identity, less 1, for n = 1.
    Shapes: `[..., n]` thrice, the number of draws a number or `[...]`, to `[..., n]`.

    Reference: Balashankar et al. 2024 (arXiv:2412.19792), derived here.
    """
    log_at_most = best_of_n.ranks(rewards, log_policy).log_at_most
    opponent = calibrated(rewards, best_of_n.best_of_n(rewards, ref_logits, n))
    draws = jnp.asarray(n).astype(opponent.dtype)[..., None]
    none = log_at_most == -jnp.inf
    power = jnp.exp((draws - 1) * jnp.where(none, 0, log_at_most))
    weight = draws * jnp.where(none & (draws > 1), 0, power)  # 0^0 = 1
    each = jnp.vectorize(_upwards, signature="(n),(n),(n)->(n)")
    return each(checks.as_float("rewards", rewards), weight, opponent)


def _upwards(rewards: Array, weight: Array, calibrated: Array) -> Array:
    """`-sum weight dC` over the steps of C above each answer; those between tied answers are 0."""
    order = jnp.argsort(rewards)
    steps = weight[order][:-1] * jnp.diff(calibrated[order])
    above = jax.lax.cumsum(steps, reverse=True)
    return jnp.zeros_like(weight).at[order[:-1]].set(-above)


def worst_of_n_transform(
    rewards: Values, log_policy: LogPolicy, ref_logits: Logits, n: ArrayLike
) -> Array:
    """Slope of `worst_of_n_win_rate`, 0 for the worst answer: minus that of opposite rewards.

    On quantiles, up to a constant, `-n^2 int_u^1 (1 - F)^(n-1) (1 - v)^(n-1) dv`. Shapes as there.
    """
    opposite = -checks.as_float("rewards", rewards)
    return -best_of_n_transform(opposite, log_policy, ref_logits, n)


# ------------------------------------------------------------------------------------------ optimum

Transform = Callable[[Array], Array]
"""From a log-policy to the reward that is the slope of its objective."""


class AlignedPolicy(NamedTuple):
    """A policy that is the tilt by its own transformed reward, with the evidence that it is.

    Fields:
        log_policy: `[n]` log-probabilities.
        transformed: `[n]` the reward whose tilt the policy is.
        beta: `[]` the temperature of the tilt.
        divergence: `[]` `D(pi‖ref)`.
        residual: `[]` distance of this reward from the one that the policy asks for: mean absolute
            deviation of the difference under the policy, in units of beta.
        iterations: `[]` rounds.
        converged: `[]` whether the residual is rounding.
    """

    log_policy: Array
    transformed: Array
    beta: Array
    divergence: Array
    residual: Array
    iterations: Array
    converged: Array


def aligned(
    transform: Transform,
    ref_logits: Logits,
    beta: ArrayLike,
    *,
    generator: Generator,
    iterations: int = 500,
) -> AlignedPolicy:
    """The fixed point `pi = tilted(transform(pi), ref, beta)`, the stationary regularized win rate.

    `transform` is `best_of_n_transform` or `worst_of_n_transform` of all but the policy. For the
    best of n the objective is concave, and its stationary point the optimum. For the worst of n the
    win rate is convex, each full round ascends, and the point is one to which the reference leads.
    A round goes the share of the way that the last one suggests (the secant, as of Barzilai and
    Borwein 1988), at most all of it; one that overshoots is taken back and halved.
    Shapes: ref_logits `[n]`, beta a number; vmap for more.

    >>> from jdiv import generators
    >>> u, ref = quantiles(100)
    >>> slope = lambda log_policy: best_of_n_transform(u, log_policy, ref, 4)
    >>> policy = aligned(slope, ref, 0.1, generator=generators.kl())
    >>> policy.converged.item(), f"{best_of_n_win_rate(u, policy.log_policy, ref, 4):.3f}"
    (True, '0.931')

    Reference: Balashankar et al. 2024 (arXiv:2412.19792); the iteration is derived here.
    """
    beta = checks.positive("beta", beta)

    def respond(reward: Array) -> tuple[Array, Array]:
        found = tilts.tilted(reward, ref_logits, beta, generator=generator)
        return found.log_policy, jnp.asarray(beta, reward.dtype)

    return _fixed_point(transform, respond, ref_logits, generator, iterations)


def aligned_to(
    transform: Transform,
    ref_logits: Logits,
    budget: ArrayLike,
    *,
    generator: Generator,
    iterations: int = 500,
) -> AlignedPolicy:
    """The fixed point with `D(pi‖ref) = budget`: stationary among policies within the divergence.

    As `aligned`, with a temperature that spends the budget in every round. Shapes: ref_logits
    `[n]`, budget a number; vmap for more.

    Reference: Balashankar et al. 2024 (arXiv:2412.19792); the iteration is derived here.
    """
    budget = checks.positive("budget", budget)

    def respond(reward: Array) -> tuple[Array, Array]:
        found = tilts.tilted_to(reward, ref_logits, budget, generator=generator)
        return found.log_policy, found.beta

    return _fixed_point(transform, respond, ref_logits, generator, iterations)


class _Round(NamedTuple):
    """State of the iteration: a reward, its tilt, and what the tilt's own reward has more."""

    reward: Array
    missing: Array
    slope: Array
    log_policy: Array
    beta: Array
    residual: Array
    converged: Array


def _fixed_point(
    transform: Transform,
    respond: Callable[[Array], tuple[Array, Array]],
    ref_logits: Logits,
    generator: Generator,
    iterations: int,
) -> AlignedPolicy:
    """Ascent: the slope of the objective along a change of the reward is the covariance with it."""
    checks.in_range("iterations", iterations, 1, jnp.inf, "at least 1", closed="low")
    log_ref = numerics.log_softmax(checks.as_float("ref_logits", ref_logits))

    def look(reward: Array) -> _Round:
        log_policy, beta = respond(reward)
        missing, policy = transform(log_policy) - reward, jnp.exp(log_policy)
        residual = jnp.sum(policy * jnp.abs(missing - jnp.sum(policy * missing))) / beta
        # Rewards are rounded, and so is their spread over the answers that matter.
        rounding = 64 * jnp.finfo(reward.dtype).eps * (1 + jnp.sum(policy * jnp.abs(reward)) / beta)
        slope = _covariance(policy, missing, missing)
        return _Round(reward, missing, slope, log_policy, beta, residual, residual <= rounding)

    def unfinished(state):
        at, _, iteration = state
        return ~at.converged & (iteration < iterations)

    def step(state):
        at, share, iteration = state
        moved = share * at.missing
        then = look(at.reward + moved)
        policy, change = jnp.exp(then.log_policy), then.missing - at.missing
        ascends = _covariance(policy, at.missing, then.missing) >= -at.slope / 2
        fall = -_covariance(policy, moved, change)
        square = _covariance(policy, change, change)
        usable = (fall > 0) & (fall < square)
        secant = jnp.where(usable, fall / jnp.where(usable, square, 1), 1)
        at = jax.tree.map(lambda new, old: jnp.where(ascends, new, old), then, at)
        return at, jnp.where(ascends, secant, share / 2), iteration + 1

    start = look(transform(log_ref))
    state = start, jnp.ones_like(start.residual), jnp.ones((), jnp.int32)
    found, _, rounds = jax.lax.while_loop(unfinished, step, state)
    return AlignedPolicy(
        log_policy=found.log_policy,
        transformed=found.reward,
        beta=found.beta,
        divergence=categorical.f_divergence(generator, found.log_policy, log_ref),
        residual=found.residual,
        iterations=rounds,
        converged=found.converged,
    )


def _covariance(policy: Probs, x: Array, y: Array) -> Array:
    """Covariance of two rewards under a policy."""
    x, y = (z - jnp.sum(policy * z) for z in (x, y))
    return jnp.sum(policy * x * y)
