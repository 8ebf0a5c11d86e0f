"""Margins: the functions of a difference of scores that preference losses are made of.

A margin is a function of `x`, the score of the chosen answer minus that of the rejected one,
elementwise. A pair that wins with probability p is fitted by the minimizer of
`p f(x) + (1 - p) f(-x)`:

=====================  ==================================  =====================  ==============
`logistic`             `log(1 + e^-x)`                     `logit p`              DPO
`squared`              `(x - 1)^2`                         `2 p - 1`              IPO
`hinge`                `max(0, 1 - x)`                     1, whatever p > 1/2    SLiC
`exponential`          `e^-x`                              `logit p / 2`
`truncated_quadratic`  `max(0, 1 - x)^2`                   `2 p - 1`
`savage`               `1 / (1 + e^x)^2`, not convex       `logit p`
=====================  ==================================  =====================  ==============

Only a minimizer of `logit p` belongs to Bradley-Terry: with it the optimum of a preference loss is
the optimum of the regularized reward. `label_smoothed`, `robust`, `exo` and `discopop` take a
parameter and return such a function.

Reconstructed: that these six are those of the table is from memory.
Reference: Tang et al. 2024 (arXiv:2402.05749), table 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.divergences import categorical

Margin = Callable[[Array], Array]


def logistic(x: Array) -> Array:
    """`log(1 + e^-x)`: DPO."""
    return jax.nn.softplus(-x)


def squared(x: Array) -> Array:
    """`(x - 1)^2`: IPO."""
    return (x - 1) ** 2


def hinge(x: Array) -> Array:
    """`max(0, 1 - x)`: SLiC."""
    return jax.nn.relu(1 - x)


def exponential(x: Array) -> Array:
    """`e^-x`."""
    return jnp.exp(-x)


def truncated_quadratic(x: Array) -> Array:
    """`max(0, 1 - x)^2`."""
    return hinge(x) ** 2


def savage(x: Array) -> Array:
    """`1 / (1 + e^x)^2`: bounded, so that pairs which are far off do not count."""
    return jax.nn.sigmoid(-x) ** 2


TABLE: dict[str, Margin] = {
    margin.__name__: margin
    for margin in (logistic, squared, hinge, exponential, truncated_quadratic, savage)
}


def linear(x: Array) -> Array:
    """`-x`: no margin at all, for which a pair has no fit and the loss no bound below."""
    return -x


# --------------------------------------------------------------------------------- with a parameter


def _share(label_smoothing: ArrayLike) -> ArrayLike:
    """The checked share of wrong labels."""
    return checks.in_range(
        "label_smoothing", label_smoothing, 0, 0.5, "from 0 to below 1/2", closed="low"
    )


def label_smoothed(label_smoothing: ArrayLike) -> Margin:
    """`(1 - e) logistic(x) + e logistic(-x)`: the conservative loss of cDPO, for noisy labels.

    Its minimizer is `logit((1 - e) p + e (1 - p))`: a pair that always wins is fitted with the
    probability 1 - e instead of 1, and x stays finite. `robust` has the same use, and the minimizer
    `logit p` of the labels without noise. For e = 0 it is `logistic`.

    Reference: Mitchell 2023, A note on DPO with noisy preferences, equation 3.
    """
    share = _share(label_smoothing)
    if not isinstance(share, jax.core.Tracer) and np.all(np.asarray(share) == 0):
        return logistic
    return lambda x: (1 - share) * logistic(x) + share * logistic(-x)


def robust(label_smoothing: ArrayLike) -> Margin:
    """`((1 - e) logistic(x) - e logistic(-x)) / (1 - 2 e)`.

    With labels flipped with probability e its mean is that of `logistic` without flips.

    Reference: Chowdhury et al. 2024 (arXiv:2403.00409).
    """
    share = _share(label_smoothing)
    return lambda x: ((1 - share) * logistic(x) - share * logistic(-x)) / (1 - 2 * share)


def exo(label_smoothing: ArrayLike) -> Margin:
    """`KL(sigmoid(x)‖1 - e)` of two Bernoulli distributions, the policy's on the left.

    `label_smoothed` has the other direction, up to a constant. Infinite for e = 0.

    Reference: Ji et al. 2024 (arXiv:2402.00856), for pairs.
    """
    share = _share(label_smoothing)

    def margin(x: Array) -> Array:
        log_policy = jnp.stack([jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)], axis=-1)
        e = jnp.asarray(share, x.dtype)
        log_labels = jnp.broadcast_to(jnp.stack([jnp.log1p(-e), jnp.log(e)]), log_policy.shape)
        return categorical.kl(log_policy, log_labels)

    return margin


def discopop(temperature: ArrayLike = 0.05) -> Margin:
    """`sigmoid(-x/t) logistic(x) + sigmoid(x/t) exponential(x)`: not convex near 0.

    Reference: Lu et al. 2024 (arXiv:2406.08414), its log-ratio modulated loss.
    """
    temperature = checks.in_range("temperature", temperature, 0, 1, "between 0 and 1, exclusive")

    def margin(x: Array) -> Array:
        z = x / temperature
        # log(sigmoid(z) e^-x), with e^-x and the sigmoid's underflow taken together.
        exponent = jnp.where(x < 0, x * (1 / temperature - 1), -x)
        log_product = exponent - jnp.log1p(jnp.exp(-jnp.abs(z)))
        return jax.nn.sigmoid(-z) * logistic(x) + jnp.exp(log_product)

    return margin


def clipped(margin: Margin, limit: ArrayLike) -> Margin:
    """`margin` of x clipped to [-limit, limit]: a pair beyond has no gradient."""
    limit = checks.positive("limit", limit)
    return lambda x: margin(jnp.clip(x, -limit, limit))
