"""Regularized occupancy measures: a penalty on any f-divergence to a reference, solved exactly.

`max_pi E_mu[r] - temperature D(mu‖mu_ref)` over the occupancy measures mu of all policies. These
are the measures with `outflow - discount inflow = (1 - discount) start`; the multipliers V of that
turn the problem into one without constraints (`regularized`). Every answer comes with a `gap`: no
policy is better by more.

Occupancy measures are arrays `[S, A]` that sum to 1; references are given as logits over all states
and actions, which are normalized here, -inf where there is nothing. `sum mu r` is
`(1 - discount) E[sum_t discount^t r_t]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots
from jdiv.divergences import categorical, generators
from jdiv.divergences.generator import Generator
from jdiv.estimators import variational
from jdiv.mdp import operators
from jdiv.mdp.model import (
    AnyMdp,
    SparseMdp,
    action_values,
    occupancy,
    policy_value,
)
from jdiv.regularized import greedy
from jdiv.types import Logits, PerSample, PerState, Reduced, Scalar, StateActions

# ------------------------------------------------------------------------------------ divergences


def divergence(
    log_occupancy: StateActions, ref_logits: StateActions, *, generator: Generator
) -> Reduced:
    """`D(mu‖ref)` of two measures on states and actions.

    Shapes: logarithms `[..., S, A]`, both normalized here over states and actions, to `[...]`.

    >>> even, odd = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.8, 0.2]]))
    >>> print(f"{divergence(odd, even, generator=generators.pearson_chi2()):.4f}")
    0.3600
    """
    log_occupancy = checks.as_float("log_occupancy", log_occupancy)
    ref_logits = checks.as_float("ref_logits", ref_logits)
    checks.same_shape(log_occupancy=log_occupancy, ref_logits=ref_logits)
    flat = (*log_occupancy.shape[:-2], -1)
    return categorical.f_divergence(
        generator, log_occupancy.reshape(flat), ref_logits.reshape(flat)
    )


def action_divergence(
    log_policy: StateActions, ref_logits: StateActions, states: PerState, *, generator: Generator
) -> Reduced:
    """`sum_s mu(s) D(pi(.|s)‖ref(.|s))`: what is customarily penalized instead.

    Shapes: logarithms `[..., S, A]`, both normalized here over actions, and the mass of states
    `[..., S]`, to `[...]`.
    """
    return jnp.sum(states * categorical.f_divergence(generator, log_policy, ref_logits), axis=-1)


# --------------------------------------------------------------------------- correlated proxies


def _measure(name: str, mass: Array) -> Array:
    """Probabilities of states and actions, `[..., S, A]`, checked to sum to 1 over both."""
    flat = mass.reshape(*mass.shape[:-2], -1)
    return checks.probabilities(name, flat).reshape(mass.shape)


class RewardCorrelation(NamedTuple):
    """Moments and correlation of two rewards under a reference occupancy.

    Fields:
        correlation: `r = E_ref[z_proxy z_true]` of the standardized rewards.
        rest: `sqrt(1 - r^2)`, the length of `z_proxy - r z_true`; accurate also where r is almost
            1.
        true_mean: `[]` of the true reward.
        true_deviation: `[]` standard deviation of the true reward.
        proxy_mean: `[]` of the proxy.
        proxy_deviation: `[]` standard deviation of the proxy.
    """

    correlation: Array
    rest: Array
    true_mean: Array
    true_deviation: Array
    proxy_mean: Array
    proxy_deviation: Array


def reward_correlation(
    ref_occupancy: StateActions, reward: StateActions, proxy: StateActions
) -> RewardCorrelation:
    """Means, standard deviations and correlation of two rewards, `[S, A]` each.

    >>> moments = reward_correlation(jnp.full((1, 2), 0.5), jnp.arange(2.0)[None], jnp.ones((1, 2)))
    >>> moments.true_mean.item(), moments.true_deviation.item(), moments.proxy_deviation.item()
    (0.5, 0.5, 0.0)

    Reference: Laidlaw et al. (arXiv:2403.03185), the definition of a correlated proxy.
    """
    ref_occupancy, reward, proxy = checks.alike(
        ref_occupancy=ref_occupancy, reward=reward, proxy=proxy
    )
    ref_occupancy = _measure("ref_occupancy", ref_occupancy)
    mean = lambda x: jnp.sum(ref_occupancy * x)
    true_mean, proxy_mean = mean(reward), mean(proxy)
    true_deviation = jnp.sqrt(mean((reward - true_mean) ** 2))
    proxy_deviation = jnp.sqrt(mean((proxy - proxy_mean) ** 2))
    true_z = (reward - true_mean) / true_deviation
    proxy_z = (proxy - proxy_mean) / proxy_deviation
    correlation = mean(true_z * proxy_z)
    rest = jnp.sqrt(mean((proxy_z - correlation * true_z) ** 2))
    return RewardCorrelation(
        correlation, rest, true_mean, true_deviation, proxy_mean, proxy_deviation
    )


def gain_bound(moments: RewardCorrelation, proxy_gain: ArrayLike, chi2: ArrayLike) -> Array:
    """`(proxy gain - sqrt((1 - r^2) chi2(mu‖ref))) / r`: at least the gain of true return.

    Gains are over the reference's return, in standard deviations of the reward under it. So
    `<mu, proxy> - s sqrt(1 - r^2) sqrt(chi2)` with the proxy's deviation s improves the true return
    where it improves on the reference: `root_regularized` at that temperature does not hack.

    Reference: Laidlaw et al. (arXiv:2403.03185), the theorem on correlated proxies.
    """
    chi2 = checks.in_range("chi2", chi2, 0, jnp.inf, "not negative", closed="both")
    return (proxy_gain - moments.rest * jnp.sqrt(chi2)) / moments.correlation


# ----------------------------------------------------------------------------- from a discriminator


def discriminator_loss(policy_scores: PerSample, ref_scores: ArrayLike) -> Reduced:
    """`mean softplus(-d) + mean softplus(d)`, scores d on cells of the policy and of the reference.

    The best d is `log mu/mu_ref`. Shapes: `[..., n]` and `[..., m]` to `[...]`.

    >>> print(f"{discriminator_loss(jnp.zeros(2), jnp.zeros(3)):.4f}")
    1.3863

    Reference: Laidlaw et al. (arXiv:2403.03185), the estimate of the divergence; it is the bound of
    Jensen-Shannon, `estimators.variational.log_ratio_bound`, turned into a loss.
    """
    row = generators.jensen_shannon(0.5)
    bound = variational.log_ratio_bound(row, policy_scores, ref_scores)
    return 2 * (math.log(2) - bound)


def penalty_reward(log_ratio: ArrayLike, temperature: Scalar, *, generator: Generator) -> Array:
    """`-temperature f'(u)`, `u = mu/ref`: what to add to the reward, elementwise in `log u`.

    Its gradient by mu is that of `-temperature D(mu‖ref)`, and at the optimum of `regularized` no
    policy has a larger return with it. For KL that is `-temperature d`, for chi2
    `-2 temperature (e^d - 1)`, for total variation `-temperature sign(d)/2`. The released code of
    ORPO has half of chi2's and twice total variation's: pass half and twice the temperature.

    >>> penalty_reward(jnp.log(jnp.array([0.5, 2.0])), 1.0, generator=generators.pearson_chi2())
    Array([ 1., -2.], dtype=float32)
    """
    temperature = checks.not_negative("temperature", temperature)
    return -temperature * generator.slope(checks.as_float("log_ratio", log_ratio))


def root_penalty_reward(log_ratio: ArrayLike, temperature: Scalar, chi2: ArrayLike) -> Array:
    """`-temperature (u - 1)/sqrt(chi2)`: the same for `-temperature sqrt(chi2)`.

    Where an estimate of chi2 is not positive it is the penalty of half of chi2 itself.

    Reference: Laidlaw et al. (arXiv:2403.03185) and its released code, where chi2 is the
    `trimmed_mean` of `e^d - 1` over cells of the policy.
    """
    half = penalty_reward(log_ratio, temperature, generator=generators.pearson_chi2()) / 2
    chi2 = jnp.asarray(chi2, half.dtype)
    return half / jnp.sqrt(jnp.where(chi2 <= 0, 1, chi2))


def trimmed_mean(x: PerSample, share: float = 0.01) -> Reduced:
    """The mean of `[..., n]` without this share of the smallest and of the largest numbers.

    >>> trimmed_mean(jnp.array([1.0, 2.0, 3.0, 900.0]), 0.25).item()
    2.5
    """
    checks.in_range("share", share, 0, 0.5, "in [0, .5)", closed="low")
    x = jnp.sort(checks.as_float("x", x), axis=-1)
    cut = int(share * x.shape[-1])
    kept = jnp.mean(x[..., cut : x.shape[-1] - cut], axis=-1)
    return jnp.where(jnp.any(jnp.isnan(x), axis=-1), jnp.nan, kept)


# ----------------------------------------------------------------------------- action by action


class ActionSolution(NamedTuple):
    """A regularized optimum where each state pays for its own actions.

    Fields:
        policy: `[S, A]`
        value: `[S]` regularized values.
        residual: `max |T v - v|` of the regularized Bellman operator.
        iterations: Steps of the solver.
    """

    policy: Array
    value: Array
    residual: Array
    iterations: Array


def action_regularized(
    mdp: AnyMdp, ref_logits: Logits, temperature: Scalar, *, generator: Generator
) -> ActionSolution:
    """`max_pi E_mu[r - temperature D(pi(.|s)‖ref(.|s))]`, by regularized policy iteration.

    For KL that is what soft value iteration with a prior converges to. Each evaluation is exact;
    the reference is normalized here over actions.

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 4.
    """
    ref_logits = _like_reward(mdp, ref_logits)
    temperature = checks.positive("temperature", temperature)
    eps = jnp.finfo(ref_logits.dtype).eps

    def step(state):
        value, *_, count = state
        q = action_values(mdp, value)
        best = operators.regularized_greedy(q, ref_logits, temperature, generator=generator)
        policy = jnp.exp(best.log_policy)
        penalty = jnp.sum(policy * q, axis=-1) - best.value
        residual = jnp.max(jnp.abs(best.value - value))
        return policy_value(mdp, policy, -penalty), policy, residual, count + 1

    def unfinished(state):
        value, _, residual, count = state
        return (residual > 64 * eps * jnp.max(jnp.abs(value))) & (count < 200)

    reference = jnp.exp(numerics.log_softmax(ref_logits))
    start = policy_value(mdp, reference), reference, jnp.asarray(jnp.inf, ref_logits.dtype), 0
    value, policy, residual, count = jax.lax.while_loop(unfinished, step, start)
    return ActionSolution(policy, value, residual, jnp.asarray(count))


# --------------------------------------------------------------------------------------- solutions


class Solution(NamedTuple):
    """A regularized optimum, and the evidence that it is one.

    Fields:
        policy: `[S, A]`; in a state that the reference never visits uniform.
        occupancy: `[S, A]` of the policy.
        value: `[]` the objective of the policy: return minus penalty.
        gap: `[]` an upper bound of the optimum minus `value`: no policy is better by more.
        divergence: `[]` from the reference; for the root penalty chi2 and not its root.
        iterations: Steps of the solver.
    """

    policy: Array
    occupancy: Array
    value: Array
    gap: Array
    divergence: Array
    iterations: Array


def regularized(
    mdp: AnyMdp, ref_logits: StateActions, temperature: Scalar, *, generator: Generator
) -> Solution:
    """`max_pi <mu, r> - temperature D(mu‖ref)`.

    By an interior-point method (`PrimalDual`). The upper bound in the gap is the dual of the values
    V that it finds: `(1 - discount) <start, V> + max_m <m, e> - temperature D(m‖ref)` with the
    advantage `e = r + discount P V - V`, where m runs over all distributions on states and actions,
    so that the maximum is `jdiv.regularized.greedy`. For KL that is the dual of REPS.
    Takes every row but total variation; mu has mass only where the reference has. Call it under jit
    and in float64.

    Reference: Peters, Muelling and Altun 2010 (REPS) for KL; Nachum et al. 2019 (arXiv:1912.02074)
    for the other rows.
    """
    ref_logits, temperature = _checked(mdp, ref_logits, temperature, generator)
    problem = Problem(mdp, ref_logits, temperature, generator)
    point, count = problem.solve()
    advantage = problem.advantage(point.value)
    best = greedy(advantage.ravel(), ref_logits.ravel(), temperature, generator=generator)
    return problem.evaluated(_conditional(jnp.log(point.mass)), point, best.value, count)


def root_regularized(mdp: AnyMdp, ref_logits: StateActions, temperature: Scalar) -> Solution:
    """`max_pi <mu, r> - temperature sqrt(chi2(mu‖ref))`.

    Since `temperature sqrt(x) = min_t t x + temperature^2/(4 t)`, the optimum is that of chi2 at
    the t with `2 t sqrt(chi2(mu_t)) = temperature`, whose left side increases with t. The penalty
    has a kink at the reference, which is the optimum itself where the left side stays below the
    temperature. The upper bound in the gap is `(1 - discount) <start, V> + max (e - temperature h)`
    with the advantage e of V, for an h of length at most 1 and mean 0 under the reference.

    Reference: Laidlaw et al. (arXiv:2403.03185), the objective with the square root.
    """
    generator = generators.pearson_chi2()
    ref_logits, temperature = _checked(mdp, ref_logits, temperature, generator)
    problem = Problem(mdp, ref_logits, temperature, generator)
    point, chi2_temperature, count = _solve_root(problem)
    pull = chi2_temperature * problem.slope(point.mass)
    pull = pull - jnp.sum(problem.ref_occupancy * pull)
    pull = pull * jnp.minimum(1, temperature / problem.length(pull))
    excess = jnp.where(problem.inside, problem.advantage(point.value) - pull, -jnp.inf)

    def evaluated(log_mass: Array) -> Solution:
        policy = _conditional(log_mass)
        return problem.evaluated(policy, point, jnp.max(excess), count, root=True)

    both = jax.vmap(evaluated)(jnp.stack([ref_logits, jnp.log(point.mass)]))
    best = jnp.argmax(both.value)
    return jax.tree.map(lambda x: x[best], both)


def _checked(
    mdp: AnyMdp, ref_logits: ArrayLike, temperature: ArrayLike, generator: Generator
) -> tuple[Array, Array]:
    """The normalized reference and the temperature, in one precision."""
    generators.checked_row(generator, invertible=True)
    ref_logits = _like_reward(mdp, ref_logits)
    temperature = checks.positive("temperature", temperature)
    shape = ref_logits.shape
    ref_logits = numerics.log_softmax(ref_logits.ravel()).reshape(shape)
    return ref_logits, jnp.asarray(temperature, ref_logits.dtype)


def _like_reward(mdp: AnyMdp, ref_logits: ArrayLike) -> Array:
    """Logits for all states and actions of the process."""
    ref_logits = checks.as_float("ref_logits", ref_logits)
    if ref_logits.shape != mdp.reward.shape:
        raise ValueError(
            f"ref_logits must have the reward's shape {tuple(mdp.reward.shape)},"
            f" got {tuple(ref_logits.shape)}"
        )
    return ref_logits


def _conditional(log_mass: Array) -> Array:
    """The policy `mu(s, a)/mu(s)` of a measure, `[S, A]`; uniform where there is no mass."""
    empty = jnp.max(log_mass, axis=-1, keepdims=True) == -jnp.inf
    return jnp.exp(numerics.log_softmax(jnp.where(empty, 0, log_mass)))


# ------------------------------------------------------------------------------------------ solver


class PrimalDual(NamedTuple):
    """A primal-dual point of the interior-point method, or a step from one.

    Fields:
        mass: `[S, A]` mu, positive where the reference is; its flows balance in the end.
        value: `[S]` V, multipliers of the balance of flows.
        price: `[S, A]` multipliers of `mu >= 0`.
    """

    mass: Array
    value: Array
    price: Array


class Problem(NamedTuple):
    """`max <mu, r> - temperature D(mu‖ref)` where mu >= 0 and the flows balance.

    They do where `discount inflow - outflow + (1 - discount) start = 0`.

    Fields:
        mdp: The process.
        ref_logits: `[S, A]`, normalized: its exponentials sum to 1.
        temperature: `[]` weight of the divergence.
        generator: The row D.
    """

    mdp: AnyMdp
    ref_logits: Array
    temperature: Array
    generator: Generator

    @property
    def ref_occupancy(self) -> Array:
        """`[S, A]` the reference."""
        return jnp.exp(self.ref_logits)

    @property
    def inside(self) -> Array:
        """`[S, A]` where the reference has mass."""
        return self.ref_logits != -jnp.inf

    def advantage(self, value: PerState) -> Array:
        """`e = r + discount P V - V`, `[S]` to `[S, A]`."""
        return action_values(self.mdp, value) - value[:, None]

    def advantage_change(self, value: PerState) -> Array:
        """The linear part of `advantage`, `discount P V - V`."""
        return self.mdp.discount * self.mdp.expectation(value) - value[:, None]

    def imbalance(self, mass: StateActions) -> Array:
        """`discount inflow - outflow`, `[S, A]` to `[S]`: the adjoint of `advantage_change`."""
        return self.mdp.discount * self.mdp.flow(mass) - jnp.sum(mass, axis=-1)

    def log_ratio(self, mass: StateActions) -> Array:
        """`log mu/ref`, 0 where the reference has nothing."""
        log_mass = jnp.log(jnp.where(self.inside, mass, 1))
        return log_mass - jnp.where(self.inside, self.ref_logits, 0)

    def slope(self, mass: StateActions) -> Array:
        """`f'(mu/ref)`."""
        return self.generator.slope(self.log_ratio(mass))

    def length(self, x: StateActions) -> Array:
        """`sqrt(E_ref[x^2])`."""
        return jnp.sqrt(jnp.sum(self.ref_occupancy * x**2))

    def curvature(self, weight: StateActions) -> Array:
        """`[S, S]` `sum w (discount P - 1)(discount P - 1)'` over states and actions."""
        discount = self.mdp.discount
        once = discount * self.mdp.policy_transition(weight)
        twice = discount**2 * _joint_transition(self.mdp, weight)
        return jnp.diag(jnp.sum(weight, axis=-1)) - once - once.T + twice

    def balance(self, mass: StateActions) -> Array:
        """`[S]` the left side of the constraint, 0 for an occupancy measure."""
        return self.imbalance(mass) + (1 - self.mdp.discount) * self.mdp.start

    def spread(self) -> Array:
        """`[]` the largest difference of two rewards, plus the temperature: the prices' scale."""
        return jnp.max(self.mdp.reward) - jnp.min(self.mdp.reward) + self.temperature

    def initial(self) -> PrimalDual:
        """All cells alike, and prices as large as rewards may differ."""
        inside = self.inside.astype(self.ref_logits.dtype)
        value = policy_value(self.mdp, _conditional(self.ref_logits))
        return PrimalDual(inside / jnp.sum(inside), value, self.spread() * inside)

    def system(self, point: PrimalDual) -> tuple[Array, Array, Callable[[Array], Array]]:
        """`D = mu/(temperature steepness + z)`, f', and the solution of `A' D A x = y`.

        `steepness = d f'(e^t)/dt` at `t = log mu/ref` is `mu/ref f''(mu/ref)`, and A is
        `advantage_change`.
        """
        t = self.log_ratio(point.mass)
        slope, steepness = jax.jvp(self.generator.slope, (t,), (jnp.ones_like(t),))
        gain = point.mass / jnp.where(self.inside, self.temperature * steepness + point.price, 1)
        matrix = self.curvature(gain)
        diagonal = jnp.diagonal(matrix)
        unvisited = diagonal <= 0  # states that the reference never visits
        scale = jnp.where(unvisited, 0, 1 / jnp.sqrt(jnp.where(unvisited, 1, diagonal)))
        unit = jnp.diag(unvisited.astype(scale.dtype))
        factor = cho_factor(scale[:, None] * matrix * scale[None, :] + unit)
        return gain, slope, lambda y: scale * cho_solve(factor, scale * y)

    def newton(self, point: PrimalDual) -> Callable[[ArrayLike, ArrayLike], PrimalDual]:
        """Newton's step, a function of the target of `mu z` and of its second-order part.

        For `e - temperature f' + z = 0`, `mu z = target` and the balance; with q the errors of the
        first two, `dmu = D (A dV + q)`, and the balance gives dV.
        """
        gain, slope, inverse = self.system(point)
        mass = jnp.where(self.inside, point.mass, 1)
        stationary = self.advantage(point.value) - self.temperature * slope + point.price
        balance = self.balance(point.mass)

        def step(target: ArrayLike, second_order: ArrayLike) -> PrimalDual:
            rest = target - point.mass * point.price - second_order
            error = jnp.where(self.inside, stationary + rest / mass, 0)
            value = inverse(-balance - self.imbalance(gain * error))
            change = gain * (self.advantage_change(value) + error)
            price = jnp.where(self.inside, (rest - point.price * change) / mass, 0)
            return PrimalDual(change, value, price)

        return step

    def solve(self) -> tuple[PrimalDual, Array]:
        """The point at the optimum, and the steps to it.

        Mehrotra's predictor and corrector, with one length for primal and dual variables. Ends when
        `sum mu z`, the gap of a feasible point, and the imbalance are down to rounding.

        Reference: Mehrotra 1992; Wright 1997, Primal-dual interior-point methods, chapter 10.
        """
        eps = jnp.finfo(self.ref_logits.dtype).eps
        cells = jnp.sum(self.inside.astype(self.ref_logits.dtype))

        def unfinished(state):
            _, error, count = state
            return (error > 16 * eps * self.spread()) & (count < 100)

        def step(state):
            point, _, count = state
            newton = self.newton(point)
            affine = newton(0.0, 0.0)
            predicted = _advance(point, affine, _step_length(point, affine, 1.0))
            gap = jnp.sum(point.mass * point.price)
            target = (jnp.sum(predicted.mass * predicted.price) / gap) ** 3 * gap / cells
            move = newton(target, affine.mass * affine.price)
            point = _advance(point, move, _step_length(point, move, 0.995))
            gap = jnp.sum(point.mass * point.price)
            return point, gap + jnp.max(jnp.abs(self.balance(point.mass))), count + 1

        start = self.initial(), jnp.full_like(self.temperature, jnp.inf), 0
        point, _, count = jax.lax.while_loop(unfinished, step, start)
        return point, jnp.asarray(count)

    def evaluated(
        self, policy: Array, point: PrimalDual, bound: Array, count: Array, *, root: bool = False
    ) -> Solution:
        """The solution of a policy: its objective, and how far that may be from the best."""
        mass = jnp.maximum(occupancy(self.mdp, policy), 0)
        distance = divergence(jnp.log(mass), self.ref_logits, generator=self.generator)
        penalty = self.temperature * (jnp.sqrt(distance) if root else distance)
        value = jnp.sum(mass * self.mdp.reward) - penalty
        upper = (1 - self.mdp.discount) * (self.mdp.start @ point.value) + bound
        policy, mass = (jnp.where(jnp.isnan(value), jnp.nan, x) for x in (policy, mass))
        return Solution(policy, mass, value, upper - value, distance, count)


