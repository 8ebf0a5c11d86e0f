"""What is forgotten on other tasks: supervised against reinforced tuning, KL, replay.

    python -m experiments.run --config=configs/policy/forgetting.py

A quarter of a minute. Eight questions of three tasks with common features, compared at the same
reward on the task in training: SFT on foreign right answers ends four times as far from the model
as RFT, on its own ones as far, on this task and on the others; a KL on the task holds nothing of
the others, replay raises their accuracy by .09 and moves the policy as far; RECAP's weights are
within .93 and 1.08 and bring nothing beyond replay.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Eight questions of three tasks with six features in common; gradients are exact."""
    config = defaults.get_config("policy/forgetting", scale)
    config.features = 6
    # Probability of a right answer at which trainings are compared.
    config.reward = 0.7
    config.step_size = 3.0
    config.steps = 250
    config.beta = 0.1
    config.entropy_weight = 0.1
    # Steps of each half of RECAP's window.
    config.window = 10
    config.sweep = ConfigDict(
        {
            # Factor on KL, replay and terms of the entropy.
            "factor": (1.0,),
            # Share of the foreign answers in what is called so; the rest are the model's own.
            "foreign": (1.0,),
            # Of RECAP's weights.
            "temperature": (5.0,),
            # Ratios of KLs deviate by a quarter in the mean of 16.
            "seed": tuple(range(192 if scale == "full" else 48)),
        }
    )
    return config
