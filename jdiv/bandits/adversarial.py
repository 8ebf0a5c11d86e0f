"""Adversarial losses: follow the regularised leader with any generator, estimators, two drivers.

A learner is three functions, `init(arms) -> state`, `act(state) -> log p` and
`update(state, loss) -> state`. All of them are one: `ftrl` plays

    p_t = argmin_p <p, L_{t-1} + m_t> + temperature_t D(p‖uniform)

with L the losses so far, or estimates of them, m a guess of the next one (none, unless it is
optimistic), and D any f-divergence that is strictly convex; that is `regularized.greedy` of -(L+m).
Its KL is Hedge and, with estimated losses, Exp3; alpha = 1/2 is Tsallis-INF; reverse KL is the
log barrier. With a constant temperature and a generator that is a mirror map this is mirror descent
(`mirror_descent`). `full_information` shows the learner every loss, `bandit` only that of the arm
pulled.

Last come learners that need no simplex: optimistic descent on a ball, and implicit updates of
linear predictors.

Of Dai et al. 2023, Chen et al. 2024 and Chen and Orabona 2023 the abstracts and secondary notes
were at hand, not the texts: what the docstrings state of them is derived here and tested, and the
places in those papers are not given.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, regularized
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator


class State(NamedTuple):
    """What a learner has seen."""

    losses: Array
    """`[arms]` the sum of losses, or of their estimates."""
    hint: Array
    """`[arms]` guess of the next loss: the last one if optimistic, else 0."""
    time: Array
    """The round that comes, from 1."""


class Learner(NamedTuple):
    """Three pure functions; what has been seen is in the state and nowhere else."""

    init: Callable[..., State]
    """`init(arms, dtype)` to the state before the first round."""
    act: Callable[[State], Array]
    """`act(state)` to the log-probabilities `[arms]` of this round."""
    update: Callable[[State, Array], State]
    """`update(state, loss)` with a loss or an estimate of it, `[arms]`."""


Temperature = Callable[[int, Array], ArrayLike]
"""Weight of the divergence from the number of arms and the round."""


def ftrl(generator: Generator, temperature: Temperature, *, optimistic: bool = False) -> Learner:
    """Follow the leader, regularised by `temperature(arms, t) D(p‖uniform)`.

    An optimistic learner takes the last loss for the next.

    >>> learner = ftrl(generators.kl(), lambda arms, t: 2.0)
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
        return regularized.greedy(
            values, jnp.zeros_like(values), weight, generator=generator
        ).log_policy

    def update(state: State, loss: Array) -> State:
        hint = loss if optimistic else jnp.zeros_like(loss)
        return State(state.losses + loss, hint, state.time + 1)

    return Learner(init, act, update)


def mirror_descent(generator: Generator, rate: ArrayLike, *, optimistic: bool = True) -> Learner:
    """Mirror descent with the Bregman divergence B of a generator, by default optimistic.

    `p_t = argmin_p rate <p, m_t> + B(p, z_t)` and `z_{t+1} = argmin_p rate <p, l_t> + B(p, z_t)`
    from the uniform z_1, with the last loss for the hint m_t, or 0. A mirror map has slope -inf at
    0: no step reaches the border, the steps add up, and this is `ftrl` with temperature 1/rate. A
    generator of finite slope there is refused; `ftrl` takes it, which is then another algorithm.

    >>> mirror_descent(generators.pearson_chi2(), 1.0)
    Traceback (most recent call last):
    ValueError: generator must be a mirror map, of slope -inf at 0, got pearson_chi2 with slope -2.0

    Reference: Rakhlin and Sridharan 2013 (arXiv:1208.3728), section 3; Orabona 2019
    (arXiv:1912.13213), section 6, for mirror maps.
    """
    _positive_rate(rate)
    with jax.ensure_compile_time_eval():
        slope = jnp.asarray(generator.slope_at_zero)
        # Where the parameter of the generator is traced it cannot be told.
        slope = -np.inf if isinstance(slope, jax.core.Tracer) else slope.item()
    if slope > -np.inf:
        raise ValueError(
            "generator must be a mirror map, of slope -inf at 0, got"
            f" {generator.name} with slope {slope}"
        )
    return ftrl(generator, lambda arms, t: 1 / rate, optimistic=optimistic)


