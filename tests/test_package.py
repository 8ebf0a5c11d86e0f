"""The package as it is imported: names, cost, what it needs."""

import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import pytest

import jdiv

ROOT = pathlib.Path(__file__).parents[1]


def run(program):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_module_is_named():
    found = {module.name for module in pkgutil.iter_modules(jdiv.__path__)}
    assert set(jdiv.__all__) == found
    assert set(jdiv.__all__) <= set(dir(jdiv))
    for name in jdiv.__all__:
        assert getattr(jdiv, name).__name__.split(".")[-1] == name


def test_the_promised_spellings():
    program = (
        "import jdiv; from jdiv import policy, divergences as dv, generators;"
        "assert jdiv.generators is dv.generators is generators;"
        "import jdiv.generators as short; from jdiv.generators import get;"
        "assert short is generators and get is generators.get;"
        "print(jdiv.mdp.Mdp.__name__, dv.kl.__name__, policy.__name__, jdiv.__version__)"
    )
    assert run(program) == f"Mdp kl jdiv.policy {jdiv.__version__}"


def test_importing_jdiv_imports_jax_at_most():
    """No module beyond those of `import jax` and the standard library."""
    program = (
        "import jax, sys; before = set(sys.modules); import jdiv;"
        "print(*(set(sys.modules) - before - set(sys.stdlib_module_names)))"
    )
    assert run(program) == "jdiv"


def test_the_library_needs_jax_and_jaxtyping_alone():
    """No package of an extra is imported, whatever module is."""
    program = (
        "import jdiv, sys; [getattr(jdiv, name) for name in jdiv.__all__ if name != 'checkpoints'];"
        "extras = {'flax', 'optax', 'gymnax', 'ott', 'orbax', 'chex', 'ml_collections', 'xarray'};"
        "print(*extras & set(sys.modules))"
    )
    assert run(program) == ""


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'divergence'"):
        _ = jdiv.divergence


def test_the_wheel_and_the_extras():
    """The wheel packs jdiv alone; its core needs two packages; `all` takes the other extras.

    But for the benchmarks' own: their peers bring PyTorch.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["jdiv"]
    core = [re.match(r"[\w-]+", name)[0] for name in project["project"]["dependencies"]]
    assert core == ["jax", "jaxtyping"]
    extras = project["project"]["optional-dependencies"]
    everything = set(re.search(r"\[(.*)\]", extras["all"][0])[1].split(","))
    assert everything == set(extras) - {"all", "benchmark"}
