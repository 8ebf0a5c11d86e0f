import numpy as np
import pytest

from jdiv.mdp import environments, model


def test_swimming_pays():
    river = environments.river_swim()
    best = model.optimum(river)
    assert (best.policy.argmax(axis=1) == 1).all()
    lazy = np.eye(2)[np.zeros(6, int)]
    assert model.expected_return(river, lazy) == pytest.approx(0.005 / 0.05)
