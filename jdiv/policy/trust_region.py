"""Policy updates that stay near the old policy: TRPO, PPO, MPO, REPS and AWR.

What bounds the step: a divergence and a line search (`trpo_step`), a clip (`ppo_clip`), a penalty
whose coefficient adapts (`ppo_kl`), or the temperature of an exponential reweighting that solves
the dual of `KL <= radius` (`reweight`: REPS for bandits and the E-step of MPO; `reps`: with the
flows of a process). AWR has such weights at a temperature that is given.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import categorical, generators
from jdiv.estimators import monte_carlo
from jdiv.mdp import model, occupancy
from jdiv.mdp.model import AnyMdp
from jdiv.policy.group import TokenLoss, ppo_clip, tokens

__all__ = [
    "Mixed",
    "Penalised",
    "Reps",
    "Reweighted",
    "TrpoStep",
    "Weighted",
    "adapt_coefficient",
    "awr",
    "awr_weights",
    "mix",
    "mpo",
    "ppo_clip",
    "ppo_kl",
    "reps",
    "reweight",
    "trpo_step",
]

# ------------------------------------------------------------------------------------------- TRPO


class TrpoStep(NamedTuple):
    """A step inside the trust region, and what the line search saw."""

    parameters: Any
    """A pytree like the one that was given; the same one if no length was accepted."""
    gain: Array
    """`[]` of the surrogate."""
    divergence: Array
    """`[]` at most the radius."""
    length: Array
    """`[]` share of the full step that was taken; 0 if none."""
    residual: Array
    """`[]` `|F x - g| / |g|` of the direction."""


def trpo_step(
    surrogate: Callable[[Any], Array],
    divergence: Callable[[Any], Array],
    parameters: Any,
    radius: ArrayLike,
    *,
    damping: ArrayLike = 0.0,
    iterations: int = 10,
    shrink: float = 0.8,
    backtracks: int = 15,
) -> TrpoStep:
    """Maximises a surrogate where `divergence <= radius`: `sqrt(2 radius/(x'F x)) x`, `x = F^-1 g`.

    F is the Hessian of the divergence, which is 0 at the parameters, and x comes from conjugate
    gradients on `F + damping`. The first of `shrink^k`, k = 0, ..., backtracks, times the step that
    keeps within the radius and does not lose is taken. Both functions map a pytree of parameters to
    a number: `E_old[w A]`, and the mean of KL(old‖new) over states.

    Reference: Schulman et al. 2015 (arXiv:1502.05477), section 6 and appendix C; the sizes of the
    line search are ours.
    """
    if not 0 < shrink < 1:
        raise ValueError(f"shrink must be in (0, 1), got {shrink}")
    if iterations < 1 or backtracks < 0:
        raise ValueError(
            f"iterations must be at least 1 and backtracks at least 0, got {iterations} and"
            f" {backtracks}"
        )
    checks.positive("radius", radius)
    flat, unravel = jax.flatten_util.ravel_pytree(parameters)
    now, gradient = jax.value_and_grad(lambda x: surrogate(unravel(x)))(flat)
    _, hessian = jax.linearize(jax.grad(lambda x: divergence(unravel(x))), flat)

    def product(x: Array) -> Array:
        return hessian(x) + damping * x

    x = _conjugate_gradients(product, gradient, iterations)
    image = product(x)
    square, steepest = x @ image, jnp.sqrt(gradient @ gradient)
    flatness = steepest == 0
    scale = jnp.sqrt(2 * radius / jnp.where(square > 0, square, 1))
    full = jnp.where(square > 0, scale, 0) * x

    def tried(length: Array) -> tuple[Array, Array]:
        there = unravel(flat + length * full)
        return surrogate(there) - now, divergence(there)

    lengths = shrink ** jnp.arange(backtracks + 1, dtype=flat.dtype)
    gains, distances = jax.vmap(tried)(lengths)
    good = (gains >= 0) & (distances <= radius)
    first, found = jnp.argmax(good), jnp.any(good)
    # Where nothing is accepted the step may be NaN.
    there = jnp.where(found, flat + lengths[first] * full, flat)
    gain, distance, length = (jnp.where(found, x[first], 0) for x in (gains, distances, lengths))
    error = jnp.linalg.norm(image - gradient) / jnp.where(flatness, 1, steepest)
    return TrpoStep(unravel(there), gain, distance, length, error)


def _conjugate_gradients(product: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """`F^-1 b` for `product(x) = F x`, from 0.

    Rests where the residual is down to rounding and along directions that F does not see: further
    on it would go astray.

    Reference: Hestenes and Stiefel 1952.
    """
    rounding = (64 * jnp.finfo(b.dtype).eps) ** 2 * (b @ b)

    def step(_, state):
        x, residual, direction, square = state
        image = product(direction)
        curvature = direction @ image
        going = (square > rounding) & (curvature > 0)
        length = jnp.where(going, square / jnp.where(going, curvature, 1), 0)
        residual = residual - length * image
        following = residual @ residual
        turned = residual + jnp.where(going, following / jnp.where(going, square, 1), 0) * direction
        return x + length * direction, residual, jnp.where(going, turned, direction), following

    return jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b, b @ b))[0]


# -------------------------------------------------------------------------------------------- PPO


class Penalised(NamedTuple):
    """Of a penalised loss, each `[..., T]`, 0 where masked."""

    ratio: Array
    """`pi/pi_old`; its mean over tokens of the old policy is 1."""
    kl: Array
    """Estimate of KL(old‖new), not negative."""


def ppo_kl(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    coefficient: ArrayLike,
) -> TokenLoss:
    """PPO with a penalty, per token `-w A + coefficient KL(old‖new)`, w = pi/pi_old.

    Of KL it takes the estimate k3 from tokens of the old policy, `w - 1 - log w`, whose gradient is
    that of KL without more weights. Shapes: `[..., T]`, advantages also `[...]`.

    Reference: Schulman et al. 2017 (arXiv:1707.06347), equation 8; k3 for the exact KL there.
    """
    log_probs, mask, (old, advantages) = tokens(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    ratio = jnp.exp(log_probs - old)
    kl = monte_carlo.kl_k3(old, log_probs)
    loss = coefficient * kl - ratio * advantages
    kept = lambda x: jnp.where(mask, x, 0)
    return TokenLoss(kept(loss), Penalised(*map(kept, jax.lax.stop_gradient((ratio, kl)))))


def adapt_coefficient(coefficient: ArrayLike, kl: ArrayLike, target: ArrayLike) -> Array:
    """Twice the coefficient where `kl > 1.5 target`, half of it where `kl < target / 1.5`.

    >>> adapt_coefficient(1.0, jnp.array([0.5, 1.0, 2.0]), 1.0)
    Array([0.5, 1. , 2. ], dtype=float32)

    Reference: Schulman et al. 2017 (arXiv:1707.06347), section 4.
    """
    kl = checks.as_float("kl", kl)
    change = jnp.where(kl > 1.5 * target, 2.0, jnp.where(kl < target / 1.5, 0.5, 1.0))
    return (coefficient * change).astype(kl.dtype)


# -------------------------------------------------------------- exponential weights, by their dual


class Reweighted(NamedTuple):
    """`q ~ prior exp(value/temperature)`, with the evidence that it meets its radius."""

    log_policy: Array
    """`[..., n]`"""
    temperature: Array
    """`[]` the dual's solution; 0 where the radius does not bind."""
    divergence: Array
    """`[]` mean KL(q‖prior), the radius where it binds."""
    dual: Array
    """`[]` `temperature (radius + E log E_prior exp(value/temperature))`, which is E_q[value]."""
    active: Array
    """`[]` whether the radius binds: else even the best values alone are near enough."""


