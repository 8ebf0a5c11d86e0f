"""The transformer: positions, segments, windows, the cache, and half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.lm.config import Config
from jdiv.lm.model import Transformer, empty_cache
from tests.checks import refused

SMALL = Config(vocabulary=13, width=8, layers=2, heads=4, key_heads=2, head_width=4, hidden=16)
CONFIGS = {
    "rotary": SMALL,
    "window": Config(**{**vars(SMALL), "windows": (3, None)}),
    "learned": Config(**{**vars(SMALL), "rotary_base": None, "norm": "layer", "gated": False,
                         "activation": "gelu", "attention_bias": True, "other_biases": True}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    """Of each kind, in double precision."""
    with jax.enable_x64(True):
        return Transformer.random(CONFIGS[request.param], jax.random.key(1), float)


def test_a_token_sees_what_is_before_it_in_its_segment_and_window(model):
    """Found by derivatives: which embeddings a hidden state depends on."""
    tokens = jnp.arange(9)[None] % 13
    positions = jnp.array([[0, 1, 2, 3, 4, 5, 0, 1, 2]])
    segments = jnp.array([[0, 0, 0, 0, 0, 0, 1, 1, 1]])

    @jax.jit
    def influence(model):
        def hidden(change):
            # Each position's token has a row of the embedding of its own.
            tensors = {name: x[...] for name, x in model.tensors.items()}
            tensors["embedding"] = tensors["embedding"].at[tokens[0]].add(change)
            return Transformer(model.config, tensors)(tokens, positions, segments)[0][0]

        return jnp.abs(jax.jacrev(hidden)(jnp.zeros((9, 8)))).sum((1, 3))

    found = np.asarray(influence(model)) > 1e-9
    distance = np.asarray(positions).T - np.asarray(positions)
    allowed = (distance >= 0) & (np.asarray(segments) == np.asarray(segments).T)
    if model.config.windows is not None:
        # Two steps back in the first layer, and everything in the second: all, in two layers.
        assert model.config.windows == (3, None)
    np.testing.assert_array_equal(found, allowed)


def test_windows_end_where_they_should():
    """One layer with a window of 3 sees itself and two tokens before."""
    config = Config(**{**vars(SMALL), "layers": 1, "windows": (3,)})
    model = Transformer.random(config, jax.random.key(2), float)
    tokens = jnp.arange(6)[None]
    changed = tokens.at[0, 0].set(12)
    hidden = jax.jit(lambda model, tokens: model(tokens)[0][0])
    moved = np.abs(np.asarray(hidden(model, tokens) - hidden(model, changed))).max(-1) > 1e-12
    assert moved.tolist() == [True, True, True, False, False, False]


def test_a_packed_row_is_the_sequences_one_by_one(model):
    """Segments with positions of their own against batches of one."""
    first, second = jnp.array([[3, 1, 4, 1, 5]]), jnp.array([[9, 2, 6]])
    packed = jnp.concatenate([first, second], axis=1)
    positions = jnp.array([[0, 1, 2, 3, 4, 0, 1, 2]])
    segments = jnp.array([[0, 0, 0, 0, 0, 1, 1, 1]])
    hidden = jax.jit(lambda model, *inputs: model(*inputs)[0])
    whole = hidden(model, packed, positions, segments)[0]
    np.testing.assert_allclose(whole[:5], hidden(model, first)[0], atol=1e-12)
    np.testing.assert_allclose(whole[5:], hidden(model, second)[0], atol=1e-12)


def test_with_a_cache_it_is_the_same(model):
    """A prompt and then a token at a time, against all at once."""
    tokens = jnp.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])

    @jax.jit
    def both(model):
        whole = model(tokens)[0]
        hidden, cache = model(tokens[:, :3], cache=empty_cache(model.config, 2, 7, float))
        parts = [hidden]
        for i in range(3, 6):
            position = jnp.full((2, 1), i)
            hidden, cache = model(tokens[:, i : i + 1], position, position * 0, cache)
            parts.append(hidden)
        return whole, jnp.concatenate(parts, axis=1), cache.filled

    whole, parts, filled = both(model)
    np.testing.assert_allclose(parts, whole, atol=1e-12)
    assert filled == 6


def test_half_precision_and_gradients_that_are_computed_again():
    """Positions beyond 256 are told apart in bfloat16; `remember` changes no gradient."""
    model = Transformer.random(SMALL, jax.random.key(3), jnp.bfloat16)
    tokens = jnp.array([[3, 1, 4, 1, 5]])
    at = lambda start: (start + jnp.arange(5))[None]
    hidden = jax.jit(lambda model, positions: model(tokens, positions)[0])
    near, far = hidden(model, at(0)), hidden(model, at(1000))
    assert near.dtype == jnp.bfloat16
    # Rotary attention knows distances only.
    assert jnp.max(jnp.abs(near - far)).astype(float) < 0.05

    wide = Transformer.random(SMALL, jax.random.key(3), float)

    def gradient(remember):
        total = lambda model: jnp.sum(model(tokens, remember=remember)[0] ** 2)
        return jax.jit(jax.grad(total))(wide)

    for a, b in zip(*map(jax.tree.leaves, (gradient(False), gradient(True))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_sizes_that_do_not_fit_are_refused():
    change = lambda **sizes: lambda: Config(**{**vars(SMALL), **sizes})
    refused(ValueError, ["key_heads"], change(key_heads=3))
    refused(ValueError, ["head_width", "even"], change(head_width=3))
    refused(ValueError, ["windows"], change(windows=(1,)))
    refused(ValueError, ["activation"], change(activation="relu"))
    model = Transformer.random(SMALL, jax.random.key(0))
    refused(ValueError, ["tokens", "[batch, tokens]"], lambda: model(jnp.zeros(3, int)))
