"""A divergence as the trust region of a token against PPO's clip, for every row of the table.

    python -m experiments.run --config=configs/policy/trust_regions.py

A quarter of a minute. Expect the clip to stop a rare token at a divergence of nearly nothing and a
common one late, where DPPO stops both at one divergence; the binary form never to be above that of
the whole vocabulary; and a rare right token to be learned in fewer rounds.
"""

from ml_collections import ConfigDict

from configs import defaults
from jdiv import generators


def get_config(scale: str = "quick") -> ConfigDict:
    """Policies over eight tokens; in training the first one is right and rare."""
    config = defaults.get_config("policy/trust_regions", scale)
    few = ("total_variation", "kl", "reverse_kl")
    config.generators = few if scale == "smoke" else tuple(generators.TABLE)
    # Rows that policies are trained with.
    config.trained = few[::2]
    # Pairs of random policies for the binary bound.
    config.cases = {"smoke": 50, "quick": 200, "full": 5000}[scale]
    config.vocabulary = 8
    config.rounds = 32
    # Steps of a round, and their size in units of the advantage.
    config.inner = 100
    config.step_size = 0.05
    # The probability of the right token before training.
    config.rare = 1e-3
    config.sweep = ConfigDict(
        {
            # 1, or -1 for a drop of what has moved against its advantage.
            "sign": (1.0,),
            # Of total variation; other rows have what a coin has at this distance from fair.
            "threshold": (0.1,),
            # Times the mass of the other tokens in the binary form: 1 is right.
            "rest": (1.0,),
            "seed": tuple(range({"smoke": 2, "quick": 4, "full": 64}[scale])),
        }
    )
    return config