def hedge(rate: ArrayLike, *, optimistic: bool = False) -> Learner:
    """Exponential weights, `p ∝ exp(-rate L)`: regret `log K / rate + rate T / 8` on [0, 1].

    The rate `sqrt(8 log K / T)` makes that `sqrt(T log K / 2)`.

    Reference: Freund and Schapire 1997, section 2.
    """
    return mirror_descent(generators.kl(), rate, optimistic=optimistic)


def tsallis_inf(rate: ArrayLike = 2.0) -> Learner:
    """Tsallis' entropy at 1/2: `p_a = 4 / (rate_t (L_a - x))^2` with `rate_t = rate / sqrt(t)`.

    With importance-weighted losses in [0, 1] and rate 2: regret `4 sqrt(K T) + 1`.

    Reference: Zimmert and Seldin 2021 (arXiv:1807.07623), Algorithm 1 and Theorem 1.
    """
    _positive_rate(rate)
    # The row's divergence from uniform is -4 sum sqrt(p) / sqrt(K), up to a constant.
    return ftrl(generators.alpha(0.5), lambda arms, t: jnp.sqrt(arms * t) / rate)


def log_barrier(rate: ArrayLike) -> Learner:
    """`argmin <p, L> + sum_a log(1/p_a) / rate`, that is `p_a = 1 / (rate L_a + nu)`.

    Regret to `u = (1 - 1/T) best + 1/(T K)` is at most `K log T / rate + rate/2 sum_t <p_t, l_t^2>`
    for whatever losses, however negative: a log-ratio r = p'/p costs `r - 1 - log r`, which is at
    least `p (r - 1)^2 / 2`. Exponential weights need `rate l >= -1` for the same. Where all
    `rate p_t l_t >= -1/2` also with `rate sum_t <p_t^2, l_t^2>`; not without that condition.

    Reference: Dai et al. 2023 (arXiv:2301.12942), for the algorithm and the absence of a condition.
    """
    _positive_rate(rate)
    # KL(uniform‖p) is (1/K) sum_a log(1/p_a), up to a constant.
    return ftrl(generators.reverse_kl(), lambda arms, t: arms / rate)


def exploring(learner: Learner, share: ArrayLike) -> Learner:
    """`(1 - share) p + share / K`, what Exp3 plays in its first form.

    Reference: Auer et al. 2002, The Nonstochastic Multiarmed Bandit Problem, Figure 1.
    """

    checks.in_range("share", share, 0, 1, "between 0 and 1, exclusive")

    def act(state: State) -> Array:
        log_p = learner.act(state)
        return jnp.logaddexp(jnp.log1p(-share) + log_p, jnp.log(share / log_p.shape[0]))

    return learner._replace(act=act)


def _positive_rate(rate: ArrayLike) -> None:
    checks.positive("rate", rate)


# -------------------------------------------------------------------------------------- estimators

Estimator = Callable[[Array, Array, Array], Array]
"""From log p `[arms]`, the arm pulled and its loss to losses of all arms, `[arms]`."""


def importance_weighting(*, bias: ArrayLike = 0.0, low: ArrayLike = 0.0) -> Estimator:
    """`low + 1{a pulled} (loss - low) / (p_a + bias)`: without bias of the right expectation.

    A positive bias, half the rate of exponential weights, makes the estimate small enough for
    bounds with high probability (Exp3-IX). No estimate lies below `low` if no loss does: that is
    `magnitude_reduced` for arms without common features.

    Reference: Neu 2015 (arXiv:1506.03271), equation 3.
    """
    checks.in_range("bias", bias, 0, jnp.inf, "finite and not negative", closed="low")

    def estimate(log_p: Array, arm: Array, loss: Array) -> Array:
        pulled = jnp.arange(log_p.shape[0]) == arm
        p = jnp.where(pulled, jnp.exp(log_p), 1)
        return low + jnp.where(pulled, (loss - low) / (p + bias), 0)

    return estimate


