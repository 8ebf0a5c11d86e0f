"""Runs one experiment: its sweep, figures, claims and controls, into one folder.

    python -m experiments.run --config=configs/<area>/<name>.py[:smoke|quick|full]
        [--config.<field>=<value> ...] [--workdir=DIR] [--overwrite] [--again=claims,figures]

An axis of the sweep is a field too: --config.sweep.beta=0.1,0.3 or --config.sweep.seed=0:64. Any
field with one value becomes an axis by --config.sweep.<field>=<value>,<value>. A claim that needs
values of the config's file that are not swept is not tested, with the reason.

An experiment of one's own may live anywhere: --config=/path/to/my_config.py, whose
config.experiment = "my_experiment" is found in my_experiment.py beside it, in the folder above, or
wherever Python finds it.

DIR may be in a bucket: gs://bucket/folder, s3://bucket/folder. The same command goes on where a
killed one was. Numbers belong to the code that makes them: after a change of claims or figures the
same command judges and draws anew from the results that are there; --again asks for it.

Exit code 0: every claim that was tested is supported and every control refutes its claim; 1: not
so, or a claim or figure raised an error, which leaves results and the others in the folder; 2:
refused, with the reason in one line; 3: an error that was not foreseen, or another host was lost;
130 and 143: interrupted, told to stop.

On many hosts, with --distributed, the same command runs on each. All end with the same code and one
line each, at most a minute after one of them failed, was killed or did not come. The first alone
writes: a run is taken up again only where it finds the folder as it left it. Of what the runtime
says only why it ends is shown, and all of it with TF_CPP_MIN_LOG_LEVEL=0.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Collection
from typing import Any

import xarray as xr
from absl import flags
from ml_collections import ConfigDict

from experiments.lab import (
    claims,
    commands,
    engine,
    files,
    hosts,
    job,
    needs,
    plots,
    records,
    settings,
    sweeps,
)
from experiments.lab.job import Job
from experiments.lab.progress import Progress
from jdiv import checks, parallel

Entries = list[dict[str, Any]]
"""The claims of a run, as in claims.json."""


def main() -> int:
    """The command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(commands.usage(__doc__))
        return 0

    def body() -> int:
        values = flags.FlagValues()
        commands.shared_flags(values)
        flags.DEFINE_list("again", [], "What is made of the results anew: claims, figures.",
                          flag_values=values)  # fmt: skip
        config = settings.configured(sys.argv, values)
        refuse_other_parts(values.again)
        path = files.place(values.workdir or folder_of(pathlib.Path("runs"), config))
        run = job.from_config(config, path, settings.argument(sys.argv))
        commands.set_up(values)
        with commands.stopping_on_signal() as stopping:
            command = commands.command("experiments.run")
            options = {"overwrite": values.overwrite, "again": values.again, "stopping": stopping}
            try:
                entries, code = execute(run, command, **options), 0
            except Unmade as error:
                (entries,), code = error.args, 1
        print(f"{path}\n{summary(entries)}")
        return 1 if any(map(claims.failed, entries)) else code

    return commands.guarded(body)


def refuse_other_parts(again: list[str]) -> None:
    """Refuses what cannot be made again from results."""
    for part in again:
        with settings.refusing():
            checks.known("--again", part, PARTS)


