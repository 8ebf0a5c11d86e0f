"""Paired measurements: contestants in turn, round after round, in one process.

A machine that others use, or that clocks down, is slow for all contestants of a round alike, so
ratios are taken within rounds. The least time is the best figure of what a program can do.
"""

import ctypes
import gc
import math
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

ROUNDS, FEWEST, BUDGET = 7, 3, 15.0
"""Rounds of a comparison; the fewest, if they take more seconds than the budget."""
SHORT = 0.02
"""Seconds: calls that take less are repeated, and their mean is taken."""


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = ROUNDS,
    fewest: int = FEWEST,
    budget: float = BUDGET,
    short: float = SHORT,
    once: Mapping[str, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of a call of each contestant in each round; every second round goes backwards.

    A call returns when its work is done, and `once` says about how long that takes; without it
    each is made once before anything counts. No round begins after `budget` seconds, but the first
    `fewest` do.
    """
    once = {name: _timed(call, 1, clock) for name, call in calls.items()} if once is None else once
    repeats = {name: max(1, math.ceil(short / max(once[name], 1e-6))) for name in calls}
    seconds = {name: [] for name in calls}
    start = clock()
    for number in range(rounds):
        if number >= fewest and clock() - start > budget:
            break
        for name in list(calls)[:: -1 if number % 2 else 1]:
            seconds[name].append(_timed(calls[name], repeats[name], clock))
    return seconds


def _timed(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    """Mean seconds of so many calls."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


class Quantiles(NamedTuple):
    """Of seconds, or of ratios."""

    least: float
    median: float
    high: float


def quantiles(numbers: Sequence[float]) -> Quantiles:
    """Least, median, and the nine tenths quantile, which is one of the numbers.

    >>> quantiles([3.0, 1.0, 2.0, 4.0])
    Quantiles(least=1.0, median=2.5, high=4.0)
    """
    high = np.quantile(numbers, 0.9, method="higher")
    return Quantiles(float(np.min(numbers)), float(np.median(numbers)), float(high))


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Quantiles:
    """One tenth quantile, median and nine tenths quantile of the ratios within rounds.

    >>> ratios([2.0, 6.0, 4.0], [1.0, 2.0, 2.0])
    Quantiles(least=2.0, median=2.0, high=3.0)
    """
    found = np.divide(numerator, denominator)
    low = np.quantile(found, 0.1, method="lower")
    return Quantiles(
        float(low), float(np.median(found)), float(np.quantile(found, 0.9, method="higher"))
    )


# -------------------------------------------------------------------------------------- agreement


def difference(found: Any, expected: Any) -> float:
    """The largest relative distance of an array from the one that it should be, in Euclidean norm.

    `found` and `expected` are sequences of arrays. NaN and infinities are a difference of infinity.

    >>> difference([np.array([1.0, 0.0]), np.array(2.0)], [np.array([1.0, 0.0]), np.array(2.5)])
    0.2
    """
    worst = 0.0
    for x, right in zip(found, expected, strict=True):
        x, right = (np.asarray(array, np.float64) for array in (x, right))
        if x.shape != right.shape:
            raise ValueError(f"shapes differ: {x.shape} and {right.shape}")
        size = float(np.linalg.norm(right))
        distance = float(np.linalg.norm(x - right)) / (size or 1.0)
        worst = max(worst, distance if math.isfinite(distance) else math.inf)
    return worst


# ----------------------------------------------------------------------------------------- memory


def peak(call: Callable[[], Any]) -> int | None:
    """Bytes by which a call lifts this process's resident memory at its highest; None off Linux."""
    reset = pathlib.Path("/proc/self/clear_refs")
    gc.collect()
    try:
        _trim()
        reset.write_text("5")  # the high-water mark falls to what is resident now
    except OSError:
        return None
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _trim() -> None:
    """What was freed goes back to the system, where the C library can; else it hides a need."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1])
