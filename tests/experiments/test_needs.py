"""What the user sweeps: values of one's own, fields of the config, and what claims say to them."""

import json
import pathlib

import numpy as np
import pytest
import xarray as xr

from experiments import run
from experiments.lab import claims, job, needs, records, report, settings
from experiments.lab.claims import at_least, claim
from tests.experiments import toys


def made(**needs):
    """A claim of the toy that looks at everything."""

    @claim(source="here", reruns=({"sign": -1.0},), wrong=({"factor": -1},), needs=needs)
    def holds(results, factor=1):
        """It does."""
        return at_least(0, factor * results.total.min())

    return holds


def planned(usual, **sweep):
    """The toy with axes of one's own; `zipped` and other fields may be among them."""
    config = usual.copy_and_resolve_references().unlock()
    for name, value in sweep.items():
        (config if name in config else config.sweep)[name] = value
    return job.planned(toys.SWEEP, config.lock(), records.Folder(pathlib.Path("unused")), usual)


CLAIM, SMALL = made(), {"rate": (0.1, 0.2), "power": (1, 2)}


@pytest.mark.parametrize(
    ("claim", "sweep", "reason"),
    [
        (CLAIM, {}, None),
        (CLAIM, {"seed": (7, 8, 9)}, None),
        (CLAIM, {"seed": (7,)}, "needs 2 values of seed, the sweep has 1"),
        (made(seed=...), {"seed": (7,)}, None),
        (made(seed=(1,)), {"seed": (0,)}, "needs seed = 1"),
        (CLAIM, {"name": ("abs",)}, "needs name = 'square'"),
        (made(name=("abs",)), {"name": ("abs",)}, None),
        (made(name=...), {"name": ("square",)}, None),
        (CLAIM, SMALL, "needs rate = 0.3, power = 3"),
        (made(power=(1,)), SMALL, None),
        (made(rate=...), SMALL, None),
        # The label is there, but with another value beside it.
        (made(rate=(0.1,)), SMALL | {"power": (3, 2)}, "needs rate = 0.1, power = 1"),
        (CLAIM, {"zipped": (), "power": (1,)}, "needs config.zipped to have 'rate,power'"),
        (CLAIM, {"rate": (0.3, 0.2, 0.4, 0.1), "power": (3, 2, 1, 1)}, None),
    ],
)
def test_a_claim_needs_the_values_of_its_config(claim, sweep, reason):
    assert needs.lacking(planned(toys.config(seeds=2), **sweep), claim) == reason


def numbered(job):
    """Results of a job in which each point has a number."""
    shape = job.grid.shape
    coordinates = {axis: (dim, list(job.grid.axes[axis]))
                   for dim, axes in job.grid.dims.items() for axis in axes}  # fmt: skip
    total = (tuple(job.grid.dims), np.arange(np.prod(shape)).reshape(shape))
    return xr.Dataset({"total": total}, coordinates)


def test_more_values_than_those_of_the_config_are_left_out():
    usual = toys.config(seeds=1)
    wide = planned(usual, rate=(0.3, 0.2, 0.4, 0.1), power=(3, 2, 1, 1), seed=(5, 6))
    found = needs.chosen(wide, CLAIM, numbered(wide))
    assert found.rate.values.tolist() == [0.1, 0.2, 0.3]
    assert found.total.sel(name="abs", seed=6).values.tolist() == [7, 3, 1]
    part = needs.chosen(wide, made(rate=(0.2,), name=...), numbered(wide))
    assert part.total.values.tolist() == [[[2, 3]], [[10, 11]]]
    plain = planned(usual)
    xr.testing.assert_identical(needs.chosen(plain, CLAIM, numbered(plain)), numbered(plain))


