"""Averages of weights: spherical merging, WARP's front of reward against KL, SALSA's reference.

    python -m experiments.run --config=configs/alignment/averaging.py

Twenty seconds on one core. Between vectors of one length at 90, 60, 30 degrees the middle
of the line has .7071, .8660, .9659 of it and that of the arc all. In softmax bandits with noisy
rewards two merged policies have more reward at the same KL than one, and four more than two. Later
rounds of WARP reach more reward, but less at the same KL: that they lie above the first is not seen
here. Published numbers are those of language models and not reproduced here: WARP's
Gemma 1.1 to WARP, MBPP 39.0 to 45.4, MMLU 56.4 to 57.6, GSM8K 55.6 to 66.8, MATH 25.6 to 31.0,
HumanEval 46.9 to 50.0, BBH 53.1 to 58.8.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Bandits, one for each seed; WARP's share, two models; its beta and step size fit the toy."""
    config = defaults.get_config("alignment/averaging", scale)
    config.degrees = (90.0, 60.0, 30.0)
    config.answers = 30
    # Standard deviation of what is seen of a reward of standard deviation 1.
    config.noise = 2.0
    config.steps, config.batch, config.step_size = 250, 4, 0.3
    # Coefficient of KL to the anchor, and how fast it follows.
    config.beta, config.follow = 0.5, 0.05
    # Of the way from the start of a round to what was merged, to the start of the next.
    config.share, config.rounds = 0.3, 3
    # What a supervised model has seen, and its prior as a share of that.
    config.demonstrations, config.prior = 60, 0.3
    config.shares = tuple(round(0.1 * i, 1) for i in range(11))
    config.levels = (0.2, 0.4, 0.6)
    config.sweep = ConfigDict(
        {
            # 0: all models are trained on the same draws, and no anchor and no start moves.
            "intact": (1.0,),
            "seed": tuple(range({"smoke": 96, "quick": 192, "full": 5000}[scale])),
        }
    )
    return config
