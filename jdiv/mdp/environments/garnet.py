"""Garnets: random processes with few successors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.mdp.model import SparseMdp
from jdiv.types import RandomKey


def garnet(
    key: RandomKey,
    *,
    states: int = 30,
    actions: int = 4,
    branches: int = 4,
    discount: ArrayLike = 0.9,
) -> SparseMdp:
    """A random process: each state and action leads to `branches` different states.

    Their probabilities are the gaps between sorted uniform numbers, rewards are uniform in
    [-1, 1], the start is uniform. May be vmapped over keys. Memory is that of the process itself,
    `[S, A, branches]`, and the time branches times that.

    Reference: Archibald, McKinnon and Thomas 1995, with rewards as in the reference values of
    Vieillard et al. 2020.
    """
    for name, count in (("states", states), ("actions", actions)):
        checks.in_range(name, count, 1, jnp.inf, "at least 1", closed="low")
    if not 1 <= branches <= states:
        raise ValueError(f"branches must be in [1, {states}], got {branches}")
    of_successors, of_cuts, of_rewards = jax.random.split(key, 3)
    cuts = jnp.sort(jax.random.uniform(of_cuts, (states, actions, branches - 1)), axis=-1)
    ends = [(0, 0), (0, 0), (1, 1)]
    cuts = jnp.pad(cuts, ends, constant_values=((0, 0), (0, 0), (0, 1)))
    return SparseMdp(
        successor=_distinct(of_successors, states, actions, branches),
        probability=jnp.diff(cuts, axis=-1),
        reward=jax.random.uniform(of_rewards, (states, actions), minval=-1, maxval=1),
        discount=discount,
        start=jnp.full(states, 1 / states),
    )


def _distinct(key: RandomKey, states: int, actions: int, branches: int) -> Array:
    """`[S, A, branches]` different states, all ordered choices of them equally likely.

    The next one is the free state of a uniform rank. Taken states are kept sorted, so entry i of
    them has `taken[i] - i` free states below it, and those with at most `rank` are below the next.
    """
    place = jnp.arange(branches, dtype=jnp.int32)[:, None, None]
    nowhere = jnp.full((branches, states, actions), states + branches, jnp.int32)

    def draw(taken, inputs):
        key, count = inputs
        rank = jax.random.randint(key, (1, states, actions), 0, states - count, jnp.int32)
        state = rank + jnp.sum(taken - place <= rank, axis=0, keepdims=True, dtype=jnp.int32)
        # Sorted insertion: what is above the new state moves on by one place.
        below = jnp.roll(taken, 1, axis=0).at[0].set(-1)
        return jnp.clip(state, below, taken), state[0]

    inputs = jax.random.split(key, branches), place.ravel()
    return jnp.moveaxis(jax.lax.scan(draw, nowhere, inputs)[1], 0, -1)
