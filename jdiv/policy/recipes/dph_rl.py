"""DPH-RL (code: core_algos.py): a divergence to the initial policy where it solves the question."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, estimators
from jdiv.divergences.generator import Generator
from jdiv.types import SequenceLogProbs


def dph_rl_penalty(
    log_probs: SequenceLogProbs,
    ref_log_probs: SequenceLogProbs,
    solved: ArrayLike,
    *,
    generator: Generator,
) -> Array:
    """`f(pi/pi_ref)` of samples of the initial policy, for the questions that it solves already.

    One number for each sample, to be averaged. Any row of the table: reverse_kl is the forward
    KL(ref‖pi), the alpha of the code is this alpha of `1 - a`, its JS twice jensen_shannon. With
    the samples fixed its gradient is the divergence's. Shapes: log-probabilities of sequences
    `[...]` twice and booleans, to the same.

    Reference: DPH-RL, its code (core_algos.py).
    """
    log_probs, log_ref = checks.alike(log_probs=log_probs, ref_log_probs=ref_log_probs)
    solved = checks.as_mask("solved", solved)
    checks.same_shape(log_probs=log_probs, solved=solved)
    log_probs = jnp.where(solved, log_probs, log_ref)
    return jnp.where(solved, estimators.centered_from_q(generator, log_probs, log_ref), 0)
