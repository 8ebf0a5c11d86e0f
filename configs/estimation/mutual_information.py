"""Critics learn mutual information: InfoNCE, NWJ, Donsker-Varadhan and SMILE on a staircase.

    python -m experiments.run --config=configs/estimation/mutual_information.py

A minute on two cores. The setting of ermongroup/smile-mi-estimator (Song and Ermon
2020): 20 dimensions, 2 to 10 nats, 64 pairs, Adam 5e-4, embeddings of 32; two hidden
layers of 128 in place of 256, 10,000 of its 20,000 steps and separable critics only (`:full` is the
setting itself, for an accelerator). Expect
with the best critic and 10 nats 4.12 of InfoNCE, 11.2 of Donsker-Varadhan and 12.0 of SMILE.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Steps, widths and seeds by scale; batch and dimension are those of the reference values."""
    config = defaults.get_config("estimation/mutual_information", scale)
    config.optimized = True
    config.precision = "float32"
    config.dimension = 20
    config.pairs = 64
    # Nats, one level of the staircase each.
    config.information = (2.0, 4.0, 6.0, 8.0, 10.0)
    # Of SMILE.
    config.clip = 5.0
    config.hidden = {"smoke": 32, "quick": 128, "full": 256}[scale]
    config.embedding = 32
    # A small critic and few steps want larger ones.
    config.learning_rate = 5e-3 if scale == "smoke" else 5e-4
    # Or "exchanged": pairs that belong together are counted where they should not be.
    config.partition = "right"
    # Whether every step has a batch of its own.
    config.fresh = True
    config.training = {
        "smoke": defaults.training(1000, record_every=1, checkpoint_every=1000),
        "quick": defaults.training(10_000, record_every=1, checkpoint_every=2000),
        "full": defaults.training(20_000, record_every=1, checkpoint_every=2000),
    }[scale]
    config.lanes = 4
    critics = ("separable", "concatenated") if scale == "full" else ("separable",)
    config.sweep = ConfigDict(
        {
            "estimator": ("infonce", "nwj", "dv", "smile"),
            "critic": critics,
            "seed": tuple(range(8 if scale == "full" else 2)),
        }
    )
    return config
