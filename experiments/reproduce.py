"""Runs all experiments and writes the report.

    python -m experiments.reproduce [--scale=smoke|quick|full] [--only=area,area/name]
        [--workdir=DIR] [--overwrite]

What is finished is not run again, what was interrupted goes on; results of older code are replaced.
Exit code 0: all claims are supported and all controls refute theirs; 1: not so, or an experiment
failed; 2: refused, with the reason in one line; 143: asked to stop.
"""

import pathlib
import sys
import time
import traceback
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from configs import defaults
from experiments import commands, engine, records, report, run
from jdiv import parallel, sweeps


class Planned(NamedTuple):
    """A run that was checked and can start."""

    experiment: Any
    config: ConfigDict
    folder: pathlib.Path
    overwrite: bool


def main() -> int:
    """The command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0

    def body() -> int:
        values = flags.FlagValues()
        commands.shared_flags(values)
        flags.DEFINE_string("scale", "quick", "How large.", flag_values=values)
        flags.DEFINE_list("only", [], "Areas, or experiments as area/name.", flag_values=values)
        commands.parse(values, sys.argv)
        root = pathlib.Path(values.workdir or "runs")
        plan = planned(values.scale, values.only, root, overwrite=values.overwrite)
        commands.set_up(values)
        with commands.stopping_on_signal() as stopping:
            return reproduce(plan, run.scaled(root, values.scale), stopping)

    return commands.guarded(body)


def planned(
    scale: str, only: list[str], root: pathlib.Path, *, overwrite: bool = False
) -> list[Planned]:
    """What has to be run; everything that would be refused is refused now."""
    if scale not in defaults.SCALES:
        raise records.Refused(f"--scale must be one of {', '.join(defaults.SCALES)}, got {scale!r}")
    plan = []
    for path in chosen(only):
        config = run.load(f"{path}:{scale}")
        folder = run.folder_of(root, config)
        conflict = records.disagreement(folder, config)
        stale = conflict == records.OTHER_CODE
        if conflict and not stale and not overwrite:
            raise records.Refused(f"workdir {folder} {conflict}; --overwrite computes it anew")
        plan.append(Planned(run.checked(config), config, folder, overwrite or stale))
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
            sweeps.known("--only", name, [*sorted(areas), *stems])
        except ValueError as error:
            raise records.Refused(str(error)) from error
    return [
        path
        for stem, path in stems.items()
        if not only or stem in only or stem.partition("/")[0] in only
    ]


def reproduce(plan: list[Planned], root: pathlib.Path, stopping=lambda: False) -> int:
    """Runs the plan one by one and writes the report; the exit code."""
    start = time.monotonic()
    entries, failed = [], []
    for experiment, config, folder, overwrite in plan:
        scale = "" if config.scale == "quick" else f":{config.scale}"
        command = f"python -m experiments.run --config=configs/{config.experiment}.py{scale}"
        try:
            found = run.execute(
                experiment, config, folder,
                command=command, overwrite=overwrite, stopping=stopping,
            )  # fmt: skip
        except (engine.Stopped, records.Refused, OSError, KeyboardInterrupt):
            raise
        except Exception:
            traceback.print_exc()
            failed.append(config.experiment)
            continue
        print(f"{config.experiment}\n{run.summary(found)}", flush=True)
        entries += found
    if parallel.host() > 0:
        return 0
    page = report.write(
        root, [planned.folder for planned in plan if planned.config.experiment not in failed]
    )
    unsound = [entry["name"] for entry in entries if not run.sound(entry)]
    print(f"{len(entries) - len(unsound)} of {len(entries)} claims supported, with their controls")
    for what, names in (("not supported", unsound), ("failed", failed)):
        if names:
            print(f"{what.upper()}: {', '.join(names)}")
    print(f"{page} after {time.monotonic() - start:.0f} s")
    return 1 if unsound or failed else 0


if __name__ == "__main__":
    sys.exit(main())
