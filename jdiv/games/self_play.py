"""Self-play on preference games: each algorithm is one step, `step(log_policy, ...) -> log_policy`.

What almost all of them do is one proximal step (`proximal`) in some direction v of win rates:

    argmax_pi <pi, v> - beta D(pi‖ref) - B(pi, pi_k) / step_size

with B the Bregman divergence of D(.‖ref); for KL it is KL(pi‖pi_k), and any strictly convex row of
the table is one line through `regularized.greedy`. They differ in v: against oneself
(`mirror_descent`), against where that leads (`mirror_prox`), against a mixture with the reference
(`nash_md`). `play` runs a step. Beside the closed forms are the losses per example which language
models are trained with, `inpo_loss`, `sppo_loss`, `rspo_loss`, `spin_loss`: log-probabilities of
whole answers, `[...]` to `[...]`, nothing averaged.

Policies are `[..., n]` log-probabilities, the preference `[..., n, n]` as in `preferences`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, estimators, numerics
from jdiv.alignment import preference as preference_losses
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator
from jdiv.divergences.generators import KL
from jdiv.games.preferences import against
from jdiv.regularized import greedy

_KL = generators.kl()


def play(
    step: Callable[[Array], Array],
    start: Array,
    iterations: int,
    measure: Callable[[Array], Array] = lambda state: state,
) -> Array:
    """What `measure` finds in the start and after each step, `[iterations + 1, ...]`.

    >>> halved = play(lambda x: x / 2, jnp.array(8.0), 3)
    >>> halved.tolist()
    [8.0, 4.0, 2.0, 1.0]
    """
    last, before = jax.lax.scan(
        lambda state, _: (step(state), measure(state)), start, length=iterations
    )
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), before, measure(last))


# ---------------------------------------------------------------------------------- proximal steps


def _positive(**parameters: ArrayLike) -> None:
    for name, value in parameters.items():
        checks.positive(name, value)


def _slope(log_policy: Array, ref_logits: Array, generator: Generator) -> Array:
    """`f'(pi/ref)`, f'(0) where the policy is zero."""
    log_policy, _, t = numerics.log_ratio(log_policy, ref_logits)
    generator = generators.checked_row(generator, t.dtype, invertible=True)
    return generator.slope(jnp.where(log_policy == -jnp.inf, -jnp.inf, t))


def proximal(
    values: ArrayLike,
    log_policy: ArrayLike,
    ref_logits: ArrayLike,
    *,
    beta: ArrayLike,
    step_size: ArrayLike,
    generator: Generator = _KL,
) -> Array:
    """`argmax_pi <pi, v> - beta D(pi‖ref) - B(pi, pi_k) / step_size`, B Bregman's for D(.‖ref).

    `(beta + 1/step_size) f'(pi/ref) = v + f'(pi_k/ref) / step_size + constant`: greedy once more.
    KL, with `B = KL(pi‖pi_k)`: `log pi = (v + beta log ref + log pi_k / step_size) / (beta +
    1/step_size)`, normalised. Shapes: `[..., n]` three times to the same.

    >>> uniform = jnp.zeros(2)
    >>> new = proximal(jnp.array([1.0, 0.0]), uniform, uniform, beta=0.5, step_size=2.0)
    >>> [f"{p:.4f}" for p in jnp.exp(new)]
    ['0.7311', '0.2689']

    Reference: Tiapkin et al. 2025 (arXiv:2505.19731), the step of Nash mirror prox, for KL.
    """
    _positive(beta=beta, step_size=step_size)
    values = checks.as_float("values", values)
    log_policy = checks.as_float("log_policy", log_policy).astype(values.dtype)
    ref_logits = checks.as_float("ref_logits", ref_logits).astype(values.dtype)
    checks.same_shape(values=values, log_policy=log_policy, ref_logits=ref_logits)
    values += _slope(log_policy, ref_logits, generator) / step_size
    return greedy(values, ref_logits, beta + 1 / step_size, generator=generator).log_policy


