"""Teachers of k tokens: with a tail, renormalized, truncated, for every row; KL-Top.

    python -m experiments.run --config=configs/distillation/sparse_teachers.py

Half a minute on two cores. Expect the divergence with a tail never below 0 and never above the
whole one, truncated forward KL below 0 in most steps of training by it, and truncated reverse KL to
leave the student with 1/e of the teacher's mass on the k tokens.
"""

from ml_collections import ConfigDict

from configs import defaults
from jdiv.divergences import generators

FEW = ("kl", "reverse_kl", "jensen_shannon", "total_variation")


def get_config(scale: str = "quick") -> ConfigDict:
    """Teachers of 64 tokens with a few likely ones, students near them."""
    config = defaults.get_config("distillation/sparse_teachers", scale)
    config.generators = FEW if scale == "smoke" else tuple(generators.TABLE)
    config.cases = {"smoke": 4, "quick": 8, "full": 64}[scale]
    # How many tokens are known, and of how many in training.
    config.known = (1, 2, 4, 8, 16, 32, 63)
    config.kept = 8
    # Sizes of the teacher's logits, and of what the student's are off by.
    config.spread = 3.0
    config.distance = 1.0
    # Steps of gradient descent on the logits.
    config.steps = {"smoke": 1000, "quick": 2000, "full": 20000}[scale]
    config.step_size = 4.0
    # The layer: features, bits of its weights, contexts to fit its scales on, steps.
    config.width = 16
    config.bits = 3
    config.contexts = (8, 64)
    config.fitting_steps = 200
    config.sweep.seed = tuple(range({"smoke": 2, "quick": 3, "full": 32}[scale]))
    # What is left of the teacher's mass on tokens that are not known.
    config.sweep.rest = (1.0,)
    return config