def linear(features: ArrayLike) -> Estimator:
    """`k(a, b) loss` for the pulled arm b, `k = phi_a' S^-1 phi_b`, `S = sum_b p_b phi_b phi_b'`.

    Right in expectation for losses that are linear in the features. Shapes: features `[arms, d]`,
    of rank d.

    Reference: Dani, Hayes and Kakade 2008, The Price of Bandit Information, section 3.
    """
    features = _features(features)

    def estimate(log_p: Array, arm: Array, loss: Array) -> Array:
        return _kernel(features, log_p)[:, arm] * loss

    return estimate


def magnitude_reduced(features: ArrayLike, low: ArrayLike, high: ArrayLike) -> Estimator:
    """`linear`, minus a lower bound of it, plus the mean of that bound: `l - (l)_- + E[(l)_-]`.

    The bound is the least that `k(a, b) loss` can be with losses in [low, high], low <= 0 <= high;
    for [0, high] it is `high (k)_-`. So the expectation stays, and the estimate of an arm is never
    below `-max(high, -low) ||phi_a||`, in the norm of S^-1, where `linear` goes down to its square.

    Reference: Dai et al. 2023 (arXiv:2301.12942), the magnitude-reduced estimator.
    """
    features = _features(features)
    checks.in_range("low", low, -jnp.inf, 0, "finite and at most 0", closed="high")
    checks.in_range("high", high, 0, jnp.inf, "finite and at least 0", closed="low")

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
    """One run of a learner."""

    log_policy: Array
    """`[horizon, arms]` what it played."""
    arms: Array
    """`[horizon]` the arms pulled; the likeliest where there are no pulls."""
    estimates: Array
    """`[horizon, arms]` the losses that it was shown."""


def full_information(learner: Learner, losses: ArrayLike) -> Play:
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


def bandit(learner: Learner, losses: ArrayLike, key: Array, estimator: Estimator) -> Play:
    """Plays against losses `[horizon, arms]` and sees that of the arm it pulls.

    The losses are fixed beforehand: the adversary is oblivious.

    Reference: Slivkins 2019 (arXiv:1904.07272), section 6.1.
    """
    losses = _losses(losses)

    def round(state: State, now: tuple[Array, Array]):
        loss, key = now
        log_p = learner.act(state)
        arm = jax.random.categorical(key, log_p)
        estimate = estimator(log_p, arm, loss[arm])
        return learner.update(state, estimate), Play(log_p, arm, estimate)

    keys = jax.random.split(key, losses.shape[0])
    return jax.lax.scan(round, learner.init(losses.shape[1], losses.dtype), (losses, keys))[1]


def regret(play: Play, losses: ArrayLike) -> Array:
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
    gradient: Callable[[Array, Array], Array],
    inputs: Array,
    dimension: int,
    *,
    diameter: ArrayLike,
    offset: ArrayLike,
    optimistic: bool = True,
    count_present: bool = False,
) -> Array:
    """Points `[horizon, dimension]` of optimistic mirror descent on a ball, Euclidean, adaptive.

    `x_t = Proj(z_t - eta_t m_t)`, then `z_{t+1} = Proj(z_t - eta_t g_t)` with `g_t` the gradient
    `gradient(x_t, inputs[t])`, `eta_t = diameter / sqrt(offset + sum_{s<t} ||g_s - m_s||^2)` and
    the hint `m_t = g_{t-1}`, or 0 if it is not optimistic. To count the present round as well makes
    the second step `z_t - eta_{t+1} g_t`. Nothing depends on the horizon.

    Reference: Chen et al. 2024, Optimistic Online Mirror Descent for Bridging Stochastic and
    Adversarial Online Convex Optimization (JMLR 25(178)); there the offset is `delta + 4 G^2`, with
    G a bound of the gradients.
    """
    checks.positive("diameter", diameter)
    checks.positive("offset", offset)

    def project(x: Array) -> Array:
        norm = jnp.linalg.norm(x)
        radius = jnp.asarray(diameter, x.dtype) / 2
        return jnp.where(norm > radius, radius / jnp.where(norm > radius, norm, 1), 1) * x

    def round(state, now: Array):
        z, hint, variation = state
        rate = diameter / jnp.sqrt(offset + variation)
        x = project(z - rate * hint)
        g = gradient(x, now)
        variation = variation + jnp.sum((g - hint) ** 2)
        if count_present:
            rate = diameter / jnp.sqrt(offset + variation)
        return (project(z - rate * g), g if optimistic else hint, variation), x

    dtype = jnp.result_type(*jax.tree.leaves(inputs))
    origin = jnp.zeros(dimension, dtype)
    return jax.lax.scan(round, (origin, origin, jnp.zeros((), dtype)), inputs)[1]