def mirror_descent(
    log_policy: Array,
    preference: Array,
    ref_logits: Array,
    *,
    beta: ArrayLike,
    step_size: ArrayLike,
    generator: Generator = _KL,
) -> Array:
    """Online mirror descent: the proximal step against oneself, `v = P pi_k`.

    For a large step_size and a small beta it runs in growing circles: see `mirror_prox`.

    Reference: Zhang et al. 2024 (arXiv:2407.00617), equation of the update, for KL.
    """
    step = functools.partial(proximal, beta=beta, step_size=step_size, generator=generator)
    return step(against(preference, log_policy), log_policy, ref_logits)


def mirror_prox(
    log_policy: Array,
    preference: Array,
    ref_logits: Array,
    *,
    beta: ArrayLike,
    step_size: ArrayLike = 2.0,
    generator: Generator = _KL,
) -> Array:
    """Nash mirror prox: half a step against oneself, and from pi_k again against where it led.

    Two queries of the preference. With KL and step_size 2, `KL(pi*‖pi_k)` falls at least by the
    factor `1 + 2 beta` in each iteration, for any number of answers.

    Reference: Tiapkin et al. 2025 (arXiv:2505.19731), the rate; step_size 2 and the factor are of
    a secondary note, tested here.
    """
    step = functools.partial(proximal, beta=beta, step_size=step_size, generator=generator)
    half = step(against(preference, log_policy), log_policy, ref_logits)
    return step(against(preference, half), log_policy, ref_logits)


def nash_md(
    log_policy: Array,
    preference: Array,
    ref_logits: Array,
    *,
    beta: ArrayLike,
    step_size: ArrayLike,
    generator: Generator = _KL,
) -> Array:
    """Nash-MD: against a mixture with the reference, and from there.

    `f'(mix/ref) = (1 - step_size beta) f'(pi_k/ref)`, a geometric mixture for KL, then
    `argmax_pi <pi, P mix> - B(pi, mix) / step_size`. It needs `step_size beta < 1`.

    Reference: Munos et al. 2023 (arXiv:2312.00886), section 6, for KL.
    """
    _positive(beta=beta, step_size=step_size)
    checks.in_range("step_size * beta", step_size * beta, 0, 1, "below 1")
    kept = (1 - step_size * beta) * _slope(log_policy, ref_logits, generator)
    mixture = greedy(kept, ref_logits, 1.0, generator=generator).log_policy
    values = step_size * against(preference, mixture) + kept
    return greedy(values, ref_logits, 1.0, generator=generator).log_policy


# -------------------------------------------------------------------------------------------- INPO


def inpo(
    log_policy: Array, preference: Array, ref_logits: Array, *, eta: ArrayLike, tau: ArrayLike
) -> Array:
    """`exp(P(y > pi_t) / eta) ref^(tau/eta) pi_t^(1 - tau/eta)`: what `inpo_loss` fits.

    It is `mirror_descent` with `beta = tau` and `step_size = 1 / (eta - tau)`; 0 < tau < eta.

    Reference: Zhang et al. 2024 (arXiv:2407.00617), the update.
    """
    return mirror_descent(log_policy, preference, ref_logits, beta=tau, step_size=1 / (eta - tau))


def inpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    ref_chosen: ArrayLike,
    ref_rejected: ArrayLike,
    previous_chosen: ArrayLike,
    previous_rejected: ArrayLike,
    *,
    eta: ArrayLike,
    tau: ArrayLike,
) -> Array:
    """`(D - tau/eta D_ref - (1 - tau/eta) D_previous - 1/(2 eta))^2`, D = log pi_w - log pi_l.

    For pairs of answers of the previous policy, its minimiser over all policies is `inpo`.
    Shapes: `[...]` six times to `[...]`.

    Reference: Zhang et al. 2024 (arXiv:2407.00617), from code for arXiv:2606.01382.
    """
    _positive(eta=eta, tau=tau)
    chosen, rejected, ref_chosen, ref_rejected, previous_chosen, previous_rejected = checks.alike(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        previous_chosen=previous_chosen,
        previous_rejected=previous_rejected,
    )
    share = jnp.asarray(tau / eta, chosen.dtype)
    anchor = share * (ref_chosen - ref_rejected)
    anchor += (1 - share) * (previous_chosen - previous_rejected)
    return (chosen - rejected - anchor - jnp.asarray(1 / (2 * eta), chosen.dtype)) ** 2


