"""Contestants, what is written down of them, and the file that holds it."""

import csv
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jdiv
from benchmarks import measure

FILE = pathlib.Path(__file__).parent / "results" / "cpu.csv"
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "optax", "distrax", "torch", "trl",
            "transformers", "quantecon", "numba", "gymnax", "stable-baselines3")  # fmt: skip


WRONG = 0.01
"""A relative difference that a note is made of."""


class Contestant(NamedTuple):
    """Something that does the work once it is called, and returns when it is done."""

    name: str
    """The library, or what others write by hand."""
    ran: str
    """What is called, and how it runs."""
    call: Callable[[], Any]
    """Returns what `numbers` reads."""
    numbers: Callable[[Any], Sequence[Any]] | None
    """The arrays of a result, which are compared with the first contestant's; None: they differ."""
    memory: int | None = None
    """Bytes of results and temporaries, by the compiled program's own analysis."""
    tolerance: float = 1e-3
    """The largest difference from the first contestant; beyond it the comparison is none."""
    count: int = 1
    """How much one call does; seconds are those of one."""
    unit: str = ""
    """Of which it does so many a second."""


class Row(NamedTuple):
    """A line of the file: one contestant in one comparison."""

    benchmark: str
    size: str
    dtype: str
    implementation: str
    ran: str
    runs: int
    min_s: float
    median_s: float
    p90_s: float
    ratio_min: float | None = None
    """The least seconds over the least of the first contestant."""
    ratio: float | None = None
    """The median of seconds over those of the first contestant, within rounds."""
    ratio_p10: float | None = None
    ratio_p90: float | None = None
    compiled_bytes: int | None = None
    """Results and temporaries by the compiled program's own analysis."""
    resident_bytes: int | None = None
    """By how much one call lifted the process's resident memory."""
    rate: float | None = None
    unit: str = ""
    difference: float | None = None
    """The largest relative difference from the first contestant."""
    tolerance: float | None = None
    note: str = ""
    moved_bytes: float | None = None
    """The least that any program has to read and write, and so on: what bounds are made of."""
    exponentials: float | None = None
    operations: float | None = None
    bound_s: float | None = None
    """The longest of these at the rates measured on the same machine."""
    bound_by: str = ""


ENVIRONMENT = ("machine", "cores", "memory_gb", "date", "versions")
COLUMNS = (*ENVIRONMENT, *Row._fields)


# ------------------------------------------------------------------------------------- comparisons


def compare(
    benchmark: str,
    size: str,
    dtype: str,
    contestants: Sequence[Contestant],
    *,
    work: dict[str, float] | None = None,
    **options: Any,
) -> Iterator[Row]:
    """A row for each contestant, after its result was held against that of the first one.

    `work` is the least work, by the names of the row's fields, and `options` those of
    `measure.interleaved`. The first call of each, which compiles, is not timed.
    """
    expected, differences = None, {}
    for one in contestants:
        result = one.call()
        if one.numbers is None:
            continue
        found = one.numbers(result)
        expected = found if expected is None else expected
        apart = differences[one.name] = measure.difference(found, expected)
        if not apart <= one.tolerance:
            raise AssertionError(
                f"{benchmark} {size} {dtype}: {one.name} is {apart:.1e} from"
                f" {contestants[0].name}, more than {one.tolerance:.0e}"
            )
    expected = found = result = None  # not to be counted as anybody's memory
    resident, once = {}, {}
    for one in contestants:
        start = time.perf_counter()
        resident[one.name] = measure.peak(one.call)
        once[one.name] = time.perf_counter() - start
    calls = {one.name: one.call for one in contestants}
    seconds = measure.interleaved(calls, once=once, **options)
    seconds = {one.name: [s / one.count for s in seconds[one.name]] for one in contestants}
    for one in contestants:
        own, first = seconds[one.name], seconds[contestants[0].name]
        ratio = measure.ratios(own, first)
        apart = None if one is contestants[0] else differences.get(one.name)
        found = measure.quantiles(own)
        yield Row(
            benchmark, size, dtype, one.name, one.ran, len(own), *found,
            ratio_min=found.least / min(first),
            ratio=ratio.median, ratio_p10=ratio.least, ratio_p90=ratio.high,
            compiled_bytes=one.memory, resident_bytes=resident[one.name],
            rate=1 / found.median if one.unit else None, unit=one.unit,
            difference=apart, tolerance=None if apart is None else one.tolerance,
            note=f"wrong by {100 * apart:.0f} %" if apart is not None and apart > WRONG else "",
            **(work or {}),
        )  # fmt: skip


