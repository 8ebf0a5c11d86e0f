"""Self-play losses on rock-paper-scissors: which come to rest, and where.

    python -m experiments.run --config=configs/games/self_play.py

Half a minute on two cores. The minimizer of INPO's loss is the mirror-descent step
(.54711, .23726, .21564). SPPO spirals to (.99893, 0, .00107); with lambda KL(pi‖ref) it rests at
the regularized equilibrium, (.29579, .44419, .26002) for lambda = .1. SPIN's two penalties are one.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Penalties of RSPO are `share` KL and the rest an alpha divergence of this exponent."""
    config = defaults.get_config("games/self_play", scale)
    config.reference, config.start = (0.6, 0.3, 0.1), (0.5, 0.2, 0.3)
    config.step_size = 0.5
    config.steps = 5000
    config.regularized_steps = {"smoke": 400}.get(scale, 1000)
    config.drawn = 300
    # Factor on RSPO's penalties: 0 takes them away.
    config.penalty_factor = 1.0
    # The paper's eta is 2, the reciprocal of the step, its tau is beta.
    config.inpo_step_size, config.inpo_beta = 0.5, 0.5
    # SPIN: rewards, weights of KL to the previous policy and to the reference; data, shares of the
    # reference.
    config.rewards, config.spin_weights = (0.2, 1.0, -0.4), (0.3, 0.7)
    config.data, config.spin_beta, config.ref_shares = (0.2, 0.5, 0.3), 2.0, (0.0, 0.3, 1.0)
    penalties = {
        "KL(π‖ref)": (1.0, 1.0),
        "KL(ref‖π)": (0.0, 0.0),
        "half of each": (0.5, 0.0),
        "alpha 1/2": (0.0, 0.5),
        "alpha -1": (0.0, -1.0),
    }
    names = tuple(penalties)[: {"smoke": 3}.get(scale, 5)]
    share, exponent = zip(*(penalties[name] for name in names), strict=True)
    config.sweep = ConfigDict(
        {"penalty": names, "share": share, "exponent": exponent, "weight": (0.1, 0.3)}
    )
    config.zipped = ("penalty,share,exponent",)
    return config
