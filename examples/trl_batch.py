"""A batch as TRL has it, PyTorch tensors in flat rows, through a loss of jdiv and back.

    python examples/trl_batch.py

`jnp.from_dlpack(tensor)` takes a tensor without a copy, `torch.from_dlpack(array)` brings the
gradient back; NumPy arrays stand for the tensors here. Rewards are `[prompts * generations]`; an
advantage is relative to the answers of its prompt, so they become `[prompts, generations]` first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiv.policy import advantages, clipped, kl_terms, tokens

GENERATIONS, BETA = 4, 0.04


def grpo(log_probs: Array, batch: dict[str, Array]) -> Array:
    """The loss of `GRPOConfig(loss_type="grpo")`; `token_mean` is that of `loss_type="bnpo"`.

    But for the spread of a group: TRL divides by that of n - 1 and adds 1e-4.
    """
    each = advantages.grpo_advantages(batch["rewards"].reshape(-1, GENERATIONS)).reshape(-1)
    mask = batch["completion_mask"]  # 0 and 1, or booleans
    loss = clipped.ppo_clip(log_probs, batch["old_per_token_logps"], each, mask).loss
    kl = kl_terms.kl_penalty(log_probs, batch["ref_per_token_logps"], mask)
    return tokens.sequence_mean(loss + BETA * kl, mask)


def batch() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Log-probabilities of the policy, and what a trainer has collected: two prompts, made up."""
    random = np.random.default_rng(0)
    shape = 2 * GENERATIONS, 5
    log_probs, old, ref = (-random.exponential(size=shape).astype(np.float32) for _ in range(3))
    lengths = random.integers(1, 6, (shape[0], 1))
    return log_probs, {
        "rewards": np.array([1, 0, 0, 1, 0, 0, 0, 1], np.float32),
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "completion_mask": (np.arange(5) < lengths).astype(int),
    }


def main() -> tuple[float, np.ndarray]:
    """The loss of the batch and its gradient by the log-probabilities."""
    value, gradient = jax.jit(jax.value_and_grad(grpo))(*jax.tree.map(jnp.asarray, batch()))
    return float(value), np.asarray(gradient)


if __name__ == "__main__":
    print("loss {:.4f}, gradient\n{}".format(*main()))
