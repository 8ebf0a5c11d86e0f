"""The processes of one run end together: each with one line, all with the same exit code.

The first host that comes to an end leaves word of it in JAX's coordination service: its exit code
and, if it failed, its line. The others look for that every second. A host that is killed leaves no
word: JAX misses it after a while and aborts every other process from C++, with a stack; here that
is one line too, and the exit code of a failure.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import types
from typing import Any, BinaryIO, NamedTuple, NoReturn

import jax
import numpy as np
from jax._src import distributed  # its client, which the coordination service has no other way to
from ml_collections import ConfigDict

from experiments.lab import records
from experiments.lab.source import Code
from jdiv import parallel

FAILED = 3
"""Exit code after an error that was not foreseen, and after a host was lost."""

_END = "jdiv/end"
_SEEN = "jdiv/seen"
_PATIENCE = 5  # seconds in which hosts that are alive have looked
_connected = threading.Event()
_over = threading.Event()  # this host has come to its own end
_abort = types.SimpleNamespace(log=None, timeout=0, said=False, code=FAILED)
"""What the runtime has written, and how it ends this process, unless that was said before."""


def connect(address: str | None, count: int | None, number: int | None, timeout: int) -> None:
    """Makes this process one of many, which end together from now on."""
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise records.Refused(f"--coordinator_address must be host:port, got {address!r}")
    _abort.log, _abort.timeout = _hear_the_runtime(), timeout
    _abort_in_one_line()
    try:
        parallel.connect(address, count, number, timeout=timeout)
    except (ValueError, TypeError) as error:
        raise records.Refused(
            "--distributed: JAX finds no cluster here; --coordinator_address, --num_processes and"
            f" --process_id say what it is ({' '.join(str(error).split())})"
        ) from error
    except RuntimeError as error:
        raise records.Refused(f"--distributed: {' '.join(str(error).split())}") from error
    _connected.set()
    threading.Thread(target=_watch, daemon=True).start()
    jax.local_devices()
    _abort_in_one_line()  # once more: a TPU's runtime, which is loaded by now, has its own way


# ---------------------------------------------------------------------------------- before the work


def agree(configs: list[ConfigDict], codes: list[Code]) -> None:
    """Refuses, on every host, what the hosts would not compute alike; all of them have to ask."""
    if parallel.hosts() == 1:
        return
    own = {
        "config": [records.as_dict(config) for config in configs],
        "code": codes,
        "settings of random numbers": records.random_numbers(),
        "version of JAX": jax.__version__,
        "number of devices": jax.local_device_count(),
    }
    everyone = parallel.from_all_hosts(np.array([_digest(value) for value in own.values()]))
    for place, what in enumerate(own):
        differing = np.flatnonzero((everyone[:, place] != everyone[0, place]).any(axis=1))
        if len(differing):
            others = ", ".join(map(str, differing[:5])) + ", ..." * (len(differing) > 5)
            raise records.Refused(
                f"all hosts must have the same {what}; another one than host 0 have hosts {others}"
            )


def _digest(value: Any) -> list[int]:
    return list(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest())


# --------------------------------------------------------------------------------------- at the end


class Word(NamedTuple):
    """What the first host that came to an end has left; the line is empty unless it failed."""

    host: int
    code: int
    line: str


def end(code: int, line: str = "") -> int:
    """The exit code of all hosts, after this one has come to its end: with a line, it has failed.

    After a failure of any host this does not return: JAX would wait for hosts that wait for this
    one. If none fails the first host's code counts, and the others wait for it.
    """
    if not _connected.is_set():
        print(line, end="\n" if line else "", file=sys.stderr)
        return code
    _over.set()
    if line or parallel.host() == 0:
        _leave(Word(distributed.global_state.process_id, code, line))
    while (word := _word()) is None:
        time.sleep(0.2)
    if word.line:
        _failed(word, line)
    # All is done. From jax 0.12 on the service may be gone before another host has asked for the
    # word, or has left the service: it is aborted then, which is no failure.
    sys.stdout.flush()
    _abort.said, _abort.code = True, word.code
    _seen()
    return word.code


def _watch() -> None:
    """Ends this process when another has failed."""
    while not _over.wait(1):
        word = _word()
        if word and word.line and not _over.is_set():
            _failed(word)


def _failed(word: Word, line: str = "") -> NoReturn:
    """Says why all hosts end, unless by the line that this one has itself, and ends this one."""
    _abort.said, _abort.code = True, word.code
    own = line == word.line or word.host == distributed.global_state.process_id
    print(word.line if own else f"host {word.host}: {word.line}", file=sys.stderr)
    _seen()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(word.code)


def _seen() -> None:
    """Says that this host has seen the word; the host with the service waits for the others'."""
    state, deadline = distributed.global_state, time.monotonic() + _PATIENCE
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # a host that is gone sees nothing
        state.client.key_value_set(f"{_SEEN}/{state.process_id}", "yes")
        for other in range(state.num_processes if state.process_id == 0 else 0):
            left = max(deadline - time.monotonic(), 0.001)
            state.client.blocking_key_value_get(f"{_SEEN}/{other}", int(1000 * left))


def _leave(word: Word) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another host was earlier
        distributed.global_state.client.key_value_set(_END, json.dumps(word))


def _word() -> Word | None:
    try:
        return Word(*json.loads(distributed.global_state.client.key_value_try_get(_END)))
    except jax.errors.JaxRuntimeError:
        return None


# --------------------------------------------------------------------------------- when JAX aborts


def _hear_the_runtime() -> BinaryIO | None:
    """A file that takes what the runtime writes, of which only the reason of an abort is read.

    None if the user wants to see it and has set TF_CPP_MIN_LOG_LEVEL=0; JAX itself sets 1.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return None
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    log = tempfile.TemporaryFile()  # noqa: SIM115
    os.dup2(log.fileno(), 2)
    return log


def _abort_in_one_line() -> None:
    """From now on the runtime's way to end the process, SIGABRT, is one line and an exit code."""
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    log = os.pread(_abort.log.fileno(), 2**20, 0).decode(errors="replace") if _abort.log else ""
    if not _abort.said:
        print(_reason(log, _abort.timeout), file=sys.stderr, flush=True)
    os._exit(_abort.code)


def _reason(log: str, timeout: int) -> str:
    """One line for what the runtime has written before it aborts."""
    silent = re.search(r"unhealthy \(stopped sending heartbeats\):\s*(\d+)", log)
    fatal = re.search(r"^F\d{4} .*?\] (.*)", log, re.MULTILINE)
    if silent:
        return f"{_lost(f'host {silent[1]}')}; it was silent for {timeout} s"
    if "RegisterTask" in log:
        return f"not all hosts came within {timeout} s, see --host_timeout"
    if "service detected fatal errors" in log:
        return _lost("host 0")
    return f"the runtime has aborted: {fatal[1] if fatal else 'TF_CPP_MIN_LOG_LEVEL=0 says why'}"


def lost(error: Exception) -> str | None:
    """The line for an error of a collective whose partner is gone; None for another error."""
    gone = isinstance(error, jax.errors.JaxRuntimeError) and "Gloo" in str(error)
    return _lost("another host") if gone else None


def _lost(who: str) -> str:
    return f"{who} is lost; the same command on all hosts goes on from here"
