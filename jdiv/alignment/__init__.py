"""Alignment: optimal policies in closed form, losses that are fitted by them, rewards, merging."""

from __future__ import annotations

from jdiv.alignment import (
    a_star_po,
    asymptotics,
    averaging,
    best_of_n,
    control,
    f_dpg,
    gshf,
    inference_aware,
    judges,
    kernels,
    margins,
    preference,
    q_sharp,
    reference_free,
    rewards,
    tilts,
    unpaired,
)
from jdiv.alignment.margins import Margin

__all__ = [
    "Margin",
    "a_star_po",
    "asymptotics",
    "averaging",
    "best_of_n",
    "control",
    "f_dpg",
    "gshf",
    "inference_aware",
    "judges",
    "kernels",
    "margins",
    "preference",
    "q_sharp",
    "reference_free",
    "rewards",
    "tilts",
    "unpaired",
]
