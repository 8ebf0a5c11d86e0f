"""How long answers become: penalties of length, truncation, credit of steps, and averages.

    python -m experiments.run --config=configs/policy/lengths.py

Ten seconds. A language model of three tokens, enumerated; no paper has these questions. Expect the
accuracy of hard questions to fall to 0 where every answer pays for its length, and to stay with
GRPO-lambda, ARLCP and DOT, all of which shorten easy answers by a third; DLER to weigh all
questions alike, which GRPO does not; and a mean over answers to prefer short ones.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Easy questions with right answers of two to four tokens, hard ones that take four."""
    config = defaults.get_config("policy/lengths", scale)
    # Of each kind; answers drawn to each, and batches.
    config.questions = 8
    config.size = 16
    config.steps = 120
    config.step_size = 2.0
    seeds = tuple(range({"smoke": 1, "quick": 2, "full": 32}[scale]))
    config.sweep = ConfigDict({"strength": (1.0,), "seed": seeds})
    return config
