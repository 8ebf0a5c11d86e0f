"""k1, k2 and k3 for KL: bias and spread between Gaussians, gradients on a categorical.

    python -m experiments.run --config=configs/estimation/kl_estimators.py

Under half a minute on two cores. Expect Schulman's table (in units of the divergence, for means 0.1
and 1 apart: k2 too high by 0.002 and 0.25, standard deviations of 20, 1.42, 1.42 and 2, 1.73, 1.7),
a standard deviation of 20 for k3 at a distance of 3; and gradients that are exactly 0 for k1, that
of KL(pi‖ref) for k2 and that of KL(ref‖pi) for k3.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Shifts 0.1 and 1 are those of the published table."""
    config = defaults.get_config("estimation/kl_estimators", scale)
    config.optimized = scale != "smoke"
    config.samples = {"smoke": 10_000, "quick": 100_000, "full": 1_000_000}[scale]
    config.actions = 4
    # Whose samples the moments and the on-policy gradients are of: or the "reference"'s.
    config.sampled_from = "policy"
    # Whether automatic differentiation sees the importance ratio: or "detached".
    config.ratio = "differentiated"
    config.lanes = {"smoke": 8, "quick": 16, "full": 4}[scale]
    config.sweep = ConfigDict(
        {
            # Between the means of the Gaussians; of the logits of a categorical, its scale.
            "shift": {
                "smoke": (0.1, 1.0, 3.0),
                "quick": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.5, 3.0),
                "full": (
                    0.1,
                    0.15,
                    0.2,
                    0.3,
                    0.4,
                    0.5,
                    0.7,
                    0.85,
                    1.0,
                    1.2,
                    1.4,
                    1.7,
                    2.0,
                    2.5,
                    3.0,
                ),
            }[scale],
            "seed": tuple(range({"smoke": 4, "quick": 16, "full": 64}[scale])),
        }
    )
    return config
