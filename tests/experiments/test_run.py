import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
import xarray as xr

from experiments import reproduce, run
from experiments.lab import claims, commands, job, records, settings, source
from experiments.lab.job import from_config
from jdiv import checkpoints
from tests.experiments import processes, toys

ROOT = pathlib.Path(__file__).parents[2]
ATLAS = "configs/estimation/atlas.py"
AVERAGING = "--config=configs/mdp/averaging.py:smoke"


def start(kind, folder, *arguments):
    """The command of the toys in a process of its own, which need not import anything."""
    return processes.start(kind, str(folder), *arguments)


def started_anew(kind, folder, *arguments, limit=""):
    """The command of the toys as a shell starts it."""
    toys_command = [sys.executable, "tests/experiments/toys.py", kind, str(folder), *arguments]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))
    }
    return subprocess.Popen(
        ["bash", "-c", limit + 'exec "$@"', "bash", *toys_command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )


def finished(process):
    """Its exit code and what it said, which is not what gloo says of its connections."""
    out, err = process.communicate(timeout=120)
    return process.returncode, [line for line in err.splitlines() if "[Gloo]" not in line], out


def results(folder):
    return xr.load_dataset(folder / "results.nc", engine="h5netcdf")


# ----------------------------------------------------------------------------------------- killed


def pieces(folder):
    """How much is there: finished batches, and steps of checkpoints."""
    steps = [checkpoints.steps(each)[-1:] for each in folder.glob("checkpoints/*")]
    return len(list(folder.glob("points-*/*.npz"))), sum(step for last in steps for step in last)


@pytest.mark.parametrize(("kind", "delay"), [("sweep", 1_500_000), ("training", 100_000)])
def test_killed_five_times_the_results_are_the_same_to_the_bit(kind, delay, tmp_path):
    chance = random.Random(0)
    seeds = {"sweep": 10, "training": 5}[kind]  # a checkpoint takes a tenth of a second
    arguments = ("--cpu_devices=1", f"--delay={delay}", f"--seeds={seeds}")
    undisturbed = start(kind, tmp_path / "whole", *arguments)
    folder = tmp_path / "killed"
    for _ in range(5):
        before = pieces(folder)
        process = start(kind, folder, *arguments)
        process.wait_for(lambda before=before: pieces(folder) != before)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        assert process.ended()[0] == -signal.SIGKILL
        assert not (folder / "results.nc").exists()
    assert pieces(folder) > (0, 0)
    assert start(kind, folder, *arguments).ended()[0] == 0
    assert undisturbed.ended()[0] == 0
    xr.testing.assert_identical(results(tmp_path / "whole"), results(folder))
    left = sorted(path.name for path in folder.iterdir())
    assert left == [
        ".sha256.json", "claims.json", "config.json", "controls", "environment.json", "figures",
        "metrics.jsonl", "results.nc",
    ]  # fmt: skip


def test_sigterm_saves_and_exits(tmp_path):
    process = start("training", tmp_path / "run", "--cpu_devices=1", "--delay=100000")
    process.wait_for(lambda: pieces(tmp_path / "run") != (0, 0))
    process.kill(signal.SIGTERM)
    code, said = process.ended()
    assert code == 143
    assert said[-1] == "stopped; the same command goes on from here"
    assert pieces(tmp_path / "run") > (0, 0)
    assert not any("Traceback" in line for line in said)


# ---------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("kind", ["sweep", "training"])
def test_one_device_eight_and_two_hosts_of_four_agree(kind, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ("--cpu_devices=4", "--distributed", f"--coordinator_address=127.0.0.1:{port}")
    running = {
        "one": start(kind, tmp_path / "one", "--cpu_devices=1"),
        "eight": start(kind, tmp_path / "eight", "--cpu_devices=8"),
        **{
            f"host {i}": start(
                kind, tmp_path / "hosts", *shared, "--num_processes=2", f"--process_id={i}"
            )
            for i in range(2)
        },
    }
    codes = {name: command.ended()[0] for name, command in running.items()}
    assert codes == dict.fromkeys(running, 0)
    # 30 points of a group in lanes of 5, and of 4 on eight devices.
    one, eight, hosts = (results(tmp_path / name) for name in ("one", "eight", "hosts"))
    xr.testing.assert_allclose(one, eight, rtol=1e-6)
    xr.testing.assert_identical(eight, hosts)
    devices = json.loads((tmp_path / "hosts" / "environment.json").read_text())["devices"]
    assert (devices["count"], devices["processes"]) == (8, 2)


# ---------------------------------------------------------------------------------------- refused


def refused(*arguments):
    """The one line that a command line is refused with."""
    argv = ["run", *arguments]
    with pytest.raises(records.Refused) as caught:
        from_config(settings.configured(argv), pathlib.Path("unused"), settings.argument(argv))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config", "missing", ATLAS]),
        (["--config=configs/estimation/atlass.py"], ["atlass", f"did you mean {ATLAS}"]),
        ([f"--config={ATLAS}:huge"], ["scale", "smoke, quick, full", "'huge'"]),
        ([f"--config={ATLAS}", "--config.ponits=3"], ["'ponits'", "did you mean points"]),
        ([f"--config={ATLAS}", "--config.sweep.sed=3"], ["sweep.sed", "no 'sed'"]),
        ([f"--config={ATLAS}", "--config.points.more=3"], ["points.more", "has no fields"]),
        ([f"--config={ATLAS}", "--confg.points=3"], ["confg"]),
        ([f"--config={ATLAS}", "--workdri=3"], ["workdri", "workdir"]),
        ([f"--config={ATLAS}", "--config.points=1.5"], ["config.points", "1.5"]),
        ([f"--config={ATLAS}", "--config.points=many"], ["config.points", "many"]),
        ([f"--config={ATLAS}", "--config.lanes=0"], ["config.lanes", "at least 1", "0"]),
        ([f"--config={ATLAS}", "--config.memory_gib=nan"], ["config.memory_gib", "nan"]),
        ([f"--config={ATLAS}", "--config.memory_gib=-1"], ["config.memory_gib", "positive"]),
        ([f"--config={ATLAS}", "--config.precision=float16"], ["float32 or float64", "float16"]),
        ([f"--config={ATLAS}", "more"], ["'more'", "--"]),
        ([AVERAGING, "--config.states=0"], ["config.states must be at least 1, got 0"]),
        ([AVERAGING, "--config.actions=-1"], ["config.actions must be at least 1, got -1"]),
        ([AVERAGING, "--config.branches=100"], ["config.branches", "config.states = 30", "100"]),
        ([AVERAGING, "--config.discount=1.5"], ["config.discount", "below 1, got 1.5"]),
        ([AVERAGING, "--config.sweep.discount=.9,1.5"], ["config.sweep.discount", "1.5"]),
        ([AVERAGING, "--config.sweep.states=3,9"], ["config.branches", "config.states = 3"]),
        ([AVERAGING, "--config.sweep.seed=0:4:2"], ["config.sweep.seed", "start:stop", "0:4:2"]),
        (["--config=README.md"], ["README.md is not a Python file"]),
        (["--config=/etc/passwd"], ["/etc/passwd is not a Python file"]),
        (["--config=conftest.py"], ["conftest.py has no function get_config"]),
        (
            [f"--config={ATLAS}", "--config.experiment=estimation/atls"],
            ["config.experiment", "did you mean estimation/atlas"],
        ),
        ([f"--config={ATLAS}", "--config.experiment=mdp/foo"], ["config.experiment", "'mdp/foo'"]),
        ([f"--config={ATLAS}", "--config.experiment=../atlas"], ["config.experiment", "../atlas"]),
        ([f"--config={ATLAS}", "--config.experiment=lab/axes"], ["lab/axes has no AXES"]),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, words):
    message = refused(*arguments)
    for word in words:
        assert word in message


@pytest.fixture
def toy_file(tmp_path, monkeypatch):
    """A config file that describes a toy, which `from_config` takes for an experiment."""
    path = tmp_path / "toy.py"
    path.write_text(
        "from tests.experiments import toys\n"
        "def get_config(scale='quick'):\n"
        "    return toys.config(trains=True).unlock()\n"
    )
    monkeypatch.setattr(job.importlib, "import_module", lambda name: toys.TRAINING)
    return path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.rate=fast", ["config.sweep.rate", "float", "'fast'"]),
        ("sweep.rate=()", ["rate", "at least one value"]),
        ("sweep.rate=0.1,0.1", ["0.1 more than once"]),
        ("sweep.rate=0.1", ["same length", "rate 1", "power 3"]),
        ("sweep.seed=0:many", ["config.sweep.seed", "start:stop"]),
        ("zipped=rate,powr", ["powr", "did you mean power"]),
        ("training.steps=55", ["multiple of checkpoint_every 10", "55"]),
        ("training.record_every=3", ["multiple of record_every 3", "10"]),
        ("training.checkpoints=0", ["training.checkpoints", "at least 1"]),
        ("training.stpes=3", ["training.stpes", "did you mean steps"]),
    ],
)
def test_a_wrong_sweep_or_schedule_is_one_line(toy_file, override, words):
    message = refused(f"--config={toy_file}", f"--config.{override}")
    for word in words:
        assert word in message


