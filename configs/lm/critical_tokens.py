"""Critical tokens of longer sums: a KL penalty where the reference is sure, and one everywhere.

    python -m experiments.run --config=configs/lm/critical_tokens.py

Half a minute on one core. Networks that learnt sums of up to two digits are trained on three, as
Vassoyan et al. 2025 (arXiv:2502.06533) do with a transformer on seven and more; here gradients are
expected ones. To expect: at the same coefficient the prioritized penalty lets the model learn the
longer sums and the plain one does not; of the success that a KL buys neither gets more.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """All points share a program: lengths, powers and coefficients are its arguments."""
    config = defaults.get_config("lm/critical_tokens", scale)
    config.base = 3
    # Of the sums that are rewarded.
    config.digits = 3
    config.width = 32
    # Standard deviation of the first weights: small ones make places that were not seen alike.
    config.spread = 2.0
    config.learning_rate = 0.02
    # Steps on right answers, and then on rewards.
    config.pretraining = 300
    config.steps = 50 if scale == "smoke" else 100
    config.sweep = ConfigDict(
        {
            # The longest sums of the pre-training.
            "trained": (2,),
            # Of the confidence; 0 is the plain penalty.
            "power": (150.0,),
            "beta": (1.0,) if scale == "smoke" else (0.1, 0.3, 1.0),
            "seed": tuple(range({"smoke": 2, "quick": 8, "full": 64}[scale])),
        }
    )
    return config
