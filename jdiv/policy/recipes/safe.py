"""SAFE (code: ryyzn9/SAFE): a KL penalty beyond a threshold that a controller moves.

Reconstructed: from the released code; how a phase is recognized is unknown, that the rise of the KL
is the one since 50 steps ago and that the velocity is the difference of rewards is inferred.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.types import PerRow, Scalar, Values

SAFE_PHASES = {"warmup": 1.5, "climbing": 1.2, "plateau": 0.8, "converged": 1.0}
"""Factors of the threshold, by the phase of training."""


def softmin(values: Values, *, temperature: PerRow = 0.3, axis: int = -1) -> Array:
    """`-t log mean exp(-v/t)`: between the least value, for t to 0, and the mean.

    Shapes: `[..., n]` to `[...]`, the values of the critics last.

    >>> print(f"{softmin(jnp.array([1.0, 2.0])):.4f}")
    1.1974

    Reference: ryyzn9/SAFE, its code, which has two critics.
    """
    values = checks.as_float("values", values)
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis must be within shape {tuple(values.shape)}, got {axis}")
    values = jnp.moveaxis(values, axis, -1)
    temperature = checks.positive("temperature", temperature, rows=values)
    count = jnp.asarray(values.shape[-1], values.dtype)
    summed = jax.nn.logsumexp(-values / temperature, axis=-1, keepdims=True)
    return (-temperature * (summed - jnp.log(count)))[..., 0]


def safe_penalty(
    kl: ArrayLike, entropy: ArrayLike, threshold: Scalar, *, as_released: bool = False
) -> Array:
    """`.1 (kl - threshold)_+^2 max(1/2, 2/(H + .1))`, added to the policy's loss.

    The code builds it from Python floats, and so it has a value and no gradient: `as_released`.
    Shapes: any, broadcast; `kl` is smoothed by `safe_control`.

    Reference: ryyzn9/SAFE, its code.
    """
    kl, entropy = checks.as_float("kl", kl), checks.as_float("entropy", entropy)
    entropy = checks.not_negative("entropy", entropy)
    excess = jnp.maximum(kl - checks.not_negative("threshold", threshold), 0)
    penalty = 0.1 * excess**2 * jnp.maximum(2 / (entropy + 0.1), 0.5)
    return jax.lax.stop_gradient(penalty) if as_released else penalty


def safe_penalty_asymmetric(kl: ArrayLike, old_kl: ArrayLike, *, steps: float = 50) -> Array:
    """`.1 (kl - .3)_+^2 + 5 max(0, rise / steps)`, the rise squared: falls of the KL are free.

    `old_kl` is the KL of so many steps ago. Shapes: any, twice the same.

    Reference: ryyzn9/SAFE, its code.
    """
    kl = checks.as_float("kl", kl)
    steps = checks.positive("steps", steps)
    rise = jnp.maximum((kl - old_kl) / steps, 0)
    return 0.1 * jnp.maximum(kl - 0.3, 0) ** 2 + 5 * rise**2


class SafeState(NamedTuple):
    """State of SAFE's controller, `[]` each; zeros to start with.

    Fields:
        kl: KL, smoothed by .9.
        reward: The reward of the step before.
        velocity: Change of the reward by step, smoothed by .95.
        integral: Sum of the errors of the velocity.
        error: The error of the step before.
    """

    kl: Array
    reward: Array
    velocity: Array
    integral: Array
    error: Array


def safe_control(
    state: SafeState, kl: Scalar, reward: Scalar, *, phase: Scalar
) -> tuple[SafeState, Array]:
    """The next state and the threshold `clip((.3 + PID) phase, .1, .6)`.

    PID has gains .3, .01, .05 on the velocity of the reward less .001. The KL keeps its gradient,
    the threshold is a constant. Shapes: `[]`.

    Reference: ryyzn9/SAFE, its code.
    """
    phase = checks.positive("phase", phase)
    kl = 0.9 * state.kl + 0.1 * kl
    velocity = 0.95 * state.velocity + 0.05 * (reward - state.reward)
    error = velocity - 0.001
    integral = state.integral + error
    pid = 0.3 * error + 0.01 * integral + 0.05 * (error - state.error)
    reward = jnp.asarray(reward, jnp.result_type(state.reward))
    threshold = jax.lax.stop_gradient(jnp.clip((0.3 + pid) * phase, 0.1, 0.6))
    return SafeState(kl, reward, velocity, integral, error), threshold
