"""Two samples: MMD, energy distance, normalized weights, and lower bounds from critics, on average.

    python -m experiments.run --config=configs/estimation/two_samples.py

Ten seconds on two cores. Expect MMD without diagonals to be right on average and V-statistics to be
too high by their diagonals, normalized weights to be too low by shift² e^(shift²)/n, and bounds
that only the slope of their row at p/q attains.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Repeats by scale; the samples are small, so that biases are large."""
    config = defaults.get_config("estimation/two_samples", scale)
    config.optimized = True
    config.first, config.second = 16, 24
    # How many samples are weighted.
    config.weighted = 100
    config.repeats = {"smoke": 500, "quick": 500, "full": 20_000}[scale]
    # Of the Gaussian kernel, and the mutual information of a pair, in nats.
    config.bandwidth = 1.0
    config.information = 0.3
    config.lanes = 4
    config.sweep = ConfigDict(
        {
            "shift": (0.0, 0.5, 1.5),
            "paired": (0.0,),
            "seed": tuple(range({"smoke": 4, "quick": 8, "full": 32}[scale])),
        }
    )
    return config