def test_overrides_reach_the_sweep(toy_file):
    config = settings.configured(
        ["run", f"--config={toy_file}", "--config.sweep.seed=5:7", "--config.sweep.name=abs"]
    )
    assert config.sweep.seed == (5, 6)
    assert config.sweep.name == ("abs",)
    assert config.is_locked


def test_what_an_experiment_cannot_compute_is_refused_before_any_work(toy_file, monkeypatch):
    def validate(config, point):
        if point["rate"] > 0.25:
            raise ValueError(f"config.sweep.rate must be at most 0.25, got {point['rate']}")

    monkeypatch.setattr(
        job.importlib,
        "import_module",
        lambda name: toys.module(init=None, step=None, validate=validate),
    )
    assert refused(f"--config={toy_file}") == "config.sweep.rate must be at most 0.25, got 0.3"


def test_the_process_says_one_line_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "experiments.run", f"--config={ATLAS}", "--config.ponts=3"]
    process = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr == "--config.ponts: no 'ponts'; did you mean points?\n"
    assert not (tmp_path / "run").exists()


EXPERIMENT = '''
from experiments.lab.axes import seeds
from experiments.lab.claims import at_least, claim

AXES = {"seed": seeds}

def run(config, point, key):
    return {"x": point["seed"] * config.factor}

def figures(config, results):
    return {"line": "there is nothing to draw"}

@claim(source="here", reruns=({"factor": -1},))
def positive(results):
    """It is."""
    return at_least(1, results.x.max())
'''
CONFIG = """
from configs import defaults

def get_config(scale="smoke"):
    config = defaults.get_config("my_experiment", scale)
    config.factor = 2
    config.sweep.seed = (0, 1)
    return config
"""


