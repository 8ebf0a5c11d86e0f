"""DPH-RL: a divergence to the initial policy on the questions that it solves already."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, estimators
from jdiv.divergences.generator import Generator


def dph_rl_penalty(
    generator: Generator,
    sequence_log_probs: ArrayLike,
    ref_sequence_log_probs: ArrayLike,
    solved: ArrayLike,
) -> Array:
    """`f(pi/pi_ref)` of samples of the initial policy, for the questions that it solves already.

    Any row of the table: reverse_kl is the forward KL(ref‖pi), the alpha of the code is this alpha
    of `1 - a`, its JS twice jensen_shannon. With the samples fixed its gradient is the
    divergence's. Shapes: `[...]` twice and booleans, to the same.

    Reference: DPH-RL, code (core_algos.py).
    """
    log_probs, log_ref = checks.alike(
        sequence_log_probs=sequence_log_probs, ref_sequence_log_probs=ref_sequence_log_probs
    )
    log_probs = jnp.where(solved, log_probs, log_ref)
    return jnp.where(solved, estimators.centered_from_q(generator, log_probs, log_ref), 0)
