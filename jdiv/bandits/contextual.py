"""Contextual bandits: inverse gap weighting, and exploration next to a reference policy.

The first half turns predicted losses into probabilities (SquareCB, FastCB) and plays them against a
table of Bernoulli losses. The second is the bandit of RLHF: what counts is reward minus
`temperature * KL(pi‖ref)`, whose best policy is the tilt `ref exp(r / temperature)`; rewards are
linear in features and known from comparisons only, and a width in those features says how well.

Of Xiong et al. 2024 (GSHF) notes were at hand and not the text: the tilt by `reward - c width`
offline, a main policy and an enhancer online, a start from given data in the hybrid. Inferred are
the ridge, the centres of the widths, and that the enhancer is a tilt as well (`explorer`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, regularized
from jdiv.divergences import categorical, generators

# --------------------------------------------------------------------------- inverse gap weighting


def square_cb(losses: ArrayLike, rate: ArrayLike) -> Array:
    """`p_a = 1 / (K + rate (y_a - y_b))` for all but the best arm b, which has the rest.

    Shapes: predicted losses `[..., K]` to probabilities `[..., K]`.

    >>> square_cb(jnp.array([0.25, 0.75]), 4.0).tolist()
    [0.75, 0.25]

    Reference: Foster and Rakhlin 2020 (arXiv:2002.04926), Algorithm 1; Abe and Long 1999.
    """
    losses = _losses(losses)
    checks.positive("rate", rate)
    return _rest_to_best(losses, 1 / (losses.shape[-1] + rate * _gaps(losses)))


def fast_cb(losses: ArrayLike, rate: ArrayLike) -> Array:
    """`p_a = y_b / (K y_b + rate (y_a - y_b))`: the smaller the best loss, the less exploration.

    Losses must not be negative. Shapes: predicted losses `[..., K]` to probabilities `[..., K]`.

    >>> fast_cb(jnp.array([0.25, 0.75]), 3.0).tolist()
    [0.875, 0.125]

    Reference: Foster and Krishnamurthy 2021 (arXiv:2107.02237), Algorithm 1.
    """
    losses = _losses(losses)
    checks.positive("rate", rate)
    best = jnp.min(losses, axis=-1, keepdims=True)
    scale = losses.shape[-1] * best + rate * _gaps(losses)
    # Best arms of loss 0 are equal, and share as they do for any other loss.
    even = scale == 0
    p = jnp.where(even, 1 / losses.shape[-1], best / jnp.where(even, 1, scale))
    return _rest_to_best(losses, p)


def greedy(losses: ArrayLike) -> Array:
    """The first of the best arms. Shapes: as of `square_cb`."""
    losses = _losses(losses)
    return _rest_to_best(losses, jnp.zeros_like(losses))


def _losses(losses: ArrayLike) -> Array:
    losses = checks.as_float("losses", losses)
    if losses.ndim == 0 or losses.shape[-1] == 0:
        raise ValueError(f"losses must have at least one arm, got shape {tuple(losses.shape)}")
    return losses


def _gaps(losses: Array) -> Array:
    return losses - jnp.min(losses, axis=-1, keepdims=True)


def _rest_to_best(losses: Array, p: Array) -> Array:
    """Probability 1 in all, what is missing for it at the first of the best arms."""
    best = jax.nn.one_hot(jnp.argmin(losses, axis=-1), losses.shape[-1], dtype=bool)
    others = jnp.where(best, 0, p)
    return jnp.where(best, 1 - jnp.sum(others, axis=-1, keepdims=True), others)


def square_cb_rate(arms: int, horizon: ArrayLike, oracle: ArrayLike) -> Array:
    """`sqrt(K T / oracle)`, with the regret of the oracle in squared loss.

    Reference: Foster and Rakhlin 2020 (arXiv:2002.04926), Theorem 1, up to constants.
    """
    return jnp.sqrt(arms * horizon / oracle)


def fast_cb_rate(
    arms: int, horizon: ArrayLike, oracle: ArrayLike, best_loss: ArrayLike = 0.0
) -> Array:
    """`max(sqrt(K L* / (3 oracle)), 10 K)` with `L* = best_loss * horizon`, oracle in log loss.

    Reference: Foster and Krishnamurthy 2021 (arXiv:2107.02237), Theorem 1.
    """
    return jnp.maximum(jnp.sqrt(arms * best_loss * horizon / (3 * oracle)), 10 * arms)


def play(policy: Callable[[Array], Array], means: ArrayLike, horizon: int, key: Array) -> Array:
    """Regret `[horizon]` of a policy on Bernoulli losses, with a table of counts for its oracle.

    Contexts are uniform; `policy` maps predicted losses `[arms]` to probabilities `[arms]`. The
    prediction for a context and an arm is Laplace's `(1 + losses) / (2 + pulls)`.
    Shapes: means `[contexts, arms]`.

    >>> play(greedy, jnp.array([[0.0, 1.0]]), 50, jax.random.key(0)).shape
    (50,)
    """
    means = checks.as_float("means", means)
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"means must be of shape [contexts, arms], got {tuple(means.shape)}")
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")

    def pull(state, uniforms):
        pulls, losses = state
        x = (uniforms[0] * means.shape[0]).astype(int)
        arm = _drawn(policy((1 + losses[x]) / (2 + pulls[x])), uniforms[1])
        loss = (uniforms[2] < means[x, arm]).astype(means.dtype)
        state = pulls.at[x, arm].add(1), losses.at[x, arm].add(loss)
        return state, means[x, arm] - jnp.min(means[x])

    none = jnp.zeros_like(means)
    uniforms = jax.random.uniform(key, (horizon, 3), means.dtype)
    return jnp.cumsum(jax.lax.scan(pull, (none, none), uniforms)[1])


def _drawn(p: Array, uniform: Array) -> Array:
    """The place of `uniform` among cumulative probabilities: `[..., K]` and `[...]` to `[...]`."""
    return jnp.sum(uniform[..., None] >= jnp.cumsum(p, axis=-1)[..., :-1], axis=-1)


# ------------------------------------------------------------------- next to a reference policy


class Problem(NamedTuple):
    """Linear rewards next to a reference policy; contexts are uniform."""

    features: Array
    """`[contexts, arms, d]`"""
    weights: Array
    """`[d]` with reward `<weights, features>`."""
    ref_logits: Array
    """`[contexts, arms]`"""
    temperature: ArrayLike
    """Weight of KL(pi‖ref)."""

    @property
    def rewards(self) -> Array:
        """`[contexts, arms]`"""
        return self.features @ self.weights


def tilt(problem: Problem, rewards: Array) -> Array:
    """`log pi` of the policy `ref exp(rewards / temperature)`, normalised; `[contexts, arms]`."""
    return regularized.greedy(
        rewards, problem.ref_logits, problem.temperature, generators.kl()
    ).log_policy


def regularised_regret(problem: Problem, log_policy: Array) -> Array:
    """`J(best) - J(pi)` of `J = E[reward - temperature * KL(pi‖ref)]`: `temperature * KL(pi‖best)`.

    Exact, and of second order in the error of the rewards. Shapes: `[..., contexts, arms]` to
    `[...]`.

    Reference: Donsker and Varadhan 1975, the Gibbs variational principle.
    """
    best = jnp.broadcast_to(tilt(problem, problem.rewards), log_policy.shape)
    return problem.temperature * jnp.mean(categorical.kl(log_policy, best), axis=-1)


def width(features: ArrayLike, centre: ArrayLike, precision: ArrayLike) -> Array:
    """`||phi - centre||` in the norm of the inverse of `precision`: how uncertain a reward is.

    Comparisons tell differences of rewards only, so a width needs a point to differ from: the mean
    feature of a policy. Shapes: features `[..., arms, d]`, centre `[..., d]`, precision `[d, d]` to
    `[..., arms]`.

    Reference: Xiong et al. 2024 (arXiv:2312.11456).
    """
    features = checks.as_float("features", features)
    difference = features - jnp.asarray(centre)[..., None, :]
    solved = jnp.linalg.solve(precision, difference.reshape(-1, features.shape[-1]).T).T
    return jnp.sqrt(jnp.sum(difference * solved.reshape(difference.shape), axis=-1))


class Data(NamedTuple):
    """Comparisons; those with weight 0 are places for what comes."""

    differences: Array
    """`[n, d]` features of the first answer minus those of the second."""
    wins: Array
    """`[n]` 1 where the first was preferred, else 0."""
    weights: Array
    """`[n]` 1 or 0."""


def precision(data: Data, ridge: ArrayLike) -> Array:
    """`ridge I + sum of differences differences'`, `[d, d]`."""
    weighted = data.differences * data.weights[:, None]
    eye = jnp.eye(data.differences.shape[1], dtype=data.differences.dtype)
    return ridge * eye + weighted.T @ data.differences


def bradley_terry(data: Data, ridge: ArrayLike, *, steps: int = 12) -> Array:
    """Weights `[d]` of the likeliest rewards under `P(first) = sigmoid(<weights, difference>)`.

    Newton's method on the log-likelihood with `ridge ||weights||^2 / 2`. A step that moves rewards
    by at most r is shortened by `log(1 + r)/r`, with which no step goes uphill.

    Reference: Bradley and Terry 1952; Bach 2010 (arXiv:0910.4627), Proposition 1, for the factor.
    """
    checks.positive("ridge", ridge)

    def newton(_, weights: Array) -> Array:
        p = jax.nn.sigmoid(data.differences @ weights)
        gradient = data.differences.T @ (data.weights * (p - data.wins)) + ridge * weights
        hessian = precision(data._replace(weights=data.weights * p * (1 - p)), ridge)
        move = jnp.linalg.solve(hessian, gradient)
        r = jnp.max(jnp.abs(data.weights * (data.differences @ move)), initial=0)
        return weights - jnp.where(r > 0, jnp.log1p(r) / jnp.where(r > 0, r, 1), 1) * move

    start = jnp.zeros(data.differences.shape[1], data.differences.dtype)
    return jax.lax.fori_loop(0, steps, newton, start)


def compare(problem: Problem, log_first: Array, log_second: Array, pairs: int, key: Array) -> Data:
    """Comparisons of answers of two policies, logits `[contexts, arms]`.

    Contexts are uniform; the first answer wins with probability `sigmoid(<weights, difference>)`.
    """
    contexts = problem.features.shape[0]
    uniforms = jax.random.uniform(key, (4, pairs), problem.features.dtype)
    x = (uniforms[0] * contexts).astype(int)
    first = _drawn(jnp.exp(numerics.log_softmax(log_first[x])), uniforms[1])
    second = _drawn(jnp.exp(numerics.log_softmax(log_second[x])), uniforms[2])
    differences = problem.features[x, first] - problem.features[x, second]
    wins = uniforms[3] < jax.nn.sigmoid(differences @ problem.weights)
    return Data(differences, wins.astype(differences.dtype), jnp.ones_like(uniforms[3]))


def learned_policy(problem: Problem, data: Data, ridge: ArrayLike, bonus: ArrayLike) -> Array:
    """`log pi` of the tilt by the estimated reward plus `bonus` times its width.

    The width is around the mean feature of the reference. A negative bonus is pessimism, as
    learning from given data needs it. Only data and the reference of the problem are used.

    Reference: Xiong et al. 2024 (arXiv:2312.11456), offline learning.
    """
    rewards = problem.features @ bradley_terry(data, ridge)
    return _tilt_with_bonus(problem, rewards, problem.ref_logits, data, ridge, bonus)


def explorer(
    problem: Problem, log_main: Array, data: Data, ridge: ArrayLike, bonus: ArrayLike
) -> Array:
    """`log pi` of the enhancer: the tilt by what the comparison with the main policy would tell.

    That is the estimated reward plus `bonus` times the width around the mean feature of the main
    policy: a tilt where the theory maximises the width within a confidence set of policies.

    Reference: Xiong et al. 2024 (arXiv:2312.11456), online learning: the exploration enhancer.
    """
    rewards = problem.features @ bradley_terry(data, ridge)
    return _tilt_with_bonus(problem, rewards, log_main, data, ridge, bonus)


def _tilt_with_bonus(problem, rewards, log_centre, data, ridge, bonus) -> Array:
    """The tilt by rewards plus `bonus` times the width around a policy's mean feature."""
    p = jnp.exp(numerics.log_softmax(log_centre))
    centre = jnp.sum(p[..., None] * problem.features, axis=-2)
    widths = width(problem.features, centre, precision(data, ridge))
    return tilt(problem, rewards + bonus * widths)


