"""Figures: their look, and the pieces that most of them are made of.

Colours are told apart by every kind of color vision, and each goes with a line style and a marker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import xarray as xr
from cycler import cycler

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito 2008."""
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "v", "D", "P", "X")
GREY = "#c8c8c8"

STYLE = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


def pick(coordinate: xr.DataArray, wanted: Any) -> Any:
    """The label that is wanted, or the first there is."""
    labels = coordinate.values.tolist()
    return wanted if wanted in labels else labels[0]


def some(coordinate: xr.DataArray, wanted: Iterable[Any]) -> list[Any]:
    """Those of the wanted labels that are there; if none is, the first few."""
    labels = coordinate.values.tolist()
    return [label for label in wanted if label in labels] or labels[: len(COLORS)]


class Picture(NamedTuple):
    """A figure and one or two sentences on what to see in it."""

    figure: Figure
    caption: str


def panels(count: int, *, width: float = 4.8, height: float = 3.8, **options: Any):
    """A figure with so many panels side by side, and its axes (not in a list if there is one).

    `options` go to `subplots`: `sharey=True`.
    """
    import matplotlib.pyplot as plt

    return plt.subplots(1, count, figsize=(width * count, height), **options)


def style(number: int, *, marker: bool = False) -> dict[str, Any]:
    """Colour, line style and, if asked for, marker of the line with this number."""
    look = {"color": COLORS[number % 7], "linestyle": LINES[number % 7]}
    return look | ({"marker": MARKERS[number % 7], "markersize": 5} if marker else {})


def curve(axes: Axes, x: str, data: xr.DataArray, *, over: str | None = None, **look: Any) -> None:
    """A line of the data against one of its dimensions.

    With `over` it is the mean over that dimension, in a band from its 10th to its 90th percentile.
    """
    line = data if over is None else data.mean(over)
    (drawn,) = axes.plot(line[x], line.transpose(x), **look)
    if over is not None and data.sizes[over] > 1:
        low, high = data.quantile((0.1, 0.9), over).transpose("quantile", x)
        axes.fill_between(low[x], low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)


def curves(axes: Axes, x: str, data: xr.DataArray, by: str, **options: Any) -> None:
    """A line for each label of the dimension `by`, which becomes its name in the legend."""
    marker = options.pop("marker", False)
    for number, label in enumerate(data[by].values):
        name = label if isinstance(label, str) else f"{label:g}"
        look = style(number, marker=marker)
        curve(axes, x, data.sel({by: label}), **{"label": str(name), **look, **options})


def marks(axes: Axes, x: Any, y: Any, label: str = "published") -> None:
    """Numbers of others, as black crosses over our own."""
    axes.plot(x, y, "x", color="black", markersize=7, markeredgewidth=1.5, label=label, zorder=5)


def ticks(axes: Axes, *, x: Iterable[float] = (), y: Iterable[float] = ()) -> None:
    """Only these ticks, written out: for logarithmic axes with few values."""
    for axis, values in ((axes.xaxis, list(x)), (axes.yaxis, list(y))):
        if values:
            axis.set_ticks(values, [f"{value:g}" for value in values])
            axis.set_ticks([], minor=True)


def legend(axes: Axes, **options: Any) -> None:
    """A legend, if something has a name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def legend_above(figure: Figure, axes: Axes, *, columns: int, title: str | None = None) -> None:
    """One legend for all panels, above them and off the data."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=columns, title=title)
