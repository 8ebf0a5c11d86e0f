"""Forward against reverse KL while one distribution is fitted: head, tail, and what is left.

    python -m experiments.run --config=configs/distillation/forward_reverse.py

Ten seconds on two cores. The toy of AKL (Wu et al. 2024, arXiv:2404.02657, released notebooks): 80
free logits, a half Gaussian for the teacher, 800 steps of Adam. After them KL/80 is 1.1492e-06
(forward) and 5.1159e-06 (reverse). On the way the forward KL is ahead in the head, and the reverse
KL in the far tail; in the tail as the paper defines it, all that is not the head, it is behind for
the first steps of Adam.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The notebooks' settings: the long tail, without and with its noise, and the two modes."""
    config = defaults.get_config("distillation/forward_reverse", scale)
    config.steps = 800
    # Whether forward and reverse KL change places.
    config.exchanged = False
    config.zipped = ("problem,first,second,width,spacing,noise,step_size,adam,divisor",)
    config.sweep = ConfigDict(
        {
            "problem": (
                "long tail", "long tail, noisy", "long tail, gradient descent",
                "modes at 25 and 75",
            ),
            # Means of the two normals and their width; places are `spacing` apart, from 0 to 100.
            "first": (0.0, 0.0, 0.0, 25.0),
            "second": (0.0, 0.0, 0.0, 75.0),
            "width": (16.0, 16.0, 16.0, 10.0),
            "spacing": (1.25, 1.25, 1.25, 2.0),
            # Of the teacher's probabilities, a factor 1 + noise U with U uniform.
            "noise": (0.0, 0.01, 0.0, 0.0),
            "step_size": (0.2, 0.2, 1.0, 0.1),
            # 1 for Adam, 0 for gradient descent.
            "adam": (1.0, 1.0, 0.0, 1.0),
            # The loss is KL over this number: `batchmean` of one distribution is over its bins.
            "divisor": (80.0, 80.0, 1.0, 50.0),
        }
    )  # fmt: skip
    return config
