"""Histograms without a common bin: Wasserstein, energy distance, MMD and SinKD beside KL and JS.

    python -m experiments.run --config=configs/distillation/displaced.py

Ten seconds. Why Cui et al. 2024 (SinKD) distil by transport: without a common support KL is
infinite and Jensen-Shannon log 2, however far the two are apart. To expect: transport between
places is the displacement and pulls the right way; SinKD, whose cost is between rows and not
between categories, is at its bound of 2 a row and pulls nowhere, and does not know which row is
whose. No number is published for such a toy.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Bumps of random weights; displacements up to most of the line."""
    config = defaults.get_config("distillation/displaced", scale)
    config.bins = 64
    config.width = 5
    config.rows = 6
    # Weight of the bins around a bump: exact zeros, or nearly.
    config.floor = 0.0
    # Of the bins: "in order", or "shuffled", of which transport makes nothing.
    config.places = "in order"
    # Of MMD's Gaussian kernel, in bins.
    config.bandwidth = 5.0
    # Of SinKD: the released code's.
    config.temperature = 2.0
    config.epsilon = 0.1
    near = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30, 35, 40, 45, 50)
    config.sweep = ConfigDict(
        {
            "displacement": (0, 2, 5, 10, 20, 35, 40) if scale == "smoke" else near,
            "seed": tuple(range({"smoke": 2, "quick": 4, "full": 32}[scale])),
        }
    )
    return config
