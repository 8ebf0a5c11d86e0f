"""Estimators of KL between language models, and what their gradients are, beside the exact ones.

    python -m experiments.run --config=configs/lm/estimators.py

A minute on two cores, most of it SmolLM2-135M-Instruct, which is compared with itself tempered,
prompted in another way and rounded to eight bits. To expect: the Rao-Blackwellized estimate of
Amini et al. 2025 has the mean of k1 and varies less, k3 of whole answers does not; but where a
policy is the optimum of a reward of 0 or 1 k1 varies less. Of a model of bits the gradients of "A
Comedy of Estimators" are enumerated: k1 is right in the reward and nothing in the loss, k3 is wrong
in either and right in both.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """SmolLM2; at smoke scale a small transformer before training in its place."""
    config = defaults.get_config("lm/estimators", scale)
    # "smollm2", or "random": a transformer before training.
    config.model = "random" if scale == "smoke" else "smollm2"
    config.prompt = "My holiday by the sea was"
    # What the prompted copy reads before the prompt.
    config.before = "Be brief."
    # Answers that are sampled of the model, of this many tokens at most.
    config.answers = {"smoke": 48, "quick": 48, "full": 4096}[scale]
    config.tokens = {"smoke": 8, "quick": 8, "full": 64}[scale]
    # Of the tempered copy.
    config.temperature = 1.5
    # The divergence of the laws of each token that is summed: only kl has a chain rule.
    config.generator = "kl"
    # Of the enumerated ones: random transformers and as many models of bits; betas of a reward's
    # optimum; how far the reference of bits is (standard deviation of its parameters).
    config.models = {"smoke": 8, "quick": 32, "full": 256}[scale]
    config.betas = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
    config.distances = (0.25, 0.5, 1.0, 2.0)
    # Whose answers are averaged over: or "reference", of SmolLM2 the tempered copy.
    config.sampled_from = "policy"
    config.sweep = ConfigDict({"seed": (0,)})
    return config
