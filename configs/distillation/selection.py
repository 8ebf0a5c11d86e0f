"""Data to distil on: MiniPLM's difference of two models, DSIR's resampling, LLKD's samples.

    python -m experiments.run --config=configs/distillation/selection.py

Ten seconds. Gu et al. 2025 (arXiv:2410.17215), Xie et al. 2023 (arXiv:2302.03169) and Li et al.
2024 (arXiv:2411.08028) on toys of discrete laws, for which no number is published. To expect: the
half with the largest difference is the language that a small model does not know; resampling comes
to the target's law, and the largest weights alone are narrower; LLKD needs few labels.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Sizes of corpora; all draws are new for each seed."""
    config = defaults.get_config("distillation/selection", scale)
    config.words = 12
    config.length = 12
    config.documents = 2000
    # MiniPLM's "difference" of log-probabilities, or their "quotient".
    config.score = "difference"
    # DSIR: words of a document, share of the target's topic in the raw corpus, and whose law the
    # weights lead to.
    config.sentence = 6
    config.found = 0.2
    config.towards = "target"
    config.buckets = 200
    config.kept = config.documents // 8
    # Size of DSIR's Gumbel noise: 1, or 0 for the largest weights.
    config.noise = 1.0
    # LLKD: samples a step, steps, and how much more often than its doubt says the teacher errs.
    config.pool = 64
    config.steps = 300
    config.step_size = 0.5
    config.flipped = 0.75
    # Whose uncertainty counts: the "student" or "nobody".
    config.uncertain = "student"
    config.sweep = ConfigDict({"seed": tuple(range({"smoke": 8, "quick": 16, "full": 128}[scale]))})
    return config
