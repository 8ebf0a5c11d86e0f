"""Losses whose gradient is that of `E_pi[R] - beta D(pi, old)`, from samples of the old policy.

RPG (arXiv:2505.17508) has eight: KL in two directions, normalized or not, differentiated through or
as REINFORCE. They are two functions here, for every generator of the table. With `w = pi/old`
and `D = sum old f(w)`

* `rpg` is `-w R + beta f(w)` per sample, all of it differentiable;
* `rpg_reinforce` is `-stop_gradient(w R - beta w f'(w)) log pi`, with the same gradient.

Normalized, f is the customary generator. Where `old` sums to `total` and not to 1 (its normalizer
is unknown, or mass is missing), samples come from `old/total`, f is the centered generator and
everything is `total` times as large: for KL the unnormalized divergence `sum p log(p/q) - p + q`.

==========================  ============  ==========  ==============================================
D                           generator     total       weight of grad log pi, x ~ old/total
==========================  ============  ==========  ==============================================
FKL  KL(old‖pi)             reverse_kl    None        `w R + beta`
UFKL UKL(old‖pi)            reverse_kl    Z           `Z (w R - beta (w - 1))`
RKL  KL(pi‖old)             kl            None        `w (R - beta (log w + 1))`
URKL UKL(pi‖old)            kl            Z           `Z w (R - beta log w)`
==========================  ============  ==========  ==============================================

Coefficient (beta, not negative) and total (positive) are numbers, or one for each sequence. The
values of the losses differ from the paper's by constants. R may be less a baseline anywhere.
With several tokens to a sequence and ratios of tokens, old is each token's distribution, and D the
sum over the states that the old policy visits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.divergences.generator import Generator, checked_row
from jdiv.estimators import monte_carlo
from jdiv.policy.clipped import ClipDiagnostics
from jdiv.policy.ratio_weights import bounds
from jdiv.policy.tokens import Advantages, TokenLoss, masked
from jdiv.types import LogProbs, Mask, PerRow


class DivergenceDiagnostics(NamedTuple):
    """Ratio and divergence at each token, `[..., T]`, 0 where masked.

    Fields:
        ratio: `pi/old`.
        divergence: `total f(w)`, whose mean over tokens is D; the customary f has terms of either
            sign.
    """

    ratio: Array
    divergence: Array


def _weights(
    coefficient: PerRow, total: PerRow | None, tokens: Array
) -> tuple[Array, Array | None]:
    """Checked coefficient and total, to be broadcast against tokens `[..., T]`."""
    coefficient = checks.not_negative("coefficient", coefficient, rows=tokens)
    return coefficient, None if total is None else checks.positive("total", total, rows=tokens)


def _divergence(generator: Generator, log_probs: Array, old: Array, total: PerRow | None) -> Array:
    """`f(w)` at samples of old, or `total f(w)` with the centered f."""
    if total is None:
        return monte_carlo.plain_from_q(generator, log_probs, old)
    return total * monte_carlo.centered_from_q(generator, log_probs, old)


def _objective(
    generator: Generator,
    log_probs: Array,
    old: Array,
    rewards: Array,
    coefficient: PerRow,
    total: PerRow | None,
) -> tuple[Array, DivergenceDiagnostics]:
    """`total (-w R + beta f(w))`, and evidence."""
    # A reward of 0 is one also where the ratio overflows.
    used = jnp.exp(jnp.where(rewards == 0, 0, log_probs - old))
    divergence = _divergence(generator, log_probs, old, total)
    loss = coefficient * divergence - (1 if total is None else total) * used * rewards
    evidence = DivergenceDiagnostics(jnp.exp(log_probs - old), divergence)
    return loss, jax.lax.stop_gradient(evidence)


def rpg(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    rewards: Advantages,
    mask: Mask,
    *,
    coefficient: PerRow,
    generator: Generator,
    total: PerRow | None = None,
) -> TokenLoss[DivergenceDiagnostics]:
    """`-w R + coefficient f(w)` per sample, differentiable as it stands; see the module.

    Shapes: `[..., T]`, rewards (or advantages) also `[...]`, to `[..., T]`.

    >>> log_probs, old = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]]))
    >>> mask = jnp.full((1, 1), True)  # w = 2: -2 R + w log w
    >>> from jdiv import generators
    >>> row = generators.kl()
    >>> out = rpg(log_probs, old, jnp.ones(1), mask, coefficient=1.0, generator=row)
    >>> print(f"{out.loss[0, 0]:.4f}")
    -0.6137

    Reference: RPG (arXiv:2505.17508), its table of differentiable losses; other generators follow
    by the same derivation and are not in the paper.
    """
    log_probs, mask, (old, rewards) = masked(
        log_probs, mask, old_log_probs=old_log_probs, rewards=rewards
    )
    coefficient, total = _weights(coefficient, total, log_probs)
    loss, evidence = _objective(generator, log_probs, old, rewards, coefficient, total)
    return TokenLoss(*jax.tree.map(lambda x: jnp.where(mask, x, 0), (loss, evidence)))


def rpg_reinforce(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    rewards: Advantages,
    mask: Mask,
    *,
    coefficient: PerRow,
    generator: Generator,
    total: PerRow | None = None,
) -> TokenLoss[DivergenceDiagnostics]:
    """`-stop_gradient(w R - coefficient w f'(w)) log pi` per sample; see the module.

    Shapes: `[..., T]`, rewards (or advantages) also `[...]`, to `[..., T]`.

    Reference: RPG (arXiv:2505.17508), its table of losses in REINFORCE's form.
    """
    log_probs, mask, (old, rewards) = masked(
        log_probs, mask, old_log_probs=old_log_probs, rewards=rewards
    )
    coefficient, total = _weights(coefficient, total, log_probs)
    fixed = jax.lax.stop_gradient(log_probs)
    # The derivative of the other form: minus the weight.
    _, slope, evidence = jax.jvp(
        lambda x: _objective(generator, x, old, rewards, coefficient, total),
        (fixed,),
        (jnp.ones_like(fixed),),
        has_aux=True,
    )
    loss = jnp.where(mask, slope, 0) * log_probs
    return TokenLoss(loss, jax.tree.map(lambda x: jnp.where(mask, x, 0), evidence))


def regularized_advantages(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    coefficient: PerRow,
    generator: Generator,
    normalized: bool = True,
) -> Array:
    """`A - coefficient f'(w)`, constants for a clipped loss: `w` times it is the weight of `rpg`.

    RKL `A - beta (log w + 1)`, URKL `A - beta log w`; for FKL and UFKL it is `A + beta/w` and
    `A - beta (1 - 1/w)`, where implementations often have plain A. Shapes: `[..., T]`, advantages
    also `[...]`, to `[..., T]`.

    Reference: RPG (arXiv:2505.17508), regularized advantages of the clipped losses.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    generator = checked_row(generator, log_probs.dtype)
    coefficient, _ = _weights(coefficient, None, log_probs)
    slope = generator.slope(jax.lax.stop_gradient(log_probs - old))
    if normalized:
        slope = slope + generator.slope_at_one
    return jnp.where(mask, advantages - coefficient * slope, 0)


