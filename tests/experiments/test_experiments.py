"""Every config resolves and expands at every scale; every experiment runs at smoke scale."""

import ast
import inspect
import io
import itertools
import pathlib

import matplotlib.pyplot as plt
import pytest

from configs import defaults
from experiments import run
from experiments.lab import census, commands, needs, records, settings
from experiments.lab.claims import sound
from experiments.lab.job import from_config, planned
from experiments.lab.progress import Progress

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


@pytest.mark.parametrize("stem", STEMS)
def test_every_experiment_runs_and_its_claims_hold(stem, tmp_path):
    """Controls that compute something anew take longer than all else: they are left to the command
    `experiments.reproduce`, which continuous integration runs at this scale too."""
    job = from_config(settings.load(f"configs/{stem}.py:smoke"), tmp_path)
    with job.folder.opened(job.config, job.code, overwrite=False):
        results = run.compute(job, Progress(stem, io.StringIO()), lambda: False)
        pictures = run.draw(job, results, raised, raised)
        job.folder.save_pictures(pictures, raised)
    assert job.claims
    for claim in job.claims:
        chosen = needs.chosen(job, claim, results)
        assert claim(chosen, job.config).supported, claim.name
        for arguments in claim.wrong:
            assert not claim(chosen, job.config, **arguments).supported, (claim.name, arguments)
    captions = records.Folder(tmp_path / "figures").read("captions")
    assert captions
    assert all(caption.endswith(".") for caption in captions.values())
    for name in captions:
        assert {path.suffix for path in (tmp_path / "figures").glob(f"{name}.*")} == {
            ".png", ".pdf",
        }  # fmt: skip
    assert inspect.getdoc(job.experiment)
    for dim in job.grid.dims:
        judged_and_drawn(*cut(job, dim))


def test_every_control_of_a_small_experiment_refutes_its_claim(tmp_path):
    job = from_config(settings.load("configs/estimation/kl_penalties.py:smoke"), tmp_path)
    entries = run.execute(job, "smoke")
    assert len({entry["name"] for entry in entries}) == len(entries) == len(job.claims)
    assert any(entry["reruns"] for entry in entries)
    assert [entry["name"] for entry in entries if not sound(entry)] == []


def cut(job, dim):
    """A job of a finished one, with results, that sweeps the first two places of a dimension only,
    or, if there are no more than two, the last."""
    few = slice(0, 2) if len(job.grid.rows(dim)) > 2 else slice(-1, None)
    sweep = {f"sweep.{axis}": job.grid.axes[axis][few] for axis in job.grid.dims[dim]}
    config = settings.overridden(job.config, sweep)
    smaller = planned(job.experiment, config, job.folder, job.config)
    return smaller, job.folder.results().isel({dim: few})


def raised(what, error=None):
    """What must not happen, or not be said, fails the test."""
    raise error or AssertionError(what)


def judged_and_drawn(job, results):
    """Claims have what they need or say what they lack; figures have what there is."""
    for claim in job.claims:
        if needs.lacking(job, claim) is None:
            claim(needs.chosen(job, claim, results), job.config)
    said = []
    pictures = run.draw(job, results, raised, said.append)
    assert len(pictures) + len(said) >= 1
    for picture in pictures.values():
        plt.close(picture.figure)


def test_every_experiment_runs_the_wrong_thing_anew_for_a_claim():
    counts = list(census.census())
    assert [count.experiment for count in counts] == STEMS
    assert [count.experiment for count in counts if not count.rerun] == []


def test_no_config_has_a_language_of_its_own_for_claims():
    assert [stem for stem in STEMS if "claims" in settings.load(f"configs/{stem}.py")] == []