def compiled(
    name: str,
    ran: str,
    f: Callable,
    arguments: Sequence[Any],
    *,
    numbers: Callable[[Any], Sequence[Any]] | None = None,
    tolerance: float = 1e-3,
) -> Contestant:
    """A contestant in JAX: compiled ahead, so that the program that is timed says its memory."""
    import jax

    program = jax.jit(f).lower(*arguments).compile()
    use = program.memory_analysis()
    return Contestant(
        name,
        ran,
        lambda: jax.block_until_ready(program(*arguments)),
        numbers or jax.tree.leaves,
        memory=use.output_size_in_bytes + use.temp_size_in_bytes,
        tolerance=tolerance,
    )


class Absent(Exception):
    """A peer that is not installed."""


def peers(*makers: Callable[[], Contestant]) -> list[Contestant]:
    """The contestants that are there; of another its name is printed."""
    there = []
    for make in makers:
        try:
            there.append(make())
        except ImportError as error:
            missing = error.name or str(error)
            print(f"  not here: {missing}, so no row of {make.__name__}", flush=True)
    return there


# -------------------------------------------------------------------------------------- the file


def environment() -> dict[str, Any]:
    """This machine, today, and the versions of what is installed."""
    versions = {"jdiv": jdiv.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": "; ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _processor() -> str:
    """The name of the processor."""
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    fields = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    model = re.sub(r"\((R|TM)\)", "", fields["model name"])
    number = f", family {fields['cpu family']} model {fields['model']}" if "model" in fields else ""
    return " ".join(model.split()) + number


def _memory_gb() -> int | None:
    """Memory of the machine."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)
    except (ValueError, OSError):
        return None


def save(rows: Iterable[Row], path: pathlib.Path, of: dict[str, Any] | None = None) -> None:
    """Writes the file, with the environment in every line."""
    of = environment() if of is None else of
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([*(of[name] for name in ENVIRONMENT), *map(_shown, row)])


def _shown(value: Any) -> Any:
    """Four digits of a number, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def show(rows: Iterable[Row]) -> None:
    """Prints a line for each row, as it comes."""
    for row in rows:
        ratio = (
            ""
            if row.ratio is None
            else f" x {row.ratio:.2f} [{row.ratio_p10:.2f}, {row.ratio_p90:.2f}]"
        )
        memory = row.compiled_bytes or row.resident_bytes
        print(
            f"{row.benchmark} | {row.size} {row.dtype} | {row.implementation}: {row.runs} runs,"
            f" least {row.min_s:.4g} s, median {row.median_s:.4g} s{ratio}"
            + (f", {memory / 1e6:.0f} MB" if memory else "")
            + (f", {row.rate:.3g} {row.unit}" if row.rate else "")
            + (f" ({row.note})" if row.note else ""),
            flush=True,
        )


def load(path: pathlib.Path = FILE) -> tuple[dict[str, str], list[Row]]:
    """The environment and the rows of a file."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    kinds = {name: str(kind) for name, kind in Row.__annotations__.items()}

    def read(name: str, text: str) -> Any:
        if "str" in kinds[name]:
            return text
        if text == "":
            return None
        return int(float(text)) if "int" in kinds[name] else float(text)

    rows = [Row(**{name: read(name, line[name]) for name in Row._fields}) for line in lines]
    return {name: lines[0][name] for name in ENVIRONMENT}, rows


def bounded(rows: Sequence[Row]) -> list[Row]:
    """The rows with their bounds, from the rates of the same machine that are among them."""
    rates = {row.benchmark: row.rate for row in rows}
    of = {
        "moved_bytes": ("bandwidth", "bandwidth"),
        "exponentials": ("exponentials", "exp"),
        "operations": ("matrix products", "matrix products"),
    }
    found = []
    for row in rows:
        bounds = {
            label: getattr(row, field) / rates[name]
            for field, (name, label) in of.items()
            if getattr(row, field) is not None and name in rates
        }
        if bounds:
            slowest = max(bounds, key=bounds.get)
            row = row._replace(bound_s=bounds[slowest], bound_by=slowest)
        found.append(row)
    return found
