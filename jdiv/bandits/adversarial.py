"""Adversarial losses: follow the regularized leader with any generator, estimators, two drivers.

A learner is three functions, `init(arms) -> state`, `act(state) -> log p` and
`update(state, loss) -> state`. All of them are one: `ftrl` plays

    p_t = argmin_p <p, L_{t-1} + m_t> + temperature_t D(p‖uniform)

with L the losses so far, or estimates of them, m a guess of the next one (none, unless it is
optimistic), and D any f-divergence that is strictly convex; that is `regularized.greedy` of -(L+m).
Its KL is Hedge and, with estimated losses, Exp3; alpha = 1/2 is Tsallis-INF; reverse KL is the
log barrier. With a constant temperature and a generator that is a mirror map this is mirror descent
(`online_mirror_descent`). `full_information` shows the learner every loss, `bandit` only that of
the arm pulled.

Last come learners that need no simplex: optimistic descent on a ball, and implicit updates of
linear predictors.

Statements with the tag `Reconstructed` are derived here, and tested, from the abstracts of the
papers and secondary notes on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, regularized
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator
from jdiv.types import PerSample, RandomKey, Samples, Scalar


class State(NamedTuple):
    """Everything that a learner has seen.

    Fields:
        losses: `[arms]` the sum of losses, or of their estimates.
        hint: `[arms]` guess of the next loss: the last one if optimistic, else 0.
        time: `[]` the next round, counted from 1.
    """

    losses: Array
    hint: Array
    time: Array


class Learner(NamedTuple):
    """An online learner: three pure functions of its state.

    Fields:
        init: `init(arms, dtype)` to the state before the first round.
        act: `act(state)` to the log-probabilities `[arms]` of this round.
        update: `update(state, loss)` with a loss or an estimate of it, `[arms]`.
    """

    init: Callable[..., State]
    act: Callable[[State], Array]
    update: Callable[[State, Array], State]


Temperature = Callable[[int, Array], ArrayLike]
"""`temperature(arms, time)`: the weight of the divergence by number of arms and round."""


def ftrl(temperature: Temperature, *, generator: Generator, optimistic: bool = False) -> Learner:
    """Follow the leader, regularized by `temperature(arms, t) D(p‖uniform)`.

    An optimistic learner takes the last loss for the next.

    >>> learner = ftrl(lambda arms, t: 2.0, generator=generators.kl())
    >>> state = learner.update(learner.init(2), jnp.array([0.0, 2.0 * jnp.log(3.0)]))
    >>> [f"{p:.4f}" for p in jnp.exp(learner.act(state))]
    ['0.7500', '0.2500']

    Reference: Rakhlin and Sridharan 2013 (arXiv:1208.3728), section 2, with the hint; Orabona 2019
    (arXiv:1912.13213), section 7, without.
    """
    generators.checked_row(generator, invertible=True)

    def init(arms: int, dtype=None) -> State:
        none = jnp.zeros(arms, dtype)
        return State(none, none, jnp.ones((), none.dtype))

    def act(state: State) -> Array:
        values = -(state.losses + state.hint)
        weight = jnp.asarray(temperature(values.shape[0], state.time), values.dtype)
        best = regularized.greedy(values, jnp.zeros_like(values), weight, generator=generator)
        return best.log_policy

    def update(state: State, loss: Array) -> State:
        hint = loss if optimistic else jnp.zeros_like(loss)
        return State(state.losses + loss, hint, state.time + 1)

    return Learner(init, act, update)


def online_mirror_descent(
    step_size: Scalar, *, generator: Generator, optimistic: bool = True
) -> Learner:
    """Mirror descent with the Bregman divergence B of a generator, by default optimistic.

    `p_t = argmin_p s <p, m_t> + B(p, z_t)` and `z_{t+1} = argmin_p s <p, l_t> + B(p, z_t)` with the
    step size s, from the uniform z_1, with the last loss for the hint m_t, or 0. A mirror map has
    slope -inf at 0: no step reaches the border, the steps add up, and this is `ftrl` with
    temperature 1/s. A generator of finite slope there is refused; `ftrl` takes it, which is then
    another algorithm.

    >>> online_mirror_descent(1.0, generator=generators.pearson_chi2())
    Traceback (most recent call last):
    ValueError: generator must be a mirror map, of slope -inf at 0, got pearson_chi2 with slope -2.0

    Reference: Rakhlin and Sridharan 2013 (arXiv:1208.3728), section 3; Orabona 2019
    (arXiv:1912.13213), section 6, for mirror maps.
    """
    step_size = checks.positive("step_size", step_size)
    with jax.ensure_compile_time_eval():
        slope = jnp.asarray(generator.slope_at_zero)
        # Where the parameter of the generator is traced it cannot be told.
        slope = -np.inf if isinstance(slope, jax.core.Tracer) else slope.item()
    if slope > -np.inf:
        raise ValueError(
            "generator must be a mirror map, of slope -inf at 0, got"
            f" {generator.name} with slope {slope}"
        )
    return ftrl(lambda arms, t: 1 / step_size, generator=generator, optimistic=optimistic)


def hedge(step_size: Scalar, *, optimistic: bool = False) -> Learner:
    """Exponential weights, `p ∝ exp(-step_size L)`.

    Regret on [0, 1] is at most `log K / step_size + step_size T / 8`; the step size
    `sqrt(8 log K / T)` makes that `sqrt(T log K / 2)`.

    Reference: Freund and Schapire 1997, section 2.
    """
    return online_mirror_descent(step_size, generator=generators.kl(), optimistic=optimistic)


def tsallis_inf(step_size: Scalar = 2.0) -> Learner:
    """Tsallis' entropy at 1/2: `p_a = 4 / (s_t (L_a - x))^2` with `s_t = step_size / sqrt(t)`.

    With importance-weighted losses in [0, 1] and step size 2: regret `4 sqrt(K T) + 1`.

    Reference: Zimmert and Seldin 2021 (arXiv:1807.07623), Algorithm 1 and Theorem 1.
    """
    step_size = checks.positive("step_size", step_size)
    # The row's divergence from uniform is -4 sum sqrt(p) / sqrt(K), up to a constant.
    return ftrl(lambda arms, t: jnp.sqrt(arms * t) / step_size, generator=generators.alpha(0.5))


def log_barrier(step_size: Scalar) -> Learner:
    """`argmin <p, L> + sum_a log(1/p_a) / s`, `p_a = 1 / (s L_a + nu)`, with the step size s.

    Regret to `u = (1 - 1/T) best + 1/(T K)` is at most `K log T / s + s/2 sum_t <p_t, l_t^2>` for
    whatever losses, however negative: a log-ratio r = p'/p costs `r - 1 - log r`, which is at least
    `p (r - 1)^2 / 2`. Exponential weights need `s l >= -1` for the same. The
    bound also holds with `s sum_t <p_t^2, l_t^2>` where all `s p_t l_t >= -1/2`, and not without.

    Reference: Dai et al. 2023 (arXiv:2301.12942).
    Reconstructed: the algorithm and the absence of a condition, from the abstract; bounds derived.
    """
    step_size = checks.positive("step_size", step_size)
    # KL(uniform‖p) is (1/K) sum_a log(1/p_a), up to a constant.
    return ftrl(lambda arms, t: arms / step_size, generator=generators.reverse_kl())


def exploring(learner: Learner, share: Scalar) -> Learner:
    """`(1 - share) p + share / K`: the learner with uniform exploration, as in Exp3's first form.

    Reference: Auer et al. 2002, The Nonstochastic Multiarmed Bandit Problem, Figure 1.
    """

    share = checks.in_range("share", share, 0, 1, "between 0 and 1, exclusive")

    def act(state: State) -> Array:
        log_p = learner.act(state)
        return jnp.logaddexp(jnp.log1p(-share) + log_p, jnp.log(share / log_p.shape[0]))

    return learner._replace(act=act)


# -------------------------------------------------------------------------------------- estimators

Estimator = Callable[[Array, Array, Array], Array]
"""`estimator(log_policy, arm, loss)`: losses of all arms, `[arms]`, from that of the arm pulled."""


def importance_weighting(*, bias: Scalar = 0.0, low: Scalar = 0.0) -> Estimator:
    """`low + 1{a pulled} (loss - low) / (p_a + bias)`: without bias of the right expectation.

    A positive bias, half the step size of exponential weights, makes the estimate small enough for
    bounds with high probability (Exp3-IX). No estimate lies below `low` if no loss does: that is
    `magnitude_reduced` for arms without common features.

    Reference: Neu 2015 (arXiv:1506.03271), equation 3.
    """
    bias, low = checks.not_negative("bias", bias), checks.finite("low", low)

    def estimate(log_p: Array, arm: Array, loss: Array) -> Array:
        pulled = jnp.arange(log_p.shape[0]) == arm
        p = jnp.where(pulled, jnp.exp(log_p), 1)
        return low + jnp.where(pulled, (loss - low) / (p + bias), 0)

    return estimate


def linear(features: Samples) -> Estimator:
    """`k(a, b) loss` for the pulled arm b, `k = phi_a' S^-1 phi_b`, `S = sum_b p_b phi_b phi_b'`.

    Right in expectation for losses that are linear in the features. Shapes: features `[arms, d]`,
    of rank d.

    Reference: Dani, Hayes and Kakade 2008, The Price of Bandit Information, section 3.
    """
    features = _features(features)

    def estimate(log_p: Array, arm: Array, loss: Array) -> Array:
        return _kernel(features, log_p)[:, arm] * loss

    return estimate


def magnitude_reduced(features: Samples, low: Scalar, high: Scalar) -> Estimator:
    """`linear`, minus a lower bound of it, plus the mean of that bound: `l - (l)_- + E[(l)_-]`.

    The bound is the least that `k(a, b) loss` can be with losses in [low, high], low <= 0 <= high;
    for [0, high] it is `high (k)_-`. So the expectation stays, and the estimate of an arm is never
    below `-max(high, -low) ||phi_a||`, in the norm of S^-1, where `linear` goes down to its square.

    Reference: Dai et al. 2023 (arXiv:2301.12942), the magnitude-reduced estimator.
    Reconstructed: the formula, from the abstract.
    """
    features = _features(features)
    low = checks.in_range("low", low, -jnp.inf, 0, "finite and at most 0", closed="high")
    high = checks.in_range("high", high, 0, jnp.inf, "finite and at least 0", closed="low")

    def estimate(log_p: Array, arm: Array, loss: Array) -> Array:
        kernel = _kernel(features, log_p)
        floor = jnp.minimum(kernel * low, kernel * high)
        return kernel[:, arm] * loss - floor[:, arm] + floor @ jnp.exp(log_p)

    return estimate


def _features(features: ArrayLike) -> Array:
    features = checks.as_float("features", features)
    if features.ndim != 2 or not 0 < features.shape[1] <= features.shape[0]:
        raise ValueError(
            f"features must be of shape [arms, d] with 0 < d <= arms, got {tuple(features.shape)}"
        )
    return features


def _kernel(features: Array, log_p: Array) -> Array:
    """`phi_a' S^-1 phi_b`, `[arms, arms]`."""
    weighted = jnp.exp(log_p / 2)[:, None] * features
    return features @ jnp.linalg.solve(weighted.T @ weighted, features.T)


# ----------------------------------------------------------------------------------------- drivers


class Play(NamedTuple):
    """Policies, pulls and losses of one run.

    Fields:
        log_policy: `[horizon, arms]` the policy of each round.
        arms: `[horizon]` the arms pulled; the likeliest where there are no pulls.
        estimates: `[horizon, arms]` the losses that the learner was shown.
    """

    log_policy: Array
    arms: Array
    estimates: Array


def full_information(learner: Learner, losses: Samples) -> Play:
    """Plays against losses `[horizon, arms]`, all of which it sees after each round.

    >>> losses = jnp.tile(jnp.array([[0.0, 1.0]]), (100, 1))
    >>> print(f"{regret(full_information(hedge(1.0), losses), losses)[-1]:.4f}")
    0.9642
    """
    losses = _losses(losses)

    def round(state: State, loss: Array):
        log_p = learner.act(state)
        return learner.update(state, loss), Play(log_p, jnp.argmax(log_p), loss)

    return jax.lax.scan(round, learner.init(losses.shape[1], losses.dtype), losses)[1]


def bandit(learner: Learner, losses: Samples, estimator: Estimator, key: RandomKey) -> Play:
    """Plays against losses `[horizon, arms]` and sees that of the arm it pulls.

    The losses are fixed beforehand: the adversary is oblivious.

    >>> losses = jnp.tile(jnp.array([[0.0, 1.0]]), (100, 1))
    >>> played = bandit(hedge(0.2), losses, importance_weighting(), jax.random.key(0))
    >>> played.estimates.shape, jnp.exp(played.log_policy[0]).tolist()
    ((100, 2), [0.5, 0.5])

    Reference: Slivkins 2019 (arXiv:1904.07272), section 6.1.
    """
    losses = _losses(losses)

    def round(state: State, loss_and_key: tuple[Array, Array]):
        loss, key = loss_and_key
        log_p = learner.act(state)
        arm = jax.random.categorical(key, log_p)
        estimate = estimator(log_p, arm, loss[arm])
        return learner.update(state, estimate), Play(log_p, arm, estimate)

    keys = jax.random.split(key, losses.shape[0])
    return jax.lax.scan(round, learner.init(losses.shape[1], losses.dtype), (losses, keys))[1]


def regret(play: Play, losses: Samples) -> Array:
    """`sum_s <p_s, l_s> - min_a sum_s l_s(a)` up to each round.

    The expectation over the arm of the round is exact, and the best arm that of the rounds so far.
    Shapes: losses `[horizon, arms]` to `[horizon]`.
    """
    losses = _losses(losses)
    paid = jnp.sum(jnp.exp(play.log_policy) * losses, axis=-1)
    return jnp.cumsum(paid) - jnp.min(jnp.cumsum(losses, axis=0), axis=-1)


def _losses(losses: ArrayLike) -> Array:
    losses = checks.as_float("losses", losses)
    if losses.ndim != 2 or 0 in losses.shape:
        raise ValueError(f"losses must be of shape [horizon, arms], got {tuple(losses.shape)}")
    return losses


# -------------------------------------------------------------------- optimistic descent on a ball


def optimistic_descent(
    gradient: Callable[[Array, Any], Array],
    inputs: Any,
    dimension: int,
    *,
    diameter: Scalar,
    offset: Scalar,
    optimistic: bool = True,
    count_present: bool = False,
) -> Array:
    """Points `[horizon, dimension]` of optimistic mirror descent on a ball, Euclidean, adaptive.

    `x_t = Proj(z_t - s_t m_t)`, then `z_{t+1} = Proj(z_t - s_t g_t)` with `g_t` the gradient
    `gradient(x_t, inputs[t])`, the step size `s_t = diameter / sqrt(offset + sum_{r<t}
    ||g_r - m_r||^2)` and the hint `m_t = g_{t-1}`, or 0 if it is not optimistic. To count the
    present round as well makes the second step `z_t - s_{t+1} g_t`. Nothing depends on the horizon.

    >>> points = optimistic_descent(lambda x, c: c, jnp.ones((3, 1)), 1, diameter=2.0, offset=1.0)
    >>> [f"{x:.4f}" for x in points[:, 0]]
    ['0.0000', '-1.0000', '-1.0000']

    Reference: Chen et al. 2024, Optimistic Online Mirror Descent for Bridging Stochastic and
    Adversarial Online Convex Optimization (JMLR 25(178)); there the offset is `delta + 4 G^2`, with
    G a bound of the gradients.
    Reconstructed: the step size, from the abstract and secondary notes.
    """
    dimension = checks.whole("dimension", dimension, 1, 2**31 - 1, "at least 1")
    diameter = checks.positive("diameter", diameter)
    offset = checks.positive("offset", offset)

    def project(x: Array) -> Array:
        norm = jnp.linalg.norm(x)
        radius = jnp.asarray(diameter, x.dtype) / 2
        return jnp.where(norm > radius, radius / jnp.where(norm > radius, norm, 1), 1) * x

    def round(state, given):
        z, hint, variation = state
        step_size = diameter / jnp.sqrt(offset + variation)
        x = project(z - step_size * hint)
        g = gradient(x, given)
        variation = variation + jnp.sum((g - hint) ** 2)
        if count_present:
            step_size = diameter / jnp.sqrt(offset + variation)
        return (project(z - step_size * g), g if optimistic else hint, variation), x

    dtype = jnp.result_type(*jax.tree.leaves(inputs))
    origin = jnp.zeros(dimension, dtype)
    return jax.lax.scan(round, (origin, origin, jnp.zeros((), dtype)), inputs)[1]


# -------------------------------------------------------------------------------- implicit updates


class Fit(NamedTuple):
    """Weights and losses of one pass of a linear predictor over a stream.

    Fields:
        weights: `[horizon, d]` before each example.
        losses: `[horizon]` suffered.
        terms: `[horizon]`: losses less those of any u are at most `||u||^2 / (2 step_size) + sum
            terms`.
        gains: `[horizon]` by how much the update is better than the linear one: `H(g) - H(z)`.
    """

    weights: Array
    losses: Array
    terms: Array
    gains: Array


def squared_step(residual: Array, curvature: Array) -> Array:
    """`r / (1 + c)`, `c = step_size ||w||^2`: the residual of an example after its own step."""
    return residual / (1 + curvature)


def absolute_step(residual: Array, curvature: Array) -> Array:
    """`r / c` within [-1, 1], `c = step_size ||w||^2`: never past the target."""
    outside = jnp.abs(residual) >= curvature
    return jnp.where(outside, jnp.sign(residual), residual / jnp.where(outside, 1, curvature))


class LinearLoss(NamedTuple):
    """A loss of the residual `r = <w, x> - y`, and its implicit step.

    Fields:
        value: `value(r)`, the loss.
        slope: `slope(r)`, its derivative.
        conjugate: The conjugate without its linear part: at s it is this plus `s y`.
        step: `step(r, c)`, the implicit step at curvature `c = step_size ||w||^2`.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    conjugate: Callable[[Array], Array]
    step: Callable[[Array, Array], Array]


