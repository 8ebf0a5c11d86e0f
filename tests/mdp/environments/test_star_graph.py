import numpy as np

from jdiv.mdp import environments, model


def test_in_a_star_the_first_step_decides():
    star = environments.star_graph(degree=3, length=4, discount=0.9)
    best = model.optimum(star)
    np.testing.assert_allclose(best.value[0], 0.9**3)
    q = model.action_values(star, best.value)
    np.testing.assert_allclose(q[0], [0.9**3, 0, 0])
