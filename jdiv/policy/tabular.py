"""Exact policy updates on finite processes: gradients, natural gradients, conservative mixtures.

`policy` stands for probabilities `[S, A]`, `logits` for unnormalized logarithms that are normalized
here; returns are `J = E[sum_t discount^t r_t]`, not normalized. Mirror descent with any generator
and mixtures with a fixed share are schemes of `jdiv.mdp.operators`; the schemes here fit the same
driver, `jdiv.mdp.value_iteration.run`, and `update` makes one step of any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.mdp import operators
from jdiv.mdp.model import AnyMdp, action_values, occupancy, policy_value
from jdiv.mdp.operators import Iterate, Scheme
from jdiv.types import Scalar, StateActions

Penalty = Callable[[Array], Array]
"""A function from a log-policy `[S, A]` to the cost of a step in each state, `[S]`."""

# ---------------------------------------------------------------------------------- improvement


def advantages(mdp: AnyMdp, policy: StateActions) -> Array:
    """`[S, A]` `q - v` of a policy given by its probabilities."""
    policy = checks.probabilities("policy", policy)
    value = policy_value(mdp, policy)
    return action_values(mdp, value) - value[:, None]


def improvement(mdp: AnyMdp, policy: StateActions, other: StateActions) -> Array:
    """`J(other) - J(policy) = sum mu_other A_policy / (1 - discount)`, without cancellation.

    Shapes: probabilities `[S, A]` twice to `[]`.

    Reference: Kakade and Langford 2002, lemma 6.1.
    """
    other = checks.probabilities("other", other)
    gained = jnp.sum(occupancy(mdp, other) * advantages(mdp, policy))
    return gained / (1 - mdp.discount)


def surrogate(mdp: AnyMdp, policy: StateActions, other: StateActions) -> Array:
    """`sum_s d_policy(s) E_other[A_policy(s, a)] / (1 - discount)`: the improvement to first order.

    Shapes: probabilities `[S, A]` twice to `[]`.

    Reference: Schulman et al. 2015 (arXiv:1502.05477), equation 3, minus J(policy).
    """
    other = checks.probabilities("other", other)
    visits = jnp.sum(occupancy(mdp, policy), axis=-1)
    return visits @ jnp.sum(other * advantages(mdp, policy), axis=-1) / (1 - mdp.discount)


def trust_region_bound(mdp: AnyMdp, logits: StateActions, other_logits: StateActions) -> Array:
    """A lower bound of the improvement: `surrogate - C max_s KL(policy‖other)`.

    `C = 4 eps discount/(1 - discount)^2`, `eps = max |A_policy|`.
    Shapes: logits `[S, A]` twice to `[]`.

    Reference: Schulman et al. 2015 (arXiv:1502.05477), theorem 1.
    """
    policy, other = (jnp.exp(numerics.log_softmax(x)) for x in (logits, other_logits))
    worst = jnp.max(jnp.abs(advantages(mdp, policy)))
    distance = jnp.max(categorical.kl(logits, other_logits))
    constant = 4 * worst * mdp.discount / (1 - mdp.discount) ** 2
    return surrogate(mdp, policy, other) - constant * distance


# ------------------------------------------------------------------------------------- gradients


def policy_gradient(mdp: AnyMdp, logits: StateActions, penalty: Penalty | None = None) -> Array:
    """`[S, A]` gradient of the return by the logits, `d(s) pi(a|s) A(s, a) / (1 - discount)`.

    With a penalty every state pays it each step, and `<pi, q> - penalty` is differentiated in a
    state, with the action values q of the penalized process.

    Reference: Sutton et al. 2000, theorem 1; Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275)
    for the penalized values.
    """
    log_policy = numerics.log_softmax(logits)
    policy = jnp.exp(log_policy)
    bonus = None if penalty is None else -penalty(log_policy)
    value = policy_value(mdp, policy, bonus)
    visits = jnp.sum(occupancy(mdp, policy), axis=-1, keepdims=True)
    slope = policy * (action_values(mdp, value) - value[:, None])
    if penalty is not None:
        cost = jax.grad(lambda logits: jnp.sum(penalty(numerics.log_softmax(logits))))(logits)
        # <pi, q> - v is the penalty here, and not 0.
        slope = slope - policy * jnp.sum(slope, axis=-1, keepdims=True) - cost
    return visits * slope / (1 - mdp.discount)


def fisher_product(mdp: AnyMdp, logits: StateActions, direction: StateActions) -> Array:
    """`F x`, `F = E_mu[grad log pi grad log pi']`: `d(s) pi(a|s) (x(s, a) - <pi, x>)`, `[S, A]`."""
    policy = jnp.exp(numerics.log_softmax(logits))
    return occupancy(mdp, policy) * (direction - jnp.sum(policy * direction, -1, keepdims=True))


def natural_gradient(mdp: AnyMdp, logits: StateActions) -> Array:
    """`[S, A]` `F^+ grad J = A / (1 - discount)`, up to a constant of each state.

    Defined, and the same, also where the policy never comes and F has no inverse.

    Reference: Kakade 2001; Agarwal et al. 2021 (arXiv:1908.00261), lemma 15.
    """
    return advantages(mdp, jnp.exp(numerics.log_softmax(logits))) / (1 - mdp.discount)


# --------------------------------------------------------------------------------------- schemes


def gradient_ascent(step_size: Scalar, penalty: Penalty | None = None) -> Scheme:
    """`logits + step_size grad J`, for `jdiv.mdp.value_iteration.run`; starts uniform.

    Reference: Agarwal et al. 2021 (arXiv:1908.00261), section 5, softmax policy gradient.
    """
    return _ascent(step_size, lambda mdp, logits: policy_gradient(mdp, logits, penalty))


def natural_ascent(step_size: Scalar) -> Scheme:
    """`logits + step_size A/(1 - discount)`, which is mirror descent with KL.

    Its step size there is `step_size/(1 - discount)`.

    Reference: Kakade 2001; Agarwal et al. 2021 (arXiv:1908.00261), section 5.3.
    """
    return _ascent(step_size, natural_gradient)


def _ascent(step_size: Scalar, direction: Callable[[AnyMdp, Array], Array]) -> Scheme:
    """`logits + step_size direction`; an error is added to the direction."""
    step_size = checks.positive("step_size", step_size)

    def step(mdp: AnyMdp, at: Iterate, error: Scalar | StateActions) -> Iterate:
        logits = at.log_policy + step_size * (direction(mdp, at.log_policy) + error)
        return at._replace(log_policy=numerics.log_softmax(logits))

    return Scheme(operators.value_iteration().init, step)


class Mixing(NamedTuple):
    """A mixture of a policy with another, and a lower bound of its gain.

    Fields:
        share: `[]` the other policy's share, in [0, 1].
        gain: `[]` the least increase of the return, by `conservative_gain`.
    """

    share: Array
    gain: Array


def conservative_gain(
    mdp: AnyMdp, policy: StateActions, target: StateActions, share: Scalar
) -> Array:
    """`a A/(1 - discount) - 2 a^2 discount eps/(1 - discount)^2` for the mixture with share a.

    At most `J((1 - a) policy + a target) - J(policy)`. `A = E_d E_target[A_policy]` and
    `eps = max_s |E_target[A_policy(s, a)]|`.

    Reference: Kakade and Langford 2002, theorem 4.1, with `1 - discount (1 - a)` as 1 - discount.
    Reconstructed: the constant is from memory; versions of the theorem differ in it.
    """
    share = checks.share("share", share)
    first, second = _conservative_terms(mdp, policy, target)
    return share * first - share**2 * second


def safe_mixing(mdp: AnyMdp, policy: StateActions, target: StateActions) -> Mixing:
    """The share that maximizes `conservative_gain`: `A (1 - discount)/(4 discount eps)`, at most 1.

    Reference: Kakade and Langford 2002, corollary 4.2.
    """
    first, second = _conservative_terms(mdp, policy, target)
    flat = second == 0
    share = jnp.clip(jnp.where(flat, 1, first / (2 * jnp.where(flat, 1, second))), 0, 1)
    return Mixing(share, share * first - share**2 * second)


def _conservative_terms(
    mdp: AnyMdp, policy: StateActions, target: StateActions
) -> tuple[Array, Array]:
    """Factors of the share and, negated, of its square in the bound."""
    target, discount = checks.probabilities("target", target), mdp.discount
    gained = jnp.sum(target * advantages(mdp, policy), axis=-1)
    visits = jnp.sum(occupancy(mdp, policy), axis=-1)
    curvature = 2 * discount * jnp.max(jnp.abs(gained)) / (1 - discount) ** 2
    return visits @ gained / (1 - discount), curvature


def conservative_policy_iteration() -> Scheme:
    """Mixtures with the greedy policy, each with the share of `safe_mixing`.

    Reference: Kakade and Langford 2002, section 4.
    """

    def step(mdp: AnyMdp, at: Iterate, error: Scalar | StateActions) -> Iterate:
        policy = jnp.exp(at.log_policy)
        q = advantages(mdp, policy) + error
        best = jnp.exp(operators.greedy(q).log_policy)
        share = safe_mixing(mdp, policy, best).share
        return operators.conservative_iteration(share).step(mdp, at, error)

    return Scheme(operators.value_iteration().init, step)


def update(mdp: AnyMdp, scheme: Scheme, logits: StateActions) -> Array:
    """The log-policy after one step of a scheme that looks at the policy only.

    With `operators.policy_mirror_descent(step_size, generator=generator)` for the scheme it is
    `argmax <pi, q> - D(pi‖policy)/step_size`, with `operators.conservative_iteration(share)` a
    mixture. Shapes: `[S, A]` to the same.

    >>> reward = jnp.array([[1.0, 0.0]])  # one state, no future
    >>> from jdiv.mdp import Mdp
    >>> mdp = Mdp(jnp.ones((1, 2, 1)), reward, 0.0, jnp.ones(1))
    >>> jnp.exp(update(mdp, natural_ascent(jnp.log(3.0)), jnp.zeros((1, 2))))
    Array([[0.75, 0.25]], dtype=float32)
    """
    nothing = jnp.zeros_like(logits)
    at = Iterate(nothing, numerics.log_softmax(logits))
    return scheme.step(mdp, at, 0.0).log_policy
