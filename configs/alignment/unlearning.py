"""Unlearning: demoted tokens, Gauss-Newton steps and matched predictions against retraining.

    python -m experiments.run --config=configs/alignment/unlearning.py

Twenty-five seconds on two cores. Secrets planted in a bigram model by log-odds of 3 are gone, and
nothing else is, at a demotion of 3; uphill Gauss-Newton steps raise the forget loss above what
gradient ascent reaches at the same retained KL; ridge regression fitted to leave-out predictions is
the retrained one, which descent on the retained does not become; KLoM of logistic regressions.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Four small models, each with a retrained one beside it."""
    config = defaults.get_config("alignment/unlearning", scale)
    # Tokens of the bigram model, the log-odds of planted secrets, and how much is demoted.
    config.vocabulary, config.planted, config.demotions = 7, 3.0, (0.0, 1.5, 3.0, 4.5)
    config.newton_steps = 16
    # Of the k most probable tokens in the top-k loss.
    config.k = 2
    # Softmax regression: classes, width, retained and forgotten samples, steps and their KL.
    config.softmax = ConfigDict(
        {"classes": 4, "width": 5, "retained": 40, "forgotten": 8, "ridge": 0.5}
    )
    config.steps, config.radius = 12, 5e-4
    # Linear and logistic regression with more weights than samples.
    config.linear = ConfigDict({"width": 100, "retained": 20, "forgotten": 4, "ridge": 0.1})
    config.logistic = ConfigDict({"width": 64, "retained": 13, "forgotten": 3, "ridge": 0.1})
    config.iterations = 300
    # Models for each histogram of margins, its bins, and points that no model has seen.
    config.models, config.bins, config.unseen = {"smoke": 60}.get(scale, 200), 10, 20
    config.sweep = ConfigDict(
        {
            "seed": tuple(range({"smoke": 2, "quick": 4, "full": 32}[scale])),
            # Tokens that are demoted, of those of the text: two of six.
            "share": (0.4,),
            # Added to the curvature; far above it the step is gradient ascent.
            "damping": (1e-4,),
            # Of the predicted change, how much is in the targets.
            "predicted": (1.0,),
        }
    )
    return config
