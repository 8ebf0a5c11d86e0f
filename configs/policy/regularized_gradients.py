"""Which losses have the gradient of a KL-regularized objective, exactly; and where they lead.

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
    """Seven answers, and the tabular language model of `jdiv.lm`, whose draw of the reference is
    seed 0."""
    config = defaults.get_config("policy/regularized_gradients", scale)
    config.actions = 7
    config.beta = 1.0
    # What the old policy sums to where it is not normalized.
    config.total = 1.7
    # Standard deviation of the old policy's logits around the policy's, in the language model.
    config.lag = 0.5
    # Descents: samples of a batch, steps that each batch is used for, batches.
    config.batch = 256
    config.inner = 4
    config.batches = {"smoke": 500, "quick": 1000, "full": 4000}[scale]
    config.step_size = 0.2
    # Of the way back to an answer that is lost.
    config.step_back = 0.05
    config.steps_back = 2000
    kinds = ("kl", "reverse_kl", "alpha", "jeffreys", "jensen_shannon", "le_cam")
    config.rows = {"smoke": kinds[:2], "quick": kinds, "full": tuple(generators.TABLE)}[scale]
    # Of rows that are not taken with their own.
    config.parameters = ConfigDict({"tsallis": {"index": 1.5}})
    # Axes with one value each, so that a control that takes another one is the same program.
    config.sweep = ConfigDict(
        {
            # Of the divergence: -1 pushes away.
            "sign": (1.0,),
            # 0 takes samples of the old policy as they are.
            "weighted": (1.0,),
            "seed": tuple(range({"smoke": 2, "quick": 16, "full": 128}[scale])),
        }
    )
    return config
