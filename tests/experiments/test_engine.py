import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from ml_collections import ConfigDict

from configs import defaults
from experiments.lab import engine
from experiments.lab.axes import (
    at_least,
    each,
    inside,
    labels,
    non_negative,
    one_of,
    positive,
    real,
    seeds,
)
from experiments.lab.job import planned
from experiments.lab.progress import Progress
from experiments.lab.records import Folder, Refused, Stopped
from experiments.lab.results import labelled
from jdiv import checkpoints, parallel
from tests.experiments import toys


class Said(list):
    """A stream that keeps its lines."""

    def write(self, text):
        self.extend(line for line in text.split("\n") if line)

    def flush(self):
        pass

    def isatty(self):
        return False


@pytest.fixture
def compute(tmp_path):
    """Runs the engine in a folder; returns the results, what was said, and the progress."""

    def run(toy, config, folder=tmp_path, stopping=lambda: False, made=None):
        said = Said()
        progress = Progress("toy", said)
        job = planned(toy, config, Folder(folder))
        return engine.compute(job, progress, stopping, made), said, progress

    return run


def expected_sweep(config):
    """The toy sweep point by point, eagerly."""
    results = {}
    for rate, power in zip(config.sweep.rate, config.sweep.power, strict=True):
        for name in config.sweep.name:
            for seed in config.sweep.seed:
                point = {"rate": rate, "power": power, "name": name, "seed": seed}
                with jax.enable_x64(False):
                    results[rate, name, seed] = toys.SWEEP.run(config, point, jax.random.key(seed))
    return results


def test_every_point_is_where_its_labels_say(compute):
    config = toys.config(seeds=3)
    results, _, _ = compute(toys.SWEEP, config)
    assert dict(results.sizes) == {"rate": 3, "name": 2, "seed": 3, "letter": 3}
    assert results.power.dims == ("rate",)
    for (rate, name, seed), expected in expected_sweep(config).items():
        found = results.sel(rate=rate, name=name, seed=seed)
        np.testing.assert_allclose(found.total, expected["total"], rtol=1e-6)
        np.testing.assert_allclose(found.path, expected["path"].value, rtol=1e-6)
    assert results.total.sel(rate=0.1).mean("seed").dims == ("name",)


def test_a_program_serves_other_labels_of_its_traced_axes(compute, tmp_path):
    made, other = {}, {"sweep.rate": (0.4, 0.5, 0.6)}
    _, _, first = compute(toys.SWEEP, toys.config(seeds=2), tmp_path / "first", made=made)
    config = toys.config(seeds=2)
    config.update_from_flattened_dict(other)
    results, _, progress = compute(toys.SWEEP, config, tmp_path / "other", made=made)
    assert (first.programs, progress.programs) == (2, 0)
    for (rate, name, seed), expected in expected_sweep(config).items():
        found = results.total.sel(rate=rate, name=name, seed=seed)
        np.testing.assert_allclose(found, expected["total"], rtol=1e-6)
    # A field of the config may be anything in a program.
    config = toys.config(seeds=2)
    config.update_from_flattened_dict({"sign": -1.0})
    results, _, progress = compute(toys.SWEEP, config, tmp_path / "sign", made=made)
    assert progress.programs == 2
    (where, expected), *_ = expected_sweep(config).items()
    found = results.total.sel(dict(zip(("rate", "name", "seed"), where, strict=True)))
    np.testing.assert_allclose(found, expected["total"], rtol=1e-6)


def test_a_program_does_not_see_labels_of_traced_axes_in_the_config(compute):
    def run(config, point, key):
        return {"first": config.sweep.rate[0] * point["rate"]}

    with pytest.raises(AttributeError, match="rate"):
        compute(toys.module(run=run), toys.config(seeds=2))


