"""Averages of models by their weights: moving anchors, spherical merging, interpolation.

Models are pytrees of floating-point arrays, one pytree structure for all; several of them are
stacked, one pytree whose leaves have a leading axis of models. Each leaf is a vector of its own, as
in the papers where each layer is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks

Model = Any
"""A pytree of arrays."""


def _each_leaf(f: Callable, *models: Model) -> Model:
    """f of corresponding leaves, computed in at least float32, in the precision of the first."""

    def of_leaves(first, *others):
        wide = [checks.as_float("every leaf", x) for x in (first, *others)]
        return f(*(x.astype(wide[0].dtype) for x in wide)).astype(jnp.asarray(first).dtype)

    return jax.tree.map(of_leaves, *models)


def interpolate(start: Model, end: Model, share: ArrayLike) -> Model:
    """`(1 - share) start + share end`: weights on the line between two models.

    WARP's EMA anchor is the anchor's interpolation towards the policy by mu at every step (.01 in
    its table of parameters, .1 in section 4.1), and its interpolation towards the start (LITI) is
    that from the initial to the merged model by eta (.3): all shares together are the front of
    reward against KL.

    Reference: Rame et al. 2024, WARP (arXiv:2406.16768), sections 3.1 and 3.3.
    """

    share = checks.finite("share", share)

    def of_leaf(a, b):
        checks.same_shape(start=a, end=b)
        return a + jnp.asarray(share, a.dtype) * (b - a)

    return _each_leaf(of_leaf, start, end)


def average(models: Model) -> Model:
    """Mean of the weights of stacked models; for two SFT models SALSA's reference.

    Its log-probabilities are those of the model with these weights, not an average of theirs: for
    softmax policies with logits as weights, a geometric mean. Shapes of leaves: `[M, ...]` to
    `[...]`.

    Reference: SALSA (arXiv:2411.01798), abstract.
    """
    return _each_leaf(lambda x: jnp.mean(x, axis=0), models)


def angle(a: ArrayLike, b: ArrayLike) -> Array:
    """Angle between two arrays as vectors, in [0, pi], accurate at both ends; 0 if one is zero.

    `2 atan2(‖u - v‖, ‖u + v‖)` of the unit vectors: an arc cosine loses half the digits near 0.

    Reference: Kahan 2006, How futile are mindless assessments of roundoff, section 12.
    """
    apart, together = _chords(*checks.alike(a=a, b=b))
    return 2 * jnp.arctan2(apart, together)


def _chords(a: Array, b: Array) -> tuple[Array, Array]:
    """`‖u - v‖` and `‖u + v‖` of the unit vectors; a zero vector has every direction."""
    # Squares of entries of any size are representable once the largest is 1.
    largest = [jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0)) for x in (a, b)]
    a, b = (x / jnp.where(most == 0, 1, most) for x, most in zip((a, b), largest, strict=True))
    lengths = [jnp.linalg.norm(x.ravel()) for x in (a, b)]
    none = (lengths[0] == 0) | (lengths[1] == 0)
    u, v = (x / jnp.where(none, 1, length) for x, length in zip((a, b), lengths, strict=True))
    apart, together = jnp.linalg.norm((u - v).ravel()), jnp.linalg.norm((u + v).ravel())
    return jnp.where(none, 0, apart), jnp.where(none, 2, together)


def slerp(a: ArrayLike, b: ArrayLike, share: ArrayLike) -> Array:
    """`(sin((1 - share) W) a + sin(share W) b) / sin W`, W the angle: along an arc from a to b.

    Between vectors of one length it keeps that length, where the straight line shortens it by
    `sqrt(1 - 2 (1 - cos W)(s - s^2))`. Parallel vectors, and zero, are on one line and
    interpolated there. Between antiparallel ones no arc is the shortest: NaN, except at the ends.
    Shapes: any, twice the same, to the same.

    >>> middle = slerp(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), 0.5)
    >>> print(f"{middle[0]:.4f} {jnp.linalg.norm(middle):.4f}")
    0.7071 1.0000

    Reference: Shoemake 1985; Rame et al. 2024, WARP (arXiv:2406.16768), section 3.2.
    """
    a, b = checks.alike(a=a, b=b)
    dtype = a.dtype
    share = jnp.asarray(checks.finite("share", share), dtype)
    apart, together = _chords(a, b)
    omega = 2 * jnp.arctan2(apart, together)
    # sin W = ‖u - v‖ ‖u + v‖ / 2 keeps its digits near pi, sin W / W by sinc near 0.
    near = omega < 1
    relative = jnp.where(
        near, jnp.sinc(omega / jnp.pi), apart * together / 2 / jnp.where(near, 1, omega)
    )
    # The rounding that is left of u + v has no direction.
    relative = jnp.where(together <= 4 * jnp.finfo(dtype).eps, jnp.nan, relative)

    def weight(share):
        inside = share * jnp.sinc(share * omega / jnp.pi) / relative
        return jnp.where((share == 0) | (share == 1), share, inside)

    return weight(1 - share) * a + weight(share) * b


def merge(start: Model, models: Model) -> Model:
    """`start + slerp` of the task vectors `model - start`, leaf by leaf.

    Two are merged half-way. More join one by one, the m-th with share 1/m: that keeps a common
    length, and depends on the order. Shapes of leaves: start `[...]`, models `[M, ...]`, to the
    first.

    Reconstructed: the way in which more than two are merged is from memory.
    Reference: Rame et al. 2024, WARP (arXiv:2406.16768), section 3.2.
    """

    def of_leaf(origin, stacked):
        if stacked.ndim == 0 or stacked.shape[1:] != origin.shape or not stacked.shape[0]:
            raise ValueError(
                f"models must have leaves [M, ...] over those of start, got {stacked.shape}"
                f" over {origin.shape}"
            )
        tasks = stacked - origin[None]
        count = jnp.arange(2, stacked.shape[0] + 1).astype(origin.dtype)
        join = lambda merged, new: (slerp(merged, new[0], 1 / new[1]), None)
        return origin + jax.lax.scan(join, tasks[0], (tasks[1:], count))[0]

    return _each_leaf(of_leaf, start, models)


def warp(
    train: Callable[[Model, Array], Model], start: Model, keys: Array, *, share: ArrayLike = 0.3
) -> tuple[Model, Model]:
    """WARP: train M models from the start, merge them, go `share` of the way there; and again.

    `train(start, key)` returns one model, with a penalty towards its EMA anchor (`interpolate` at
    every step). Shapes: keys `[rounds, M]`. Returns the start of the next round, and the merged
    model of each round, leaves `[rounds, ...]`: the front of a round is
    `interpolate(start, merged, s)` for s from 0 to 1, from the very first start.

    Reference: Rame et al. 2024, WARP (arXiv:2406.16768), algorithm 1.
    """

    def one_round(start, keys):
        merged = merge(start, jax.vmap(train, (None, 0))(start, keys))
        return interpolate(start, merged, share), merged

    return jax.lax.scan(one_round, start, keys)
