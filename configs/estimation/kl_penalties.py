"""KL penalties of language-model trainers, exactly: which gradient, and where it leads.

    python -m experiments.run --config=configs/estimation/kl_penalties.py

Under half a minute on two cores. Expect, at seed 0, relative errors of the expected gradient of
0.545 and 0.663 for k2 and k3 token by token and 1.058 for k1 averaged over a sequence; and 2000
steps of that last one as the only loss to lengthen sequences from 1.879 tokens to 2.997 (3 at
most), while the true KL rises from 0.685 to 3.686.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The reference numbers are of seed 0; the other seeds say how much of it is that draw."""
    config = defaults.get_config("estimation/kl_penalties", scale)
    # Whose samples the gradient is averaged over: or "reference".
    config.sampled_from = "policy"
    # What sequence-mean divides by: the sequence's own "length", or the "longest" for all.
    config.mean_over = "length"
    # What the reward to go of a token is: all that is "to go", or its "own token" alone.
    config.credit = "to go"
    # Of gradient descent; the source gives none, and its numbers are those of 1.
    config.step_size = 1.0
    config.training = defaults.training(2000, record_every=2, checkpoint_every=1000)
    config.sweep = ConfigDict({"seed": tuple(range({"smoke": 2, "quick": 16, "full": 64}[scale]))})
    return config
