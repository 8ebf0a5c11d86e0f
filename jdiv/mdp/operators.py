"""Regularised greedy steps, and the schemes of value iteration that are made of them.

A greedy step maps action values `[S, A]` to a log-policy and its regularised value `[S]`. A scheme
is `init(q)`, the first iterate, and `step(mdp, iterate, error)`, the next one, with an error
`[S, A]` added to the action values. Temperatures may be traced, also where they are 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import numerics, regularized
from jdiv.divergences import generators
from jdiv.divergences.generators import Generator
from jdiv.mdp.model import AnyMdp, action_values, policy_action_values, policy_value


class Step(NamedTuple):
    """A regularised greedy step."""

    log_policy: Array
    """`[S, A]`"""
    value: Array
    """`[S]` `max_pi <pi, q> - penalty(pi)`, attained by the policy."""


# ------------------------------------------------------------------------------------ greedy steps


def greedy(q: Array) -> Step:
    """`argmax <pi, q>`: the first of the best actions."""
    actions = q.shape[-1]
    chosen = jax.nn.one_hot(jnp.argmax(q, axis=-1), actions, dtype=bool)
    return Step(jnp.where(chosen, 0.0, -jnp.inf).astype(q.dtype), jnp.max(q, axis=-1))


def soft(q: Array, log_previous: Array, kl: ArrayLike, entropy: ArrayLike) -> Step:
    """`argmax <pi, q> - kl KL(pi‖previous) + entropy H(pi)`.

    `pi ~ previous^(kl/(kl + entropy)) exp(q/(kl + entropy))`; greedy if both are 0.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), section 3.
    """
    temperature = jnp.asarray(kl + entropy, q.dtype)
    hard = temperature == 0
    scale = jnp.where(hard, 1, temperature)
    weight = jnp.where(hard, 0, kl / scale)
    prior = jnp.where(weight == 0, 0, weight * jnp.where(weight == 0, 0, log_previous))
    logits = q / scale + prior
    value = scale * jax.nn.logsumexp(logits, axis=-1)
    hardest = greedy(q)
    return Step(
        jnp.where(hard, hardest.log_policy, numerics.log_softmax(logits)),
        jnp.where(hard, hardest.value, value),
    )


def towards(q: Array, log_reference: Array, temperature: ArrayLike, generator: Generator) -> Step:
    """`argmax <pi, q> - temperature D(pi‖reference)` for any row of the table.

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 3.
    """
    best = regularized.greedy(q, log_reference, temperature, generator)
    return Step(best.log_policy, best.value)


def towards_both(
    q: Array,
    log_reference: Array,
    log_previous: Array,
    to_reference: ArrayLike,
    to_previous: ArrayLike,
    generator: Generator,
) -> Step:
    """`argmax <pi, q> - to_reference D(pi‖reference) - to_previous D(pi‖previous)`.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), section 3, for KL and entropy.
    """
    best = regularized.greedy_between(
        q, log_reference, log_previous, to_reference, to_previous, generator
    )
    return Step(best.log_policy, best.value)


def mellowmax(q: Array, temperature: ArrayLike) -> Array:
    """`t log mean exp(q/t)`: the soft maximum against the uniform policy.

    Reference: Asadi and Littman 2017 (arXiv:1612.05628), equation 4.
    """
    return temperature * (
        jax.nn.logsumexp(q / temperature, axis=-1) - jnp.log(jnp.asarray(q.shape[-1], q.dtype))
    )


def tsallis(q: Array, temperature: ArrayLike, index: ArrayLike) -> Step:
    """`argmax <pi, q> + temperature H_index(pi)`, `H_i = sum (pi - pi^i) / (i (i - 1))`.

    Soft for index 1, sparse above it: sparsemax at 2.

    Reference: Lee et al. 2019 (arXiv:1902.00137), section IV, with the entmax convention; Zhu et
    al. 2023 (arXiv:2301.11476).
    """
    log_count = jnp.log(jnp.asarray(q.shape[-1], q.dtype))
    index = jnp.asarray(index, q.dtype)
    log_policy, value = regularized.greedy(
        q / temperature,
        jnp.zeros_like(q),
        jnp.exp((1 - index) * log_count),
        generators.alpha(index),
    )[:2]
    # The divergence from uniform is 0 where the entropy is (1 - n^(1 - i)) / (i (i - 1)).
    most = log_count * numerics.phi_1((1 - index) * log_count) / index
    return Step(log_policy, temperature * (value + most))


# ---------------------------------------------------------------------------------------- schemes


class Iterate(NamedTuple):
    """What a scheme has computed so far."""

    q: Array
    """`[S, A]` action values; Munchausen's contain the bonus."""
    log_policy: Array
    """`[S, A]` the policy to act by, greedy in some way for the action values before."""
    total: Array
    """`[S, A]` sum of the action values that dual averaging keeps; 0 elsewhere."""


