"""Regularized greedy steps, and the schemes of value iteration that are made of them.

A greedy step maps action values `[S, A]` to a log-policy and its regularized value `[S]`. A scheme
is `init(q)`, the first iterate, and `step(mdp, iterate, error)`, the next one, with an error
`[S, A]` added to the action values. Temperatures and weights may be traced, also where they are 0:
a step without a regularizer is the greedy one. Negative ones are refused, and give NaN if they are
traced. Arrays have to be floating-point, and policies normalized logarithms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, regularized
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator
from jdiv.divergences.generators import KL
from jdiv.mdp.model import AnyMdp, action_values, policy_action_values, policy_value
from jdiv.types import Logits, LogPolicy, Reduced, Scalar, StateActions, Values


class Step(NamedTuple):
    """A regularized greedy step.

    Fields:
        log_policy: `[S, A]`
        value: `[S]` `max_pi <pi, q> - penalty(pi)`, attained by the policy.
    """

    log_policy: Array
    value: Array


# ------------------------------------------------------------------------------------ greedy steps


def greedy(q: Values) -> Step:
    """`argmax <pi, q>`: the first of the best actions.

    >>> greedy(jnp.array([[1.0, 3.0]])).log_policy
    Array([[-inf,   0.]], dtype=float32)
    """
    value = jnp.max(q, axis=-1)
    chosen = jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[-1], dtype=bool)
    log_policy = jnp.where(chosen, 0.0, -jnp.inf).astype(q.dtype)
    return Step(jnp.where(jnp.isnan(value)[..., None], jnp.nan, log_policy), value)


def _unless_greedy(hard: Array, q: Array, step: Step) -> Step:
    """The step, and the greedy one where `hard`."""
    return jax.tree.map(lambda greedy_x, x: jnp.where(hard, greedy_x, x), greedy(q), step)


def _weights(kl_weight: Scalar, entropy_weight: Scalar) -> tuple[Scalar, Scalar]:
    """Checked weights of KL and entropy."""
    return tuple(
        checks.not_negative(name, weight)
        for name, weight in (("kl_weight", kl_weight), ("entropy_weight", entropy_weight))
    )


def soft(q: Values, old_log_policy: LogPolicy, kl_weight: Scalar, entropy_weight: Scalar) -> Step:
    """`argmax <pi, q> - kl_weight KL(pi‖old) + entropy_weight H(pi)`.

    `pi ~ old^(kl_weight/T) exp(q/T)`, `T = kl_weight + entropy_weight`; greedy if both are 0.

    >>> step = soft(jnp.array([[0.0, 1.0]]), jnp.log(jnp.full((1, 2), 0.5)), 0.0, 1.0)
    >>> print(f"{jnp.exp(step.log_policy)[0, 1]:.4f} {step.value[0]:.4f}")
    0.7311 1.3133

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), section 3.
    """
    kl_weight, entropy_weight = _weights(kl_weight, entropy_weight)
    temperature = jnp.asarray(kl_weight + entropy_weight, q.dtype)
    hard = temperature == 0
    scale = jnp.where(hard, 1, temperature)
    share = jnp.where(hard, 0, kl_weight / scale)
    prior = jnp.where(share == 0, 0, share * jnp.where(share == 0, 0, old_log_policy))
    logits = q / scale + prior
    value = scale * jax.nn.logsumexp(logits, axis=-1)
    return _unless_greedy(hard, q, Step(numerics.log_softmax(logits), value))


def regularized_greedy(
    q: Values, ref_logits: Logits, temperature: Scalar, *, generator: Generator
) -> Step:
    """`argmax <pi, q> - temperature D(pi‖ref)` for any row of the table; the temperature positive.

    The reference is normalized here.

    >>> q, ref_logits = jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2))
    >>> step = regularized_greedy(q, ref_logits, 0.5, generator=generators.kl())
    >>> print(f"{jnp.exp(step.log_policy)[0, 0]:.4f} {step.value[0]:.4f}")
    0.8808 0.7169

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 3.
    """
    best = regularized.greedy(q, ref_logits, temperature, generator=generator)
    return Step(best.log_policy, best.value)


def regularized_greedy_between(
    q: Values,
    ref_logits: Logits,
    old_logits: Logits,
    ref_temperature: Scalar,
    old_temperature: Scalar,
    *,
    generator: Generator,
) -> Step:
    """`argmax <pi, q> - ref_temperature D(pi‖ref) - old_temperature D(pi‖old)`.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), section 3, for KL and entropy.
    """
    best = regularized.greedy_between(
        q, ref_logits, old_logits, ref_temperature, old_temperature, generator=generator
    )
    return Step(best.log_policy, best.value)


def mellowmax(q: Values, temperature: Scalar) -> Reduced:
    """`T log mean exp(q/T)`: the soft maximum against the uniform policy; the maximum at T = 0.

    >>> [f"{mellowmax(jnp.array([0.0, 1.0]), t):.4f}" for t in (0.0, 0.1, 10.0)]
    ['1.0000', '0.9307', '0.5125']

    Reference: Asadi and Littman 2017 (arXiv:1612.05628), equation 4.
    """
    temperature = jnp.asarray(checks.not_negative("temperature", temperature), q.dtype)
    hard = temperature == 0
    scale = jnp.where(hard, 1, temperature)
    log_count = jnp.log(jnp.asarray(q.shape[-1], q.dtype))
    value = scale * (jax.nn.logsumexp(q / scale, axis=-1) - log_count)
    return jnp.where(hard, jnp.max(q, axis=-1), value)


def tsallis(q: Values, temperature: Scalar, index: Scalar) -> Step:
    """`argmax <pi, q> + temperature H(pi)`, Tsallis' entropy `H = sum (pi - pi^i) / (i - 1)`.

    Soft for index 1, sparse above it: `entmax(q / (index * temperature), alpha=index)`, that is
    sparsemax of `q / (2 temperature)` for index 2; greedy at temperature 0. The entropy is minus
    the divergence of `generators.tsallis(index)` from the uniform policy, up to a constant, at
    temperature `n^(1 - index)`. Entropies `sum (pi - pi^i) / (i (i - 1))`, as entmax has them, are
    those here divided by the index.

    Reference: Lee et al. 2019 (arXiv:1902.00137), section IV; Zhu et al. 2023 (arXiv:2301.11476).
    """
    temperature = jnp.asarray(checks.not_negative("temperature", temperature), q.dtype)
    index = jnp.asarray(checks.positive("index", index), q.dtype)
    temperature = jnp.where(jnp.isnan(index), jnp.nan, temperature)
    hard = temperature == 0
    scale = jnp.where(hard, 1, temperature)
    power = (1 - index) * jnp.log(jnp.asarray(q.shape[-1], q.dtype))
    best = regularized.greedy(
        q / scale, jnp.zeros_like(q), jnp.exp(power), generator=generators.tsallis(index)
    )
    # The divergence from uniform is 0 where the entropy is (1 - n^(1 - i)) / (i - 1).
    most = jnp.log(jnp.asarray(q.shape[-1], q.dtype)) * numerics.phi_1(power)
    return _unless_greedy(hard, q, Step(best.log_policy, scale * (best.value + most)))


# ---------------------------------------------------------------------------------------- schemes


class Iterate(NamedTuple):
    """Action values and the policy of one iteration.

    Fields:
        q: `[S, A]` action values; Munchausen's contain the bonus.
        log_policy: `[S, A]` the policy to act by, greedy in some way for the action values before.
    """

    q: Array
    log_policy: Array


class AveragedIterate(NamedTuple):
    """An iterate of dual averaging.

    Fields:
        q: `[S, A]` action values.
        log_policy: `[S, A]` the policy to act by.
        total: `[S, A]` discounted sum of all action values so far, up to a constant for each state.
    """

    q: Array
    log_policy: Array
    total: Array


AnyIterate = Iterate | AveragedIterate


class Scheme(NamedTuple):
    """An iterative scheme: initial iterate and transition.

    Fields:
        init: `init(q)`, the iterate of given action values and the uniform policy.
        step: `step(mdp, iterate, error)`, the next iterate.
    """

    init: Callable[[Array], AnyIterate]
    step: Callable[[AnyMdp, AnyIterate, ArrayLike], AnyIterate]


def _start(q: Array) -> Iterate:
    """The uniform policy."""
    return Iterate(q, jnp.full_like(q, -jnp.log(jnp.asarray(q.shape[-1], q.dtype))))


GreedyStep = Callable[[Array, Array], Step]
"""`greedy_step(q, old_log_policy)`."""


def modified_policy_iteration(greedy_step: GreedyStep, evaluations: int = 1) -> Scheme:
    """Regularized modified policy iteration by `greedy_step(q, old_log_policy)`.

    `q' = (T_pi)^m q`, `T_pi q = r + discount P (<pi, q> - penalty(pi))`: m = 1 is value iteration,
    m to infinity policy iteration.

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 4, Regularized MPI.
    """
    checks.in_range("evaluations", evaluations, 1, jnp.inf, "at least 1", closed="low")

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        best = greedy_step(at.q, at.log_policy)
        policy = jnp.exp(best.log_policy)
        penalty = jnp.sum(policy * at.q, axis=-1) - best.value

        def evaluate(_, q):
            return action_values(mdp, jnp.sum(policy * q, axis=-1) - penalty)

        q = jax.lax.fori_loop(1, evaluations, evaluate, action_values(mdp, best.value))
        return Iterate(q + error, best.log_policy)

    return Scheme(_start, step)


def value_iteration() -> Scheme:
    """`q' = r + discount P max q`."""
    return modified_policy_iteration(lambda q, old_log_policy: greedy(q))


def md_vi(kl_weight: Scalar, entropy_weight: Scalar, evaluations: int = 1) -> Scheme:
    """Mirror descent value iteration: KL to the old policy, and entropy.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), equation 2.
    """
    kl_weight, entropy_weight = _weights(kl_weight, entropy_weight)
    return modified_policy_iteration(
        lambda q, old_log_policy: soft(q, old_log_policy, kl_weight, entropy_weight), evaluations
    )


def da_vi(kl_weight: Scalar, entropy_weight: Scalar) -> Scheme:
    """Dual averaging value iteration: the same policies from a sum of all action values.

    `pi_(k+1) ~ exp(S_k / T)`, `S_k = q_k + kl_weight/T S_(k-1)`, `T = kl_weight + entropy_weight`;
    with h_k as in the paper, the average of the q for entropy_weight = 0 and `entropy_weight/T S_k`
    else. With both weights 0 it is value iteration.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), equation 4.
    """
    kl_weight, entropy_weight = _weights(kl_weight, entropy_weight)

    def init(q: Array) -> AveragedIterate:
        return AveragedIterate(*_start(q), total=q)

    def step(mdp: AnyMdp, at: AveragedIterate, error: ArrayLike) -> AveragedIterate:
        temperature = jnp.asarray(kl_weight + entropy_weight, at.q.dtype)
        hard = temperature == 0
        scale = jnp.where(hard, 1, temperature)
        logits = numerics.log_softmax(at.total / scale)
        log_policy = jnp.where(hard, greedy(at.total).log_policy, logits)
        # <pi, q> - kl_weight KL(pi‖old) + entropy_weight H(pi); without weights there is no cost.
        log_ratio = jnp.where(hard, 0, logits - jnp.where(hard, 0, at.log_policy))
        payoff = at.q - kl_weight * log_ratio - entropy_weight * jnp.where(hard, 0, logits)
        q = action_values(mdp, jnp.sum(jnp.exp(log_policy) * payoff, axis=-1)) + error
        share = jnp.where(hard, 0, kl_weight / scale)
        # Without its largest entry the sum does not grow, and neither does its rounding error.
        centered = at.total - jnp.max(at.total, axis=-1, keepdims=True)
        return AveragedIterate(q, log_policy, q + share * centered)

    return Scheme(init, step)


def munchausen(alpha: Scalar, temperature: Scalar) -> Scheme:
    """`q' = r + alpha T log pi + discount P (<pi, q> + T H(pi))`, `pi = softmax(q/T)`.

    Since `T log pi = q - v` with the soft maximum v, this is `r + alpha (q - v) + discount P v`. It
    is `md_vi(alpha T, (1 - alpha) T)` in disguise, whose q is q' - alpha T log pi. alpha = 0 is
    soft value iteration, alpha = 1 dynamic policy programming, T = 0 advantage learning.

    Reference: Vieillard, Pietquin and Geist 2020 (arXiv:2007.14430), equation 3.
    """
    temperature = checks.not_negative("temperature", temperature)
    return gap_increasing(lambda q: soft(q, jnp.zeros_like(q), 0.0, temperature), alpha)


def advantage_learning(alpha: Scalar) -> Scheme:
    """`q' = r + alpha (q - max q) + discount P max q`.

    Reference: Bellemare et al. 2016 (arXiv:1512.04860), equation 5.
    """
    return munchausen(alpha, 0.0)


def dpp(temperature: Scalar) -> Scheme:
    """Dynamic policy programming, `q' = q - v + r + discount P v` with the soft maximum v.

    Reference: Azar, Gomez and Kappen 2012, section 3, with the log-sum-exp as soft maximum.
    """
    return munchausen(1.0, temperature)


def cvi(alpha: Scalar, temperature: Scalar) -> Scheme:
    """Conservative value iteration: Munchausen's with mellowmax as the soft maximum.

    At temperature 0 it is advantage learning.

    Reference: Kozuno, Uchibe and Doya 2019, equation 4.
    Reconstructed: the equation, from the note on it in Vieillard et al. 2020 (arXiv:2003.14089).
    """
    temperature = checks.not_negative("temperature", temperature)

    def averaged(q: Array) -> Step:
        step = soft(q, jnp.zeros_like(q), 0.0, temperature)
        return step._replace(value=mellowmax(q, temperature))

    return gap_increasing(averaged, alpha)


def mvi(alpha: Scalar, temperature: Scalar, index: Scalar) -> Scheme:
    """MVI(q), Munchausen's with Tsallis' entropy: `r + alpha (q - <pi, q>) + discount P v`.

    Index and temperature are those of `tsallis`, at temperature 0 it is advantage learning. For
    index 1 it differs from Munchausen's by the entropy in the bonus, `q - <pi, q>` for `q - v`.

    Reference: Zhu et al. 2023 (arXiv:2301.11476).
    Reconstructed: the bonus, from a secondary source.
    """
    temperature = checks.not_negative("temperature", temperature)
    index = checks.positive("index", index)
    return gap_increasing(lambda q: tsallis(q, temperature, index), alpha, expected=True)


def gap_increasing(
    soft_step: Callable[[Array], Step], alpha: Scalar, *, expected: bool = False
) -> Scheme:
    """`q' = r + alpha (q - b) + discount P v`: b is the soft maximum v, or the mean `<pi, q>`."""
    alpha = checks.in_range("alpha", alpha, 0, 1, "from 0 to 1", closed="both")

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        best = soft_step(at.q)
        policy = jnp.exp(best.log_policy)
        baseline = jnp.sum(policy * at.q, axis=-1) if expected else best.value
        q = action_values(mdp, best.value) + alpha * (at.q - baseline[:, None]) + error
        return Iterate(q, best.log_policy)

    return Scheme(_start, step)


def conservative_iteration(share: Scalar) -> Scheme:
    """Conservative policy iteration: `pi' = (1 - share) pi + share greedy(q_pi)`, q_pi exact.

    Reference: Kakade and Langford 2002, section 4.
    """
    share = checks.in_range("share", share, 0, 1, "from 0 to 1", closed="both")

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        policy = jnp.exp(at.log_policy)
        q = policy_action_values(mdp, policy) + error
        mixed = (1 - share) * policy + share * jnp.exp(greedy(q).log_policy)
        return Iterate(q, jnp.log(mixed))

    return Scheme(_start, step)


def policy_mirror_descent(
    step_size: Scalar, entropy_weight: Scalar = 0.0, *, generator: Generator | None = None
) -> Scheme:
    """`argmax <pi, q_pi> - D(pi‖old) / step_size + entropy_weight H(pi)`, q_pi exact.

    With KL, the default, `pi' ~ pi exp(step_size q)`: tabular natural policy gradient; the entropy
    is also paid in q_pi's rewards. Other rows are proximal steps in that divergence, and take no
    entropy.

    >>> policy_mirror_descent(1.0, 0.1, generator=generators.pearson_chi2())
    Traceback (most recent call last):
    ValueError: entropy_weight must be 0 for rows other than KL, got 0.1

    Reference: Cen et al. 2022 (arXiv:2007.06558), algorithm 1 and equation 17.
    """
    step_size = checks.positive("step_size", step_size)
    entropy_weight = checks.not_negative("entropy_weight", entropy_weight)
    by_kl = generator is None or isinstance(generator, KL)
    if not by_kl and (isinstance(entropy_weight, jax.core.Tracer) or entropy_weight != 0):
        raise ValueError(f"entropy_weight must be 0 for rows other than KL, got {entropy_weight}")

    def step(mdp: AnyMdp, at: Iterate, error: ArrayLike) -> Iterate:
        q = soft_policy_action_values(mdp, at.log_policy, entropy_weight) + error
        if by_kl:
            best = soft(q, at.log_policy, 1 / step_size, entropy_weight)
        else:
            best = regularized_greedy(q, at.log_policy, 1 / step_size, generator=generator)
        return Iterate(q, best.log_policy)

    return Scheme(_start, step)


def soft_policy_action_values(
    mdp: AnyMdp, log_policy: StateActions, entropy_weight: Scalar
) -> Array:
    """`[S, A]` action values of a policy that is paid `entropy_weight H(pi)` in each later state.

    The entropy of the present state is not in them.
    """
    policy = jnp.exp(log_policy)
    entropy_weight = checks.not_negative("entropy_weight", entropy_weight)
    bonus = -entropy_weight * jnp.sum(policy * jnp.where(policy > 0, log_policy, 0), axis=-1)
    return action_values(mdp, policy_value(mdp, policy, bonus))