def test_training_is_the_loop_that_it_says(compute):
    config = toys.config(trains=True, seeds=2)
    results, _, _ = compute(toys.TRAINING, config)
    point = {"rate": jnp.float32(0.2), "power": 2, "name": "abs", "seed": 1}
    losses = []
    with jax.enable_x64(False):
        key = jax.random.key(1)
        state = toys.TRAINING.init(config, point, key)
        step = jax.jit(lambda state, key: toys.TRAINING.step(config, point, state, key))
        for number in range(config.training.steps):
            state, metrics = step(state, jax.random.fold_in(key, number))
            losses.append(metrics["loss"])
    found = results.sel(rate=0.2, name="abs", seed=1)
    assert found.step.values.tolist() == list(range(0, 60, 5))
    np.testing.assert_allclose(found.loss, losses[::5], rtol=1e-5)
    np.testing.assert_allclose(found.end, state["path"].sum(), rtol=1e-5)
    assert found["count"] == 60


def test_a_thousand_points_are_as_many_programs_as_there_are_groups(compute):
    config = toys.config()
    config.update_from_flattened_dict({"sweep.seed": tuple(range(171)), "lanes": 64})
    lowered = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: lowered.append(name) if "backend_compile" in name else None
    )
    _, _, progress = compute(toys.SWEEP, config)
    assert progress.done == 3 * 2 * 171 >= 1024
    assert progress.programs == len(lowered) == 2


def test_points_of_another_batch_size_are_the_same(compute, tmp_path):
    results, _, _ = compute(toys.SWEEP, toys.config(lanes=1))
    (tmp_path / "again").mkdir()
    again, _, _ = compute(toys.SWEEP, toys.config(lanes=4), tmp_path / "again")
    xr.testing.assert_allclose(results, again, rtol=1e-6)


def test_batches_shrink_to_the_memory(compute):
    config = toys.config(lanes=4)
    hungry = toys.module(
        run=lambda config, point, key: {"total": jnp.sort(jax.random.normal(key, (1000,)))[0]}
    )
    config.memory_gib = 3e4 / 2**30
    _, said, _ = compute(hungry, config)
    assert any("4 points at once need" in line for line in said)


def test_float64_is_what_the_config_asks_for(compute):
    config = toys.config(seeds=1)
    config.precision = "float64"
    assert compute(toys.SWEEP, config)[0].total.dtype == np.float64


def test_finished_points_are_kept_and_a_damaged_file_is_computed_again(compute, tmp_path):
    config = toys.config(seeds=16, lanes=1)
    results, _, progress = compute(toys.SWEEP, config)
    assert progress.fresh == 96
    files = sorted(tmp_path.glob("points-*/*.npz"))
    assert len(files) == 12
    whole = files[3].read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"path.npy") + 200] ^= 16  # behind the headers of the archive and the array
    files[3].write_bytes(damaged)
    files[7].write_bytes(whole[:-30])
    again, said, progress = compute(toys.SWEEP, config)
    assert progress.fresh == 16
    assert sum("is damaged" in line and "computed again" in line for line in said) == 2
    xr.testing.assert_identical(results, again)


def test_stopping_keeps_what_is_done(compute):
    config = toys.config(trains=True, seeds=4)
    whole, _, _ = compute(toys.TRAINING, config, folder=_new("whole"))
    folder, pieces = _new("stopped"), 0
    while True:
        asked = iter([False, False])
        try:
            resumed, _, _ = compute(
                toys.TRAINING, config, folder, stopping=lambda asked=asked: next(asked, True)
            )
            break
        except Stopped:
            pieces += 1
    assert pieces > 5
    xr.testing.assert_identical(whole, resumed)


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _new(name):
    folder = pathlib.Path(name)
    folder.mkdir()
    return folder


def test_damaged_checkpoints_are_said_and_never_started_over(compute, tmp_path):
    config = toys.config(trains=True, seeds=1)

    def stopped_after(questions):
        asked = iter([False] * questions)
        said = Said()
        job = planned(toys.TRAINING, config, Folder(tmp_path))
        with pytest.raises(Stopped):
            engine.compute(job, Progress("toy", said), lambda: next(asked, True))
        return said

    stopped_after(4)
    (folder,) = tmp_path.glob("checkpoints/*")
    assert checkpoints.steps(folder) == [20, 30]
    (folder / "30" / "sha256").unlink()
    first, second = stopped_after(2)
    assert "30 is incomplete: it has no checksum; skipped" in first
    assert second == "toy: resumes at step 20"
    for step in checkpoints.steps(folder):
        (folder / str(step) / "sha256").unlink()
    with pytest.raises(checkpoints.Unreadable, match="no readable checkpoint is left"):
        compute(toys.TRAINING, config)