def iterate(
    problem: Problem,
    given: Data,
    rounds: int,
    pairs: int,
    key: Array,
    *,
    ridge: ArrayLike,
    bonus: ArrayLike,
) -> Array:
    """Regularised regret `[rounds]` of the main policy of each round: online or hybrid learning.

    The main policy is the tilt by the estimated reward, the second that of `explorer`; a round adds
    `pairs` comparisons between them. `given` is the data to start from, none of it online and some
    of it hybrid.

    Reference: Xiong et al. 2024 (arXiv:2312.11456), online and hybrid learning.
    """
    if rounds < 1 or pairs < 1:
        raise ValueError(f"rounds and pairs must be at least 1, got {rounds} and {pairs}")
    size = given.wins.shape[0]
    room = Data(*(jnp.pad(x, [(0, rounds * pairs)] + [(0, 0)] * (x.ndim - 1)) for x in given))

    def step(data: Data, now: tuple[Array, Array]):
        number, key = now
        # As of `learned_policy` and `explorer`, with one fit for both.
        rewards = problem.features @ bradley_terry(data, ridge)
        main = tilt(problem, rewards)
        second = _tilt_with_bonus(problem, rewards, main, data, ridge, bonus)
        new = compare(problem, main, second, pairs, key)
        place = size + number * pairs
        data = Data(
            *(
                jax.lax.dynamic_update_slice_in_dim(old, part, place, axis=0)
                for old, part in zip(data, new, strict=True)
            )
        )
        return data, regularised_regret(problem, main)

    return jax.lax.scan(step, room, (jnp.arange(rounds), jax.random.split(key, rounds)))[1]