def reweight(
    values: ArrayLike,
    log_prior: ArrayLike,
    radius: ArrayLike,
    weights: ArrayLike | None = None,
) -> Reweighted:
    """`max E_q[values]` where the mean of KL(q‖prior) over rows is at most the radius.

    `q ~ prior exp(values/eta)` with one eta for all rows, the minimum of the dual
    `eta radius + eta E log E_prior exp(values/eta)`: REPS for a bandit (one row), the E-step of MPO
    (rows are states, prior the policy, or zeros for n samples of it). Solved by Newton's method on
    the logarithm of the KL. Shapes: values and log_prior `[..., n]`; weights of rows `[...]`, which
    sum to 1, by default all alike. Not to be differentiated: what comes out is constant.

    Reference: Peters, Muelling and Altun 2010 (REPS), the bandit case; Abdolmaleki et al. 2018
    (arXiv:1806.06920), equations 4 and 5.
    """
    values = checks.as_float("values", values)
    log_prior = checks.as_float("log_prior", log_prior)
    checks.same_shape(values=values, log_prior=log_prior)
    checks.positive("radius", radius)
    dtype = jnp.promote_types(values.dtype, log_prior.dtype)
    values, log_prior = jax.lax.stop_gradient((values.astype(dtype), log_prior.astype(dtype)))
    log_prior = numerics.log_softmax(log_prior)
    weights = _row_weights(weights, values)
    supported = log_prior != -jnp.inf
    best = jnp.max(jnp.where(supported, values, -jnp.inf), axis=-1, keepdims=True)
    drop = jnp.where(supported, values - best, 0)
    mean = lambda rows: jnp.sum(weights * rows)

    def excess(log_eta: Array):
        """`log(KL/radius)`, and `-d KL/d log eta = Var_q(value)/eta^2` of a row."""
        scaled = drop * jnp.exp(-log_eta)
        log_sum = jax.nn.logsumexp(log_prior + scaled, axis=-1, keepdims=True)
        log_q = log_prior + scaled - log_sum
        kl = mean(categorical.kl(log_q, log_prior))
        q = jnp.exp(log_q)
        centred = scaled - jnp.sum(q * scaled, axis=-1, keepdims=True)
        variance = mean(jnp.sum(q * centred**2, axis=-1))
        return jnp.log(kl / radius), -variance / kl, (log_q, kl, log_sum[..., 0])

    # KL(q‖prior) <= (range/eta)^2/8, by Hoeffding's lemma.
    widest = -jnp.min(drop)
    high = jnp.log(jnp.where(widest > 0, widest, 1) / jnp.sqrt(8 * jnp.asarray(radius, dtype)))
    log_eta, (log_q, kl, log_sum) = _decreasing_root(
        excess, high - 100, high, 64 * jnp.finfo(dtype).eps, (log_prior, high, best[..., 0])
    )

    # The best of the supported actions alone, if they are near enough.
    hardest = jnp.where(supported & (drop == 0), log_prior, -jnp.inf)
    farthest = mean(-jax.nn.logsumexp(hardest, axis=-1))
    active = farthest > radius
    eta = jnp.where(active, jnp.exp(log_eta), 0)
    return Reweighted(
        log_policy=jnp.where(active, log_q, numerics.log_softmax(hardest)),
        temperature=eta,
        divergence=jnp.where(active, kl, farthest),
        dual=eta * radius + mean(best[..., 0] + eta * log_sum),
        active=active,
    )


