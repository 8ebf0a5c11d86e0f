"""GSHF: learning next to a reference policy from comparisons, with linear rewards.

The bandit of RLHF: what counts is `reward - beta KL(pi‖ref)`, whose best policy is the tilt
`ref exp(r / beta)`. Rewards are linear in features and known from comparisons only; a width in
those features says how well. Given data are used with pessimism (`learned_policy` with a negative
bonus), new ones are asked for where two policies would tell most (`explorer`, `online_regret`).

Reconstructed: from notes on Xiong et al. 2024 (arXiv:2312.11456), not its text. The notes have the
tilt by `reward - c width` offline, a main policy and an enhancer online, a start from given data in
the hybrid; the ridge, the centers of the widths, and that the enhancer is a tilt are inferred.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, regularized
from jdiv.alignment.rewards import linear_bradley_terry
from jdiv.bandits.contextual import drawn
from jdiv.divergences import categorical, generators
from jdiv.types import Logits, LogPolicy, RandomKey, Values

# ---------------------------------------------------------------------------------- the problem


class LinearProblem(NamedTuple):
    """Linear rewards next to a reference policy; contexts are uniform.

    Fields:
        features: `[contexts, arms, d]`
        weights: `[d]` with reward `<weights, features>`.
        ref_logits: `[contexts, arms]`
        beta: Weight of KL(pi‖ref).
    """

    features: Array
    weights: Array
    ref_logits: Array
    beta: ArrayLike

    @property
    def rewards(self) -> Array:
        """`[contexts, arms]`"""
        return self.features @ self.weights


class Comparisons(NamedTuple):
    """Pairs of answers and which of them was preferred.

    Fields:
        differences: `[pairs, d]` features of the first answer less those of the second.
        wins: `[pairs]` 1 where the first was preferred, else 0.
        counts: `[pairs]` 1, or 0 for a place that waits for a pair.
    """

    differences: Array
    wins: Array
    counts: Array


def tilt(problem: LinearProblem, rewards: Values) -> LogPolicy:
    """`log pi` of the policy `ref exp(rewards / beta)`, normalized; `[contexts, arms]`."""
    kl, beta = generators.kl(), checks.positive("beta", problem.beta)
    return regularized.greedy(rewards, problem.ref_logits, beta, generator=kl).log_policy


def regularized_regret(problem: LinearProblem, log_policy: LogPolicy) -> Array:
    """`J(best) - J(pi)` of `J = E[reward - beta KL(pi‖ref)]`, which is `beta KL(pi‖best)`.

    Exact, and of second order in the error of the rewards. Shapes: `[..., contexts, arms]` to
    `[...]`.

    Reference: Donsker and Varadhan 1975, the Gibbs variational principle.
    """
    best = jnp.broadcast_to(tilt(problem, problem.rewards), log_policy.shape)
    beta = checks.positive("beta", problem.beta)
    return beta * jnp.mean(categorical.kl(log_policy, best), axis=-1)


def compare(
    problem: LinearProblem, first_logits: Logits, second_logits: Logits, pairs: int, key: RandomKey
) -> Comparisons:
    """Comparisons of answers of two policies.

    Contexts are uniform; the first answer wins with probability `sigmoid(<weights, difference>)`.
    Shapes: `[contexts, arms]` twice.
    """
    checks.in_range("pairs", pairs, 1, jnp.inf, "at least 1", closed="low")
    contexts = problem.features.shape[0]
    uniforms = jax.random.uniform(key, (4, pairs), problem.features.dtype)
    x = (uniforms[0] * contexts).astype(int)
    first = drawn(jnp.exp(numerics.log_softmax(first_logits[x])), uniforms[1])
    second = drawn(jnp.exp(numerics.log_softmax(second_logits[x])), uniforms[2])
    differences = problem.features[x, first] - problem.features[x, second]
    wins = uniforms[3] < jax.nn.sigmoid(differences @ problem.weights)
    return Comparisons(differences, wins.astype(differences.dtype), jnp.ones_like(uniforms[3]))


# ---------------------------------------------------------------------------------- uncertainty


def precision(differences: ArrayLike, counts: ArrayLike, ridge: ArrayLike) -> Array:
    """`ridge I + sum of counts * difference difference'`: which differences the data have seen.

    Shapes: differences of features `[pairs, d]`, counts `[pairs]`, a positive number, to `[d, d]`.

    Reference: GSHF, Xiong et al. 2024 (arXiv:2312.11456).
    """
    ridge = checks.positive("ridge", ridge)
    differences = checks.as_float("differences", differences)
    counts = jnp.asarray(checks.not_negative("counts", counts), differences.dtype)
    if differences.ndim != 2 or counts.shape != differences.shape[:1]:
        raise ValueError(
            "differences and counts must be of shapes [pairs, d] and [pairs], got"
            f" {differences.shape} and {counts.shape}"
        )
    eye = jnp.eye(differences.shape[1], dtype=differences.dtype)
    return ridge * eye + (differences * counts[:, None]).T @ differences


def width(features: ArrayLike, center: ArrayLike, precision: ArrayLike) -> Array:
    """`‖phi - center‖` in the norm of the inverse of `precision`: how unlike the data an answer is.

    Comparisons tell differences of rewards only, so a width needs a point to differ from: the mean
    feature of a policy. Shapes: features `[..., d]`; center `[d]`, or `[contexts, d]` for features
    `[contexts, arms, d]`; precision `[d, d]`, positive definite; to `[...]`.

    >>> print(f"{width(jnp.array([3.0, 0.0]), jnp.zeros(2), 4 * jnp.eye(2)):.2f}")
    1.50

    Reference: GSHF, Xiong et al. 2024 (arXiv:2312.11456), the uncertainty of its reward.
    """
    features = checks.as_float("features", features)
    center, precision = (
        checks.as_float(name, x).astype(features.dtype)
        for name, x in (("center", center), ("precision", precision))
    )
    d = features.shape[-1] if features.ndim else 0
    if center.shape not in ((d,), (*features.shape[:-2], d)) or precision.shape != (d, d):
        raise ValueError(
            f"center and precision must be [{d}] and [{d}, {d}] like the features,"
            f" got {center.shape} and {precision.shape}"
        )
    if center.ndim > 1:
        center = center[..., None, :]
    center = jnp.expand_dims(center, tuple(range(features.ndim - center.ndim)))
    away = (features - center).reshape(-1, d)
    whitened = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(precision), away.T, lower=True)
    return jnp.linalg.norm(whitened, axis=0).reshape(features.shape[:-1])


def pessimistic(
    rewards: ArrayLike,
    features: ArrayLike,
    center: ArrayLike,
    precision: ArrayLike,
    coefficient: ArrayLike,
) -> Array:
    """`r - c ‖phi - center‖`, in the norm of `width`; a negative c makes it optimistic.

    The authors' guidebook has c sqrt(d): pass the product. Shapes: rewards `[...]`, the rest as in
    `width`, to `[...]`.

    Reference: GSHF, Xiong et al. 2024 (arXiv:2312.11456), offline learning.
    """
    rewards, coefficient = (
        checks.as_rewards("rewards", rewards),
        checks.finite("coefficient", coefficient),
    )
    uncertainty = width(features, center, precision).astype(rewards.dtype)
    checks.same_shape(rewards=rewards, features=uncertainty)
    return rewards - coefficient * uncertainty


# ------------------------------------------------------------------------------------ algorithms


def learned_policy(
    problem: LinearProblem, data: Comparisons, ridge: ArrayLike, bonus: ArrayLike
) -> LogPolicy:
    """`log pi` of the tilt by the estimated reward plus `bonus` times its width.

    The width is around the mean feature of the reference. A negative bonus is pessimism, as
    learning from given data needs it. Only the features, the reference and beta of the problem are
    used, not its rewards. Shapes: to `[contexts, arms]`.

    Reference: GSHF, Xiong et al. 2024 (arXiv:2312.11456), offline learning.
    """
    rewards = problem.features @ linear_bradley_terry(*data, ridge).weights
    return _tilt_with_bonus(problem, rewards, problem.ref_logits, data, ridge, bonus)


def explorer(
    problem: LinearProblem,
    main_logits: Logits,
    data: Comparisons,
    ridge: ArrayLike,
    bonus: ArrayLike,
) -> LogPolicy:
    """`log pi` of the enhancer: the tilt by what a comparison with the main policy would tell.

    That is the estimated reward plus `bonus` times the width around the mean feature of the main
    policy: a tilt where the theory maximizes the width within a confidence set of policies.
    Shapes: to `[contexts, arms]`.

    Reference: GSHF, Xiong et al. 2024 (arXiv:2312.11456), online learning: the enhancer.
    """
    rewards = problem.features @ linear_bradley_terry(*data, ridge).weights
    return _tilt_with_bonus(problem, rewards, main_logits, data, ridge, bonus)


def _tilt_with_bonus(
    problem: LinearProblem,
    rewards: Array,
    center_logits: Array,
    data: Comparisons,
    ridge: ArrayLike,
    bonus: ArrayLike,
) -> Array:
    """The tilt by rewards plus `bonus` times the width around a policy's mean feature."""
    bonus = checks.finite("bonus", bonus)
    p = jnp.exp(numerics.log_softmax(center_logits))
    center = jnp.sum(p[..., None] * problem.features, axis=-2)
    seen = precision(data.differences, data.counts, ridge)
    return tilt(problem, pessimistic(rewards, problem.features, center, seen, -bonus))


