"""Runs one experiment: its sweep, figures, claims and controls, into one folder.

    python -m experiments.run --config=configs/<area>/<name>.py[:smoke|quick|full]
        [--config.<field>=<value> ...] [--workdir=DIR] [--overwrite]

An axis of the sweep is a field too: --config.sweep.beta=0.1,0.3 or --config.sweep.seed=0:64. Any
field with one value becomes an axis by --config.sweep.<field>=<value>,<value>. A claim that needs
values of the config's file that are not swept is not tested, with the reason.

An experiment of one's own may live anywhere: --config=/path/to/my_config.py, whose
config.experiment = "my_experiment" is found in my_experiment.py beside it, in the folder above, or
wherever Python finds it.

The same command goes on where a killed one was. Exit code 0: every claim that was tested is
supported and every control refutes its claim; 1: not so; 2: refused, with the reason in one line;
3: an error that was not foreseen, or another host was lost; 130 and 143: interrupted, told to stop.

On many hosts, with --distributed, the same command runs on each. All end with the same code and one
line each, at most a minute after one of them failed, was killed or did not come. The first alone
writes: a run is taken up again only where it finds the folder as it left it.
"""

import io
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import xarray as xr
from absl import flags
from ml_collections import ConfigDict

from experiments.lab import (
    claims,
    commands,
    engine,
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
from jdiv import parallel

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
        config = settings.configured(sys.argv, values)
        path = pathlib.Path(values.workdir or folder_of(pathlib.Path("runs"), config))
        run = job.from_config(config, path, settings.argument(sys.argv))
        commands.set_up(values)
        with commands.stopping_on_signal() as stopping:
            command = commands.command("experiments.run")
            entries = execute(run, command, overwrite=values.overwrite, stopping=stopping)
        print(f"{path}\n{summary(entries)}")
        return 1 if any(map(claims.failed, entries)) else 0

    return commands.guarded(body)


def execute(
    job: Job,
    command: str,
    *,
    overwrite: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> Entries:
    """Computes, judges and draws; the claims, as in claims.json. The rest is in the folder then.

    A finished run is not run again. On hosts other than the first there are no claims.
    """
    config, folder = job.config, job.folder
    hosts.agree([config])
    progress = Progress(config.experiment, None if parallel.host() == 0 else io.StringIO())
    if parallel.on_any_host(not overwrite and folder.finished(config)):
        progress.say(f"finished before, in {folder.path}")
        return folder.read("claims") or []
    with folder.opened(config, overwrite=overwrite):
        clock = Clock(job, command, progress)
        results = compute(job, progress, stopping)
        clock.write(sweep={"points": sweeps.size(job.grid), "programs": progress.programs})
        entries = judge(job, results, progress, stopping)
        if results is not None:
            folder.save_pictures(draw(job, results))
        progress.close()
        clock.write(seconds=clock.seconds())
        folder.write("claims", entries)
        folder.discard("controls")
    return entries


def compute(job: Job, progress: Progress, stopping: Callable[[], bool]) -> xr.Dataset | None:
    """The results, from the folder or computed and then kept there; None on other hosts."""
    if job.folder.has_results():
        return job.folder.results()
    results = engine.compute(job, progress, stopping)
    job.folder.save_results(results)
    return results


def judge(
    job: Job, results: xr.Dataset | None, progress: Progress, stopping: Callable[[], bool]
) -> Entries:
    """Every claim with its controls; each rerun that claims ask for is computed once."""
    reasons = [(claim, needs.lacking(job, claim)) for claim in job.claims]
    different = {
        str(override): override
        for claim, reason in reasons
        if reason is None
        for override in claim.reruns
    }
    found: dict[str, tuple[Job, xr.Dataset | None]] = {}
    for number, (text, override) in enumerate(different.items()):
        changed = job.changed(override, job.folder.below(f"controls/{number:02}"))
        progress.label = f"{job.config.experiment} control {number + 1} of {len(different)}"
        found[text] = changed, compute(changed, progress, stopping)
    progress.label = job.config.experiment
    if results is None:
        return []
    return [
        claims.untested(claim, reason) if reason else judged(job, claim, results, found)
        for claim, reason in reasons
    ]


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


def draw(job: Job, results: xr.Dataset) -> dict[str, plots.Picture]:
    """The pictures of the experiment, in the style of all; for each value of swept fields."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = {}
    with matplotlib.rc_context(plots.STYLE):
        for number, (part, config) in enumerate(job.parts(), 1):
            here = results.sel(part).drop_vars(list(part))
            what = ", ".join(f"{name} = {label}" for name, label in part.items())
            for name, picture in job.experiment.figures(config, here).items():
                caption = picture.caption + f" Here {what}." * bool(part)
                drawn[name + f"_{number}" * bool(part)] = picture._replace(caption=caption)
    return drawn


class Clock:
    """The run's environment.json, with the time that all its runs took together."""

    def __init__(self, job: Job, command: str, progress: Progress):
        self.folder, self.progress = job.folder, progress
        self.start = time.monotonic()
        self.before = (job.folder.read("environment") or {}).get("seconds", {})
        self.environment = records.environment(job.config.experiment, command)
        self.write()

    def write(self, **more: Any) -> None:
        """Adds to environment.json."""
        self.environment |= more
        self.folder.write("environment", self.environment)

    def seconds(self) -> dict[str, float]:
        """Seconds spent on compiling, on running, and in all."""
        spent = {"compile": self.progress.compiling, "run": self.progress.running}
        spent["total"] = time.monotonic() - self.start
        return {name: round(x + self.before.get(name, 0), 3) for name, x in spent.items()}


def scaled(root: pathlib.Path, scale: str) -> pathlib.Path:
    """`runs` at quick scale, else `runs/<scale>`: results of two scales are never mixed."""
    return root if scale == "quick" else root / scale


def folder_of(root: pathlib.Path, config: ConfigDict) -> pathlib.Path:
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
