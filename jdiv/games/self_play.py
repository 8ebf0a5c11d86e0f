"""Self-play on preference games: each algorithm is one step, `step(log_policy, ...) -> log_policy`.

Almost all of them are one proximal step (`proximal`) in some direction v of win rates:

    argmax_pi <pi, v> - beta D(pi‖ref) - B(pi, pi_k) / step_size

with B the Bregman divergence of D(.‖ref); for KL it is KL(pi‖pi_k), and any strictly convex row of
the table is one line through `regularized.greedy`. They differ in v: against oneself
(`online_mirror_descent`), against where that leads (`mirror_prox`), against a mixture with the
reference (`nash_md`). `play` runs a step. Beside the closed forms are the losses per example which
language models are trained with, `nash_md_loss`, `inpo_loss`, `sppo_loss`, `rspo_loss`,
`spin_loss`: log-probabilities of whole answers, `[...]` to `[...]`, nothing averaged.

`beta` is the weight of a divergence from the reference, `step_size` the reciprocal of the weight of
that from the last policy. Policies are `[..., n]` log-probabilities, normalized, the preference
`[..., n, n]` as in `preferences`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, estimators, numerics
from jdiv.alignment import preference as preference_losses
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator, checked_row
from jdiv.divergences.generators import KL
from jdiv.games.preferences import answer_win_rates
from jdiv.regularized import greedy
from jdiv.types import (
    Logits,
    LogPolicy,
    PerPair,
    PerSequence,
    Preference,
    SequenceLogProbs,
    Values,
)

_KL = generators.kl()
State = Any
"""State of a step, a pytree of arrays: a log-policy, or a `History`."""


def play(
    step: Callable[[State], State],
    start: State,
    iterations: int,
    measure: Callable[[State], Any] = lambda state: state,
) -> Any:
    """Runs a step and measures the start and every iterate, leaves `[iterations + 1, ...]`.

    >>> halved = play(lambda x: x / 2, jnp.array(8.0), 3)
    >>> halved.tolist()
    [8.0, 4.0, 2.0, 1.0]
    """
    last, before = jax.lax.scan(
        lambda state, _: (step(state), measure(state)), start, length=iterations
    )
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), before, measure(last))


# ---------------------------------------------------------------------------------- proximal steps


def _slope(log_policy: LogPolicy, ref_logits: Logits, generator: Generator) -> Array:
    """`f'(pi/ref)`, f'(0) where the policy is zero."""
    log_policy, _, t = numerics.log_ratio(log_policy, ref_logits)
    generator = checked_row(generator, t.dtype, invertible=True)
    return generator.slope(jnp.where(log_policy == -jnp.inf, -jnp.inf, t))


def proximal(
    values: Values,
    log_policy: LogPolicy,
    ref_logits: Logits,
    *,
    beta: ArrayLike,
    step_size: ArrayLike,
    generator: Generator = _KL,
) -> LogPolicy:
    """`argmax_pi <pi, v> - beta D(pi‖ref) - B(pi, pi_k) / step_size`, B Bregman's for D(.‖ref).

    `(beta + 1/step_size) f'(pi/ref) = v + f'(pi_k/ref) / step_size + constant`: greedy once more.
    KL, with `B = KL(pi‖pi_k)`: `log pi = (v + beta log ref + log pi_k / step_size) / (beta +
    1/step_size)`, normalized. Shapes: `[..., n]` three times to the same.

    >>> uniform = jnp.zeros(2)
    >>> new = proximal(jnp.array([1.0, 0.0]), uniform, uniform, beta=0.5, step_size=2.0)
    >>> [f"{p:.4f}" for p in jnp.exp(new)]
    ['0.7311', '0.2689']

    Reference: Tiapkin et al. 2025 (arXiv:2505.19731), the step of Nash mirror prox, for KL.
    """
    beta = checks.positive("beta", beta)
    step_size = checks.positive("step_size", step_size)
    values = checks.as_float("values", values)
    log_policy = checks.as_float("log_policy", log_policy).astype(values.dtype)
    ref_logits = checks.as_float("ref_logits", ref_logits).astype(values.dtype)
    checks.same_shape(values=values, log_policy=log_policy, ref_logits=ref_logits)
    per_row = checks.per_row("step_size", step_size, values)
    values += _slope(log_policy, ref_logits, generator) / per_row
    return greedy(values, ref_logits, beta + 1 / step_size, generator=generator).log_policy


