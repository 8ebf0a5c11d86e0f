"""Decoding under a constraint: calls, unbiased weights, and what local renormalization gets wrong.

    python -m experiments.run --config=configs/decoding/constrained.py

A few seconds. Seven tokens of which three, of mass .25, are allowed: exclusion costs KL = log 4;
rejection takes 4 calls, tokens without replacement 2.5357, weights that are unbiased 3.54 and more.
Texts of two tokens that have to end in `a`: local renormalization writes .9 and .1 where the law is
.5 and .5, which weights put right at an effective sample size of .36.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """A law of seven tokens, and a chain of two."""
    config = defaults.get_config("decoding/constrained", scale)
    config.probabilities = (0.35, 0.25, 0.15, 0.1, 0.08, 0.05, 0.02)
    config.allowed = (False, False, True, False, True, False, True)
    # How often a token of each sampler is drawn, and the particles of a text.
    config.draws = {"smoke": 2000, "quick": 10_000, "full": 200_000}[scale]
    config.sweep = ConfigDict(
        {"first": (0.9,), "weighted": (1.0,), "also": (0.0,), "seed": tuple(range(8))}
    )
    return config
