"""Preference losses: a margin of the difference of two scores, for every divergence.

The optimum of `E[r] - beta D(pi‖ref)` has `r = beta f'(pi/ref) + normalizer`. The normalizer is the
same for two answers of one prompt, so a preference between them, `sigmoid(r_w - r_l)`, can be
fitted with the policy alone: `margin(beta f'(pi_w/ref_w) - beta f'(pi_l/ref_l))`. That is `f_dpo`;
with KL it is DPO, IPO and SLiC, by the margin. A loss that is no function of such a difference, or
divides it by the lengths of the answers, keeps a part of the normalizer: it is for KL, whose users
accept that, and any other generator is refused.

Arguments are log-probabilities of whole answers, sums over tokens: `chosen`, `rejected` of the
policy and `ref_chosen`, `ref_rejected` of the reference, `[...]` to losses `[...]`; nothing is
averaged. `beta` is a number or `[...]`. Half precision is widened.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, estimators, regularized
from jdiv.alignment import margins
from jdiv.alignment.margins import Margin
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator, checked_row
from jdiv.divergences.generators import KL
from jdiv.policy.advantages import rloo_advantages
from jdiv.types import Logits, PerPair, PerSequence, Values

_KL = generators.kl()
Lengths = tuple[PerPair, PerPair]
"""Numbers of tokens of the chosen and the rejected answers, `[...]` each."""

# ------------------------------------------------------------------------------------------ inputs


def _log_ratios(
    chosen: PerPair, rejected: PerPair, ref_chosen: PerPair, ref_rejected: PerPair, beta: ArrayLike
) -> tuple[Array, Array, Array]:
    """`log pi/ref` of both answers, and beta in their precision."""
    beta = checks.positive("beta", beta)
    chosen, rejected, ref_chosen, ref_rejected = checks.alike(
        chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected
    )
    beta = jnp.asarray(beta, chosen.dtype)
    if beta.shape not in ((), chosen.shape):
        raise ValueError(f"beta must be a number or of shape {chosen.shape}, got {beta.shape}")
    return chosen - ref_chosen, rejected - ref_rejected, beta


def _only_kl(generator: Generator, loss: str, why: str) -> None:
    """Refuses another row than kl, for a loss that keeps a part of the normalizer."""
    if not isinstance(checked_row(generator), KL):
        raise TypeError(
            f"generator must be kl for {loss}, got {generator.name}: the normalizer of"
            f" an f-divergence cancels {why}"
        )


_IN_DIFFERENCES = "only between two answers of one prompt, in their difference"
_EQUAL_LENGTHS = "only if it is divided by the same length; for equal ones use beta / length"

# --------------------------------------------------------------------------------- the composition


def implicit_reward(
    log_probs: PerSequence,
    ref_log_probs: PerSequence,
    *,
    beta: ArrayLike,
    generator: Generator = _KL,
) -> PerSequence:
    """`beta f'(pi/ref)`: the reward that the policy is optimal for, up to a constant per prompt.

    Shapes: any, twice the same.

    Reference: Rafailov et al. 2023 (arXiv:2305.18290), equation 5; Wang et al. 2024
    (arXiv:2309.16240), Theorem 1, for every row.
    """
    beta = checks.positive("beta", beta)
    log_probs, ref_log_probs = checks.alike(log_probs=log_probs, ref_log_probs=ref_log_probs)
    beta = jnp.asarray(beta, log_probs.dtype)
    return beta * checked_row(generator, log_probs.dtype, invertible=True).slope(
        log_probs - ref_log_probs
    )


def _of_difference(
    margin: Margin, generator: Generator, beta: Array, t_w: Array, t_l: Array
) -> Array:
    """`margin(beta f'(e^t_w) - beta f'(e^t_l))`, its limit where a slope is infinite."""
    generator = checked_row(generator, t_w.dtype, invertible=True)
    log_ratios = jnp.stack([t_w, t_l])
    fixed, at = jax.lax.stop_gradient((generator, log_ratios))
    slopes, steepness = jax.jvp(fixed.slope, (at,), (jnp.ones_like(at),))
    infinite = jnp.any(jnp.isinf(slopes), axis=0)
    # Two infinite slopes still have an order.
    order = jnp.where(t_w == t_l, 0, jnp.copysign(jnp.inf, t_w - t_l))
    limit = jnp.where(slopes[0] == slopes[1], order, slopes[0] - slopes[1])
    # Parts of the derivative of a slope near the largest float may be beyond it, and times 0 they
    # are NaN: there the derivative is a number, at most the largest float.
    most = jnp.finfo(at.dtype).max
    steepness = jnp.where(jnp.isfinite(slopes) & ~(steepness <= most), most, steepness)
    far = jnp.isfinite(slopes) & ((jnp.abs(slopes) > most**0.75) | (steepness == most))
    steepness = jnp.where(far, steepness, 0)
    plain = generator.slope(jnp.where(infinite[None] | far, 0, log_ratios))
    of_w, of_l = jnp.where(far, slopes + steepness * (log_ratios - at), plain)
    x = beta * jnp.where(infinite, jax.lax.stop_gradient(limit), of_w - of_l)
    return margin(x)


def f_dpo(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    generator: Generator,
    margin: Margin = margins.logistic,
) -> PerPair:
    """`margin(beta f'(pi_w/ref_w) - beta f'(pi_l/ref_l))`, any margin with any generator.

    With the logistic margin its minimizer is the optimum of `E[r] - beta D(pi‖ref)`, given that no
    answer has probability zero there: `f'(0) = -inf`, as for kl, reverse_kl, jensen_shannon and
    alpha up to 1. Where f'(0) is finite (pearson_chi2, le_cam, alpha above 1) the optimum drops
    answers as soon as beta is small for the spread of the rewards, `beta f'` is then no longer the
    reward, and the fit goes elsewhere; `chi2_po` repairs that. total_variation is refused.
    Jensen-Shannon is often written twice as large: its beta is half of this one.
    A slope that is infinite, or overflows as that of reverse_kl does in float32 at a log-ratio of
    -88, makes the loss its limit, 0 or inf, without a gradient.
    Shapes: `[...]` four times to `[...]`.

    >>> pair = jnp.array(-1.0), jnp.array(-2.0), jnp.array(-1.5), jnp.array(-1.5)
    >>> print(f"{f_dpo(*pair, beta=0.5, generator=generators.reverse_kl()):.4f}")
    0.4662

    Reference: Wang et al. 2024 (arXiv:2309.16240), Theorem 1 and table 1; Tang et al. 2024
    (arXiv:2402.05749) for the margins.
    """
    t_w, t_l, beta = _log_ratios(chosen, rejected, ref_chosen, ref_rejected, beta)
    return _of_difference(margin, generator, beta, t_w, t_l)


# ----------------------------------------------------------------------------- losses by their name


def dpo(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike = 0.0,
) -> PerPair:
    """`(1 - e) log(1 + e^-x) + e log(1 + e^x)`, `x = beta (log pi_w/ref_w - log pi_l/ref_l)`.

    DPO for `label_smoothing` e = 0; above 0 it is the conservative DPO (cDPO) for labels that are
    wrong with probability e: see `margins.label_smoothed`, and `robust` for the unbiased form.
    With any other generator or margin it is `f_dpo`. Shapes: `[...]` four times to `[...]`.

    >>> pair = jnp.array(-1.0), jnp.array(-2.0), jnp.array(-1.5), jnp.array(-1.5)
    >>> print(f"{dpo(*pair, beta=1.0):.4f}")
    0.3133
    >>> print(f"{dpo(*pair, beta=1.0, label_smoothing=0.1):.4f}")
    0.4133

    Reference: Rafailov et al. 2023 (arXiv:2305.18290), equation 7; Mitchell 2023, A note on DPO
    with noisy preferences, equation 3, for the smoothing.
    """
    margin = margins.label_smoothed(label_smoothing)
    pair = chosen, rejected, ref_chosen, ref_rejected
    return f_dpo(*pair, beta=beta, generator=_KL, margin=margin)


def per_token(chosen: PerPair, rejected: PerPair, lengths: Lengths) -> tuple[Array, Array]:
    """`chosen / length, rejected / length`, each with the length of its own answer.

    Shapes: `[...]` twice, and twice for the lengths, to `[...]` twice.
    """
    chosen, rejected = checks.alike(chosen=chosen, rejected=rejected)
    of_chosen, of_rejected = (jnp.asarray(n, chosen.dtype) for n in lengths)
    checks.same_shape(chosen=chosen, lengths_of_chosen=of_chosen, lengths_of_rejected=of_rejected)
    of_chosen, of_rejected = (checks.positive("lengths", n) for n in (of_chosen, of_rejected))
    return chosen / of_chosen, rejected / of_rejected


def ipo(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    generator: Generator = _KL,
    lengths: Lengths | None = None,
) -> PerPair:
    """`(f'(pi_w/ref_w) - f'(pi_l/ref_l) - 1/(2 beta))^2`; with lengths each is divided by its own.

    The squared margin of `2 beta` times the difference, over `4 beta^2`. With lengths it is TRL's,
    and no optimum of a regularized reward unless they are equal. Shapes: `[...]` four times, and
    twice for the lengths, to `[...]`.

    Reference: Azar et al. 2023 (arXiv:2310.12036), equation 17; TRL 1.16 for the lengths.
    """
    t_w, t_l, beta = _log_ratios(chosen, rejected, ref_chosen, ref_rejected, beta)
    if lengths is not None:
        _only_kl(generator, "ipo with lengths", _EQUAL_LENGTHS)
        t_w, t_l = per_token(t_w, t_l, lengths)
    return _of_difference(margins.squared, generator, 2 * beta, t_w, t_l) / (2 * beta) ** 2


def sigmoid_norm(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    lengths: Lengths,
    generator: Generator = _KL,
) -> PerPair:
    """DPO with each log-ratio divided by the length of its answer.

    The normalizer does not cancel unless the lengths are equal. Shapes: `[...]` four times, and
    twice for the lengths, to `[...]`.

    Reference: Tulu 3 (arXiv:2411.15124), equation 6, as TRL 1.16 has it.
    """
    _only_kl(generator, "sigmoid_norm", _EQUAL_LENGTHS)
    t_w, t_l, beta = _log_ratios(chosen, rejected, ref_chosen, ref_rejected, beta)
    t_w, t_l = per_token(t_w, t_l, lengths)
    return margins.logistic(beta * (t_w - t_l))


def slic(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    generator: Generator = _KL,
) -> PerPair:
    """SLiC: `f_dpo` with `margins.hinge`. Shapes: `[...]` four times to `[...]`.

    Reference: Zhao et al. 2023 (arXiv:2305.10425), as TRL's `hinge`.
    """
    pair = chosen, rejected, ref_chosen, ref_rejected
    return f_dpo(*pair, beta=beta, generator=generator, margin=margins.hinge)


def exo(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
    generator: Generator = _KL,
) -> PerPair:
    """EXO for pairs: `f_dpo` with `margins.exo`. Shapes: `[...]` four times to `[...]`.

    Reference: Ji et al. 2024 (arXiv:2402.00856), for pairs.
    """
    pair = chosen, rejected, ref_chosen, ref_rejected
    return f_dpo(*pair, beta=beta, generator=generator, margin=margins.exo(label_smoothing))


def robust(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
    generator: Generator = _KL,
) -> PerPair:
    """Robust DPO, unbiased under flipped labels: `f_dpo` with `margins.robust`.

    Shapes: `[...]` four times to `[...]`.

    Reference: Chowdhury et al. 2024 (arXiv:2403.00409).
    """
    pair = chosen, rejected, ref_chosen, ref_rejected
    return f_dpo(*pair, beta=beta, generator=generator, margin=margins.robust(label_smoothing))


def discopop(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    temperature: ArrayLike = 0.05,
    generator: Generator = _KL,
) -> PerPair:
    """DiscoPOP: `f_dpo` with `margins.discopop`. Shapes: `[...]` four times to `[...]`.

    Reference: Lu et al. 2024 (arXiv:2406.08414).
    """
    pair = chosen, rejected, ref_chosen, ref_rejected
    return f_dpo(*pair, beta=beta, generator=generator, margin=margins.discopop(temperature))


def h_dpo(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    alpha: ArrayLike,
) -> PerPair:
    """DPO of `alpha beta log(pi_w/pi_l) - beta log(ref_w/ref_l)`: alpha below 1 sharpens.

    Its optimum maximizes `E[r] + beta alpha H(pi) - beta H(pi, ref)` and is
    `ref^(1/alpha) e^(r/(alpha beta))`: `regularized.greedy` with KL, reference `ref_logits / alpha`
    and temperature `alpha beta`. Shapes: `[...]` four times to `[...]`.

    Reference: H-DPO (arXiv:2411.07595), from its code.
    """
    alpha = checks.positive("alpha", alpha)
    chosen, rejected = checks.as_float("chosen", chosen), checks.as_float("rejected", rejected)
    alpha = jnp.asarray(alpha, chosen.dtype)
    pair = alpha * chosen, alpha.astype(rejected.dtype) * rejected
    return dpo(*pair, ref_chosen, ref_rejected, beta=beta)


# ------------------------------------------------------------------------------ terms of one answer


def sft(chosen: PerSequence) -> PerSequence:
    """`-log pi`: supervised fine-tuning. Shapes: `[...]` to the same."""
    return -checks.as_float("chosen", chosen)


def f_sft(
    chosen: ArrayLike,
    ref_chosen: ArrayLike,
    sampled: ArrayLike,
    ref_sampled: ArrayLike,
    *,
    generator: Generator,
) -> Array:
    """`-mean f'(pi/ref)` of answers in the data, plus `mean f*(f'(pi/ref))` of samples of ref.

    Imitation of the data with the reward `f'(pi/ref)`: minus a lower bound of D(data‖ref) that is
    tight at pi = data, so data is the minimizer for every row. For kl the second mean is
    `E_ref[pi/ref - 1] = 0`, a constant, and the rest is `sft`.
    Shapes: `[..., n]` twice and `[..., m]` twice to `[...]`.

    Reconstructed: the paper has the special case of kl; the objective for other rows is inferred.
    Reference: Implicit Reward as the Bridge, abstract, for SFT as implicit reward learning.
    """
    data = checks.alike(chosen=chosen, ref_chosen=ref_chosen)
    samples = checks.alike(sampled=sampled, ref_sampled=ref_sampled)
    generator = checked_row(generator, data[0].dtype, invertible=True)
    return -estimators.log_ratio_bound(generator, data[0] - data[1], samples[0] - samples[1])


def rpo(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    coefficient: ArrayLike,
) -> PerPair:
    """`dpo + coefficient sft(chosen)`. TRL divides the second by the number of tokens.

    Answers that are in no pair get nothing from either term: they are driven to zero. Shapes:
    `[...]` four times to `[...]`.

    Reference: Liu et al. 2024 (arXiv:2405.16436).
    """
    coefficient = checks.not_negative("coefficient", coefficient)
    loss = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    return loss + jnp.asarray(coefficient, loss.dtype) * sft(chosen).astype(loss.dtype)


def xpo(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    sampled: PerSequence,
    *,
    beta: ArrayLike,
    coefficient: ArrayLike,
) -> PerPair:
    """`dpo + coefficient log pi(sampled)`: answers sampled by the reference become less likely.

    Pairs are of answers of the current policy, or of one and one of the reference. The bonus is
    optimism: on average it is `-coefficient KL(ref‖pi)` and a constant. Where its gradient,
    `coefficient (ref - pi)` by the logits, is balanced by that of DPO, answers that are likelier
    than by the reference are fitted with more than their share of wins. For a large coefficient
    there is no minimum. Code with the opposite sign draws to the reference instead. Shapes: `[...]`
    five times to `[...]`.

    Reference: Xie et al. 2024 (arXiv:2405.21046), algorithm 1.
    """
    coefficient = checks.not_negative("coefficient", coefficient)
    loss = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    sampled = checks.as_float("sampled", sampled).astype(loss.dtype)
    checks.same_shape(chosen=loss, sampled=sampled)
    return loss + jnp.asarray(coefficient, loss.dtype) * sampled


def hypo(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    sampled: ArrayLike,
    ref_sampled: ArrayLike,
    *,
    beta: ArrayLike,
    coefficient: ArrayLike,
) -> PerPair:
    """`dpo + coefficient KL(pi‖ref)`, the KL from samples of the policy, `[..., n]` each prompt.

    The value is the mean of `log pi/ref`, the gradient REINFORCE's with the mean of the others as
    the baseline; both are unbiased. Shapes: `[...]` four times, `[..., n]` twice, to `[...]`.

    Reconstructed: the algorithm is from memory.
    Reference: Song et al. 2024 (arXiv:2406.01462), algorithm 1.
    """
    coefficient = checks.not_negative("coefficient", coefficient)
    loss = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    sampled, ref_sampled = checks.alike(sampled=sampled, ref_sampled=ref_sampled)
    if sampled.shape[:-1] != loss.shape or sampled.ndim == 0 or sampled.shape[-1] == 0:
        raise ValueError(f"sampled must be of shape {(*loss.shape, 'n')}, got {sampled.shape}")
    log_ratio = estimators.kl_k1(sampled, ref_sampled)
    surrogate = jnp.mean(rloo_advantages(log_ratio) * sampled, axis=-1)
    value = jax.lax.stop_gradient(jnp.mean(log_ratio, axis=-1) - surrogate)
    return loss + jnp.asarray(coefficient, loss.dtype) * (value + surrogate).astype(loss.dtype)


# ----------------------------------------------------- no functions of a difference: for KL only


def _log_odds(
    pair: tuple[PerPair, PerPair, PerPair, PerPair],
    beta: ArrayLike,
    generator: Generator,
    loss: str,
) -> tuple[Array, Array]:
    """`beta log pi/ref` of both answers."""
    _only_kl(generator, loss, _IN_DIFFERENCES)
    t_w, t_l, beta = _log_ratios(*pair, beta)
    return beta * t_w, beta * t_l


def nca(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    generator: Generator = _KL,
) -> PerPair:
    """`logistic(w) + (logistic(-w) + logistic(-l))/2` with `w, l = beta log pi/ref`.

    Shapes: `[...]` four times to `[...]`.

    Reference: Chen et al. 2024 (arXiv:2402.05369), for pairs, as TRL 1.16 has it.
    """
    w, l = _log_odds((chosen, rejected, ref_chosen, ref_rejected), beta, generator, "nca")
    return margins.logistic(w) + (margins.logistic(-w) + margins.logistic(-l)) / 2


def bco(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    shift: ArrayLike = 0.0,
    generator: Generator = _KL,
) -> PerPair:
    """`logistic(w - shift) + logistic(shift - l)`: a classifier of chosen and rejected answers.

    The shift is the caller's running mean of w and l, 0 in TRL 1.16. Shapes: `[...]` four times to
    `[...]`.

    Reference: Jung et al. 2024 (arXiv:2404.04656).
    """
    w, l = _log_odds((chosen, rejected, ref_chosen, ref_rejected), beta, generator, "bco")
    shift = jnp.asarray(checks.finite("shift", shift), w.dtype)
    return margins.logistic(w - shift) + margins.logistic(shift - l)


def sppo_hard(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    generator: Generator = _KL,
) -> PerPair:
    """`(t_w - 1/(2 beta))^2 + (t_l + 1/(2 beta))^2`, t the log-ratios.

    SPPO's objective for pairs whose chosen answer wins for certain; beta is one over its step size.
    `games.self_play.sppo_loss` has the probability to win of each answer.
    Shapes: `[...]` four times to `[...]`.

    Reference: Wu et al. 2024 (arXiv:2405.00675), as TRL's `sppo_hard`.
    """
    w, l = _log_odds((chosen, rejected, ref_chosen, ref_rejected), beta, generator, "sppo_hard")
    beta = jnp.asarray(checks.positive("beta", beta), w.dtype)
    return ((w - 0.5) ** 2 + (l + 0.5) ** 2) / beta**2


def apo_zero(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    generator: Generator = _KL,
) -> PerPair:
    """`sigmoid(-w) + sigmoid(l)` with `w, l = beta log pi/ref`: chosen up, rejected down.

    When to use it: the chosen answers are better than what the policy would write, so that their
    probability should rise, and not only by comparison. Shapes: `[...]` four times to `[...]`.

    Reference: D'Oosterlinck et al. 2024, Anchored preference optimization (arXiv:2408.06266), as
    TRL 1.16 has it.
    """
    w, l = _log_odds((chosen, rejected, ref_chosen, ref_rejected), beta, generator, "apo_zero")
    return jax.nn.sigmoid(-w) + jax.nn.sigmoid(l)


def apo_down(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    generator: Generator = _KL,
) -> PerPair:
    """`sigmoid(w) + sigmoid(l - w)` with `w, l = beta log pi/ref`: both down, rejected more.

    When to use it: the policy already writes better answers than the chosen ones, so that neither
    should become likelier, and the comparison still tells which to leave first.
    Shapes: `[...]` four times to `[...]`.

    Reference: D'Oosterlinck et al. 2024, Anchored preference optimization (arXiv:2408.06266),
    equation 8.
    """
    w, l = _log_odds((chosen, rejected, ref_chosen, ref_rejected), beta, generator, "apo_down")
    return jax.nn.sigmoid(w) + jax.nn.sigmoid(l - w)


def aot(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike = 0.0,
    generator: Generator = _KL,
) -> PerPair:
    """DPO of sorted margins: the k-th smallest of the policy against the k-th of the reference.

    `margins.label_smoothed(beta (sort(log pi_w/pi_l) - sort(log ref_w/ref_l)))`, sorted along the
    last axis, the batch; the k-th loss is that of rank k.
    Shapes: `[..., n]` four times to `[..., n]`.

    Reference: Melnyk et al. 2024 (arXiv:2406.05882), section 3, as TRL 1.16 has it.
    """
    _log_odds((chosen, rejected, ref_chosen, ref_rejected), beta, generator, "aot")
    return _sorted_difference(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing)


def aot_unpaired(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike = 0.0,
    generator: Generator = _KL,
) -> PerPair:
    """DPO of sorted log-ratios: the k-th smallest of chosen against the k-th of rejected answers.

    `margins.label_smoothed(beta (sort(t_w) - sort(t_l)))` along the last axis, the batch. Shapes:
    `[..., n]` four times to `[..., n]`.

    Reference: Melnyk et al. 2024 (arXiv:2406.05882), section 3, as TRL 1.16 has it.
    """
    _log_odds((chosen, rejected, ref_chosen, ref_rejected), beta, generator, "aot_unpaired")
    return _sorted_difference(chosen, ref_chosen, rejected, ref_rejected, beta, label_smoothing)


def _sorted_difference(
    a: PerPair,
    b: PerPair,
    c: PerPair,
    d: PerPair,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
) -> Array:
    """Label-smoothed loss of `beta (sort(a - b) - sort(c - d))`."""
    first, second, beta = _log_ratios(a, c, b, d, beta)
    if first.ndim == 0:
        raise ValueError("chosen must have an axis to sort along, got a scalar")
    difference = jnp.sort(first, axis=-1) - jnp.sort(second, axis=-1)
    return margins.label_smoothed(label_smoothing)(beta * difference)


# ----------------------------------------------------------------------------------------- chi2-PO


def chi2_po(
    chosen: PerPair,
    rejected: PerPair,
    ref_chosen: PerPair,
    ref_rejected: PerPair,
    *,
    beta: ArrayLike,
    gamma: ArrayLike = 1.0,
    r_max: ArrayLike | None = None,
) -> PerPair:
    """`logistic(clip(beta phi(u_w) - beta phi(u_l)))`, `phi(u) = u + gamma log u`.

    `f_dpo` with `generators.chi2_kl`: pessimistic like chi2, and no answer has probability zero in
    its optimum. The clip is to [-2 r_max, 2 r_max], r_max being the largest reward; beyond it a
    pair has no gradient. Shapes: `[...]` four times to `[...]`.

    Reference: Huang et al. 2024 (arXiv:2407.13399), equation 9.
    """
    pair, margin = (chosen, rejected, ref_chosen, ref_rejected), margins.logistic
    if r_max is not None:
        r_max = checks.in_range("r_max", r_max, 0, jnp.inf, "positive and finite, or None")
        margin = margins.clipped(margin, 2 * r_max)
    gamma = checks.positive("gamma", gamma)
    return f_dpo(*pair, beta=beta, generator=generators.chi2_kl(gamma), margin=margin)


def chi2_po_policy(
    values: Values, ref_logits: Logits, *, beta: ArrayLike, gamma: ArrayLike = 1.0
) -> regularized.Greedy:
    """The optimum of chi2-PO: `ref phi^-1((values - lambda)/beta)`, positive wherever ref is.

    `regularized.greedy` with `generators.chi2_kl`, which comes with the evidence; lambda is its
    normalizer less beta. Shapes: `[..., n]` twice.

    Reference: Huang et al. 2024 (arXiv:2407.13399), equation 8.
    """
    gamma = checks.positive("gamma", gamma)
    return regularized.greedy(values, ref_logits, beta, generator=generators.chi2_kl(gamma))
