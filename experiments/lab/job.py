"""A job: one experiment with one config, checked, in one folder. It is parsed once and handed down.

Everything that can be known to be wrong is refused here, before any work.
"""

import dataclasses
import functools
import importlib
import importlib.util
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from experiments.lab import axes, commands, records, settings, source, sweeps
from experiments.lab.axes import at_least
from experiments.lab.claims import Claim, claims_of
from experiments.lab.files import Path
from experiments.lab.records import Folder, Refused
from experiments.lab.source import Code
from jdiv import checks

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
    usual: ConfigDict
    """The config as its file has it, before a command line changed it."""
    control: bool = False
    """Whether it is the rerun of a control, of which only the results are wanted."""

    @functools.cached_property
    def own(self) -> sweeps.Sweep:
        """The sweep of the config's file."""
        return grid_of(self.usual)

    @functools.cached_property
    def own_fields(self) -> dict[str, sweeps.Label]:
        """Fields of the config that are swept: by path the value that the config itself has."""
        return {
            name: settings.field(self.config, name)
            for name in self.grid.axes
            if name not in self.experiment.AXES
        }

    def parts(self) -> Iterator[tuple[dict[str, sweeps.Label], ConfigDict]]:
        """The values of the swept fields together, and the config with them."""
        swept = {dim: names for dim, names in self.grid.dims.items() if dim in self.own_fields}
        for point in self.grid._replace(dims=swept).points():
            yield point, settings.overridden(self.config, point)

    @property
    def changed_fields(self) -> list[str]:
        """Paths of the fields that are not as in the config's file, but for the sweep."""
        there = dict(settings.flat(self.usual))
        return [
            name
            for name, value in settings.flat(self.config)
            if name.partition(".")[0] not in settings.ENGINE and value != there.get(name)
        ]

    @functools.cached_property
    def code(self) -> Code:
        """Hashes of the experiment's code."""
        return source.code(self.experiment)

    @property
    def trains(self) -> bool:
        """Whether it is a training loop."""
        return hasattr(self.experiment, "step")

    @property
    def one_at_a_time(self) -> bool:
        """Whether its points are trained one after the other, each on all devices."""
        return getattr(self.experiment, "ONE_AT_A_TIME", False)

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
        """The same experiment with some fields of its config changed, in another folder.

        It has the sweep of the config's file, with the seeds of this job.
        """
        config = self.config.copy_and_resolve_references().unlock()
        config.sweep = self.usual.sweep.copy_and_resolve_references().unlock()
        config.zipped = self.usual.zipped
        if "seed" in self.own.axes:
            config.sweep.seed = self.grid.axes["seed"]
        changed = settings.overridden(config.lock(), override)
        return planned(self.experiment, changed, folder, self.usual)


def from_config(config: ConfigDict, path: Path, argument: str | None = None) -> Job:
    """The job that a config describes, in this folder.

    `argument` is the `--config` that it was made from; without it nothing was changed.
    """
    beside = pathlib.Path(argument.partition(":")[0]).parent if argument else None
    usual = settings.load(argument) if argument else config
    return planned(module_of(config.experiment, beside), config, Folder(path), usual)


def module_of(experiment: str, beside: pathlib.Path | None = None) -> ModuleType:
    """The module of an experiment, as it is called in `config.experiment`.

    That is a file below `experiments`; or one beside the config or in the folder above it; or
    whatever Python finds.
    """
    if not re.fullmatch(r"\w+(/\w+)*", experiment):
        raise Refused(f"config.experiment must be names with slashes between, got {experiment!r}")
    name = f"experiments.{experiment.replace('/', '.')}"
    if (records.ROOT / "experiments" / f"{experiment}.py").is_file():
        return importlib.import_module(name)
    for folder in (beside, beside.parent) if beside else ():
        if (path := (folder / f"{experiment}.py").resolve()).is_file():
            return _imported(name, path)
    try:
        module = sys.modules[name] = importlib.import_module(experiment.replace("/", "."))
        return module
    except ModuleNotFoundError as error:
        if not experiment.replace("/", ".").startswith(error.name):
            raise
    with settings.refusing():
        known = commands.configs()
        checks.known("config.experiment", experiment,
                     [f"{path.parent.name}/{path.stem}" for path in known])  # fmt: skip
    raise Refused(f"config.experiment: there is no module {experiment}")


