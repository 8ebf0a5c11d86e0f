"""Gaussians: closed forms beside sums over a grid, other coordinates, marginals, transport.

    python -m experiments.run --config=configs/estimation/gaussians.py

Ten seconds on two cores. Expect eight closed forms to be the sums to 1e-9, to be the same in other
coordinates, where Wasserstein's distance is not, and its square never above 2 λ KL (Talagrand).
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Pairs by scale; the grid is fine enough for the narrowest."""
    config = defaults.get_config("estimation/gaussians", scale)
    config.pairs = {"smoke": 24, "quick": 40, "full": 256}[scale]
    # Cells on a side of the grid, and how far it goes in both directions.
    config.cells = 93
    config.reach = 16.0
    config.lanes = 2
    config.sweep = ConfigDict(
        {"correlated": (1.0,), "seed": tuple(range({"smoke": 1, "quick": 2, "full": 8}[scale]))}
    )
    return config