def online_mirror_descent(
    log_policy: LogPolicy,
    preference: Preference,
    ref_logits: Logits,
    *,
    beta: ArrayLike,
    step_size: ArrayLike,
    generator: Generator = _KL,
) -> LogPolicy:
    """The proximal step against oneself, `v = P pi_k`.

    For a large step_size and a small beta it runs in growing circles: see `mirror_prox`.

    Reference: Zhang et al. 2024 (arXiv:2407.00617), equation of the update, for KL.
    """
    step = functools.partial(proximal, beta=beta, step_size=step_size, generator=generator)
    return step(answer_win_rates(log_policy, preference), log_policy, ref_logits)


def mirror_prox(
    log_policy: LogPolicy,
    preference: Preference,
    ref_logits: Logits,
    *,
    beta: ArrayLike,
    step_size: ArrayLike = 2.0,
    generator: Generator = _KL,
) -> LogPolicy:
    """Nash mirror prox: half a step against oneself, and from pi_k again against where it led.

    Two queries of the preference. With KL and step_size 2, `KL(pi*‖pi_k)` falls at least by the
    factor `1 + 2 beta` in each iteration, for any number of answers.

    Reconstructed: step_size 2 and the factor are from a note on the paper; tests confirm them.
    Reference: Tiapkin et al. 2025 (arXiv:2505.19731), the rate.
    """
    step = functools.partial(proximal, beta=beta, step_size=step_size, generator=generator)
    half = step(answer_win_rates(log_policy, preference), log_policy, ref_logits)
    return step(answer_win_rates(half, preference), log_policy, ref_logits)


def _below_one(beta: ArrayLike, step_size: ArrayLike) -> ArrayLike:
    """`step_size beta`, a checked share of the way to the reference."""
    beta, step_size = checks.positive("beta", beta), checks.positive("step_size", step_size)
    return checks.in_range("step_size * beta", step_size * beta, 0, 1, "below 1")


def nash_md(
    log_policy: LogPolicy,
    preference: Preference,
    ref_logits: Logits,
    *,
    beta: ArrayLike,
    step_size: ArrayLike,
    generator: Generator = _KL,
) -> LogPolicy:
    """Nash-MD: a step against a mixture with the reference, and from there.

    `f'(mix/ref) = (1 - step_size beta) f'(pi_k/ref)`, a geometric mixture for KL, then
    `argmax_pi <pi, P mix> - B(pi, mix) / step_size`. It needs `step_size beta < 1`.

    Reference: Munos et al. 2023 (arXiv:2312.00886), section 6, for KL.
    """
    share = _below_one(beta, step_size)
    slope = _slope(log_policy, ref_logits, generator)
    kept = (1 - checks.per_row("step_size * beta", share, slope)) * slope
    mixture = greedy(kept, ref_logits, 1.0, generator=generator).log_policy
    step_size = checks.per_row("step_size", step_size, slope)
    values = step_size * answer_win_rates(mixture, preference) + kept
    return greedy(values, ref_logits, 1.0, generator=generator).log_policy


def _probability(win_probability: PerSequence) -> Array:
    """Checked probabilities to win, or outcomes 0 and 1."""
    x = checks.as_rewards("win_probability", win_probability)
    return jnp.asarray(checks.in_range("win_probability", x, 0, 1, "from 0 to 1", closed="both"))


