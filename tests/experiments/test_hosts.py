"""Two processes of one run on this machine: whatever happens to one, both end alike."""

import functools
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import types

import jax
import pytest
import xarray as xr
from absl import flags

from experiments.lab import commands, hosts, records
from jdiv import parallel
from tests.experiments import processes

ROOT = pathlib.Path(__file__).parents[2]
ON = "; the same command on all hosts goes on from here"


@pytest.fixture
def start(monkeypatch):
    """Starts processes of which none is left running."""
    monkeypatch.chdir(ROOT)
    started = []

    def one(*arguments):
        started.append(processes.start(*arguments))
        return started[-1]

    yield one
    for process in started:
        process.kill()


@pytest.fixture
def pair(start, tmp_path):
    """Starts two processes of one run; the arguments are shared, or each has its own."""

    def both(kind, *arguments, each=((), ())):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}"
        shared = ("--distributed", address, "--num_processes=2", "--cpu_devices=4", *arguments)
        return [
            start(kind, str(tmp_path / "hosts"), *shared, f"--process_id={i}", *own)
            for i, own in enumerate(each)
        ]

    return both


def ends(both):
    """Exit codes, and the one line of each, which is not where it resumes."""
    codes, said = zip(*(process.ended() for process in both), strict=True)
    said = [[line for line in lines if "resumes at step" not in line] for lines in said]
    assert all(len(lines) <= 1 for lines in said), said
    return list(codes), [" ".join(lines) for lines in said]


def results(folder):
    return xr.load_dataset(folder / "results.nc", engine="h5netcdf")


def saved(folder):
    return len(list(folder.glob("checkpoints/*/*/sha256")))


def test_hosts_with_different_configs_refuse(pair):
    codes, said = ends(pair("sweep", each=(["--seeds=1"], ["--seeds=2"])))
    line = "all hosts must have the same config; another one than host 0 have hosts 1"
    assert (codes, said) == ([2, 2], [line, line])


@pytest.mark.parametrize(
    ("fault", "host", "code", "words"),
    [
        ("run", 1, 3, "ZeroDivisionError: no such number (engine.py:"),
        ("disk", 0, 2, "here: No space left on device"),
    ],
)
def test_what_fails_on_one_host_ends_both(fault, host, code, words, pair):
    codes, said = ends(pair("sweep", "--seeds=1", f"--fault={fault}", f"--faulty_host={host}"))
    assert codes == [code, code]
    assert said[host].startswith(words)
    assert said[1 - host] == f"host {host}: {said[host]}"


def test_a_claim_that_raises_is_no_failure_of_a_host(pair, tmp_path):
    codes, said = ends(pair("sweep", "--seeds=1", "--fault=claims"))
    assert codes == [1, 1]
    words = "claim fails raised ZeroDivisionError: no such number at all (toys.py:"
    assert words in said[0]
    assert said[1] == ""
    assert results(tmp_path / "hosts").sizes["seed"] == 1


@pytest.mark.parametrize(
    ("number", "host", "code", "line"),
    [
        (signal.SIGKILL, 0, 3, f"host 0 is lost{ON}"),
        (signal.SIGKILL, 1, 3, f"host 1 is lost{ON}; it was silent for 3 s"),
        (signal.SIGTERM, 1, 143, "host 1: stopped; the same command goes on from here"),
    ],
)
def test_a_killed_host_ends_the_other(number, host, code, line, pair):
    """While host 0 draws and the other waits for it."""
    both = pair("sweep", "--seeds=1", "--host_timeout=3", "--fault=wait")
    both[0].wait_for(lambda: "waits" in both[0].out())
    both[host].kill(number)
    codes, said = ends(both)
    assert codes[1 - host] == code
    assert said[1 - host] == line
    assert codes[host] == (-9 if number == signal.SIGKILL else code)


def test_hosts_that_were_killed_or_stopped_go_on_with_the_same_bits(pair, start, tmp_path):
    """As one process with as many devices; while both train and wait for each other."""
    arguments = ("--seeds=2", "--delay=5000")
    alone = start("training", str(tmp_path / "alone"), "--cpu_devices=8", *arguments)
    for number, code, line in (
        (signal.SIGKILL, 3, "another host is lost" + ON),
        (signal.SIGINT, 130, "stopped; the same command goes on from here"),
    ):
        before = saved(tmp_path / "hosts")
        both = pair("training", *arguments)
        both[0].wait_for(lambda before=before: saved(tmp_path / "hosts") > before)
        both[1].kill(number)
        codes, said = ends(both)
        assert (codes[0], said[0].removeprefix("host 1: ")) == (code, line)
    assert ends(pair("training", *arguments)) == ([0, 0], ["", ""])
    assert ends([alone]) == ([0], [""])
    xr.testing.assert_identical(results(tmp_path / "alone"), results(tmp_path / "hosts"))


