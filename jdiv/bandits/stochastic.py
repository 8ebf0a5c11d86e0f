"""Stochastic bandits: policies that look at counts and sums of rewards, and one driver for all.

A policy is a function `choose(state, t, key)` to the arm of the t-th pull, t = 1, 2, ...; all that
it knows is in `State`. The functions below make policies. Ties go to the first
arm, so put the arms in random order where that matters; an arm that was never pulled comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.divergences import categorical
from jdiv.types import Logits, PerSample, PerSequence, RandomKey, Scalar


class State(NamedTuple):
    """Counts and sums of rewards of the arms.

    Fields:
        pulls: `[arms]` the number of pulls.
        rewards: `[arms]` the sum of rewards.
    """

    pulls: Array
    rewards: Array

    @property
    def mean(self) -> Array:
        """`[arms]` mean reward, 0 for an arm without pulls."""
        return self.rewards / jnp.maximum(self.pulls, 1)


Policy = Callable[[State, Array, Array], Array]
"""`choose(state, t, key)`, the arm of the t-th pull; the number of arms, which is none, for NaN."""


class Play(NamedTuple):
    """Regret curve and pull counts of one run.

    Fields:
        regret: `[horizon]` the sum of gaps of the arms pulled so far, after each pull.
        pulls: `[arms]` pulls at the end.
    """

    regret: Array
    pulls: Array


def play(policy: Policy, means: PerSample, horizon: int, key: RandomKey) -> Play:
    """Plays a policy against Bernoulli arms.

    Shapes: means `[arms]`. Regret is pseudo-regret, `sum_t max(mu) - mu_{a_t}`: the noise of the
    rewards is in the choices only.

    >>> run = play(ucb1(), jnp.array([0.9, 0.8]), 100, jax.random.key(0))
    >>> run.regret.shape, run.pulls.sum().item()
    ((100,), 100.0)

    Reference: Slivkins 2019 (arXiv:1904.07272), section 1.1.
    """
    means = checks.share("means", checks.as_float("means", means))
    if means.ndim != 1 or means.shape[0] == 0:
        raise ValueError(f"means must be a vector of at least one arm, got shape {means.shape}")
    horizon = checks.whole("horizon", horizon, 1, 2**31 - 1, "at least 1")
    gaps = jnp.max(means) - means

    def pull(carry: tuple[State, Array], inputs: tuple[Array, Array, Array]):
        (state, regret), (t, uniform, key) = carry, inputs
        arm = policy(state, t, key)
        reward = (uniform < means[arm]).astype(means.dtype)
        state = State(state.pulls.at[arm].add(1), state.rewards.at[arm].add(reward))
        regret = regret + gaps.at[arm].get(mode="fill", fill_value=jnp.nan)
        return (state, regret), regret

    none = jnp.zeros_like(means)
    reward_key, policy_key = jax.random.split(key)
    times = jnp.arange(1, horizon + 1, dtype=means.dtype)
    uniforms = jax.random.uniform(reward_key, (horizon,), means.dtype)
    (state, _), regret = jax.lax.scan(
        pull,
        (State(none, none), jnp.zeros((), means.dtype)),
        (times, uniforms, jax.random.split(policy_key, horizon)),
    )
    return Play(regret, state.pulls)


# ------------------------------------------------------ exploration without regard to the rewards


def explore_first(horizon: int) -> Policy:
    """Every arm N times in turn, then the best mean for ever, `N = (T/K)^(2/3) (log T)^(1/3)`.

    Regret `O(T^(2/3) (K log T)^(1/3))`.

    Reference: Slivkins 2019 (arXiv:1904.07272), section 1.2, Algorithm 1.1.
    """
    horizon = checks.whole("horizon", horizon, 1, 2**31 - 1, "at least 1")

    def choose(state: State, t: Array, key: Array) -> Array:
        arms = state.pulls.shape[0]
        each = jnp.ceil((horizon / arms) ** (2 / 3) * jnp.log(float(horizon)) ** (1 / 3))
        each = each.astype(t.dtype)
        # The arm that was chosen has been pulled more often than that, and stays.
        best = jnp.argmax(jnp.where(state.pulls > each, jnp.inf, state.mean))
        return jnp.where(t <= each * arms, jnp.argmin(state.pulls), best)

    return choose


def epsilon_greedy() -> Policy:
    """A random arm with probability `eps_t = t^(-1/3) (K log t)^(1/3)`, else the best mean.

    Regret `O(T^(2/3) (K log T)^(1/3))`, at every T.

    Reference: Slivkins 2019 (arXiv:1904.07272), section 1.2, Algorithm 1.2.
    """

    def choose(state: State, t: Array, key: Array) -> Array:
        arms = state.pulls.shape[0]
        coin_key, arm_key = jax.random.split(key)
        chance = (arms * jnp.log(t) / t) ** (1 / 3)
        explore = jax.random.uniform(coin_key, dtype=t.dtype) < chance
        random = jax.random.randint(arm_key, (), 0, arms)
        return jnp.where(explore, random, _best(state, state.mean))

    return choose


# --------------------------------------------------------------------- optimism, and its relatives


def successive_elimination(horizon: int) -> Policy:
    """The least pulled of the arms whose interval `mean +- sqrt(2 log T / n)` is not below another.

    Regret `O(sqrt(K T log T))`. An arm is out by the present intervals, which are all that a state
    has: it may come back if the interval that put it out moves down.

    Reference: Slivkins 2019 (arXiv:1904.07272), section 1.3.2, Algorithm 1.4.
    """
    horizon = checks.whole("horizon", horizon, 1, 2**31 - 1, "at least 1")

    def choose(state: State, t: Array, key: Array) -> Array:
        radius = jnp.sqrt(2 * jnp.log(jnp.asarray(horizon, t.dtype)) / state.pulls)
        active = state.mean + radius >= jnp.max(state.mean - radius)
        return jnp.argmin(jnp.where(active, state.pulls, jnp.inf))

    return choose


def ucb1(exploration: Scalar = 2.0) -> Policy:
    """The largest `mean + sqrt(exploration log t / n)`.

    Regret `O(sqrt(K T log T))` and, with gaps, `O(sum_a log T / gap_a)`.

    Reference: Auer, Cesa-Bianchi and Fischer 2002, Figure 1.
    """
    exploration = checks.not_negative("exploration", exploration)

    def choose(state: State, t: Array, key: Array) -> Array:
        width = jnp.sqrt(exploration * jnp.log(t) / jnp.maximum(state.pulls, 1))
        return _best(state, state.mean + width)

    return choose


def kl_ucb(c: Scalar = 0.0, confidence: Scalar = 1.0) -> Policy:
    """The largest `max{q: n kl(mean, q) <= confidence (log t + c log log t)}`.

    The theorem has c = 3 and confidence 1, practice c = 0. Its regret divided by log T tends to
    `lai_robbins`, the smallest possible.

    Reference: Garivier and Cappe 2011 (arXiv:1102.2490), Algorithm 1.
    """
    c, confidence = checks.not_negative("c", c), checks.positive("confidence", confidence)

    def choose(state: State, t: Array, key: Array) -> Array:
        # Below e the iterated logarithm is negative, and there are no such times that matter.
        budget = confidence * (jnp.log(t) + c * jnp.log(jnp.maximum(jnp.log(t), 1)))
        # Logits rank as their probabilities do, of which some would round to 1.
        return _best(state, kl_upper_logit(state.mean, budget / jnp.maximum(state.pulls, 1)))

    return choose


def thompson(prior: tuple[float, float] = (1.0, 1.0)) -> Policy:
    """The largest of one draw from each arm's Beta posterior; both numbers of the prior positive.

    Reference: Thompson 1933; Agrawal and Goyal 2012 (arXiv:1111.1797), Algorithm 1.
    """
    won, lost = (checks.positive("prior", x) for x in prior)

    def choose(state: State, t: Array, key: Array) -> Array:
        return _largest(
            jax.random.beta(key, won + state.rewards, lost + state.pulls - state.rewards)
        )

    return choose


def _best(state: State, index: Array) -> Array:
    """The arm with the largest index, once each has been pulled."""
    unseen = state.pulls == 0
    return jnp.where(jnp.any(unseen), jnp.argmax(unseen), _largest(index))


def _largest(index: Array) -> Array:
    """The arm with the largest index, and no arm if one is NaN."""
    return jnp.where(jnp.any(jnp.isnan(index)), index.shape[0], jnp.argmax(index))


# ------------------------------------------------------------------------------ Bernoulli arms


def bernoulli_logits(mean: PerSequence) -> Logits:
    """`[..., 2]` log-probabilities of 1 and 0 by the mean `[...]`; exact zeros are -inf.

    >>> bernoulli_logits(jnp.array(1.0)).tolist()
    [0.0, -inf]
    """
    mean = checks.share("mean", checks.as_float("mean", mean))
    return jnp.stack([jnp.log(mean), jnp.log1p(-mean)], axis=-1)


def kl_upper_bound(mean: PerSequence, budget: ArrayLike) -> PerSequence:
    """The largest q with `kl(mean, q) <= budget`, between Bernoulli distributions.

    Shapes: mean `[...]` in [0, 1], budget `[...]` or a number, not negative, to `[...]`.

    >>> [f"{q:.4f}" for q in kl_upper_bound(jnp.array([0.0, 0.5, 1.0]), 0.5)]
    ['0.3935', '0.8975', '1.0000']

    Reference: Garivier and Cappe 2011 (arXiv:1102.2490), the index of Algorithm 1.
    """
    mean, budget = _mean_and_budget(mean, budget)
    return jnp.where(budget == 0, mean, jax.nn.sigmoid(kl_upper_logit(mean, budget)))


def _mean_and_budget(mean: PerSequence, budget: ArrayLike) -> tuple[Array, Array]:
    """Means in [0, 1] and budgets that are not negative, of one shape and precision."""
    mean = checks.share("mean", checks.as_float("mean", mean))
    budget = checks.in_range("budget", budget, 0, jnp.inf, "not negative", closed="both")
    budget = checks.per_row("budget", budget, mean[..., None])
    return mean, jnp.broadcast_to(budget[..., 0] if budget.ndim else budget, mean.shape)


def kl_upper_logit(mean: PerSequence, budget: ArrayLike) -> PerSequence:
    """The logit y of `kl_upper_bound`, which keeps its accuracy where that is next to 0 or 1.

    As a function of y the divergence is convex with slope `q - mean`, so Newton's method from the
    right of the root is monotone. It starts at the smaller of two upper bounds, from
    `kl >= (q - mean)^2 / (2 q (1 - mean))` and from `y <= -log(1 - q) <= (budget + H)/(1 - mean)`,
    with H the entropy of mean.
    Shapes: those of `kl_upper_bound`.

    >>> print(f"{kl_upper_logit(jnp.array(1.0 - 2.0**-20), 50.0):.1f}")
    52428816.0
    """
    mean, budget = _mean_and_budget(mean, budget)
    inside = (mean < 1) & (budget > 0) & (budget < jnp.inf)
    p, d = jnp.where(inside, mean, 0), jnp.where(inside, budget, 1)
    p_logits = bernoulli_logits(p)
    a = d * (1 - p)
    quadratic = p + a + jnp.sqrt(a * (a + 2 * p))
    entropy = jnp.sum(jax.scipy.special.entr(jnp.exp(p_logits)), axis=-1)
    linear = (d + entropy) / (1 - p)
    below_one = quadratic < 1
    quadratic = jax.scipy.special.logit(jnp.where(below_one, quadratic, 0.5))

    def newton(_, y: Array) -> Array:
        kl = categorical.kl(p_logits, jnp.stack([y, jnp.zeros_like(y)], axis=-1))
        return y - (kl - d) / (jax.nn.sigmoid(y) - p)

    start = jnp.where(below_one, jnp.minimum(quadratic, linear), linear)
    y = jax.lax.fori_loop(0, 6, newton, start)
    outside = jnp.where(budget > 0, jnp.inf, jax.scipy.special.logit(mean))
    return checks.spread_nan(jnp.where(inside, y, outside), mean, budget)


def lai_robbins(means: PerSample) -> Array:
    """`sum_a gap_a / kl(mu_a, mu*)`: the least slope of regret over log T, as T grows.

    Shapes: means `[arms]` to `[]`. An arm at mu* contributes 0.

    >>> print(f"{lai_robbins(jnp.array([0.9, 0.8])):.2f}")
    2.25

    Reference: Lai and Robbins 1985, Theorem 1.
    """
    means = checks.share("means", checks.as_float("means", means))
    best = jnp.max(means)
    equal = means == best
    at_best = jnp.broadcast_to(bernoulli_logits(best), (*means.shape, 2))
    kl = categorical.kl(bernoulli_logits(means), at_best)
    return jnp.sum(jnp.where(equal, 0, (best - means) / jnp.where(equal, 1, kl)))
