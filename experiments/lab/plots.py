"""How figures look: colours, and the caption that goes with each."""

from typing import NamedTuple

from cycler import cycler
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito 2008: told apart by every kind of colour vision."""
GREY = "#c8c8c8"

STYLE = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


class Picture(NamedTuple):
    """A figure and one or two sentences on what to see in it."""

    figure: Figure
    caption: str