def test_a_partner_that_never_comes(pair):
    both = pair("sweep", "--host_timeout=2", each=((), ("--coordinator_address=nowhere",)))
    codes, said = ends(both)
    assert codes == [3, 2]
    assert said[0] == "not all hosts came within 2 s, see --host_timeout"
    assert said[1] == "--coordinator_address must be host:port, got 'nowhere'"


# ---------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--coordinator_address=a:1"], "--coordinator_address is for one process of many"),
        (["--process_id=0"], "--process_id is for one process of many: --distributed is missing"),
        (["--cpu_devices=3"], "--cpu_devices=3, but XLA_FLAGS or JAX_NUM_CPU_DEVICES say 8"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, words):
    commands.shared_flags(values := flags.FlagValues())
    values(["command", *arguments])
    with pytest.raises(records.Refused, match=re.escape(words)):
        commands.set_up(values)


def test_programs_that_are_not_compiled_are_refused():
    commands.shared_flags(values := flags.FlagValues())
    values(["command"])
    with jax.disable_jit(), pytest.raises(records.Refused, match="JAX_DISABLE_JIT is set"):
        commands.set_up(values)


def test_a_run_on_many_hosts_needs_to_know_them(start):
    ((code,), (line,)) = ends([start("sweep", "unused", "--distributed")])
    assert code == 2
    assert line.startswith("--distributed: JAX finds no cluster here; --coordinator_address, --num")


LATER = {"fsspec", "gymnax", "h5netcdf", "h5py", "matplotlib", "optax", "orbax", "ott", "seaborn"}
"""What a run imports when it draws, saves or needs it; together they take seconds."""


def test_platforms_that_are_not_here_are_refused_before_much_is_imported():
    command = [sys.executable, "-X", "importtime"]
    done = subprocess.run(
        [*command, "-m", "experiments.run", "--config=configs/mdp/maze.py:smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        check=False,
    )
    assert done.returncode == 2
    said = done.stderr.splitlines()
    (refusal,) = (line for line in said if not line.startswith("import time:"))
    assert refusal.startswith("JAX_PLATFORMS=cuda: no device is found (")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in said}
    assert {"jax", "xarray", "experiments"} <= imported
    assert imported & LATER == set()


def test_ctrl_c_while_modules_are_imported_is_one_line():
    command = [sys.executable, "-X", "importtime", "-m", "experiments.run"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while "numpy" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130
    assert [line for line in said if "import time:" not in line] == ["interrupted"]


def test_two_interrupts_are_one_line_and_130(capsys):
    def body():
        with commands.stopping_on_signal() as stopping:
            signal.raise_signal(signal.SIGINT)
            assert stopping()
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    assert commands.guarded(body) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exit_code_is_that_of_the_signal(number, capsys):
    def body():
        with commands.stopping_on_signal() as stopping:
            signal.raise_signal(number)
            assert stopping()
            raise records.Stopped

    assert commands.guarded(body) == 128 + number
    assert "goes on from here" in capsys.readouterr().err


def test_an_unforeseen_error_of_one_process_has_its_traceback(capsys):
    assert commands.guarded(lambda: 1 // 0) == hosts.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_what_the_user_has_set_is_kept(monkeypatch):
    """By a stand-in for JAX's settings, which nobody may change once there are devices."""
    config = types.SimpleNamespace(jax_num_cpu_devices=-1)
    config.update = functools.partial(setattr, config)
    monkeypatch.setattr(parallel, "jax", types.SimpleNamespace(config=config))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert parallel.cpu_devices_set() is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=3 --xla_b=2")
    parallel.divide_cpu(5)
    assert (parallel.cpu_devices_set(), config.jax_num_cpu_devices) == (3, -1)
    monkeypatch.delenv("XLA_FLAGS")
    for devices in (5, 7):
        parallel.divide_cpu(devices)
        assert parallel.cpu_devices_set() == 5


def test_help_lists_every_flag():
    commands.shared_flags(values := flags.FlagValues())
    said = commands.usage("Text.")
    assert all(f"\n--{name}: " in said for name in values)
