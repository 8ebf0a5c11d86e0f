"""Cliff walking."""

from __future__ import annotations

import numpy as np

from jdiv import checks
from jdiv.mdp.model import Mdp


def cliff(*, width: int = 12, height: int = 4, slip: float = 0.0, discount: float = 0.99) -> Mdp:
    """From the lower left corner to the lower right one, along a cliff between them.

    Up, down, left, right; a move goes in a uniformly random direction with probability `slip`. A
    step costs 1; into the cliff it costs 100 and leads back to the start; the goal is absorbing and
    costs nothing.

    Reference: Sutton and Barto 2018, example 6.6.
    """
    checks.in_range("width", width, 3, np.inf, "at least 3", closed="low")
    checks.in_range("height", height, 2, np.inf, "at least 2", closed="low")
    checks.in_range("slip", slip, 0, 1, "in [0, 1]", closed="both")
    cells = width * height
    start, goal = (height - 1) * width, cells - 1
    target, cost = np.zeros((cells, 4), int), np.ones((cells, 4))
    for state in range(cells):
        y, x = divmod(state, width)
        for action, (dx, dy) in enumerate(((0, -1), (0, 1), (-1, 0), (1, 0))):
            to = np.clip(y + dy, 0, height - 1) * width + np.clip(x + dx, 0, width - 1)
            fell = start < to < goal
            target[state, action] = start if fell else to
            cost[state, action] = 100 if fell else 1
    target[goal], cost[goal] = goal, 0
    chosen, anywhere = np.eye(cells)[target], np.eye(cells)[target].mean(axis=1, keepdims=True)
    mean_cost = cost.mean(axis=1, keepdims=True)
    return Mdp(
        (1 - slip) * chosen + slip * anywhere,
        -((1 - slip) * cost + slip * mean_cost),
        discount,
        np.eye(cells)[start],
    )
