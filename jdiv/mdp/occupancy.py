"""Regularising occupancy measures: towards a reference, by any f-divergence, solved exactly.

`max_pi E_mu[r] - coefficient D(mu‖mu_ref)` over the occupancy measures mu of all policies. These
are the measures with `outflow - discount inflow = (1 - discount) start`; the multipliers V of that
turn the problem into one without constraints (`regularised`). Every answer comes with a `gap`: no
policy is better by more.

Occupancy measures are arrays `[S, A]` that sum to 1, and references are given as logarithms, -inf
where there is nothing. `sum mu r` is `(1 - discount) E[sum_t discount^t r_t]`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve
from jax.typing import ArrayLike

from jdiv import checks, numerics, regularized
from jdiv.divergences import categorical, generators
from jdiv.divergences.generators import Generator, TotalVariation
from jdiv.estimators import variational
from jdiv.mdp import operators
from jdiv.mdp.model import (
    AnyMdp,
    SparseMdp,
    action_values,
    occupancy,
    policy_value,
)

# ------------------------------------------------------------------------------------ divergences


def divergence(generator: Generator, log_mass: ArrayLike, log_reference: ArrayLike) -> Array:
    """`D(mu‖ref)` of two measures on states and actions, logarithms `[..., S, A]` to `[...]`."""
    log_mass = checks.as_float("log_mass", log_mass)
    log_reference = checks.as_float("log_reference", log_reference)
    checks.same_shape(log_mass=log_mass, log_reference=log_reference)
    flat = (*log_mass.shape[:-2], -1)
    return categorical.f_divergence(generator, log_mass.reshape(flat), log_reference.reshape(flat))


def action_divergence(
    generator: Generator, log_policy: ArrayLike, log_base: ArrayLike, states: ArrayLike
) -> Array:
    """`sum_s mu(s) D(pi(.|s)‖base(.|s))`: what is customarily penalised instead.

    Shapes: logarithms `[..., S, A]`, mass of states `[..., S]`, to `[...]`.
    """
    return jnp.sum(states * categorical.f_divergence(generator, log_policy, log_base), axis=-1)


# --------------------------------------------------------------------------- correlated proxies


class Link(NamedTuple):
    """How a proxy reward goes with the true one under a reference occupancy."""

    correlation: Array
    """`r = E_ref[z_proxy z_true]` of the standardised rewards."""
    rest: Array
    """`sqrt(1 - r^2)`, the length of `z_proxy - r z_true`; accurate also where r is almost 1."""
    true_mean: Array
    true_deviation: Array
    proxy_mean: Array
    proxy_deviation: Array


def link(reference: Array, reward: Array, proxy: Array) -> Link:
    """Means, standard deviations and correlation of two rewards, `[S, A]` each.

    Reference: Laidlaw et al. (arXiv:2403.03185), the definition of a correlated proxy.
    """
    checks.same_shape(reference=reference, reward=reward, proxy=proxy)
    mean = lambda x: jnp.sum(reference * x)
    true_mean, proxy_mean = mean(reward), mean(proxy)
    true_deviation = jnp.sqrt(mean((reward - true_mean) ** 2))
    proxy_deviation = jnp.sqrt(mean((proxy - proxy_mean) ** 2))
    true_z = (reward - true_mean) / true_deviation
    proxy_z = (proxy - proxy_mean) / proxy_deviation
    correlation = mean(true_z * proxy_z)
    rest = jnp.sqrt(mean((proxy_z - correlation * true_z) ** 2))
    return Link(correlation, rest, true_mean, true_deviation, proxy_mean, proxy_deviation)


def gain_bound(link: Link, proxy_gain: ArrayLike, chi2: ArrayLike) -> Array:
    """`(proxy gain - sqrt((1 - r^2) chi2(mu‖ref))) / r`: at least the gain of true return.

    Gains are over the reference's return, in standard deviations of the reward under it. So
    `<mu, proxy> - s sqrt(1 - r^2) sqrt(chi2)` with the proxy's deviation s improves the true return
    where it improves on the reference: `root_regularised` with that coefficient does not hack.

    Reference: Laidlaw et al. (arXiv:2403.03185), the theorem on correlated proxies.
    """
    return (proxy_gain - link.rest * jnp.sqrt(chi2)) / link.correlation


# ----------------------------------------------------------------------------- from a discriminator


def discriminator_loss(policy_scores: ArrayLike, reference_scores: ArrayLike) -> Array:
    """`mean softplus(-d) + mean softplus(d)` with d on cells of the policy and of the reference.

    The best d is `log mu/mu_ref`. Shapes: `[..., n]` and `[..., m]` to `[...]`.

    >>> print(f"{discriminator_loss(jnp.zeros(2), jnp.zeros(3)):.4f}")
    1.3863

    Reference: Laidlaw et al. (arXiv:2403.03185), the estimate of the divergence; it is the bound of
    Jensen-Shannon, `estimators.variational.log_ratio_bound`, turned into a loss.
    """
    row = generators.jensen_shannon(0.5)
    bound = variational.log_ratio_bound(row, policy_scores, reference_scores)
    return 2 * (math.log(2) - bound)


def penalty_reward(generator: Generator, log_ratio: ArrayLike, coefficient: ArrayLike) -> Array:
    """`-coefficient f'(u)`, `u = mu/ref`: what to add to the reward, elementwise in `log u`.

    Its gradient by mu is that of `-coefficient D(mu‖ref)`, and at the optimum of `regularised` no
    policy has a larger return with it. For KL that is `-coefficient d`, for chi2
    `-2 coefficient (e^d - 1)`, for total variation `-coefficient sign(d)/2`. The released code of
    ORPO has half of chi2's and twice total variation's: pass half and twice the coefficient.
    """
    return -coefficient * generator.slope(checks.as_float("log_ratio", log_ratio))


def root_penalty_reward(log_ratio: ArrayLike, coefficient: ArrayLike, chi2: ArrayLike) -> Array:
    """`-coefficient (u - 1)/sqrt(chi2)`: the same for `-coefficient sqrt(chi2)`.

    Where an estimate of chi2 is not positive it is the penalty of half of chi2 itself.

    Reference: Laidlaw et al. (arXiv:2403.03185) and its released code, where chi2 is the
    `trimmed_mean` of `e^d - 1` over cells of the policy.
    """
    half = penalty_reward(generators.pearson_chi2(), log_ratio, coefficient) / 2
    chi2 = jnp.asarray(chi2, half.dtype)
    return half / jnp.sqrt(jnp.where(chi2 > 0, chi2, 1))


def trimmed_mean(x: ArrayLike, share: float = 0.01) -> Array:
    """Mean of `[..., n]` without this share of the smallest and of the largest numbers.

    >>> trimmed_mean(jnp.array([1.0, 2.0, 3.0, 900.0]), 0.25).item()
    2.5
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"share must be in [0, .5), got {share}")
    x = jnp.sort(checks.as_float("x", x), axis=-1)
    cut = int(share * x.shape[-1])
    return jnp.mean(x[..., cut : x.shape[-1] - cut], axis=-1)


