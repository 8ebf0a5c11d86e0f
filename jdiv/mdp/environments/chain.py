"""A line of states: a small reward at hand, a large one far away."""

from __future__ import annotations

import numpy as np

from jdiv import checks
from jdiv.mdp.model import Mdp


def chain(*, length: int = 10, slip: float = 0.1, discount: float = 0.95) -> Mdp:
    """Left or right along a line; a move goes the other way with probability `slip`.

    The right end pays 1, the left end .1; at an end a move outwards stays. Starts at the left.
    """
    checks.in_range("length", length, 2, np.inf, "at least 2", closed="low")
    checks.in_range("slip", slip, 0, 1, "in [0, 1]", closed="both")
    transition = np.zeros((length, 2, length))
    for state in range(length):
        sides = max(state - 1, 0), min(state + 1, length - 1)
        for action in (0, 1):
            transition[state, action, sides[action]] += 1 - slip
            transition[state, action, sides[1 - action]] += slip
    reward = np.zeros((length, 2))
    reward[0, 0], reward[-1, 1] = 0.1, 1.0
    return Mdp(transition, reward, discount, np.eye(length)[0])
