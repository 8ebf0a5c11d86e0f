"""Finite Markov decision processes: models, linear equations, value iteration, occupancies.

`deep`, Q-learning with networks, needs the packages of the extra `deep` and is imported when it is
used. Functions of processes take arrays, `[S, A]` for policies and action values, as they are: but
for what a docstring says they check neither shapes nor types, and `model.validate` does it for
processes.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from jdiv.mdp import environments, linear, model, occupancy, operators, value_iteration
from jdiv.mdp.model import Mdp, SparseMdp

__all__ = [
    "Mdp",
    "SparseMdp",
    "deep",
    "environments",
    "linear",
    "model",
    "occupancy",
    "operators",
    "value_iteration",
]


def __getattr__(name: str) -> ModuleType:
    """`deep`, at first use."""
    if name == "deep":
        return importlib.import_module("jdiv.mdp.deep")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
