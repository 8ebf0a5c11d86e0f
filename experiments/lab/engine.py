"""From a job to a labelled dataset: one program per static group, on all devices, safe to kill.

An experiment is a module with

* `AXES`: what each axis of the sweep may hold (see `axes`): traced axes are arguments of a program,
  static ones have a program for each label, label axes are names only;
* `run(config, point, key)`: the results of one point, a dict of arrays; or, for long training,
  `init(config, point, key)`, the first state, and `step(config, point, state, key)`, the next state
  and a dict of metrics of the state before; then, if there is more to say at the end,
  `finish(config, point, state)`, a dict of arrays. An array with dimensions is `labelled`;
* `ONE_AT_A_TIME = True` where a point is too big to be a lane of many, as a language model is. Then
  the engine calls `init`, `step` and `finish` as they are, with labels that are plain values, for
  one point after the other; they call compiled programs, each of which uses all devices, and may do
  what no program can. The state is what `parallel.replicate` made, a copy on each device. If there
  is `keep(config, point, state, folder)`, it writes what is no array into a local folder, on the
  first host, and not for a control;
* `figures(config, results)`: pictures with captions by name, of whatever values were swept; in the
  place of one that they do not allow the reason, a string;
* its claims, one function each (see `claims`);
* where they are needed `FIELDS`, what fields of the config may hold, and `validate(config, point)`,
  which raises a ValueError in one line about fields that do not go together.

All of these are pure functions, but for those of a point that is trained alone. A point is a dict
from axis to label. Of the sweep their config has the static axes and the seeds: a program serves
all labels of a traced axis, those of controls too.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from ml_collections import ConfigDict

from experiments.lab import records, results, settings, sweeps
from experiments.lab.job import Job
from experiments.lab.progress import Progress
from experiments.lab.records import Refused, Stopped
from jdiv import parallel

Arrays = dict[str, np.ndarray]
Found = dict[str, results.Result]
"""Dimensions and shapes of what is returned, by name."""


def compute(
    job: Job,
    progress: Progress,
    stopping: Callable[[], bool] = lambda: False,
    made: "Made | None" = None,
) -> xr.Dataset | None:
    """The results of all points; None on all hosts but the first.

    Points are kept in the job's folder as they come, and not computed again. Between two pieces of
    work `stopping` is asked, and if so `Stopped` is raised. A program that is `made` is not
    compiled again; those that are compiled are added.
    """
    made = {} if made is None else made
    there = [_kept(job, number, progress) for number in range(len(job.groups))]
    progress.expect(
        len(job.points) * job.steps,
        "steps of points" if job.trains else "points",
        sum(int(group.sum()) for group in there) * job.steps,
    )
    agreed: Found = {}
    with precision(job.config):
        for number, found in enumerate(there):
            missing = np.flatnonzero(~found)
            if len(missing):
                _compute_group(Work(job, number, progress, stopping, made), missing, agreed)
    return None if parallel.host() else _dataset(job, progress)


@contextlib.contextmanager
def precision(config: ConfigDict) -> Iterator[None]:
    """float64 where the config says so; matrix products in the full precision of their type."""
    with (
        jax.enable_x64(config.precision == "float64"),
        jax.default_matmul_precision("highest"),
    ):
        yield


class Work(NamedTuple):
    """One group of a job, how to say what is done and when to stop, and programs that there are."""

    job: Job
    number: int
    progress: Progress
    stopping: Callable[[], bool]
    made: "Made"

    @property
    def group(self) -> sweeps.Group:
        """The group."""
        return self.job.groups[self.number]

    def label(self, place: int) -> str:
        """`beta=0.1, seed=3`: the point at this place of the group."""
        return _label(self.job.points[self.group.index[place]])


def _compute_group(work: Work, missing: np.ndarray, agreed: Found) -> None:
    """Computes the points of a group at these places, batch after batch.

    What the first group returns is `agreed`: the others have to return the same.
    """
    job = work.job
    if job.one_at_a_time:
        for place in missing:
            found, arrays = _train_alone(work, place)
            _agree(work, found, agreed)
            job.folder.save_points(work.number, np.array([place]), arrays, _schema(found))
        return
    programs = compiled(work)
    _agree(work, programs.found, agreed)
    compute_batch = _train if job.trains else _run
    for start in range(0, len(missing), programs.width):
        _stop_if_asked(work)
        places = missing[start : start + programs.width]
        arrays = compute_batch(work, programs, places)
        job.folder.save_points(work.number, places, arrays, _schema(programs.found))


def _agree(work: Work, found: Found, agreed: Found) -> None:
    """Adds what a group returns to what was agreed upon; refuses anything else."""
    for name in found.keys() | (agreed or found).keys():
        if found.get(name) != (agreed or found).get(name):
            raise Refused(
                f"{name} must have one shape and the same dimensions and labels at all points,"
                f" it has others at {_label(work.group.static)}"
            )
    agreed |= found


def _schema(found: Found) -> str:
    return results.to_json({name: dims for name, (dims, _) in found.items()})


# ------------------------------------------------------------------------------------- programs


class Programs(NamedTuple):
    """What a group needs compiled: `run`, or the three parts of a training loop."""

    devices: int
    lanes: int
    found: Found
    run: Callable[..., Any] | None = None
    start: Callable[..., Any] | None = None
    chunk: Callable[..., Any] | None = None
    finish: Callable[..., Any] | None = None

    @property
    def width(self) -> int:
        """Points that all hosts compute at once."""
        return parallel.hosts() * self.devices * self.lanes


Made = dict[tuple, Programs]
"""Programs by what they were made of."""


def compiled(work: Work) -> Programs:
    """The programs of a group, made before if only labels of traced axes were others then."""
    count = len(work.group.index)
    devices = parallel.devices_for(count)
    lanes = min(work.job.config.lanes, -(-count // (parallel.hosts() * devices)))
    config = json.dumps(records.as_dict(Traced.of(work).config), sort_keys=True)
    kinds = tuple((name, x.dtype.kind) for name, x in work.group.traced.items())
    made_of = (work.job.experiment, config, *work.group.static.items(), kinds, devices, lanes)
    if made_of not in work.made:
        work.made[made_of] = _compiled(work, devices, lanes)
    return work.made[made_of]


def _compiled(work: Work, devices: int, lanes: int) -> Programs:
    """The programs, for as many points at once as the config allows and the memory holds."""
    config = work.job.config
    programs = _compiled_for(work, devices, lanes)
    need = parallel.memory(programs.chunk or programs.run)
    limit = config.memory_gib * 2**30
    if need > limit and lanes > 1:
        fewer = max(1, int(lanes * limit / need))
        work.progress.say(
            f"{lanes} points at once need {need / 2**30:.1f} GiB, now {fewer} at once"
        )
        programs = _compiled_for(work, devices, fewer)
    return programs


def _compiled_for(work: Work, devices: int, lanes: int) -> Programs:
    traced = Traced.of(work)
    arguments = _arguments(work, np.arange(1), devices, lanes)

    def compile_(f: Callable, *arguments: Any, shared: int = 0) -> parallel.Program:
        with work.progress.compile():
            return parallel.compile_points(
                f, *arguments, shared=shared, optimized=work.job.config.optimized
            )

    if not work.job.trains:
        run = compile_(traced.run, arguments)
        return Programs(devices, lanes, _found(work, "run", run.outputs), run=run.call)
    start = compile_(traced.start, arguments)
    state = start.call(arguments)
    _no_keys(state)
    chunk = compile_(traced.chunk, arguments, state, np.int32(0), shared=1)
    metrics = _found(work, "step", chunk.outputs[1], leading=("step",))
    found = {_METRIC + name: result for name, result in metrics.items()}
    programs = Programs(devices, lanes, found, start=start.call, chunk=chunk.call)
    if not hasattr(work.job.experiment, "finish"):
        return programs
    finish = compile_(traced.finish, arguments, state)
    found = found | _found(work, "finish", finish.outputs)
    return programs._replace(found=found, finish=finish.call)


def _found(work: Work, function: str, outputs: Any, leading: tuple[str, ...] = ()):
    """What a function of the experiment returns; what cannot be a dataset is refused."""
    with settings.refusing(f"{work.job.config.experiment}: {function}: "):
        return results.found(outputs, leading)


def _arguments(work: Work, places: np.ndarray, devices: int, lanes: int) -> dict[str, np.ndarray]:
    """Labels of the traced axes at these places, `[devices, lanes]`."""
    labels = {name: labels[places] for name, labels in work.group.traced.items()}
    kinds = {"f": np.dtype(work.job.config.precision), "i": np.dtype(np.int32)}
    typed = {name: x.astype(kinds.get(x.dtype.kind, x.dtype)) for name, x in labels.items()}
    typed[_PLACE] = places.astype(np.int32)
    return parallel.share(typed, devices, lanes)


class Traced(NamedTuple):
    """An experiment's functions, of the arguments of one point."""

    experiment: ModuleType
    config: ConfigDict
    static: dict[str, Any]

    @classmethod
    def of(cls, work: Work) -> "Traced":
        """A group's functions: values of swept fields are in the config, labels in the point.

        Labels of traced axes are arguments, and not in the config, but for the seeds there are.
        """
        job, static = work.job, work.group.static
        fields = {name: label for name, label in static.items() if name in job.own_fields}
        labels = {name: label for name, label in static.items() if name not in fields}
        config = settings.overridden(job.config, fields).unlock()
        for name in work.group.traced.keys() - {"seed"}:
            del config.sweep[name]
        return cls(job.experiment, config.lock(), labels)

    def point(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
        """A point with its static labels, and its key."""
        point = {name: x for name, x in arguments.items() if name != _PLACE} | self.static
        return point, jax.random.key(point.get("seed", 0))

    def run(self, arguments):
        """The results of a point."""
        return self.experiment.run(self.config, *self.point(arguments))

    def start(self, arguments):
        """The first state of training."""
        return self.experiment.init(self.config, *self.point(arguments))

    def chunk(self, arguments, state, first):
        """`checkpoint_every` steps from step `first` on, metrics of every `record_every`-th."""
        point, key = self.point(arguments)
        training = self.config.training

        def step(state, number):
            at_step = jax.random.fold_in(key, number)
            return self.experiment.step(self.config, point, state, at_step)

        def row(state, number):
            state, metrics = jax.lax.scan(
                step, state, number + jnp.arange(training.record_every, dtype=jnp.int32)
            )
            return state, jax.tree.map(lambda x: x[0], metrics)

        rows = jnp.arange(0, training.checkpoint_every, training.record_every, dtype=jnp.int32)
        return jax.lax.scan(row, state, first + rows)

    def finish(self, arguments, state):
        """What there is to say at the end."""
        point, _ = self.point(arguments)
        return self.experiment.finish(self.config, point, state)


# -------------------------------------------------------------------------------------- batches


def _run(work: Work, programs: Programs, places: np.ndarray) -> Arrays:
    with work.progress.work(len(places)):
        arguments = _arguments(work, places, programs.devices, programs.lanes)
        arrays = _gathered(programs.run(arguments), len(places))
    _note(work, places, arrays)
    return arrays


def _train(work: Work, programs: Programs, places: np.ndarray) -> Arrays:
    job, training = work.job, work.job.config.training
    name = f"{work.number:04}-{places[0]:08}-{len(places)}"
    arguments = _arguments(work, places, programs.devices, programs.lanes)
    state = programs.start(arguments)
    step, state, history = _restored(work, name, programs, state)
    while step < training.steps:
        _stop_if_asked(work)
        with work.progress.work(len(places) * training.checkpoint_every):
            state, metrics = programs.chunk(arguments, state, np.int32(step))
            metrics = _gathered(metrics, len(places))
        _note(work, places, metrics, step)
        for metric, x in metrics.items():
            parts = [history[_METRIC + metric], x] if _METRIC + metric in history else [x]
            history[_METRIC + metric] = np.concatenate(parts, axis=1)
        step += training.checkpoint_every
        arrays = _first(len(places), parallel.gather(_named(state)))
        job.folder.save_checkpoint(name, step, arrays | history, keep=training.checkpoints)
    if programs.finish is None:
        return history
    arrays = _gathered(programs.finish(arguments, state), len(places))
    _note(work, places, arrays)
    return history | arrays


def _train_alone(work: Work, place: int) -> tuple[Found, Arrays]:
    """What training returns for the point at this place, whose functions are called as they are."""
    job, training = work.job, work.job.config.training
    experiment, config, places = job.experiment, Traced.of(work).config, np.array([place])
    name, point = f"{work.number:04}-{place:08}-1", job.points[work.group.index[place]]
    key = jax.random.key(point.get("seed", 0))
    step, state, history = _restored_alone(work, name, experiment.init(config, point, key))
    found: Found = {}
    while step < training.steps:
        _stop_if_asked(work)
        rows = []
        with work.progress.work(training.checkpoint_every):
            for number in range(step, step + training.checkpoint_every):
                at_step = jax.random.fold_in(key, number)
                state, metrics = experiment.step(config, point, state, at_step)
                if number % training.record_every == 0:
                    rows.append({_METRIC + metric: x for metric, x in metrics.items()})
        metrics, new = _alone(work, "step", jax.tree.map(lambda *x: np.stack(x), *rows), ("step",))
        _note(work, places, {name.removeprefix(_METRIC): x for name, x in metrics.items()}, step)
        for metric, x in metrics.items():
            parts = [history[metric], x] if metric in history else [x]
            history[metric] = np.concatenate(parts, axis=1)
        found |= new
        step += training.checkpoint_every
        if step < training.steps:
            arrays = _named(parallel.of_first_device(state))
            job.folder.save_checkpoint(name, step, arrays | history, keep=training.checkpoints)
    if hasattr(experiment, "finish"):
        arrays, new = _alone(work, "finish", experiment.finish(config, point, state))
        _note(work, places, arrays)
        history, found = history | arrays, found | new
    if hasattr(experiment, "keep") and not job.control:
        job.folder.below("models").keep_files(
            _label(point).replace(", ", ","),
            lambda folder: experiment.keep(config, point, state, folder),
        )
    return found, history


def _alone(work: Work, function: str, outputs: Any, leading: tuple[str, ...] = ()):
    """The arrays of one point, `[1, ...]` each, and their dimensions."""
    outputs = jax.tree.map(lambda x: np.asarray(x)[None], outputs)
    found = _found(work, function, jax.tree.map(lambda x: x[None], outputs), leading)
    return results.plain(outputs), found


def _restored_alone(work: Work, name: str, state: Any):
    """Step, state and metrics of the last checkpoint of a point, or of the start."""
    found, saved = work.job.folder.restore(name, work.progress.say)
    step = int(parallel.from_first_host(np.int32(found)))
    if step == 0:
        return 0, state, {}
    named = _named(parallel.of_first_device(state))
    arrays = parallel.from_first_host({name: saved.get(name, x) for name, x in named.items()})
    tree = jax.tree.unflatten(jax.tree.structure(state), [arrays[name] for name in named])
    work.progress.say(f"resumes at step {step}")
    return step, parallel.replicate(tree), {k: x for k, x in saved.items() if k not in named}


def _restored(work: Work, name: str, programs: Programs, state: Any):
    """Step, state and metrics of the last checkpoint, or of the start."""
    found, saved = work.job.folder.restore(name, work.progress.say)
    step = int(parallel.from_first_host(np.int32(found)))
    if step == 0:
        return 0, state, {}
    width = programs.width
    arrays = {
        name: np.zeros((width, *x.shape[2:]), x.dtype) if parallel.host() else saved[name]
        for name, x in _named(state).items()
    }
    arrays = {name: x[np.minimum(np.arange(width), len(x) - 1)] for name, x in arrays.items()}
    arrays = parallel.share(parallel.from_first_host(arrays), programs.devices, programs.lanes)
    leaves = [arrays[name] for name in _named(state)]
    history = {name: x for name, x in saved.items() if name.startswith(_METRIC)}
    work.progress.say(f"resumes at step {step}")
    return step, jax.tree.unflatten(jax.tree.structure(state), leaves), history


def _stop_if_asked(work: Work) -> None:
    if parallel.on_any_host(work.stopping()):
        raise Stopped


def _note(work: Work, places: np.ndarray, arrays: Arrays, step: int | None = None) -> None:
    """A line in the journal, and a warning that names the first NaN."""
    training = work.job.config.training if step is not None else None
    every = training.record_every if training else 0
    for name, x in arrays.items():
        if x.dtype.kind == "f" and np.isnan(x).any():
            # With steps as the first axis the earliest one is found first.
            by_step = np.swapaxes(x, 0, 1) if every else x[None]
            row, lane = np.argwhere(np.isnan(by_step))[0][:2]
            others = np.isnan(x).reshape(len(x), -1).any(axis=1).sum() - 1
            work.progress.say(
                f"nan in {name}"
                + (f" at step {step + row * every}" if every else "")
                + f" of {work.label(places[lane])}"
                + f" (and in {others} other points)" * bool(others)
            )
    work.job.folder.note(
        group=work.group.static,
        points=[int(work.group.index[i]) for i in (places[0], places[-1])],
        **({} if step is None else {"step": step + training.checkpoint_every}),
        mean={
            name: _finite(x.mean() if step is None else x[:, -1].mean())
            for name, x in arrays.items()
            if x.ndim == 1 + bool(every) and x.dtype.kind == "f"
        },
    )


_METRIC = "metrics."  # before the names of arrays with a dimension of steps
_PLACE = "_place"  # an argument that every sweep has, also one without traced axes


def _label(point: dict[str, Any]) -> str:
    """`beta=0.1, seed=3`; a sweep without axes has one point."""
    return ", ".join(f"{name}={label}" for name, label in point.items()) or "the only point"


def _gathered(outputs: dict[str, Any], count: int) -> Arrays:
    """What a program returned, without the points that only pad the batch; no half precision."""
    arrays = _first(count, parallel.gather(results.plain(outputs)))
    return {
        name: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x for name, x in arrays.items()
    }


def _first(count: int, arrays: dict[str, np.ndarray]) -> Arrays:
    return {name: np.asarray(x)[:count] for name, x in arrays.items()}


def _named(state: Any) -> dict[str, Any]:
    """The leaves of a state by their paths."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}


def _no_keys(state: Any) -> None:
    for name, leaf in _named(state).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{name} is a random key: step gets its own, init has to drop its key")


def _finite(value: np.floating) -> float | None:
    """For JSON, which has neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


# --------------------------------------------------------------------------------- the dataset


def _kept(job: Job, number: int, progress: Progress) -> np.ndarray:
    """`[points]` which points of a group are there; damaged files are reported and deleted."""
    there = np.zeros(len(job.groups[number].index), bool)
    for part in job.folder.points(number, progress.say):
        there[part.places] = True
    return parallel.from_first_host(there)


def _dataset(job: Job, progress: Progress) -> xr.Dataset:
    """All points, with a labelled coordinate for each axis."""
    grid, training = job.grid, job.trains
    arrays: Arrays = {}
    schema: results.Schema = {}
    left = np.ones(len(job.points), bool)
    for number, group in enumerate(job.groups):
        for part in job.folder.points(number, progress.say):
            found = results.from_json(part.schema)
            _refuse_other_results(schema or found, found, part.arrays, group)
            schema = schema or found
            for name, x in part.arrays.items():
                whole = arrays.setdefault(name, np.empty((len(job.points), *x.shape[1:]), x.dtype))
                if whole.shape[1:] != x.shape[1:]:
                    raise ValueError(
                        f"{name} must have one shape at all points, got {whole.shape[1:]} and"
                        f" {x.shape[1:]} at {_label(group.static)}"
                    )
                whole[group.index[part.places]] = x
            left[group.index[part.places]] = False
    if left.any():
        raise Refused(f"{left.sum()} points are missing; the same command computes them again")
    axes = {
        axis: (dim, list(grid.axes[axis]))
        for dim, together in grid.dims.items()
        for axis in together
    }
    if training:
        steps = np.arange(0, job.steps, job.config.training.record_every)
        axes |= {"step": ("step", steps)}
    return results.dataset(
        {
            name.removeprefix(_METRIC): x.reshape(grid.shape + x.shape[1:])
            for name, x in arrays.items()
        },
        {name.removeprefix(_METRIC): dims for name, dims in schema.items()},
        axes,
        tuple(grid.dims),
        {"experiment": job.config.experiment, "scale": job.config.scale},
    )


def _refuse_other_results(
    schema: results.Schema, found: results.Schema, arrays: Arrays, group: sweeps.Group
) -> None:
    """All points have the same results, with the same dimensions and labels."""
    for name in {**schema, **found, **arrays}:
        here = [name in names for names in (schema, found, arrays)]
        if not all(here):
            raise ValueError(
                f"{name} must be a result of all points, it is not at {_label(group.static)}"
                " or elsewhere"
            )
        if schema[name] != found[name]:
            raise ValueError(
                f"{name} must have the same dimensions and labels at all points,"
                f" it has others at {_label(group.static)}"
            )
