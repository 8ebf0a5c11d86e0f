"""Every experiment at smoke scale, with all of its controls: `make smoke`.

    pytest tests/experiments/smoke.py -k bandits

They take as long as all other tests together, and `make test` leaves them out; continuous
integration runs both. No type is cast silently and warnings are errors, as in every test.
"""

import inspect

import matplotlib.pyplot as plt
import pytest

from experiments import run
from experiments.lab import commands, needs, records, settings
from experiments.lab.claims import sound
from experiments.lab.job import from_config, planned

STEMS = [
    str(path.relative_to(records.ROOT / "configs").with_suffix("")) for path in commands.configs()
]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch, forget):
    monkeypatch.chdir(records.ROOT)
    yield
    forget()  # experiments share no programs


@pytest.mark.parametrize("stem", STEMS)
def test_every_experiment_runs_and_its_claims_and_controls_hold(stem, tmp_path):
    job = from_config(settings.load(f"configs/{stem}.py:smoke"), tmp_path)
    entries = run.execute(job, "smoke", stopping=lambda: False)
    assert len({entry["name"] for entry in entries}) == len(entries) == len(job.claims) > 0
    assert any(entry["reruns"] for entry in entries)
    assert [entry["name"] for entry in entries if not sound(entry)] == []
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
