"""Best-of-n against ensembles of reward models: who is exploited, and who is not.

    python -m experiments.run --config=configs/alignment/reward_ensembles.py

A quarter of a minute on two cores. Coste et al. 2024's claim in a toy: where reward models disagree
on a tenth of the answers, one of five and their mean overoptimize (1.10 at n = 16 and -.09 at 256;
2.21 at 256 and 1.42 at 12,500), their minimum and the mean less half the variance rise to 3.67 and
3.69, next to 3.84 with the true reward. With the same noise everywhere nobody overoptimizes.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """12,500 answers to each prompt, five reward models; a seed is a prompt."""
    config = defaults.get_config("alignment/reward_ensembles", scale)
    config.optimized = scale != "smoke"
    config.pool = 12_500
    config.members = 5
    # Weight of the variance that UWO takes away.
    config.coefficient = 0.5
    # A strange answer is worse and its reward is noise.
    config.strange = ConfigDict({"share": 0.1, "gold": -1.0, "noise": 3.0})
    config.noise = 0.3
    config.sweep = ConfigDict(
        {"seed": tuple(range({"smoke": 32, "quick": 240, "full": 2000}[scale]))}
    )
    return config