def _solve_root(problem: Problem) -> tuple[PrimalDual, Array, Array]:
    """The optimum of the root penalty, the temperature at which chi2 has it, all steps.

    On the scale of logarithms `g = log(2 t sqrt(chi2(mu_t))/temperature)` has a slope from 0 to 1,
    so a step of -g does not go past the root, and Newton's step is longer. Starts where chi2 costs
    so much that no cell is dropped: there g is at its largest.
    """
    temperature = problem.temperature

    def excess(minus_log_t, kept):
        chi2_problem = problem._replace(temperature=jnp.exp(-minus_log_t))
        point, more = chi2_problem.solve()
        # Derivative of mu_t by t: dmu = D (A dV - f') dt, in balance.
        gain, slope, inverse = chi2_problem.system(point)
        length = problem.length(slope)  # 2 sqrt(chi2)
        value = inverse(problem.imbalance(gain * slope))
        change = jnp.sum(slope * gain * (problem.advantage_change(value) - slope))
        derivative = jnp.clip(1 + 2 * chi2_problem.temperature * change / length**2, 0.05, 1)
        excess = jnp.log(length / temperature) - minus_log_t
        return excess, -derivative, (point, kept[1] + more)

    # Below 0 where it is largest: the reference is the optimum.
    largest = jnp.log(problem.spread() / (1 - problem.mdp.discount))
    minus_log_t, (point, steps) = roots.decreasing(
        excess,
        -largest,
        None,
        (problem.initial(), jnp.asarray(0)),
        tolerance=jnp.finfo(temperature.dtype).eps ** 0.6,
        limit=60,
    )
    return point, jnp.exp(-minus_log_t), steps


