"""Advantages for pass@k and of least variance, and the metrics beside them, by enumeration.

    python -m experiments.run --config=configs/policy/group_advantages.py

Some seconds. All groups of four answers are summed over, so expected gradients, variances and the
bias of an estimate are exact. Expect PKPO's advantages to have the gradient of pass@k within
rounding, those of GRPO for pass@k to weigh questions with one right answer of four most, and a
baseline for each token to vary less than one for the answer.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Four answers to one question, in groups of four; and the tabular language model."""
    config = defaults.get_config("policy/group_advantages", scale)
    # Axes with one value each, so that a control that takes another one is the same program.
    config.sweep = ConfigDict(
        {
            # The share of the group's mean that is taken off the advantages, the own one in it.
            "own": (0.0,),
            # How far the answers that are counted were drawn from another law than is said.
            "tilt": (0.0,),
            "seed": tuple(range({"smoke": 4, "quick": 32, "full": 256}[scale])),
        }
    )
    return config
