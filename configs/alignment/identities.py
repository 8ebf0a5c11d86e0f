"""What the calculators and estimators of alignment are on average, by enumeration of all draws.

    python -m experiments.run --config=configs/alignment/identities.py

Seconds on two cores. Random problems of five answers: the worst of n and its win rate are those of
all draws; the optimal value from samples is too small, its exponential and that of log Z unbiased;
quasi-rejection stays within its bound; a moving average is a baseline as long as it is taken before
the new sample is pushed, and halves the gradient after that in a window of two.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """A seed is a problem."""
    config = defaults.get_config("alignment/identities", scale)
    # Draws of the best and the worst of n, and of estimates.
    config.draws = 3
    config.beta = 0.3
    # beta of quasi-rejection sampling, and how many samples it is tried on.
    config.ceilings = (0.25, 0.5, 1.0, 2.0, 4.0)
    config.tried = 20_000
    # Of the win-rate-optimal density, and the cells of its check.
    config.c = (0.1, 1.0, 3.0, 10.0)
    config.cells = 800
    # Small powers for the series of cumulants.
    config.powers = (0.01, 0.02)
    config.coefficient = 0.7
    # By how much who draws is sharper than the law that the estimators are told.
    config.sweep = ConfigDict(
        {"mismatch": (0.0,), "seed": tuple(range({"smoke": 2, "quick": 8, "full": 64}[scale]))}
    )
    return config
