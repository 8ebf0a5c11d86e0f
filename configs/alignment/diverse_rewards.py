"""Diverse reward ensembles under a KL penalty, from labels of which a quarter is wrong.

    python -m experiments.run --config=configs/alignment/diverse_rewards.py

Half a minute on two cores. UP-RLHF's ensemble of adapters, made to differ by a nuclear norm, in a
toy: with a quarter of the labels wrong, at beta = .05, the reward less twice the deviation of the
members reaches a true reward of 4.5 with the nuclear norm and -.4 without, where all agree in what
is wrong with their base. The mean wants beta = 2 and has .7 there; with the deviation or the
variance taken away the smallest beta is the best.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """A seed is a true reward, its comparisons, an ensemble and a pool of answers."""
    config = defaults.get_config("alignment/diverse_rewards", scale)
    # Features of answers: those that comparisons vary, and those that they hardly do.
    config.seen, config.silent = 4, 4
    config.spread = 0.05
    config.pairs, config.members = 150, 5
    # Size of the base's weights where it is wrong, and of the adapters at the start.
    config.base, config.start, config.ridge = 1.0, 0.1, 0.02
    config.steps, config.step_size = 150, 1.0
    # A tenth of the pool is strange: what comparisons hardly vary is large there.
    config.pool, config.strange = 400, 0.1
    config.betas = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
    config.sweep = ConfigDict(
        {
            # Weight of the nuclear norm, and share of labels that are wrong.
            "diversity": {"smoke": (0.0, 0.05)}.get(scale, (0.0, 0.02, 0.05, 0.1)),
            "flipped": (0.0, 0.25),
            # Of the variance, or of the deviation, that is subtracted.
            "coefficient": (2.0,),
            "seed": tuple(range({"smoke": 12, "quick": 32, "full": 1000}[scale])),
        }
    )
    return config
