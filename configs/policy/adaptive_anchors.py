"""Anchors that adapt to rewards, to confidence and to the KL, and a bonus for fitting answers.

    python -m experiments.run --config=configs/policy/adaptive_anchors.py

Five seconds on two cores. Forward KL and RAPO leave the reference's support, reverse KL does not;
weights by confidence let a wrong, unsure prior go; SAFE's penalty as released has no gradient, as
described it halves the KL and does not hold its threshold; GRPO-CARE makes reasoning fit.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Optima in closed form, and two short trainings."""
    config = defaults.get_config("policy/adaptive_anchors", scale)
    config.steps = 150
    # Answers for each question.
    config.group = 8
    config.sweep = ConfigDict(
        {
            # Factor on weights, penalties and bonus: 0 takes them away.
            "factor": (1.0,),
            "seed": tuple(range(64 if scale == "full" else 4)),
        }
    )
    return config
