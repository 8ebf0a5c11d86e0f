"""One Gaussian fitted to two modes: which divergence covers both, and which takes one.

    python -m experiments.run --config=configs/distillation/gaussian_fit.py

Half a minute on two cores, with its controls. The teacher is .5 N(-3, 1) + .5 N(3, 1), the student
N(mu, s). Forward KL ends at (0, 3.1623), .46199; reverse KL at (2.9843, 1.0234), .68877, or, from a
wide start, at (0, 2.7438), .84062; GKD's Jensen-Shannon of .9 has two basins of nearly one depth.
"""

from ml_collections import ConfigDict

from configs import defaults

LOSSES = (
    ("forward KL", "reverse_kl", 0.0, "one"),
    ("reverse KL", "kl", 0.0, "one"),
    ("forward, then reverse KL", "kl", 0.0, "schedule"),
    ("GKD, .1", "jensen_shannon", 0.1, "one"),
    ("GKD, .5", "jensen_shannon", 0.5, "one"),
    ("GKD, .9", "jensen_shannon", 0.9, "one"),
    ("alpha, -1", "alpha", -1.0, "one"),
    ("alpha, -.5", "alpha", -0.5, "one"),
    ("alpha, 0", "alpha", 0.0, "one"),
    ("alpha, .5", "alpha", 0.5, "one"),
    ("alpha, 1", "alpha", 1.0, "one"),
    ("jeffreys", "jeffreys", 0.0, "one"),
    ("skew KL, .9", "skew_kl", 0.9, "one"),
    ("le cam", "le_cam", 0.0, "one"),
    ("total variation", "total_variation", 0.0, "one"),
)


def get_config(scale: str = "quick") -> ConfigDict:
    """Both laws on a grid of 40 units: of 30, what is cut off moves a wide fit by 1e-4.

    Rows that end beyond alpha 1 are left out: of densities they are infinite for a wide student.
    """
    config = defaults.get_config("distillation/gaussian_fit", scale)
    config.optimized = scale != "smoke"
    config.modes, config.reach = 3.0, 20.0
    config.places = 401 if scale == "smoke" else 1601
    config.steps = {"smoke": 400, "quick": 1000, "full": 4000}[scale]
    # Of the arguments of the divergence: "teacher, student" is the other direction.
    config.arguments = "student, teacher"
    # Of the schedule: forward KL first, or "reverse first".
    config.order = "forward first"
    # Of one problem, where its gradient has which noise and its weight which size.
    config.pass_rates = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
    losses = LOSSES[:11] if scale == "smoke" else LOSSES
    loss, generator, parameter, phases = zip(*losses, strict=True)
    config.sweep = ConfigDict(
        {"loss": loss, "generator": generator, "parameter": parameter, "phases": phases}
    )
    config.zipped = ("loss,generator,parameter,phases",)
    return config
