"""A run's config: from a command line, from a file, with some of its fields changed."""

import contextlib
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

_OVERRIDE = re.compile(r"--?config\.([^=]+)")


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
        with refusing():
            checks.known("--config", name, known)
        raise Refused(f"--config: {name} does not exist below this folder")
    spec = importlib.util.spec_from_file_location("config", name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with refusing(f"--config={argument}: "):
        return (module.get_config(scale) if scale else module.get_config()).lock()


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
        with refusing():
            checks.known(f"--config.{path}", name, list(config))
        config = config[name]


def _typed_tuples(config: ConfigDict, default: ConfigDict, path: str) -> None:
    """Gives overridden tuples the type of their defaults, which config_flags leaves open."""
    for name, usual in default.items():
        if isinstance(usual, ConfigDict):
            _typed_tuples(config[name], usual, f"{path}.{name}")
        elif isinstance(usual, tuple) and usual and config[name] != usual:
            with refusing("--"):
                config[name] = sweeps.override(f"{path}.{name}", config[name], usual)
