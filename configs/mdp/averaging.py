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
    config.iterations = {"smoke": 1000, "quick": 3000, "full": 3000}[scale]
    config.states, config.actions, config.branches = 30, 4, 4
    config.discount = 0.9
    # Whether the three schemes see the same errors, and whether one error is repeated for ever.
    config.same_errors = True
    config.repeat_the_error = False
    config.sweep = ConfigDict(
        {
            "regularizer": (
                "none",
                "weak KL",
                "KL",
                "strong KL",
                "entropy",
                "KL and a little entropy",
                "strong KL and a little entropy",
            ),
            "kl_weight": (0.0, 0.1, 1.0, 10.0, 0.0, 0.99, 9.9),
            "entropy_weight": (0.0, 0.0, 0.0, 0.0, 1.0, 0.01, 0.1),
            "seed": tuple(range({"smoke": 4, "quick": 5, "full": 50}[scale])),
        }
    )
    config.zipped = ("regularizer,kl_weight,entropy_weight",)
    return config
