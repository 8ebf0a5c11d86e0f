"""Language models distilled by each divergence, on given, mixed and own answers, measured exactly.

    python -m experiments.run --config=configs/distillation/language_model.py

Half a minute on one core. A transformer that learnt a grammar of brackets teaches students that
see the last two tokens alone. To expect: reverse KL, Jensen-Shannon, total variation and skewed KL
leave better answers than forward KL, as published for GPT-2; the student's own answers bring it
closer to the teacher than mixed ones, and these closer than the teacher's; higher temperatures make
answers better and students less like their teacher.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Answers of up to four tokens of a grammar of brackets, all of which are enumerated."""
    config = defaults.get_config("distillation/language_model", scale)
    small = scale == "smoke"
    main = ("forward KL", "reverse KL", "Jensen-Shannon", "total variation", "skew forward KL",
            "skew reverse KL")  # fmt: skip
    others = ("squared Hellinger", "Pearson chi2", "Neyman chi2", "GKD .1",
              "GKD .9", "continuous GKD .1", "continuous GKD .9")  # fmt: skip
    config.losses = main if small else main + others
    config.precision = "float32"
    config.longest = 4
    # Of the students of all losses: how many tokens they remember.
    config.memory = 2
    # Of the teacher, and the updates by which it learnt the grammar.
    config.width, config.sft_steps = 16, 100
    # Answers of the teacher that students are given, and of a batch.
    config.answers, config.batch = 32, 16
    config.steps = 1000 if scale == "full" else 100
    # Falls to 0 at the end; Adam's second moment is a short average.
    config.learning_rate, config.decay = 0.1, 0.95
    # Of students of several sizes: how many tokens they remember; and temperatures of both laws.
    config.memories = (0, 1, 2)
    config.temperatures = (0.5, 1.0, 2.0, 4.0)
    config.sweep = ConfigDict(
        {
            # A factor of the share of own answers: 0 gives all students the teacher's.
            "own": (1.0,),
            # 1 puts the student in the teacher's place in all losses.
            "swapped": (0.0,),
            "seed": tuple(range(64 if scale == "full" else 16)),
        }
    )
    return config
