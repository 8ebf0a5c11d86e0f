"""Noisy value iteration in a 4 x 4 maze: KL to the previous policy averages the noise away.

    python -m experiments.run --config=configs/mdp/maze.py

Seconds on two cores. Case study 2 of ShinRL's reproduction of Vieillard et al. 2020: the mean
optimality gap over 150 iterations is 9.7 for value iteration, 1.2 with KL, 9.6 with entropy and 6.8
with both; the optimal return is 11.97327.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The published setting at every scale; seeds differ, of which the notebook has one."""
    config = defaults.get_config("mdp/maze", scale)
    config.iterations = 150
    config.noise = 1.0
    # Cells that cannot be entered: in the released code the start, by mistake, and not "#".
    config.walls = "S"
    # Factor on the KL coefficient: 0 takes the KL away.
    config.kl_factor = 1.0
    config.sweep = ConfigDict(
        {
            "regularizer": ("none", "KL", "entropy", "KL and entropy"),
            "kl_weight": (0.0, 1.0, 0.0, 1.0),
            "entropy_weight": (0.0, 0.0, 0.5, 0.5),
            "seed": tuple(range({"smoke": 10, "quick": 10, "full": 100}[scale])),
        }
    )
    config.zipped = ("regularizer,kl_weight,entropy_weight",)
    return config
