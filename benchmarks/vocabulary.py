"""Jensen-Shannon over a whole vocabulary, from hidden states and heads of two language models.

    python -m benchmarks.vocabulary

The value is the mean over tokens, the gradient is by hidden states and head of the student; in
single precision. Plain JAX makes all logits and differentiates, as most people write it; TRL's
kernel is the one of its distillation trainer, which has no logits of all tokens and the whole
vocabulary either.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.divergences import plain_js
from benchmarks.table import Contestant, Row

TOKENS, WIDTH, VOCABULARY = 1024, 576, 49_152


def models() -> tuple[np.ndarray, ...]:
    """Hidden states and head of a student, then of a teacher."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((TOKENS, WIDTH), dtype=np.float32)
    head = 2 / WIDTH**0.5 * rng.standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
    other = hidden + 0.2 * rng.standard_normal(hidden.shape, dtype=np.float32)
    return hidden, head, other, head + 0.02 * rng.standard_normal(head.shape, dtype=np.float32)


def jdiv(arrays: tuple) -> Contestant:
    """A tile of tokens at a time, with the gradient along with the value."""
    import jax

    from jdiv import generators
    from jdiv.divergences import vocabulary

    def loss(hidden, head, ref_hidden, ref_head):
        p, q = vocabulary.FromHidden(hidden, head), vocabulary.FromHidden(ref_hidden, ref_head)
        row = generators.jensen_shannon()
        return vocabulary.weighted_loss(row, p, q, 1 / hidden.shape[0]).total

    tiles = vocabulary.tiles(TOKENS, VOCABULARY)
    ran = f"vocabulary.weighted_loss, {tiles.count} tiles of {tiles.tokens} tokens"
    return table.compiled("jdiv", ran, jax.value_and_grad(loss, argnums=(0, 1)), arrays)


def plain(arrays: tuple) -> Contestant:
    """All logits, then the divergence, and what automatic differentiation makes of it."""
    import jax

    def loss(hidden, head, ref_hidden, ref_head):
        return plain_js(hidden @ head.T, ref_hidden @ ref_head.T).mean()

    f = jax.value_and_grad(loss, argnums=(0, 1))
    return table.compiled("plain JAX", "logits of all tokens, jax.grad", f, arrays)


def trl(arrays: tuple) -> Contestant:
    """The kernel of TRL's distillation trainer."""
    import torch
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    hidden, head, ref_hidden, ref_head = (torch.from_numpy(np.array(x)) for x in arrays)
    everywhere = torch.ones(1, TOKENS, dtype=torch.long)

    def call() -> tuple[Any, ...]:
        leaves = [x.detach().requires_grad_() for x in (hidden, head)]
        loss, *_ = _chunked_divergence_loss(
            leaves[0][None], ref_hidden[None], leaves[1], ref_head, everywhere, 0.5
        )
        loss.backward()
        return loss.detach(), *(x.grad for x in leaves)

    ran = (
        f"trainer.distillation_trainer._chunked_divergence_loss, {torch.get_num_threads()} threads"
    )
    return Contestant("TRL", ran, call, lambda result: [x.numpy() for x in result])


def rows() -> Iterator[Row]:
    """jdiv, plain JAX, TRL."""
    import jax.numpy as jnp

    numbers = models()
    arrays = tuple(jnp.asarray(x) for x in numbers)

    def in_trl() -> Contestant:
        return trl(numbers)

    yield from table.compare(
        "Jensen-Shannon from hidden states, value and gradient",
        f"{TOKENS} tokens, width {WIDTH}, vocabulary {VOCABULARY}", "float32",
        [jdiv(arrays), plain(arrays), *table.peers(in_trl)],
        # Logits of both sides, and the gradients by hidden states and head.
        work={"operations": 8.0 * TOKENS * WIDTH * VOCABULARY}, budget=60.0,
    )  # fmt: skip


if __name__ == "__main__":
    table.show(rows())