def test_a_nan_names_metric_step_and_point(compute):
    def step(config, point, state, key):
        bad = (point["seed"] == 2) & (point["rate"] > 0.15) & (state >= 10)
        return state + 1, {"loss": jnp.where(bad, jnp.nan, 1.0)}

    toy = toys.module(init=lambda config, point, key: jnp.float32(0), step=step)
    _, said, _ = compute(toy, toys.config(trains=True, seeds=4, lanes=64))
    found = [line for line in said if "nan" in line]
    assert "toy: nan in loss at step 10 of name=abs, rate=0.2, power=2, seed=2" in found[0]
    assert "1 other point" in found[0]


def test_a_nan_of_a_sweep_names_metric_and_point(compute):
    toy = toys.module(
        run=lambda config, point, key: {"x": jnp.where(point["seed"] == 1, jnp.nan, 1.0)}
    )
    _, said, _ = compute(toy, toys.config(seeds=2, lanes=64))
    assert "nan in x of name=abs, rate=0.1, power=1, seed=1 (and in 2 other points)" in said[0]


def test_the_journal_has_a_line_for_each_piece(compute, tmp_path):
    compute(toys.TRAINING, toys.config(trains=True, seeds=1))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == [10, 20, 30, 40, 50, 60] * 2
    assert all(np.isfinite(line["mean"]["loss"]) for line in lines if "step" in line)


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ({"run": lambda config, point, key: {"x": jnp.ones(3)}}, r"say labelled\(x"),
        (
            {
                "run": lambda config, point, key: {
                    "path": labelled(jnp.ones(3 if point["name"] == "abs" else 4), "letter")
                }
            },
            "path must have one shape .* it has others at name=square",
        ),
        (
            {
                "run": lambda config, point, key: {
                    "path": labelled(jnp.ones(2), letter=(0, 1 if point["name"] == "abs" else 2))
                }
            },
            "the same dimensions and labels at all points",
        ),
        (
            {"run": lambda config, point, key: {"x" if point["name"] == "abs" else "y": 1.0}},
            "must have one shape .* it has others at name=square",
        ),
        (
            {"run": lambda config, point, key: jnp.ones(())},
            "atlas: run: it must return a dict",
        ),
        ({"run": lambda config, point, key: [jnp.ones(())]}, "run: it must return a dict"),
    ],
)
def test_arrays_that_do_not_fit_are_named(compute, functions, words):
    with pytest.raises(Refused, match=words):
        compute(toys.module(**functions), toys.config(seeds=1))


def test_a_key_in_a_state_is_refused(compute):
    toy = toys.module(init=lambda config, point, key: {"key": key}, step=None)
    with pytest.raises(TypeError, match="random key"):
        compute(toy, toys.config(trains=True, seeds=1))


def test_results_survive_their_file(compute, tmp_path):
    config = defaults.get_config("estimation/atlas", "smoke")
    config.sweep = ConfigDict({"flag": (False, True), "seed": (1, 2)})
    toy = toys.module(
        run=lambda config, point, key: {"half": jnp.bfloat16(1.5), "flag_too": point["flag"]}
    )
    toy.AXES = {"flag": real, "seed": seeds}
    results, _, _ = compute(toy, config.lock())
    assert results.half.dtype == np.float32
    Folder(tmp_path).save_results(results)
    xr.testing.assert_identical(Folder(tmp_path).results(), results)


