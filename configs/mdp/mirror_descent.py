"""Policy mirror descent with exact action values: which step sizes give which rate.

    python -m experiments.run --config=configs/mdp/mirror_descent.py

Half a minute on two cores. With KL and a constant step the suboptimality stays below
ln|A|/((1 - g) eta k) + 1/((1 - g)^2 k); with steps that grow like g^-k it falls faster than g^k
(by .73 an iteration for g = .9); with entropy it contracts by a + (1 - a) g, a = 1/(1 + eta t).
Steps in other divergences improve monotonically as well.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Garnet(20, 4, 3), discount .9, rewards in [0, 1]."""
    config = defaults.get_config("mdp/mirror_descent", scale)
    config.states, config.actions, config.branches = 20, 4, 3
    config.discount = 0.9
    config.iterations = {"smoke": 60, "quick": 200, "full": 1000}[scale]
    # Standard deviation of an error on the action values, for a control.
    config.noise = 0.0
    config.claims = ConfigDict({"bound": 1.0, "geometric": 3, "faster": 1.0})
    geometric = 1 / config.discount
    variants = (
        ("kl", 0.1, 1.0, 0.0),
        ("kl", 1.0, 1.0, 0.0),
        ("kl", 10.0, 1.0, 0.0),
        ("kl", 1.0, geometric, 0.0),
        ("kl", 0.3, 1.0, 0.1),
        ("kl", 10.0, 1.0, 0.1),
        ("pearson_chi2", 1.0, 1.0, 0.0),
        ("reverse_kl", 1.0, 1.0, 0.0),
        ("squared_hellinger", 1.0, 1.0, 0.0),
    )
    if scale == "smoke":
        variants = variants[:7]
    generator, rate, growth, entropy = zip(*variants, strict=True)
    config.sweep = ConfigDict(
        {
            "variant": tuple(range(len(variants))),
            "generator": generator,
            "rate": rate,
            "growth": growth,
            "entropy": entropy,
            "seed": tuple(range({"smoke": 2, "quick": 8, "full": 32}[scale])),
        }
    )
    config.zipped = ("variant,generator,rate,growth,entropy",)
    return config
