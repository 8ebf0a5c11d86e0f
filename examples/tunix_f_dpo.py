"""Tunix trains, a loss of jdiv takes the place of its own: f-DPO with Jensen-Shannon.

    pip install google-tunix==0.1.7
    python examples/tunix_f_dpo.py

`PeftTrainer` takes any function of an NNX model, and a model of jdiv.lm is one; so is a model of
Tunix, from which a loss needs log-probabilities alone. Preferred answers are those with more of the
token 0, so the implicit rewards learn to count it.
"""

import functools
from collections.abc import Iterator

import jax
import numpy as np
import optax
from jax import Array

from jdiv import generators, lm
from jdiv.lm import train

BATCH, PROMPT, ANSWER = 16, 3, 8
SIZES = {"width": 32, "layers": 2, "heads": 2, "key_heads": 1, "head_width": 16, "hidden": 64}
LOSS = functools.partial(train.f_dpo, beta=0.1, generator=generators.jensen_shannon())


def loss(model: lm.Transformer, pairs: train.Pairs) -> tuple[Array, train.Metrics]:
    """What Tunix calls: the model and, by name, what `with_gen_model_input_fn` gives."""
    return LOSS(model, pairs)


def pairs(ref: lm.Transformer, number: int) -> Iterator[train.Pairs]:
    """Batches of two random answers to a prompt, the one with more zeros first."""
    random, mask = np.random.default_rng(0), np.arange(PROMPT + ANSWER) >= PROMPT
    log_probs = jax.jit(lambda text: train.log_probs(ref, text).sum(axis=-1))
    for _ in range(number):
        prompt = np.repeat(random.integers(0, 8, (BATCH, 1, PROMPT)), 2, axis=1)
        tokens = np.concatenate([prompt, random.integers(0, 8, (BATCH, 2, ANSWER))], axis=2)
        zeros = (tokens[..., PROMPT:] == 0).sum(axis=2)
        tokens = np.take_along_axis(tokens, np.argsort(-zeros, axis=1)[..., None], axis=1)
        both = [train.Text(tokens[:, i], np.tile(mask, (BATCH, 1))) for i in range(2)]
        yield train.Pairs(*both, *map(log_probs, both))


def main(steps: int = 100) -> tuple[float, float]:
    """Shares of unseen pairs that the implicit rewards order rightly, before and after."""
    from tunix.sft import peft_trainer

    config = lm.Config(vocabulary=8, **SIZES)
    ref, model = (lm.Transformer.random(config, jax.random.key(0)) for _ in range(2))
    *batches, unseen = pairs(ref, steps + 1)
    accuracy = jax.jit(lambda model: LOSS(model, unseen)[1]["accuracy"])
    before = float(accuracy(model))
    trainer = peft_trainer.PeftTrainer(
        model,
        optax.adam(1e-3),
        peft_trainer.TrainingConfig(eval_every_n_steps=steps, max_steps=steps),
    )
    trainer.with_loss_fn(loss, has_aux=True)
    trainer.with_gen_model_input_fn(lambda pairs: {"pairs": pairs})
    trainer.train(batches)
    return before, float(accuracy(model))


if __name__ == "__main__":
    print("accuracy before {:.3f}, after {:.3f}".format(*main()))
