"""Difficulty: how far the optimum is from a start with pass rate p, and filtering by pass rate.

    python -m experiments.run --config=configs/policy/difficulty.py

Some seconds on two cores, with its controls. Online difficulty filtering (arXiv:2504.03380):
`KL(pi_0‖pi*) = log(1 - p + p e^(1/beta)) - p/beta`, near p(1 - p)/(2 beta^2). As a lower bound this
holds at beta = 1 for p = .01, .1, .3 (.0070, .0586, .1157 against .0050, .0450, .1050) and fails
for .5, .7, .9 (.1201, .0897, .0347 against .1250, .1050, .0450). Groups of answers within the band
[.2, .8] carry twice the gradient signal of an unfiltered batch of the same size.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Pass rates on a grid with the six of the reference; questions of arcsine rates."""
    config = defaults.get_config("policy/difficulty", scale)
    config.pass_rates = (0.01, *(round(0.05 * i, 2) for i in range(1, 20)), 0.99)
    # Regularizer of the optimum that is solved for: the closed form is that of "kl".
    config.generator = "kl"
    # Answers for each question.
    config.group = 8
    config.questions = {"smoke": 2_000, "quick": 20_000, "full": 200_000}[scale]
    # Mean rewards that the filter keeps: (0, 1) are all.
    config.band = (0.2, 0.8)
    config.sweep = ConfigDict(
        {
            "beta": {"smoke": (0.25, 1.0, 100.0)}.get(scale, (0.1, 0.25, 0.5, 1.0, 4.0, 100.0)),
            "seed": tuple(range({"smoke": 4, "quick": 16, "full": 64}[scale])),
        }
    )
    return config
