"""The 4 x 4 maze of ShinRL's case studies."""

from __future__ import annotations

import numpy as np

from jdiv import checks
from jdiv.mdp.model import Mdp

MAZE = ("SOOO", "O###", "OOOO", "O#RO")
"""Rows of cells: start S, open O, wall #, reward R."""


def maze(*, walls: str = "S", slip: float = 0.1, discount: float = 0.99) -> Mdp:
    """A 4 x 4 maze with the actions stay, up, down, left, right; the reward is 1 in the cell R.

    Each of the five moves happens with probability `slip` if its target may be entered, and what is
    left goes to the chosen action; a blocked move stays. `walls` are the letters of the cells that
    may not be entered. "S", the default, is the released code, where by mistake these are not the
    walls but the start, which not even staying re-enters; "#" are the walls. Over 25 steps without
    discount the best return is 11.97327 and 13.3516.

    >>> maze().start.argmax(), maze(walls="#").transition[1, 1].nonzero()[0]
    (np.int64(0), array([0, 1, 2]))

    Reference: ShinRL (Kitamura and Yonetani 2021, arXiv:2112.04123), case study 2 of its
    reproduction of Vieillard et al. 2020, and its released environment.
    """
    checks.in_range("slip", slip, 0, 0.2, "from 0 to 1/5", closed="both")
    if not set(walls) <= set("SO#R"):
        raise ValueError(f"walls must be of the maze's letters S, O, # and R, got {walls!r}")
    moves = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
    side = len(MAZE)
    transition = np.zeros((side * side, len(moves), side * side))
    for state in range(side * side):
        x, y = state % side, state // side
        targets = []
        for dx, dy in moves:
            inside = 0 <= x + dx < side and 0 <= y + dy < side
            free = inside and MAZE[y + dy][x + dx] not in walls
            targets.append(x + dx + side * (y + dy) if free else None)
        for action, target in enumerate(targets):
            entered = [cell for cell in targets if cell is not None]
            for cell in entered:
                transition[state, action, cell] += slip
            chosen = state if target is None else target
            transition[state, action, chosen] += 1 - slip * len(entered)
    cells = np.array(list("".join(MAZE)))
    reward = np.repeat((cells == "R")[:, None], len(moves), axis=1).astype(float)
    return Mdp(transition, reward, discount, (cells == "S").astype(float))
