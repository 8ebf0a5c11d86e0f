"""What the averages and clips of group-based policy gradients do to tokens, exactly.

    python -m experiments.run --config=configs/policy/group_losses.py

A quarter of a minute on two cores. Expect a sequence's share of the gradient to be flat in its
length for GRPO and proportional to it for DAPO and Dr. GRPO; a shared prefix of two answers with
opposite rewards to cancel unless the average divides by lengths; and of the expected gradients only
RLOO's to be that of the expected reward.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Sequences of powers of two; groups of two on the language model of `jdiv.lm.tabular`."""
    config = defaults.get_config("policy/group_losses", scale)
    config.lengths = (1, 2, 4, 8, 16, 32, 64)
    # Tokens of the right answer, and of the prefix that it shares with the wrong one.
    config.right = 8
    config.shared = 3
    # Bounds of clips: symmetric, DAPO's higher one, CISPO's, dual clip's.
    config.low = 0.2
    config.high = 0.2
    config.higher = 0.28
    config.open = 2.0
    config.ceiling = 3.0
    # Of advantages: -1 takes the wrong answers for the right ones.
    config.sign = 1.0
    config.sweep.seed = tuple(range({"smoke": 4, "quick": 32, "full": 512}[scale]))
    return config
