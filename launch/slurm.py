"""Submits an experiment to Slurm: on CPUs a process for each node, else one for each GPU.

    python -m launch.slurm --name=maze --nodes=4 --config=configs/mdp/maze.py:full
        --workdir=/shared/maze [--gpus_per_node=8] [--time=4:00:00] [--partition=P] [--account=A]
        [--dry_run] [-- --config.sweep.seed=0:256]

The repository has to be on a disk that all nodes see, with its .venv. A job that is preempted, or
whose time is up, saves, goes back to the queue and goes on from there.
"""

import argparse
import shlex
import sys

from launch import job

SCRIPT = """\
#!/bin/bash
{header}
cd {root}
srun --kill-on-bad-exit=1 {command}
code=$?
# Asked to stop: what is left is computed when the job runs again.
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def add(parser: job.Parser) -> None:
    """The arguments of this launcher."""
    parser.add_argument("--nodes", required=True, type=job.at_least_one)
    parser.add_argument("--gpus_per_node", type=job.at_least_one)
    parser.add_argument("--time", help="limit, as sbatch has it")
    parser.add_argument("--partition")
    parser.add_argument("--account")


def plan(parser: job.Parser, arguments: argparse.Namespace) -> list[job.Step]:
    """`sbatch`, which is given the script."""
    return [(["sbatch"], script(parser, arguments))]


def script(parser: job.Parser, arguments: argparse.Namespace) -> str:
    """The script of the job."""
    if not (arguments.workdir.startswith("/") or job.in_bucket(arguments.workdir)):
        parser.error(
            "--workdir must be in a bucket or an absolute path on a disk that all nodes see,"
            f" got {arguments.workdir!r}"
        )
    gpus = arguments.gpus_per_node
    options = {
        "job-name": arguments.name,
        "nodes": arguments.nodes,
        # JAX gives the task with local number i the GPU with number i, and no other.
        "ntasks-per-node": gpus or 1,
        "gpus-per-node": gpus,
        "time": arguments.time,
        "partition": arguments.partition,
        "account": arguments.account,
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": "TERM@120",
    }
    header = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
    command = job.command(arguments, str(job.ROOT / ".venv" / "bin" / "python"))
    return SCRIPT.format(
        header="\n".join([*header, "#SBATCH --requeue"]),
        root=shlex.quote(str(job.ROOT)),
        command=shlex.join(command),
    )


if __name__ == "__main__":
    sys.exit(job.main(__doc__, add, plan))
