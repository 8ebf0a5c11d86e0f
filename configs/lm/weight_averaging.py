"""Averages of trained transformers: WARP's merged policies and moving anchor, SALSA's average.

    python -m experiments.run --config=configs/lm/weight_averaging.py

A minute on two cores, most of it compiling. Rewards and KLs are exact: all answers are enumerated.
To expect, at equal KL: merged policies are better than weights between the start and one policy,
these better than the policy was in training, and mixtures of answers worse than all; none reaches
the optimum. An anchor that follows the policy frees it, at the same coefficient. The average of two
tuned models is nearer to the language than they are, but as the reference of training (SALSA) it
brings no more reward here. Task vectors are 17 to 35 degrees apart, where WARP reports about 90,
and so merging by arcs or by lines makes no difference. Published numbers are those of large models
and not reproduced: Gemma 1.1 to WARP, GSM8K 55.6 to 66.8, MATH 25.6 to 31.0.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Transformers of some thousand weights on a grammar of brackets, all answers enumerated."""
    config = defaults.get_config("lm/weight_averaging", scale)
    small = scale == "smoke"
    config.precision = "float32"
    config.optimized = not small
    config.lanes = 4
    config.width, config.layers, config.hidden = (8, 1, 16) if small else (16, 2, 32)
    config.longest = {"smoke": 3, "quick": 5, "full": 6}[scale]
    # The share of brackets in what models are pretrained on, and in the demonstrations.
    config.general, config.special = 0.3, 0.6
    # Of each of two models, all of them in every step of tuning.
    config.demonstrations, config.tuning = 64, 40 if small else 60
    config.pretraining, config.rate = 80 if small else 200, 3e-3
    # Reinforcement, measured at so many moments; the noise is the judge's deviation.
    config.steps, config.moments, config.batch = 48 if small else 128, 8, 16
    config.rl_rate = 2e-3 if small else 6e-4
    config.noise = 1.0
    # Coefficient of KL to the anchor.
    config.beta = 1.0
    # Places on the lines from the start, and where fronts are compared, in nats.
    config.shares = tuple(round(0.1 * i, 1) for i in range(11))
    config.levels = (0.25, 0.5, 1.0, 2.0)
    config.sweep = ConfigDict(
        {
            # Whether each model has draws of its own (1) or all have the same (0).
            "apart": (1,),
            # How much the anchor moves towards the policy at each step.
            "follow": (0.05,),
            "seed": tuple(range({"smoke": 2, "quick": 4, "full": 64}[scale])),
        }
    )
    return config
