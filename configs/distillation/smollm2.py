"""SmolLM2 taught to half of its own layers, and to do without an instruction.

    python -m experiments.run --config=configs/distillation/smollm2.py

A minute on two cores. The student is SmolLM2-135M-Instruct with every second of its 30
layers, all of its parameters trained for a few steps on the laws of the whole model; then the whole
model learns what it says after an instruction without that instruction. Measured on other texts.
To expect: KL falls for every loss, from about ten nats; no number is known.
"""

from ml_collections import ConfigDict

from configs import defaults

TAUGHT = (
    "The harbour was quiet in the early morning, and the fishing boats went out one after the"
    " other before the sun had come up over the hills behind the old town.",
    "Water boils at one hundred degrees at the level of the sea, but high up in the mountains,"
    " where the air is thin, it boils earlier, and eggs take much longer.",
    "To make good bread you need flour, water, salt and a little yeast; mix them, let the dough"
    " rest for some hours in a warm place, and bake it in a hot oven.",
    "The committee met on Tuesday to discuss the new budget for the schools of the district, and it"
    " decided that the money should go to the libraries first of all.",
)
OTHERS = (
    "My grandmother kept a small garden behind her house, where she grew beans, onions and roses,"
    " and in summer the whole family came to help her with the work.",
    "A computer program is a list of instructions that a machine follows one after the other, and a"
    " mistake in one of them can change the result of all the others.",
)


def get_config(scale: str = "quick") -> ConfigDict:
    """SmolLM2; at smoke scale a small transformer before training in its place."""
    config = defaults.get_config("distillation/smollm2", scale)
    config.precision = "float32"
    # "smollm2", or "random": a transformer before training.
    config.model = "random" if scale == "smoke" else "smollm2"
    config.texts = TAUGHT if scale == "full" else TAUGHT[:3]
    # A model before training learns nothing of other texts: at smoke scale they are the same.
    config.others = TAUGHT[:2] if scale == "smoke" else OTHERS
    # Of each text the first ones are given and the last ones are compared.
    config.given = 4
    config.tokens = 20
    config.losses = ("forward KL", "reverse KL", "forward KL, with tail")
    # Known of the teacher, where it is not all.
    config.top_k = 8 if scale == "smoke" else 32
    config.steps = {"smoke": 16, "quick": 3, "full": 200}[scale]
    # Of Adam; the small transformer wants larger ones.
    config.step_size = 1e-2 if scale == "smoke" else 3e-4
    config.instruction = "You are a pirate. Write like one, arr!"
    # What is taught in its place, for comparison.
    config.other_instruction = "You answer in numbers: 1 2 3 4 5 6 7"
    config.instructed_step_size = 1e-2 if scale == "smoke" else 2e-5
    config.sweep = ConfigDict({"seed": (0,)})
    return config