def _row_weights(weights: ArrayLike | None, values: Array) -> Array:
    """Weights `[...]` of rows `[..., n]`."""
    if weights is None:
        return jnp.full(values.shape[:-1], 1 / max(1, values[..., 0].size), values.dtype)
    weights = checks.as_float("weights", weights)
    if weights.shape != values.shape[:-1]:
        raise ValueError(f"weights must have shape {values.shape[:-1]}, got {weights.shape}")
    return weights.astype(values.dtype)


def _decreasing_root(
    f: Callable[[Array], tuple], low: Array, high: Array, tolerance: float, kept: Any = ()
) -> tuple[Array, Any]:
    """Where a decreasing function is 0; `low` if it is negative there. It is not positive at high.

    `f(x)` is its value, its slope, and something to return from the last x, for which `kept` has
    the shapes. From the right Newton's step does not pass a root where f is concave; where it
    leaves the bracket, or the one before did not halve |f|, the middle is taken.
    """

    def unfinished(state):
        *_, resting, count = state
        return ~resting & (count < 100)

    def step(state):
        x, _, below, above, before, _, count = state
        value, slope, kept = f(x)
        nowhere = (count == 0) & (value <= 0)
        below, above = jnp.where(value > 0, x, below), jnp.where(value <= 0, x, above)
        newton = x - value / slope
        usable = (newton > below) & (newton < above) & (jnp.abs(value) <= before / 2)
        following = jnp.where(usable, newton, (below + above) / 2)
        # The first was low, to see whether there is a root; the second is high.
        following = jnp.where(count == 0, high, following)
        before = jnp.where(count == 0, jnp.inf, jnp.abs(value))
        resting = nowhere | (jnp.abs(value) <= tolerance) | (following == x)
        return jnp.where(resting, x, following), kept, below, above, before, resting, count + 1

    start = low, kept, low, high, jnp.full_like(high, jnp.inf), jnp.zeros((), bool), 0
    x, kept, *_ = jax.lax.while_loop(unfinished, step, start)
    return x, kept


