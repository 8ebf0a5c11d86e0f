"""A run's config: from a command line, from a file, with some of its fields changed."""

import contextlib
import functools
import importlib.util
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.lab import commands, records, sweeps
from experiments.lab.records import Refused
from jdiv import checks

ENGINE = ("experiment", "scale", "precision", "sweep", "zipped", "lanes", "memory_gib", "optimized",
          "training")  # fmt: skip
"""Fields that say how something is computed, and not what."""

_OVERRIDE = re.compile(r"--?config\.([^=]+)")


def configured(argv: list[str], values: flags.FlagValues | None = None) -> ConfigDict:
    """The locked config that a command line describes, or `Refused`."""
    if values is None:
        commands.shared_flags(values := flags.FlagValues())
    name, rest = _config_argument(argv)
    default = load(name)
    for override in rest[1:]:
        if match := _OVERRIDE.match(override):
            _add_swept_field(match[1], default)
            _refuse_unknown_field(match[1], default)
    before, sys.argv = sys.argv, rest  # where config_flags looks for overrides
    try:
        with_its_axes = default.copy_and_resolve_references().lock()
        config_flags.DEFINE_config_dict("config", with_its_axes, flag_values=values)
        commands.parse(values, rest)
    finally:
        sys.argv = before
    _typed_tuples(values.config, default, "config")
    return values.config


def argument(argv: list[str]) -> str:
    """The value of --config."""
    return _config_argument(argv)[0]


def load(argument: str) -> ConfigDict:
    """The config of `configs/<area>/<name>.py[:scale]` as it is without overrides."""
    name, _, scale = argument.partition(":")
    if not pathlib.Path(name).is_file():
        known = [str(path.relative_to(records.ROOT)) for path in commands.configs()]
        with refusing():
            checks.known("--config", name, known)
        raise Refused(f"--config: {name} does not exist below this folder")
    spec = importlib.util.spec_from_file_location("config", name)
    if spec is None:
        raise Refused(f"--config: {name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refused(f"--config: {name} cannot be read: {in_a_line(error)}") from error
    if not hasattr(module, "get_config"):
        raise Refused(f"--config: {name} has no function get_config(scale)")
    with refusing(f"--config={argument}: "):
        config = module.get_config(scale) if scale else module.get_config()
    if not isinstance(config, ConfigDict):
        raise Refused(
            f"--config: get_config of {name} must return a ConfigDict, got {config!r:.40}"
        )
    return config.lock()


def overridden(config: ConfigDict, override: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with these fields changed: `{"sweep.seed": (0,), "penalty": "k1"}`."""
    changed = config.copy_and_resolve_references()
    changed.lock()
    for path, value in override.items():
        _refuse_unknown_field(path, changed)
        value = tuple(value) if isinstance(value, list) else value
        changed.update_from_flattened_dict({path: value})
    return changed


@contextlib.contextmanager
def refusing(where: str = "") -> Iterator[None]:
    """Within, what is wrong with a value is the user's to read, in one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = str(error.args[0] if error.args else error)
        raise Refused(where + " ".join(message.split())) from error


def in_a_line(error: BaseException) -> str:
    """`KeyError: 'beta'`."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def flat(config: ConfigDict, path: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by their paths, such as `training.steps`."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{path}{name}.")
        else:
            yield path + name, value


def field(config: ConfigDict, path: str) -> Any:
    """The value of a field by its path."""
    return functools.reduce(lambda config, name: config[name], path.split("."), config)


def sweepable(config: ConfigDict) -> dict[str, sweeps.Label]:
    """The fields that can be swept, with their values: those that have one value."""
    return {
        name: value
        for name, value in flat(config)
        if name.partition(".")[0] not in ENGINE and isinstance(value, bool | int | float | str)
    }


def _add_swept_field(path: str, config: ConfigDict) -> None:
    """Makes an axis of a field of the config of which `--config.sweep.<field>` gives values."""
    sweep, _, name = path.partition(".")
    if sweep != "sweep" or name in config.sweep or name not in (fields := sweepable(config)):
        return
    *parents, last = name.split(".")
    with config.unlocked():
        at = config.sweep
        for parent in parents:
            at[parent] = at.get(parent, ConfigDict())
            at = at[parent]
        at[last] = (fields[name],)


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
    whole = config
    for depth, name in enumerate(path.split(".")):
        if not isinstance(config, ConfigDict):
            raise Refused(f"--config.{path}: the field before {name!r} has no fields")
        fields = sweepable(whole) if depth == 1 and path.startswith("sweep.") else {}
        with refusing():
            checks.known(f"--config.{path}", name, [*config, *fields])
        config = config[name]


def _typed_tuples(config: ConfigDict, default: ConfigDict, path: str) -> None:
    """Gives overridden tuples the type of their defaults, which config_flags leaves open."""
    for name, usual in default.items():
        if isinstance(usual, ConfigDict):
            _typed_tuples(config[name], usual, f"{path}.{name}")
        elif isinstance(usual, tuple) and usual and config[name] != usual:
            with refusing("--"):
                config[name] = sweeps.override(f"{path}.{name}", config[name], usual)
