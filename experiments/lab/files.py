"""Files that appear whole or not at all, on a disk or in a bucket, each with a checksum.

A folder keeps the SHA-256 of its files in `.sha256.json`, and what is read is checked against it. A
file that is replaced has both sums until the next time, so that a process may be killed anywhere in
between. A file without its sum, or with another one, is `Damaged`: whoever reads it says so, and
computes it anew or refuses.
"""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}
"""Schemes of buckets that a folder may be in, and the packages that read and write them."""
SUMS = ".sha256.json"
WRITING = ".writing-"
LOCK = ".lock"

Path = pathlib.Path | epath.Path


class Refused(Exception):
    """What a user asked for cannot be done; the message is one line."""


class Damaged(Refused):
    """A file is not what was written."""


def place(text: str | os.PathLike) -> Path:
    """A folder on a disk, or in a bucket: gs://bucket/folder, s3://bucket/folder.

    >>> place("ftp://host/folder")
    Traceback (most recent call last):
    experiments.lab.files.Refused: workdir ftp://host/folder: only gs:// and s3:// are buckets
    """
    text = os.fspath(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return pathlib.Path(text)
    if scheme not in BUCKETS:
        known = " and ".join(f"{name}://" for name in BUCKETS)
        raise Refused(f"workdir {text}: only {known} are buckets")
    if not rest.partition("/")[0]:
        raise Refused(f"workdir {text} names no bucket")
    if importlib.util.find_spec(BUCKETS[scheme]) is None:
        raise Refused(f"workdir {text} needs a package: pip install {BUCKETS[scheme]}")
    import fsspec

    # What other processes write has to be seen.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    path = epath.Path(text)
    try:
        path.exists()
    except Exception as error:  # of the bucket's package, each has its own
        raise Refused(f"workdir {text} cannot be reached: {_line(error)}") from error
    return path


def remote(path: Path) -> bool:
    """Whether it is in a bucket."""
    return not isinstance(path, pathlib.Path)


# ---------------------------------------------------------------------------------- whole or not


def write(path: Path, contents: bytes) -> None:
    """Replaces a file at once: by way of a temporary one beside it, or of the bucket's own put."""
    if remote(path):
        with _errors_of(path):
            path.write_bytes(contents)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=WRITING, suffix=path.suffix, dir=path.parent)
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> bytes | None:
    """The contents of a file, None if there is no such."""
    try:
        with _errors_of(path):
            if remote(path):
                system, name = _in_bucket(path)
                return system.cat_file(name)  # epath would ask for its size first
            return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _in_bucket(path: epath.Path) -> tuple[Any, str]:
    """The file system of a bucket, and the path's name there."""
    import fsspec

    return fsspec.core.url_to_fs(os.fspath(path))


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Within, whatever the package of a bucket raises is an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{path}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def as_json(value: Any) -> bytes:
    """JSON that strict readers take: NaN is an error here."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


# ------------------------------------------------------------------------------------- checksums


def keep(path: Path, contents: bytes) -> None:
    """Writes a file whose checksum its folder knows, the one that it had included."""
    sums = _sums(path.parent)
    new = hashlib.sha256(contents).hexdigest()
    sums[path.name] = [*sums.get(path.name, [])[-1:], new]
    write(path.parent / SUMS, as_json(sums))
    write(path, contents)


def kept(path: Path) -> bytes | None:
    """The contents of a file, None if there is no such, `Damaged` if they are not what was kept."""
    return _checked(path, _sums(path.parent))


def _checked(path: Path, sums: dict[str, list[str]]) -> bytes | None:
    contents = read(path)
    if contents is None:
        return None
    if path.name not in sums:
        raise Damaged(f"{path} has no checksum")
    if hashlib.sha256(contents).hexdigest() not in sums[path.name]:
        raise Damaged(f"{path} is damaged: its checksum is wrong")
    return contents


def faults(folder: Path, expected: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """The files of a folder that are damaged or missing, and what is wrong with each.

    Those of the expected ones that are there have to have a checksum.
    """
    sums = _sums(folder)
    for name in sorted({*sums, *expected}):
        try:
            missing = _checked(folder / name, sums) is None
        except Damaged as error:
            yield name, str(error)
            continue
        if missing and name in sums:
            yield name, f"{folder / name} is missing"


class Journal:
    """A file that grows by whole lines, with its checksum after each.

    On a disk lines are appended: what is written is linear in what is noted. A process that is
    killed may leave a part of a line, which is cut off (`cut_torn_line`). A bucket has no append:
    there the file is written anew, but only every `EVERY` seconds and at `flush`; who is stopped
    loses the lines since.
    """

    def __init__(self, path: Path):
        self.path = path
        cut_torn_line(path)
        self._lines = [kept(path) or b""]
        self._digest = hashlib.sha256(self._lines[0])
        self._written = time.monotonic()

    def add(self, line: bytes) -> None:
        """One more line."""
        before = self._digest.hexdigest()
        self._digest.update(line)
        if remote(self.path):
            self._lines.append(line)
            if time.monotonic() - self._written >= EVERY:
                self.flush()
            return
        sums = _sums(self.path.parent) | {self.path.name: [before, self._digest.hexdigest()]}
        write(self.path.parent / SUMS, as_json(sums))
        append(self.path, line)

    def flush(self) -> None:
        """Writes what a bucket does not have yet."""
        if len(self._lines) > 1:
            self._lines = [b"".join(self._lines)]
            keep(self.path, self._lines[0])
            self._written = time.monotonic()


EVERY = 60.0
"""Seconds in which a journal in a bucket is written once at most."""


def append(path: pathlib.Path, line: bytes) -> None:
    """Adds to the end of a file on a disk."""
    try:
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def cut_torn_line(path: Path) -> None:
    """Cuts off the end of a journal that is no whole line, if the lines before it are whole."""
    contents = read(path)
    if contents is None or remote(path):
        return
    whole = contents[: contents.rfind(b"\n") + 1]
    sums = _sums(path.parent).get(path.name, [])
    if whole != contents and hashlib.sha256(whole).hexdigest() in sums:
        os.truncate(path, len(whole))


def delete(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it."""
    if remote(path):
        with contextlib.suppress(FileNotFoundError), _errors_of(path):
            system, name = _in_bucket(path)
            system.rm(name, recursive=True)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    sums = _sums(path.parent)
    if sums.pop(path.name, None):
        write(path.parent / SUMS, as_json(sums))


