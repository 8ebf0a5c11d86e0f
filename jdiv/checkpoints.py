"""Checkpoints that are noticed when they are damaged: the only file that imports orbax.

orbax restores a flipped byte without a word and takes an empty folder for the newest step. So every
checkpoint carries a hash of its files, it appears under its number only when it is whole, and
`restore` goes back to the newest one whose hash is right. What is saved are NumPy arrays, by one
host: orbax refuses what pmap returns when there are several.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

_HASH = "sha256"


class Unreadable(RuntimeError):
    """A checkpoint that cannot be used; or there are some, and none can."""


def save(folder: pathlib.Path, step: int, arrays: Mapping[str, np.ndarray], *, keep: int) -> None:
    """Saves the arrays of a step, then deletes all but the `keep` newest steps.

    To be called by one host only. Arrays must not be empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for half_written in folder.glob("*.saving*"):
        shutil.rmtree(half_written)
    saving, path = folder / f"{step}.saving", folder / str(step)
    tree = {name: np.asarray(x) for name, x in arrays.items()}
    _reserve(folder / f"{step}.reserve", 2**16 + sum(2 * x.nbytes for x in tree.values()))
    with _orbax() as orbax:
        orbax.save(saving.absolute(), tree)
    (saving / _HASH).write_text(_hash(saving))
    shutil.rmtree(path, ignore_errors=True)
    saving.rename(path)
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / str(old))


def restore(
    folder: pathlib.Path, *, report: Callable[[str], Any] = warnings.warn
) -> tuple[int, dict[str, np.ndarray]] | None:
    """Step and arrays of the newest checkpoint that is whole; None if there never was one.

    Damaged ones are reported and put aside as `<step>.unreadable`. If there are only such, raises
    `Unreadable`: starting over has to be asked for.
    """
    for step in reversed(steps(folder)):
        try:
            return step, load(folder, step)
        except Unreadable as error:
            report(f"{error}; skipped")
            path = folder / str(step)
            path.replace(_free(path.with_name(f"{step}.unreadable")))
    aside = sorted(path.name for path in folder.glob("*.unreadable*"))
    if aside:
        raise Unreadable(f"no readable checkpoint is left in {folder}, only {', '.join(aside)}")
    return None


def load(folder: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """The arrays of one step, or `Unreadable` with the reason."""
    path = folder / str(step)
    if not (path / _HASH).is_file():
        raise Unreadable(f"checkpoint {path} is incomplete: it has no checksum")
    if (path / _HASH).read_bytes() != _hash(path).encode():
        raise Unreadable(f"checkpoint {path} is damaged: its checksum is wrong")
    with _orbax() as orbax:
        return {name: np.asarray(x) for name, x in orbax.restore(path.absolute()).items()}


def steps(folder: pathlib.Path) -> list[int]:
    """The steps of a folder in order, whole or not."""
    return sorted(
        int(path.name) for path in folder.glob("*") if re.fullmatch("0|[1-9][0-9]*", path.name)
    )


def _hash(path: pathlib.Path) -> str:
    """SHA-256 of the names and contents of all files of a checkpoint but its hash."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file != path / _HASH:
            contents = file.read_bytes()
            digest.update(f"{file.relative_to(path).as_posix()} {len(contents)} ".encode())
            digest.update(contents)
    return digest.hexdigest()


def _free(path: pathlib.Path) -> pathlib.Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _reserve(path: pathlib.Path, size: int) -> None:
    """Fails like any write if so much does not fit; orbax would fail in ten threads, each aloud."""
    try:
        with path.open("wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path.with_suffix(""))) from error
    finally:
        path.unlink(missing_ok=True)


def _orbax():
    """A checkpointer without barriers between hosts; v1 of orbax's API has no such."""
    import orbax.checkpoint as ocp  # takes two seconds, paid by those who need it

    host = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix="one-host"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
