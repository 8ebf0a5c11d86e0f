"""Every divergence as the regularizer of value iteration: sparsity, bias and action gap.

    python -m experiments.run --config=configs/mdp/divergences.py

A minute on two cores, twelve programs. Geist, Scherrer and Pietquin 2019: regularizing towards a
reference costs at most temperature * max D(best policy, reference) / (1 - discount). Rows whose
slope at zero is finite drop actions (a fifth of them is kept at low temperature), the others never
do; at the same curvature all of them make the same policy at high temperature.
"""

from ml_collections import ConfigDict

from configs import defaults
from jdiv import generators


def get_config(scale: str = "quick") -> ConfigDict:
    """Garnet(20, 6, 4), discount .9, a random reference; all rows, few at smoke scale."""
    config = defaults.get_config("mdp/divergences", scale)
    config.states, config.actions, config.branches = 20, 6, 4
    config.discount = 0.9
    config.iterations = 250
    config.parameters = ConfigDict(
        {
            "jensen_shannon": {"weight": 0.5},
            "skew_kl": {"skew": 0.1},
            "alpha": {"alpha": 3.0},
            "tsallis": {"index": 1.5},
        }
    )
    # Of the divergence; "ref‖pi" has the wrong one, for kl and pearson_chi2.
    config.direction = "pi‖ref"
    # Whether temperatures are divided by f''(1).
    config.in_units_of_curvature = True
    temperatures = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    config.sweep = ConfigDict(
        {
            "generator": {"smoke": ("kl", "pearson_chi2", "tsallis")}.get(
                scale, tuple(generators.TABLE)
            ),
            "temperature": (0.01, 0.1, 0.3, 100.0) if scale == "smoke" else temperatures,
            "seed": tuple(range({"smoke": 2, "quick": 4, "full": 64}[scale])),
        }
    )
    return config
