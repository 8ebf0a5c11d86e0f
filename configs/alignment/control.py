"""Attribute control: token guidance by recursion, and training towards the guided law.

    python -m experiments.run --config=configs/alignment/control.py

A few seconds. Meng et al. 2024 on a language model whose texts are enumerated, with a constraint
that a finite automaton knows: guidance by the recursion is the model's conditional law to 1e-12;
training towards it, at a weight of c, leaves 1/(1 + c) of the data's violations at the least
cross-entropy there is; masking in its place, which is no conditional law, costs more.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """A model and data of random tables; the first token may stand once in a text."""
    config = defaults.get_config("alignment/control", scale)
    config.longest = {"smoke": 4, "quick": 5, "full": 7}[scale]
    config.vocabulary = 4
    # Added to the logit of the token that may stand once only, in the data.
    config.excess = 0.5
    # Rounds of guiding the model and fitting it to data and guided law.
    config.rounds = 120
    config.sweep = ConfigDict(
        {
            "coefficient": (0.0, 0.1, 0.3, 1.0, 3.0),
            # At 1 tokens are masked that leave no way to a text that holds, and nothing else.
            "masked": (0.0, 1.0),
            "seed": tuple(range({"smoke": 2}.get(scale, 4))),
        }
    )
    return config