def _sums(folder: Path) -> dict[str, list[str]]:
    """The checksums of a folder by file; those of a file that cannot be read are none."""
    try:
        sums = json.loads(read(folder / SUMS) or b"{}")
    except ValueError:
        return {}
    return (
        {name: found for name, found in sums.items() if isinstance(found, list)}
        if isinstance(sums, dict)
        else {}
    )


# ------------------------------------------------------------------------------------ for one alone

LEASE = 60.0
"""Seconds after which the lock of a bucket that was not renewed belongs to a process that died."""


def locked(
    folder: Path, report: Callable[[str], Any] = print
) -> contextlib.AbstractContextManager[None]:
    """The folder for this process alone; refused if another has it.

    On a disk the lock ends with its process. In a bucket it is an object with host, process and
    time that is renewed four times in `LEASE`. Who finds one of a process of the same host that has
    died takes it at once; else it waits until the lock is renewed, and takes it if that does not
    happen. A process whose lock was taken stops, as if it were asked to.
    """
    return _leased(folder, report) if remote(folder) else _flocked(folder)


@contextlib.contextmanager
def _flocked(folder: pathlib.Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise Refused(f"workdir {folder} is not writable: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"workdir {folder} is in use by another process") from None
        for half_written in folder.rglob(f"{WRITING}*"):  # by a process that was killed
            half_written.unlink()
        yield
    (folder / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def _leased(folder: epath.Path, report: Callable[[str], Any]) -> Iterator[None]:
    path, process = folder / LOCK, uuid.uuid4().hex
    try:
        while not _created(path, _lock(process)):
            _wait_for_its_end(path, folder, report)
    except OSError as error:
        raise Refused(f"workdir {folder} is not writable: {_line(error)}") from error
    done = threading.Event()

    def renew() -> None:
        while not done.wait(LEASE / 4):
            with contextlib.suppress(OSError):  # tried again the next time
                if _holder(read(path)).get("process") != process:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                write(path, _lock(process))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if _holder(read(path)).get("process") == process:
            path.unlink(missing_ok=True)


def _lock(process: str) -> bytes:
    """What a process writes into its lock."""
    time = datetime.datetime.now(datetime.UTC).isoformat()
    who = {"host": socket.gethostname(), "pid": os.getpid(), "process": process, "time": time}
    return as_json(who)


def _holder(contents: bytes | None) -> dict[str, Any]:
    """What stands in a lock; nothing if it cannot be read."""
    try:
        found = json.loads(contents or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _created(path: epath.Path, contents: bytes) -> bool:
    """Whether the lock was made by us: a bucket makes an object that is not there only once."""
    with _errors_of(path):
        system, name = _in_bucket(path)
        try:
            system.pipe_file(name, contents, mode="create")
        except FileExistsError:
            return False
    return True


def _wait_for_its_end(path: epath.Path, folder: epath.Path, report: Callable[[str], Any]) -> None:
    """Takes the lock of a process that has died away; refuses if it is renewed."""
    found = read(path)
    holder = _holder(found)
    who = f"process {holder.get('pid', '?')} of {holder.get('host', 'another host')}"
    if found is not None and not _dead(holder):
        report(f"{folder} is locked by {who}; it is taken if that is silent for {LEASE:.0f} s")
        end = time.monotonic() + LEASE
        while time.monotonic() < end and read(path) == found:
            time.sleep(LEASE / 60)
    if (now := read(path)) == found:
        path.unlink(missing_ok=True)
    elif now is not None:
        raise Refused(f"workdir {folder} is in use by {who}")


def _dead(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lock was a process of this host that is not there any more."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
