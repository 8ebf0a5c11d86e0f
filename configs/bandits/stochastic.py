"""Regret of six policies on Bernoulli arms: KL-UCB and Thompson sampling against UCB1 and older.

    python -m experiments.run --config=configs/bandits/stochastic.py

Half a minute on two cores. Expect after 5000 pulls of arms (0.9, 0.8) a regret of 65 for UCB1, 13
for KL-UCB and 10 for Thompson sampling; of ten arms with means of at most 0.1 it is 277, 91 and 72.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """200 runs are those of the reference values."""
    config = defaults.get_config("bandits/stochastic", scale)
    config.precision = "float32"
    config.lanes = 100
    config.sweep = ConfigDict(
        {
            "instance": {"smoke": ("two arms",)}.get(scale, ("two arms", "ten arms")),
            "variant": (0, 1, 2, 3, 4, 5, 6),
            "policy": (
                "explore_first", "epsilon_greedy", "successive_elimination",
                "ucb1", "kl_ucb", "kl_ucb", "thompson",
            ),
            # Factor on log t in the bounds of KL-UCB: variant 5 has ten times too much.
            "confidence": (1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0),
            "seed": tuple(range({"smoke": 32, "quick": 200, "full": 2000}[scale])),
        }
    )  # fmt: skip
    if scale == "smoke":
        for axis in ("variant", "policy", "confidence"):
            config.sweep[axis] = config.sweep[axis][3:]
    config.zipped = ("variant,policy,confidence",)
    # The variant that the claims take for KL-UCB, and the constant for that of Lai and Robbins.
    config.claims = ConfigDict({"kl_ucb": 4, "constant": "constant"})
    return config
