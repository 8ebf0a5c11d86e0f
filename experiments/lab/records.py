"""The folder of a run: what was run, what came out. It belongs to one config and one code."""

import contextlib
import datetime
import importlib.metadata
import io
import json
import pathlib
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from ml_collections import ConfigDict

from experiments.lab import files
from experiments.lab.files import Refused
from experiments.lab.source import ROOT, Code
from jdiv import checkpoints, parallel

PACKAGES = (
    "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "ml_collections", "xarray",
    "matplotlib",
)  # fmt: skip


class Stopped(Exception):
    """The run was asked to stop; what was done is kept."""


def write_text(path: files.Path, text: str) -> None:
    """Text as UTF-8."""
    files.write(path, text.encode())


# ------------------------------------------------------------------------------------ what was run


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON has it: tuples are lists."""
    return json.loads(config.to_json_best_effort())


def environment(code: Code, command: str) -> dict[str, Any]:
    """Versions, devices, random numbers, commit, code and command."""
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
        "random": random_numbers(),
        "commit": _commit(),
        "code": code._asdict(),
    }


def random_numbers() -> dict[str, Any]:
    """The settings of JAX that decide what comes from a key."""
    names = ("jax_default_prng_impl", "jax_threefry_partitionable")
    return {name: getattr(jax.config, name) for name in names}


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
    What is read is checked against its checksum; a file that is damaged raises `files.Damaged`.
    """

    def __init__(self, path: files.Path):
        self.path = path
        self._journal: files.Journal | None = None

    @property
    def _first(self) -> bool:
        return parallel.host() == 0

    def below(self, name: str) -> "Folder":
        """A folder within this one."""
        return Folder(self.path / name)

    def discard(self, *patterns: str) -> None:
        """Deletes files and folders whose names match, such as `points-*`."""
        for path in [path for pattern in patterns for path in self._glob(pattern)]:
            files.delete(path)

    def _glob(self, pattern: str) -> list[files.Path]:
        return sorted(self.path.glob(pattern)) if self._first else []

    # ------------------------------------------------------------------------------------- files

    def _kept(self, name: str) -> bytes | None:
        return files.kept(self.path / name) if self._first else None

    def _keep(self, name: str, contents: bytes) -> None:
        if self._first:
            files.keep(self.path / name, contents)

    def has(self, name: str) -> bool:
        """Whether a file is there, for all hosts alike."""
        return parallel.on_any_host(bool(self._glob(name)))

    def read(self, name: str) -> Any:
        """The value of `<name>.json`, or None."""
        contents = self._kept(f"{name}.json")
        return None if contents is None else json.loads(contents)

    def write(self, name: str, value: Any) -> None:
        """Writes `<name>.json`."""
        self._keep(f"{name}.json", files.as_json(value))

    def note(self, **entry: Any) -> None:
        """One more line of the journal metrics.jsonl, with the time in front."""
        if self._first:
            self._journal = self._journal or files.Journal(self.path / JOURNAL)
            self._journal.add((json.dumps({"time": now(), **entry}) + "\n").encode())

    def _close_journal(self) -> None:
        """All lines are in the folder then, also in a bucket."""
        if self._journal:
            self._journal.flush()
        self._journal = None

    def results(self) -> xr.Dataset | None:
        """The dataset, in memory; None if it is not there."""
        try:
            contents = self._kept("results.nc")
        except files.Damaged as error:
            raise Refused(f"{error}; delete it to compute it anew") from error
        if contents is None:
            return None
        return xr.load_dataset(io.BytesIO(contents), engine="h5netcdf")

    def save_results(self, results: xr.Dataset | None) -> None:
        """The dataset as netCDF; the pieces it was made of are deleted."""
        self._close_journal()
        if self._first:
            # By way of memory: HDF5 crashes the process when a disk is full.
            contents = io.BytesIO()
            results.to_netcdf(contents, engine="h5netcdf")
            self._keep("results.nc", contents.getvalue())
        self.discard(*PIECES)

    def save_pictures(
        self, pictures: Mapping[str, Any], failed: Callable[[str, Exception], Any]
    ) -> None:
        """Every figure as PNG and PDF, and their captions, which come last.

        A figure that raises an error when it is drawn is left out, after `failed(name, error)`.
        """
        import matplotlib.pyplot as plt

        self.discard("figures")
        folder, captions = self.below("figures"), {}
        for name, picture in pictures.items():
            drawn = {suffix: io.BytesIO() for suffix in ("png", "pdf")}
            try:
                for suffix, contents in drawn.items():
                    picture.figure.savefig(contents, format=suffix)
                    picture.figure.set_layout_engine("none")  # the first has laid it out for both
            except Exception as error:
                failed(name, error)
                continue
            finally:
                plt.close(picture.figure)
            for suffix, contents in drawn.items():
                folder._keep(f"{name}.{suffix}", contents.getvalue())
            captions[name] = picture.caption
        folder.write("captions", captions)

    def keep_files(self, name: str, write: Callable[[pathlib.Path], Any]) -> None:
        """A folder of whatever `write` writes into a local one."""
        if not self._first:
            return
        with tempfile.TemporaryDirectory() as local:
            write(pathlib.Path(local))
            for path in sorted(pathlib.Path(local).rglob("*")):
                if path.is_file():
                    below = path.relative_to(local).as_posix()
                    files.write(self.path / name / below, path.read_bytes())

    def keep_only(self, name: str, wanted: Collection[str]) -> None:
        """Deletes what is in the folder of this name, but for these."""
        self.discard(*(f"{name}/{path.name}" for path in self._glob(f"{name}/*")
                       if path.name not in wanted))  # fmt: skip

    # ------------------------------------------------------------------- finished points, training

    def save_points(
        self, group: int, places: np.ndarray, arrays: Mapping[str, np.ndarray], schema: str
    ) -> None:
        """Finished points of a group of a sweep, as npz."""
        if self._first:
            contents = io.BytesIO()
            np.savez(contents, **{_PLACES: places, _SCHEMA: np.array(schema), **arrays})
            self.below(_points(group))._keep(f"{places[0]:08}.npz", contents.getvalue())

    def points(self, group: int, report: Callable[[str], Any]) -> Iterator[Points]:
        """What is kept of a group; damaged files are reported and deleted."""
        for path in self._glob(f"{_points(group)}/*.npz"):
            try:
                contents = files.kept(path)
            except files.Damaged as error:
                report(f"{error}; its points are computed again")
                files.delete(path)
                continue
            with np.load(io.BytesIO(contents)) as stored:
                arrays = dict(stored)
            yield Points(arrays.pop(_PLACES), arrays.pop(_SCHEMA).item(), arrays)

    def save_checkpoint(
        self, name: str, step: int, arrays: Mapping[str, np.ndarray], *, keep: int
    ) -> None:
        """The state of a training loop after so many steps."""
        folder = self.path / "checkpoints" / name
        if not self._first:
            return
        if files.remote(folder):
            _save_in_bucket(folder, step, arrays, keep)
        else:
            checkpoints.save(folder, step, arrays, keep=keep)

    def restore(self, name: str, report: Callable[[str], Any]) -> tuple[int, dict[str, np.ndarray]]:
        """Step and arrays of the newest checkpoint; `(0, {})` if there is none."""
        folder = self.path / "checkpoints" / name
        if not self._first:
            return 0, {}
        found = (
            _restore_from_bucket(folder, report)
            if files.remote(folder)
            else checkpoints.restore(folder, report=report)
        )
        return found or (0, {})

    # ----------------------------------------------------------------------- whose folder it is

    @contextlib.contextmanager
    def opened(
        self,
        config: ConfigDict,
        code: Code,
        *,
        overwrite: bool,
        report: Callable[[str], Any] = lambda line: None,
    ) -> Iterator[None]:
        """The folder for this process alone, with the config in it.

        Refuses a folder of another config or of other code, unless it may be overwritten; if the
        first host refuses it, all hosts stop. Damage of what can be made anew is reported.
        """
        with contextlib.ExitStack() as stack:
            refused = None
            if self._first:
                try:
                    stack.enter_context(files.locked(self.path, report))
                    self._make_ready(config, code, overwrite, report)
                except Refused as error:
                    refused = error
            if parallel.on_any_host(refused is not None):
                raise refused or Refused("refused by the first host")
            yield
            self._close_journal()  # not by a process that lost its lock

    def _make_ready(
        self, config: ConfigDict, code: Code, overwrite: bool, report: Callable[[str], Any]
    ) -> None:
        self._journal = None
        conflict = self.disagreement(config, code)
        if conflict and (conflict.startswith(FOREIGN) or not overwrite):
            raise Refused(f"workdir {self.path} {advised(conflict)}")
        if overwrite:
            self.discard(files.SUMS, "[!.]*")
        self._mend(report)
        self.write("config", as_dict(config))

    def _mend(self, report: Callable[[str], Any]) -> None:
        """Reports what is damaged or missing and clears the way to make it anew.

        Damaged results stay: they are refused where they are read.
        """
        for folder in (self.path, *self._glob("controls/*")):
            files.cut_torn_line(folder / JOURNAL)
        for folder, name, fault in list(self._faults()):
            path = self.path / name
            if folder != self.path:
                path = folder
            elif name == "results.nc" and path.exists():
                continue
            report(f"{fault}; it is made anew")
            files.delete(path)
            if name == JOURNAL:
                self.note(fault=fault)
        if not self._glob("results.nc"):
            self.discard("claims.json", "figures")

    def _faults(self) -> Iterator[tuple[files.Path, str, str]]:
        """Folder, name and fault of the files of a run that are not whole."""
        for folder in (self.path, self.path / "figures", *self._glob("controls/*")):
            for name, fault in files.faults(folder, FILES):
                yield folder, name, fault

    def disagreement(self, config: ConfigDict, code: Code) -> str | None:
        """Why the contents are not of this config and this code; None if they are."""
        try:
            there, made_by = self.read("config"), self.read("environment")
        except files.Damaged as error:
            return f"holds a run of which nothing is known: {error}"
        if there is None:
            foreign = [path.name for path in self._glob("[!.]*")]
            return f"{FOREIGN} ({', '.join(foreign[:3])})" if foreign else None
        differing = sorted(_differing(there, as_dict(config)))
        if differing:
            return f"holds a run of another config (they differ in {', '.join(differing[:5])})"
        if made_by is None:
            made = any(map(self._glob, ("results.nc", *PIECES)))
            return "holds a run of unknown code" if made else None
        if made_by["code"]["numbers"] != code.numbers:
            return OTHER_CODE
        if differing := sorted(_differing(made_by["random"], random_numbers())):
            return f"holds a run with other random numbers (they differ in {', '.join(differing)})"
        return None

    def outdated(self, code: Code) -> bool:
        """Whether claims and figures are of other code, or one of them could not be made."""
        made_by = self.read("environment") or {}
        return bool(made_by.get("raised")) or made_by.get("code") != code._asdict()

    def finished(self, config: ConfigDict, code: Code) -> bool:
        """Whether it holds the finished run of this config and this code, whole."""
        parts = ("results.nc", "claims.json", "figures/captions.json")
        return (
            all(self._glob(part) for part in parts)
            and self.disagreement(config, code) is None
            and not self.outdated(code)
            and not any(self._faults())
        )


