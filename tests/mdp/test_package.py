"""The packages name their modules and types, and need jax alone."""

import subprocess
import sys

import jdiv.bandits
import jdiv.mdp

PROGRAM = """
import sys
import jdiv.mdp
jdiv.mdp.Mdp, jdiv.mdp.SparseMdp, jdiv.mdp.value_iteration.run, jdiv.mdp.environments.maze
assert not {"optax", "gymnax"} & set(sys.modules)
jdiv.mdp.deep.METHODS
assert "optax" in sys.modules and "gymnax" not in sys.modules
"""


def test_processes_need_jax_alone_until_networks_are_used():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_every_public_name_is_there():
    for package in (jdiv.mdp, jdiv.mdp.environments, jdiv.bandits):
        assert all(hasattr(package, name) for name in package.__all__)
    assert set(jdiv.bandits.__all__) == {"adversarial", "contextual", "stochastic", "streaming"}
    assert not hasattr(jdiv.mdp, "deeper")