# -------------------------------------------------------------------------------------------- MPO


class Mixed(NamedTuple):
    """A policy between the old one and a target."""

    log_policy: Array
    """`[..., n]`"""
    share: Array
    """`[]` of the target, `1/(1 + multiplier)`."""
    divergence: Array
    """`[]` mean KL(old‖policy), at most the radius."""


def mix(
    log_target: ArrayLike,
    log_old: ArrayLike,
    radius: ArrayLike,
    weights: ArrayLike | None = None,
) -> Mixed:
    """The M-step of MPO, exactly: `max E_target[log pi]` where the mean KL(old‖pi) <= radius.

    With the multiplier m of the constraint `pi = (target + m old)/(1 + m)`, one m for all rows.
    Shapes: logarithms `[..., n]`, weights of rows `[...]`, which sum to 1.

    Reference: Abdolmaleki et al. 2018 (arXiv:1806.06920), equation 12, for policies without
    parameters; the closed form follows from it and is not in the paper.
    """
    log_target = checks.as_float("log_target", log_target)
    log_old = checks.as_float("log_old", log_old)
    checks.same_shape(log_target=log_target, log_old=log_old)
    checks.positive("radius", radius)
    log_target, log_old = jax.lax.stop_gradient((log_target, log_old))
    log_target, log_old = numerics.log_softmax(log_target), numerics.log_softmax(log_old)
    weights = _row_weights(weights, log_target)

    def excess(x: Array):
        """`log(KL/radius)`; by x the KL has the slope -chi2(old‖mixture)."""
        mixture = _log_mixture(log_target, log_old, x)
        kl = jnp.sum(weights * categorical.kl(log_old, mixture))
        change = (jnp.exp(mixture) - jnp.exp(log_old)) ** 2 / jnp.exp(mixture)
        chi2 = jnp.sum(weights * jnp.sum(jnp.where(change > 0, change, 0), axis=-1))
        return jnp.log(kl / radius), -chi2 / kl, ()

    # KL(old‖(1 - s) old + s target) <= -log(1 - s).
    high = -jnp.log(-jnp.expm1(-jnp.asarray(radius, log_old.dtype)))
    all_of_it = jnp.sum(weights * categorical.kl(log_old, log_target)) <= radius
    x, _ = _decreasing_root(excess, jnp.zeros_like(high), high, 64 * jnp.finfo(high.dtype).eps)
    x = jnp.where(all_of_it, 0, x)
    mixture = jnp.where(all_of_it, log_target, _log_mixture(log_target, log_old, x))
    return Mixed(mixture, jnp.exp(-x), jnp.sum(weights * categorical.kl(log_old, mixture)))