def nash_md_loss(
    log_probs: SequenceLogProbs,
    ref_log_probs: SequenceLogProbs,
    win_probability: PerSequence,
    *,
    beta: ArrayLike,
) -> PerSequence:
    """`-(P(y > y') - 1/2 - beta log(pi/ref)) log pi`, everything but the last `log pi` held fixed.

    y is an answer of the policy and y' one of the mixture `pi^(1 - share) ref^share`, see
    `geometric_mixture`; `share` is `step_size beta` in `nash_md`. The mean gradient by softmax
    logits is `-pi (d - <pi, d>)` with `d = P mix - beta log(pi/ref)`, the direction
    `(nash_md - log pi) / step_size`. P may be the outcome of one comparison, 0 or 1. Only the
    gradient has a meaning, the value has none. For language models the mixture is usually taken
    token by token, which is another one. The log-probabilities are those of whole answers: with a
    loss for each token the penalty is not the gradient of KL(pi‖ref), as a token's own log-ratio
    says nothing of those behind it; the trainer that TRL had took these. Shapes: `[...]` three
    times to `[...]`.

    Reference: Munos et al. 2023 (arXiv:2312.00886), section 7, Nash-MD-PG.
    """
    beta = checks.positive("beta", beta)
    win_probability = _probability(win_probability)
    log_probs, ref_log_probs, win_probability = checks.alike(
        log_probs=log_probs, ref_log_probs=ref_log_probs, win_probability=win_probability
    )
    penalty = jnp.asarray(beta, log_probs.dtype) * (log_probs - ref_log_probs)
    return -jax.lax.stop_gradient(win_probability - 0.5 - penalty) * log_probs


# -------------------------------------------------------------------------------------------- INPO


def inpo(
    log_policy: LogPolicy,
    preference: Preference,
    ref_logits: Logits,
    *,
    beta: ArrayLike,
    step_size: ArrayLike,
) -> LogPolicy:
    """`pi_k^(1 - share) ref^share exp(step_size P(y > pi_k))`, share = beta step_size.

    The policy that `inpo_loss` fits; `online_mirror_descent` with the step
    `step_size / (1 - share)`. The paper's tau is beta, its eta `1/step_size`; beta step_size < 1.

    Reference: Zhang et al. 2024 (arXiv:2407.00617), the update.
    """
    longer = step_size / (1 - _below_one(beta, step_size))
    return online_mirror_descent(log_policy, preference, ref_logits, beta=beta, step_size=longer)


def inpo_loss(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    old_chosen: PerPair,
    old_rejected: PerPair,
    *,
    beta: ArrayLike,
    step_size: ArrayLike,
) -> PerPair:
    """`(D - share D_ref - (1 - share) D_old - step_size/2)^2`, D = log pi_w - log pi_l.

    For pairs of answers of the previous policy, with share = beta step_size; its minimizer over all
    policies is `inpo`. The paper's tau is beta, its eta `1/step_size`. Shapes: `[...]` six times to
    `[...]`.

    Reconstructed: from code for arXiv:2606.01382, not from the paper.
    Reference: Zhang et al. 2024 (arXiv:2407.00617).
    """
    share = _below_one(beta, step_size)
    chosen, rejected, ref_chosen, ref_rejected, old_chosen, old_rejected = checks.alike(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        old_chosen=old_chosen,
        old_rejected=old_rejected,
    )
    share = jnp.asarray(share, chosen.dtype)
    anchor = share * (ref_chosen - ref_rejected) + (1 - share) * (old_chosen - old_rejected)
    return (chosen - rejected - anchor - jnp.asarray(step_size / 2, chosen.dtype)) ** 2


# ---------------------------------------------------------------------------------- SPPO and RSPO


def sppo(
    log_policy: LogPolicy,
    preference: Preference,
    *,
    step_size: ArrayLike,
    generator: Generator = _KL,
) -> LogPolicy:
    """`argmax_pi <pi, P pi_k> - D(pi‖pi_k) / step_size`; KL: `pi_k exp(step_size P pi_k)`.

    Without a reference it does not come to rest: in cyclic games it spirals to the border. The
    paper's eta is `step_size`.

    Reference: Wu et al. 2024 (arXiv:2405.00675), the update, for KL.
    """
    step_size = checks.positive("step_size", step_size)
    values = answer_win_rates(log_policy, preference)
    return greedy(values, log_policy, 1 / step_size, generator=generator).log_policy


