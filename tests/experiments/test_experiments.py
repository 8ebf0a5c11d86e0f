"""Every config resolves and expands at every scale; every experiment runs at smoke scale."""

import ast
import inspect
import itertools

import pytest

from configs import defaults
from experiments import run
from experiments.lab import commands, records, sweeps

PATHS = commands.configs()
STEMS = [str(path.relative_to(records.ROOT / "configs").with_suffix("")) for path in PATHS]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(records.ROOT)
    # Programs of experiments run for long enough to be optimised.
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_every_experiment_has_a_config_and_the_other_way_round():
    modules = (records.ROOT / "experiments").glob("*/*.py")
    stems = [
        str(path.relative_to(records.ROOT / "experiments").with_suffix("")) for path in modules
    ]
    assert sorted(STEMS) == sorted(stem for stem in stems if not stem.endswith("__init__"))


@pytest.mark.parametrize(("stem", "scale"), list(itertools.product(STEMS, defaults.SCALES)))
def test_every_config_resolves_and_expands(stem, scale):
    config = run.load(f"configs/{stem}.py:{scale}")
    assert (config.experiment, config.scale) == (stem, scale)
    assert run.load(f"configs/{stem}.py").scale == "quick"
    experiment = run.checked(config)
    grid = sweeps.sweep(config.sweep, config.zipped)
    assert sum(len(group.index) for group in sweeps.groups(grid, experiment.TRACED)) >= 1


@pytest.mark.parametrize("path", PATHS, ids=STEMS)
def test_every_config_says_what_and_how(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python -m experiments.run --config={path.relative_to(records.ROOT)}" in text
    assert "minute" in text.lower() or "second" in text.lower()


@pytest.mark.parametrize("stem", STEMS)
def test_every_experiment_runs_and_every_control_refutes_its_claim(stem, tmp_path):
    config = run.load(f"configs/{stem}.py:smoke")
    experiment = run.checked(config)
    entries = run.execute(experiment, config, tmp_path, command=f"smoke {stem}")
    assert entries
    assert len({entry["name"] for entry in entries}) == len(entries)
    assert [entry["name"] for entry in entries if not run.sound(entry)] == []
    captions = records.read_json(tmp_path / "figures" / "captions.json")
    assert captions
    assert all(caption.endswith(".") for caption in captions.values())
    for name in captions:
        assert {path.suffix for path in (tmp_path / "figures").glob(f"{name}.*")} == {
            ".png", ".pdf",
        }  # fmt: skip
    assert inspect.getdoc(experiment)