SQUARED = LinearLoss(lambda r: r**2 / 2, lambda r: r, lambda s: s**2 / 2, squared_step)
"""`r^2 / 2`."""
ABSOLUTE = LinearLoss(jnp.abs, jnp.sign, jnp.zeros_like, absolute_step)
"""`|r|`."""


def linear_predictor(
    features: Samples,
    targets: PerSample,
    step_size: Scalar,
    *,
    loss: LinearLoss = SQUARED,
    implicit: bool = True,
) -> Fit:
    """Follow the regularized leader of `||x||^2 / (2 step_size)` with the steps `z_t = s_t w_t`.

    The linear update has for s the slope of the loss, the implicit one the least of
    `H(s) = -s r + c s^2 / 2 + conjugate`, `c = step_size ||w||^2`. Any s with `H(s) <= H(slope)`
    has the bound of the linear update minus the difference (`terms`).
    Shapes: features `[horizon, d]`, targets `[horizon]`.

    >>> linear_predictor(jnp.ones((3, 1)), jnp.ones(3), 1.0).losses
    Array([0.5    , 0.125  , 0.03125], dtype=float32)

    Reference: Chen and Orabona 2023, Generalized Implicit Follow-The-Regularized-Leader (ICML);
    the closed form of the squared loss is that of Kulis and Bartlett 2010.
    Reconstructed: the statement on H, from the abstract; the bound is derived.
    """
    features = checks.as_float("features", features)
    targets = checks.as_float("targets", targets)
    if not isinstance(loss, LinearLoss):
        raise TypeError(f"loss must be a LinearLoss such as SQUARED or ABSOLUTE, got {loss!r}")
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            "features and targets must be of shapes [horizon, d] and [horizon], got"
            f" {tuple(features.shape)} and {tuple(targets.shape)}"
        )
    step_size = checks.positive("step_size", step_size)

    def example(x: Array, given: tuple[Array, Array]):
        w, y = given
        residual, curvature = w @ x - y, step_size * (w @ w)
        slope = loss.slope(residual)
        s = loss.step(residual, curvature) if implicit else slope

        def h(s: Array) -> Array:
            return -s * residual + curvature * s**2 / 2 + loss.conjugate(s)

        gain = h(slope) - h(s)
        terms = curvature * slope**2 / 2 - gain
        return x - step_size * s * w, Fit(x, loss.value(residual), terms, gain)

    start = jnp.zeros(features.shape[1], features.dtype)
    return jax.lax.scan(example, start, (features, targets.astype(features.dtype)))[1]
