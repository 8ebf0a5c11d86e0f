"""Top-k decoding as the least divergence: how the lost mass is shared, and how many tokens to keep.

    python -m experiments.run --config=configs/decoding/top_k.py

Half a minute on two cores. Noarov et al. 2025, primal and dual Bregman decoders: the top three of
(.5, .3, .1, .06, .04) share the mass as .54467 .33482 .12051 at alpha = 1.5, by the dual .54434
.33477 .12089; the cheapest of all supports is the k most probable tokens; a binary search finds
the same k as trying all of them, 5, 4, 3, 2, 1 at rising prices, and for vectors of 50,000.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """One law of five tokens, random ones of six, and Zipf's of a whole vocabulary."""
    config = defaults.get_config("decoding/top_k", scale)
    config.probabilities = (0.5, 0.3, 0.1, 0.06, 0.04)
    # Random laws of six tokens, of which all supports are tried.
    config.draws = {"smoke": 5}.get(scale, 20)
    # Random laws of a vocabulary, Zipf's with noise, on which the search is compared.
    config.vectors = {"smoke": 10, "quick": 100, "full": 10000}[scale]
    config.vocabulary = {"smoke": 1000}.get(scale, 50000)
    # At 1 the kept tokens share in proportion, whatever alpha is.
    config.sweep = ConfigDict({"proportional": (0.0,), "seed": (0,)})
    return config