def _imported(name: str, path: pathlib.Path) -> ModuleType:
    """The module of a file outside of the repository."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grid_of(config: ConfigDict) -> sweeps.Sweep:
    """The sweep of a config; a field that is swept is called by its path."""
    with settings.refusing("config.sweep: "):
        return sweeps.sweep(dict(settings.flat(config.sweep)), config.zipped)


def planned(
    experiment: ModuleType, config: ConfigDict, folder: Folder, usual: ConfigDict | None = None
) -> Job:
    """The job, after what the engine and the experiment cannot compute was refused."""
    _check_module(experiment, config.experiment)
    for name, value in _numbers(config):
        if math.isnan(value):
            raise Refused(f"config.{name} must be a number, got nan")
    with settings.refusing():
        at_least(1).refuse("config.lanes", config.lanes)
    if not config.memory_gib > 0:
        raise Refused(f"config.memory_gib must be positive, got {config.memory_gib}")
    if config.precision not in PRECISIONS:
        raise Refused(
            f"config.precision must be {' or '.join(PRECISIONS)}, got {config.precision!r}"
        )
    job = Job(experiment, config, grid_of(config), folder, usual or config)
    if job.trains:
        _check_training(config.training)
    _check_axes(job)
    _check_fields(job)
    return job


def _check_module(experiment: ModuleType, name: str) -> None:
    trains = hasattr(experiment, "step") or hasattr(experiment, "init")
    for function in ("AXES", "figures", *(("init", "step") if trains else ("run",))):
        if not hasattr(experiment, function):
            raise Refused(f"{name} has no {function}: see experiments/lab/engine.py")
    for axis, allowed in experiment.AXES.items():
        if not isinstance(allowed, axes.Axis):
            raise Refused(f"{name}: AXES[{axis!r}] must be one of experiments/lab/axes.py")
    for claim in claims_of(experiment):
        for axis in claim.needs:
            with settings.refusing():
                checks.known(f"{name}: needs of the claim {claim.name}", axis, experiment.AXES)


def _check_axes(job: Job) -> None:
    declared, swept = job.experiment.AXES, job.grid.axes
    for name in swept:
        if name not in declared:
            with settings.refusing():
                known = [*declared, *settings.sweepable(job.config)]
                checks.known("config.sweep", name, known)
    if missing := set(declared) - set(swept):
        raise Refused(
            f"{job.config.experiment}: AXES declares {', '.join(declared) or 'none'},"
            f" config.sweep has {', '.join(swept) or 'none'}: {min(missing)} is not in it"
        )
    for dim, together in job.grid.dims.items():
        if len({name in declared for name in together}) > 1:
            raise Refused(f"config.zipped: the field {dim} cannot advance with an axis")
    for name, labels in swept.items():
        if name in SELECTIONS:
            raise Refused(f"config.sweep.{name}: this name is a parameter of xarray's sel")
        for label in labels if name in declared else ():
            with settings.refusing():
                declared[name].refuse(f"config.sweep.{name}", label)


def _check_fields(job: Job) -> None:
    allowed = getattr(job.experiment, "FIELDS", {})
    for path, axis in allowed.items():
        with settings.refusing():
            axis.refuse(f"config.{path}", settings.field(job.config, path))
            for label in job.grid.axes[path] if path in job.own_fields else ():
                axis.refuse(f"config.sweep.{path}", label)
    if not hasattr(job.experiment, "validate"):
        return
    for part, config in job.parts():
        for point in job.points:
            if part.items() <= point.items():
                with settings.refusing():
                    job.experiment.validate(config, point)


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


def _numbers(config: ConfigDict) -> Iterator[tuple[str, float]]:
    for name, value in settings.flat(config):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                yield name, number
