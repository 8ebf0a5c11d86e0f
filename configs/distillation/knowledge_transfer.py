"""What a sample of the teacher teaches: its label, its probability of the label, or all of it.

    python -m experiments.run --config=configs/distillation/knowledge_transfer.py

Half a minute on two cores, with its controls. Zhao and Zhu 2023 (arXiv:2310.07838): the error of
four learners, total variation to the teacher. Cross-entropy weighted by the teacher's probability
stays at .445714 (100 inputs, 25 labels) and .485388 (1 and 100); the others fall, in their worst
cases like n^(-1/2), 1/n and 1/n. Printed slopes: -.532, -1.004 and -.977.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Teachers of the paper's appendix; the sizes of the worst cases are ours."""
    config = defaults.get_config("distillation/knowledge_transfer", scale)
    config.optimized = scale != "smoke"
    config.samples = (100, 500, 1000, 2500, 10_000, 30_000, 100_000)
    # Of `ce_partial`: without its weights it is `ce_single`.
    config.weighted = True
    # Whether the worst cases are those of the number of samples, or stay those of 100.
    config.follows = True
    teachers = (
        ("even and one, 100 x 25", 0, 100, 25),
        ("even and one, 1 x 100", 0, 1, 100),
        ("two levels, 10 x 10", 1, 10, 11),
        ("rare labels, 10 x 11", 2, 10, 11),
        ("rare inputs, 10 x 11", 3, 10, 11),
    )
    teacher, instance, inputs, labels = zip(*teachers, strict=True)
    config.sweep = ConfigDict(
        {
            "teacher": teacher,
            "instance": instance,
            "inputs": inputs,
            "labels": labels,
            "seed": tuple(range({"smoke": 60, "quick": 160, "full": 4000}[scale])),
        }
    )
    config.zipped = ("teacher,instance,inputs,labels",)
    return config