class Scheme(NamedTuple):
    """How to go on."""

    init: Callable[[Array], Iterate]
    step: Callable[[AnyMdp, Iterate, ArrayLike], Iterate]


def _start(q: Array) -> Iterate:
    """The uniform policy."""
    uniform = jnp.full_like(q, -jnp.log(jnp.asarray(q.shape[-1], q.dtype)))
    return Iterate(q, uniform, jnp.zeros_like(q))


GreedyStep = Callable[[Array, Array], Step]


def regularised(greedy_step: GreedyStep, evaluations: int = 1) -> Scheme:
    """Value iteration by `greedy_step(q, log_previous)`.

    `q' = (T_pi)^m q`, `T_pi q = r + discount P (<pi, q> - penalty(pi))`: m = 1 is value iteration,
    m to infinity policy iteration.

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 4, Regularized MPI.
    """

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        best = greedy_step(at.q, at.log_policy)
        policy = jnp.exp(best.log_policy)
        penalty = jnp.sum(policy * at.q, axis=-1) - best.value

        def evaluate(_, q):
            return action_values(mdp, jnp.sum(policy * q, axis=-1) - penalty)

        q = jax.lax.fori_loop(1, evaluations, evaluate, action_values(mdp, best.value))
        return Iterate(q + error, best.log_policy, at.total)

    return Scheme(_start, step)


def value_iteration() -> Scheme:
    """`q' = r + discount P max q`."""
    return regularised(lambda q, log_previous: greedy(q))


def md_vi(kl: ArrayLike, entropy: ArrayLike, evaluations: int = 1) -> Scheme:
    """Mirror descent value iteration: KL to the previous policy, and entropy.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), equation 2.
    """
    return regularised(lambda q, log_previous: soft(q, log_previous, kl, entropy), evaluations)


def da_vi(kl: ArrayLike, entropy: ArrayLike) -> Scheme:
    """Dual averaging value iteration: the same policies from a sum of all action values.

    `pi_(k+1) ~ exp(S_k / (kl + entropy))`, `S_k = q_k + kl/(kl + entropy) S_(k-1)`; with h_k as in
    the paper, the average of the q for entropy = 0 and `entropy/(kl + entropy) S_k` else.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), equation 4.
    """
    temperature = kl + entropy

    def init(q: Array) -> Iterate:
        return _start(q)._replace(total=q)

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        log_policy = numerics.log_softmax(at.total / temperature)
        policy = jnp.exp(log_policy)
        # <pi, q> - kl KL(pi‖previous) + entropy H(pi)
        payoff = at.q - kl * (log_policy - at.log_policy) - entropy * log_policy
        q = action_values(mdp, jnp.sum(policy * payoff, axis=-1)) + error
        return Iterate(q, log_policy, q + kl / temperature * at.total)

    return Scheme(init, step)


def munchausen(alpha: ArrayLike, temperature: ArrayLike) -> Scheme:
    """`q' = r + alpha T log pi + discount P (<pi, q> + T H(pi))`, `pi = softmax(q/T)`.

    Since `T log pi = q - v` with the soft maximum v, this is `r + alpha (q - v) + discount P v`. It
    is `md_vi(alpha T, (1 - alpha) T)` in disguise, whose q is q' - alpha T log pi. alpha = 0 is
    soft value iteration, alpha = 1 dynamic policy programming, T = 0 advantage learning.

    Reference: Vieillard, Pietquin and Geist 2020 (arXiv:2007.14430), equation 3.
    """
    return gap_increasing(lambda q: soft(q, jnp.zeros_like(q), 0.0, temperature), alpha)