def rpg_reinforce_clip(
    log_probs: LogProbs,
    old_log_probs: LogProbs,
    advantages: Advantages,
    mask: Mask,
    *,
    coefficient: PerRow,
    generator: Generator,
    total: PerRow | None = None,
    low: PerRow = 0.2,
    high: PerRow = 0.28,
    ceiling: PerRow = 3.0,
) -> TokenLoss[DivergenceDiagnostics]:
    """`rpg_reinforce` where the ratio is within bounds, constants beyond them.

    With `l = -log pi`, `C = -beta w f'(w)` and `psi = (A + C/w) l` the loss is `psi w`, but

    * where `psi >= 0` and `w >= 1 + high`: `psi (1 + high)`, constant;
    * where `psi < 0` and `w <= 1 - low`: `psi (1 - low)`, constant;
    * where `psi < 0` and `w >= ceiling`: `(A ceiling + C) l`, constant.

    Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: RPG (arXiv:2505.17508), algorithm 2; `total` multiplies the whole.
    """
    log_probs, mask, (old, advantages) = masked(
        log_probs, mask, old_log_probs=old_log_probs, advantages=advantages
    )
    generator = checked_row(generator, log_probs.dtype)
    coefficient, total = _weights(coefficient, total, log_probs)
    low, high, ceiling = bounds(low, high, ceiling, log_probs)
    fixed = jax.lax.stop_gradient(log_probs)
    ratio = jnp.exp(fixed - old)
    _, penalty = jax.jvp(
        lambda x: coefficient * _divergence(generator, x, old, total),
        (fixed,),
        (jnp.ones_like(fixed),),
    )
    scale = 1 if total is None else total
    paid = jnp.where(advantages == 0, 0, scale * ratio * advantages)
    weight = paid - penalty
    slope = generator.slope(fixed - old) + (generator.slope_at_one if total is None else 0)
    surprise = -log_probs
    psi = scale * (advantages - coefficient * slope) * surprise
    positive = weight * surprise >= 0

    above = positive & (ratio >= 1 + high)
    below = ~positive & (ratio <= 1 - low)
    far = ~positive & ~below & (ratio >= ceiling)
    bound = (scale * ceiling * advantages - penalty) * surprise
    constant = jnp.where(far, bound, psi * jnp.where(above, 1 + high, 1 - low))
    clipped = mask & (above | below | far)
    inside = jnp.where(mask & ~clipped, weight, 0) * surprise
    loss = jnp.where(clipped, jax.lax.stop_gradient(constant), inside)
    loss = checks.spread_nan(loss, low, high, ceiling)
    return TokenLoss(loss, ClipDiagnostics(jnp.where(mask, ratio, 0), clipped))
