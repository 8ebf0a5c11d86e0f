"""A job: one experiment with one config, checked, in one folder. It is parsed once and handed down.

Everything that can be known to be wrong is refused here, before any work.
"""

import dataclasses
import functools
import importlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from experiments.lab import settings, sweeps
from experiments.lab.axes import at_least
from experiments.lab.claims import Claim, claims_of
from experiments.lab.records import Folder, Refused

PRECISIONS = ("float32", "float64")
SELECTIONS = ("indexers", "method", "tolerance", "drop")
"""Parameters of xarray's `sel`, which an axis cannot be called."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run is made of."""

    experiment: ModuleType
    config: ConfigDict
    grid: sweeps.Sweep
    folder: Folder

    @property
    def trains(self) -> bool:
        """Whether it is a training loop."""
        return hasattr(self.experiment, "step")

    @property
    def steps(self) -> int:
        """Steps of each point; 1 without training."""
        return self.config.training.steps if self.trains else 1

    @property
    def claims(self) -> list[Claim]:
        """The experiment's claims."""
        return claims_of(self.experiment)

    @functools.cached_property
    def points(self) -> list[dict[str, sweeps.Label]]:
        """Every point of the sweep."""
        return list(self.grid.points())

    @functools.cached_property
    def groups(self) -> list[sweeps.Group]:
        """The points by program."""
        roles = {name: axis.role for name, axis in self.experiment.AXES.items()}
        return sweeps.groups(
            self.grid,
            traced=[name for name, role in roles.items() if role == "traced"],
            named=[name for name, role in roles.items() if role == "label"],
        )

    def changed(self, override: Mapping[str, Any], folder: Folder) -> "Job":
        """The same experiment with some fields of its config changed, in another folder."""
        return planned(self.experiment, settings.overridden(self.config, override), folder)


def from_config(config: ConfigDict, path: pathlib.Path) -> Job:
    """The job that a config describes, in this folder."""
    module = importlib.import_module(f"experiments.{config.experiment.replace('/', '.')}")
    return planned(module, config, Folder(path))


def planned(experiment: ModuleType, config: ConfigDict, folder: Folder) -> Job:
    """The job, after what the engine and the experiment cannot compute was refused."""
    for name, value in _numbers(config, "config"):
        if math.isnan(value):
            raise Refused(f"{name} must be a number, got nan")
    with settings.refusing():
        at_least(1).refuse("config.lanes", config.lanes)
    if not config.memory_gib > 0:
        raise Refused(f"config.memory_gib must be positive, got {config.memory_gib}")
    if config.precision not in PRECISIONS:
        raise Refused(
            f"config.precision must be {' or '.join(PRECISIONS)}, got {config.precision!r}"
        )
    with settings.refusing("config.sweep: "):
        grid = sweeps.sweep(config.sweep, config.zipped)
    job = Job(experiment, config, grid, folder)
    if job.trains:
        _check_training(config.training)
    _check_axes(job)
    _check_fields(job)
    return job


def _check_axes(job: Job) -> None:
    declared, swept = job.experiment.AXES, job.grid.axes
    if set(declared) != set(swept):
        raise Refused(
            f"{job.config.experiment}: AXES declares {', '.join(declared) or 'none'},"
            f" config.sweep has {', '.join(swept) or 'none'}"
        )
    for name, labels in swept.items():
        if name in SELECTIONS:
            raise Refused(f"config.sweep.{name}: this name is a parameter of xarray's sel")
        for label in labels:
            with settings.refusing():
                declared[name].refuse(f"config.sweep.{name}", label)


def _check_fields(job: Job) -> None:
    for path, axis in getattr(job.experiment, "FIELDS", {}).items():
        value = functools.reduce(lambda config, name: config[name], path.split("."), job.config)
        with settings.refusing():
            axis.refuse(f"config.{path}", value)
    if hasattr(job.experiment, "validate"):
        for point in job.points:
            with settings.refusing():
                job.experiment.validate(job.config, point)


def _check_training(training: ConfigDict) -> None:
    steps, record, checkpoint = training.steps, training.record_every, training.checkpoint_every
    for name, value in training.items():
        with settings.refusing():
            at_least(1).refuse(f"config.training.{name}", value)
    if checkpoint % record:
        raise Refused(
            f"config.training.checkpoint_every must be a multiple of record_every {record},"
            f" got {checkpoint}"
        )
    if steps % checkpoint:
        raise Refused(
            f"config.training.steps must be a multiple of checkpoint_every {checkpoint},"
            f" got {steps}"
        )


def _numbers(config: ConfigDict, path: str) -> Iterator[tuple[str, float]]:
    for name, value in config.items():
        below = f"{path}.{name}"
        if isinstance(value, ConfigDict):
            yield from _numbers(value, below)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                yield below, number
