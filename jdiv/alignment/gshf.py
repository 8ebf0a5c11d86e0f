"""GSHF: learning next to a reference policy from comparisons, with linear rewards.

The bandit of RLHF: what counts is reward minus `temperature * KL(pi‖ref)`, whose best policy is the
tilt `ref exp(r / temperature)`; rewards are linear in features and known from comparisons only, and
a width in those features says how well.

Reconstructed: from notes on Xiong et al. 2024, not the text. The notes have the tilt by `reward - c
width` offline, a main policy and an enhancer online, a start from given data in the hybrid; the
ridge, the centres of the widths, and that the enhancer is a tilt too (`explorer`) are inferred.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, regularized
from jdiv.bandits.contextual import drawn
from jdiv.divergences import categorical, generators


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
        rewards, problem.ref_logits, problem.temperature, generator=generators.kl()
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
    first = drawn(jnp.exp(numerics.log_softmax(log_first[x])), uniforms[1])
    second = drawn(jnp.exp(numerics.log_softmax(log_second[x])), uniforms[2])
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


def pair_covariance(chosen: ArrayLike, rejected: ArrayLike, ridge: ArrayLike) -> Array:
    """`ridge I + sum (phi_chosen - phi_rejected)(...)^T`: which differences the data have seen.

    Shapes: features `[pairs, d]` twice, to `[d, d]`.

    Reference: GSHF, Xiong et al. 2023 (arXiv:2312.11456).
    """
    chosen, rejected = checks.alike(chosen=chosen, rejected=rejected)
    checks.positive("ridge", ridge)
    difference = chosen - rejected
    return difference.T @ difference + ridge * jnp.eye(chosen.shape[-1], dtype=chosen.dtype)


def elliptical(features: ArrayLike, centre: ArrayLike, covariance: ArrayLike) -> Array:
    """`‖phi - centre‖` in the norm of the inverse covariance: how unlike the data an answer is.

    Shapes: features `[..., d]`, centre `[d]` (the mean feature of a reference policy; comparisons
    say nothing about a common offset), covariance `[d, d]` positive definite; to `[...]`.

    >>> print(f"{elliptical(jnp.array([3.0, 0.0]), jnp.zeros(2), 4 * jnp.eye(2)):.2f}")
    1.50

    Reference: GSHF, Xiong et al. 2023 (arXiv:2312.11456), the uncertainty of its reward.
    """
    features = checks.as_float("features", features)
    centre, covariance = (
        checks.as_float(name, x).astype(features.dtype)
        for name, x in (("centre", centre), ("covariance", covariance))
    )
    d = features.shape[-1] if features.ndim else 0
    if centre.shape != (d,) or covariance.shape != (d, d):
        raise ValueError(
            f"centre and covariance must be [{d}] and [{d}, {d}] like the features,"
            f" got {centre.shape} and {covariance.shape}"
        )
    away = (features - jnp.expand_dims(centre, tuple(range(features.ndim - 1)))).reshape(-1, d)
    whitened = jax.scipy.linalg.solve_triangular(
        jnp.linalg.cholesky(covariance), away.T, lower=True
    )
    return jnp.linalg.norm(whitened, axis=0).reshape(features.shape[:-1])


def pessimistic(
    rewards: ArrayLike,
    features: ArrayLike,
    centre: ArrayLike,
    covariance: ArrayLike,
    coefficient: ArrayLike,
) -> Array:
    """GSHF's reward `r - c ‖phi - E phi‖`, in the norm of `elliptical`; -c is its optimistic twin.

    The authors' guidebook has c sqrt(d): pass the product. Shapes: rewards `[...]`, features
    `[..., d]`, to `[...]`.

    Reference: GSHF, Xiong et al. 2023 (arXiv:2312.11456), offline learning.
    """
    rewards = checks.as_float("rewards", rewards)
    uncertainty = elliptical(features, centre, covariance).astype(rewards.dtype)
    checks.same_shape(rewards=rewards, features=uncertainty)
    return rewards - coefficient * uncertainty
