"""Preference losses without a reference: pairs of answers, and the policy alone.

CPO, SimPO and AlphaPO are DPO with a reference that is 1 for every answer: `preference.f_dpo` with
zeros for its log-probabilities. So what they fit is a reward without a prior. SimPO, AlphaPO and
ORPO take the mean of an answer's log-probabilities over its tokens in place of their sum, the
logarithm of `p = pi^(1/length)`. For pairs that are preferred by `sigmoid(r_w - r_l)` the
minimizers over all policies are, with the constant C that normalizes them:

==========  =============================================================================
`cpo`       `C e^(r/beta)`, for coefficient 0
`simpo`     `(C e^(r/beta))^length`, for gamma 0: so the longer of equal answers is rarer
`alpha_po`  `(1 - alpha (r/beta + C))^(-length/alpha)`, for gamma 0
`orpo`      `p/(1 - p) = C e^r`, for a coefficient without bound: it has no temperature
==========  =============================================================================

With a `coefficient` of the likelihood of chosen answers, as in CPO and ORPO, the minimizer lies
between this and the law of chosen answers; with a `gamma` above 0 the margins that fit three
answers best do not add up, and there is no closed form.

Arguments are log-probabilities of whole answers, sums over tokens, `chosen` and `rejected`, and
`lengths`, their numbers of tokens, `[...]` to losses `[...]`; nothing is averaged. Those who have
means over tokens pass them with lengths of 1. `beta` is a number or `[...]`. Half precision is
widened.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.alignment import margins, preference
from jdiv.alignment.margins import Margin
from jdiv.alignment.preference import Lengths, per_token
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator
from jdiv.types import PerPair

_KL = generators.kl()


def cpo(
    chosen: PerPair,
    rejected: PerPair,
    *,
    beta: ArrayLike,
    coefficient: ArrayLike = 1.0,
    margin: Margin = margins.logistic,
) -> PerPair:
    """`margin(beta log(pi_w/pi_l)) - coefficient log pi_w`.

    The gradient by `log pi_w` is `beta margin'(x) - coefficient`, that by `log pi_l` is
    `-beta margin'(x)`, x the argument of the margin; of the logistic one `margin'` is
    `-sigmoid(-x)`. The paper's coefficient is 1 and its likelihood that of the whole answer; TRL
    takes the mean over all tokens. Shapes: `[...]` twice to `[...]`.

    >>> print(f"{cpo(jnp.array(-1.0), jnp.array(-2.0), beta=1.0, coefficient=0.0):.4f}")
    0.3133

    Reference: Xu et al. 2024 (arXiv:2401.08417), equation 3; TRL 1.16 for other margins.
    """
    loss = _of_pair(chosen, rejected, beta, _KL, margin)
    return loss + _weighted(coefficient, preference.sft(chosen).astype(loss.dtype))


def simpo(
    chosen: PerPair,
    rejected: PerPair,
    *,
    lengths: Lengths,
    beta: ArrayLike,
    gamma: ArrayLike,
    margin: Margin = margins.logistic,
) -> PerPair:
    """`margin(x - gamma)`, `x = beta (log pi_w / length_w - log pi_l / length_l)`.

    A pair counts as won when it is ahead by gamma. Two answers of one length, the first preferred
    with odds o, are fitted with `e^x = (o - 1 + sqrt((o - 1)^2 + 4 o e^(-2 gamma))) e^gamma / 2`
    by the logistic margin, which is o for gamma 0 and more for others. The gradient by `log pi_w`
    is `beta margin'(x - gamma) / length_w`, that by `log pi_l` its opposite with the other length.
    Shapes: `[...]` twice, and twice for the lengths, to `[...]`.

    >>> pair, lengths = (jnp.array(-2.0), jnp.array(-8.0)), (jnp.array(2.0), jnp.array(4.0))
    >>> print(f"{simpo(*pair, lengths=lengths, beta=1.0, gamma=1.0):.4f}")
    0.6931

    Reference: Meng et al. 2024 (arXiv:2405.14734), equation 6.
    """
    means = per_token(chosen, rejected, lengths)
    return _of_pair(*means, beta, _KL, _ahead(margin, gamma))


def alpha_po(
    chosen: PerPair,
    rejected: PerPair,
    *,
    lengths: Lengths,
    beta: ArrayLike,
    gamma: ArrayLike,
    alpha: ArrayLike,
    margin: Margin = margins.logistic,
) -> PerPair:
    """`margin(x - gamma)`, `x = beta (r_w - r_l)`, `r = (1 - p^-alpha) / alpha`.

    Here `log p = log pi / length`, and r is `f'(p)` of the row alpha with the exponent 1 - alpha:
    `log p` at alpha = 0, where this is `simpo`. The gradient by `log pi_w` is
    `beta p_w^-alpha margin'(x - gamma) / length_w`, that by `log pi_l` its opposite with the other
    answer. Alpha above 0 moves unlikely answers more, below 0 likely ones, and then an answer of
    probability zero has the finite reward `1/alpha`. Shapes: `[...]` twice, and twice for the
    lengths, to `[...]`.

    Reference: Gupta et al. 2025 (arXiv:2501.03884), its reward, as TRL 1.16 has it.
    """
    alpha = checks.finite("alpha", alpha)
    means = per_token(chosen, rejected, lengths)
    row = generators.alpha(1 - jnp.asarray(alpha, means[0].dtype))
    return _of_pair(*means, beta, row, _ahead(margin, gamma))


def orpo(
    chosen: PerPair, rejected: PerPair, *, lengths: Lengths, coefficient: ArrayLike
) -> PerPair:
    """`-log p_w - coefficient log sigmoid(log odds_w - log odds_l)`, `odds = p / (1 - p)`.

    Here `log p = log pi / length`. With `D = p_w (1 - p_l) + p_l (1 - p_w)` the second term is
    `log D - log p_w - log(1 - p_l)`, its gradient by `log p_w` is `-p_l / D` and by `log p_l` it is
    `p_l (1 - p_w) / (D (1 - p_l))`: finite also where the chosen answer is certain, and without
    cancellation near that. Of two answers that are both certain, or both impossible, none is ahead.
    What is above 0 is no log-probability. Shapes: `[...]` twice, and twice for the lengths, to
    `[...]`.

    >>> both = jnp.log(jnp.array(0.5)), jnp.log(jnp.array(0.25))
    >>> one = jnp.array(1.0), jnp.array(1.0)
    >>> print(f"{orpo(*both, lengths=one, coefficient=1.0) - jnp.log(2.0):.4f}")  # log(4/3)
    0.2877

    Reference: Hong et al. 2024 (arXiv:2403.07691), equations 3 to 7.
    """
    at_most_0 = {"low": -jnp.inf, "high": 0, "allowed": "at most 0", "closed": "both"}
    chosen = checks.in_range("chosen", checks.as_float("chosen", chosen), **at_most_0)
    rejected = checks.in_range("rejected", checks.as_float("rejected", rejected), **at_most_0)
    chosen, rejected = per_token(chosen, rejected, lengths)
    return preference.sft(chosen) + _weighted(coefficient, _odds_ratio(chosen, rejected))


# ------------------------------------------------------------------------------------------- parts


def _of_pair(
    chosen: PerPair, rejected: PerPair, beta: ArrayLike, generator: Generator, margin: Margin
) -> Array:
    """`margin(beta f'(pi_w) - beta f'(pi_l))`: a reference of probability 1 for each answer."""
    chosen, rejected = checks.alike(chosen=chosen, rejected=rejected)
    one = jnp.zeros_like(chosen)
    return preference.f_dpo(
        chosen, rejected, one, one, beta=beta, generator=generator, margin=margin
    )


def _weighted(coefficient: ArrayLike, term: Array) -> Array:
    """`coefficient * term`, 0 for the coefficient 0 also where the term is infinite."""
    coefficient = jnp.asarray(checks.not_negative("coefficient", coefficient), term.dtype)
    return coefficient * jnp.where((coefficient == 0) & jnp.isinf(term), 0, term)


def _ahead(margin: Margin, gamma: ArrayLike) -> Margin:
    """The margin of a pair that has to be ahead by gamma."""
    gamma = checks.not_negative("gamma", gamma)
    return lambda x: margin(x - jnp.asarray(gamma, x.dtype))


@jax.custom_jvp
def _odds_ratio(log_w: Array, log_l: Array) -> Array:
    """`log(1 + odds_l / odds_w)`; log 2 where both are certain, or both impossible."""
    log_odds_w, log_odds_l = -numerics.log_expm1(-log_w), -numerics.log_expm1(-log_l)
    even = (log_w == log_l) & jnp.isinf(log_odds_w)
    return jax.nn.softplus(jnp.where(even, 0, log_odds_l - log_odds_w))


@_odds_ratio.defjvp
def _odds_ratio_jvp(primals, tangents):
    (log_w, log_l), (dlog_w, dlog_l) = primals, tangents
    log_not_w, log_not_l = (jnp.log(-jnp.expm1(x)) for x in primals)
    lost = log_l + log_not_w
    total = jnp.logaddexp(log_w + log_not_l, lost)
    even = (log_w == log_l) & jnp.isinf(log_w - log_not_w)
    by_w = jnp.where(even, 0, -jnp.exp(log_l - total))
    by_l = jnp.where(even, 0, jnp.exp(lost - total - log_not_l))
    return _odds_ratio(log_w, log_l), by_w * dlog_w + by_l * dlog_l
