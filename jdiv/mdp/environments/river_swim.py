"""RiverSwim: exploration against a current."""

from __future__ import annotations

import numpy as np

from jdiv import checks
from jdiv.mdp.model import Mdp


def river_swim(*, length: int = 6, discount: float = 0.95) -> Mdp:
    """Swimming right against a current; left is easy and pays .005 at the left end.

    Right succeeds with probability .35 and drifts back with .05 (.6 and .4 at the ends), and pays 1
    at the right end.

    Reference: Strehl and Littman 2008; the numbers are those of Osband, Russo and Van Roy 2013.
    Reconstructed: the numbers, from memory.
    """
    checks.in_range("length", length, 3, np.inf, "at least 3", closed="low")
    transition = np.zeros((length, 2, length))
    for state in range(length):
        transition[state, 0, max(state - 1, 0)] = 1
        transition[state, 1, state] = 0.6
        transition[state, 1, min(state + 1, length - 1)] += 0.35
        transition[state, 1, max(state - 1, 0)] += 0.05
    transition[0, 1, :2] = 0.4, 0.6
    transition[-1, 1, -2:] = 0.4, 0.6
    reward = np.zeros((length, 2))
    reward[0, 0], reward[-1, 1] = 0.005, 1.0
    return Mdp(transition, reward, discount, np.eye(length)[0])
