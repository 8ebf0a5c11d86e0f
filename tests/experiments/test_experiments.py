"""Every config resolves and expands at every scale; what they run is in smoke.py."""

import ast
import itertools
import pathlib

import pytest

from configs import defaults
from experiments import run
from experiments.lab import census, commands, needs, records, settings
from experiments.lab.claims import sound
from experiments.lab.job import from_config

PATHS = commands.configs()
STEMS = [str(path.relative_to(records.ROOT / "configs").with_suffix("")) for path in PATHS]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch, forget):
    monkeypatch.chdir(records.ROOT)
    yield
    forget()  # experiments share no programs


def test_every_experiment_has_a_config_and_the_other_way_round():
    modules = (records.ROOT / "experiments").glob("*/*.py")
    stems = [path.relative_to(records.ROOT / "experiments").with_suffix("") for path in modules]
    found = [str(stem) for stem in stems if stem.parts[0] != "lab" and stem.name != "__init__"]
    assert sorted(STEMS) == sorted(found)


@pytest.mark.parametrize(("stem", "scale"), list(itertools.product(STEMS, defaults.SCALES)))
def test_every_config_resolves_and_expands(stem, scale):
    config = settings.load(f"configs/{stem}.py:{scale}")
    assert (config.experiment, config.scale) == (stem, scale)
    assert settings.load(f"configs/{stem}.py").scale == "quick"
    job = from_config(config, pathlib.Path("unused"))
    fields = [name for name, value in settings.sweepable(config).items()
              if not isinstance(value, bool)]  # fmt: skip
    assert set(fields) <= set(getattr(job.experiment, "FIELDS", {}))
    assert sum(len(group.index) for group in job.groups) == len(job.points) >= 1
    for claim in job.claims:
        assert needs.lacking(job, claim) is None
        for override in claim.reruns:
            assert job.changed(override, job.folder).config != config


@pytest.mark.parametrize("path", PATHS, ids=STEMS)
def test_every_config_says_what_and_how(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python -m experiments.run --config={path.relative_to(records.ROOT)}" in text
    assert "minute" in text.lower() or "second" in text.lower()


def test_every_control_of_a_small_experiment_refutes_its_claim(tmp_path):
    job = from_config(settings.load("configs/estimation/kl_penalties.py:smoke"), tmp_path)
    entries = run.execute(job, "smoke")
    assert len({entry["name"] for entry in entries}) == len(entries) == len(job.claims)
    assert any(entry["reruns"] for entry in entries)
    assert [entry["name"] for entry in entries if not sound(entry)] == []


def test_every_experiment_runs_the_wrong_thing_anew_for_a_claim():
    counts = list(census.census())
    assert [count.experiment for count in counts] == STEMS
    assert [count.experiment for count in counts if not count.rerun] == []


def test_no_config_has_a_language_of_its_own_for_claims():
    assert [stem for stem in STEMS if "claims" in settings.load(f"configs/{stem}.py")] == []
