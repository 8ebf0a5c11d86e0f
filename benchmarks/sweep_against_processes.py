"""A sweep of 1,024 points as one program against a fresh process for each point.

    python benchmarks/sweep_against_processes.py

The point is a small one: gradient descent on a KL-regularised bandit. Both ways are timed from the
shell, imports and compilation included; of the processes a sample is timed and its mean multiplied.
A process per point finds its program in the compilation cache, which is to its advantage.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
SAMPLE = 6
BETAS, SEEDS = 16, 64

POINT = """
import pathlib, sys, types
import jax, jax.numpy as jnp
from ml_collections import ConfigDict
from configs import defaults
from experiments.lab import commands, engine, records
from experiments.lab.progress import Progress
from jdiv import divergences

betas, seeds, folder, cache = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

def run(config, point, key):
    values, ref = jax.random.normal(key, (2, 10))
    def loss(logits):
        return point["beta"] * divergences.kl(logits, ref) - jax.nn.softmax(logits) @ values
    def step(logits, _):
        return logits - jax.grad(loss)(logits), loss(logits)
    logits, losses = jax.lax.scan(step, ref, length=200)
    return {"loss": losses[-1]}

toy = types.ModuleType("toy")
toy.TRACED, toy.run = ("beta", "seed"), run
config = defaults.get_config("toy", "quick")
config.sweep = ConfigDict({
    "beta": tuple(0.1 + 0.1 * i for i in range(betas)), "seed": tuple(range(seeds)),
})
progress = Progress("toy")
results = engine.compute(toy, config, pathlib.Path(folder), progress)
print(results.loss.size, progress.programs, progress.compiling, progress.running)
"""


def timed(betas: int, seeds: int, cache: str) -> tuple[float, str]:
    """Seconds of a process for so many points, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", POINT, str(betas), str(seeds), folder, cache],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return time.perf_counter() - start, done.stdout


def main() -> None:
    """Prints both times and their ratio."""
    with tempfile.TemporaryDirectory() as cache:
        whole, said = timed(BETAS, SEEDS, cache)
        points, programs, compiling, running = said.split()
        print(f"{points} points, {programs} program: {whole:.1f} s", end=", ")
        print(f"of which {float(compiling):.1f} s compiling and {float(running):.2f} s running")
        timed(1, 1, cache)  # fills the cache
        single = sum(timed(1, 1, cache)[0] for _ in range(SAMPLE)) / SAMPLE
    print(f"a process per point: {single:.2f} s each, mean of {SAMPLE}")
    print(f"ratio for {points} points: {single * int(points) / whole:.0f}")


if __name__ == "__main__":
    main()
