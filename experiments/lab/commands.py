"""What the commands share: flags, devices, how they stop, and how they say no."""

import contextlib
import gc
import os
import pathlib
import shlex
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import flags

from experiments.lab import hosts, records
from jdiv import checkpoints, parallel

ONE_OF_MANY = ("coordinator_address", "num_processes", "process_id")


def shared_flags(values: flags.FlagValues) -> None:
    """Flags that every command has."""
    flags.DEFINE_string("workdir", None, "Folder of the results.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Computes anew what is there.", flag_values=values)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for name, default, least, text in (
        ("cpu_devices", cores, 1, "Devices a CPU is divided into: one for each core, or what"
         " XLA_FLAGS or JAX_NUM_CPU_DEVICES say."),
        ("num_processes", None, 1, "Of --distributed: how many there are, where JAX cannot know."),
        ("process_id", None, 0, "Of --distributed: which one this is, from 0."),
        ("host_timeout", 40, 1, "Of --distributed: seconds in which every process has to come, and"
         " to give a sign of life, before all end."),
    ):  # fmt: skip
        flags.DEFINE_integer(name, default, text, least, flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "Of --distributed: host:port of process 0.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_bool("distributed", False, "This is one process of many, of which the first alone"
                      " writes. On TPU pods and Slurm JAX finds the others.",
                      flag_values=values)  # fmt: skip


def usage(text: str | None) -> str:
    """What a command says of itself, with the flags that every command has."""
    shared_flags(values := flags.FlagValues())
    listed = (
        textwrap.fill(f"--{name}: {values[name].help}", 100, subsequent_indent="    ")
        for name in values
    )
    return "\n".join((text or "", *listed))


def set_up(values: flags.FlagValues) -> None:
    """Devices, hosts, and the cache of compiled programs."""
    if jax.config.jax_disable_jit:
        raise records.Refused(
            "JAX_DISABLE_JIT is set, but programs are compiled before they run; unset it"
        )
    given, kept = values.cpu_devices, parallel.cpu_devices_set()
    if values["cpu_devices"].present and kept not in (None, given):
        raise records.Refused(
            f"--cpu_devices={given}, but XLA_FLAGS or JAX_NUM_CPU_DEVICES say {kept}; leave one out"
        )
    alone = [name for name in ONE_OF_MANY if values[name].present and not values.distributed]
    if alone:
        raise records.Refused(f"--{alone[0]} is for one process of many: --distributed is missing")
    use_cpu(given)
    try:
        if values.distributed:
            hosts.connect(
                values.coordinator_address,
                values.num_processes,
                values.process_id,
                timeout=values.host_timeout,
            )
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms
        asked = f"JAX_PLATFORMS={platforms}: " if platforms else ""
        raise records.Refused(f"{asked}no device is found ({_first_line(error)})") from error


def use_cpu(devices: int) -> None:
    """Divides the CPU, if that is what there is, keeps compiled programs, and traces lightly."""
    parallel.divide_cpu(devices)
    _trace_lightly()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(records.ROOT / ".cache" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        # Of a program that another process is still writing, or was killed over: it is compiled.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")


def _trace_lightly() -> None:
    """Tracing makes millions of objects that stay: what looks at them takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # Where each operation of a program was written: nothing here reads it.
    jax.config.update("jax_include_full_tracebacks_in_locations", False)


def command(module: str) -> str:
    """The command line as it was typed."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


# ------------------------------------------------------------------------------- how they stop


@contextlib.contextmanager
def stopping_on_signal() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT only set the flag that is yielded; a second SIGINT interrupts.

    On many hosts it is enough that one of them got the signal.
    """
    asked = []

    def note(number, frame):
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(number)

    with _handling({signal.SIGTERM: note, signal.SIGINT: note}):
        try:
            yield lambda: bool(asked)
        except records.Stopped as stopped:
            number = max(parallel.from_all_hosts(asked[0] if asked else 0))
            raise records.Stopped(int(number)) from stopped


@contextlib.contextmanager
def _handling(handlers: dict[int, Any]) -> Iterator[None]:
    """Within, these signals are handled so."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(body: Callable[[], int]) -> int:
    """Runs a command's body; what is refused, stopped or fails becomes one line and an exit code.

    The code is the same on all hosts. On a single one what was not foreseen has its traceback.
    """

    def stop(number, frame):
        raise records.Stopped(number)

    with _handling({signal.SIGTERM: stop, signal.SIGINT: signal.default_int_handler}):
        code, line = _ended(body)
        if not line:  # a host that waits there for the first one may be stopped there
            code, line = _ended(lambda: hosts.end(code))
        return hosts.end(code, line) if line else code


def _ended(body: Callable[[], int]) -> tuple[int, str]:
    """The exit code, and the line that says why it is none of the body's."""
    try:
        return body(), ""
    except records.Refused as error:
        return 2, str(error)
    except checkpoints.Unreadable as error:
        return 2, f"{error}; --overwrite starts over"
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return 2, f"{where}{error.strerror or _first_line(error)}"
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, "interrupted; the same command goes on from here"
    except records.Stopped as error:
        number = error.args[0] if error.args else signal.SIGTERM
        return 128 + number, "stopped; the same command goes on from here"
    except Exception as error:
        if parallel.hosts() == 1:
            traceback.print_exc()
            return hosts.FAILED, ""
        what = f"{type(error).__name__}: {_first_line(error)} ({_trail(error)})"
        return hosts.FAILED, hosts.lost(error) or what


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _trail(error: BaseException) -> str:
    """The last places in this repository or beside it through which an error came."""
    places = [
        f"{pathlib.Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename
    ]
    return " > ".join(places[-4:])


# ------------------------------------------------------------------------------- how they say no


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
