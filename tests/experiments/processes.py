"""The command of the toys in processes of their own, forked from one that has imported all."""

import multiprocessing
import os
import pathlib
import signal
import tempfile
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tests.experiments import toys

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.experiments.toys", "h5netcdf", "matplotlib.pyplot", "orbax.checkpoint"]
)


class Started(NamedTuple):
    """A process, and the folder with what it says."""

    process: multiprocessing.Process
    said: pathlib.Path

    def out(self) -> str:
        """What it has printed so far."""
        return (self.said / "out").read_text() if (self.said / "out").exists() else ""

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal, if it still runs."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait_for(self, condition) -> None:
        """Until something is true; it must not end before."""
        while not condition():
            assert self.process.is_alive(), self.ended()
            time.sleep(0.002)

    def ended(self) -> tuple[int, list[str]]:
        """Its exit code and the lines it complained in."""
        self.process.join(120)
        return self.process.exitcode, (self.said / "err").read_text().splitlines()


def start(*arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> Started:
    """`toys.main` with these arguments, and these variables besides those that there are."""
    said = pathlib.Path(tempfile.mkdtemp())
    process = FORKS.Process(target=toys.as_a_process, args=(arguments, said, dict(environment)))
    process.start()
    return Started(process, said)
