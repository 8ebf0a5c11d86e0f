"""The figure: how many times as long others take, and what a greedy step costs."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.table import Row

# Colors of Okabe and Ito, told apart by every eye; shapes say the same.
LOOKS = {
    "plain JAX": ("#000000", "s"),
    "plain JAX, probabilities": ("#707070", "D"),
    "optax": ("#0072B2", "^"),
    "distrax": ("#56B4E9", "v"),
    "torch": ("#D55E00", "o"),
    "TRL": ("#CC79A7", "P"),
    "quantecon": ("#009E73", "<"),
    "scipy": ("#E69F00", ">"),
    "stable-baselines3": ("#D55E00", "X"),
    "transformers": ("#E69F00", "h"),
    "without a cache": ("#56B4E9", "*"),
    "vmap": ("#0072B2", "p"),
    "a loop": ("#707070", "h"),
    "processes": ("#000000", "*"),
}
LIMIT = 15
"""What a greedy step is to cost at most, in log-softmaxes."""


def draw(rows: Sequence[Row]) -> plt.Figure:
    """Ratios over jdiv on the left, ratios over log-softmax on the right; bars are the spread."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    count = len(
        {(row.benchmark, row.size, row.dtype) for row in rows if row.implementation in LOOKS}
    )
    figure, axes = plt.subplots(
        1, 2, figsize=(12.5, max(6.0, 0.42 * count)), layout="constrained", width_ratios=(1.5, 1)
    )
    _others(axes[0], [row for row in rows if row.implementation in LOOKS])
    _greedy(axes[1], [row for row in rows if row.benchmark.startswith("greedy, ")])
    return figure


def _others(axis: plt.Axes, rows: Sequence[Row]) -> None:
    """A line for each comparison, a mark for each of the others in it."""
    places = list(dict.fromkeys((row.benchmark, row.size, row.dtype) for row in rows))
    for row in rows:
        place = places.index((row.benchmark, row.size, row.dtype))
        color, marker = LOOKS[row.implementation]
        _mark(axis, row, place, color, marker, row.implementation)
    axis.axvline(1, color="#404040", linewidth=1)
    axis.set(xscale="log", xlabel="time over jdiv's (right of the line: jdiv is faster)")
    axis.set_yticks(range(len(places)), [_label(*place) for place in places])
    axis.invert_yaxis()
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_title("Others, in the same run", loc="left", fontsize=10.5)
    _legend(axis, -0.08)


def _greedy(axis: plt.Axes, rows: Sequence[Row]) -> None:
    """A line for each divergence, a mark for each size."""
    rows = [row for row in rows if row.implementation != "log-softmax"]
    names = list(dict.fromkeys(row.implementation for row in rows))
    sizes = list(dict.fromkeys(row.size for row in rows))
    looks = dict(zip(sizes, (("#0072B2", "o"), ("#D55E00", "s")), strict=False))
    for row in rows:
        lift = 0.16 * (2 * sizes.index(row.size) - 1)
        _mark(axis, row, names.index(row.implementation) + lift, *looks[row.size], row.size)
    axis.axvline(LIMIT, color="#404040", linewidth=1, linestyle=":")
    axis.set(xscale="log", xlabel=f"time over a log-softmax's (dotted: {LIMIT})")
    axis.set_xticks((2, 5, 10, 20, 50), labels=("2", "5", "10", "20", "50"))
    axis.xaxis.set_minor_formatter("")
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.invert_yaxis()
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_title("greedy, policy and value", loc="left", fontsize=10.5)
    _legend(axis, -0.08)


def _legend(axis: plt.Axes, height: float) -> None:
    """Below the axis, each mark once."""
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axis.legend(
            unique.values(), unique.keys(), loc="upper center", bbox_to_anchor=(0.4, height),
            ncols=5, frameon=False, handletextpad=0.2, columnspacing=1.2,
        )  # fmt: skip


def _mark(axis: plt.Axes, row: Row, place: float, color: str, marker: str, label: str) -> None:
    """The median ratio, and a bar from one tenth to nine tenths."""
    axis.plot([row.ratio_p10, row.ratio_p90], [place, place], color=color, linewidth=1.2, alpha=0.6)
    axis.plot(row.ratio, place, marker, color=color, label=label, markersize=6)


def _label(benchmark: str, size: str, dtype: str) -> str:
    """Two short lines."""
    name = benchmark.replace(", value and gradient", "").replace("_", " ")
    return f"{name}\n{size}, {dtype}"
