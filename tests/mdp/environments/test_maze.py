import pytest

from jdiv.mdp import environments, model


@pytest.mark.parametrize(("walls", "best"), [("S", 11.97327), ("#", 13.3516)])
def test_the_best_return_of_the_maze(walls, best):
    maze = environments.maze(walls=walls)
    value, _ = model.finite_horizon_optimum(maze, 25)
    assert maze.start @ value == pytest.approx(best, abs=5e-5 if walls == "#" else 5e-6)
