"""Runs in a bucket, of a server of S3 on this machine."""

import contextlib
import json
import os
import signal
import socket
import time

import numpy as np
import pytest
import xarray as xr
from etils import epath

from experiments.lab import files, records
from jdiv import checkpoints
from tests.experiments import processes

LOGIN = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def variables():
    """Environment variables by which the server is found."""
    import fsspec
    import moto.server

    server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        found = {**LOGIN, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        for name, value in found.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield found
    server.stop()


@pytest.fixture
def bucket(variables, request):
    return files.place(f"s3://bucket/{abs(hash(request.node.name))}")


def test_a_run_that_was_killed_goes_on_with_the_same_bits(variables, bucket, tmp_path):
    arguments = ("--cpu_devices=1", "--seeds=1")
    alone = processes.start("training", str(tmp_path / "alone"), *arguments)
    killed = processes.start("training", os.fspath(bucket), *arguments, environment=variables)
    killed.wait_for(lambda: list(bucket.glob("checkpoints/*/20.tar")))
    killed.kill(signal.SIGKILL)
    killed.process.join()
    assert (bucket / files.LOCK).exists()
    assert not (bucket / "results.nc").exists()
    code, said = processes.start(
        "training", os.fspath(bucket), *arguments, environment=variables
    ).ended()
    assert code == 0, said
    assert any("resumes at step" in line for line in said)
    assert alone.ended()[0] == 0
    expected = records.Folder(tmp_path / "alone").results()
    xr.testing.assert_identical(records.Folder(bucket).results(), expected)
    assert {path.name for path in bucket.iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }


def test_one_process_has_the_folder(bucket, monkeypatch):
    monkeypatch.setattr(files, "LEASE", 4.0)
    with files.locked(bucket, print):
        holder = json.loads((bucket / files.LOCK).read_bytes())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(records.Refused, match=f"in use by process {os.getpid()} of"):
            files.locked(bucket, print).__enter__()
    assert not (bucket / files.LOCK).exists()


@pytest.mark.parametrize(
    ("holder", "waits"),
    [
        ({"host": socket.gethostname(), "pid": 2**22 + 1}, False),
        ({"host": "elsewhere", "pid": 1}, True),
        ({"host": socket.gethostname(), "pid": "?"}, True),
        ([], True),
    ],
)
def test_the_lock_of_a_process_that_has_died_is_taken(holder, waits, bucket, monkeypatch):
    monkeypatch.setattr(files, "LEASE", 1.0)
    files.write(bucket / files.LOCK, files.as_json(holder))
    said, start = [], time.monotonic()
    with files.locked(bucket, said.append):
        assert (time.monotonic() - start > 1) == waits
    assert len(said) == waits
    assert all(line.endswith("it is taken if that is silent for 1 s") for line in said)


def test_a_process_whose_lock_was_taken_stops(bucket, monkeypatch):
    monkeypatch.setattr(files, "LEASE", 0.1)
    told = []
    monkeypatch.setattr(files.os, "kill", lambda pid, number: told.append(number))
    with files.locked(bucket, print):
        other = files.as_json({"process": "other"})
        files.write(bucket / files.LOCK, other)
        end = time.monotonic() + 20
        while not told and time.monotonic() < end:
            time.sleep(0.01)
            with contextlib.suppress(OSError):
                if (bucket / files.LOCK).read_bytes() != other:  # renewed in between
                    files.write(bucket / files.LOCK, other)
    assert told == [signal.SIGTERM]
    assert (bucket / files.LOCK).read_bytes() == other


def test_checkpoints_that_are_damaged_are_skipped(bucket):
    folder, said = records.Folder(bucket), []
    for step in (10, 20, 30):
        folder.save_checkpoint("name", step, {"x": np.full(3, step)}, keep=2)
    below = bucket / "checkpoints" / "name"
    assert sorted(path.name for path in below.glob("*.tar")) == ["20.tar", "30.tar"]
    files.write(below / "30.tar", files.read(below / "30.tar")[:-1])
    step, arrays = folder.restore("name", said.append)
    assert (step, arrays["x"].tolist()) == (20, [20] * 3)
    assert said == [f"{below}/30.tar is damaged: its checksum is wrong; skipped"]
    (below / files.SUMS).unlink()
    with pytest.raises(checkpoints.Unreadable, match="no readable checkpoint is left"):
        folder.restore("name", said.append)
    assert folder.restore("other", said.append) == (0, {})


def test_damage_in_a_bucket_is_noticed(bucket):
    folder = records.Folder(bucket)
    folder.save_points(0, np.arange(3), {"x": np.ones(3)}, "{}")
    assert [part.places.tolist() for part in folder.points(0, print)] == [[0, 1, 2]]
    (path,) = bucket.glob("points-0000/*.npz")
    files.write(path, files.read(path)[:-1])
    said = []
    assert list(folder.points(0, said.append)) == []
    assert "computed again" in said[0]
    assert not path.exists()
    folder.discard("[!.]*")
    assert list(bucket.glob("*")) == []


def test_a_journal_in_a_bucket_is_written_once_a_minute_and_at_the_end(bucket, monkeypatch):
    folder = records.Folder(bucket)
    lines = lambda: (files.kept(bucket / records.JOURNAL) or b"").count(b"\n")
    folder.note(number=0)
    assert lines() == 0
    with monkeypatch.context() as patch:
        patch.setattr(files, "EVERY", 0.0)
        folder.note(number=1)
    folder.note(number=2)
    assert lines() == 2
    folder.save_results(xr.Dataset({"x": 1.0}))
    assert lines() == 3
    records.Folder(bucket).note(number=3)  # of a process that is killed
    assert lines() == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://bucket/folder", "only gs:// and s3:// are buckets"),
        ("s3://", "names no bucket"),
        ("gs:///folder", "names no bucket"),
    ],
)
def test_other_schemes_are_refused(text, words):
    with pytest.raises(records.Refused, match=words):
        files.place(text)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(records.Refused, match="gs://a/b needs a package: pip install gcsfs"):
        files.place("gs://a/b")


def test_a_bucket_that_cannot_be_reached_is_one_line(monkeypatch):
    def fails(path):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(type(epath.Path("s3://a/b")), "exists", fails)
    with pytest.raises(records.Refused, match=r"s3://a/b cannot be reached: no way$"):
        files.place("s3://a/b")


def test_a_bucket_that_is_not_there_is_one_line(variables):
    with pytest.raises(records.Refused, match=r"not writable: .*bucket does not exist"):
        files.locked(files.place("s3://nowhere/x"), print).__enter__()