def test_a_control_has_the_sweep_of_the_file_and_the_seeds_of_the_run():
    wide = planned(toys.config(seeds=1), rate=(0.3, 0.2, 0.1), power=(3, 2, 1), seed=(5, 6))
    control = wide.changed({"sweep.power": (2, 2, 2), "sign": -1.0}, wide.folder)
    assert control.grid.axes == {
        "name": ("abs", "square"), "rate": (0.1, 0.2, 0.3), "power": (2, 2, 2), "seed": (5, 6),
    }  # fmt: skip
    narrow = made(name=("abs",), rate=(0.1,), power=(1,))
    found = needs.chosen_of_control(control, narrow, numbered(control))
    assert found.total.values.tolist() == [[[0, 1]]]


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [({"sign": (-1.0, 1.0)}, None), ({"sign": (-1.0, -2.0)}, "needs sign = 1.0")],
)
def test_of_a_swept_field_a_claim_needs_the_value_of_the_config(sweep, reason):
    usual = toys.config(seeds=1)
    config = settings.overridden(usual, {})
    with config.unlocked():
        config.sweep.update(sweep)
    swept = job.planned(toys.SWEEP, config, records.Folder(pathlib.Path("unused")), usual)
    assert needs.lacking(swept, CLAIM) == reason
    if reason is None:
        found = needs.chosen(swept, CLAIM, numbered(swept))
        assert "sign" not in found.coords
        assert found.total.values.ravel().tolist() == [1, 3, 5, 7, 9, 11]


@pytest.fixture
def toy_file(tmp_path, monkeypatch):
    """A config file of the toy, whose experiment is found."""
    path = tmp_path / "toy.py"
    path.write_text(
        "from tests.experiments import toys\n"
        "def get_config(scale='quick'):\n"
        "    config = toys.config(seeds=1).unlock()\n"
        "    config.deep = {'er': 2.0}\n"
        "    return config\n"
    )
    monkeypatch.setattr(job, "module_of", lambda *arguments: toys.SWEEP)
    return path


def from_command(path, folder, *arguments):
    argv = ["run", f"--config={path}", *arguments]
    return job.from_config(settings.configured(argv), folder, settings.argument(argv))


def test_any_field_of_the_config_can_be_swept(toy_file, tmp_path):
    swept = from_command(
        toy_file, tmp_path / "run", "--config.sweep.sign=-1,1", "--config.sweep.deep.er=3",
        "--config.sweep.name=abs,square",
    )  # fmt: skip
    assert swept.own_fields == {"sign": 1.0, "deep.er": 2.0}
    (entry,) = run.execute(swept, "toys")
    assert (entry["verdict"], entry["reason"]) == ("not tested", "needs deep.er = 2.0")
    assert not claims.failed(entry)
    results = swept.folder.results()
    assert results.sizes["sign"] == 2
    assert results["deep.er"].values.tolist() == [3.0]
    np.testing.assert_array_equal(results.total.sel(sign=-1), -results.total.sel(sign=1))
    captions = records.Folder(tmp_path / "run" / "figures").read("captions")
    said = "(Said of the config as its file has it.)"
    assert captions == {
        "blank_1": f"Nothing. Here deep.er = 3.0, sign = -1.0. {said}",
        "blank_2": f"Nothing. Here deep.er = 3.0, sign = 1.0. {said}",
    }
    page = report.page(report.read([tmp_path / "run"], tmp_path))
    assert "needs deep.er = 2.0" in page
    assert json.loads((tmp_path / "run" / "claims.json").read_text()) == [entry]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.sgin=1", ["'sgin'", "did you mean sign"]),
        ("sweep.lanes=1,2", ["'lanes'"]),
        ("sweep.sign=fast", ["config.sweep.sign", "float", "'fast'"]),
        ("sweep.deep=1", ["config.sweep.deep", "'deep'"]),
        ("sweep.zipped=rate", ["'zipped'"]),
    ],
)
def test_what_cannot_be_swept_is_refused(toy_file, tmp_path, override, words):
    with pytest.raises(records.Refused) as caught:
        from_command(toy_file, tmp_path, f"--config.{override}")
    for word in words:
        assert word in str(caught.value)


def test_a_claim_that_another_field_breaks_is_not_tested(tmp_path):
    @claim(source="here", wrong=({"number": 1},))
    def breaks(results, number=0):
        """It does."""
        return at_least(0, {1: 1.0}[number])

    usual = toys.config(seeds=1)
    changed = settings.overridden(usual, {"sign": 2.0})
    toy = toys.module(run=toys.SWEEP.run, breaks=breaks)
    other = job.planned(toy, changed, records.Folder(tmp_path), usual)
    entry = run.judged(other, breaks, numbered(other), {})
    assert entry["reason"] == "cannot be judged with another config.sign: KeyError: 0"
    with pytest.raises(KeyError):
        run.judged(job.planned(toy, usual, other.folder), breaks, numbered(other), {})
