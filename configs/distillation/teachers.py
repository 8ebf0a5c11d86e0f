"""What teachers pass on: LELP's subclasses, MCMI's information, PS-KD's past, HARD's shifts.

    python -m experiments.run --config=configs/distillation/teachers.py

Half a minute on one core. Loo et al. 2024 (arXiv:2409.20449), Ye et al. 2024 (arXiv:2401.08732),
Kim et al. 2021 (arXiv:2006.12000) and Nielsen et al. 2023 (arXiv:2305.14890), on toys for which no
number is published. To expect: a linear student learns a parity of blobs from subclasses alone.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Sizes of data and students; all draws are new for each seed."""
    config = defaults.get_config("distillation/teachers", scale)
    # A control takes as many seeds, and its time is that of one batch.
    config.lanes = 4
    config.samples = 400
    # Samples of PS-KD's and HARD's students.
    config.few = 40
    config.hidden = 30
    config.steps = 400
    config.step_size = 0.1
    # Steps of PS-KD's epoch, after which the model is its own teacher.
    config.epoch = 10
    # Of MCMI's information, and of PS-KD's past at the end.
    config.coefficient = 0.2
    config.share = 0.8
    config.sweep = ConfigDict(
        {
            # 0: each toy without what it has to teach.
            "intact": (1.0,),
            "seed": tuple(range({"smoke": 4, "quick": 8, "full": 64}[scale])),
        }
    )
    return config