# ----------------------------------------------------------------------------- action by action


class ActionSolution(NamedTuple):
    """A regularised optimum where each state pays for its own actions."""

    policy: Array
    """`[S, A]`"""
    value: Array
    """`[S]` regularised values."""
    residual: Array
    """`max |T v - v|` of the regularised Bellman operator."""
    iterations: Array


def action_regularised(
    mdp: AnyMdp, log_base: Array, coefficient: ArrayLike, generator: Generator
) -> ActionSolution:
    """`max_pi E_mu[r - coefficient D(pi(.|s)‖base(.|s))]`, by regularised policy iteration.

    For KL that is what soft value iteration with a prior converges to. Each evaluation is exact.

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 4.
    """
    eps = jnp.finfo(log_base.dtype).eps

    def step(state):
        value, *_, count = state
        q = action_values(mdp, value)
        best = operators.towards(q, log_base, coefficient, generator)
        policy = jnp.exp(best.log_policy)
        penalty = jnp.sum(policy * q, axis=-1) - best.value
        residual = jnp.max(jnp.abs(best.value - value))
        return policy_value(mdp, policy, -penalty), policy, residual, count + 1

    def unfinished(state):
        value, _, residual, count = state
        return (residual > 64 * eps * jnp.max(jnp.abs(value))) & (count < 200)

    base = jnp.exp(numerics.log_softmax(log_base))
    start = policy_value(mdp, base), base, jnp.asarray(jnp.inf, log_base.dtype), 0
    value, policy, residual, count = jax.lax.while_loop(unfinished, step, start)
    return ActionSolution(policy, value, residual, jnp.asarray(count))


