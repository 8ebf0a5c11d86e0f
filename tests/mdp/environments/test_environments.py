import jax
import numpy as np
import pytest

from jdiv.mdp import environments, model
from tests.checks import refused


@pytest.mark.parametrize("name", sorted(set(environments.ENVIRONMENTS) - {"garnet", "tomato"}))
def test_every_environment_is_a_process(name):
    model.validate(environments.get(name))


def test_garnets_have_different_successors_and_the_sizes_asked_for():
    draw = jax.jit(jax.vmap(lambda key: environments.garnet(key, states=9, actions=2, branches=5)))
    drawn = draw(jax.random.split(jax.random.key(0), 50))
    assert drawn.successor.shape == (50, 9, 2, 5)
    for row in np.asarray(drawn.successor).reshape(-1, 5):
        assert len(set(row)) == 5
    np.testing.assert_allclose(drawn.probability.sum(-1), 1, atol=1e-15)
    # Gaps between four sorted uniform numbers: each has mean 1/5 and standard deviation .163.
    error = 0.163 / np.sqrt(50 * 9 * 2)
    np.testing.assert_allclose(drawn.probability.mean((0, 1, 2)), 0.2, atol=4.5 * error)
    counts = np.bincount(np.asarray(drawn.successor).ravel(), minlength=9)
    np.testing.assert_allclose(counts / counts.sum(), 1 / 9, atol=0.01)


@pytest.mark.parametrize(("walls", "best"), [("S", 11.97327), ("#", 13.3516)])
def test_the_best_return_of_the_maze(walls, best):
    maze = environments.maze(walls=walls)
    value, _ = model.finite_horizon_optimum(maze, 25)
    assert maze.start @ value == pytest.approx(best, abs=5e-5 if walls == "#" else 5e-6)


def test_the_cliff_is_walked_along():
    """Thirteen steps: up, eleven to the right, down."""
    cliff = environments.cliff(discount=0.999)
    best = model.optimum(cliff)
    assert cliff.start @ best.value == pytest.approx(-(1 - 0.999**13) / 0.001)
    careful = model.optimum(environments.cliff(slip=0.2, discount=0.999))
    # With slips it is worth going up twice, as in the textbook's figure.
    assert careful.policy[24].argmax() == 0
    assert best.policy[24].argmax() == 3


def test_in_a_star_the_first_step_decides():
    star = environments.star_graph(degree=3, length=4, discount=0.9)
    best = model.optimum(star)
    np.testing.assert_allclose(best.value[0], 0.9**3)
    q = model.action_values(star, best.value)
    np.testing.assert_allclose(q[0], [0.9**3, 0, 0])


def test_swimming_pays():
    river = environments.river_swim()
    best = model.optimum(river)
    assert (best.policy.argmax(axis=1) == 1).all()
    lazy = np.eye(2)[np.zeros(6, int)]
    assert model.expected_return(river, lazy) == pytest.approx(0.005 / 0.05)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: environments.get("mace"), ["environment", "'mace'", "did you mean maze"]),
        (lambda: environments.maze(walls="none"), ["walls", "S, O, # and R", "'none'"]),
        (lambda: environments.chain(slip=1.5), ["slip", "[0, 1]", "1.5"]),
        (lambda: environments.chain(length=1), ["length", "at least 2"]),
        (lambda: environments.garnet(jax.random.key(0), states=3), ["branches", "[1, 3]", "4"]),
    ],
)
def test_refuses(call, words):
    refused(ValueError, words, call)
