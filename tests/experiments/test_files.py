"""What is damaged is noticed, said in one line, and made anew or refused."""

import contextlib
import io
import json
import pathlib
import shutil
import types

import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

from experiments import run
from experiments.lab import claims, files, job, records, source
from experiments.lab.plots import Picture
from jdiv import checkpoints
from tests.experiments import toys

CODE = source.Code("numbers", "rest")


def toy(**functions):
    return toys.module(**{"run": toys.SWEEP.run, "positive": toys.SWEEP.positive, **functions})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    planned = job.planned(toys.SWEEP, toys.config(seeds=1), records.Folder(folder))
    run.execute(planned, "toys")
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


def again(folder, *, experiment=toys.SWEEP, **options):
    """Claims, and what was said, of the same command."""
    planned = job.planned(experiment, toys.config(seeds=1), records.Folder(folder))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        entries = run.execute(planned, "toys", **options)
    return entries, said.getvalue().splitlines()


def finished(folder):
    code = source.code(toys.SWEEP)
    return records.Folder(folder).finished(toys.config(seeds=1), code)


# --------------------------------------------------------------------------------------- every bit


def test_every_byte_of_a_points_file_is_noticed(tmp_path):
    folder = records.Folder(tmp_path)
    arrays = {"total": np.arange(3.0), "size": np.arange(3), "path": np.ones((3, 2), np.float32)}
    folder.save_points(0, np.arange(3), arrays, "{}")
    (part,) = folder.points(0, print)
    assert part.arrays.keys() == arrays.keys()
    (path,) = tmp_path.glob("points-0000/*.npz")
    contents = path.read_bytes()
    with in_memory(path) as write:
        for place in range(len(contents)):
            for mask in (1, 16, 128):
                write(flipped(contents, place, mask))
                with pytest.raises(files.Damaged, match="its checksum is wrong"):
                    files.kept(path)
    path.write_bytes(contents[:-1])
    said = []
    assert list(folder.points(0, said.append)) == []
    assert said == [f"{path} is damaged: its checksum is wrong; its points are computed again"]
    assert not path.exists()


def test_1500_bits_of_the_results_are_refused(copied):
    path, folder = copied / "results.nc", records.Folder(copied)
    contents, chance = path.read_bytes(), np.random.default_rng(0)
    places, bits = chance.integers(len(contents), size=1500), chance.integers(8, size=1500)
    with in_memory(path) as write:
        for place, bit in zip(places, bits, strict=True):
            write(flipped(contents, place, 1 << bit))
            with pytest.raises(records.Refused, match=r"damaged.*; delete it to compute it anew"):
                folder.results()
    assert folder.results().sizes["seed"] == 1


def flipped(contents, place, mask):
    damaged = bytearray(contents)
    damaged[place] ^= mask
    return bytes(damaged)


@contextlib.contextmanager
def in_memory(path):
    """Within, the files of a folder are read from memory; what is written becomes the path's."""
    read = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "read", read.get)
        yield lambda contents: read.update({path: contents})


DAMAGES = {
    "deleted": None,
    "empty": lambda contents: b"",
    "truncated": lambda contents: contents[:-2],
    "{}": lambda contents: b"{}",
    "[]": lambda contents: b"[]",
    "not UTF-8": lambda contents: b"\xff" + contents,
}


def damage(path, how):
    if DAMAGES[how] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_folder_is_finished_if_all_its_files_are_there_and_whole(how, copied):
    assert finished(copied)
    names = [path for path in copied.rglob("*") if path.is_file()]
    assert len(names) > 10
    for path in names:
        contents = path.read_bytes()
        damage(path, how)
        assert not finished(copied), path
        path.write_bytes(contents)
    assert finished(copied)


def test_damaged_checksums_are_noticed(copied):
    """A name, or a sum that counts: the last one of a file."""
    path = copied / files.SUMS
    contents = path.read_bytes()
    for name, sums in json.loads(contents).items():
        for text in (name, sums[-1]):
            path.write_bytes(flipped(contents, contents.index(text.encode()) + 3, 1))
            assert not finished(copied), text


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("claims.json", "truncated", "claims.json is damaged: its checksum is wrong; it is made"),
        ("claims.json", "deleted", "claims.json is missing; it is made anew"),
        ("metrics.jsonl", "not UTF-8", "metrics.jsonl is damaged: its checksum is wrong; it is"),
        ("figures/blank.png", "deleted", "blank.png is missing; it is made anew"),
        ("figures/.sha256.json", "{}", "captions.json has no checksum; it is made anew"),
    ],
)
def test_what_can_be_made_of_the_results_is_made_anew(name, how, words, copied, monkeypatch):
    before, _ = again(copied)
    damage(copied / name, how)
    monkeypatch.delattr(run.engine, "compute")
    entries, said = again(copied)
    assert entries == before
    assert len(said) == 1
    assert words in said[0]
    assert finished(copied)


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("results.nc", "truncated", "results.nc is damaged: .*; delete it to compute it anew"),
        ("config.json", "[]", "nothing is known: .*config.json is damaged.*--workdir=NEW keeps"),
        ("environment.json", "{}", "nothing is known: .*environment.json is damaged"),
        ("environment.json", "deleted", "holds a run of unknown code"),
        (".sha256.json", "deleted", "config.json has no checksum"),
    ],
)
def test_what_cannot_be_made_anew_is_refused(name, how, words, copied):
    damage(copied / name, how)
    with pytest.raises(records.Refused, match=words) as caught:
        again(copied)
    assert "\n" not in str(caught.value)


