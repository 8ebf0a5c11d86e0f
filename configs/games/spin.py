"""SPIN from samples: which opponent makes it oscillate, and which does not.

    python -m experiments.run --config=configs/games/spin.py

Half a minute on two cores. With exact laws SPIN approaches the data by the factor 1 - 1/beta a
round. From 100 answers a round, at beta = .55, it moves by .48 of all mass a round; against the
mixture of the two last policies, if the loss is anchored there too, by .34, and against that of
all, fictitious play, by .26. With the anchor left at the last policy an averaged opponent does
harm. The abstract of arXiv:2404.04291 has no numbers.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """A seed is a run from samples; rounds are judged from the middle on."""
    config = defaults.get_config("games/spin", scale)
    config.data = (0.4, 0.25, 0.15, 0.12, 0.08)
    # The base model, from which it starts, too.
    config.reference = (0.1, 0.15, 0.25, 0.2, 0.3)
    config.samples = 100
    config.rounds = 60
    # At 0 every opponent, or every anchor, is the last policy.
    averaged = {"averaged_opponent": (1.0,), "averaged_anchor": (1.0,)}
    config.sweep = ConfigDict(
        {
            "beta": (0.55, 0.7, 1.0, 2.0, 4.0),
            # Of the reference in the anchor.
            "share": (0.0, 0.3),
            **averaged,
            "seed": tuple(range({"smoke": 8, "quick": 24, "full": 960}[scale])),
        }
    )
    return config
