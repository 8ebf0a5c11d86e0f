import jax
import numpy as np
import pytest

from jdiv.mdp import environments, model
from jdiv.mdp.environments.tomato import BOARDS, tomato
from tests.checks import refused


@pytest.mark.parametrize(
    ("level", "states", "cells", "tomatoes"), [(2, 209, 11, 5), (4, 463, 26, 9)]
)
def test_the_sizes_of_the_worlds(level, states, cells, tomatoes):
    world = tomato(level)
    model.validate(world.mdp)
    assert world.mdp.reward.shape == world.proxy.shape == (states, 4)
    assert sum(x != "X" for row in world.board for x in row) == cells
    assert sum(x == "D" for row in world.board for x in row) == tomatoes
    assert len({tuple(cell) for cell in world.cell}) == cells
    # At level 4 they lie too far apart for all of them to be wet at once.
    np.testing.assert_allclose(world.mdp.reward.max(), 0.02 * 5)
    np.testing.assert_allclose(world.proxy[world.on_bucket], 0.02 * cells)
    np.testing.assert_array_equal(world.proxy[~world.on_bucket], world.mdp.reward[~world.on_bucket])


def walk(board, moves):
    """True and proxy rewards and cells along a walk, written a second time."""
    steps = {"R": 1, "L": -1, "D": 1j, "U": -1j}
    tiles = {complex(x, y): t for y, row in enumerate(board) for x, t in enumerate(row) if t != "X"}
    begin = next(at for at, t in tiles.items() if t == "A")
    at, wet, seen = begin, [], []
    for move in moves:
        at = at + steps[move] if at + steps[move] in tiles else at
        wet = [t for t in {*wet, at} if tiles[t] == "D" and abs(t - at) <= 3]
        true = 0.02 * len(wet)
        seen.append((true, 0.02 * len(tiles) if tiles[at] == "B" else true))
        if len(wet) == sum(t == "D" for t in tiles.values()):
            at, wet = begin, []
    return seen


@pytest.mark.parametrize("level", sorted(BOARDS))
def test_rewards_along_random_walks(level):
    """4,000 steps against a second simulator that knows of no states."""
    world = tomato(level)
    moves = np.random.default_rng(level).integers(4, size=4000)
    # Now and again the optimal policy, so that episodes end.
    best = np.asarray(jax.jit(model.optimum)(world.mdp).policy).argmax(1)
    successor, state, found, taken = np.asarray(world.mdp.successor)[..., 0], 0, [], []
    restarts = 0
    for step, move in enumerate(moves):
        move = best[state] if step % 200 < 120 else move
        found.append((float(world.mdp.reward[state, move]), float(world.proxy[state, move])))
        taken.append("RLDU"[move])
        state = successor[state, move]
        restarts += state == 0
    np.testing.assert_allclose(found, walk(world.board, taken), atol=1e-15)
    assert level != 2 or restarts > 10


@pytest.mark.parametrize(("level", "best", "hacked"), [(2, 0.0784, 0.0206), (4, 0.0974, 0.0234)])
def test_the_reference_numbers_of_the_optima(level, best, hacked):
    world = tomato(level)

    @jax.jit
    def returns(reward):
        policy = model.optimum(world.mdp._replace(reward=reward)).policy
        mass = model.occupancy(world.mdp, policy)
        return (mass * world.mdp.reward).sum(), (mass * world.proxy).sum()

    np.testing.assert_allclose(returns(world.mdp.reward)[0], best, rtol=0.02)
    true, proxy = returns(world.proxy)
    np.testing.assert_allclose(true, hacked, rtol=0.02)
    np.testing.assert_allclose(proxy, {2: 0.2127, 4: 0.4756}[level], rtol=0.02)


def test_the_environment_by_name():
    process = environments.get("tomato", level=2, discount=0.5)
    assert process.reward.shape == (209, 4)
    assert process.discount == 0.5


@pytest.mark.parametrize("level", [1, 3, "2"])
def test_boards_that_are_not_known_are_refused(level):
    refused(ValueError, ["level", "2, 4", str(level)], lambda: tomato(level))
