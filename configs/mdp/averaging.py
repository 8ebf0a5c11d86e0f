"""Errors of value iteration on random processes: KL averages them, nothing else does.

    python -m experiments.run --config=configs/mdp/averaging.py

A minute on two cores. Vieillard et al. 2020: with KL to the previous policy and no entropy the
distance to the optimum falls like the norm of the average error (log-log slope about -1 between
iterations 100 and 3000; below -.5 is claimed); without it, or with entropy alone, it stays.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Garnet(30, 4, 4), discount .9, standard normal errors; iterations and seeds by scale."""
    config = defaults.get_config("mdp/averaging", scale)
    config.iterations = {"smoke": 600, "quick": 3000, "full": 3000}[scale]
    config.states, config.actions, config.branches = 30, 4, 4
    config.discount = 0.9
    # What the controls change: other errors for the other schemes, one error for ever.
    config.same_errors = True
    config.repeat_the_error = False
    config.claims = ConfigDict({"averaging": "averaging", "flat": "flat", "large": 3})
    config.sweep = ConfigDict(
        {
            "variant": (0, 1, 2, 3, 4, 5, 6),
            "kl": (0.0, 0.1, 1.0, 10.0, 0.0, 0.99, 9.9),
            "entropy": (0.0, 0.0, 0.0, 0.0, 1.0, 0.01, 0.1),
            "seed": tuple(range({"smoke": 2, "quick": 5, "full": 50}[scale])),
        }
    )
    config.zipped = ("variant,kl,entropy",)
    return config