def execute(
    job: Job,
    command: str,
    *,
    overwrite: bool = False,
    again: Collection[str] = (),
    stopping: Callable[[], bool] = lambda: False,
) -> Entries:
    """Computes, judges and draws; the claims, as in claims.json. The rest is in the folder then.

    A finished run is not run again, but for the claims or figures that `again` names, and those
    that other code has made. On hosts other than the first there are no claims. Raises `Unmade` if
    claims or figures raised errors.
    """
    config, folder, code = job.config, job.folder, job.code
    hosts.agree([config], [code])
    progress = Progress(config.experiment, None if parallel.host() == 0 else io.StringIO())
    fresh = overwrite or bool(again)
    if parallel.on_any_host(not fresh and folder.finished(config, code)):
        progress.say(f"finished before, in {folder.path}")
        return folder.read("claims") or []
    raised: list[str] = []

    def failed(what: str, error: Exception) -> None:
        raised.append(f"{what} raised {settings.in_a_line(error)}{_place(error)}")
        progress.say(raised[-1])

    with folder.opened(config, code, overwrite=overwrite, report=progress.say):
        folder.discard(*(PARTS[part] for part in (PARTS if folder.outdated(code) else again)))
        clock = Clock(job, command, progress, computed=folder.has("results.nc"))
        made: engine.Made = {}
        results = compute(job, progress, stopping, made)
        clock.computed(sweeps.size(job.grid))
        judged_before, drawn_before = (folder.has(PARTS[part]) for part in ("claims", "figures"))
        if judged_before:
            entries = folder.read("claims") or []
        else:
            entries = judge(job, results, progress, stopping, made, failed)
        if results is not None and not drawn_before:
            folder.save_pictures(draw(job, results, failed, progress.say), failed)
        progress.close()
        clock.write(seconds=clock.seconds(), raised=raised)
        if not judged_before:
            folder.write("claims", entries)
    if raised:
        raise Unmade(entries)
    return entries


PARTS = {"claims": "claims.json", "figures": "figures/captions.json"}
"""What is made of the results, and the file that is written when it is made."""


class Unmade(Exception):
    """Claims or figures raised errors, which have been said; the other claims are the argument."""


NOT_THEIRS = (OSError, records.Refused, records.Stopped)
"""Errors that are no fault of a claim or figure in which they occur."""