def online_regret(
    problem: LinearProblem,
    given: Comparisons,
    rounds: int,
    pairs: int,
    key: RandomKey,
    *,
    ridge: ArrayLike,
    bonus: ArrayLike,
) -> Array:
    """Regularized regret `[rounds]` of the main policy of each round: online or hybrid learning.

    The main policy is the tilt by the estimated reward, the second that of `explorer`; a round adds
    `pairs` comparisons between them. `given` is the data to start from, none of it online and some
    of it hybrid.

    Reference: GSHF, Xiong et al. 2024 (arXiv:2312.11456), online and hybrid learning.
    """
    if rounds < 1 or pairs < 1:
        raise ValueError(f"rounds and pairs must be at least 1, got {rounds} and {pairs}")
    size = given.wins.shape[0]
    padded = (jnp.pad(x, [(0, rounds * pairs)] + [(0, 0)] * (x.ndim - 1)) for x in given)

    def step(data: Comparisons, now: tuple[Array, Array]):
        number, key = now
        # `learned_policy` and `explorer`, with one fit for both.
        rewards = problem.features @ linear_bradley_terry(*data, ridge).weights
        main = tilt(problem, rewards)
        second = _tilt_with_bonus(problem, rewards, main, data, ridge, bonus)
        new = compare(problem, main, second, pairs, key)
        place = size + number * pairs
        data = Comparisons(
            *(
                jax.lax.dynamic_update_slice_in_dim(old, part, place, axis=0)
                for old, part in zip(data, new, strict=True)
            )
        )
        return data, regularized_regret(problem, main)

    numbered = jnp.arange(rounds), jax.random.split(key, rounds)
    return jax.lax.scan(step, Comparisons(*padded), numbered)[1]
