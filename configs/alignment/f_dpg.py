"""f-DPG: one policy gradient towards a target distribution, for every divergence.

    python -m experiments.run --config=configs/alignment/f_dpg.py

Half a minute on two cores. Go et al. 2023, the six divergences of its released code: rewards
-f'(pi/p), their mean and the variance of one sample's gradient without and with a mean baseline
(2.2798 and 1.2970 for forward KL; .0950 and .0966 for Jensen-Shannon, which it makes worse), and
the gradient identity to 1e-9. Every divergence reaches a target that the policy can be, and trades
reward for diversity where it cannot.
"""

from ml_collections import ConfigDict

from configs import defaults
from jdiv.divergences import generators

FEW = ("kl", "reverse_kl", "total_variation", "jensen_shannon", "pearson_chi2", "neyman_chi2")
FEW += ("squared_hellinger",)


def get_config(scale: str = "quick") -> ConfigDict:
    """Five answers, and Gaussian policies on a grid before a reward with two modes."""
    config = defaults.get_config("alignment/f_dpg", scale)
    config.generators = FEW if scale == "smoke" else tuple(generators.TABLE)
    config.logits = (0.0, 0.5, -1.0, 0.2, 1.0)
    config.target = (0.1, 0.2, 0.3, 0.15, 0.25)
    # Random policies, targets and proposals for the identity.
    config.cases = 10
    config.steps = {"smoke": 1500, "quick": 4000, "full": 20000}[scale]
    # Time of the flow at f''(1) = 1.
    config.time = 150.0
    # Whose pseudo-reward a policy is paid: "itself" or, for KL and chi2, the "other direction".
    config.paid = "itself"
    config.sweep = ConfigDict({"beta": (0.15,) if scale == "smoke" else (0.1, 0.15, 0.2, 0.3, 0.5)})
    return config