def test_results_that_are_gone_are_computed_anew(copied):
    before = xr.load_dataset(copied / "results.nc", engine="h5netcdf")
    (copied / "results.nc").unlink()
    entries, said = again(copied)
    assert "results.nc is missing; it is made anew" in said[0]
    assert entries[0]["verdict"] == "supported"
    xr.testing.assert_identical(before, xr.load_dataset(copied / "results.nc", engine="h5netcdf"))


def test_a_process_may_be_killed_between_a_checksum_and_its_file(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    files.keep(path, b"old")
    write, left = files.write, [1]

    def dies(path, contents):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        write(path, contents)

    monkeypatch.setattr(files, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        files.keep(path, b"new")
    assert files.kept(path) == b"old"
    monkeypatch.setattr(files, "write", write)
    files.keep(path, b"new")
    assert files.kept(path) == b"new"


def noted(folder):
    """What stands in the journal of a folder, whole."""
    contents = files.kept(folder / records.JOURNAL)
    return [json.loads(line)["number"] for line in contents.splitlines()]


def test_a_line_that_a_kill_tore_is_cut_off_and_the_others_stay(tmp_path):
    """Killed at any byte of a line, or between its checksum and the line; also twice."""
    folder, path = records.Folder(tmp_path), tmp_path / records.JOURNAL
    for number in range(3):
        folder.note(number=number)
    whole, sums = path.read_bytes(), (tmp_path / files.SUMS).read_bytes()
    assert noted(tmp_path) == [0, 1, 2]
    start = whole[:-1].rfind(b"\n") + 1
    for end in (start, start + 1, len(whole) - 1):
        (tmp_path / files.SUMS).write_bytes(sums)
        path.write_bytes(whole[:end])
        again = records.Folder(tmp_path)
        again.note(number=3)
        assert noted(tmp_path) == [0, 1, 3]
        path.write_bytes(whole[:start])  # killed before the line was there
        records.Folder(tmp_path).note(number=4)
        assert noted(tmp_path) == [0, 1, 4]
    path.write_bytes(whole[: start - 5])
    with pytest.raises(files.Damaged):
        records.Folder(tmp_path).note(number=5)
    assert path.read_bytes() == whole[: start - 5]


def test_the_first_line_may_be_torn_too(tmp_path):
    records.Folder(tmp_path).note(number=0)
    (tmp_path / records.JOURNAL).write_bytes(b'{"time": "20')
    records.Folder(tmp_path).note(number=1)
    assert noted(tmp_path) == [1]


def test_what_a_journal_writes_is_linear_in_its_lines(tmp_path, monkeypatch):
    written = []
    for name in ("write", "append"):
        real = getattr(files, name)
        counted = lambda path, contents, real=real: (
            written.append(len(contents)), real(path, contents),
        )  # fmt: skip
        monkeypatch.setattr(files, name, counted)
    folder, totals = records.Folder(tmp_path), []
    for _ in range(2):
        for number in range(10, 30):
            folder.note(number=number)
        totals.append(sum(written))
    # The first sums are of a file without a name or two: a few bytes.
    assert abs(totals[1] - 2 * totals[0]) < 100
    assert len(noted(tmp_path)) == 40


def test_a_run_whose_journal_was_torn_goes_on_with_it(copied):
    path = copied / records.JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines)[:-2])
    assert not finished(copied)
    assert len(again(copied)[1]) == 0
    assert path.read_bytes() == b"".join(lines[:-1])
    assert finished(copied)


@pytest.mark.parametrize("name", ["²", "٣", "007", "-1", "1.0"])
def test_steps_are_numbers_as_they_are_written(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / "10").mkdir()
    assert checkpoints.steps(tmp_path) == [10]


def test_no_point_is_made_up(tmp_path):
    """A part of other arrays, or none: never zeros."""
    planned = job.planned(toys.SWEEP, toys.config(seeds=1), records.Folder(tmp_path))
    schema = run.engine.results.to_json({"x": run.engine.results.Dims()})
    planned.folder.save_points(0, np.arange(3), {"x": np.ones(3)}, schema)
    progress = types.SimpleNamespace(say=print)
    with pytest.raises(records.Refused, match="3 points are missing; the same command"):
        run.engine._dataset(planned, progress)
    planned.folder.save_points(1, np.arange(3), {"y": np.ones(3)}, schema)
    with pytest.raises(ValueError, match="x must be a result of all points, it is not at name="):
        run.engine._dataset(planned, progress)


