"""What the losses of self-play have for their mean gradient, by enumeration of all answers.

    python -m experiments.run --config=configs/games/losses.py

Seconds on two cores. Random games of four answers: the gradient of Nash-MD's loss is the step of
Nash-MD, those of SPPO, RSPO and SPIN vanish at their updates. With the log-ratios of tokens in
place of those of answers, as a trainer has it, Nash-MD's penalty misses the gradient of the KL by
.545 of it. Fictitious play of rock-paper-scissors: best replies to the average cycle, the average
does not.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """A seed is a game, with a policy, a reference and data."""
    config = defaults.get_config("games/losses", scale)
    config.answers = 4
    config.beta, config.step_size = 0.3, 0.7
    config.weights = (0.05, 0.1)  # RSPO's, of KL(π‖ref) and KL(ref‖π)
    config.spin_beta, config.spin_share = 0.7, 0.4
    config.rounds = {"smoke": 1600, "quick": 1600, "full": 6400}[scale]
    config.start = (0.5, 0.2, 0.3)
    # The opponent of Nash-MD: 1 for its mixture with the reference, 0 for the policy itself.
    config.sweep = ConfigDict(
        {"mixture": (1.0,), "seed": tuple(range({"smoke": 2, "quick": 8, "full": 64}[scale]))}
    )
    return config