# --------------------------------------------------------------------------------------- solutions


class Solution(NamedTuple):
    """A regularised optimum, and the evidence that it is one."""

    policy: Array
    """`[S, A]`; in a state that the reference never visits uniform."""
    occupancy: Array
    """`[S, A]` of the policy."""
    value: Array
    """The objective of the policy: return minus penalty."""
    gap: Array
    """An upper bound of the optimum minus `value`: no policy is better by more."""
    divergence: Array
    """From the reference; for the root penalty chi2 and not its root."""
    iterations: Array
    """Steps of the solver."""


def regularised(
    mdp: AnyMdp, log_reference: Array, coefficient: ArrayLike, generator: Generator
) -> Solution:
    """`max_pi <mu, r> - coefficient D(mu‖ref)`.

    By an interior-point method (`Iterate`). The upper bound in the gap is the dual of the values V
    that it finds: `(1 - discount) <start, V> + max_m <m, e> - coefficient D(m‖ref)` with the
    advantage `e = r + discount P V - V`, where m runs over all distributions on states and actions,
    so that the maximum is `regularized.greedy`. For KL that is the dual of REPS.
    Takes every row but total variation; mu has mass only where the reference has. Call it under jit
    and in float64.

    Reference: Peters, Muelling and Altun 2010 (REPS) for KL; Nachum et al. 2019 (arXiv:1912.02074)
    for the other rows.
    """
    log_reference, coefficient = _checked(mdp, log_reference, coefficient, generator)
    problem = Problem(mdp, log_reference, coefficient, generator)
    at, count = problem.solve()
    best = regularized.greedy(
        problem.advantage(at.value).ravel(), log_reference.ravel(), coefficient, generator
    )
    return problem.evaluated(_conditional(jnp.log(at.mass)), at, best.value, count)


def root_regularised(mdp: AnyMdp, log_reference: Array, coefficient: ArrayLike) -> Solution:
    """`max_pi <mu, r> - coefficient sqrt(chi2(mu‖ref))`.

    Since `coefficient sqrt(x) = min_t t x + coefficient^2/(4 t)`, the optimum is that of chi2 at
    the temperature t with `2 t sqrt(chi2(mu_t)) = coefficient`, whose left side increases with t.
    The penalty has a kink at the reference, which is the optimum itself where the left side stays
    below the coefficient. The upper bound in the gap is `(1 - discount) <start, V> +
    max (e - coefficient h)` with the advantage e of V, for an h of length at most 1 and mean 0
    under the reference.

    Reference: Laidlaw et al. (arXiv:2403.03185), the objective with the square root.
    """
    generator = generators.pearson_chi2()
    log_reference, coefficient = _checked(mdp, log_reference, coefficient, generator)
    problem = Problem(mdp, log_reference, coefficient, generator)
    at, temperature, count = _root(problem)
    pull = temperature * problem.slope(at.mass)
    pull = pull - jnp.sum(problem.reference * pull)
    pull = pull * jnp.minimum(1, coefficient / problem.length(pull))
    excess = jnp.where(problem.inside, problem.advantage(at.value) - pull, -jnp.inf)

    def evaluated(log_mass: Array) -> Solution:
        policy = _conditional(log_mass)
        return problem.evaluated(policy, at, jnp.max(excess), count, root=True)

    both = jax.vmap(evaluated)(jnp.stack([log_reference, jnp.log(at.mass)]))
    best = jnp.argmax(both.value)
    return jax.tree.map(lambda x: x[best], both)


