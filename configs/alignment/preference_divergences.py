"""f-DPO, solved exactly: optima, what fits them and what does not, and what entropy says.

    python -m experiments.run --config=configs/alignment/preference_divergences.py

Ten seconds on two cores. Wang et al. 2024 on five answers: lambda and the optimum of every
divergence at beta = .5, which the fit recovers with excess 0. At beta = .1 chi2 drops two answers
and its fit goes to (.313, .276, 0, .411, 0) with an excess of .280; chi2-PO repairs it. At equal
reward reverse KL has the largest entropy, 1.4335 against 1.4234 for forward KL, where the paper's
language models at equal beta have 3.66 against 4.12.
"""

import numpy as np
from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Five answers and all pairs of them, with Bradley-Terry preferences."""
    config = defaults.get_config("alignment/preference_divergences", scale)
    config.reference = (0.05, 0.15, 0.2, 0.25, 0.35)
    config.reward = (1.0, 0.2, -0.5, 0.3, -1.0)
    # Two pairs of equally good answers, the first with odds of 4 : 1 in the reference.
    config.equal = ConfigDict(
        {"reference": (0.04, 0.01, 0.6, 0.35), "reward": (1.0, 1.0, 0.0, 0.0), "beta": 0.3}
    )
    # Where entropies are compared, and temperatures of the frontier.
    config.matched_reward = 0.4
    points = {"smoke": 9, "quick": 97, "full": 385}[scale]
    config.temperatures = tuple(np.geomspace(0.02, 10, points).tolist())
    config.iterations = 100
    config.claims = ConfigDict(
        {"beta": 0.5, "small_beta": 0.1, "failing": "chi2", "repaired": "chi2-PO", "odds": 4.0}
        | {"uniform": "uniform", "largest": "RKL"}
    )
    # Rows by number: RKL, alpha .3, .5, .7, FKL, chi2, JS, chi2-PO.
    config.sweep = ConfigDict({"beta": (0.5, 0.1), "row": tuple(range(8))})
    return config
