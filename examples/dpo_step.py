"""DPO in a plain JAX loop: a small autoregressive policy learns which of two answers is preferred.

    python examples/dpo_step.py

The loss takes four arrays, the log-probabilities of whole answers; where they come from is the
trainer's own affair. Another divergence is another `generator=` in `f_dpo`.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jdiv.alignment import preference

WORDS, LENGTH, WIDTH, PAIRS = 8, 6, 32, 64


def init(key: Array) -> dict[str, Array]:
    """Weights of a network that reads the token before and the place, and predicts the next."""
    first, second, third = jax.random.split(key, 3)
    return {
        "token": 0.5 * jax.random.normal(first, (WORDS + 1, WIDTH)),
        "place": 0.5 * jax.random.normal(second, (LENGTH, WIDTH)),
        "out": jax.random.normal(third, (WIDTH, WORDS)) / WIDTH**0.5,
    }


def log_prob(params: dict[str, Array], answers: Array) -> Array:
    """Log-probabilities `[n]` of answers `[n, LENGTH]`: one sum per sequence."""
    before = jnp.pad(answers[:, :-1] + 1, ((0, 0), (1, 0)))
    hidden = jnp.tanh(params["token"][before] + params["place"])
    log_probs = jax.nn.log_softmax(hidden @ params["out"])
    return jnp.sum(jnp.take_along_axis(log_probs, answers[..., None], axis=-1), axis=(1, 2))


def loss(params: dict[str, Array], batch: dict[str, Array]) -> Array:
    """DPO's loss of a batch: the reference's log-probabilities are data, computed once."""
    chosen, rejected = log_prob(params, batch["chosen"]), log_prob(params, batch["rejected"])
    losses = preference.dpo(chosen, rejected, batch["ref_chosen"], batch["ref_rejected"], beta=0.5)
    return jnp.mean(losses)


def main(steps: int = 100) -> tuple[float, float]:
    """Share of pairs in the preferred order before and after training."""
    key_params, key_pairs = jax.random.split(jax.random.key(0))
    params = init(key_params)
    pairs = jax.random.randint(key_pairs, (PAIRS, 2, LENGTH), 0, WORDS)
    # The judge counts sevens, and in a tie the larger sum.
    score = jnp.sum(100 * (pairs == 7) + pairs, axis=-1)
    chosen, rejected = jnp.argmax(score, axis=1), jnp.argmin(score, axis=1)
    rows = jnp.arange(PAIRS)
    batch = {"chosen": pairs[rows, chosen], "rejected": pairs[rows, rejected]}
    batch |= {f"ref_{name}": log_prob(params, answers) for name, answers in batch.items()}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    def accuracy(params):
        ahead = log_prob(params, batch["chosen"]) - log_prob(params, batch["rejected"])
        return float(jnp.mean(ahead > 0))

    state, start = optimizer.init(params), accuracy(params)
    for _ in range(steps):
        params, state = step(params, state)
    return start, accuracy(params)


if __name__ == "__main__":
    print("pairs in the preferred order: {:.2f} before, {:.2f} after".format(*main()))
