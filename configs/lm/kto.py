"""The baseline of KTO: what trainers estimate in place of the KL that the loss is defined with.

    python -m experiments.run --config=configs/lm/kto.py

Three seconds. Ethayarajh et al. 2024 (arXiv:2402.01306) define the loss by KL(policy‖reference) and
estimate it from answers to other prompts of the batch, cut off at 0. All answers are enumerated
here, so both numbers are exact; nobody has published the difference. To expect: a fraction of the
KL, or 0.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Prompts differ in all of their tokens' laws; what training changed has a common part."""
    config = defaults.get_config("lm/kto", scale)
    config.prompts = 4
    config.longest = 4
    config.vocabulary = 4
    # Of the variance of the change of logits the share that all prompts have in common.
    config.common = 0.5
    # The share of answers that belong to their prompt: 0 in trainers.
    config.matched = 0.0
    config.sweep = ConfigDict(
        {
            "distance": (0.25, 0.5, 1.0, 2.0),
            "seed": tuple(range({"smoke": 8, "quick": 32, "full": 256}[scale])),
        }
    )
    return config
