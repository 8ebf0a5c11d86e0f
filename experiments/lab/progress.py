"""Progress of a run: how much is done, how fast, and how long the rest will take."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Counts work and time; compiling is told apart from running.

    On a terminal one line is rewritten; elsewhere there is a line a minute.
    """

    def __init__(self, label: str, stream: TextIO | None = None):
        self.label = label
        self.stream = sys.stderr if stream is None else stream
        self.total = self.done = self.fresh = 0
        self.unit = "points"
        self.compiling = self.running = self.before = 0.0
        self.programs = 0
        self.shown = time.monotonic()

    def expect(self, total: int, unit: str, done: int = 0) -> None:
        """So much work in all, of which some was done before."""
        self.total, self.unit, self.done, self.fresh = total, unit, done, 0
        self.before = self.running

    @contextmanager
    def compile(self) -> Iterator[None]:
        """Around the compilation of one program."""
        self._show("compiling", always=self.stream.isatty())
        start = time.monotonic()
        yield
        self.compiling += time.monotonic() - start
        self.programs += 1

    @contextmanager
    def work(self, amount: int) -> Iterator[None]:
        """Around a piece of work."""
        start = time.monotonic()
        yield
        self.running += time.monotonic() - start
        self.done += amount
        self.fresh += amount
        self._show(self._rate(), always=self.stream.isatty())

    def say(self, message: str) -> None:
        """A line that stays."""
        self._clear()
        print(f"{self.label}: {message}", file=self.stream, flush=True)

    def close(self) -> None:
        """Leaves a clean line behind."""
        self._clear()

    def _rate(self) -> str:
        spent = self.running - self.before
        if not self.fresh or not spent:
            return ""
        rate = self.fresh / spent
        left = (self.total - self.done) / rate
        return f"{rate:.3g} {self.unit}/s, {_clock(left)} left"

    def _show(self, what: str, *, always: bool) -> None:
        """`compiled 3 programs in 0:04`, when it is time to."""
        if not always and time.monotonic() - self.shown < 60:
            return
        self.shown = time.monotonic()
        line = f"{self.label}: {self.done}/{self.total} {self.unit}, {what}".rstrip(", ")
        line += f" (compiled {self.programs} in {_clock(self.compiling)})"
        self._clear()
        print(line, end="" if self.stream.isatty() else "\n", file=self.stream, flush=True)

    def _clear(self) -> None:
        if self.stream.isatty():
            print("\r\x1b[K", end="", file=self.stream, flush=True)


def _clock(seconds: float) -> str:
    """`1:02:03`, `2:03`.

    >>> _clock(3723), _clock(63)
    ('1:02:03', '1:03')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
