"""What keeps a rare right answer: eight recipes for exploration, on questions of few answers.

    python -m experiments.run --config=configs/policy/exploration.py

A quarter of a minute. A language model of three tokens, enumerated; no paper has these questions.
Expect AER's entropy within 5 % of its target from coefficients a hundred times apart, where fixed
ones collapse or explode; pass@32 of an answer of 1e-3 or 1e-4 to rise with AER and to be lost with
GRPO; HAEPO's gradient to be exact where each answer stands once, and that of pi^2 where answers are
drawn; Lp-Reg to pull up what its proxy keeps, and ACE to remove what it is sure of and wrong.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Questions of three kinds to a language model of three tokens and three places."""
    config = defaults.get_config("policy/exploration", scale)
    # Of each kind; answers drawn to each; batches, and steps on each.
    config.questions = 8
    config.size = 16
    config.steps = 120
    config.inner = 2
    config.step_size = 3.0
    # Factor on all that the recipes add to GRPO: 0 takes it away.
    seeds = tuple(range({"smoke": 1, "quick": 2, "full": 32}[scale]))
    config.sweep = ConfigDict({"strength": (1.0,), "seed": seeds})
    return config
