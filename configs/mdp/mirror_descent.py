"""Policy mirror descent with exact action values: which step sizes give which rate.

    python -m experiments.run --config=configs/mdp/mirror_descent.py

Half a minute on two cores. With KL and a constant step the suboptimality stays below
ln|A|/((1 - g) eta k) + 1/((1 - g)^2 k); with steps that grow like g^-k it falls faster than g^k
(by .77 an iteration for g = .9); with entropy it contracts by a + (1 - a) g, a = 1/(1 + eta t).
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
    # Standard deviation of an error on the action values.
    config.noise = 0.0
    # Factors on the steps, of which the bounds know nothing, and on the entropy that they have.
    config.step_factor = 1.0
    config.entropy_factor = 1.0
    rows = (
        ("short", "kl", 0.1, 1.0, 0.0),
        ("medium", "kl", 1.0, 1.0, 0.0),
        ("long", "kl", 10.0, 1.0, 0.0),
        ("growing", "kl", 1.0, 1 / config.discount, 0.0),
        ("short, with entropy", "kl", 0.3, 1.0, 0.1),
        ("long, with entropy", "kl", 10.0, 1.0, 0.1),
        ("Pearson's chi2", "pearson_chi2", 1.0, 1.0, 0.0),
        ("reverse KL", "reverse_kl", 1.0, 1.0, 0.0),
        ("squared Hellinger", "squared_hellinger", 1.0, 1.0, 0.0),
    )
    names = ("steps", "generator", "step_size", "growth", "entropy_weight")
    config.sweep = ConfigDict(dict(zip(names, zip(*rows, strict=True), strict=True)))
    config.sweep.seed = tuple(range({"smoke": 2, "quick": 8, "full": 32}[scale]))
    config.zipped = (",".join(names),)
    return config
