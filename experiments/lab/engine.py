"""From a config to a labelled dataset: one program per static group, on all devices, safe to kill.

An experiment is a module with

* `TRACED`: names of the axes whose labels are arguments of the program; the others are static;
* `run(config, point, key)`: the results of one point, a dict of arrays; or, for long training,
  `init(config, point, key)`, the first state, and `step(config, point, state, key)`, the next state
  and a dict of metrics of the state before; then, if there is more to say at the end,
  `finish(config, point, state)`, a dict of arrays;
* `DIMS` and `coordinates(config)`, if its arrays have dimensions: their names and labels;
* `validate(config, point)`, if something can be wrong: a ValueError in one line;
* `figures(config, results)` and `claims(config, results)`.

All of these are pure functions. A point is a dict from axis to label. Fields below `config.claims`
are seen by `claims` only.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from ml_collections import ConfigDict

from experiments.lab import records, sweeps
from experiments.lab.progress import Progress
from jdiv import checkpoints, parallel

Arrays = dict[str, np.ndarray]


class Stopped(Exception):
    """The run was asked to stop; what was done is kept."""


def compute(
    experiment: ModuleType,
    config: ConfigDict,
    folder: pathlib.Path,
    progress: Progress,
    stopping: Callable[[], bool] = lambda: False,
) -> xr.Dataset | None:
    """The results of all points; None on all hosts but the first.

    Points are kept in `folder` as they come, and not computed again. Between two pieces of work
    `stopping` is asked, and if so `Stopped` is raised.
    """
    grid = sweeps.sweep(config.sweep, config.zipped)
    points = list(grid.points())
    groups = sweeps.groups(grid, experiment.TRACED)
    there = [_kept(folder, number, group, progress) for number, group in enumerate(groups)]
    steps = config.training.steps if trains(experiment) else 1
    progress.expect(
        len(points) * steps,
        "points" if steps == 1 else "steps of points",
        sum(int(group.sum()) for group in there) * steps,
    )
    journal = records.Journal(folder / "metrics.jsonl") if parallel.host() == 0 else None
    with precision(config):
        for number, group in enumerate(groups):
            missing = np.flatnonzero(~there[number])
            if not len(missing):
                continue
            named = [points[i] for i in group.index]
            work = Work(
                experiment, config, group, named, number, folder, progress, stopping, journal
            )
            work.compute(missing)
    return None if parallel.host() else _dataset(experiment, config, grid, groups, folder)


def trains(experiment: ModuleType) -> bool:
    """Whether it is a training loop."""
    return hasattr(experiment, "step")


@contextlib.contextmanager
def precision(config: ConfigDict) -> Iterator[None]:
    """float64 where the config says so; matrix products in the full precision of their type."""
    with (
        jax.enable_x64(config.precision == "float64"),
        jax.default_matmul_precision("highest"),
    ):
        yield


class Programs(NamedTuple):
    """What a group needs compiled: `run`, or the three parts of a training loop."""

    devices: int
    lanes: int
    run: Callable[..., Any] | None = None
    start: Callable[..., Any] | None = None
    chunk: Callable[..., Any] | None = None
    finish: Callable[..., Any] | None = None

    @property
    def width(self) -> int:
        """Points that all hosts compute at once."""
        return parallel.hosts() * self.devices * self.lanes


@dataclasses.dataclass(frozen=True)
class Work:
    """One group: the programs it needs, run over batches of its points."""

    experiment: ModuleType
    config: ConfigDict
    group: sweeps.Group
    points: list[dict[str, Any]]
    number: int
    folder: pathlib.Path
    progress: Progress
    stopping: Callable[[], bool]
    journal: records.Journal | None

    def compute(self, missing: np.ndarray) -> None:
        """Computes the points of the group at these places, batch after batch."""
        programs = self._compiled()
        width = programs.width
        for start in range(0, len(missing), width):
            self._stop_if_asked()
            places = missing[start : start + width]
            batch = self._train if trains(self.experiment) else self._run
            results = batch(programs, places)
            if parallel.host() == 0:
                path = _points_of(self.folder, self.number) / f"{places[0]:08}.npz"
                records.save_points(path, {"places": places, **results})

    # ------------------------------------------------------------------------- one point, traced

    def _point(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
        """A point with its static labels, and its key."""
        point = {name: x for name, x in arguments.items() if name != _PLACE}
        point |= self.group.static
        return point, jax.random.key(point.get("seed", 0))

    def _run_point(self, arguments):
        return self.experiment.run(self.config, *self._point(arguments))

    def _start_point(self, arguments):
        return self.experiment.init(self.config, *self._point(arguments))

    def _chunk_point(self, arguments, state, first):
        """`checkpoint_every` steps from step `first` on, metrics of every `record_every`-th."""
        point, key = self._point(arguments)
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

    def _finish_point(self, arguments, state):
        point, _ = self._point(arguments)
        return self.experiment.finish(self.config, point, state)

    # ------------------------------------------------------------------------------- programs

    def _compiled(self) -> Programs:
        """The programs, for as many points at once as the config allows and the memory holds."""
        devices = parallel.devices_for(len(self.points))
        count = -(-len(self.points) // (parallel.hosts() * devices))
        programs = self._compiled_for(devices, min(self.config.lanes, count))
        need = parallel.memory(programs.chunk or programs.run)
        limit = self.config.memory_gib * 2**30
        if need > limit and programs.lanes > 1:
            fewer = max(1, int(programs.lanes * limit / need))
            self.progress.say(
                f"{programs.lanes} points at once need {need / 2**30:.1f} GiB, now {fewer} at once"
            )
            programs = self._compiled_for(devices, fewer)
        return programs

    def _compiled_for(self, devices: int, lanes: int) -> Programs:
        size = Programs(devices, lanes)
        arguments = self._arguments(np.arange(1), size)
        if not trains(self.experiment):
            return size._replace(run=self._compile(self._run_point, arguments))
        start = self._compile(self._start_point, arguments)
        state = start(arguments)
        _no_keys(state)
        return size._replace(
            start=start,
            chunk=self._compile(self._chunk_point, arguments, state, np.int32(0), shared=1),
            finish=self._compile(self._finish_point, arguments, state)
            if hasattr(self.experiment, "finish")
            else None,
        )

    def _compile(self, f: Callable, *arguments: Any, shared: int = 0) -> Callable:
        with self.progress.compile():
            return parallel.compile_points(f, *arguments, shared=shared)

    def _arguments(self, places: np.ndarray, size: Programs) -> dict[str, np.ndarray]:
        """Labels of the traced axes at these places, `[devices, lanes]`."""
        labels = {name: labels[places] for name, labels in self.group.traced.items()}
        kinds = {"f": np.dtype(self.config.precision), "i": np.dtype(np.int32)}
        typed = {name: x.astype(kinds.get(x.dtype.kind, x.dtype)) for name, x in labels.items()}
        typed[_PLACE] = places.astype(np.int32)
        return parallel.share(typed, size.devices, size.lanes)

    # ------------------------------------------------------------------------------- batches

    def _run(self, programs: Programs, places: np.ndarray) -> Arrays:
        with self.progress.work(len(places)):
            results = programs.run(self._arguments(places, programs))
            results = _first(len(places), parallel.gather(results))
        self._note(places, results)
        return results

    def _train(self, programs: Programs, places: np.ndarray) -> Arrays:
        training = self.config.training
        name = f"{self.number:04}-{places[0]:08}-{len(places)}"
        folder = self.folder / "checkpoints" / name
        arguments = self._arguments(places, programs)
        state = programs.start(arguments)
        step, state, history = self._restored(folder, programs, state)
        while step < training.steps:
            self._stop_if_asked()
            with self.progress.work(len(places) * training.checkpoint_every):
                state, metrics = programs.chunk(arguments, state, np.int32(step))
                metrics = _first(len(places), parallel.gather(metrics))
            self._note(places, metrics, step)
            for name, x in metrics.items():
                parts = [history[_METRIC + name], x] if _METRIC + name in history else [x]
                history[_METRIC + name] = np.concatenate(parts, axis=1)
            step += training.checkpoint_every
            arrays = _first(len(places), parallel.gather(_named(state)))
            if parallel.host() == 0:
                checkpoints.save(folder, step, arrays | history, keep=training.checkpoints)
        if programs.finish is None:
            return history
        results = _first(len(places), parallel.gather(programs.finish(arguments, state)))
        self._note(places, results)
        return history | results

    def _restored(self, folder: pathlib.Path, programs: Programs, state: Any):
        """Step, state and metrics of the last checkpoint, or of the start."""
        found = None
        if parallel.host() == 0:
            found = checkpoints.restore(folder, report=self.progress.say)
        step = int(parallel.from_first_host(np.int32(found[0] if found else 0)))
        if step == 0:
            return 0, state, {}
        saved = found[1] if found else {}
        width = programs.width
        arrays = {
            name: saved.get(name, np.zeros((width, *x.shape[2:]), x.dtype))
            for name, x in _named(state).items()
        }
        arrays = {name: x[np.minimum(np.arange(width), len(x) - 1)] for name, x in arrays.items()}
        arrays = parallel.share(parallel.from_first_host(arrays), programs.devices, programs.lanes)
        leaves = [arrays[name] for name in _named(state)]
        history = {name: x for name, x in saved.items() if name.startswith(_METRIC)}
        self.progress.say(f"resumes at step {step}")
        return step, jax.tree.unflatten(jax.tree.structure(state), leaves), history

    def _stop_if_asked(self) -> None:
        if parallel.on_any_host(self.stopping()):
            raise Stopped

    def _note(self, places: np.ndarray, results: Arrays, step: int | None = None) -> None:
        """A line in the journal, and a warning that names the first NaN."""
        if self.journal is None:
            return
        every = self.config.training.record_every if step is not None else 0
        for name, x in results.items():
            if x.dtype.kind == "f" and np.isnan(x).any():
                # With steps as the first axis the earliest one is found first.
                by_step = np.swapaxes(x, 0, 1) if every else x[None]
                row, lane = np.argwhere(np.isnan(by_step))[0][:2]
                others = np.isnan(x).reshape(len(x), -1).any(axis=1).sum() - 1
                self.progress.say(
                    f"nan in {name}"
                    + (f" at step {step + row * every}" if every else "")
                    + f" of {_label(self.points[places[lane]])}"
                    + f" (and in {others} other points)" * bool(others)
                )
        self.journal.add(
            group=self.group.static,
            points=[int(self.group.index[i]) for i in (places[0], places[-1])],
            **({} if step is None else {"step": step + self.config.training.checkpoint_every}),
            mean={
                name: _finite(x.mean() if step is None else x[:, -1].mean())
                for name, x in results.items()
                if x.ndim == 1 + bool(every) and x.dtype.kind == "f"
            },
        )


_METRIC = "metrics."  # before the names of arrays with a dimension of steps
_PLACE = "_place"  # an argument that every sweep has, also one without traced axes


def _label(point: dict[str, Any]) -> str:
    """`beta=0.1, seed=3`; a sweep without axes has one point."""
    return ", ".join(f"{name}={label}" for name, label in point.items()) or "the only point"


def _first(count: int, results: dict[str, np.ndarray]) -> Arrays:
    """Without the points that only pad the batch; half precision as float32."""
    results = {name: np.asarray(x)[:count] for name, x in results.items()}
    return {
        name: x.astype(np.float32)
        if x.dtype == jnp.bfloat16 and not name.startswith("state")
        else x
        for name, x in results.items()
    }


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


def _points_of(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"points-{number:04}"


def _kept(folder: pathlib.Path, number: int, group: sweeps.Group, progress: Progress) -> np.ndarray:
    """`[points]` which points of a group are there; damaged files are reported and deleted."""
    there = np.zeros(len(group.index), bool)
    if parallel.host() == 0:
        for path in sorted(_points_of(folder, number).glob("*.npz")):
            try:
                there[records.load_points(path)["places"]] = True
            except ValueError as error:
                progress.say(f"{error}; its points are computed again")
                path.unlink()
    return parallel.from_first_host(there)


def _dataset(
    experiment: ModuleType,
    config: ConfigDict,
    grid: sweeps.Sweep,
    groups: list[sweeps.Group],
    folder: pathlib.Path,
) -> xr.Dataset:
    """All points, with a labelled coordinate for each axis."""
    arrays: Arrays = {}
    for number, group in enumerate(groups):
        for path in sorted(_points_of(folder, number).glob("*.npz")):
            part = records.load_points(path)
            places = group.index[part.pop("places")]
            for name, x in part.items():
                whole = arrays.setdefault(
                    name, np.zeros((sweeps.size(grid), *x.shape[1:]), x.dtype)
                )
                if whole.shape[1:] != x.shape[1:]:
                    raise ValueError(
                        f"{name} must have one shape at all points, got {whole.shape[1:]} and"
                        f" {x.shape[1:]} at {_label(group.static)}"
                    )
                whole[places] = x
    own = experiment.coordinates(config) if hasattr(experiment, "coordinates") else {}
    own = {name: np.asarray(labels) for name, labels in own.items()}
    if trains(experiment):
        training = config.training
        own = {"step": np.arange(0, training.steps, training.record_every), **own}
    variables = {}
    for name, x in arrays.items():
        by_step = ("step",) * name.startswith(_METRIC)
        name = name.removeprefix(_METRIC)
        dims = by_step + tuple(getattr(experiment, "DIMS", {}).get(name, ()))
        x = x.reshape(grid.shape + x.shape[1:])
        if x.ndim != len(grid.shape) + len(dims):
            raise ValueError(
                f"{name} has the shape {x.shape[len(grid.shape) :]}, and DIMS gives it {dims}"
            )
        variables[name] = ((*grid.dims, *dims), x)
    axes = {
        axis: (dim, list(grid.axes[axis]))
        for dim, together in grid.dims.items()
        for axis in together
    }
    attributes = {"experiment": config.experiment, "scale": config.scale}
    return xr.Dataset(variables, coords=axes | own, attrs=attributes)