def _checked(mdp: AnyMdp, log_reference: Array, coefficient: ArrayLike, generator: Generator):
    """The normalised reference and the coefficient, in one precision."""
    if not isinstance(generator, Generator):
        raise TypeError(f"generator must be a row of generators.TABLE, got {generator!r}")
    if isinstance(generator, TotalVariation):
        raise ValueError("generator must be differentiable, got total_variation")
    log_reference = checks.as_float("log_reference", log_reference)
    if log_reference.shape != mdp.reward.shape:
        raise ValueError(
            f"log_reference must have the reward's shape {tuple(mdp.reward.shape)},"
            f" got {tuple(log_reference.shape)}"
        )
    checks.positive("coefficient", coefficient)
    shape = log_reference.shape
    log_reference = numerics.log_softmax(log_reference.ravel()).reshape(shape)
    return log_reference, jnp.asarray(coefficient, log_reference.dtype)


def _conditional(log_mass: Array) -> Array:
    """The policy `mu(s, a)/mu(s)` of a measure, `[S, A]`; uniform where there is no mass."""
    empty = jnp.max(log_mass, axis=-1, keepdims=True) == -jnp.inf
    return jnp.exp(numerics.log_softmax(jnp.where(empty, 0, log_mass)))


# ------------------------------------------------------------------------------------------ solver


Inverse = Callable[[Array], Array]


class Iterate(NamedTuple):
    """Of the interior-point method; a step is one too."""

    mass: Array
    """`[S, A]` mu, positive where the reference is; its flows balance in the end."""
    value: Array
    """`[S]` V, multipliers of the balance of flows."""
    price: Array
    """`[S, A]` multipliers of `mu >= 0`."""


