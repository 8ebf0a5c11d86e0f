"""A sweep of 1,024 points as one program, as a loop of jitted calls, as a process for each point.

    python -m benchmarks.sweep

The point is a small one: gradient descent on a KL-regularized bandit. All are timed from the
shell, imports and compilation included; of the processes each round is one, and counts as a point.
The one program is that of experiments.lab, which also keeps the results and can be stopped and
resumed, and a vmap by hand. Programs are found in the compilation cache, which is to the advantage
of the processes.
"""

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks import table
from benchmarks.table import Contestant, Row

ROOT = pathlib.Path(__file__).parents[1]
BETAS, SEEDS = 16, 64

POINT = """
import sys
import jax, jax.numpy as jnp
from jdiv import divergences

betas, seeds, folder, cache = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
betas = tuple(0.1 + 0.1 * i for i in range(betas))

def run(config, point, key):
    values, ref = jax.random.normal(key, (2, 10))
    def loss(logits):
        return point["beta"] * divergences.kl(logits, ref) - jax.nn.softmax(logits) @ values
    def step(logits, _):
        return logits - jax.grad(loss)(logits), loss(logits)
    logits, losses = jax.lax.scan(step, ref, length=200)
    return {"loss": losses[-1]}
"""
SWEEP = """
import pathlib, types
from ml_collections import ConfigDict
from configs import defaults
from experiments.lab import axes, engine
from experiments.lab.job import planned
from experiments.lab.progress import Progress
from experiments.lab.records import Folder

toy = types.ModuleType("toy")
toy.AXES, toy.run = {"beta": axes.positive, "seed": axes.seeds}, run
toy.figures = lambda config, results: {}
config = defaults.get_config("toy", "quick")
config.precision = "float32"
config.sweep = ConfigDict({"beta": betas, "seed": tuple(range(seeds))})
job = planned(toy, config.lock(), Folder(pathlib.Path(folder)))
results = engine.compute(job, Progress("toy"))
print(float(results.loss.values.ravel()[0]), results.loss.size)
"""
VMAPPED = """
one = lambda beta, seed: run(None, {"beta": beta}, jax.random.key(seed))["loss"]
over_all = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
losses = over_all(jnp.array(betas), jnp.arange(seeds)).ravel()
print(float(losses[0]), losses.size)
"""
LOOP = """
jitted = jax.jit(lambda beta, seed: run(None, {"beta": beta}, jax.random.key(seed))["loss"])
losses = [float(jitted(beta, seed)) for beta in betas for seed in range(seeds)]
print(losses[0], len(losses))
"""


def process(name: str, ran: str, code: str, betas: int, seeds: int, cache: str) -> Contestant:
    """A fresh process for so many points; seconds are those of a point."""

    def call() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", POINT + code]
            arguments = map(str, (betas, seeds, folder, cache))
            done = subprocess.run(
                [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
            )
        loss, count = map(float, done.stdout.split()[-2:])
        assert count == betas * seeds, done.stdout
        return [np.asarray(loss)]

    return Contestant(name, ran, call, list, count=betas * seeds, unit="points/s", tolerance=1e-5)


def rows() -> Iterator[Row]:
    """The ways, seconds a point."""
    with tempfile.TemporaryDirectory() as cache:
        contestants = [
            process("jdiv", "one program of experiments.lab", SWEEP, BETAS, SEEDS, cache),
            process("vmap", "one program without a lab", VMAPPED, BETAS, SEEDS, cache),
            process("a loop", "a jitted call for each point", LOOP, BETAS, SEEDS, cache),
            process("processes", "a process for each point", SWEEP, 1, 1, cache),
        ]
        points = f"{BETAS * SEEDS} points"
        for row in table.compare("sweep", points, "float32", contestants, rounds=5, budget=40.0):
            # What a process of another program holds is not in this one's memory.
            yield row._replace(resident_bytes=None)


if __name__ == "__main__":
    table.show(rows())
