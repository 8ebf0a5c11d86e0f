"""Reward models: a transformer with one score in place of logits, learned from comparisons.

The score of an answer is a linear function of the hidden state of its last token, `config.scores`
says that there is one. `lm.save` writes a folder that `transformers` reads as a model for sequence
classification. The loss is one for `train.update`::

    model = reward_model.begin(model, key)
    state = train.begin(model, optimizer)
    state, metrics = train.update(
        state, batch, reward_model.bradley_terry, config=model.config, optimizer=optimizer
    )

Rewards that only differ by a number for each prompt order its answers in the same way: comparisons
do not tell them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiv import checks
from jdiv.alignment import margins
from jdiv.alignment.margins import Margin
from jdiv.lm.model import Transformer
from jdiv.lm.tokenizer import Tokenizer
from jdiv.lm.train import Metrics, Text
from jdiv.types import PerSequence, RandomKey


class Compared(NamedTuple):
    """Answers of which one is preferred.

    Fields:
        chosen: Prompt and preferred answer, one a row.
        rejected: The other answer after the same prompt.
        lead: `[batch]` by how much the chosen one has to be ahead, or None for 0.
    """

    chosen: Text
    rejected: Text
    lead: Array | None = None


def begin(model: Transformer, key: RandomKey) -> Transformer:
    """The model with a score, normal with variance 1/width, in place of what makes its logits."""
    config = dataclasses.replace(model.config, scores=1)
    tensors = {name: x[...] for name, x in model.tensors.items() if name != "head"}
    dtype = tensors["embedding"].dtype
    score = config.width**-0.5 * jax.random.normal(key, (1, config.width), checks.wide(dtype))
    return Transformer(config, tensors | {"score": score.astype(dtype)})


def scores(model: Transformer, batch: Text) -> PerSequence:
    """The score of each row, at the last token of its answer. Shapes: to `[batch]`.

    What comes behind that token has no influence. NaN for a row without an answer.
    """
    if model.config.scores != 1:
        raise ValueError(f"model must have one score, got {model.config.scores} of its config")
    hidden, _ = model(batch.tokens, batch.positions, batch.segments, remember=True)
    mask = jnp.asarray(batch.mask)
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    state = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    head = model.tensors["score"][...][0]
    found = jnp.einsum("bw,w->b", state, head, preferred_element_type=checks.wide(hidden.dtype))
    return jnp.where(jnp.any(mask, axis=1), found, jnp.nan)


def bradley_terry(
    model: Transformer, batch: Compared, *, margin: Margin = margins.logistic
) -> tuple[Array, Metrics]:
    """`margin(score of chosen - score of rejected - lead)`, the mean over pairs.

    With the logistic one it is the likelihood `-log sigmoid` of Bradley and Terry. The metric
    "accuracy" is the share of pairs that the scores order as the data do.

    Reference: Ouyang et al. 2022 (arXiv:2203.02155), equation 1; the lead as in Llama 2
    (arXiv:2307.09288), equation 2.
    """
    ahead = scores(model, batch.chosen) - scores(model, batch.rejected)
    lead = 0 if batch.lead is None else jax.lax.stop_gradient(batch.lead).astype(ahead.dtype)
    loss = margin(ahead - lead)
    right = (ahead > 0).astype(loss.dtype)
    return loss.mean(), {"weight": jnp.asarray(loss.size, loss.dtype), "accuracy": right.mean()}


def reward(model: Transformer, tokenizer: Tokenizer) -> Callable[[str, str], float]:
    """The score as a function of texts, `(prompt, answer) -> number`, as `lm.rewards` has them.

    By the chat template if there is one; otherwise the answer follows the prompt, and then the end.
    """
    judge = jax.jit(scores)

    def found(prompt: str, answer: str) -> float:
        tokens = _tokens(tokenizer, prompt, answer)
        room = -len(tokens) % 32  # few shapes, so few programs; what is behind has no influence
        row = np.pad(np.asarray(tokens, np.int32), (0, room))[None]
        return float(judge(model, Text(row, np.arange(row.shape[1])[None] == len(tokens) - 1))[0])

    return found


def _tokens(tokenizer: Tokenizer, prompt: str, answer: str) -> list[int]:
    """A prompt and its answer."""
    if tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return tokenizer.encode(tokenizer.chat(chat, answer=False))
    end = [] if tokenizer.end is None else [tokenizer.end]
    return [*tokenizer.encode(prompt), *tokenizer.encode(answer), *end]
