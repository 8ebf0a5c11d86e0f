"""GRPO in a plain JAX loop, with a KL term whose gradient is the one of KL(policy‖reference).

    python examples/grpo_step.py

Sampling and the network are the trainer's own; from jdiv come the advantages, the clip, the average
and the KL. The KL goes into the rewards, as k1 to go; GRPO's own term is the commented line, whose
gradient is another one (docs: which KL term has which gradient).
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jdiv.policy import advantages, clipped, kl_terms, tokens

WORDS, LENGTH, END, QUESTIONS, GROUP, BETA = 6, 8, 0, 16, 8, 0.05


def log_softmax(params: Array) -> Array:
    """Log-probabilities `[LENGTH, WORDS, WORDS]` of the next token, by place and token before."""
    return jax.nn.log_softmax(params)


def sample(params: Array, key: Array) -> tuple[Array, Array]:
    """Answers `[QUESTIONS, GROUP, LENGTH]`, and the mask of their tokens, the end included."""
    table, shape = log_softmax(params), (QUESTIONS, GROUP)

    def draw(before, inputs):
        place, key = inputs
        token = jax.random.categorical(key, table[place, before])
        return token, token

    keys = jax.random.split(key, LENGTH)
    _, answers = jax.lax.scan(draw, jnp.ones(shape, int), (jnp.arange(LENGTH), keys))
    answers = jnp.moveaxis(answers, 0, -1)
    return answers, jnp.cumsum(answers == END, axis=-1) - (answers == END) == 0


def log_probs_of(params: Array, answers: Array) -> Array:
    """Log-probabilities of the tokens `[..., LENGTH]`; behind the end they are not looked at."""
    before = jnp.concatenate([jnp.ones_like(answers[..., :1]), answers[..., :-1]], axis=-1)
    return log_softmax(params)[jnp.arange(LENGTH), before, answers]


def loss(params: Array, batch: dict[str, Array]) -> Array:
    """The clipped loss, averaged over all tokens."""
    log_probs, mask = log_probs_of(params, batch["answers"]), batch["mask"]
    found = clipped.ppo_clip(log_probs, batch["old"], batch["advantages"], mask, high=0.28)
    per_token = found.loss  # + BETA * kl_terms.kl_penalty(log_probs, batch["ref"], mask)
    flat = (-1, LENGTH)
    return tokens.token_mean(per_token.reshape(flat), mask.reshape(flat))


@functools.partial(jax.jit, static_argnames="optimizer")
def step(params, state, ref_params, key, *, optimizer):
    """Samples a batch and makes two updates of it; also the mean reward and KL."""
    answers, mask = sample(params, key)
    old, ref = log_probs_of(params, answers), log_probs_of(ref_params, answers)
    rewards = jnp.sum(jnp.where(mask, answers == 3, 0), axis=-1).astype(old.dtype)
    paid = kl_terms.kl_rewards(old, ref, jnp.zeros_like(rewards), mask, coefficient=BETA)
    each = advantages.grpo_advantages(rewards)[..., None] + tokens.to_go(paid, mask)
    batch = {"answers": answers, "mask": mask, "old": old, "ref": ref, "advantages": each}
    for _ in range(2):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        params = optax.apply_updates(params, updates)
    kl = -jnp.mean(jnp.sum(paid, axis=-1)) / BETA
    return params, state, jnp.mean(rewards), kl


def main(steps: int = 40) -> tuple[float, float, float]:
    """Mean number of threes in an answer at first and at last, and the KL that it cost."""
    ref_params = 0.3 * jax.random.normal(jax.random.key(0), (LENGTH, WORDS, WORDS))
    params, optimizer = ref_params, optax.adam(0.05)
    state, rewards = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(1), steps):
        params, state, reward, kl = step(params, state, ref_params, key, optimizer=optimizer)
        rewards.append(float(reward))
    return rewards[0], rewards[-1], float(kl)


if __name__ == "__main__":
    print("threes in an answer: {:.2f} at first, {:.2f} at last, at a KL of {:.2f}".format(*main()))
