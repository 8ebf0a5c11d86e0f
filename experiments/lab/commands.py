"""What the commands share: flags, devices, how they stop, and how they say no."""

import contextlib
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator

import jax
from absl import flags

from experiments.lab import records
from jdiv import checkpoints, parallel

STOPPED = 128 + signal.SIGTERM


def shared_flags(values: flags.FlagValues) -> None:
    """Flags that every command has."""
    flags.DEFINE_string("workdir", None, "Folder of the results.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Computes anew what is there.", flag_values=values)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags.DEFINE_integer(
        "cpu_devices", cores, "Devices a CPU is divided into.", 1, flag_values=values
    )
    flags.DEFINE_bool("distributed", False, "One process of many, see jax.distributed.",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0, if JAX cannot know.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_integer("num_processes", None, "How many there are.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which one this is.", flag_values=values)


def set_up(values: flags.FlagValues) -> None:
    """Devices, hosts, and the cache of compiled programs."""
    use_cpu(values.cpu_devices)
    if values.distributed:
        parallel.connect(values.coordinator_address, values.num_processes, values.process_id)


def use_cpu(devices: int) -> None:
    """Divides the CPU, if that is what there is, and keeps compiled programs."""
    parallel.divide_cpu(devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(records.ROOT / ".cache" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def command(module: str) -> str:
    """The command line as it was typed."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


@contextlib.contextmanager
def stopping_on_signal() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT only set the flag that is yielded; a second SIGINT interrupts."""
    asked = []

    def note(number, frame):
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(body: Callable[[], int]) -> int:
    """Runs a command's body; what is refused or stopped becomes one line and an exit code."""
    try:
        return body()
    except records.Refused as error:
        print(error, file=sys.stderr)
        return 2
    except checkpoints.Unreadable as error:
        print(f"{error}; --overwrite starts over", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except records.Stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED


def parse(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses the flags; whatever is wrong with them is refused in one line."""
    try:
        rest = values(argv)[1:]
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        raise records.Refused(" ".join(str(error).split())) from error
    if rest:
        raise records.Refused(f"unknown argument {rest[0]!r}; options begin with --")


def configs() -> list[pathlib.Path]:
    """Every config of the repository, by area and name."""
    return sorted(
        path for path in (records.ROOT / "configs").glob("*/*.py") if path.name != "__init__.py"
    )
