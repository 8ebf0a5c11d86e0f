"""Tsallis' entropy in value iteration: the Munchausen term does the work, the index the bias.

    python -m experiments.run --config=configs/mdp/tsallis.py

Half a minute on two cores, with its controls. MVI(q) of Zhu et al. 2023 on random processes with
standard normal errors, beside an independent recomputation: suboptimality 3.98, .658, .065 for
index 1 and 4.06, .663, .064 for index 2 at alpha = 0, .9, .99, and without errors .1136, .0047,
.0001 and .0132, .0016, .0000. Identities to 1e-12, and how often (q, tau) and (2, tau/(q - 1)) keep
different actions: nearly one in ten.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Garnet(20, 4, 3), discount .9, temperature .1, 400 iterations of which the last 100 count."""
    config = defaults.get_config("mdp/tsallis", scale)
    config.optimized = scale != "smoke"
    config.states, config.actions, config.branches = 20, 4, 3
    config.discount = 0.9
    config.temperature = 0.1
    # Temperatures of the entmax convention are divided by the index for `operators.tsallis`.
    config.divide_by_index = True
    # Factor on alpha: 0 takes the Munchausen term away.
    config.alpha_factor = 1.0
    config.iterations, config.last = 400, 100
    # Rows of standard normal values for each seed, at these temperatures.
    config.draws, config.width = {"smoke": 100, "quick": 60, "full": 250}[scale], 6
    config.temperatures = (0.2, 0.5, 1.0)
    config.sweep = ConfigDict(
        {
            "index": {"smoke": (1.0, 2.0, 3.0)}.get(scale, (1.0, 1.2, 1.5, 2.0, 3.0, 4.0)),
            "alpha": (0.0, 0.9, 0.99),
            "noise": (0.0, 1.0),
            "seed": tuple(range({"smoke": 4, "quick": 32, "full": 256}[scale])),
        }
    )
    return config
