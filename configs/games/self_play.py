"""Self-play losses on rock-paper-scissors: which come to rest, and where.

    python -m experiments.run --config=configs/games/self_play.py

Fifteen seconds on two cores. The minimiser of INPO's loss is the mirror-descent step
(.54711, .23726, .21564). SPPO spirals to (.99893, 0, .00107); with lambda KL(pi‖ref) it rests at
the regularised equilibrium, (.29579, .44419, .26002) for lambda = .1. SPIN's two penalties are one.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Penalties of RSPO are `share` KL and the rest an alpha divergence of this exponent."""
    config = defaults.get_config("games/self_play", scale)
    config.reference, config.start = (0.6, 0.3, 0.1), (0.5, 0.2, 0.3)
    config.eta = 0.5
    config.steps = 5000
    config.regularised_steps = {"smoke": 400}.get(scale, 1000)
    config.drawn = 300
    config.inpo_eta, config.inpo_tau = 2.0, 0.5
    # SPIN: rewards, weights of KL to the previous policy and to the base; data, shares of the base.
    config.rewards, config.spin_weights = (0.2, 1.0, -0.4), (0.3, 0.7)
    config.data, config.spin_beta, config.base_shares = (0.2, 0.5, 0.3), 2.0, (0.0, 0.3, 1.0)
    names = ("KL(π‖ref)", "KL(ref‖π)", "half of each", "alpha 1/2", "alpha -1")
    variants = ((1.0, 1.0), (0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.0, -1.0))
    variants = variants[: {"smoke": 3}.get(scale, 5)]
    config.names = names[: len(variants)]
    config.claims = ConfigDict(
        {
            "fit": "loss",
            "free": "sppo",
            "run": "rspo",
            "variant": 0,
            "at_start": False,
            "mixture": "mixture",
        }
    )
    share, exponent = zip(*variants, strict=True)
    config.sweep = ConfigDict(
        {
            "variant": tuple(range(len(variants))),
            "share": share,
            "exponent": exponent,
            "weight": (0.1, 0.3),
        }
    )
    config.zipped = ("variant,share,exponent",)
    return config
