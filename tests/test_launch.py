"""What the launchers would run: commands and manifests, read without a network."""

import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from experiments.lab import commands
from launch import gke, job, slurm, tpu_vm

ALL = ["--name=maze", "--config=configs/mdp/maze.py:full", "--dry_run"]
BUCKET = "--workdir=gs://bucket/maze"
TPU = [*ALL, "--zone=us-east5-a", BUCKET]
SLURM = [*ALL, "--nodes=4", "--workdir=/shared/maze"]
GKE = [
    *ALL, BUCKET, "--image=registry.example/jdiv:1", "--accelerator=tpu-v5-lite-podslice",
    "--topology=4x4", "--hosts=4",
]  # fmt: skip


def steps(module, argv):
    parser = job.parser(module.__doc__)
    module.add(parser)
    return module.plan(parser, job.parsed(parser, argv))


def accepted(command):
    """Whether `experiments.run` knows all of these flags."""
    values = commands.flags.FlagValues()
    commands.shared_flags(values)
    known = set(values) | {"config"}
    assert command[1:3] == ["-m", "experiments.run"]
    return all(flag[2:].partition("=")[0].partition(".")[0] in known for flag in command[3:])


def test_every_worker_of_a_tpu_runs_the_command():
    ((words, given),) = steps(tpu_vm, [*TPU, "--", "--config.sweep.seed=0:256"])
    assert given is None
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "maze"]
    assert {"--worker=all", "--zone=us-east5-a"} <= set(words)
    folder, run = words[-1].removeprefix("--command=").split(" && ")
    assert folder == "cd jdiv"
    run = shlex.split(run)
    assert accepted(run)
    assert run == [
        ".venv/bin/python", "-m", "experiments.run", "--config=configs/mdp/maze.py:full", BUCKET,
        "--distributed", "--config.sweep.seed=0:256",
    ]  # fmt: skip


def test_a_tpu_is_given_this_commit_first():
    made, packed, copied, installed, ran = (w for w, _ in steps(tpu_vm, [*TPU, "--install"]))
    assert packed[:3] == ["git", "-C", str(job.ROOT)]
    assert copied[4] == "scp"
    assert "--worker=all" in copied
    archive = packed[4].removeprefix("--output=")
    assert archive in copied
    assert archive.startswith(made[-1])
    assert "jdiv.tar.gz" in installed[-1]
    assert installed[-1].endswith(" gcsfs")
    assert ran == steps(tpu_vm, TPU)[0][0]


@pytest.mark.parametrize(("gpus", "tasks"), [(None, 1), (8, 8)])
def test_slurm_has_a_task_for_each_device_that_jax_gives_one(gpus, tasks):
    argv = SLURM + [f"--gpus_per_node={gpus}"] * bool(gpus)
    ((words, script),) = steps(slurm, [*argv, "--time=4:00:00"])
    assert words == ["sbatch"]
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in script.splitlines()
        if line.startswith("#SBATCH") and "=" in line
    )
    assert options["nodes"] == "4"
    assert options["ntasks-per-node"] == str(tasks)
    assert options.get("gpus-per-node") == (gpus and str(gpus))
    assert options["signal"].startswith("TERM@")
    assert "#SBATCH --requeue" in script
    (run,) = (line for line in script.splitlines() if line.startswith("srun"))
    assert accepted(shlex.split(run)[2:])
    assert f"-eq {128 + signal.SIGTERM} " in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_jobset_restarts_what_died_and_nothing_else():
    ((words, text),) = steps(gke, GKE)
    assert words == ["kubectl", "apply", "-f", "-"]
    spec = yaml.safe_load(text)["spec"]
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    (hosts,) = spec["replicatedJobs"]
    pods = hosts["template"]["spec"]
    assert pods["parallelism"] == pods["completions"] == 4
    (rule,) = pods["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2]
    pod = pods["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = pod["containers"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert accepted(container["command"])


def test_credentials_come_first():
    first, second = steps(gke, [*GKE, "--cluster=c", "--zone=z"])
    assert first[0][-2:] == ["c", "--zone=z"]
    assert second[0][0] == "kubectl"


REFUSED = [
    (tpu_vm, [*ALL, BUCKET], "--zone"),
    (tpu_vm, [*ALL, "--zone=z", "--workdir=runs"], "--shared_disk"),
    (tpu_vm, [*TPU, "--shared_disk"], "--shared_disk"),
    (tpu_vm, [*ALL, "--zone=z", "--workdir=runs", "--shared_disk"], "absolute"),
    (tpu_vm, [*ALL, "--zone=z", "--workdir=gs://"], "bucket"),
    (tpu_vm, [*TPU, "--name=My TPU"], "lower-case"),
    (tpu_vm, [*TPU, "--config=configs/mdp/mase.py"], "mase"),
    (tpu_vm, [*TPU, "--", "--workdir=/elsewhere"], "/elsewhere"),
    (tpu_vm, [*TPU, "--nodes=2"], "--nodes"),
    (slurm, [*ALL, "--workdir=/shared/maze"], "--nodes"),
    (slurm, [*SLURM, "--nodes=0"], "--nodes"),
    (slurm, [*SLURM, "--workdir=maze"], "absolute"),
    (gke, [*GKE, "--hosts=3"], "16 chips"),
    (gke, [*GKE, "--topology=4by4"], "4by4"),
    (gke, [*GKE, "--workdir=/shared"], "bucket"),
    (gke, [*GKE, "--cluster=c"], "--zone"),
    (gke, [*GKE, "--image=a b"], "--image"),
]


@pytest.mark.parametrize(("module", "argv", "named"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(module, argv, named, capsys):
    with pytest.raises(SystemExit) as ended:
        steps(module, argv)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert named in said


def test_what_is_printed_can_be_pasted_and_nothing_is_run():
    for module, argv in ((tpu_vm, TPU), (slurm, SLURM), (gke, GKE)):
        done = subprocess.run(
            [sys.executable, "-m", module.__name__, *argv],
            cwd=job.ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        checked = subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False)
        assert checked.returncode == 0
        words, given = steps(module, argv)[-1]
        assert done.stdout.startswith(shlex.join(words))
        assert given is None or given in done.stdout


def test_a_failure_ends_the_steps(capsys):
    true, false = [sys.executable, "-c", ""], [sys.executable, "-c", "raise SystemExit(7)"]
    assert job.run([(true, None), (false, None), (["no such command"], None)], dry_run=False) == 7
    assert job.run([(["no such command"], None)], dry_run=False) == 2
    assert capsys.readouterr().err == "no such command is not installed here\n"
