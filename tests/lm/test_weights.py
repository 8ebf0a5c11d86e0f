"""Weights by layer: the way there and back, and merging layer by layer beside NumPy."""

import jax
import numpy as np

from jdiv.alignment import averaging
from jdiv.lm import weights
from jdiv.lm.config import Config

CONFIG = Config(vocabulary=5, width=4, layers=3, heads=1, key_heads=1, head_width=4, hidden=6)
LAYERED = {name for name, tensor in weights.tensors(CONFIG).items() if tensor.layered}


def models(count):
    rng = np.random.default_rng(0)
    shapes = {name: tensor.shape for name, tensor in weights.tensors(CONFIG).items()}
    return [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def arc(a, b):
    """The middle of the arc from a to b, by NumPy in double precision."""
    omega = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return (a + b) * np.sin(omega / 2) / np.sin(omega)


def test_layers_are_vectors_and_back():
    (model,) = models(1)
    vectors = weights.layer_vectors(CONFIG, model)
    assert len(vectors) == CONFIG.layers + 1
    assert sum(x.size for x in vectors) == weights.count(CONFIG)
    back = weights.from_layer_vectors(CONFIG, vectors)
    assert back.keys() == model.keys()
    for name, x in model.items():
        np.testing.assert_array_equal(back[name], x)


def test_models_merge_layer_by_layer():
    start, first, second = models(3)
    apart = lambda model: weights.layer_vectors(CONFIG, model)

    @jax.jit
    def merge(start, both):
        merged = averaging.merge(apart(start), jax.vmap(apart)(both))
        return weights.from_layer_vectors(CONFIG, merged)

    both = {name: np.stack([first[name], second[name]]) for name in start}
    found = merge(start, both)
    task = lambda model, name: np.float64(model[name]) - start[name]
    for layer in (*range(CONFIG.layers), None):
        names = sorted(LAYERED if layer is not None else start.keys() - LAYERED)
        of_layer = lambda x: x.ravel() if layer is None else x[layer].ravel()  # noqa: B023
        joined = lambda model: np.concatenate([of_layer(task(model, name)) for name in names])  # noqa: B023
        np.testing.assert_allclose(joined(found), arc(joined(first), joined(second)), atol=2e-6)
