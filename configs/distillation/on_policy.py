"""Distillation on the student's own samples: where it leads, how much it varies, whose gradient.

    python -m experiments.run --config=configs/distillation/on_policy.py

Half a minute. G-OPD ends at ref^(1 - scale) teacher^scale; the variance of one sample's gradient
without a baseline, with vOPD's and with the best one is .3990, .3687, .3648 for ten tokens; of the
three penalties of KDRL k1 teaches nothing, k2 reverse KL, k3 forward KL. All are exact sums.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Random laws of a few tokens; the seeds say how much depends on the draw."""
    config = defaults.get_config("distillation/on_policy", scale)
    config.tokens = 5
    config.steps = 5000
    config.step_size = 2.0
    # Sizes of the vocabulary in the table of variances.
    config.sizes = (10, 100) if scale == "smoke" else (10, 100, 1000)
    config.sweep = ConfigDict(
        {
            # 1, or -1 for the reward of the wrong sign.
            "sign": (1.0,),
            # The part of the reference in the reward: 0 leaves it out.
            "anchored": (1.0,),
            # The part of samples that come from whom they should: the others are uniform.
            "own": (1.0,),
            "seed": tuple(range({"smoke": 2, "quick": 8, "full": 64}[scale])),
        }
    )
    return config
