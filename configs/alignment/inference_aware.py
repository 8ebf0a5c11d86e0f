"""Inference-aware alignment: the reward to tilt by if the best or worst of n draws is used.

    python -m experiments.run --config=configs/alignment/inference_aware.py

Ten seconds on two cores, a fraction of a minute. Balashankar et al. 2024 (InfAlign): win rates of
the best and the worst of n draws at KL .25, .5, 1, 2, for tilts by the identity, the logarithm and
exponentials of the reward's quantile, and at the fixed point: .7969 .8733 .9411 .9838 for the best
of four, .8583 .9479 .9929 .9999 for the worst. Reference numbers of an independent computation: the
paper's tables are not known, and its gains of 3 to 8 % are of language models.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Quantiles in cells between Chebyshev's points; the error is of the square of their width."""
    config = defaults.get_config("alignment/inference_aware", scale)
    config.cells = {"smoke": 150, "quick": 800, "full": 3200}[scale]
    # Whether rewards are their quantiles before they are transformed.
    config.calibrated = True
    config.sweep = ConfigDict({"budget": (0.25, 0.5, 1.0, 2.0)})
    return config