# -------------------------------------------------------------------------------- implicit updates


class Fit(NamedTuple):
    """One pass of a linear predictor over a stream."""

    weights: Array
    """`[horizon, d]` before each example."""
    losses: Array
    """`[horizon]` suffered."""
    terms: Array
    """`[horizon]`: losses less those of any u sum to at most `||u||^2 / (2 rate) + sum terms`."""
    gains: Array
    """`[horizon]` by how much the update is better than the linear one: `H(g) - H(z)`."""


def squared_step(residual: Array, curvature: Array) -> Array:
    """`r / (1 + c)`: the residual that the example has after its own step, `c = rate ||w||^2`."""
    return residual / (1 + curvature)


def absolute_step(residual: Array, curvature: Array) -> Array:
    """`r / c` within [-1, 1]: never past the target, `c = rate ||w||^2`."""
    within = jnp.abs(residual) < curvature
    return jnp.where(within, residual / jnp.where(within, curvature, 1), jnp.sign(residual))


class LinearLoss(NamedTuple):
    """A loss of the residual `r = <w, x> - y`, and its implicit step."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    conjugate: Callable[[Array], Array]
    """Without its linear part: the conjugate at s is this plus `s y`."""
    step: Callable[[Array, Array], Array]


LOSSES = {
    "squared": LinearLoss(lambda r: r**2 / 2, lambda r: r, lambda s: s**2 / 2, squared_step),
    "absolute": LinearLoss(jnp.abs, jnp.sign, jnp.zeros_like, absolute_step),
}


def linear_predictor(
    features: ArrayLike,
    targets: ArrayLike,
    rate: ArrayLike,
    *,
    loss: str = "squared",
    implicit: bool = True,
) -> Fit:
    """Follow the regularised leader of `||x||^2 / (2 rate)` with the dual steps `z_t = s_t w_t`.

    The linear update has for s the slope of the loss, the implicit one the least of
    `H(s) = -s r + c s^2 / 2 + conjugate`, `c = rate ||w||^2`. Any s with `H(s) <= H(slope)` has the
    bound of the linear update minus the difference (`terms`).
    Shapes: features `[horizon, d]`, targets `[horizon]`.

    Reference: Chen and Orabona 2023, Generalized Implicit Follow-The-Regularized-Leader (ICML);
    the closed form of the squared loss is that of Kulis and Bartlett 2010.
    """
    features = checks.as_float("features", features)
    targets = checks.as_float("targets", targets)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            "features and targets must be of shapes [horizon, d] and [horizon], got"
            f" {tuple(features.shape)} and {tuple(targets.shape)}"
        )
    _positive_rate(rate)
    row = LOSSES[loss]

    def example(x: Array, now: tuple[Array, Array]):
        w, y = now
        residual, curvature = w @ x - y, rate * (w @ w)
        slope = row.slope(residual)
        s = row.step(residual, curvature) if implicit else slope

        def h(s: Array) -> Array:
            return -s * residual + curvature * s**2 / 2 + row.conjugate(s)

        gain = h(slope) - h(s)
        terms = curvature * slope**2 / 2 - gain
        return x - rate * s * w, Fit(x, row.value(residual), terms, gain)

    start = jnp.zeros(features.shape[1], features.dtype)
    return jax.lax.scan(example, start, (features, targets.astype(features.dtype)))[1]
