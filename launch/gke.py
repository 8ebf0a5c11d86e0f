"""Runs an experiment on a TPU slice of a Kubernetes cluster at Google, as a JobSet.

    python -m launch.gke --name=maze --image=IMAGE --accelerator=tpu-v5-lite-podslice
        --topology=4x4 --hosts=4 --config=configs/mdp/maze.py:full --workdir=gs://bucket/maze
        [--chips_per_host=4] [--restarts=10] [--cluster=C --zone=Z [--project=P]] [--dry_run]
        [-- --config.sweep.seed=0:256]

The image holds this repository, installed with jax[tpu] and gcsfs, as its working directory. If a
host dies or is preempted all are started again, and the run goes on; a refuted claim (exit code 1)
and a refused command (2) end it.
"""

import argparse
import json
import math
import re
import sys

from launch import job

MANIFEST = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: {restarts}
    rules:
    - name: finished
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        parallelism: {hosts}
        completions: {hosts}
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: jdiv
              operator: In
              values: [1, 2]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: {accelerator}
              cloud.google.com/gke-tpu-topology: {topology}
            containers:
            - name: jdiv
              image: {image}
              command: {command}
              resources:
                requests:
                  google.com/tpu: {chips_per_host}
                limits:
                  google.com/tpu: {chips_per_host}
"""


def add(parser: job.Parser) -> None:
    """The arguments of this launcher."""
    parser.add_argument("--image", required=True, help="of a container with this repository")
    parser.add_argument("--accelerator", required=True, help="as GKE calls it: tpu-v6e-slice, ...")
    parser.add_argument("--topology", required=True, help="of the slice: 4x4, 2x2x2, ...")
    parser.add_argument("--hosts", required=True, type=job.at_least_one)
    parser.add_argument("--chips_per_host", default=4, type=job.at_least_one)
    parser.add_argument("--restarts", default=10, type=job.at_least_one)
    parser.add_argument("--cluster", help="get its credentials first")
    parser.add_argument("--zone", help="of the cluster")
    parser.add_argument("--project", help="of the cluster")


def plan(parser: job.Parser, arguments: argparse.Namespace) -> list[job.Step]:
    """Credentials if a cluster is named, then the manifest."""
    alone = arguments.project and not arguments.zone
    if bool(arguments.cluster) != bool(arguments.zone) or alone:
        parser.error("--cluster and --zone go together, and --project with them")
    steps = []
    if arguments.cluster:
        gcloud = ["gcloud", "container", "clusters", "get-credentials", arguments.cluster]
        gcloud.append(f"--zone={arguments.zone}")
        gcloud += [f"--project={arguments.project}"] if arguments.project else []
        steps.append((gcloud, None))
    return [*steps, (["kubectl", "apply", "-f", "-"], manifest(parser, arguments))]


def manifest(parser: job.Parser, arguments: argparse.Namespace) -> str:
    """The JobSet."""
    if not job.in_bucket(arguments.workdir):
        parser.error(f"--workdir must be in a bucket, gs://..., got {arguments.workdir!r}")
    if not re.fullmatch(r"\d+(x\d+){1,2}", arguments.topology):
        parser.error(f"--topology must be like 4x4 or 2x2x2, got {arguments.topology!r}")
    for name in ("image", "accelerator"):
        if not re.fullmatch(r"[\w./:@-]+", getattr(arguments, name)):
            parser.error(f"--{name} must be a name, got {getattr(arguments, name)!r}")
    chips = math.prod(map(int, arguments.topology.split("x")))
    if chips != arguments.hosts * arguments.chips_per_host:
        parser.error(
            f"--topology={arguments.topology} has {chips} chips, --hosts={arguments.hosts} with"
            f" --chips_per_host={arguments.chips_per_host} have"
            f" {arguments.hosts * arguments.chips_per_host}"
        )
    command = job.command(arguments, "python")
    return MANIFEST.format(**{**vars(arguments), "command": json.dumps(command)})


if __name__ == "__main__":
    sys.exit(job.main(__doc__, add, plan))