def test_a_label_axis_names_points_and_no_program_sees_it(compute):
    seen = []

    def run(config, point, key):
        seen.append(sorted(point))
        return {"x": point["rate"] * 10}

    toy = toys.module(run=run)
    toy.AXES |= {"power": labels, "name": labels}
    config = toys.config(seeds=1)
    config.sweep.name = ("slow", "medium", "fast")
    config.sweep.power = (1, 2, 3)
    config.zipped = ("name,rate,power",)
    results, _, progress = compute(toy, config)
    assert progress.programs == 1
    assert seen == [["rate", "seed"]]
    assert results.x.sel(name="medium").item() == pytest.approx(2)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"rate": inside(0, 0.25)}, "config.sweep.rate must be above 0 and below 0.25, got 0.3"),
        ({"power": at_least(2)}, "config.sweep.power must be at least 2, got 1"),
        ({"name": one_of(("abs", "cube"))}, "config.sweep.name: no 'square'; known are abs, cube"),
        ({"rat": positive}, "AXES declares rate, power, name, seed, rat, config.sweep has"),
    ],
)
def test_axes_are_declared_and_checked_before_any_work(compute, axes, words):
    toy = toys.module(run=None)
    toy.AXES |= axes
    with pytest.raises(Refused, match=re.escape(words)):
        compute(toy, toys.config())


def test_fields_are_declared_and_checked_before_any_work(compute):
    toy = toys.module(run=None)
    toy.FIELDS = {"sign": non_negative, "zipped": each(one_of(("rate,power",)))}
    config = toys.config()
    config.sign = -1.0
    with pytest.raises(Refused, match=r"config.sign must not be negative, got -1.0"):
        compute(toy, config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"figures": None}, "has no figures"),
        ({"run": None}, "has no run"),
        ({"AXES": None}, "has no AXES"),
        ({"init": lambda config, point, key: 0}, "has no step"),
        ({"AXES": {"rate": "traced"}}, r"AXES\['rate'\] must be one of"),
    ],
)
def test_what_an_experiment_lacks_is_said_before_any_work(compute, changes, words):
    toy = toys.module(run=toys.SWEEP.run)
    for name, value in changes.items():
        toy.__dict__.pop(name, None)
        if value is not None:
            setattr(toy, name, value)
    with pytest.raises(Refused, match=words):
        compute(toy, toys.config())


def test_a_point_alone_is_the_loop_that_it_says_and_resumes_to_the_bit(compute, tmp_path):
    """Plain functions that do what no program can, stopped after every piece; what they keep."""

    def init(config, point, key):
        return parallel.replicate({"x": jax.random.normal(key, (3,)), "count": np.int32(0)})

    def step(config, point, state, key):
        here = parallel.of_first_device(state)
        word = ["even", "odd"][int(here["count"]) % 2]  # no program has this
        noise = np.asarray(jax.random.normal(key, (3,))) * len(word) * point["rate"]
        after = {"x": here["x"] + noise, "count": here["count"] + 1}
        return parallel.replicate(after), {"path": labelled(here["x"], letter=toys.LETTERS)}

    def finish(config, point, state):
        return {"end": parallel.of_first_device(state)["x"].sum()}

    def keep(config, point, state, folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "x.txt").write_text(str(parallel.of_first_device(state)["x"].sum()))

    toy = toys.module(
        ONE_AT_A_TIME=True, init=init, step=step, finish=finish, keep=keep, positive=None
    )
    config = toys.config(trains=True, seeds=2)
    config.update_from_flattened_dict({"sweep.rate": (0.1, 0.3), "sweep.power": (1, 2)})
    config.sweep.name = ("abs",)
    whole, _, _ = compute(toy, config, folder=_new("whole"))
    point, key = {"rate": 0.3}, jax.random.key(1)
    with jax.enable_x64(False):
        state, path = init(config, point, key), []
        for number in range(60):
            state, metrics = step(config, point, state, jax.random.fold_in(key, number))
            path.append(metrics["path"].value)
    found = whole.sel(rate=0.3, name="abs", seed=1)
    np.testing.assert_array_equal(found.path, np.array(path)[::5])
    assert float(found.end) == parallel.of_first_device(state)["x"].sum()
    (kept,) = pathlib.Path("whole/models").glob("*rate=0.3*seed=1*/inner/x.txt")
    assert np.float32(kept.read_text()) == found.end.values
    folder, pieces = _new("stopped"), 0
    while True:
        asked = iter([False])
        try:
            resumed, _, _ = compute(
                toy, config, folder, stopping=lambda asked=asked: next(asked, True)
            )
            break
        except Stopped:
            pieces += 1
    assert pieces == 4 * 6 - 1
    xr.testing.assert_identical(whole, resumed)
