"""Runs an experiment on all hosts of a TPU VM or a slice of them.

    python -m launch.tpu_vm --name=my-tpu --zone=us-east5-a --config=configs/mdp/maze.py:full
        --workdir=gs://bucket/maze [--project=P] [--install] [--shared_disk] [--dry_run]
        [-- --config.sweep.seed=0:256]

`--install` first copies this commit to every host and installs it there. The hosts find each other.
A workdir that is no bucket needs --shared_disk, which says that all hosts have it mounted there.
The exit code is gcloud's; the same command goes on with a job that was killed.
"""

import argparse
import shlex
import sys

from launch import job

INSTALL = (
    "rm -rf jdiv && mkdir jdiv && tar -xzf jdiv.tar.gz -C jdiv && cd jdiv && python3 -m venv .venv"
    " && .venv/bin/python -m pip install --quiet --constraint constraints.txt"
    " '.[experiments]' 'jax[tpu]'"
)
BUCKETS = {"gs": " gcsfs", "s3": " s3fs"}
"""Packages that read and write them."""


def add(parser: job.Parser) -> None:
    """The arguments of this launcher."""
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="gcloud's own if not given")
    parser.add_argument("--install", action="store_true", help="copy and install this commit first")
    parser.add_argument("--shared_disk", action="store_true", help="all hosts have the workdir")


def plan(parser: job.Parser, arguments: argparse.Namespace) -> list[job.Step]:
    """The commands, in order."""
    if arguments.shared_disk == job.in_bucket(arguments.workdir):
        parser.error(
            "--workdir must be in a bucket, gs://..., or with --shared_disk a folder that every"
            f" host has mounted, got {arguments.workdir!r}"
        )
    if arguments.shared_disk and not arguments.workdir.startswith("/"):
        parser.error(f"--workdir must be an absolute path, got {arguments.workdir!r}")
    where = [f"--zone={arguments.zone}", "--worker=all"]
    where += [f"--project={arguments.project}"] if arguments.project else []
    gcloud = ["gcloud", "compute", "tpus", "tpu-vm"]
    steps = []
    if arguments.install:
        bucket = BUCKETS.get(arguments.workdir.partition(":")[0], "")
        archive = str(job.ROOT / ".cache" / "jdiv.tar.gz")
        steps = [
            ["mkdir", "-p", str(job.ROOT / ".cache")],
            ["git", "-C", str(job.ROOT), "archive", f"--output={archive}", "HEAD"],
            [*gcloud, "scp", archive, f"{arguments.name}:", *where],
            [*gcloud, "ssh", arguments.name, *where, f"--command={INSTALL}{bucket}"],
        ]
    run = "cd jdiv && " + shlex.join(job.command(arguments, ".venv/bin/python"))
    steps.append([*gcloud, "ssh", arguments.name, *where, f"--command={run}"])
    return [(words, None) for words in steps]


if __name__ == "__main__":
    sys.exit(job.main(__doc__, add, plan))
