"""Small processes with exact answers, for planning and learning.

`get(name, **parameters)` finds them by name. All but `garnet`, which is random, are made of NumPy
arrays.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv.checks import known
from jdiv.mdp.model import AnyMdp, Mdp, SparseMdp
from jdiv.mdp.tomato import tomato


def garnet(
    key: Array, *, states: int = 30, actions: int = 4, branches: int = 4, discount: ArrayLike = 0.9
) -> SparseMdp:
    """A random process: each state and action leads to `branches` different states.

    Their probabilities are the gaps between sorted uniform numbers, rewards are uniform in
    [-1, 1], the start is uniform. May be vmapped over keys.

    Reference: Archibald, McKinnon and Thomas 1995, with rewards as in the reference values of
    Vieillard et al. 2020.
    """
    if not 1 <= branches <= states:
        raise ValueError(f"branches must be in [1, {states}], got {branches}")
    of_successors, of_cuts, of_rewards = jax.random.split(key, 3)
    # The first entries of a random order are a sample without replacement.
    order = jnp.argsort(jax.random.uniform(of_successors, (states, actions, states)), axis=-1)
    cuts = jnp.sort(jax.random.uniform(of_cuts, (states, actions, branches - 1)), axis=-1)
    ends = [(0, 0), (0, 0), (1, 1)]
    cuts = jnp.pad(cuts, ends, constant_values=((0, 0), (0, 0), (0, 1)))
    return SparseMdp(
        successor=order[..., :branches],
        probability=jnp.diff(cuts, axis=-1),
        reward=jax.random.uniform(of_rewards, (states, actions), minval=-1, maxval=1),
        discount=discount,
        start=jnp.full(states, 1 / states),
    )


MAZE = ("SOOO", "O###", "OOOO", "O#RO")


def maze(*, walls: str = "published", slip: float = 0.1, discount: float = 0.99) -> Mdp:
    """A 4 x 4 maze with the actions stay, up, down, left, right; the reward is 1 in the cell R.

    Each of the five moves happens with probability `slip` if its target may be entered, and what is
    left goes to the chosen action; a blocked move stays. `walls` says which cells may not be
    entered: "published" is the released code, where by mistake it is the start, which not even
    staying re-enters, and not the walls; "true" are the walls. Over 25 steps without discount the
    best return is 11.97327 and 13.3516.

    Reference: ShinRL (Kitamura and Yonetani 2021, arXiv:2112.04123), case study 2 of its
    reproduction of Vieillard et al. 2020, and its released environment.
    """
    if walls not in ("published", "true"):
        raise ValueError(f"walls must be 'published' or 'true', got {walls!r}")
    blocked = {"published": "S", "true": "#"}[walls]
    moves = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
    side = len(MAZE)
    transition = np.zeros((side * side, len(moves), side * side))
    for state in range(side * side):
        x, y = state % side, state // side
        targets = []
        for dx, dy in moves:
            inside = 0 <= x + dx < side and 0 <= y + dy < side
            free = inside and MAZE[y + dy][x + dx] != blocked
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


def chain(*, length: int = 10, slip: float = 0.1, discount: float = 0.95) -> Mdp:
    """Left or right along a line; a move goes the other way with probability `slip`.

    The right end pays 1, the left end .1; at an end a move outwards stays. Starts at the left.
    """
    _at_least("length", length, 2)
    _probability("slip", slip)
    transition = np.zeros((length, 2, length))
    for state in range(length):
        sides = max(state - 1, 0), min(state + 1, length - 1)
        for action in (0, 1):
            transition[state, action, sides[action]] += 1 - slip
            transition[state, action, sides[1 - action]] += slip
    reward = np.zeros((length, 2))
    reward[0, 0], reward[-1, 1] = 0.1, 1.0
    return Mdp(transition, reward, discount, np.eye(length)[0])


def cliff(*, width: int = 12, height: int = 4, slip: float = 0.0, discount: float = 0.99) -> Mdp:
    """From the lower left corner to the lower right one, along a cliff between them.

    Up, down, left, right; a move goes in a uniformly random direction with probability `slip`. A
    step costs 1; into the cliff it costs 100 and leads back to the start; the goal is absorbing and
    costs nothing.

    Reference: Sutton and Barto 2018, example 6.6.
    """
    _at_least("width", width, 3)
    _at_least("height", height, 2)
    _probability("slip", slip)
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


def river_swim(*, length: int = 6, discount: float = 0.95) -> Mdp:
    """Swimming right against a current; left is easy and pays .005 at the left end.

    Right succeeds with probability .35 and drifts back with .05 (.6 and .4 at the ends), and pays 1
    at the right end.

    Reference: Strehl and Littman 2008; the numbers are those of Osband, Russo and Van Roy 2013,
    from memory.
    """
    _at_least("length", length, 3)
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


def star_graph(*, degree: int = 5, length: int = 5, discount: float = 0.99) -> Mdp:
    """`degree` arms of `length` cells from a centre; only the end of the first arm pays, once.

    The first step decides everything: an action chooses an arm at the centre, and each action walks
    on along it. Ends are absorbing.

    Reference: the graphs of Bachmann and Nagarajan 2024 as a decision process.
    """
    _at_least("degree", degree, 2)
    _at_least("length", length, 1)
    cells = 1 + degree * length
    arm, depth = np.divmod(np.arange(cells - 1), length)
    following = 1 + arm * length + np.minimum(depth + 1, length - 1)
    target = np.repeat(np.concatenate([[0], following])[:, None], degree, axis=1)
    target[0] = 1 + np.arange(degree) * length
    reward = np.zeros((cells, degree))
    reward[(target == length) & (np.arange(cells) != length)[:, None]] = 1.0
    return Mdp(np.eye(cells)[target], reward, discount, np.eye(cells)[0])


ENVIRONMENTS: dict[str, Callable[..., AnyMdp]] = {
    "garnet": garnet,
    "maze": maze,
    "chain": chain,
    "cliff": cliff,
    "river_swim": river_swim,
    "star_graph": star_graph,
    "tomato": lambda level=2, **parameters: tomato(level, **parameters).mdp,
}


def get(name: str, *arguments, **parameters) -> AnyMdp:
    """The environment of this name.

    >>> get("chain", length=3).reward.shape
    (3, 2)
    """
    known("environment", name, ENVIRONMENTS)
    return ENVIRONMENTS[name](*arguments, **parameters)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
