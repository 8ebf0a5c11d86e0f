"""How far Munchausen's term widens the gap between actions: by 1/(1 - alpha).

    python -m experiments.run --config=configs/mdp/action_gap.py

Ten seconds on two cores, less than a minute with its controls. Vieillard, Pietquin and Geist 2020,
Theorem 2, is printed in secondary sources with the factor (1 + alpha)/(1 - alpha); the fixed point
has 1/(1 - alpha), to 1e-6: 1, 2, 10 and 20 for alpha = 0, .5, .9 and .95.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Garnet(20, 4, 3), discount .9; more processes by scale."""
    config = defaults.get_config("mdp/action_gap", scale)
    config.states, config.actions, config.branches = 20, 4, 3
    config.discount = 0.9
    # Of the fixed point that the gaps are compared with; a scheme's own is this / (1 - alpha).
    config.temperature = 0.1
    config.iterations = 600
    # Standard deviation of an error on every action value, and how many are drawn.
    config.noise, config.draws = 0.3, 200
    # Factor on alpha: 0 takes the term away.
    config.alpha_factor = 1.0
    config.sweep = ConfigDict(
        {
            "scheme": ("munchausen", "tsallis, mean", "tsallis, value", "conservative"),
            "alpha": (0.0, 0.3, 0.5, 0.7, 0.9, 0.95),
            "seed": tuple(range({"smoke": 2, "quick": 8, "full": 32}[scale])),
        }
    )
    return config
