"""Star graphs: the first step decides everything."""

from __future__ import annotations

import numpy as np

from jdiv import checks
from jdiv.mdp.model import Mdp


def star_graph(*, degree: int = 5, length: int = 5, discount: float = 0.99) -> Mdp:
    """`degree` arms of `length` cells from a center; only the end of the first arm pays, once.

    The first step decides everything: an action chooses an arm at the center, and each action walks
    on along it. Ends are absorbing.

    Reference: the graphs of Bachmann and Nagarajan 2024 as a decision process.
    """
    checks.in_range("degree", degree, 2, np.inf, "at least 2", closed="low")
    checks.in_range("length", length, 1, np.inf, "at least 1", closed="low")
    cells = 1 + degree * length
    arm, depth = np.divmod(np.arange(cells - 1), length)
    following = 1 + arm * length + np.minimum(depth + 1, length - 1)
    target = np.repeat(np.concatenate([[0], following])[:, None], degree, axis=1)
    target[0] = 1 + np.arange(degree) * length
    reward = np.zeros((cells, degree))
    reward[(target == length) & (np.arange(cells) != length)[:, None]] = 1.0
    return Mdp(np.eye(cells)[target], reward, discount, np.eye(cells)[0])
