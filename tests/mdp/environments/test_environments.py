import jax
import pytest

from jdiv.mdp import environments, model
from tests.checks import refused


@pytest.mark.parametrize("name", sorted(set(environments.ENVIRONMENTS) - {"garnet", "tomato"}))
def test_every_environment_is_a_process(name):
    model.validate(environments.get(name))


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
