"""What parts of policy updates are, against sums over all actions and states.

    python -m experiments.run --config=configs/policy/identities.py

Seconds on two cores. On random problems: MPO's M-step for networks is least at a mixture of target
and old policy; the constants of regularized advantages have the gradient of the regularized return,
for every row; the Fisher matrix takes the natural gradient to the gradient; mixtures gain what
conservative iteration promises; advantages of a batch are not those of groups.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """A seed is a process, with policies and a batch of rewards."""
    config = defaults.get_config("policy/identities", scale)
    config.states, config.actions, config.discount = 5, 3, 0.8
    config.coefficient = 0.6
    config.shares = (0.02, 0.05, 0.1, 0.3, 1.0)
    config.iterations = 50
    # What the coefficient is multiplied by where losses get it, and formulas do not.
    config.sweep = ConfigDict(
        {"factor": (1.0,), "seed": tuple(range({"smoke": 2, "quick": 8, "full": 64}[scale]))}
    )
    return config
