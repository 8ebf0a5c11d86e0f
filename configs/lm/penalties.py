"""KL terms by where trainers put them: what they do to KL and length of SmolLM2, exactly.

    python -m experiments.run --config=configs/lm/penalties.py

A minute on two cores. The model answers with a few words only, so that all answers are enumerated
and gradients are the expected ones, in all parameters. To expect: k1 in the rewards brings the
policy back to its reference; k1 as a loss averaged over each sequence, the default of a trainer in
JAX, makes answers longer and takes the policy away from it.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """SmolLM2; at smoke scale a small transformer before training in its place."""
    config = defaults.get_config("lm/penalties", scale)
    # "smollm2", or "random": a transformer before training.
    config.model = "random" if scale == "smoke" else "smollm2"
    config.prompt = "The sea was"
    # What the policy reads before the prompt, and the reference does not: one policy each.
    config.contexts = ("Be very brief.", "It rained.", "I am old.")
    # Single tokens that answers are made of, the end last; how many of them at most.
    config.words = (" very", " good", ".")
    config.longest = 4
    # Placements along which steps are taken, on their own.
    config.placements = (
        "k1 rewards", "k3 rewards", "k3 token mean", "k1 sequence mean", "k3 sequence mean",
    )  # fmt: skip
    # What sequence means divide by: the sequence's own "length", or the "longest" for all.
    config.mean_over = "length"
    # What k3 is weighted by where weights are differentiated: "prefixes", or "tokens".
    config.weights = "prefixes"
    # Of gradient descent.
    config.step_size = {"smoke": 0.03, "quick": 5e-4, "full": 5e-4}[scale]
    config.steps = {"smoke": 2, "quick": 2, "full": 64}[scale]
    config.sweep = ConfigDict({"seed": (0,)})
    return config
