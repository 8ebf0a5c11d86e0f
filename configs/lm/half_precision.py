"""Divergences of a real model's logits in half precision: jdiv, optax's form, PyTorch's form.

    python -m experiments.run --config=configs/lm/half_precision.py

Half a minute on two cores. Logits of SmolLM2-135M-Instruct in bfloat16 and float16 against those of
the same model tempered, perturbed and after an instruction. To expect: jdiv is right to single
precision, a form that computes in half precision is wrong by more than the divergence where the
models are close; and rounding the logits alone changes a small divergence by a part of itself.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """SmolLM2; at smoke scale a small transformer before training in its place."""
    config = defaults.get_config("lm/half_precision", scale)
    # "smollm2", or "random": a transformer before training.
    config.model = "random" if scale == "smoke" else "smollm2"
    # What is held to the bounds in jdiv's place; the controls put others there.
    config.form = "jdiv"
    config.texts = (
        "The sea was calm in the morning, and the boats went out before the sun was up.",
        "def mean(numbers):\n    return sum(numbers) / len(numbers)\n",
        "Water boils at one hundred degrees, unless you are high up in the mountains.",
    )
    config.instruction = "Write like a pirate. "
    # The last ones of each text.
    config.tokens = {"smoke": 4, "quick": 8, "full": 12}[scale]
    # What the tempered copy's logits are divided by, and the standard deviation of the noise on the
    # perturbed copy's.
    config.temperature = 1.05
    config.noise = 0.05
    config.sweep = ConfigDict({"seed": (0,)})
    return config
