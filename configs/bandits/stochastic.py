"""Regret of six policies on Bernoulli arms: KL-UCB and Thompson sampling against UCB1 and older.

    python -m experiments.run --config=configs/bandits/stochastic.py

Half a minute on two cores. Expect after 5000 pulls of arms (0.9, 0.8) a regret of 65 for UCB1, 13
for KL-UCB and 10 for Thompson sampling; of ten arms with means of at most 0.1 it is 277, 91 and 72.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Half of the 200 runs behind the reference values, which the bounds take into account."""
    config = defaults.get_config("bandits/stochastic", scale)
    config.optimized = True
    config.precision = "float32"
    config.lanes = 100
    # Factor on log t in the squared bounds of UCB1.
    config.exploration = 2.0
    # Name, policy, and the factor on log t in the bounds of KL-UCB.
    algorithms = (
        ("explore first", "explore_first", 1.0),
        ("epsilon-greedy", "epsilon_greedy", 1.0),
        ("successive elimination", "successive_elimination", 1.0),
        ("UCB1", "ucb1", 1.0),
        ("KL-UCB", "kl_ucb", 1.0),
        ("KL-UCB, 10 log t", "kl_ucb", 10.0),
        ("Thompson sampling", "thompson", 1.0),
    )
    algorithm, policy, confidence = zip(*algorithms[3 * (scale == "smoke") :], strict=True)
    config.sweep = ConfigDict(
        {
            "instance": ("two arms", "ten arms"),
            "algorithm": algorithm,
            "policy": policy,
            "confidence": confidence,
            "seed": tuple(range({"smoke": 16, "quick": 100, "full": 2000}[scale])),
        }
    )
    config.zipped = ("algorithm,policy,confidence",)
    return config