# ------------------------------------------------------------------------- whose numbers they are


def test_other_claims_and_figures_leave_the_numbers(copied, monkeypatch):
    made = source.code(toys.SWEEP)
    monkeypatch.setattr(source, "code", lambda experiment: made._replace(rest="other"))
    monkeypatch.delattr(run.engine, "compute")
    wide = lambda config, results: {"wide": Picture(matplotlib.figure.Figure(), "Wide.")}
    entries, _ = again(copied, experiment=toy(figures=wide, second=toys.SWEEP.positive))
    assert len(entries) == 2
    assert sorted(path.name for path in (copied / "figures").glob("*.p*")) == [
        "wide.pdf", "wide.png",
    ]  # fmt: skip
    assert "finished before" in again(copied)[1][0]


def test_claims_or_figures_are_made_again_if_asked_for(copied, monkeypatch):
    monkeypatch.delattr(run.engine, "compute")
    for part, other in (("claims", "figures/blank.png"), ("figures", "claims.json")):
        kept = (copied / other).stat().st_mtime_ns
        made = (copied / run.PARTS[part]).stat().st_mtime_ns
        again(copied, again=[part])
        assert (copied / other).stat().st_mtime_ns == kept
        assert (copied / run.PARTS[part]).stat().st_mtime_ns > made
    with pytest.raises(records.Refused, match="--again: no 'figure'; did you mean figures"):
        run.refuse_other_parts(["figure"])


def test_what_raises_leaves_the_results_and_the_others(tmp_path, monkeypatch):
    def raises(results, factor=1):
        """No."""
        raise KeyError("beta")

    def figures(config, results):
        raise ValueError("no such axis")

    bad = toys.SWEEP.positive
    bad = claims.Claim(
        raises,
        *(
            getattr(bad, name)
            for name in ("source", "published", "reference", "reruns", "wrong", "needs")
        ),
    )
    for _ in range(2):
        with pytest.raises(run.Unmade) as caught:
            again(tmp_path, experiment=toy(bad=bad, figures=figures))
        (entries,) = caught.value.args
        assert {entry["name"]: entry["verdict"] for entry in entries} == {
            "positive": "supported", "raises": "not tested",
        }  # fmt: skip
        assert entries[1]["reason"] == "raised KeyError: 'beta'"
        assert records.Folder(tmp_path).read("claims") == entries
        monkeypatch.delattr(run.engine, "compute", raising=False)
    entries, _ = again(tmp_path)
    assert [entry["verdict"] for entry in entries] == ["supported"]
    assert (tmp_path / "figures" / "blank.png").exists()


EXPERIMENT = '''
"""An experiment."""
from jdiv import generators, regularized
from experiments.lab.claims import at_least, claim

AXES = {}
SCALE = 2.0
OFFSET = 1.0
TITLE = "Results"


def half(x):
    """Half of it."""
    return x / SCALE  # two


def run(config, point, key):
    """Runs."""
    return {"x": half(OFFSET)}


@claim(source="here", wrong=({"factor": -1},))
def positive(results, factor=1):
    """It is."""
    return at_least(0, factor * results.x)


def figures(config, results):
    return {TITLE: regularized.greedy}
'''


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("# two", "# 2.0", True),
        ("Half of it", "A half", True),
        ("at_least(0", "at_least(-1", True),
        ("It is.", "It is so.", True),
        ('"Results"', '"All results"', True),
        ("x / SCALE", "x * SCALE", False),
        ("SCALE = 2.0", "SCALE = 3.0", False),
        ("OFFSET = 1.0", "OFFSET = 1.0\nOFFSET += 1", False),
        ("half(OFFSET)", "half(OFFSET) + regularized.x", False),
        ("AXES = {}", "AXES = {'a': 1}", False),
    ],
)
def test_numbers_belong_to_the_code_that_makes_them(before, after, same, tmp_path):
    codes = []
    for number, text in enumerate((EXPERIMENT, EXPERIMENT.replace(before, after))):
        experiment = types.ModuleType("mine")
        experiment.__file__ = str(tmp_path / f"mine_{number}.py")
        pathlib.Path(experiment.__file__).write_text(text)
        codes.append(source.code(experiment))
    assert (codes[0].numbers == codes[1].numbers) == same
    assert codes[0].rest != codes[1].rest


def test_numbers_belong_to_the_modules_that_are_imported():
    def behind(name):
        file = source.ROOT / "experiments" / f"{name}.py"
        made = source._used(source._parsed(file).body, source.MADE_BY)
        found = source._reachable([*source._imports(made, file), *source.ENGINE], source._counts)
        return {path.relative_to(source.ROOT).as_posix() for path in found}

    averaging = behind("mdp/averaging")
    assert "jdiv/mdp/value_iteration.py" in averaging
    assert "experiments/lab/engine.py" in averaging
    assert not any("games" in path or "claims" in path or "plots" in path for path in averaging)
    assert "jdiv/divergences/generators.py" in behind("estimation/kl_estimators")  # an alias
