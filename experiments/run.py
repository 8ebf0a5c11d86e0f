"""Runs one experiment: its sweep, figures, claims and controls, into one folder.

    python -m experiments.run --config=configs/<area>/<name>.py[:smoke|quick|full]
        [--config.<field>=<value> ...] [--workdir=DIR] [--overwrite]

An axis of the sweep is a field too: --config.sweep.beta=0.1,0.3 or --config.sweep.seed=0:64.
The same command goes on where a killed one was. Exit code 0: every claim is supported and every
control refutes its claim; 1: not so; 2: refused, with the reason in one line; 143: asked to stop.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import math
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import xarray as xr
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.lab import claims, commands, engine, plots, records, sweeps
from experiments.lab.progress import Progress
from experiments.lab.records import Refused
from jdiv import checks, parallel

_OVERRIDE = re.compile(r"--?config\.([^=]+)")


def main() -> int:
    """The command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0

    def body() -> int:
        values = flags.FlagValues()
        commands.shared_flags(values)
        config = configured(sys.argv, values)
        experiment = checked(config)
        commands.set_up(values)
        folder = pathlib.Path(values.workdir or folder_of(pathlib.Path("runs"), config))
        with commands.stopping_on_signal() as stopping:
            entries = execute(
                experiment, config, folder, command=commands.command("experiments.run"),
                overwrite=values.overwrite, stopping=stopping,
            )  # fmt: skip
        print(f"{folder}\n{summary(entries)}")
        return 0 if all(map(sound, entries)) else 1

    return commands.guarded(body)


# --------------------------------------------------------------------------- config from argv


def configured(argv: list[str], values: flags.FlagValues | None = None) -> ConfigDict:
    """The locked config that a command line describes, or `Refused`."""
    if values is None:
        commands.shared_flags(values := flags.FlagValues())
    argument, rest = _config_argument(argv)
    default = load(argument)
    for override in rest[1:]:
        if match := _OVERRIDE.match(override):
            _refuse_unknown_field(match[1], default)
    before, sys.argv = sys.argv, rest  # where config_flags looks for overrides
    try:
        config_flags.DEFINE_config_dict("config", load(argument), flag_values=values)
        commands.parse(values, rest)
    finally:
        sys.argv = before
    _typed_tuples(values.config, default, "config")
    return values.config


