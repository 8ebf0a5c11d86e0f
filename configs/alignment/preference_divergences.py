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
    # Where entropies are compared, and betas of the frontier.
    config.matched_reward = 0.4
    points = {"smoke": 9, "quick": 97, "full": 385}[scale]
    config.frontier = tuple(np.geomspace(0.02, 10, points).tolist())
    config.iterations = 100
    # Whose link f-DPO fits with: that of the divergence "itself", or DPO's, of "kl".
    config.fitted = "itself"
    config.sweep = ConfigDict({"beta": (0.5, 0.1), **columns()})
    config.zipped = ("divergence,family,exponent,factor,slope_at_one",)
    return config


def columns() -> dict[str, tuple]:
    """By the field's names: the row; for powers its exponent; how many times the row it is.

    The last is f'(1), as the papers write f. Their alpha is 1 minus ours, JS and chi2 twice ours.
    """
    rows = {
        "RKL": ("power", 1.0, 1.0, 1.0),
        "alpha .3": ("power", 0.7, 1.0, 0.0),
        "alpha .5": ("power", 0.5, 1.0, 0.0),
        "alpha .7": ("power", 0.3, 1.0, 0.0),
        "FKL": ("power", 0.0, 1.0, -1.0),
        "chi2": ("power", 2.0, 2.0, 0.0),
        "JS": ("jensen_shannon", 1.0, 2.0, 0.0),
        "chi2-PO": ("chi2_kl", 1.0, 1.0, 1.0),
    }
    names = ("family", "exponent", "factor", "slope_at_one")
    by_name = dict(zip(names, zip(*rows.values(), strict=True), strict=True))
    return {"divergence": tuple(rows), **by_name}