@pytest.mark.parametrize("where", ["configs", "."])
def test_an_experiment_may_live_outside_of_the_repository(where, tmp_path, capsys, monkeypatch):
    (tmp_path / where).mkdir(exist_ok=True)
    (tmp_path / where / "mine.py").write_text(CONFIG)
    (tmp_path / "my_experiment.py").write_text(EXPERIMENT)
    argv = ["run", f"--config={tmp_path / where / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(commands, "set_up", lambda values: None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for _ in range(2):
        assert run.main() == 0
    assert "supported  positive: 2 " in capsys.readouterr().out
    assert results(tmp_path / "run").x.values.tolist() == [0, 2]
    # Its numbers belong to its code, as those of an experiment of the repository do.
    for before, after, exits in ("at_least(1", "at_least(3", 1), ("] *", "] +", 2):
        (tmp_path / "my_experiment.py").write_text(EXPERIMENT.replace(before, after))
        source._parsed.cache_clear()
        assert run.main() == exits
    assert "other code" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- folders


def execute(folder, config=None, **options):
    planned = job.planned(toys.SWEEP, config or toys.config(seeds=1), records.Folder(folder))
    return run.execute(planned, "toys", **options)


def test_a_finished_run_is_not_run_again(tmp_path):
    first = execute(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert execute(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_of_another_config_is_refused_until_it_may_be_overwritten(tmp_path):
    execute(tmp_path)
    other = toys.config(seeds=2)
    with pytest.raises(records.Refused, match=r"another config \(they differ in sweep.seed\)"):
        execute(tmp_path, other)
    assert results(tmp_path).sizes["seed"] == 1
    execute(tmp_path, other, overwrite=True)
    assert results(tmp_path).sizes["seed"] == 2


def test_a_folder_of_other_code_is_refused(tmp_path, monkeypatch):
    execute(tmp_path)
    monkeypatch.setattr(source, "code", lambda experiment: source.Code("changed", ""))
    with pytest.raises(records.Refused, match=r"other code.*; --workdir=NEW keeps both, --over"):
        execute(tmp_path)


def test_a_folder_of_something_else_is_never_emptied(tmp_path):
    (tmp_path / "thesis.tex").write_text("Years of work.")
    for overwrite in (False, True):
        with pytest.raises(records.Refused, match=r"something else \(thesis.tex\)"):
            execute(tmp_path, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(records.Refused, match="not writable"):
        execute(tmp_path / "file" / "run")


def test_a_folder_in_use_is_refused(tmp_path):
    config, code = toys.config(seeds=1), source.code(toys.SWEEP)
    with (
        records.Folder(tmp_path).opened(config, code, overwrite=False),
        pytest.raises(records.Refused, match="in use"),
    ):
        execute(tmp_path)


@pytest.mark.parametrize("kind", ["sweep", "training"])
def test_a_full_disk_is_one_line(kind, tmp_path):
    """A limit on the size of files fails the same calls as a disk without room."""
    arguments = kind, tmp_path / "run", "--cpu_devices=1", "--seeds=2"
    limited = started_anew(*arguments, limit="ulimit -f 5; ")
    code, said, _ = finished(limited)
    assert code == 2
    assert "File too large" in said[-1]
    assert str(tmp_path / "run") in said[-1]
    assert not any("Traceback" in line for line in said)
    assert not (tmp_path / "run" / "results.nc").exists()
    assert not list((tmp_path / "run").glob("**/*.saving*"))
    assert not list((tmp_path / "run").glob("**/.writing-*"))
    assert start(*arguments).ended()[0] == 0


# ----------------------------------------------------------------------------------------- records


def test_the_records_of_a_run(tmp_path):
    (entry,) = execute(tmp_path)
    assert entry == json.loads((tmp_path / "claims.json").read_text())[0]
    assert entry["verdict"] == "supported"
    (control,), (wrong,) = entry["reruns"], entry["wrong"]
    assert (wrong["arguments"], wrong["verdict"]) == ({"factor": -1}, "refuted")
    assert control["override"] == {"sign": -1.0, "sweep.seed": [0]}
    assert control["verdict"] == "refuted"
    assert control["measured"] == pytest.approx(-results(tmp_path).total.max().item())
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["sweep"] == {"points": 6, "programs": 2}
    assert environment["versions"].keys() >= {"python", "jax", "optax"}
    assert environment["seconds"].keys() == {"compile", "run", "total"}
    for suffix in ("png", "pdf"):
        assert (tmp_path / "figures" / f"blank.{suffix}").stat().st_size > 500


def test_a_control_that_does_not_refute_is_not_sound(tmp_path):
    harmless = dataclasses.replace(toys.SWEEP.positive, reruns=({"sweep.seed": (0,)},))
    toy = toys.module(run=toys.SWEEP.run, positive=harmless)
    planned = job.planned(toy, toys.config(seeds=1), records.Folder(tmp_path))
    (entry,) = run.execute(planned, "toys")
    assert entry["verdict"] == "supported"
    assert not claims.sound(entry)


def test_a_rerun_that_several_claims_ask_for_runs_once(tmp_path, capsys):
    toy = toys.module(run=toys.SWEEP.run, first=toys.SWEEP.positive, second=toys._positive("total"))
    planned = job.planned(toy, toys.config(seeds=1), records.Folder(tmp_path))
    assert len(run.execute(planned, "toys")) == 2
    assert json.loads((tmp_path / "environment.json").read_text())["sweep"]["programs"] == 2


def test_reproduce_says_so_if_a_claim_is_refuted(tmp_path):
    wrong = toys.config(seeds=1)
    wrong.sign = -1.0

    def plan(name, toy, config):
        return reproduce.Planned(job.planned(toy, config, records.Folder(tmp_path / name)), False)

    def reproduced(plans):
        return reproduce.reproduce(reproduce.one_by_one(plans, lambda: False), tmp_path)

    right = plan("right", toys.SWEEP, toys.config(seeds=1))
    assert reproduced([right]) == 0
    assert reproduced([right, plan("wrong", toys.SWEEP, wrong)]) == 1
    failing = toys.module(run=lambda config, point, key: 1 / 0)
    assert reproduced([plan("broken", failing, toys.config(seeds=1)), right]) == 1
    assert (tmp_path / "report.html").exists()


def test_experiments_run_side_by_side(tmp_path):
    config = settings.load("configs/mdp/maze.py:smoke")
    missing = config.copy_and_resolve_references()
    missing.experiment = "policy/no_such_experiment"
    plans = [
        reproduce.Planned(job.from_config(config, tmp_path / name), False) for name in ("a", "b")
    ]
    gone = dataclasses.replace(plans[0].job, config=missing.lock())
    folder = records.Folder(tmp_path / "c")
    plans.append(reproduce.Planned(dataclasses.replace(gone, folder=folder), False))
    found = {job.folder.path.name: entries for job, entries in
             reproduce.side_by_side(plans, 2, 1, lambda: False)}  # fmt: skip
    assert found["c"] is None
    assert found["a"] == found["b"] == records.Folder(tmp_path / "b").read("claims")
    with pytest.raises(records.Stopped):
        list(reproduce.side_by_side(plans, 2, 1, lambda: True))


def test_the_command_runs_the_wanted_experiments_once(tmp_path):
    command = [sys.executable, "-m", "experiments.reproduce", "--scale=smoke", "--only=mdp/maze"]
    command.append(f"--workdir={tmp_path}")
    for _ in range(2):
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        assert "3 of 3 claims supported, with their controls" in process.stdout
    assert "finished before" in process.stderr
    assert (tmp_path / "smoke" / "report.html").exists()


def test_only_chooses_areas_and_experiments():
    assert [path.stem for path in reproduce.chosen(["estimation/atlas"])] == ["atlas"]
    assert reproduce.chosen([]) == commands.configs()
    assert {path.parent.name for path in reproduce.chosen(["estimation"])} == {"estimation"}
    with pytest.raises(records.Refused, match="did you mean estimation"):
        reproduce.chosen(["estimatoin"])
