"""Garnets: random processes with few successors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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
    [-1, 1], the start is uniform. May be vmapped over keys.

    Reference: Archibald, McKinnon and Thomas 1995, with rewards as in the reference values of
    Vieillard et al. 2020.
    """
    for name, count in (("states", states), ("actions", actions)):
        checks.in_range(name, count, 1, jnp.inf, "at least 1", closed="low")
    if not 1 <= branches <= states:
        raise ValueError(f"branches must be in [1, {states}], got {branches}")
    of_successors, of_cuts, of_rewards = jax.random.split(key, 3)
    # The first entries of a random order are a sample without replacement.
    order = jnp.argsort(jax.random.uniform(of_successors, (states, actions, states)), axis=-1)
    cuts = jnp.sort(jax.random.uniform(of_cuts, (states, actions, branches - 1)), axis=-1)
    ends = [(0, 0), (0, 0), (1, 1)]
    cuts = jnp.pad(cuts, ends, constant_values=((0, 0), (0, 0), (0, 1)))
    return SparseMdp(
        successor=order[..., :branches],
        probability=jnp.diff(cuts, axis=-1),
        reward=jax.random.uniform(of_rewards, (states, actions), minval=-1, maxval=1),
        discount=discount,
        start=jnp.full(states, 1 / states),
    )
