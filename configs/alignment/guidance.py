"""Q# from rollouts, with rewards that are random: against guidance by the reference's own values.

    python -m experiments.run --config=configs/alignment/guidance.py

Half a minute on two cores. With even noise Q# is the best policy at its KL to rounding, where
guidance by the reference's mean return is short by .015 of reward at beta = .05, and from the same
rollouts Q# is 1.6 to 7 times nearer. Where rewards are 0 or 1 it spends 2 % of the KL that it
should. Aggregated data are no better than the reference's (1.03). Zhou et al. 2025 have language
models.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """A seed is a tree; its ends have mean rewards, around which those of rollouts are random."""
    config = defaults.get_config("alignment/guidance", scale)
    config.actions, config.longest = 3, 4
    # Places of the mean rewards among 0, .1, ..., 1, and their probabilities; width of the noise.
    config.places, config.shares = (3, 4, 5, 6, 7), (0.4, 0.3, 0.15, 0.1, 0.05)
    config.width = 3
    config.rounds, config.rollouts = 4, 64
    # Counts of the returns before any is seen, in all: they are of the least.
    config.prior = 0.1
    betas = {"smoke": (0.05, 0.1, 0.5)}.get(scale, (0.03, 0.05, 0.1, 0.2, 0.5))
    config.sweep = ConfigDict(
        {
            "beta": betas,
            # Share of rollouts whose reward is random; the others have its mean.
            "noise": (0.0, 0.5, 1.0),
            # Factor of beta in the value of a law; at infinity the value is the mean.
            "factor": (1.0,),
            "seed": tuple(range({"smoke": 6, "quick": 16, "full": 200}[scale])),
        }
    )
    return config
