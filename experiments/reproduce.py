"""Runs all experiments and writes the report.

    python -m experiments.reproduce [--scale=smoke|quick|full] [--only=area,area/name]
        [--workdir=DIR] [--overwrite] [--processes=N]

What is finished is not run again, what was interrupted goes on; results of older code are replaced.
On a CPU each core has a process that takes one experiment after the other: most of the time goes
into compiling, which keeps one core busy.
Exit code 0: all claims are supported and all controls refute theirs; 1: not so, or an experiment
failed; 2: refused, with the reason in one line; 3: an error that was not foreseen, or another host
was lost; 130 and 143: interrupted, asked to stop.
"""

import concurrent.futures.process
import gc
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict

from configs import defaults
from experiments import run
from experiments.lab import claims, commands, files, hosts, records, report, settings
from experiments.lab.job import Job, from_config
from jdiv import checks, parallel


class Planned(NamedTuple):
    """A job, and whether what its folder holds is computed anew."""

    job: Job
    overwrite: bool


def main() -> int:
    """The command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(commands.usage(__doc__))
        return 0

    def body() -> int:
        values = flags.FlagValues()
        commands.shared_flags(values)
        flags.DEFINE_string("scale", "quick", "How large.", flag_values=values)
        flags.DEFINE_list("only", [], "Areas, or experiments as area/name.", flag_values=values)
        flags.DEFINE_integer("processes", None, "Experiments at once; one for each core of a CPU.",
                             1, flag_values=values)  # fmt: skip
        commands.parse(values, sys.argv)
        root = files.place(values.workdir or "runs")
        plan = planned(values.scale, values.only, root, overwrite=values.overwrite)
        commands.set_up(values)
        hosts.agree([one.job.config for one in plan], [one.job.code for one in plan])
        alone = values.distributed or jax.default_backend() != "cpu"
        left = sum(not one.job.folder.finished(one.job.config, one.job.code) for one in plan)
        processes = min(values.processes or (1 if alone else values.cpu_devices), max(left, 1))
        with commands.stopping_on_signal() as stopping:
            if processes == 1:
                outcomes = one_by_one(plan, stopping)
            else:
                devices = max(1, values.cpu_devices // processes)
                outcomes = side_by_side(plan, processes, devices, stopping)
            return reproduce(outcomes, run.scaled(root, values.scale))

    return commands.guarded(body)


def planned(
    scale: str, only: list[str], root: files.Path, *, overwrite: bool = False
) -> list[Planned]:
    """What has to be run; everything that would be refused is refused now."""
    if scale not in defaults.SCALES:
        raise records.Refused(f"--scale must be one of {', '.join(defaults.SCALES)}, got {scale!r}")
    plan = []
    for path in chosen(only):
        config = settings.load(f"{path}:{scale}")
        planned = from_config(config, run.folder_of(root, config))
        conflict = planned.folder.disagreement(config, planned.code)
        stale = conflict == records.OTHER_CODE
        if conflict and not stale and not overwrite:
            raise records.Refused(f"workdir {planned.folder.path} {records.advised(conflict)}")
        plan.append(Planned(planned, overwrite or stale))
    return plan


def chosen(only: list[str]) -> list[pathlib.Path]:
    """The configs of these areas and experiments, all without a choice."""
    stems = {
        str(path.relative_to(records.ROOT / "configs").with_suffix("")): path
        for path in commands.configs()
    }
    areas = {stem.partition("/")[0] for stem in stems}
    for name in only:
        try:
            checks.known("--only", name, [*sorted(areas), *stems])
        except ValueError as error:
            raise records.Refused(str(error)) from error
    return [
        path
        for stem, path in stems.items()
        if not only or stem in only or stem.partition("/")[0] in only
    ]


Outcome = tuple[Job, run.Entries | None]
"""A job and its claims; None if it failed, which has been said."""


def one_by_one(plan: list[Planned], stopping: Callable[[], bool]) -> Iterator[Outcome]:
    """Runs the plan in this process."""
    for job, overwrite in plan:
        yield job, _claims_of(lambda job=job: job, overwrite, stopping)


def side_by_side(
    plan: list[Planned], processes: int, devices: int, stopping: Callable[[], bool]
) -> Iterator[Outcome]:
    """Runs the plan in as many processes, each with so many devices; in the order they finish."""
    context = multiprocessing.get_context("spawn")
    asked = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, _begin, (devices, asked))
    try:
        # A module cannot be sent, but what it is found by.
        left = {
            pool.submit(_claims_there, job.config, os.fspath(job.folder.path), overwrite): job
            for job, overwrite in plan
        }
        while left:
            done, _ = concurrent.futures.wait(left, 0.2, concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield left.pop(future), future.result()
            if stopping():
                raise records.Stopped
    except concurrent.futures.process.BrokenProcessPool as error:
        raise records.Refused(
            "a process was killed, perhaps for want of memory; the same command goes on from here"
        ) from error
    finally:
        asked.set()
        pool.shutdown(cancel_futures=True)


def _begin(devices: int, asked: Any) -> None:
    """Of a process of `side_by_side`: it stops when it is asked to and ends with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    commands.use_cpu(devices)
    global _asked
    _asked = asked


def _claims_there(config: ConfigDict, path: str, overwrite: bool) -> run.Entries | None:
    return _claims_of(lambda: from_config(config, files.place(path)), overwrite, _asked.is_set)


def _claims_of(
    found: Callable[[], Job], overwrite: bool, stopping: Callable[[], bool]
) -> run.Entries | None:
    """The claims of an experiment, None if it failed; what concerns all of them is raised."""
    try:
        job = found()
        scale = "" if job.config.scale == "quick" else f":{job.config.scale}"
        command = f"python -m experiments.run --config=configs/{job.config.experiment}.py{scale}"
        entries = run.execute(job, command, overwrite=overwrite, stopping=stopping)
        _forget(job.experiment)
        return entries
    except (records.Stopped, OSError, KeyboardInterrupt):
        raise
    except records.Refused as error:
        if parallel.hosts() > 1:  # the others have to hear of it
            raise
        print(error, file=sys.stderr)
        return None
    except run.Unmade:  # what was raised has been said
        return None
    except Exception:
        if parallel.hosts() > 1:  # the others are in the middle of it
            raise
        traceback.print_exc()
        return None


def _forget(experiment: ModuleType) -> None:
    """Frees programs and what functions of an experiment remember, such as a language model.

    The next experiment needs neither, and all of them together took a dozen gigabytes.
    """
    for found in vars(experiment).values():
        if callable(getattr(found, "cache_clear", None)):
            found.cache_clear()
    jax.clear_caches()
    gc.collect()


def reproduce(outcomes: Iterable[Outcome], root: files.Path) -> int:
    """Says what came out, and writes the report; the exit code."""
    start = time.monotonic()
    entries, failed, folders = [], [], []
    for job, found in outcomes:
        if found is None:
            failed.append(job.config.experiment)
            continue
        print(f"{job.config.experiment}\n{run.summary(found)}", flush=True)
        entries += found
        folders.append(job.folder.path)
    if parallel.host() > 0:
        return 0
    page = report.write(root, sorted(folders))
    unsound = [entry["name"] for entry in entries if not claims.sound(entry)]
    print(f"{len(entries) - len(unsound)} of {len(entries)} claims supported, with their controls")
    for what, names in (("not supported", unsound), ("failed", failed)):
        if names:
            print(f"{what.upper()}: {', '.join(names)}")
    print(f"{page} after {time.monotonic() - start:.0f} s")
    return 1 if unsound or failed else 0


if __name__ == "__main__":
    sys.exit(main())
