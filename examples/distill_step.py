"""Distillation: a student of low rank learns a teacher's next tokens, by any row of the table.

    python examples/distill_step.py

Teacher first is forward KL (it covers), student first reverse KL (it seeks modes). DistiLLM's skew
of .1 is the weight of the first argument: `dv.skew_kl(teacher, student, skew=0.9)` here.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jdiv import divergences as dv
from jdiv.policy import tokens

WORDS, RANK, TEMPERATURE = 32, 4, 2.0


def loss(params: dict[str, Array], before: Array, teacher_logits: Array, mask: Array) -> Array:
    """Jensen-Shannon of the tempered next tokens, averaged over all tokens that count."""
    student_logits = params["in"][before] @ params["out"]
    per_token = dv.jensen_shannon(teacher_logits / TEMPERATURE, student_logits / TEMPERATURE)
    return TEMPERATURE**2 * tokens.token_mean(per_token, mask)


def main(steps: int = 200) -> tuple[float, float]:
    """KL of the teacher from the student over all tokens, before and after."""
    keys = jax.random.split(jax.random.key(0), 4)
    teacher = (
        2.0 * jax.random.normal(keys[0], (WORDS, RANK)) @ jax.random.normal(keys[1], (RANK, WORDS))
    )
    params = {
        "in": 0.1 * jax.random.normal(keys[2], (WORDS, RANK)),
        "out": 0.1 * jax.random.normal(keys[3], (RANK, WORDS)),
    }
    before = jnp.arange(2 * WORDS).reshape(4, -1) % WORDS  # the tokens of four texts
    mask = jnp.arange(before.shape[1]) < jnp.array([[16], [12], [9], [16]])
    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(loss)(params, before, teacher[before], mask)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def left(params):
        per_token = dv.kl(teacher[before], params["in"][before] @ params["out"])
        return tokens.token_mean(per_token, mask)

    state, start = optimizer.init(params), float(left(params))
    for _ in range(steps):
        params, state = step(params, state)
    return start, float(left(params))


if __name__ == "__main__":
    print("KL(teacher‖student): {:.3f} before, {:.3f} after".format(*main()))