def advantage_learning(alpha: ArrayLike) -> Scheme:
    """`q' = r + alpha (q - max q) + discount P max q`.

    Reference: Bellemare et al. 2016 (arXiv:1512.04860), equation 5.
    """
    return munchausen(alpha, 0.0)


def dpp(temperature: ArrayLike) -> Scheme:
    """Dynamic policy programming, `q' = q - v + r + discount P v` with the soft maximum v.

    Reference: Azar, Gomez and Kappen 2012, section 3, with the log-sum-exp as soft maximum.
    """
    return munchausen(1.0, temperature)


def cvi(alpha: ArrayLike, temperature: ArrayLike) -> Scheme:
    """Conservative value iteration: Munchausen's with mellowmax as the soft maximum.

    Reference: Kozuno, Uchibe and Doya 2019, equation 4, as the note on Vieillard et al. 2020 says.
    """

    def averaged(q: Array) -> Step:
        return Step(numerics.log_softmax(q / temperature), mellowmax(q, temperature))

    return gap_increasing(averaged, alpha)


def mvi(alpha: ArrayLike, temperature: ArrayLike, index: ArrayLike) -> Scheme:
    """MVI(q), Munchausen's with Tsallis' entropy: `r + alpha (q - <pi, q>) + discount P v`.

    For index 1 it differs from Munchausen's by the entropy in the bonus, `q - <pi, q>` for `q - v`.

    Reference: Zhu et al. 2023 (arXiv:2301.11476), with the entmax convention.
    """
    return gap_increasing(lambda q: tsallis(q, temperature, index), alpha, expected=True)


def gap_increasing(
    soft_step: Callable[[Array], Step], alpha: ArrayLike, *, expected: bool = False
) -> Scheme:
    """`q' = r + alpha (q - b) + discount P v`: b is the soft maximum v, or the mean `<pi, q>`."""

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        best = soft_step(at.q)
        policy = jnp.exp(best.log_policy)
        baseline = jnp.sum(policy * at.q, axis=-1) if expected else best.value
        q = action_values(mdp, best.value) + alpha * (at.q - baseline[:, None]) + error
        return Iterate(q, best.log_policy, at.total)

    return Scheme(_start, step)


def conservative(rate: ArrayLike) -> Scheme:
    """Conservative policy iteration: `pi' = (1 - rate) pi + rate greedy(q_pi)`, q_pi exact.

    Reference: Kakade and Langford 2002, section 4.
    """

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        policy = jnp.exp(at.log_policy)
        q = policy_action_values(mdp, policy) + error
        mixed = (1 - rate) * policy + rate * jnp.exp(greedy(q).log_policy)
        return Iterate(q, jnp.log(mixed), at.total)

    return Scheme(_start, step)


def mirror_descent(
    rate: ArrayLike, generator: Generator | None = None, entropy: ArrayLike = 0.0
) -> Scheme:
    """Policy mirror descent: `argmax <pi, q_pi> - D(pi‖previous) / rate`, q_pi exact.

    With KL, the default, `pi' ~ pi exp(rate q)`: tabular natural policy gradient; `entropy` is
    added to the objective and to q_pi's rewards. Other rows are proximal steps in that divergence.

    Reference: Cen et al. 2022 (arXiv:2007.06558), algorithm 1 and equation 17.
    """

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        policy = jnp.exp(at.log_policy)
        if generator is not None:
            q = policy_action_values(mdp, policy) + error
            best = towards(q, at.log_policy, 1 / rate, generator)
        else:
            q = soft_policy_action_values(mdp, at.log_policy, entropy) + error
            best = soft(q, at.log_policy, 1 / rate, entropy)
        return Iterate(q, best.log_policy, at.total)

    return Scheme(_start, step)


def soft_policy_action_values(mdp: AnyMdp, log_policy: Array, entropy: ArrayLike) -> Array:
    """`[S, A]` action values of a policy that is paid `entropy H(pi)` in every state from the next
    one on.
    """
    policy = jnp.exp(log_policy)
    bonus = -entropy * jnp.sum(policy * jnp.where(policy > 0, log_policy, 0), axis=-1)
    return action_values(mdp, policy_value(mdp, policy, bonus))
