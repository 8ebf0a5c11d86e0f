"""RECAP (arXiv:2510.21978): replayed objectives, weighted by their progress and noise.

Replay of other tasks holds what a KL penalty on the current task leaves free. In the paper's words
the weights turn away from what is done; by its equation a loss that falls steadily weighs less than
one that stays, and a noisy or a rising one more.

Reconstructed: the formulas are from notes by others and the README of the code; that a loss of 0 in
both windows counts as one that stays is inferred.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.types import PerToken, Scalar


def recap_weights(losses: PerToken, *, temperature: Scalar = 5.0) -> Array:
    """`K softmax((c + i)/temperature)` over K objectives, 1 on average.

    Of the last 2W losses of each, the oldest first, c is the mean of the newer half over that of
    the older one, above 1 where a loss rises, and i the standard deviation of the newer half over
    the sum of both means. A loss that rises from 0 has all the weight. Constants.
    Shapes: `[K, 2W]` losses that are not negative, to `[K]`.

    >>> done, falling = jnp.array([1.0, 1.0, 1.0, 1.0]), jnp.array([4.0, 4.0, 2.0, 2.0])
    >>> [f"{weight:.3f}" for weight in recap_weights(jnp.stack([done, falling]))]
    ['1.050', '0.950']

    Reference: RECAP (arXiv:2510.21978), equation 1. Its code takes rewards for losses, the older
    half over the newer, the deviation over both halves, and half of each of the two terms.
    """
    losses = checks.as_float("losses", jax.lax.stop_gradient(losses))
    losses = checks.not_negative("losses", losses)
    if losses.ndim != 2 or losses.shape[1] < 2 or losses.shape[1] % 2:
        raise ValueError(f"losses must be of shape [K, 2W], got {tuple(losses.shape)}")
    temperature = checks.positive("temperature", temperature, rows=losses.ravel())
    # In units of an objective's largest no sum over- or underflows.
    largest = jnp.max(losses, axis=1, keepdims=True)
    losses = losses / jnp.where(largest == 0, 1, largest)
    older, newer = jnp.split(losses, 2, axis=1)
    before, after = jnp.mean(older, axis=1), jnp.mean(newer, axis=1)
    total = before + after
    progress = jnp.where(before == 0, jnp.where(after == 0, 1, jnp.inf), after / before)
    noise = jnp.std(newer, axis=1) / jnp.where(total == 0, 1, total)
    score = checks.spread_nan((progress + noise) / temperature, total)
    # Objectives that rise from 0 share the weight: a softmax with infinities.
    infinite = jnp.isinf(score)
    score = jnp.where(jnp.any(infinite), jnp.where(infinite, 0, -jnp.inf), score)
    return losses.shape[0] * jnp.exp(numerics.log_softmax(score))