# ---------------------------------------------------------------------------------- SPPO and RSPO


def sppo(
    log_policy: Array, preference: Array, *, eta: ArrayLike, generator: Generator = _KL
) -> Array:
    """`argmax_pi <pi, P pi_t> - D(pi‖pi_t) / eta`; KL: `pi_t exp(eta P pi_t)`, multiplicative.

    Without a reference it does not come to rest: in cyclic games it spirals to the border.

    Reference: Wu et al. 2024 (arXiv:2405.00675), the update, for KL.
    """
    _positive(eta=eta)
    return greedy(
        against(preference, log_policy), log_policy, 1 / eta, generator=generator
    ).log_policy


def sppo_loss(
    log_prob: ArrayLike, previous: ArrayLike, win_probability: ArrayLike, *, eta: ArrayLike
) -> Array:
    """`(log pi/pi_t - eta (P(y > pi_t) - 1/2))^2` for an answer y of pi_t.

    eta/2 stands for the logarithm of the normalizer: over functions that need not be normalised the
    minimiser is `sppo` times a constant; among policies it is so up to the square of eta.
    `alignment.preference.sppo` is the form for pairs with a certain winner. Shapes: `[...]` three
    times to `[...]`.

    Reference: Wu et al. 2024 (arXiv:2405.00675), the objective, from the authors' code.
    """
    _positive(eta=eta)
    log_prob, previous, win_probability = checks.alike(
        log_prob=log_prob, previous=previous, win_probability=win_probability
    )
    return (log_prob - previous - jnp.asarray(eta, log_prob.dtype) * (win_probability - 0.5)) ** 2


def rspo(
    log_policy: Array,
    preference: Array,
    ref_logits: Array,
    *,
    eta: ArrayLike,
    penalties: generators.Penalties,
) -> Array:
    """`argmax_pi <pi, P pi_t> - KL(pi‖pi_t) / eta - sum_i w_i D_i(pi‖ref)`: SPPO, regularised.

    A fixed point is the equilibrium of the game with these penalties. As `KL(pi‖pi_t)` is
    `KL(pi‖ref) + <pi, log ref/pi_t>`, this is greedy for the sum of all rows.

    Reference: RSPO (arXiv:2503.00030), abstract: SPPO with a penalty, forward and reverse KL. The
    exact step is inferred.
    """
    _positive(eta=eta)
    values = against(preference, log_policy)
    values += _slope(log_policy, ref_logits, _KL) / eta
    others = tuple(penalty for penalty in penalties if not isinstance(penalty[1], KL))
    own = 1 / eta + sum(weight for weight, row in penalties if isinstance(row, KL))
    if not others:
        return greedy(values, ref_logits, own, generator=_KL).log_policy
    row = generators.weighted_sum(((own, _KL), *others))
    return greedy(values, ref_logits, 1.0, generator=row).log_policy


def rspo_loss(
    log_prob: ArrayLike,
    previous: ArrayLike,
    ref: ArrayLike,
    win_probability: ArrayLike,
    *,
    eta: ArrayLike,
    penalties: generators.Penalties,
) -> Array:
    """`sppo_loss + sum_i w_i D_i(pi‖ref)`, the divergences from the same answers of pi_t.

    They are centred estimates weighted by pi/pi_t: value and gradient are right in the mean. At
    `pi = pi_t` the mean gradient is that of `-2 eta (P(pi > pi_t) - sum_i w_i D_i / (2 eta))`: it
    rests at the equilibrium whose penalties are `1 / (2 eta)` of these. Shapes: `[...]` four times
    to `[...]`.

    Reference: RSPO (arXiv:2503.00030), abstract. The exact loss is unknown; that it is a squared
    loss plus a penalty is from a secondary note, and how the penalty is estimated is chosen here.
    """
    loss = sppo_loss(log_prob, previous, win_probability, eta=eta)
    log_prob, previous, ref = checks.alike(log_prob=log_prob, previous=previous, ref=ref)
    for weight, row in penalties:
        estimate = estimators.centered_from_p(row, log_prob, ref, log_weights=log_prob - previous)
        loss += jnp.asarray(weight, loss.dtype) * estimate.astype(loss.dtype)
    return loss


