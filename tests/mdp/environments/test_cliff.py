import pytest

from jdiv.mdp import environments, model


def test_the_cliff_is_walked_along():
    """Thirteen steps: up, eleven to the right, down."""
    cliff = environments.cliff(discount=0.999)
    best = model.optimum(cliff)
    assert cliff.start @ best.value == pytest.approx(-(1 - 0.999**13) / 0.001)
    careful = model.optimum(environments.cliff(slip=0.2, discount=0.999))
    # With slips it is worth going up twice, as in the textbook's figure.
    assert careful.policy[24].argmax() == 0
    assert best.policy[24].argmax() == 3
