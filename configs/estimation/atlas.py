"""The atlas: every row of the table drawn, and every divergence between three families.

    python -m experiments.run --config=configs/estimation/atlas.py

Half a minute on one core. Reproduces no paper: it shows what the table holds, and that the rows
stand to each other as the textbooks say.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Resolution of the curves by scale."""
    config = defaults.get_config("estimation/atlas", scale)
    config.points = {"smoke": 21, "quick": 201, "full": 801}[scale]
    config.bins = {"smoke": 101, "quick": 601, "full": 2401}[scale]
    config.log_ratio_range = (-4.0, 4.0)
    config.bernoulli_references = (0.5, 0.1)
    config.mixture_weight = 0.3
    config.mixture_mode = 2.0
    config.mixture_scale = 0.7
    # 0: KL's inverse slope for all rows, generators that are not centered, equals that are not.
    config.sweep = ConfigDict({"intact": (1.0,)})
    return config
