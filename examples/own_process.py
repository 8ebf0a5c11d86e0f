"""Regularized value iteration on a process of one's own: what KL and entropy do under errors.

    python examples/own_process.py

A process is two arrays, `transition[s, a, s']` and `reward[s, a]`. A scheme is a pair of functions
whose weights may be traced, so that a sweep over them is a vmap.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jdiv.mdp import Mdp, operators, value_iteration

STATES, ITERATIONS = 6, 400


def ring() -> Mdp:
    """Move left or right on a ring; a step goes astray one time in ten, one state pays."""
    states = jnp.arange(STATES)
    left, right = (jnp.eye(STATES)[(states + step) % STATES] for step in (-1, 1))
    transition = jnp.stack([0.9 * left + 0.1 * right, 0.1 * left + 0.9 * right], axis=1)
    reward = jnp.zeros((STATES, 2)).at[0].set(1.0)
    return Mdp(transition, reward, 0.9, jnp.ones(STATES) / STATES)


def gap(kl_weight: Array, mdp: Mdp, errors: Array) -> Array:
    """How far the last policy is from the optimum, `max |q* - q_pi|`."""
    scheme = operators.md_vi(kl_weight, 0.0)
    measure = value_iteration.suboptimality(mdp)
    return measure(value_iteration.run(mdp, scheme, ITERATIONS, errors=errors).last)


def main() -> tuple[list[float], list[float]]:
    """Weights of KL to the policy before, and the gap that each leaves under the same errors."""
    errors = jax.random.normal(jax.random.key(0), (ITERATIONS, STATES, 2))
    weights = jnp.array([0.0, 0.01, 0.1, 1.0])
    gaps = jax.jit(jax.vmap(gap, in_axes=(0, None, None)))(weights, ring(), errors)
    return weights.tolist(), gaps.tolist()


if __name__ == "__main__":
    for weight, found in zip(*main(), strict=True):
        print(f"KL weight {weight:4g}: {found:.3f} from the optimum")