def _log_mixture(log_target: Array, log_old: Array, minus_log_share: Array) -> Array:
    """`log((1 - s) old + s target)`, s = exp(-minus_log_share)."""
    rest = jnp.log(-jnp.expm1(-minus_log_share))
    return jnp.logaddexp(log_old + rest, log_target - minus_log_share)


class Weighted(NamedTuple):
    """Of a weighted log-likelihood."""

    weight: Array
    """What the log-probabilities were multiplied with."""
    kl: Array
    """KL(old‖new) where there is a penalty, else 0."""


def mpo(
    logits: ArrayLike, log_target: ArrayLike, log_old: ArrayLike, *, coefficient: ArrayLike
) -> TokenLoss:
    """The M-step's loss per state, `-E_target[log pi] + coefficient KL(old‖pi)`.

    Take the target from `reweight`, and raise the coefficient by `aux.kl - radius`. Shapes:
    `[..., n]` three times, the policy's logits and logarithms of probabilities over n actions, to
    `[...]`.

    Reference: Abdolmaleki et al. 2018 (arXiv:1806.06920), equation 12 as a Lagrangian.
    """
    logits = checks.as_float("logits", logits)
    others = (checks.as_float("log_target", log_target), checks.as_float("log_old", log_old))
    checks.same_shape(logits=logits, log_target=others[0], log_old=others[1])
    log_target, log_old = (jax.lax.stop_gradient(x.astype(logits.dtype)) for x in others)
    target = jnp.exp(numerics.log_softmax(log_target))
    log_policy = numerics.log_softmax(logits)
    likelihood = jnp.sum(target * jnp.where(target > 0, log_policy, 0), axis=-1)
    kl = categorical.kl(log_old, logits)
    return TokenLoss(coefficient * kl - likelihood, Weighted(target, jax.lax.stop_gradient(kl)))


# ------------------------------------------------------------------------------------------- REPS


class Reps(NamedTuple):
    """A step of REPS on a process, with the evidence that it meets its radius."""

    log_policy: Array
    """`[S, A]` `log p(a|s)` of `p ~ q exp(advantage/temperature)`."""
    temperature: Array
    """`[]` of the dual."""
    value: Array
    """`[S]` the other variables of the dual."""
    divergence: Array
    """`[]` KL of the policy's occupancy from the old one, the radius where it binds."""
    dual: Array
    """`[]` `eta radius + eta log E_q exp(advantage/eta) + (1 - discount) E_start[value]`."""
    gap: Array
    """`[]` the dual minus `(1 - discount) J` of the policy: no policy in the radius is better by
    more."""
    active: Array
    """`[]` whether the radius binds."""


