"""Best of n from a language model: reward against KL, the bound, the estimator, the win rate.

    python -m experiments.run --config=configs/lm/best_of_n.py

Half a minute on two cores, most of it sampling from SmolLM2-135M-Instruct. Two rewards of the same
answers: how many words of a short lexicon are in it, which ties often, and how many characters it
has, which ties seldom. The KL of the best of n stays below log n - (n - 1)/n for both, far below it
where answers tie; the estimator of Beirami et al. knows the probability of an answer alone and
gives the bound for both.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """SmolLM2; at smoke scale a small transformer before training in its place."""
    config = defaults.get_config("lm/best_of_n", scale)
    # "smollm2", or "random": a transformer before training whose tokens are words.
    config.model = "random" if scale == "smoke" else "smollm2"
    config.prompt = "My holiday by the sea was"
    # Answers that are sampled, of this many tokens at most; the half of them is the pool.
    config.answers = {"smoke": 256, "quick": 256, "full": 4096}[scale]
    config.tokens = {"smoke": 10, "quick": 10, "full": 32}[scale]
    config.draws = (1, 2, 4, 8, 16, 32)
    # The divergence of the best of n from the pool.
    config.generator = "kl"
    # What of a tie counts as won.
    config.tie_share = 0.5
    config.sweep = ConfigDict({"seed": (0,)})
    return config
