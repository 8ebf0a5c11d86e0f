"""An answer that is in no pair: DPO leaves it where it started, HyPO keeps it, RPO kills it.

    python -m experiments.run --config=configs/alignment/coverage.py

Seconds on two cores. Song et al. 2024 (HyPO) and Liu et al. 2024 (RPO) on three answers of which
two are compared. DPO has a ray of minimizers, all with loss .58220311: from the reference it ends
at KL .110, with mass on the third answer at 4.260. With .001 KL(pi‖ref) both starts end at (.7227,
.2661, .0112); with any weight of SFT both at (.7311, .2689, 0).
"""

import numpy as np
from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Answers 1 and 2 are compared, 3 is not; the coefficient is that of KL or SFT."""
    config = defaults.get_config("alignment/coverage", scale)
    config.reference = (0.495, 0.495, 0.01)
    config.rewards = (1.0, 0.0, 0.0)
    # Pairs are made of the first answers, so many; the third is unseen.
    config.compared = 2
    config.beta = 1.0
    # kl is KL(pi‖ref), of the policy's own samples.
    config.direction = "kl"
    # Logit of the third answer where a fit starts, those of the others 0; the first is 4, the
    # second the reference's.
    more = {"smoke": 0, "quick": 25, "full": 97}[scale]
    between = np.linspace(-7.0, 6.9, more).tolist()
    config.starts = (4.0, float(np.log(0.01 / 0.495)), *between)
    config.iterations = 200
    table = (0.001, 0.01, 0.1, 1.0)
    points = {"smoke": 0, "quick": 25, "full": 96}[scale]
    between = tuple(np.geomspace(10**-3.9, 10**0.9, points).tolist())
    config.sweep = ConfigDict({"coefficient": (0.0, *sorted((*table, *between)))})
    return config
