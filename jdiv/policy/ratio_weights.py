"""Weights of the ratio w = pi/pi_old: each method is one function of the ratio and the advantage.

A method adds `weight * grad log pi` to the ascent, token by token; here is that weight, with the
advantage A in it: minus the derivative of the loss in `clipped` by the log-probability. Of the
ratio's product W over a sequence of L tokens and its geometric mean W^(1/L), the rows of
`clipped.TABLE`:

================  ============================================================================
row               weight of grad log pi
================  ============================================================================
reinforce         `A`
importance        `W A`
truncated         `min(W, 2) A`
ppo               `w A`, 0 where w > 1.2 and A > 0, or w < .8 and A < 0
dual_clip         ppo's, with an upper bound of 1.28, also 0 where w > 3 and A < 0
two_sided         ppo's, also 0 where w > 4 and A < 0
cispo             `min(w, 3) A`
sapo              `w sech((w - 1) t/2)^2 A`, t = 1 where A > 0, else 1.05
dro               `A - beta log w`
awr               `min(e^(A/temperature), 20)`, which is positive also where A is not
gspo              ppo's of W^(1/L), with its own bounds
luspo             gspo's times L
gmpo              `prod(clip(w))^(1/L) A`, 0 where the token's own w is clipped
vespo             `W^k e^(l (1 - W)) A`, (k, l) by the sign of A
off_policy_mask   ppo's, 0 in sequences with A < 0 whose mean of -log w is above .1
================  ============================================================================

BNPO is none of them, but an average (`tokens.bnpo_weights`), and a divergence in place of the ratio
is in `dppo`. Weights are `[..., T]` of arrays of that shape; bounds are those of `clipped`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks
from jdiv.policy.tokens import masked
from jdiv.types import Mask, PerRow, PerToken


def bounds(low: PerRow, high: PerRow, ceiling: PerRow, tokens: Array) -> tuple[Array, Array, Array]:
    """Checked bounds of ratios, to be broadcast against tokens `[..., T]`."""
    low = checks.in_range("low", low, 0, jnp.inf, "not negative", closed="both", rows=tokens)
    high = checks.in_range("high", high, 0, jnp.inf, "not negative", closed="both", rows=tokens)
    ceiling = checks.in_range(
        "ceiling", ceiling, 1, jnp.inf, "at least 1", closed="both", rows=tokens
    )
    return low, high, ceiling


def clipped(
    log_ratio: PerToken,
    advantages: PerToken,
    *,
    low: PerRow,
    high: PerRow,
    ceiling: PerRow = jnp.inf,
) -> Array:
    """`w A`, and 0 where w is above `1 + high` with A > 0, below `1 - low` or above `ceiling` with
    A < 0: the weight of `ppo_clip` and, with a ceiling, of `dual_clip`.

    Shapes: `[..., T]`, twice the same, to the same.

    >>> log_ratio = jnp.log(jnp.array([0.5, 1.1, 2.0]))
    >>> print(clipped(log_ratio, jnp.ones(3), low=0.2, high=0.2))
    [0.5 1.1 0. ]
    """
    log_ratio, advantages = checks.alike(log_ratio=log_ratio, advantages=advantages)
    low, high, ceiling = bounds(low, high, ceiling, log_ratio)
    ratio = jnp.exp(jnp.where(advantages == 0, 0, log_ratio))
    gone = jnp.where(advantages > 0, ratio > 1 + high, (ratio < 1 - low) | (ratio > ceiling))
    weight = jnp.where(gone, 0, ratio) * advantages
    return checks.spread_nan(weight, log_ratio, low, high, ceiling)


def gspo(
    log_ratio: PerToken,
    advantages: PerToken,
    mask: Mask,
    *,
    low: PerRow = 3e-4,
    high: PerRow = 4e-4,
) -> Array:
    """`clipped` of the sequence's `(prod w)^(1/length)` in place of each token's w.

    Shapes: `[..., T]`, three times the same, to the same; 0 where masked.

    Reference: Zheng et al. 2025 (arXiv:2507.18071).
    """
    log_ratio, mask, (advantages,) = masked(log_ratio, mask, advantages=advantages)
    mean = jnp.broadcast_to(mean_over_sequence(log_ratio, mask), log_ratio.shape)
    return jnp.where(mask, clipped(mean, advantages, low=low, high=high), 0)


def luspo(
    log_ratio: PerToken,
    advantages: PerToken,
    mask: Mask,
    *,
    low: PerRow = 3e-4,
    high: PerRow = 4e-4,
) -> Array:
    """`gspo` times the length of the sequence. Shapes: `[..., T]`, three times, to the same.

    Reference: as `luspo`.
    """
    weight = gspo(log_ratio, advantages, mask, low=low, high=high)
    return weight * length(checks.as_mask("mask", mask), weight)


def cispo(log_ratio: PerToken, advantages: PerToken, *, low: PerRow = 1.0, high: PerRow) -> Array:
    """`clip(w, 1 - low, 1 + high) A`. Shapes: `[..., T]`, twice the same, to the same.

    >>> print(cispo(jnp.log(jnp.array([0.5, 1.1, 4.0])), -jnp.ones(3), high=2.0))
    [-0.5 -1.1 -3. ]

    Reference: MiniMax-M1 (arXiv:2506.13585).
    """
    log_ratio, advantages = checks.alike(log_ratio=log_ratio, advantages=advantages)
    low, high, _ = bounds(low, high, jnp.inf, log_ratio)
    ratio = jnp.exp(jnp.where(advantages == 0, 0, log_ratio))
    weight = jnp.clip(ratio, 1 - low, 1 + high) * advantages
    return checks.spread_nan(weight, log_ratio, low, high)


def vespo(
    log_ratio: PerToken,
    advantages: PerToken,
    mask: Mask,
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Array:
    """`W^k e^(l (1 - W)) A` of the product W of the sequence's ratios, with (k, l) by A's sign.

    Shapes: `[..., T]`, three times the same, to the same; 0 where masked.

    Reference: as `vespo`.
    """
    log_ratio, mask, (advantages,) = masked(log_ratio, mask, advantages=advantages)
    pairs = [
        [checks.positive(name, x) for x in pair]
        for name, pair in (("positive", positive), ("negative", negative))
    ]
    power, fall = (
        jnp.where(advantages >= 0, a, b).astype(log_ratio.dtype)
        for a, b in zip(*pairs, strict=True)
    )
    whole = jnp.sum(log_ratio, axis=-1, keepdims=True)
    weight = jnp.exp(power * whole + fall * (1 - jnp.exp(whole))) * advantages
    return jnp.where(mask, weight, 0)


def sapo(
    log_ratio: PerToken, advantages: PerToken, *, positive: float = 1.0, negative: float = 1.05
) -> Array:
    """`4 w s (1 - s) A` with `s = sigmoid(t (w - 1))`, t by the sign of A; that is `w sech²(.) A`.

    Shapes: `[..., T]`, twice the same, to the same.

    >>> print(sapo(jnp.log(jnp.array([0.1, 1.0, 10.0])), jnp.ones(3)).round(4))
    [0.0822 1.     0.0049]

    Reference: as `sapo`.
    """
    log_ratio, advantages = checks.alike(log_ratio=log_ratio, advantages=advantages)
    opened = by_sign(advantages, positive, negative) * (jnp.exp(log_ratio) - 1)
    log_slope = jax.nn.log_sigmoid(opened) + jax.nn.log_sigmoid(-opened)
    # In logarithms, as a ratio of inf has a weight of 0.
    return 4 * jnp.exp(log_ratio + log_slope) * advantages


def gmpo(
    log_ratio: PerToken,
    advantages: PerToken,
    mask: Mask,
    *,
    low: PerRow = 0.4,
    high: PerRow = 0.4,
) -> Array:
    """The geometric mean of the sequence's clipped ratios times A, 0 for a token that is clipped.

    Shapes: `[..., T]`, three times the same, to the same; 0 where masked.

    Reference: as `gmpo`.
    """
    log_ratio, mask, (advantages,) = masked(log_ratio, mask, advantages=advantages)
    kept, clipped = bounded_logarithm(log_ratio, advantages, mask, low, high)
    mean = jnp.where(advantages == 0, 0, mean_over_sequence(kept, mask))
    return jnp.where(mask & ~clipped, jnp.exp(mean), 0) * advantages


def dro(log_ratio: PerToken, advantages: PerToken, *, beta: PerRow = 0.1) -> Array:
    """`A - beta log w`. Shapes: `[..., T]`, twice the same, to the same.

    Reference: as `dro`.
    """
    log_ratio, advantages = checks.alike(log_ratio=log_ratio, advantages=advantages)
    return advantages - checks.positive("beta", beta, rows=log_ratio) * log_ratio


def importance(
    log_ratio: PerToken, advantages: PerToken, mask: Mask, *, ceiling: PerRow = jnp.inf
) -> Array:
    """`min(W, ceiling) A`, W the product of the ratios of the sequence.

    Shapes: `[..., T]`, three times the same, to the same; 0 where masked.

    Reference: as `importance`.
    """
    log_ratio, mask, (advantages,) = masked(log_ratio, mask, advantages=advantages)
    _, _, ceiling = bounds(1.0, jnp.inf, ceiling, log_ratio)
    whole = jnp.where(advantages == 0, 0, jnp.sum(log_ratio, axis=-1, keepdims=True))
    weight = jnp.minimum(jnp.exp(whole), ceiling) * advantages
    return jnp.where(mask, weight, 0)


def off_policy_masked(
    log_ratio: PerToken,
    advantages: PerToken,
    mask: Mask,
    *,
    threshold: PerRow = 0.1,
    low: PerRow = 0.2,
    high: PerRow = 0.2,
) -> Array:
    """`clipped`, and 0 in all of a sequence with A < 0 whose mean of -log w is too large.

    Shapes: `[..., T]`, three times the same, to the same; 0 where masked.

    Reference: as `off_policy_mask`.
    """
    log_ratio, mask, (advantages,) = masked(log_ratio, mask, advantages=advantages)
    threshold = checks.not_negative("threshold", threshold, rows=log_ratio)
    keep = (advantages >= 0) | (-mean_over_sequence(log_ratio, mask) <= threshold)
    weight = clipped(log_ratio, advantages, low=low, high=high)
    return checks.spread_nan(jnp.where(mask & keep, weight, 0), weight, threshold)


# ------------------------------------------------------------------------- over a sequence


def length(mask: Mask, x: PerToken) -> Array:
    """`[..., 1]` numbers of tokens, 1 of nothing, in the precision of x."""
    return jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(x.dtype)


def mean_over_sequence(x: PerToken, mask: Mask) -> Array:
    """`[..., 1]` the mean of what is not masked, of x that is 0 where masked; 0 of nothing."""
    return jnp.sum(x, axis=-1, keepdims=True) / length(mask, x)


def by_sign(advantages: PerToken, positive: float, negative: float) -> Array:
    """One number where the advantage is positive, the other elsewhere."""
    positive, negative = (
        checks.positive(name, x) for name, x in (("positive", positive), ("negative", negative))
    )
    return jnp.where(advantages > 0, positive, negative).astype(advantages.dtype)


def bounded_logarithm(
    log_ratio: PerToken, advantages: PerToken, mask: Mask, low: PerRow, high: PerRow
) -> tuple[Array, Array]:
    """GMPO's `log w`, bounded on the side that the advantage moves it to, and where it is."""
    low, high, _ = bounds(low, high, jnp.inf, log_ratio)
    above, below = (advantages > 0) & (log_ratio > high), (advantages < 0) & (log_ratio < -low)
    kept = jnp.where(above, high, jnp.where(below, -low, log_ratio))
    return checks.spread_nan(kept, log_ratio, low, high), mask & (above | below)
