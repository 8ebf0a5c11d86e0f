"""Scores of tokens through tiles of the vocabulary against all logits; and kept ones."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import divergences as dv
from jdiv import generators, lm
from jdiv.lm import scoring
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer

CONFIG = Config(
    vocabulary=300, width=8, layers=1, heads=2, key_heads=1, head_width=4, hidden=16, logit_cap=5.0
)


def test_scores_are_those_of_all_logits():
    model, other = (Transformer.random(CONFIG, jax.random.key(i), float) for i in (0, 1))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 6))
    mask = np.arange(6)[None] < np.array([[6], [4]])

    @jax.jit
    def both(model, other):
        p, q = lm.logits(model, tokens)[:, :-1], lm.logits(other, tokens)[:, :-1]
        log_p = jax.nn.log_softmax(p)
        plain = (
            jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0],
            -(jnp.exp(log_p) * log_p).sum(-1),
            dv.jensen_shannon(p, q),
        )
        tiled = (
            scoring.log_probs(model, tokens, mask=mask, tile=3),
            scoring.entropies(model, tokens, mask=mask, tile=3),
            scoring.divergences(
                model, other, tokens, generator=generators.jensen_shannon(), mask=mask, tile=3
            ),
        )
        return plain, tiled

    for a, b in zip(*both(model, other), strict=True):
        np.testing.assert_allclose(np.where(mask[:, 1:], a, 0), b, atol=1e-5)


def test_kept_scores_belong_to_the_model_and_the_data(tmp_path):
    """Read again without the model being asked; other tensors or tokens are computed."""
    model, tokens = Transformer.random(CONFIG, jax.random.key(0)), np.arange(6)[None]
    first = scoring.kept_log_probs(tmp_path, model, tokens)
    (file,) = tmp_path.iterdir()
    np.save(file, first + 1)  # to see that it is read
    np.testing.assert_array_equal(scoring.kept_log_probs(tmp_path, model, tokens), first + 1)
    other = Transformer.random(CONFIG, jax.random.key(1))
    assert np.abs(scoring.kept_log_probs(tmp_path, other, tokens) - first).max() > 0.01
    scoring.kept_log_probs(tmp_path, model, tokens + 1)
    assert len(list(tmp_path.iterdir())) == 3
