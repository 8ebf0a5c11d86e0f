"""Tables of the page on speed, from the file that `make benchmark` writes."""

import pathlib
from collections.abc import Callable, Sequence

from benchmarks import table
from benchmarks.table import Row
from docs.generate import markdown
from docs.generate.pages import RIGHT, WRONG, marked

SMALL = "1024 x 32000"
PARTS: dict[str, Callable[[str], bool]] = {
    "logits": lambda name: name in ("KL, value and gradient", "Jensen-Shannon, value and gradient"),
    "rows": lambda name: name.startswith("every row"),
    "hidden": lambda name: "from hidden states" in name,
    "greedy": lambda name: name.startswith("greedy, "),
    "solvers": lambda name: name.startswith("greedy of "),
    "planning": lambda name: name.startswith("value iteration"),
    "programs": lambda name: name in ("sweep", "deep Q-learning"),
    "sampling": lambda name: name == "sampling",
    "training": lambda name: name in ("DPO step", "GRPO step"),
}
"""Which comparisons stand in which table."""


# ---------------------------------------------------------------------------------------- cells


def seconds(x: float) -> str:
    """Three digits with the unit that fits.

    >>> [seconds(x).replace(chr(0x202f), " ") for x in (0.2614, 3.2e-5, 12.0)]
    ['261 ms', '32 µs', '12 s']
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if x >= size:
            return f"{x / size:.3g}\u202f{unit}"
    return f"{x / 1e-9:.3g}\u202fns"


def times(x: float) -> str:
    """A ratio with two or three digits.

    >>> times(0.914), times(3.14159), times(613.22)
    ('0.91', '3.1', '613')
    """
    return f"{x:.2f}" if x < 1 else f"{x:.1f}" if x < 100 else f"{x:.0f}"


def spread(row: Row) -> str:
    """`2.1 (1.9 to 2.4)`: median, and what lies between one tenth and nine tenths."""
    return f"{times(row.ratio)} ({times(row.ratio_p10)} to {times(row.ratio_p90)})"


def size_of(bytes: float | None) -> str:
    """Megabytes; a dash for less than one, which a process has about it anyway."""
    return "–" if bytes is None or bytes < 1e6 else f"{bytes / 1e6:.3g}\u202fMB"


def bound(row: Row) -> str:
    """What no program can fall below, and what of it bounds."""
    return "–" if row.bound_s is None else f"{seconds(row.bound_s)}, {row.bound_by}"


# --------------------------------------------------------------------------------------- tables


def comparison(rows: Sequence[Row]) -> str:
    """Rows with what was compared, how it ran, time, ratio and memory."""
    cells, last = [], None
    for row in rows:
        what = f"{row.benchmark.split(', value')[0]}<br>{row.size}, {row.dtype}"
        rate = f"<br>{row.rate:,.0f} {row.unit}" if row.rate else ""
        cells.append((
            "" if what == last else what,
            f"**{row.implementation}**<br>{markdown.prose(row.ran)}",
            seconds(row.min_s) + rate,
            f"{seconds(row.median_s)}, {seconds(row.p90_s)}",
            "1" if row.ratio_p10 == row.ratio_p90 == 1 else spread(row),
            size_of(row.compiled_bytes), size_of(row.resident_bytes), bound(row),
            marked(row.note, WRONG) if row.note else "",
        ))  # fmt: skip
        last = what
    header = (
        "what", "by", "least", "median, 90 %", "over the first", "memory, program",
        "memory, resident", "bound", "differs from the first",
    )  # fmt: skip
    keep = [i for i in range(len(header)) if any(row[i] not in ("", "–") for row in cells)]
    cells = [[row[i] for i in keep] for row in cells]
    return markdown.table([header[i] for i in keep], cells, classes="speed")


def over_first(rows: Sequence[Row], first: str) -> str:
    """One line for each row of the table of divergences, with its ratio at each size."""
    sizes = list(dict.fromkeys(row.size for row in rows))
    names = list(dict.fromkeys(row.implementation for row in rows if row.implementation != first))
    found = {(row.implementation, row.size): row for row in rows}
    cells = [
        (
            f"`{name}`",
            *(spread(found[name, size]) if (name, size) in found else "–" for size in sizes),
            *(seconds(found[name, size].min_s) if (name, size) in found else "–" for size in sizes),
        )
        for name in names
    ]
    header = "row", *(f"over {first}, {s}" for s in sizes), *(f"least, {s}" for s in sizes)
    return markdown.table(header, cells, classes="speed")


# -------------------------------------------------------------------------------------- targets


def targets(rows: Sequence[Row]) -> str:
    """What was to be reached on two cores, and what is."""

    def beside(name: str, other: str, size: str = "", dtype: str = "") -> list[Row]:
        return [
            row for row in rows
            if row.benchmark.startswith(name) and row.implementation == other
            and size in ("", row.size) and row.dtype.startswith(dtype)
        ]  # fmt: skip

    def least(found: Sequence[Row]) -> Row | None:
        return min(found, key=lambda row: row.ratio, default=None)

    def most(found: Sequence[Row]) -> Row | None:
        return max(found, key=lambda row: row.ratio, default=None)

    kl, js, hidden = "KL, value", "Jensen-Shannon, value", "Jensen-Shannon from hidden"
    on_logits = {"size": SMALL, "dtype": "float32"}
    each = [row for row in rows if row.benchmark.startswith("every row")]
    steps = [row for row in rows if row.benchmark.startswith("greedy, ")]
    wanted = (
        ("KL: torch's time over jdiv's", ">=", 3, least(beside(kl, "torch", **on_logits)),
         "fresh memory for the gradient, and nine passes in cache for the digits of close logits"),
        ("KL: optax's time over jdiv's", ">=", 1, least(beside(kl, "optax", **on_logits))),
        ("Jensen-Shannon: TRL's time over jdiv's", ">=", 5, least(beside(js, "TRL", **on_logits))),
        ("Jensen-Shannon: plain JAX's time over jdiv's", ">=", 1,
         least(beside(js, "plain JAX", **on_logits))),
        ("slowest row: its time over KL's", "<=", 1.5, most(each),
         "arithmetic: mixtures take four logarithms and four exponentials of each category more"),
        ("from hidden states: plain JAX's time over jdiv's", ">=", 1,
         least(beside(hidden, "plain JAX"))),
        ("from hidden states: TRL's time over jdiv's", ">=", 3, least(beside(hidden, "TRL"))),
        ("slowest greedy step: its time over a log-softmax's", "<=", 15, most(steps),
         "three to seven Newton steps with the inverse of f' and an exponential of every action"),
        ("value iteration, worse size: QuantEcon's time over jdiv's", ">=", 1,
         least(beside("value iteration", "quantecon"))),
        ("deep Q-learning: moves a second over stable-baselines3's", ">=", 50,
         least(beside("deep", "stable-baselines3"))),
        ("sampling 256 tokens: time without a cache over with one", ">=", 5,
         least(beside("sampling", "without a cache"))),
        ("DPO step, worse size: TRL's time over jdiv's", ">=", 2, least(beside("DPO", "TRL"))),
        ("GRPO step, worse size: TRL's time over jdiv's", ">=", 2, least(beside("GRPO", "TRL"))),
    )  # fmt: skip
    lines = [_target(*one) for one in wanted]
    lines.insert(5, _memory(beside(hidden, "jdiv"), beside(hidden, "plain JAX")))
    header = "in one run, and what bounds what is missed", "to reach", "measured", ""
    return markdown.table(header, lines, classes="speed")


def _target(what: str, sign: str, goal: float, row: Row | None, bound: str = "") -> tuple[str, ...]:
    """A line of the table of targets; `bound` is said of what is missed."""
    words = f"{'at least' if sign == '>=' else 'at most'} {goal:g}"
    if row is None:
        return what, words, "not measured", ""
    reached = row.ratio >= goal if sign == ">=" else row.ratio <= goal
    found = spread(row)
    if "slowest" in what:
        found += f", `{row.implementation}`"
    if reached:
        return what, words, found, marked("reached", RIGHT)
    return f"{what}<br>{bound}" if bound else what, words, found, marked("missed", WRONG)


def _memory(own: Sequence[Row], other: Sequence[Row]) -> tuple[str, ...]:
    """Memory from hidden states, by the analysis of both programs."""
    what, words = "from hidden states: plain JAX's memory over jdiv's", "at least 4"
    if not own or not other:
        return what, words, "not measured", ""
    ratio = other[0].compiled_bytes / own[0].compiled_bytes
    return (
        what,
        words,
        times(ratio),
        marked("reached", RIGHT) if ratio >= 4 else marked("missed", WRONG),
    )


# ---------------------------------------------------------------------------------------- parts


def where(environment: dict[str, str], rows: Sequence[Row]) -> str:
    """Machine, date, versions and what the machine can do."""
    rates = {row.benchmark: row.rate for row in rows if row.unit in ("bytes/s", "exp/s", "flop/s")}
    text = (
        f"{environment['machine']}, {environment['cores']} cores,"
        f" {environment['memory_gb']} GB of memory, {environment['date']}."
    )
    if len(rates) == 4:
        text += (
            f" It moves {rates['bandwidth'] / 1e9:.1f} GB in place and"
            f" {rates['fresh memory'] / 1e9:.1f} GB into memory that it has to ask for first, takes"
            f" {rates['exponentials'] / 1e9:.2f} billion exponentials, and makes"
            f" {rates['matrix products'] / 1e9:.0f} billion operations of matrix products in a"
            " second, in single precision."
        )
    versions = environment["versions"].replace("; ", ", ")
    return f"{text}\n\nVersions: {versions}.\n"


def write(folder: pathlib.Path, path: pathlib.Path = table.FILE) -> None:
    """Writes the parts that the page includes."""
    environment, rows = table.load(path)
    parts = {"where": where(environment, rows), "targets": targets(rows)}
    for name, belongs in PARTS.items():
        here = [row for row in rows if belongs(row.benchmark)]
        first = {"rows": "kl", "greedy": "log-softmax"}.get(name)
        of = comparison(here) if first is None else over_first(here, first)
        parts[name] = of if here else "*Not measured.*"
    for name, text in parts.items():
        markdown.save(folder / f"benchmarks_{name}.part.md", text + "\n")
