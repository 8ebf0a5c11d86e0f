"""Steering within a bound on KL, and tracing a change by KL.

    python -m experiments.run --config=configs/decoding/steering.py

A quarter of a minute on two cores. Azizi et al. 2025: a step along a direction of the last hidden
state keeps KL below a bound by a closed form, sqrt(8 eps) / range, here beside the exact root and
the quadratic strength that does not keep it; on an enumerated model it makes answers shorter. Kim
et al. 2025: the KL of a predictor's laws is largest where a changed patch went, also where it is
unsure of others and the squared difference of its means goes astray.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Softmax heads, an enumerated language model, and frames of patches that shift."""
    config = defaults.get_config("decoding/steering", scale)
    # Random heads: laws of so many tokens from hidden states of this width.
    config.heads = {"smoke": 20, "quick": 200, "full": 2000}[scale]
    config.tokens = {"smoke": 20}.get(scale, 200)
    config.width = 8
    config.longest = {"smoke": 4}.get(scale, 6)
    # Frames, their patches, and the tokens that a patch can be.
    config.frames = {"smoke": 20, "quick": 100, "full": 1000}[scale]
    config.patches, config.colors = 32, 64
    # How sure a copied patch is, and how much the odds of an unsure one lean on two others.
    config.copied, config.lean = 0.9, 6.0
    config.sweep = ConfigDict(
        {
            "budget": (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0),
            # The direction: towards the end of the answer at 1, away from it at -1.
            "sign": (1.0,),
            # The share of patches that the predictor is not sure of.
            "unsure": (0.5,),
            "seed": (0,),
        }
    )
    return config