def reps(mdp: AnyMdp, log_reference: Array, radius: ArrayLike) -> Reps:
    """`max sum p r` over occupancy measures p with KL(p‖q) at most the radius.

    `p ~ q exp((r + discount E v' - v)/eta)` with (eta, v) from the dual. For every eta v is solved
    by `occupancy.Problem`, an interior-point method, and eta by Newton's method on the logarithm of
    the KL. `log_reference`, `[S, A]`, are logarithms of q, the occupancy of the old policy. Where
    even the optimum is within the radius, eta ends at a 1e-6th of the range of rewards. Call it
    under jit and in float64.

    Reference: Peters, Muelling and Altun 2010, from memory; discount and start are of this form.
    """
    log_reference = checks.as_float("log_reference", log_reference)
    if log_reference.shape != mdp.reward.shape:
        raise ValueError(
            f"log_reference must have the reward's shape {tuple(mdp.reward.shape)},"
            f" got {tuple(log_reference.shape)}"
        )
    checks.positive("radius", radius)
    shape, dtype = log_reference.shape, log_reference.dtype
    log_reference = numerics.log_softmax(log_reference.ravel()).reshape(shape)
    radius = jnp.asarray(radius, dtype)
    kl = generators.kl()
    # Mass that is no float counts as none.
    seen = jnp.where(log_reference < jnp.log(jnp.finfo(dtype).tiny), -jnp.inf, log_reference)
    problem = occupancy.Problem(mdp, seen, jnp.ones((), dtype), kl)

    def excess(log_eta: Array):
        """`log(KL/radius)`, and how the mass follows eta: `dp = D (A dv - log p/q) d eta`."""
        here = problem._replace(coefficient=jnp.exp(log_eta))
        at, _ = here.solve()
        gain, slope, inverse = here.system(at)
        value = inverse(here.imbalance(gain * slope))
        change = jnp.sum(slope * gain * (here.follows(value) - slope))
        distance = occupancy.divergence(kl, jnp.log(at.mass), seen)
        return jnp.log(distance / radius), here.coefficient * change / distance, at.value

    # eta KL <= <p - q, r> <= range sqrt(KL/2), by Pinsker's inequality.
    spread = jnp.max(mdp.reward) - jnp.min(mdp.reward)
    high = jnp.log(spread / jnp.sqrt(2 * radius))
    floor = jnp.log(1e-6 * spread)
    log_eta, value = _decreasing_root(
        excess, floor, high, jnp.finfo(dtype).eps ** 0.6, jnp.zeros(shape[0], dtype)
    )
    eta = jnp.exp(log_eta)

    tilted = log_reference + problem.advantage(value) / eta
    never = jnp.max(log_reference, axis=-1, keepdims=True) == -jnp.inf
    log_policy = numerics.log_softmax(jnp.where(never, 0, tilted))
    mass = jnp.maximum(model.occupancy(mdp, jnp.exp(log_policy)), 0)
    dual = eta * (radius + jax.nn.logsumexp(tilted)) + (1 - mdp.discount) * (mdp.start @ value)
    return Reps(
        log_policy=log_policy,
        temperature=eta,
        value=value,
        divergence=occupancy.divergence(kl, jnp.log(mass), log_reference),
        dual=dual,
        gap=dual - jnp.sum(mass * mdp.reward),
        active=log_eta > floor,
    )


# -------------------------------------------------------------------------------------------- AWR


def awr_weights(advantages: ArrayLike, temperature: ArrayLike, *, limit: float = 20.0) -> Array:
    """`min(exp(A/temperature), limit)`, elementwise, as constants; never overflows.

    Without limit and normalised these are the weights of `reweight` at the same temperature.

    >>> awr_weights(jnp.array([0.0, 1000.0]), 1.0)
    Array([ 1., 20.], dtype=float32)

    Reference: Peng et al. 2019 (arXiv:1910.00177), algorithm 1; 20 is its limit.
    """
    advantages = checks.as_float("advantages", advantages)
    checks.positive("temperature", temperature)
    checks.positive("limit", limit)
    exponent = jnp.minimum(advantages / temperature, math.log(limit))
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(exponent), limit))


def awr(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    temperature: ArrayLike,
    limit: float = 20.0,
) -> TokenLoss:
    """Advantage-weighted regression, per token `-min(exp(A/temperature), limit) log pi`.

    Shapes: `[..., T]`, advantages also `[...]`.

    Reference: Peng et al. 2019 (arXiv:1910.00177), equation 9 and algorithm 1.
    """
    log_probs, mask, (advantages,) = tokens(log_probs, mask, advantages=advantages)
    weight = awr_weights(advantages, temperature, limit=limit)
    weight = jnp.where(mask, weight, 0)
    return TokenLoss(-weight * log_probs, Weighted(weight, jnp.zeros_like(weight)))
