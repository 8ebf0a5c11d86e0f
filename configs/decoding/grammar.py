"""A grammar of JSON on a real model: SmolLM2 writes lists of true, false, null and nothing else.

    python -m experiments.run --config=configs/decoding/grammar.py

A few seconds; the model's laws along all 89 lists of up to six tokens are kept in a file. An
automaton over characters is lifted onto the tokens of its vocabulary. To expect: every text is read
by a JSON parser; the mean weight of texts that were drawn token by token is the probability that
the model writes such a list; without weights they have another law. No number was known.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Particles of all samplers for each seed."""
    config = defaults.get_config("decoding/grammar", scale)
    config.particles = {"smoke": 100, "quick": 400, "full": 20_000}[scale]
    # At 0 every token is allowed, and the last one ends a text; the power of the weights.
    config.sweep = ConfigDict({"constrained": (1.0,), "weighted": (1.0,), "seed": tuple(range(8))})
    return config
