"""Single-pass streaming bandits: regret of six algorithms, and of the release's mistakes.

    python -m experiments.run --config=configs/bandits/streaming.py

Half a minute on two cores. Expect regret to grow as T^(2/3); with 200 arms and T = 1000 K^3 that of
exploring uniformly is 0.91 K^(1/3) T^(2/3), of which the naive algorithm has 1.87 times, game of
arms 0.89 and log-log 0.50 if pulls are charged to the arm that is pulled, 0.36 as released.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The reference values are of 200 and 500 arms with T = 1000 K^3 and 20 runs."""
    config = defaults.get_config("bandits/streaming", scale)
    config.lanes = 128
    # The arm of the rest of the horizon: the one found, or the first of the stream.
    config.commit = "best"
    config.sweep = ConfigDict(
        {
            "arms": {
                "smoke": (200, 500),
                "quick": (50, 100, 200, 500),
                "full": (50, 100, 200, 500, 2000, 50000),
            }[scale],
            # The horizon is this times the cube of the number of arms.
            "factor": (1e1, 1e2, 1e3, 1e4, 1e5),
            "seed": tuple(range({"smoke": 40, "quick": 200, "full": 200}[scale])),
        }
    )
    return config
