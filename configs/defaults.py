"""The fields that every config has: precision, and how the engine divides and keeps the work."""

from ml_collections import ConfigDict

SCALES = ("smoke", "quick", "full")


def get_config(experiment: str, scale: str) -> ConfigDict:
    """What every config starts from; `experiment` is the stem below `experiments`."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    return ConfigDict(
        {
            "experiment": experiment,
            "scale": scale,
            # float64, or float32 where networks are trained.
            "precision": "float64",
            # Axes by name, each a tuple of values; `seed` is the random key of a point.
            "sweep": {},
            # Names of axes that advance together, joined by commas: ("rate,steps",).
            "zipped": (),
            # Points that a device computes at once, fewer if they need more memory than this.
            "lanes": 64,
            "memory_gib": 4.0,
            # Whether programs are compiled to run fast, or fast themselves: on a CPU most programs
            # of small experiments take longer to compile than to run.
            "optimized": scale == "full",
        }
    )


def training(steps: int, *, record_every: int, checkpoint_every: int) -> ConfigDict:
    """Added by experiments with `init` and `step`, as `config.training`.

    The metrics of every `record_every`-th step are kept; a program runs `checkpoint_every` steps
    and its state is saved, of which the last `checkpoints` stay.
    """
    return ConfigDict(
        {
            "steps": steps,
            "record_every": record_every,
            "checkpoint_every": checkpoint_every,
            "checkpoints": 2,
        }
    )
