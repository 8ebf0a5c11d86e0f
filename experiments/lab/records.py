"""The files of a run. Each appears whole or not at all, and a folder belongs to one config."""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from ml_collections import ConfigDict

from jdiv import checkpoints, parallel

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = (
    "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "ml_collections", "xarray",
    "matplotlib",
)  # fmt: skip


_WRITING = ".writing-"


class Refused(Exception):
    """What a user asked for cannot be done; the message is one line."""


class Stopped(Exception):
    """The run was asked to stop; what was done is kept."""


# ----------------------------------------------------------------------------------------- writing


def write(path: pathlib.Path, produce: Callable[[pathlib.Path], Any]) -> None:
    """`produce` writes a temporary file beside the path, which then takes the path's place."""
    handle, name = tempfile.mkstemp(prefix=_WRITING, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        produce(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Text as UTF-8."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: pathlib.Path, value: Any) -> None:
    """JSON that strict readers take: NaN is an error here."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """The value, or None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# ------------------------------------------------------------------------------------ what was run


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON has it: tuples are lists."""
    return json.loads(config.to_json_best_effort())


def code(experiment: str) -> str:
    """A hash of the code that makes the numbers of an experiment: the library and its module."""
    lab = [f"experiments/lab/{name}.py" for name in ("engine", "sweeps", "results")]
    files = [*ROOT.glob("jdiv/**/*.py")]
    files += [ROOT / name for name in (*lab, f"experiments/{experiment}.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def environment(experiment: str, command: str) -> dict[str, Any]:
    """Versions, devices, commit and command."""
    first = jax.devices()[0]
    return {
        "command": command,
        "started": now(),
        "devices": {
            "platform": first.platform,
            "kind": first.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "commit": _commit(),
        "code": code(experiment),
    }


def _commit() -> str | None:
    """The commit of the checkout, with a plus if it was changed; None outside of one."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)


def now() -> str:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------------------------------- a folder


class Points(NamedTuple):
    """Finished points of a group: which, the dimensions of their results as text, the results."""

    places: np.ndarray
    schema: str
    arrays: dict[str, np.ndarray]


class Folder:
    """The folder of a run, as a host sees it: the first of many reads and writes.

    On the others nothing is there and nothing is written, so no caller has to ask which host it is.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path

    @property
    def _first(self) -> bool:
        return parallel.host() == 0

    def below(self, name: str) -> "Folder":
        """A folder within this one, made if it is not there."""
        if self._first:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        return Folder(self.path / name)

    def discard(self, *patterns: str) -> None:
        """Deletes files and folders whose names match, such as `points-*`."""
        for path in [path for pattern in patterns for path in self._glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _glob(self, pattern: str) -> list[pathlib.Path]:
        return sorted(self.path.glob(pattern)) if self._first else []

    # ------------------------------------------------------------------------------------- files

    def read(self, name: str) -> Any:
        """The value of `<name>.json`, or None."""
        return read_json(self.path / f"{name}.json") if self._first else None

    def write(self, name: str, value: Any) -> None:
        """Writes `<name>.json`."""
        if self._first:
            write_json(self.path / f"{name}.json", value)

    def note(self, **entry: Any) -> None:
        """One more line of the journal metrics.jsonl, with the time in front."""
        path = self.path / "metrics.jsonl"
        if self._first:
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            write_text(path, before + json.dumps({"time": now(), **entry}) + "\n")

    def has_results(self) -> bool:
        """Whether the dataset is there, for all hosts alike."""
        return parallel.on_any_host(bool(self._glob("results.nc")))

    def results(self) -> xr.Dataset | None:
        """The dataset, in memory."""
        path = self.path / "results.nc"
        try:
            return xr.load_dataset(path, engine="h5netcdf") if self._first else None
        except (OSError, ValueError, KeyError) as error:
            raise Refused(
                f"{path} cannot be read: {error}; delete it to compute it anew"
            ) from error

    def save_results(self, results: xr.Dataset | None) -> None:
        """The dataset as netCDF; the pieces it was made of are deleted."""
        if self._first:
            # By way of memory: HDF5 crashes the process when a disk is full.
            contents = io.BytesIO()
            results.to_netcdf(contents, engine="h5netcdf")
            write(self.path / "results.nc", lambda path: path.write_bytes(contents.getbuffer()))
        self.discard("points-*", "checkpoints")

    def save_pictures(self, pictures: Mapping[str, Any]) -> None:
        """Every figure as PNG and PDF, and their captions."""
        import matplotlib.pyplot as plt

        folder = self.below("figures")
        for name, picture in pictures.items():
            for suffix in ("png", "pdf"):
                write(folder.path / f"{name}.{suffix}", picture.figure.savefig)
            plt.close(picture.figure)
        folder.write("captions", {name: picture.caption for name, picture in pictures.items()})

    # ------------------------------------------------------------------- finished points, training

    def save_points(
        self, group: int, places: np.ndarray, arrays: Mapping[str, np.ndarray], schema: str
    ) -> None:
        """Finished points of a group of a sweep, as npz, whose every array has a checksum."""
        contents = {_PLACES: places, _SCHEMA: np.array(schema), **arrays}

        def produce(temporary: pathlib.Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **contents)

        if self._first:
            write(self.below(_points(group)).path / f"{places[0]:08}.npz", produce)

    def points(self, group: int, report: Callable[[str], Any]) -> Iterator[Points]:
        """What is kept of a group; damaged files are reported and deleted."""
        for path in self._glob(f"{_points(group)}/*.npz"):
            try:
                with path.open("rb") as file, np.load(file) as stored:
                    arrays = dict(stored)
                yield Points(arrays.pop(_PLACES), arrays.pop(_SCHEMA).item(), arrays)
            except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError) as error:
                report(f"{path} is damaged: {error}; its points are computed again")
                path.unlink()

    def save_checkpoint(
        self, name: str, step: int, arrays: Mapping[str, np.ndarray], *, keep: int
    ) -> None:
        """The state of a training loop after so many steps."""
        if self._first:
            checkpoints.save(self.path / "checkpoints" / name, step, arrays, keep=keep)

    def restore(self, name: str, report: Callable[[str], Any]) -> tuple[int, dict[str, np.ndarray]]:
        """Step and arrays of the newest checkpoint; `(0, {})` if there is none."""
        if not self._first:
            return 0, {}
        return checkpoints.restore(self.path / "checkpoints" / name, report=report) or (0, {})

    # ----------------------------------------------------------------------- whose folder it is

    @contextlib.contextmanager
    def opened(self, config: ConfigDict, *, overwrite: bool) -> Iterator[None]:
        """The folder for this process alone, with the config in it.

        Refuses a folder of another config or of other code, unless it may be overwritten; if the
        first host refuses it, all hosts stop.
        """
        with contextlib.ExitStack() as stack:
            refused = None
            if self._first:
                try:
                    stack.enter_context(self._locked(config, overwrite))
                except Refused as error:
                    refused = error
            if parallel.on_any_host(refused is not None):
                raise refused or Refused("refused by the first host")
            yield

    @contextlib.contextmanager
    def _locked(self, config: ConfigDict, overwrite: bool) -> Iterator[None]:
        folder = self.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / ".lock").open("w")
        except OSError as error:
            raise Refused(f"workdir {folder} is not writable: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"workdir {folder} is in use by another process") from None
            conflict = self.disagreement(config)
            if conflict and conflict.startswith(FOREIGN):
                raise Refused(f"workdir {folder} {conflict}")
            if conflict and not overwrite:
                raise Refused(f"workdir {folder} {conflict}; --overwrite computes it anew")
            if overwrite:
                self.discard("[!.]*")
            for half_written in folder.rglob(f"{_WRITING}*"):  # by a process that was killed
                half_written.unlink()
            self.write("config", as_dict(config))
            yield
        (folder / ".lock").unlink(missing_ok=True)

    def disagreement(self, config: ConfigDict) -> str | None:
        """Why the contents are not of this config and this code; None if they are."""
        try:
            there, made_by = self.read("config"), self.read("environment")
        except ValueError:
            return "holds files that cannot be read"
        if there is None:
            foreign = [path.name for path in self._glob("[!.]*")]
            return f"{FOREIGN} ({', '.join(foreign[:3])})" if foreign else None
        differing = sorted(_differing(there, as_dict(config)))
        if differing:
            return f"holds a run of another config (they differ in {', '.join(differing[:5])})"
        if made_by is not None and made_by["code"] != code(config.experiment):
            return OTHER_CODE
        return None

    def finished(self, config: ConfigDict) -> bool:
        """Whether it holds the finished run of this config and this code."""
        return bool(self._glob("claims.json")) and self.disagreement(config) is None


FOREIGN = "holds files of something else"
OTHER_CODE = "holds a run of other code (jdiv or the experiment has changed since)"
_PLACES, _SCHEMA = "_places", "_schema"  # names that no result has


def _points(group: int) -> str:
    return f"points-{group:04}"


def _differing(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of the fields in which two nested dicts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in {**a, **b}:
            below = f"{path}.{name}" if path else name
            yield from _differing(a.get(name), b.get(name), below)
    elif a != b:
        yield path