class Problem(NamedTuple):
    """`max <mu, r> - coefficient D(mu‖ref)` where mu >= 0 and

    `discount inflow - outflow + (1 - discount) start = 0`.
    """

    mdp: AnyMdp
    log_reference: Array
    coefficient: Array
    generator: Generator

    @property
    def reference(self) -> Array:
        """`[S, A]`"""
        return jnp.exp(self.log_reference)

    @property
    def inside(self) -> Array:
        """`[S, A]` where the reference has mass."""
        return self.log_reference != -jnp.inf

    def advantage(self, value: Array) -> Array:
        """`e = r + discount P V - V`, `[S]` to `[S, A]`."""
        return action_values(self.mdp, value) - value[:, None]

    def follows(self, value: Array) -> Array:
        """The linear part of `advantage`."""
        return self.mdp.discount * self.mdp.expectation(value) - value[:, None]

    def imbalance(self, mass: Array) -> Array:
        """`discount inflow - outflow`, `[S, A]` to `[S]`: the adjoint of `follows`."""
        return self.mdp.discount * self.mdp.flow(mass) - jnp.sum(mass, axis=-1)

    def log_ratio(self, mass: Array) -> Array:
        """`log mu/ref`, 0 where the reference has nothing."""
        log_mass = jnp.log(jnp.where(self.inside, mass, 1))
        return log_mass - jnp.where(self.inside, self.log_reference, 0)

    def slope(self, mass: Array) -> Array:
        """`f'(mu/ref)`."""
        return self.generator.slope(self.log_ratio(mass))

    def length(self, x: Array) -> Array:
        """`sqrt(E_ref[x^2])`."""
        return jnp.sqrt(jnp.sum(self.reference * x**2))

    def curvature(self, weight: Array) -> Array:
        """`[S, S]` `sum w (discount P - 1)(discount P - 1)'` over states and actions."""
        discount = self.mdp.discount
        once = discount * self.mdp.policy_transition(weight)
        twice = discount**2 * _joint_transition(self.mdp, weight)
        return jnp.diag(jnp.sum(weight, axis=-1)) - once - once.T + twice

    def balance(self, mass: Array) -> Array:
        """`[S]` what the constraint says is 0."""
        return self.imbalance(mass) + (1 - self.mdp.discount) * self.mdp.start

    def spread(self) -> Array:
        """The largest difference of two rewards, and the coefficient."""
        return jnp.max(self.mdp.reward) - jnp.min(self.mdp.reward) + self.coefficient

    def first(self) -> Iterate:
        """All cells alike, and prices as large as rewards may differ."""
        inside = self.inside.astype(self.log_reference.dtype)
        value = policy_value(self.mdp, _conditional(self.log_reference))
        return Iterate(inside / jnp.sum(inside), value, self.spread() * inside)

    def system(self, at: Iterate) -> tuple[Array, Array, Inverse]:
        """`D = mu/(coefficient steepness + z)`, f', and the solution of `A' D A x = y`.

        `steepness = d f'(e^t)/dt` at `t = log mu/ref` is `mu/ref f''(mu/ref)`, and A is `follows`.
        """
        t = self.log_ratio(at.mass)
        slope, steepness = jax.jvp(self.generator.slope, (t,), (jnp.ones_like(t),))
        gain = at.mass / jnp.where(self.inside, self.coefficient * steepness + at.price, 1)
        matrix = self.curvature(gain)
        diagonal = jnp.diagonal(matrix)
        still = diagonal <= 0  # states that the reference never visits
        scale = jnp.where(still, 0, 1 / jnp.sqrt(jnp.where(still, 1, diagonal)))
        unit = jnp.diag(still.astype(scale.dtype))
        factor = cho_factor(scale[:, None] * matrix * scale[None, :] + unit)
        return gain, slope, lambda y: scale * cho_solve(factor, scale * y)

    def newton(self, at: Iterate) -> Callable[[ArrayLike, ArrayLike], Iterate]:
        """Newton's step, as a function of what `mu z` shall be and of its second-order part.

        For `e - coefficient f' + z = 0`, `mu z = target` and the balance; with q the errors of the
        first two, `dmu = D (A dV + q)`, and the balance gives dV.
        """
        gain, slope, inverse = self.system(at)
        mass = jnp.where(self.inside, at.mass, 1)
        stationary = self.advantage(at.value) - self.coefficient * slope + at.price
        balance = self.balance(at.mass)

        def step(target: ArrayLike, second_order: ArrayLike) -> Iterate:
            rest = target - at.mass * at.price - second_order
            error = jnp.where(self.inside, stationary + rest / mass, 0)
            value = inverse(-balance - self.imbalance(gain * error))
            moved = gain * (self.follows(value) + error)
            price = jnp.where(self.inside, (rest - at.price * moved) / mass, 0)
            return Iterate(moved, value, price)

        return step

    def solve(self) -> tuple[Iterate, Array]:
        """The iterate at the optimum, and the steps to it.

        Mehrotra's predictor and corrector, with one length for primal and dual variables. Ends when
        `sum mu z`, the gap of a feasible iterate, and the imbalance are down to rounding.

        Reference: Mehrotra 1992; Wright 1997, Primal-dual interior-point methods, chapter 10.
        """
        eps = jnp.finfo(self.log_reference.dtype).eps
        cells = jnp.sum(self.inside.astype(self.log_reference.dtype))

        def unfinished(state):
            _, error, count = state
            return (error > 16 * eps * self.spread()) & (count < 100)

        def step(state):
            at, _, count = state
            newton = self.newton(at)
            predicted = newton(0.0, 0.0)
            there = _along(at, predicted, _longest(at, predicted, 1.0))
            now, then = jnp.sum(at.mass * at.price), jnp.sum(there.mass * there.price)
            target = (then / now) ** 3 * now / cells
            move = newton(target, predicted.mass * predicted.price)
            at = _along(at, move, _longest(at, move, 0.995))
            gap = jnp.sum(at.mass * at.price)
            return at, gap + jnp.max(jnp.abs(self.balance(at.mass))), count + 1

        start = self.first(), jnp.full_like(self.coefficient, jnp.inf), 0
        at, _, count = jax.lax.while_loop(unfinished, step, start)
        return at, jnp.asarray(count)

    def evaluated(
        self, policy: Array, at: Iterate, bound: Array, count: Array, *, root: bool = False
    ) -> Solution:
        """The objective of the policy, and how far it may be from the best."""
        mass = jnp.maximum(occupancy(self.mdp, policy), 0)
        distance = divergence(self.generator, jnp.log(mass), self.log_reference)
        penalty = self.coefficient * (jnp.sqrt(distance) if root else distance)
        value = jnp.sum(mass * self.mdp.reward) - penalty
        upper = (1 - self.mdp.discount) * (self.mdp.start @ at.value) + bound
        return Solution(policy, mass, value, upper - value, distance, count)


