"""Gradients by bfloat16 logits as p approaches q: 0.15 % off with float32 inside, else 20 %.

    python -m experiments.run --config=configs/estimation/half_precision.py

Under half a minute on two cores. Expect a relative gradient error of 0.15 % for the library at
every acceptance rate, and for bfloat16 throughout one that grows like 1 / (1 - acceptance); and KL
of exactly 0 between equal logits of 250,000 categories, where optax in bfloat16 gives 0.02.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Sizes by scale; 32,000 categories are those of the published table."""
    config = defaults.get_config("estimation/half_precision", scale)
    config.vocabulary = {"smoke": 4000, "quick": 32000, "full": 32000}[scale]
    config.equal_vocabulary = {"smoke": 50_000, "quick": 250_000, "full": 250_000}[scale]
    # Standard deviation of the target's logits.
    config.logit_scale = 2.0
    # Inside of the gradients by the library, and by formulas as they are customarily written.
    config.library_arithmetic = "float32"
    config.naive_arithmetic = "bfloat16"
    config.lanes = 2
    config.sweep = ConfigDict(
        {
            # The sum of min(p, q), 1 - total variation.
            "acceptance": {
                "smoke": (0.88, 0.98),
                "quick": (0.7, 0.88, 0.95, 0.98, 0.99, 0.995),
                "full": (0.5, 0.7, 0.8, 0.88, 0.92, 0.95, 0.97, 0.98, 0.99, 0.995),
            }[scale],
            "seed": tuple(range({"smoke": 2, "quick": 4, "full": 64}[scale])),
        }
    )
    return config