def _step_length(point: PrimalDual, move: PrimalDual, share: float) -> Array:
    """The length, at most 1, by which what must stay positive loses at most this share."""
    pairs = ((point.mass, move.mass), (point.price, move.price))
    lost = [jnp.max(jnp.where(dx < 0, -dx / jnp.where(dx < 0, x, 1), 0)) for x, dx in pairs]
    return jnp.minimum(1, share / jnp.maximum(jnp.maximum(*lost), share))


def _advance(point: PrimalDual, move: PrimalDual, length: Array) -> PrimalDual:
    """`point + length move`."""
    return jax.tree.map(lambda x, dx: x + length * dx, point, move)


def _joint_transition(mdp: AnyMdp, weight: Array) -> Array:
    """`[S, S]` `sum_sa w P(t|s, a) P(u|s, a)`."""
    if not isinstance(mdp, SparseMdp):
        return jnp.einsum("sa,sat,sau->tu", weight, mdp.transition, mdp.transition)
    first, second = mdp.successor[..., :, None], mdp.successor[..., None, :]
    pair = mdp.probability[..., :, None] * mdp.probability[..., None, :]
    matrix = jnp.zeros(2 * mdp.start.shape, mdp.probability.dtype)
    return matrix.at[first, second].add(weight[..., None, None] * pair)
