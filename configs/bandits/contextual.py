"""FastCB, SquareCB and greedy on contextual bandits; preferences next to a reference policy.

    python -m experiments.run --config=configs/bandits/contextual.py

Half a minute on two cores. Expect FastCB's regret to stay near 55 from 2000 to 20000 rounds where
the best arms lose nothing, SquareCB's to rise from 577 to 3447 and greedy's from 192 to 1437; and
preferences asked online to leave about a quarter of the regret of as many asked of the reference.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The reference values are means of 10 runs."""
    config = defaults.get_config("bandits/contextual", scale)
    config.optimized = True
    config.precision = "float32"
    # Loss of the best arm of each context, and between which losses those of the others are.
    config.best_losses = (0.0, 0.05, 0.25)
    config.other_losses = (0.3, 0.8)
    # Added to the losses of all arms.
    config.offset = 0.0
    # Factor on the step sizes of SquareCB and FastCB.
    config.step_factor = 1.0
    # Answers that the reference gives are the worse the larger this is.
    config.skew = 3.0
    # The explorer's weight of what is uncertain, in standard deviations.
    config.bonus = 1.0
    config.sweep = ConfigDict(
        {"seed": tuple(range({"smoke": 16, "quick": 64, "full": 1000}[scale]))}
    )
    return config