FOREIGN = "holds files of something else"
OTHER_CODE = "holds a run of other code (jdiv or the experiment has changed since)"
JOURNAL = "metrics.jsonl"
PIECES = ("points-*", "checkpoints")
"""What results are made of."""
FILES = ("results.nc", "claims.json", "config.json", "environment.json", "captions.json", JOURNAL)
_PLACES, _SCHEMA = "_places", "_schema"  # names that no result has


def _points(group: int) -> str:
    return f"points-{group:04}"


def advised(conflict: str) -> str:
    """A conflict of a folder, and what can be done about it."""
    if conflict.startswith(FOREIGN):
        return conflict
    return f"{conflict}; --workdir=NEW keeps both, --overwrite computes it anew"


def _save_in_bucket(
    folder: files.Path, step: int, arrays: Mapping[str, np.ndarray], keep: int
) -> None:
    """A checkpoint as one object, which a bucket has whole or not at all."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as local:
        checkpoints.save(pathlib.Path(local), step, arrays, keep=1)
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(pathlib.Path(local) / str(step), str(step))
    files.keep(folder / f"{step}.tar", packed.getvalue())
    for old in _steps_in_bucket(folder)[:-keep]:
        files.delete(folder / f"{old}.tar")


def _restore_from_bucket(
    folder: files.Path, report: Callable[[str], Any]
) -> tuple[int, dict[str, np.ndarray]] | None:
    """Like `checkpoints.restore`."""
    steps = _steps_in_bucket(folder)
    for step in reversed(steps):
        try:
            packed = files.kept(folder / f"{step}.tar")
        except files.Damaged as error:
            report(f"{error}; skipped")
            continue
        with tempfile.TemporaryDirectory() as local:
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(local, filter="data")
            return step, checkpoints.load(pathlib.Path(local), step)
    if steps:
        raise checkpoints.Unreadable(f"no readable checkpoint is left in {folder}")
    return None


def _steps_in_bucket(folder: files.Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.tar") if path.stem.isdecimal())


def _differing(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of the fields in which two nested dicts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in {**a, **b}:
            below = f"{path}.{name}" if path else name
            yield from _differing(a.get(name), b.get(name), below)
    elif a != b:
        yield path
