"""Trained language models against the exact frontier of reward and KL.

    python -m experiments.run --config=configs/lm/frontier.py

A minute on one core. A small transformer that learnt a grammar of brackets is the reference. All of
its answers are enumerated, so that the tilted optimum, the frontier and every divergence are exact.
To expect: f-DPG with every row and KL-regularized policy gradients end within .05 nats of the
optimum, most within .001, and leave as little of the frontier's reward; paid the other way round
they end elsewhere.
"""

from ml_collections import ConfigDict

from configs import defaults
from jdiv.divergences import generators


def get_config(scale: str = "quick") -> ConfigDict:
    """Adam's second moment is a short average, `decay`: far from the optimum of a small beta the
    gradients of Pearson chi2 are thousands of times those at the end, and would be remembered.
    """
    config = defaults.get_config("lm/frontier", scale)
    config.optimized = scale != "smoke"
    if scale != "full":  # a control, which has one point, needs no program of its own
        config.lanes = 1
    config.steps = {"smoke": 1000, "quick": 1500, "full": 5000}[scale]
    config.answers = {"smoke": 256, "quick": 512, "full": 1024}[scale]
    # Falls to 0: at the end gradients are small beside their noise.
    config.learning_rate = 0.01
    config.decay = 0.95
    config.longest = 4 if scale == "full" else 3
    config.width = 16
    # Of supervised training on the grammar.
    config.sft_steps = 100 if scale == "smoke" else 200
    # kl_rl, or a row for f-DPG.
    rows = ("kl", "jensen_shannon") if scale == "smoke" else tuple(generators.TABLE)
    config.objectives = ("kl_rl", *rows)
    config.sweep = ConfigDict(
        {
            # -1 pays for being improbable under the target.
            "sign": (1.0,),
            "beta": (0.5,) if scale == "smoke" else (0.25, 0.5, 1.0),
            "seed": tuple(range({"smoke": 1, "quick": 1, "full": 8}[scale])),
        }
    )
    return config