def sppo_loss(
    log_probs: SequenceLogProbs,
    old_log_probs: SequenceLogProbs,
    win_probability: PerSequence,
    *,
    step_size: ArrayLike,
) -> PerSequence:
    """`(log pi/pi_k - step_size (P(y > pi_k) - 1/2))^2` for an answer y of pi_k.

    step_size/2 stands for the logarithm of the normalizer: over functions that need not be
    normalized the minimizer is `sppo` times a constant; among policies it is so up to the square of
    step_size. `alignment.preference.sppo_hard` is the form for pairs with a certain winner.
    Shapes: `[...]` three times to `[...]`.

    Reference: Wu et al. 2024 (arXiv:2405.00675), the objective, from the authors' code.
    """
    step_size = checks.positive("step_size", step_size)
    win_probability = _probability(win_probability)
    log_probs, old_log_probs, win_probability = checks.alike(
        log_probs=log_probs, old_log_probs=old_log_probs, win_probability=win_probability
    )
    target = jnp.asarray(step_size, log_probs.dtype) * (win_probability - 0.5)
    return (log_probs - old_log_probs - target) ** 2


def _weighed(penalties: generators.Penalties) -> generators.Penalties:
    """Penalties whose weights are checked."""
    return tuple((checks.not_negative("penalties", weight), row) for weight, row in penalties)


def rspo(
    log_policy: LogPolicy,
    preference: Preference,
    ref_logits: Logits,
    *,
    step_size: ArrayLike,
    penalties: generators.Penalties,
) -> LogPolicy:
    """`argmax_pi <pi, P pi_k> - KL(pi‖pi_k) / step_size - sum_i w_i D_i(pi‖ref)`.

    SPPO, regularized: a fixed point is the equilibrium of the game with these penalties. As
    `KL(pi‖pi_k)` is `KL(pi‖ref) + <pi, log ref/pi_k>`, this is greedy for the sum of all rows.

    Reconstructed: the exact step is inferred from the abstract: SPPO with a penalty, forward and
    reverse KL.
    Reference: RSPO (arXiv:2503.00030), abstract.
    """
    step_size, penalties = checks.positive("step_size", step_size), _weighed(penalties)
    values = answer_win_rates(log_policy, preference)
    values += _slope(log_policy, ref_logits, _KL) / checks.per_row("step_size", step_size, values)
    others = tuple(penalty for penalty in penalties if not isinstance(penalty[1], KL))
    own = 1 / step_size + sum(weight for weight, row in penalties if isinstance(row, KL))
    if not others:
        return greedy(values, ref_logits, own, generator=_KL).log_policy
    row = generators.weighted_sum(((own, _KL), *others))
    return greedy(values, ref_logits, 1.0, generator=row).log_policy


def rspo_loss(
    log_probs: SequenceLogProbs,
    old_log_probs: SequenceLogProbs,
    ref_log_probs: SequenceLogProbs,
    win_probability: PerSequence,
    *,
    step_size: ArrayLike,
    penalties: generators.Penalties,
) -> PerSequence:
    """`sppo_loss + sum_i w_i D_i(pi‖ref)`, the divergences from the same answers of pi_k.

    They are centered estimates weighted by pi/pi_k: value and gradient are right in the mean. At
    `pi = pi_k` the mean gradient is that of `-2 s (P(pi > pi_k) - sum_i w_i D_i / (2 s))`, s the
    step size: it rests at the equilibrium whose penalties are `1 / (2 s)` of these. Shapes: `[...]`
    four times to `[...]`.

    Reconstructed: that it is a squared loss plus a penalty is from a note on the paper; how the
    penalty is estimated is chosen here.
    Reference: RSPO (arXiv:2503.00030), abstract.
    """
    loss = sppo_loss(log_probs, old_log_probs, win_probability, step_size=step_size)
    log_probs, old_log_probs, ref_log_probs = checks.alike(
        log_probs=log_probs, old_log_probs=old_log_probs, ref_log_probs=ref_log_probs
    )
    log_weights = log_probs - old_log_probs
    for weight, row in _weighed(penalties):
        estimate = estimators.centered_from_p(
            row, log_probs, ref_log_probs, log_weights=log_weights
        )
        loss += jnp.asarray(weight, loss.dtype) * estimate.astype(loss.dtype)
    return loss


# -------------------------------------------------------------------------------------------- SPIN


