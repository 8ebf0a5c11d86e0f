"""Samplers beside the tempered law of the same entropy: what each costs in KL, and how it repeats.

    python -m experiments.run --config=configs/decoding/samplers.py

A quarter of a minute on two cores. Laws of SmolLM2 at 24 places of three texts, kept in a file, and
Markov chains, of which everything is exact. Temperature, top-k, top-p, min-p, eta and Bregman
decoders with their best k. To expect: KL(sampler‖model) of a truncation is -log of the mass that it
keeps, that of any sampler at least that of the tempered law of its entropy, by
T KL(sampler‖tempered). No numbers were known.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The most probable tokens of each law, and chains of a few states."""
    config = defaults.get_config("decoding/samplers", scale)
    # Of each law the most probable ones: 256 have .97 of its mass.
    config.tokens = {"smoke": 128, "quick": 256, "full": 49152}[scale]
    config.chains = {"smoke": 3, "quick": 6, "full": 50}[scale]
    config.states = 16
    # Of the lognormal noise on a chain's Zipf law.
    config.noise = 1.5
    # Tokens back to which a repetition counts.
    config.window = 16
    # At 0 the temperature is .7 whatever the sampler's entropy is; and whether whole texts are
    # tempered or one token after the other.
    config.sweep = ConfigDict({"matched": (1.0,), "whole": (1.0,), "seed": (0,)})
    return config
