"""Confidence bounds of a coin by KL, squared distance and a normal law: how often they miss.

    python -m experiments.run --config=configs/bandits/confidence.py

A few seconds. Expect KL-UCB's bound to be below the mean at most e^-budget of the time, never wider
than Hoeffding's, and Wald's to miss nearly always next to 0.
"""

import numpy as np
from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """All outcomes of the tosses, for coins by scale."""
    config = defaults.get_config("bandits/confidence", scale)
    config.tosses = {"smoke": (3, 100), "quick": (3, 20, 100), "full": (3, 20, 100, 1000)}[scale]
    count = {"smoke": 100, "quick": 100, "full": 1000}[scale]
    config.means = tuple(((np.arange(count) + 0.5) / count).tolist())
    # Factor on the budget.
    config.confidence = 1.0
    config.sweep = ConfigDict({"budget": (0.5, 1.0, 3.0, 6.0)})
    return config