def _root(problem: Problem) -> tuple[Iterate, Array, Array]:
    """The temperature at which chi2 has the optimum of the root, the optimum, all steps.

    On the scale of logarithms `g = log(2 t sqrt(chi2(mu_t))/coefficient)` has a slope from 0 to 1,
    so a step of -g does not go past the root, and Newton's step is longer. Starts where chi2 is so
    dear that no cell is dropped: there g is at its largest.
    """
    coefficient = problem.coefficient
    resolution = jnp.finfo(coefficient.dtype).eps ** 0.6

    def unfinished(state):
        *_, excess, _, count = state
        return (jnp.abs(excess) > resolution) & (count < 60)

    def step(state):
        _, log_t, low, high, _, steps, count = state
        here = problem._replace(coefficient=jnp.exp(log_t))
        at, more = here.solve()
        # How mu_t follows t: dmu = D (A dV - f') dt, in balance.
        gain, slope, inverse = here.system(at)
        length = problem.length(slope)  # 2 sqrt(chi2)
        excess = log_t + jnp.log(length / coefficient)
        value = inverse(problem.imbalance(gain * slope))
        change = jnp.sum(slope * gain * (problem.follows(value) - slope))
        rate = jnp.clip(1 + 2 * here.coefficient * change / length**2, 0.05, 1)
        low, high = jnp.where(excess < 0, log_t, low), jnp.where(excess > 0, log_t, high)
        newton = log_t - excess / rate
        inside = (newton > low) & (newton < high)
        following = jnp.where(inside, newton, jnp.clip(log_t - excess, low, high))
        # Below 0 where it is largest: the reference is the optimum.
        excess = jnp.where((count == 0) & (excess < 0), 0, excess)
        done = jnp.abs(excess) <= resolution
        return (
            at, jnp.where(done, log_t, following), low, high, excess, steps + more, count + 1
        )  # fmt: skip

    dear = jnp.log(problem.spread() / (1 - problem.mdp.discount))
    infinity = jnp.full_like(dear, jnp.inf)
    start = problem.first(), dear, -infinity, infinity, infinity, jnp.asarray(0), 0
    at, log_t, *_, steps, _ = jax.lax.while_loop(unfinished, step, start)
    return at, jnp.exp(log_t), steps


def _longest(at: Iterate, move: Iterate, share: float) -> Array:
    """The step, at most 1, by which what must stay positive loses at most this share."""
    pairs = ((at.mass, move.mass), (at.price, move.price))
    lost = [jnp.max(jnp.where(dx < 0, -dx / jnp.where(dx < 0, x, 1), 0)) for x, dx in pairs]
    return jnp.minimum(1, share / jnp.maximum(jnp.maximum(*lost), share))


def _along(at: Iterate, move: Iterate, length: Array) -> Iterate:
    """`at + length move`."""
    return jax.tree.map(lambda x, dx: x + length * dx, at, move)


def _joint_transition(mdp: AnyMdp, weight: Array) -> Array:
    """`[S, S]` `sum_sa w P(t|s, a) P(u|s, a)`."""
    if not isinstance(mdp, SparseMdp):
        return jnp.einsum("sa,sat,sau->tu", weight, mdp.transition, mdp.transition)
    first, second = mdp.successor[..., :, None], mdp.successor[..., None, :]
    pair = mdp.probability[..., :, None] * mdp.probability[..., None, :]
    matrix = jnp.zeros(2 * mdp.start.shape, mdp.probability.dtype)
    return matrix.at[first, second].add(weight[..., None, None] * pair)