def load(argument: str) -> ConfigDict:
    """The config of `configs/<area>/<name>.py[:scale]` as it is without overrides."""
    name, _, scale = argument.partition(":")
    if not pathlib.Path(name).is_file():
        known = [str(path.relative_to(records.ROOT)) for path in commands.configs()]
        with _refusing():
            checks.known("--config", name, known)
        raise Refused(f"--config: {name} does not exist below this folder")
    spec = importlib.util.spec_from_file_location("config", name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with _refusing(f"--config={argument}: "):
        return (module.get_config(scale) if scale else module.get_config()).lock()


def _config_argument(argv: list[str]) -> tuple[str, list[str]]:
    """The value of --config, and the rest of the command line."""
    for place, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config=(.*)", argument):
            return match[1], argv[:place] + argv[place + 1 :]
        if argument in ("--config", "-config") and place + 1 < len(argv):
            return argv[place + 1], argv[:place] + argv[place + 2 :]
    known = ", ".join(str(path.relative_to(records.ROOT)) for path in commands.configs())
    raise Refused(f"--config=configs/<area>/<name>.py[:scale] is missing; there are {known}")


def _refuse_unknown_field(path: str, config: ConfigDict) -> None:
    """Refuses a field that is not there, at the depth at which it is not."""
    for name in path.split("."):
        if not isinstance(config, ConfigDict):
            raise Refused(f"--config.{path}: the field before {name!r} has no fields")
        with _refusing():
            checks.known(f"--config.{path}", name, list(config))
        config = config[name]


def _typed_tuples(config: ConfigDict, default: ConfigDict, path: str) -> None:
    """Gives overridden tuples the type of their defaults, which config_flags leaves open."""
    for name, usual in default.items():
        if isinstance(usual, ConfigDict):
            _typed_tuples(config[name], usual, f"{path}.{name}")
        elif isinstance(usual, tuple) and usual and config[name] != usual:
            with _refusing("--"):
                config[name] = sweeps.override(f"{path}.{name}", config[name], usual)


@contextlib.contextmanager
def _refusing(where: str = "") -> Iterator[None]:
    """What is wrong with a value is the user's to read, in one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = str(error.args[0] if error.args else error)
        raise Refused(where + " ".join(message.split())) from error


# ------------------------------------------------------------------------------ before any work


def checked(config: ConfigDict) -> ModuleType:
    """The experiment of a config, after everything that can be known to be wrong was refused."""
    experiment = importlib.import_module(f"experiments.{config.experiment.replace('/', '.')}")
    check(experiment, config)
    return experiment


def check(experiment: ModuleType, config: ConfigDict) -> None:
    """Refuses what the engine and the experiment cannot compute."""
    for name, value in _numbers(config, "config"):
        if math.isnan(value):
            raise Refused(f"{name} must be a number, got nan")
    _at_least("config.lanes", config.lanes, 1)
    if not config.memory_gib > 0:
        raise Refused(f"config.memory_gib must be positive, got {config.memory_gib}")
    if config.precision not in ("float32", "float64"):
        raise Refused(f"config.precision must be float32 or float64, got {config.precision!r}")
    if engine.trains(experiment):
        _check_training(config.training)
    with _refusing("config.sweep: "):
        grid = sweeps.sweep(config.sweep, config.zipped)
    for name in grid.axes:
        if name in ("indexers", "method", "tolerance", "drop"):
            raise Refused(f"config.sweep.{name}: this name is a parameter of xarray's sel")
    if hasattr(experiment, "validate"):
        for point in grid.points():
            with _refusing():
                experiment.validate(config, point)


def _check_training(training: ConfigDict) -> None:
    steps, record, checkpoint = training.steps, training.record_every, training.checkpoint_every
    for name, value in training.items():
        _at_least(f"config.training.{name}", value, 1)
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


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise Refused(f"{name} must be at least {least}, got {value}")


def _numbers(config: ConfigDict, path: str) -> Iterator[tuple[str, float]]:
    for name, value in config.items():
        below = f"{path}.{name}"
        if isinstance(value, ConfigDict):
            yield from _numbers(value, below)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                yield below, number


# ------------------------------------------------------------------------------------- one run


def execute(
    experiment: ModuleType,
    config: ConfigDict,
    folder: pathlib.Path,
    *,
    command: str,
    overwrite: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """The claims of an experiment, as in claims.json; everything else is in the folder then.

    A finished run is not run again. Only the first of many hosts touches the folder.
    """
    start = time.monotonic()
    first = parallel.host() == 0
    progress = Progress(config.experiment, None if first else io.StringIO())
    done = first and not overwrite and records.finished(folder, config)
    if parallel.on_any_host(done):
        progress.say(f"finished before, in {folder}")
        return records.read_json(folder / "claims.json") if first else []
    with _opened(folder, config, overwrite):
        before = records.read_json(folder / "environment.json") if first else None
        environment = records.environment(config.experiment, command)
        if first:
            records.write_json(folder / "environment.json", environment)
        results = _results(experiment, config, folder, progress, stopping)
        points = sweeps.size(sweeps.sweep(config.sweep, config.zipped))
        environment["sweep"] = {"points": points, "programs": progress.programs}
        made = experiment.claims(config, results) if first else []
        verdicts = _controls(experiment, config, made, results, folder, progress, stopping)
        if not first:
            return []
        records.save_pictures(folder / "figures", _pictures(experiment, config, results))
        progress.close()
        spent = {"compile": progress.compiling, "run": progress.running}
        spent["total"] = time.monotonic() - start
        earlier = (before or {}).get("seconds", {})
        environment["seconds"] = {k: round(v + earlier.get(k, 0), 3) for k, v in spent.items()}
        records.write_json(folder / "environment.json", environment)
        entries = [
            claims.record(claim, controls) for claim, controls in zip(made, verdicts, strict=True)
        ]
        records.write_json(folder / "claims.json", entries)
        shutil.rmtree(folder / "controls", ignore_errors=True)
    return entries


@contextlib.contextmanager
def _opened(folder: pathlib.Path, config: ConfigDict, overwrite: bool) -> Iterator[None]:
    """The folder is the first host's; if it is refused there, all hosts stop."""
    with contextlib.ExitStack() as stack:
        refused = None
        if parallel.host() == 0:
            try:
                stack.enter_context(records.opened(folder, config, overwrite=overwrite))
            except Refused as error:
                refused = error
        if parallel.on_any_host(refused is not None):
            raise refused or Refused("refused by the first host")
        yield


def _results(experiment, config, folder, progress, stopping) -> xr.Dataset | None:
    """The dataset, from results.nc or computed; the pieces it was made of are deleted."""
    path = folder / "results.nc"
    first = parallel.host() == 0
    if parallel.on_any_host(first and path.exists()):
        return records.load_results(path) if first else None
    results = engine.compute(experiment, config, folder, progress, stopping)
    if first:
        records.save_results(path, results)
        for piece in (*folder.glob("points-*"), folder / "checkpoints"):
            shutil.rmtree(piece, ignore_errors=True)
    return results


def _controls(
    experiment, config, made, results, folder, progress, stopping
) -> list[list[dict[str, Any]]]:
    """Of each claim its controls, each run once: the override, what came out, the verdict.

    Fields below `config.claims` are for `claims` only: what overrides nothing else is not run.
    """
    asked = [[dict(control) for control in claim.controls] for claim in made]
    different = list({_text(control): control for of in asked for control in of})
    different = json.loads(parallel.text_from_first_host(json.dumps(different)))
    outcomes: dict[str, dict[str, claims.Claim]] = {}
    for number, text in enumerate(different):
        changed = overridden(config, json.loads(text))
        check(experiment, changed)
        below = folder / "controls" / f"{number:02}"
        if parallel.host() == 0:
            below.mkdir(parents=True, exist_ok=True)
        progress.label = f"{config.experiment} control {number + 1} of {len(different)}"
        found = results
        if not all(path.startswith("claims.") for path in json.loads(text)):
            found = _results(experiment, changed, below, progress, stopping)
        if parallel.host() == 0:
            outcomes[text] = {claim.name: claim for claim in experiment.claims(changed, found)}
    progress.label = config.experiment
    return [
        [_outcome(control, claim.name, outcomes[_text(control)]) for control in controls]
        for claim, controls in zip(made, asked, strict=True)
    ]


def _outcome(
    control: Mapping[str, Any], name: str, found: Mapping[str, claims.Claim]
) -> dict[str, Any]:
    if name not in found:
        raise ValueError(f"claim {name} is missing under its control {_text(control)}")
    entry = claims.record(found[name], [])
    override = json.loads(_text(control))
    return {"override": override, "measured": entry["measured"], "verdict": entry["verdict"]}


def _text(control: Mapping[str, Any]) -> str:
    return json.dumps(control, sort_keys=True)


def overridden(config: ConfigDict, override: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with these fields changed: `{"sweep.seed": (0,), "penalty": "k1"}`."""
    changed = config.copy_and_resolve_references()
    changed.lock()
    for path, value in override.items():
        _refuse_unknown_field(path, changed)
        value = tuple(value) if isinstance(value, list) else value
        changed.update_from_flattened_dict({path: value})
    return changed


def _pictures(experiment, config, results):
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(plots.STYLE):
        return experiment.figures(config, results)


def sound(entry: Mapping[str, Any]) -> bool:
    """Whether a claim of claims.json is supported and all of its controls refute it."""
    refuting = [control["verdict"] == "refuted" for control in entry["controls"]]
    return entry["verdict"] == "supported" and bool(refuting) and all(refuting)


def scaled(root: pathlib.Path, scale: str) -> pathlib.Path:
    """`runs` at quick scale, else `runs/<scale>`: results of two scales are never mixed."""
    return root if scale == "quick" else root / scale


def folder_of(root: pathlib.Path, config: ConfigDict) -> pathlib.Path:
    """Where a run goes by default: `runs/<area>/<name>`."""
    return scaled(root, config.scale) / config.experiment


def summary(entries: list[dict[str, Any]]) -> str:
    """One line a claim."""
    lines = []
    for entry in entries:
        word = entry["verdict"] if sound(entry) or entry["verdict"] == "refuted" else "no control"
        lines.append(f"  {word:10} {entry['name']}: {claims.shown(entry)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
