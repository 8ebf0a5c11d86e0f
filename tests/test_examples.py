"""The examples do what they say, and the notebook runs."""

import importlib.util
import json
import pathlib

import jax
import matplotlib as mpl
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def as_a_reader_has_it():
    """Single precision, and casts as JAX makes them by itself."""
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dpo_step():
    before, after = example("dpo_step").main(steps=60)
    assert before < 0.6
    assert after > 0.9


def test_grpo_step():
    first, last, kl = example("grpo_step").main(steps=25)
    assert last > first + 1
    assert kl > 0


def test_quickstart():
    mpl.use("agg")
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    code = ["".join(x["source"]) for x in notebook["cells"] if x["cell_type"] == "code"]
    assert all(not x.get("outputs") for x in notebook["cells"])
    names = {}
    for cell in code:
        exec(compile(cell, "quickstart.ipynb", "exec"), names)
    mpl.pyplot.close("all")
    assert names["preference"]
