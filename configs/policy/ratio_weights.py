"""Bias and variance of every weight of the ratio off-policy, by enumeration.

    python -m experiments.run --config=configs/policy/ratio_weights.py

A quarter of a minute. Expect the product of a sequence's ratios to be unbiased at every distance,
at a price in variance; clips, soft gates and ceilings to have a bias and less variance; GSPO's
average over sequences to be biased before any step is taken, and LUSPO's not.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Random models of up to three tokens, and others at these distances from them."""
    config = defaults.get_config("policy/ratio_weights", scale)
    few = scale == "smoke"
    # Of the logits, in units of a random direction; the first has to be 0.
    config.distances = (0.0, 0.2, 1.0) if few else (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)
    # Of the answers in a batch whose averages are compared.
    config.lengths = (1, 2, 4, 8, 16)
    config.sweep = ConfigDict(
        {
            # 1, or -1 for the ratio upside down.
            "sign": (1.0,),
            # Times the distances: 0 takes no step.
            "reach": (1.0,),
            "seed": tuple(range({"smoke": 8, "quick": 32, "full": 512}[scale])),
        }
    )
    return config
