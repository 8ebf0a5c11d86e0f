"""Nash mirror prox converges where self-play is driven away: rock-paper-scissors decides.

    python -m experiments.run --config=configs/games/nash_mirror_prox.py

Half a minute on two cores. Tiapkin et al. 2025: KL(pi*‖pi_k) <= KL_0 (1 + 2 beta)^-k in every game.
On rock-paper-scissors the factors per iteration are .3258, .5415, .6921, .7517 at beta = .3, .1,
.03, .01; the same step without the second query moves away at .03 and .01.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Game 0 is rock-paper-scissors with this reference, the others are random sigmoid games."""
    config = defaults.get_config("games/nash_mirror_prox", scale)
    config.reference = (0.6, 0.3, 0.1)
    config.answers = 20
    # Standard deviations of the antisymmetric part, and of the reference's logits.
    config.skew, config.spread = 1.0, 1.0
    config.iterations = 200
    # The penalty in the game whose equilibrium is taken; the algorithms have KL(pi‖ref).
    config.generator = "kl"
    config.step_size = 2.0
    config.nash_md_step_size = 0.5
    games = {"smoke": 8, "quick": 100, "full": 1000}[scale]
    config.sweep = ConfigDict({"beta": (0.3, 0.1, 0.03, 0.01), "game": tuple(range(games + 1))})
    config.lanes = 512
    return config
