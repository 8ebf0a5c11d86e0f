"""All benchmarks, each in a process of its own, into one file and one figure.

    python -m benchmarks.run_all [--only=greedy,sweep] [--into=benchmarks/results/cpu.csv]

A peer that is not installed is named, and its rows are left out. A benchmark that fails is named
too, its rows are missing from the file, and the command ends with exit code 1.
"""

import argparse
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import figure, huge_pages, table

ROOT = pathlib.Path(__file__).parents[1]
SUBJECTS = (
    "bounds", "divergences", "huge_pages", "vocabulary", "greedy", "value_iteration", "deep_q",
    "sweep", "sampling", "training",
)  # fmt: skip


def one(subject: str, into: pathlib.Path) -> None:
    """The rows of one benchmark, shown and written."""
    module = importlib.import_module(f"benchmarks.{subject}")
    rows = []
    try:
        for row in module.rows():
            table.show([row])
            rows.append(row)
    finally:
        if rows:
            table.save(rows, into)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_all", description=__doc__)
    parser.add_argument("--only", default=",".join(SUBJECTS))
    parser.add_argument("--into", type=pathlib.Path, default=table.FILE)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Runs them, gathers the rows, draws the figure; the exit code."""
    asked = arguments()
    if asked.one:
        one(asked.one, asked.into)
        return 0
    subjects = asked.only.split(",")
    unknown = sorted(set(subjects) - set(SUBJECTS))
    if unknown:
        print(f"--only takes {', '.join(SUBJECTS)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    rows, failed, start = [], [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects:
            print(f"== {subject}, {time.perf_counter() - start:.0f} s since the start", flush=True)
            part = pathlib.Path(folder) / f"{subject}.csv"
            command = [sys.executable, "-m", "benchmarks.run_all", "--one", subject, "--into", part]
            quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "JAX_PLATFORMS": "cpu"}
            own = huge_pages.ENVIRONMENT if subject == "huge_pages" else {}
            done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet | own, check=False)
            failed += [subject] if done.returncode else []
            rows += table.load(part)[1] if part.exists() else []
    rows = table.bounded(rows)
    table.save(rows, asked.into)
    figure.draw(rows).savefig(asked.into.with_suffix(".png"), dpi=130)
    print(f"{len(rows)} rows in {asked.into}, {time.perf_counter() - start:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
