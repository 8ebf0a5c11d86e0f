"""Two small experiments, a sweep and a training loop, and a command that runs one of them.

python tests/experiments/toys.py sweep FOLDER [--cpu_devices=8] [--distributed ...] [--fault=claims]
"""

import atexit
import dataclasses
import os
import pathlib
import sys
import time
import types

import jax
import jax.numpy as jnp
import matplotlib.figure
from absl import flags
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from configs import defaults
from experiments import run
from experiments.lab import commands, files
from experiments.lab.axes import one_of, positive, seeds
from experiments.lab.claims import at_least, claim
from experiments.lab.job import planned
from experiments.lab.plots import Picture
from experiments.lab.records import Folder
from experiments.lab.results import labelled
from jdiv import parallel

LETTERS = ("x", "y", "z")


def config(*, trains: bool = False, seeds: int = 10, lanes: int = 5) -> ConfigDict:
    """Three zipped pairs, two names, `seeds` seeds."""
    config = defaults.get_config("estimation/atlas", "smoke")
    config.sweep = ConfigDict(
        {
            "rate": (0.1, 0.2, 0.3),
            "power": (1, 2, 3),
            "name": ("abs", "square"),
            "seed": tuple(range(seeds)),
        }
    )
    config.zipped = ("rate,power",)
    config.lanes = lanes
    config.precision = "float32"
    config.sign = 1.0
    config.delay = 0
    if trains:
        config.training = defaults.training(60, record_every=5, checkpoint_every=10)
    return config.lock()


def module(**functions) -> types.ModuleType:
    """An experiment of these functions, with what all toys share."""
    toy = types.ModuleType("toy")
    toy.AXES = {"rate": positive, "power": positive, "name": one_of(("abs", "square"))}
    toy.AXES["seed"] = seeds
    toy.figures = lambda config, results: {"blank": Picture(matplotlib.figure.Figure(), "Nothing.")}
    toy.__dict__.update(functions)
    return toy


def _slowly(config, x):
    """The same x, after some work that cannot be left out."""
    work = jax.lax.fori_loop(0, config.delay, lambda i, y: jnp.sin(y + 1), x)
    return jnp.where(work > 2, -x, x)


def _run(config, point, key):
    path = _slowly(config, jax.random.normal(key, (3,)))
    measure = {"abs": jnp.abs, "square": jnp.square}[point["name"]]
    power = jnp.asarray(point["power"]).astype(path.dtype)
    total = config.sign * measure(path).sum() * point["rate"] ** power
    return {"path": labelled(path, letter=LETTERS), "total": total}


def _positive(name):
    @claim(source="here", reruns=({"sign": -1.0, "sweep.seed": (0,)},), wrong=({"factor": -1},))
    def positive(results, factor=1):
        """It is."""
        return at_least(0, factor * results[name].min())

    return positive


def _init(config, point, key):
    return {"path": jax.random.normal(key, (3,)), "count": jnp.int32(0)}


def _step(config, point, state, key):
    noise = jax.random.normal(key, (3,)) * 0.1
    path = _slowly(config, state["path"] * (1 - point["rate"]) + noise)
    metrics = {
        "loss": config.sign * (state["path"] ** 2).sum(),
        "path": labelled(state["path"], letter=LETTERS),
    }
    return {"path": path, "count": state["count"] + 1}, metrics


def _finish(config, point, state):
    return {"end": state["path"].sum(), "count": state["count"]}


SWEEP = module(run=_run, positive=_positive("total"))
TRAINING = module(init=_init, step=_step, finish=_finish, positive=_positive("loss"))


def broken(where):
    """Functions of a toy of which one fails."""

    def fails(*_):
        """It does."""
        raise ZeroDivisionError("no such number\nat all")

    def refuses(*_):
        raise OSError(28, "No space left on device", "here")

    def waits(*_):
        print("waits", flush=True)
        time.sleep(60)

    return {"run": {"run": fails}, "disk": {"figures": refuses}, "wait": {"figures": waits},
            "claims": {"positive": dataclasses.replace(SWEEP.positive, function=fails)},
            "": {}}[where]  # fmt: skip


def main() -> int:
    """Runs one of them the way the commands run an experiment."""

    def body() -> int:
        values = flags.FlagValues()
        commands.shared_flags(values)
        flags.DEFINE_integer("delay", 0, "Loops per point and step.", flag_values=values)
        flags.DEFINE_integer("seeds", 10, "How many.", flag_values=values)
        flags.DEFINE_string("fault", "", "Where to fail, on one host.", flag_values=values)
        flags.DEFINE_integer("faulty_host", 0, "On which.", flag_values=values)
        kind, folder = sys.argv[1:3]
        commands.parse(values, ["toys", *sys.argv[3:]])
        commands.set_up(values)
        faults = broken(values.fault) if parallel.host() == values.faulty_host else {}
        toy = {"sweep": SWEEP, "training": TRAINING}[kind]
        toy = module(**toy.__dict__ | faults)
        chosen = config(trains=kind == "training", seeds=values.seeds)
        chosen.delay = values.delay
        with commands.stopping_on_signal() as stopping:
            job = planned(toy, chosen, Folder(files.place(folder)))
            try:
                run.execute(job, "toys", stopping=stopping)
            except run.Unmade:
                return 1
        return 0

    return commands.guarded(body)


def as_a_process(arguments, said, environment):
    """In a process of its own: `main` as a command, with files for what it says."""
    os.environ |= environment
    for descriptor, name in ((1, "out"), (2, "err")):
        with (said / name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["toys", *arguments]
    code = main()
    atexit._run_exitfuncs()  # which a forked process would leave out
    sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
