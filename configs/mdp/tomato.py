"""The tomato world: a proxy reward that is hacked, and which divergence prevents it.

    python -m experiments.run --config=configs/mdp/tomato.py

Half a minute on two cores. Laidlaw et al. (arXiv:2403.03185), computed exactly instead of trained:
at level 2 the base policy's true return is .0765, the proxy's optimum has .0206, chi2 between
occupancy measures keeps .0776 to .0782 at temperatures from .01 to 1, and action-wise KL falls from
.0781 at 7 to .0223 at 3; at level 4 from .0957 at 15 to .0362 at 10.
"""

from ml_collections import ConfigDict

from configs import defaults

TEMPERATURES = {
    "smoke": (0.03, 0.1, 1.0, 3.0, 7.0),
    "quick": (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0),
    "full": (
        0.01, 0.014, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.4, 0.5, 0.7,
        1.0, 1.4, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 12.0, 15.0, 20.0, 30.0,
    ),
}  # fmt: skip


def get_config(scale: str = "quick") -> ConfigDict:
    """Temperatures in standard deviations of the proxy under the base policy."""
    config = defaults.get_config("mdp/tomato", scale)
    # The base policy takes uniform actions at this rate, and optimal ones for the true reward else.
    config.noise = 0.1
    # Random policies of each point, for the bound.
    config.draws = {"smoke": 50, "quick": 12, "full": 50}[scale]
    # Whether there is a bucket; without it the proxy is the true reward.
    config.bucket = True
    # Of the penalty on occupancies; "ref‖mu" has the wrong one, for pearson_chi2 and kl.
    config.direction = "mu‖ref"
    config.sweep = ConfigDict(
        {
            "temperature": TEMPERATURES[scale],
            "divergence": ("pearson_chi2", "root_chi2", "kl", "action_kl"),
            "level": {"smoke": (2,), "quick": (2, 4), "full": (2, 4)}[scale],
        }
    )
    return config
