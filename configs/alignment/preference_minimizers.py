"""What each preference loss is least for, on three answers with known preferences.

    python -m experiments.run --config=configs/alignment/preference_minimizers.py

Seconds on two cores. Sixty comparisons of three answers that Bradley and Terry's model fits
exactly, rewards log 4, log 2 and 0: for 28 losses the policy where the gradient vanishes, in closed
form or from an independent solver. DPO fits the tilted reference, CPO the tilt without it, SimPO
powers by length, ORPO odds without a temperature; KTO and APO drop what loses more often than it
wins.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The comparisons, and the numbers of the losses."""
    config = defaults.get_config("alignment/preference_minimizers", scale)
    # How often the answer of the row was preferred to that of the column.
    config.wins = ((0, 10, 12), (5, 0, 20), (3, 10, 0))
    config.reference = (0.5, 0.3, 0.2)
    config.lengths = (1.0, 2.0, 4.0)
    config.beta = 0.5
    # Wrong labels: for EXO and AOT assumed, for the robust loss there.
    config.noise = 0.1
    # Of AlphaPO; of SimPO where it is not 0.
    config.alpha = 0.25
    config.gamma = 0.5
    # Weights of the likelihood in CPO, of the odds in ORPO, of the bonus in XPO.
    config.likelihood = 1.0
    config.odds = 0.1
    config.bonus = 0.02
    # The KL that KTO is given.
    config.kl = 0.3
    # How far logits are moved to see whether the loss rises.
    config.away = 0.02
    # The share of comparisons with the labels turned round.
    config.sweep = ConfigDict({"flipped": (0.0,)})
    return config
