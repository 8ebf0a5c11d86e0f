"""A judge selects among k samples of a Bayesian linear model: how the error falls, and when not.

    python -m experiments.run --config=configs/alignment/judges.py

Ten seconds. Halder and Pehlevan 2025: with the teacher as the judge the error of the best of k
falls like c / k^2, of which the coefficient is derived here; a judge beyond the teacher has a best
k, and a best temperature; a softmax of many samples is the optimum of reward less KL at beta = T.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Random teachers and data, some questions to each."""
    config = defaults.get_config("alignment/judges", scale)
    config.dimension = 6
    config.examples = 12
    # Variance of the noise; the teacher's weights have variance 1.
    config.variance = 0.25
    config.questions = {"smoke": 2, "quick": 4, "full": 64}[scale]
    # Samples in each draw, and draws, that the exact error is compared with.
    config.samples = 4
    config.draws = {"smoke": 2000, "quick": 16_000, "full": 100_000}[scale]
    config.sweep = ConfigDict(
        {
            # Where the judge stands: at the model's mean at -1, at the teacher at 0, beyond it.
            "overshoot": (-1.0, 0.0, 0.25, 1.0, 2.0),
            "temperature": (0.25, 0.5, 1.0, 4.0),
            "seed": tuple(range({"smoke": 1, "full": 16}.get(scale, 2))),
        }
    )
    return config
