"""Sampling with a cache of keys and values, beside reading all tokens again for each new one.

    python -m benchmarks.sampling

256 tokens after prompts of 16, by a transformer before training, from keys that are the same: the
tokens are, too. Both are one compiled program. transformers samples from the same weights with its
own cache and its own random numbers.
"""

import functools
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.table import Contestant, Row

BATCH, PROMPT, LENGTH = 4, 16, 256
SHAPE = dict(
    vocabulary=2048, width=128, layers=4, heads=4, key_heads=2, head_width=32, hidden=352
)  # fmt: skip


def cached(model: Any, prompts: Any, key: Any) -> Contestant:
    """`sampling.generate`."""
    from jdiv.lm import sampling

    f = functools.partial(sampling.generate, max_tokens=LENGTH)
    ran = "lm.generate"
    return table.compiled("jdiv", ran, f, (model, prompts, key), numbers=lambda x: [x.tokens])


def whole(model: Any, prompts: Any, key: Any) -> Contestant:
    """The same samples, the model called on all tokens for each of them."""
    import jax
    import jax.numpy as jnp

    from jdiv.lm import sampling

    def f(model, prompts, key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(BATCH))

        def step(count, tokens):
            hidden, _ = model(tokens)
            logits = model.logits(hidden[:, PROMPT + count - 1])
            each = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
            new = jax.vmap(jax.random.categorical)(each, sampling.law(logits))
            return tokens.at[:, PROMPT + count].set(new.astype(tokens.dtype))

        tokens = jnp.pad(prompts, ((0, 0), (0, LENGTH)))
        return jax.lax.fori_loop(0, LENGTH, step, tokens)[:, PROMPT:]

    return table.compiled("without a cache", "the model on all tokens", f, (model, prompts, key))


def in_transformers(model: Any, prompts: np.ndarray) -> Contestant:
    """`generate` of transformers; its samples are others."""
    import torch
    import transformers

    from jdiv import lm

    with tempfile.TemporaryDirectory() as folder:
        lm.save(model, folder, architecture="llama")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.from_numpy(prompts.astype(np.int64))
    options = dict(
        do_sample=True, top_k=0, max_new_tokens=LENGTH, min_new_tokens=LENGTH, pad_token_id=0,
        attention_mask=torch.ones_like(tokens),
    )  # fmt: skip

    def call() -> Any:
        with torch.no_grad():
            return theirs.generate(tokens, **options)

    ran = f"AutoModelForCausalLM.generate, {torch.get_num_threads()} threads"
    return Contestant("transformers", ran, call, None)


def rows() -> Iterator[Row]:
    """With a cache, without one, transformers."""
    import jax
    import jax.numpy as jnp

    from jdiv.lm.config import Config
    from jdiv.lm.model import Transformer

    model = Transformer.random(Config(**SHAPE), jax.random.key(0))
    prompts = np.random.default_rng(0).integers(0, SHAPE["vocabulary"], (BATCH, PROMPT))
    prompts = prompts.astype(np.int32)
    given = model, jnp.asarray(prompts), jax.random.key(1)

    def transformers() -> Contestant:
        return in_transformers(model, prompts)

    yield from table.compare(
        "sampling", f"{BATCH} x {LENGTH} tokens, 4 layers of width {SHAPE['width']}", "float32",
        [cached(*given), whole(*given), *table.peers(transformers)],
        rounds=5, budget=30.0,
    )  # fmt: skip


if __name__ == "__main__":
    table.show(rows())