def geometric_mixture(log_policy: LogPolicy, ref_logits: Logits, share: ArrayLike) -> LogPolicy:
    """`pi^(1 - share) ref^share`, normalized. Shapes: `[..., n]` twice to the same.

    With share 0 or 1 a zero of the other one does not count.
    """
    log_policy, ref_logits = checks.alike(log_policy=log_policy, ref_logits=ref_logits)
    share = checks.in_range("share", share, 0, 1, "from 0 to 1", closed="both", rows=log_policy)
    mixed = [
        jnp.where(weight == 0, 0, weight * jnp.where(weight == 0, 0, logits))
        for weight, logits in ((1 - share, log_policy), (share, ref_logits))
    ]
    return numerics.log_softmax(mixed[0] + mixed[1])


def spin_loss(
    real: PerPair,
    generated: PerPair,
    old_real: PerPair,
    old_generated: PerPair,
    ref_real: PerPair,
    ref_generated: PerPair,
    *,
    beta: ArrayLike,
    share: ArrayLike = 0.0,
) -> PerPair:
    """DPO of real answers over generated ones, with the reference `old^(1 - share) ref^share`.

    SPIN for share 0; for 1 the reference is fixed, as in DPO. Answers are generated by the previous
    policy, or by one drawn from the history (`fictitious_play`). Shapes: `[...]` six times to
    `[...]`.

    Reconstructed: the mixture and the history are from the abstract of arXiv:2404.04291.
    Reference: Chen et al. 2024 (arXiv:2401.01335), SPIN.
    """
    real, generated, old_real, old_generated, ref_real, ref_generated = checks.alike(
        real=real,
        generated=generated,
        old_real=old_real,
        old_generated=old_generated,
        ref_real=ref_real,
        ref_generated=ref_generated,
    )
    share = checks.in_range("share", share, 0, 1, "from 0 to 1", closed="both")
    share = jnp.asarray(share, real.dtype)
    anchors = (
        old + share * (ref - old)
        for old, ref in ((old_real, ref_real), (old_generated, ref_generated))
    )
    return preference_losses.dpo(real, generated, *anchors, beta=beta)


def spin(
    log_policy: LogPolicy,
    log_data: LogPolicy,
    ref_logits: Logits,
    *,
    beta: ArrayLike,
    share: ArrayLike = 0.0,
    log_opponent: LogPolicy | None = None,
) -> LogPolicy:
    """`mixture (data / opponent)^(1/beta)`: the minimizer of `spin_loss` over all policies.

    The mixture is `pi_k^(1 - share) ref^share`; the opponent that generates is the previous policy
    unless another is given. With share s it comes to rest at `ref^(s beta) data`, to the power
    `1 / (1 + s beta)`; without, and with beta 1, it is the data after one step. From far away it
    gets there if `|1 - s - 1/beta| < 1`. Opponents must cover the data. Shapes: `[..., n]`.

    Reference: Chen et al. 2024 (arXiv:2401.01335), SPIN; the closed form is derived here.
    """
    beta = checks.positive("beta", beta)
    opponent = log_policy if log_opponent is None else log_opponent
    anchor = geometric_mixture(log_policy, ref_logits, share)
    _, _, advantage = numerics.log_ratio(*checks.alike(log_data=log_data, log_opponent=opponent))
    advantage = jnp.where(log_data == -jnp.inf, -jnp.inf, advantage)
    return greedy(advantage, anchor, beta, generator=_KL).log_policy


class History(NamedTuple):
    """State of fictitious play: the last policy and the average of all.

    Fields:
        log_policy: `[..., n]` the last policy.
        log_average: `[..., n]` the average of all so far.
        rounds: `[]` the number of policies so far.
    """

    log_policy: Array
    log_average: Array
    rounds: Array


def first_history(log_policy: LogPolicy) -> History:
    """The history that consists of a first policy."""
    return History(log_policy, log_policy, jnp.ones((), log_policy.dtype))


def fictitious_play(state: History, step: Callable[[LogPolicy, LogPolicy], LogPolicy]) -> History:
    """One round of `step(log_policy, log_opponent)` against the average of all policies so far.

    Reconstructed: the abstract of arXiv:2404.04291 has an opponent that averages over previous
    policies to smooth the learning.
    Reference: Brown 1951, for the average.
    """
    new = step(state.log_policy, state.log_average)
    kept = jnp.log(state.rounds / (state.rounds + 1))
    average = jnp.logaddexp(state.log_average + kept, new - jnp.log(state.rounds + 1))
    return History(new, average, state.rounds + 1)
