"""Which losses have the gradient of a KL-regularised objective, exactly; and where they lead.

    python -m experiments.run --config=configs/policy/regularized_gradients.py

About half a minute on two cores. Expect all losses of RPG within rounding of the objective's
gradient, old policy of mass 1.7; a table of KL estimators by placement, with relative errors 0.545
and 0.663 for k2 and k3 token by token and 0 where the weights are right; and descents that end at
the closed forms.
"""

from ml_collections import ConfigDict

from configs import defaults
from jdiv import generators


def get_config(scale: str = "quick") -> ConfigDict:
    """Seven answers, and the tabular language model of `jdiv.lm`, whose published
    draw is seed 0."""
    config = defaults.get_config("policy/regularized_gradients", scale)
    config.actions = 7
    config.beta = 1.0
    # What the old policy sums to where it is not normalised.
    config.total = 1.7
    # Standard deviation of the old policy's logits around the policy's, in the language model.
    config.lag = 0.5
    # Descents: samples of a batch, steps that each batch is used for, batches.
    config.batch = 256
    config.inner = 4
    config.batches = {"smoke": 500, "quick": 1000, "full": 4000}[scale]
    config.rate = 0.2
    kinds = ("kl", "reverse_kl", "alpha", "jeffreys", "jensen_shannon", "le_cam")
    config.rows = {"smoke": kinds[:2], "quick": kinds, "full": tuple(generators.TABLE)}[scale]
    config.parameters = ConfigDict(
        {
            "jensen_shannon": {"weight": 0.5},
            "skew_kl": {"skew": 0.1},
            "alpha": {"alpha": 0.5},
            "tsallis": {"index": 1.5},
        }
    )
    config.claims = ConfigDict(
        {
            # Of the sweep: "right", with the divergence "pushed" away by a minus sign, or with
            # samples of the old policy "unweighted".
            "variant": "right",
            # Compares every loss with the objective of the other direction of KL.
            "swapped": False,
            # Placements that the claims are about.
            "local": "token",
            "inexact": "token, weighted",
            "other": "sequence",
            "clipped": "RKL, clipped",
        }
    )
    config.sweep = ConfigDict(
        {
            "variant": (0, 1, 2),
            "sign": (1.0, -1.0, 1.0),
            "weighted": (1.0, 1.0, 0.0),
            "seed": tuple(range({"smoke": 2, "quick": 16, "full": 128}[scale])),
        }
    )
    config.zipped = ("variant,sign,weighted",)
    return config
