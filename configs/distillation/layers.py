"""Losses of hidden layers, and the alpha of MI-alpha: bias against variance.

    python -m experiments.run --config=configs/distillation/layers.py

Ten seconds. He et al. 2021 (Distiller, arXiv:2109.11105) with the bound of Poole et al. 2019. To
expect at 4 nats and 64 pairs, from 500 batches in NumPy: 4.03 with a deviation of .48 at alpha 0,
3.07 with .19 at 1.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Batches by scale; information, dimension and pairs are those of the reference."""
    config = defaults.get_config("distillation/layers", scale)
    config.information = 4.0
    config.dimension = 20
    config.pairs = 64
    config.batches = {"smoke": 50, "quick": 50, "full": 500}[scale]
    config.width = 16
    # Of a rotated layer: a "rotation", or "any" map.
    config.map = "rotation"
    # The "best", or one of pairs "of others".
    config.critic = "best"
    config.sweep = ConfigDict(
        {"alpha": (0.0, 0.1, 0.5, 1.0), "seed": tuple(range(4 if scale == "smoke" else 6))}
    )
    return config
