"""A vocabulary's losses from hidden states, tile by tile; and what k log-probabilities tell.

    python -m experiments.run --config=configs/estimation/vocabulary.py

A few seconds. Expect values and gradients of the plain losses to 1e-10, and KL with the tail as one
token to lack the teacher's mass of the rest times the KL within it.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Sizes at which logits of all tokens can be had."""
    config = defaults.get_config("estimation/vocabulary", scale)
    config.tokens = {"smoke": 13, "quick": 33, "full": 257}[scale]
    config.vocabulary = {"smoke": 120, "quick": 500, "full": 5000}[scale]
    config.width = 16
    # Tokens at a time, which need not divide them.
    config.tile = 8
    # Of the logits, and their size.
    config.soft_cap = 8.0
    config.spread = 4.0
    # How many log-probabilities a server sends.
    config.known = (1, 8, 64)
    config.sweep = ConfigDict(
        {"capped": (1.0,), "seed": tuple(range(2 if scale == "smoke" else 4))}
    )
    return config
