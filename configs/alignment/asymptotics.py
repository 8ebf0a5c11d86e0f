"""Asymptotics of alignment: the tilt, best of n, and where the one becomes the other.

    python -m experiments.run --config=configs/alignment/asymptotics.py

Half a minute on two cores. Yang et al. 2024: Table 1 in exact fractions (49/625 for (0, 0)); at
Delta = .11 alpha = .709138; the best of 3 blocks of ten letters is .0919 in total variation from
that tilt and .0157 from the one at its own KL; KL per letter of the best of e^(.11 m) from the
tilt is .02831 at m = 10, .00746 at m = 160 and goes to 0. Two statements hold in part: `remarkably
close` for the family of tilts only, and `.01 for K > 1000` for some ways to draw the source.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The ternary source of examples 1 and 2; sources of up to 1000 letters, drawn three ways."""
    config = defaults.get_config("alignment/asymptotics", scale)
    config.base = (1 / 5, 3 / 10, 1 / 2)
    config.target = (2 / 3, 1 / 9, 2 / 9)
    # The reward of letters is log q, or q itself.
    config.log_reward = True
    config.budget = 0.11
    # Blocks of this many letters; the best of e^(budget * length) of them.
    config.lengths = (10, 20, 40, 80, 160) + (() if scale == "smoke" else (320,))
    config.draws = (1, 2, 3, 5, 10, 30, 100, 1000)
    config.policies = {"smoke": 100, "quick": 2000, "full": 20_000}[scale]
    # (letters, best of how many) for random sources, drawn this often; 0 leaves them out.
    config.sources = {"smoke": 12, "quick": 40, "full": 400}[scale]
    config.source = ((9, 16), (1000, 2), (1000, 16), (1000, 1000))
    config.sweep = ConfigDict({"seed": (0,)})
    return config
