"""Small processes with exact answers, for planning and learning: one file each.

`environments.maze(...)` makes a process, and `get(name, **parameters)` finds one by its name. All
but `garnet`, which is random and takes a key, are made of NumPy arrays. Constants of an
environment are in its file, such as `jdiv.mdp.environments.tomato.BOARDS`, to be imported from
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jdiv import checks
from jdiv.mdp.environments.chain import chain
from jdiv.mdp.environments.cliff import cliff
from jdiv.mdp.environments.garnet import garnet
from jdiv.mdp.environments.maze import maze
from jdiv.mdp.environments.river_swim import river_swim
from jdiv.mdp.environments.star_graph import star_graph
from jdiv.mdp.environments.tomato import Tomato, tomato
from jdiv.mdp.model import AnyMdp

__all__ = [
    "ENVIRONMENTS",
    "Tomato",
    "chain",
    "cliff",
    "garnet",
    "get",
    "maze",
    "river_swim",
    "star_graph",
    "tomato",
]

ENVIRONMENTS: dict[str, Callable[..., AnyMdp]] = {
    "garnet": garnet,
    "maze": maze,
    "chain": chain,
    "cliff": cliff,
    "river_swim": river_swim,
    "star_graph": star_graph,
    "tomato": lambda level=2, **parameters: tomato(level, **parameters).mdp,
}


def get(name: str, *arguments: Any, **parameters: Any) -> AnyMdp:
    """The process of the environment of this name.

    >>> get("chain", length=3).reward.shape
    (3, 2)
    """
    checks.known("environment", name, ENVIRONMENTS)
    return ENVIRONMENTS[name](*arguments, **parameters)