# -------------------------------------------------------------------------------------------- SPIN


def geometric_mixture(log_policy: ArrayLike, log_base: ArrayLike, share: ArrayLike) -> Array:
    """`pi^(1 - share) base^share`, normalised. Shapes: `[..., n]` twice to the same."""
    log_policy, log_base = checks.alike(log_policy=log_policy, log_base=log_base)
    share = jnp.asarray(share, log_policy.dtype)
    mixed = [
        jnp.where(weight > 0, weight * log, 0)
        for weight, log in ((1 - share, log_policy), (share, log_base))
    ]
    return numerics.log_softmax(mixed[0] + mixed[1])


def spin_loss(
    real: ArrayLike,
    generated: ArrayLike,
    previous_real: ArrayLike,
    previous_generated: ArrayLike,
    base_real: ArrayLike,
    base_generated: ArrayLike,
    *,
    beta: ArrayLike,
    share: ArrayLike = 0.0,
) -> Array:
    """DPO of real answers over generated ones, the reference `previous^(1 - share) base^share`.

    SPIN for share 0; for 1 the reference is fixed, as in DPO. Answers are generated by the previous
    policy, or by one drawn from the history (fictitious play). Shapes: `[...]` six times to
    `[...]`.

    Reference: Chen et al. 2024 (arXiv:2401.01335), SPIN; arXiv:2404.04291, abstract, for the
    mixture and the history.
    """
    real, generated, previous_real, previous_generated, base_real, base_generated = checks.alike(
        real=real,
        generated=generated,
        previous_real=previous_real,
        previous_generated=previous_generated,
        base_real=base_real,
        base_generated=base_generated,
    )
    share = jnp.asarray(share, real.dtype)
    anchors = (
        previous + share * (base - previous)
        for previous, base in ((previous_real, base_real), (previous_generated, base_generated))
    )
    return preference_losses.dpo(real, generated, *anchors, beta=beta)


def spin(
    log_policy: Array,
    log_data: Array,
    log_base: Array,
    *,
    beta: ArrayLike,
    share: ArrayLike = 0.0,
    log_opponent: Array | None = None,
) -> Array:
    """`reference (data / opponent)^(1/beta)`: the minimiser of `spin_loss` over all policies.

    The opponent that generates is the previous policy unless another is given. With share s it
    comes to rest at the mixture `base^(s beta) data`, to the power `1 / (1 + s beta)`; without, and
    with beta 1, it is the data after one step. From far away it gets there if
    `|1 - s - 1/beta| < 1`. Opponents must cover the data. Shapes: `[..., n]`.

    Reference: as `spin_loss`; the closed form is derived here.
    """
    opponent = log_policy if log_opponent is None else log_opponent
    anchor = geometric_mixture(log_policy, log_base, share)
    _, _, advantage = numerics.log_ratio(*checks.alike(log_data=log_data, log_opponent=opponent))
    advantage = jnp.where(log_data == -jnp.inf, -jnp.inf, advantage)
    return greedy(advantage, anchor, beta, generator=_KL).log_policy


class History(NamedTuple):
    """What fictitious play remembers."""

    log_policy: Array
    """`[..., n]` the last policy."""
    log_average: Array
    """`[..., n]` the average of all so far."""
    rounds: Array
    """How many."""


def remember(log_policy: Array) -> History:
    """The history of a first policy."""
    return History(log_policy, log_policy, jnp.ones((), log_policy.dtype))


def fictitious(state: History, step: Callable[[Array, Array], Array]) -> History:
    """Fictitious play: `step(log_policy, log_opponent)` against the average of all policies so far.

    Reference: arXiv:2404.04291, abstract, an opponent that averages over previous policies to
    smooth the learning; Brown 1951 for the average.
    """
    new = step(state.log_policy, state.log_average)
    kept = jnp.log(state.rounds / (state.rounds + 1))
    average = jnp.logaddexp(state.log_average + kept, new - jnp.log(state.rounds + 1))
    return History(new, average, state.rounds + 1)