def _place(error: Exception) -> str:
    """` (averaging.py:42)`: where an error was raised, outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    return f" ({pathlib.Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def compute(
    job: Job, progress: Progress, stopping: Callable[[], bool], made: engine.Made | None = None
) -> xr.Dataset | None:
    """The results, from the folder or computed and then kept there; None on other hosts."""
    if job.folder.has("results.nc"):
        job.folder.discard(*records.PIECES)  # of a process that was killed before it did so
        return job.folder.results()
    results = engine.compute(job, progress, stopping, made)
    job.folder.save_results(results)
    return results


def judge(
    job: Job,
    results: xr.Dataset | None,
    progress: Progress,
    stopping: Callable[[], bool],
    made: engine.Made,
    failed: Callable[[str, Exception], Any],
) -> Entries:
    """Every claim with its controls; each rerun that claims ask for is computed once.

    Programs that are made are used again. The reruns stay in the folder, so that claims can be
    judged anew.
    """
    reasons = [(claim, needs.lacking(job, claim)) for claim in job.claims]
    different = {
        str(override): override
        for claim, reason in reasons
        if reason is None
        for override in claim.reruns
    }
    found: dict[str, tuple[Job, xr.Dataset | None]] = {}
    for number, (text, override) in enumerate(different.items()):
        changed = job.changed(override, job.folder)
        changed = dataclasses.replace(
            changed, folder=job.folder.below(f"controls/{_name(changed)}"), control=True
        )
        progress.label = f"{job.config.experiment} control {number + 1} of {len(different)}"
        found[text] = changed, compute(changed, progress, stopping, made)
    progress.label = job.config.experiment
    job.folder.keep_only("controls", [_name(changed) for changed, _ in found.values()])
    if results is None:
        return []
    entries = []
    for claim, reason in reasons:
        try:
            entries.append(
                claims.untested(claim, reason) if reason else judged(job, claim, results, found)
            )
        except NOT_THEIRS:
            raise
        except Exception as error:
            failed(f"claim {claim.name}", error)
            entries.append(claims.untested(claim, f"raised {settings.in_a_line(error)}"))
    return entries


def _name(control: Job) -> str:
    """A folder name for the rerun of a control: what its config is."""
    config = json.dumps(records.as_dict(control.config), sort_keys=True)
    return hashlib.sha256(config.encode()).hexdigest()[:12]


def judged(
    job: Job, claim: claims.Claim, results: xr.Dataset, found: dict[str, tuple[Job, xr.Dataset]]
) -> dict[str, Any]:
    """A claim and its controls, as in claims.json; `found` are results of reruns by override."""
    chosen = needs.chosen(job, claim, results)
    reruns = [found[str(override)] for override in claim.reruns]
    try:
        return claims.record(
            claim,
            claim(chosen, job.config),
            [claim(needs.chosen_of_control(rerun, claim, x), rerun.config) for rerun, x in reruns],
            [claim(chosen, job.config, **arguments) for arguments in claim.wrong],
        )
    except Exception as error:
        if not job.changed_fields:
            raise
        changed = ", ".join(f"config.{name}" for name in job.changed_fields)
        reason = f"cannot be judged with another {changed}: {settings.in_a_line(error)}"
        return claims.untested(claim, reason)


def draw(
    job: Job,
    results: xr.Dataset,
    failed: Callable[[str, Exception], Any],
    say: Callable[[str], Any],
) -> dict[str, plots.Picture]:
    """The pictures of the experiment, in the style of all; for each value of swept fields.

    Captions are about the config as its file has it; of another run they say so.
    """
    import matplotlib

    matplotlib.use("Agg")
    drawn = {}
    other = bool(job.grid != job.own or job.changed_fields)
    with matplotlib.rc_context(plots.STYLE):
        for number, (part, config) in enumerate(job.parts(), 1):
            here = results.sel(part).drop_vars(list(part))
            what = ", ".join(f"{name} = {label}" for name, label in part.items())
            try:
                pictures = job.experiment.figures(config, here)
            except NOT_THEIRS:
                raise
            except Exception as error:
                failed("figures", error)
                continue
            for name, picture in pictures.items():
                if isinstance(picture, str):
                    say(f"figure {name} is left out: {picture}")
                    continue
                caption = picture.caption + f" Here {what}." * bool(part)
                caption += " (Said of the config as its file has it.)" * other
                drawn[name + f"_{number}" * bool(part)] = picture._replace(caption=caption)
    return drawn


class Clock:
    """The run's environment.json, with the time that all its runs took together."""

    def __init__(self, job: Job, command: str, progress: Progress, *, computed: bool):
        self.folder, self.progress = job.folder, progress
        self.start = time.monotonic()
        before = job.folder.read("environment") or {}
        self.before = before.get("seconds", {})
        # It says what the numbers were computed with.
        self.environment = before if computed else records.environment(job.code, command)
        self.write(code=job.code._asdict())

    def computed(self, points: int) -> None:
        """Adds the size of the sweep, if it was not computed before."""
        if "sweep" not in self.environment:
            self.write(sweep={"points": points, "programs": self.progress.programs})

    def write(self, **more: Any) -> None:
        """Adds to environment.json."""
        self.environment |= more
        self.folder.write("environment", self.environment)

    def seconds(self) -> dict[str, float]:
        """Seconds spent on compiling, on running, and in all."""
        spent = {"compile": self.progress.compiling, "run": self.progress.running}
        spent["total"] = time.monotonic() - self.start
        return {name: round(x + self.before.get(name, 0), 3) for name, x in spent.items()}


def scaled(root: files.Path, scale: str) -> files.Path:
    """`runs` at quick scale, else `runs/<scale>`: results of two scales are never mixed."""
    return root if scale == "quick" else root / scale


def folder_of(root: files.Path, config: ConfigDict) -> files.Path:
    """Where a run goes by default: `runs/<area>/<name>`."""
    return scaled(root, config.scale) / config.experiment


def summary(entries: Entries) -> str:
    """One line a claim."""
    lines = []
    for entry in entries:
        alone = claims.failed(entry) and entry["verdict"] == "supported"
        word = "no control" if alone else entry["verdict"]
        lines.append(f"  {word:10} {entry['name']}: {claims.shown(entry)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
