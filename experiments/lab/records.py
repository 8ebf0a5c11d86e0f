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
from typing import Any

import jax
import numpy as np
import xarray as xr
from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = (
    "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "ml_collections", "xarray",
    "matplotlib",
)  # fmt: skip


_WRITING = ".writing-"


class Refused(Exception):
    """What a user asked for cannot be done; the message is one line."""


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


class Journal:
    """A file of JSON lines that is replaced as a whole with every line."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.text = path.read_text(encoding="utf-8") if path.exists() else ""

    def add(self, **entry: Any) -> None:
        """One more line, with the time in front."""
        self.text += json.dumps({"time": now(), **entry}) + "\n"
        write_text(self.path, self.text)


# ------------------------------------------------------------------------------- arrays of a sweep


def save_points(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Finished points of a sweep, as npz, whose every array has a checksum."""
    path.parent.mkdir(exist_ok=True)

    def produce(temporary: pathlib.Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write(path, produce)


def load_points(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays; a damaged file is a ValueError."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def save_results(path: pathlib.Path, results: xr.Dataset) -> None:
    """The dataset as netCDF."""
    # By way of memory: HDF5 crashes the process when a disk is full.
    contents = io.BytesIO()
    results.to_netcdf(contents, engine="h5netcdf")
    write(path, lambda temporary: temporary.write_bytes(contents.getbuffer()))


def load_results(path: pathlib.Path) -> xr.Dataset:
    """The dataset, in memory."""
    try:
        return xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{path} cannot be read: {error}; delete it to compute it anew") from error


def save_pictures(folder: pathlib.Path, pictures: Mapping[str, Any]) -> None:
    """Every figure as PNG and PDF, and their captions."""
    import matplotlib.pyplot as plt

    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        for suffix in ("png", "pdf"):
            write(folder / f"{name}.{suffix}", picture.figure.savefig)
        plt.close(picture.figure)
    captions = {name: picture.caption for name, picture in pictures.items()}
    write_json(folder / "captions.json", captions)


# ------------------------------------------------------------------------------------ what was run


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON has it: tuples are lists."""
    return json.loads(config.to_json_best_effort())


def code(experiment: str) -> str:
    """A hash of the code that makes the numbers of an experiment: the library and its module."""
    files = [*ROOT.glob("jdiv/**/*.py"), ROOT / "experiments" / "lab" / "engine.py"]
    files.append(ROOT / "experiments" / f"{experiment}.py")
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


@contextlib.contextmanager
def opened(folder: pathlib.Path, config: ConfigDict, *, overwrite: bool) -> Iterator[None]:
    """The folder of a run, for this process alone, with the config in it.

    Refuses a folder of another config or of other code, unless it may be overwritten.
    """
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
        conflict = disagreement(folder, config)
        if conflict and conflict.startswith(FOREIGN):
            raise Refused(f"workdir {folder} {conflict}")
        if conflict and not overwrite:
            raise Refused(f"workdir {folder} {conflict}; --overwrite computes it anew")
        if overwrite:
            _empty(folder)
        for half_written in folder.rglob(f"{_WRITING}*"):  # by a process that was killed
            half_written.unlink()
        write_json(folder / "config.json", as_dict(config))
        yield
    (folder / ".lock").unlink(missing_ok=True)


def disagreement(folder: pathlib.Path, config: ConfigDict) -> str | None:
    """Why a folder's contents are not of this config and this code; None if they are."""
    try:
        there, made_by = (read_json(folder / f"{name}.json") for name in ("config", "environment"))
    except ValueError:
        return "holds files that cannot be read"
    if there is None:
        foreign = sorted(path.name for path in folder.glob("[!.]*"))
        return f"{FOREIGN} ({', '.join(foreign[:3])})" if foreign else None
    differing = sorted(_differing(there, as_dict(config)))
    if differing:
        return f"holds a run of another config (they differ in {', '.join(differing[:5])})"
    if made_by is not None and made_by["code"] != code(config.experiment):
        return OTHER_CODE
    return None


FOREIGN = "holds files of something else"
OTHER_CODE = "holds a run of other code (jdiv or the experiment has changed since)"


def finished(folder: pathlib.Path, config: ConfigDict) -> bool:
    """Whether the folder holds the finished run of this config and this code."""
    return (folder / "claims.json").exists() and disagreement(folder, config) is None


def _differing(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of the fields in which two nested dicts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in {**a, **b}:
            below = f"{path}.{name}" if path else name
            yield from _differing(a.get(name), b.get(name), below)
    elif a != b:
        yield path


def _empty(folder: pathlib.Path) -> None:
    for path in folder.glob("[!.]*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
