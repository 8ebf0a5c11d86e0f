"""The atlas: every row of the table drawn, and every divergence between two families.

    python -m experiments.run --config=configs/estimation/atlas.py

Under a minute on a laptop. Reproduces no paper: it shows what the table holds, and that the
inverse slope of every row inverts its slope.
"""

from ml_collections import ConfigDict


def get_config(scale: str = "quick") -> ConfigDict:
    """Resolution of the curves by scale."""
    points = {"smoke": 21, "quick": 201, "full": 801}[scale]
    return ConfigDict(
        {
            "points": points,
            "bins": {"smoke": 101, "quick": 601, "full": 2401}[scale],
            "log_ratio_range": (-4.0, 4.0),
            "bernoulli_references": (0.5, 0.1),
            "mixture_weight": 0.3,
            "mixture_mode": 2.0,
            "mixture_scale": 0.7,
        }
    )
