import resource
import shutil

import ml_dtypes
import numpy as np
import pytest

from jdiv import checkpoints

ARRAYS = {
    "state['w']": np.random.default_rng(0).normal(size=(50, 20)),
    "state[1].count": np.int32(7),
    "half": np.arange(4).astype(ml_dtypes.bfloat16),
    "flags": np.array([True, False]),
}


@pytest.fixture
def saved(tmp_path):
    """Steps 10, 20 and 30; the arrays of a step are multiplied by it."""
    for step in (10, 20, 30):
        checkpoints.save(tmp_path, step, {**ARRAYS, "step": np.int32(step)}, keep=3)
    return tmp_path


def restored(folder):
    said = []
    found = checkpoints.restore(folder, report=said.append)
    return found, said


def test_round_trip(saved):
    (step, arrays), said = restored(saved)
    assert step == arrays.pop("step") == 30
    assert not said
    assert arrays.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


def test_nothing_was_ever_saved(tmp_path):
    assert restored(tmp_path) == (None, [])
    assert restored(tmp_path / "missing") == (None, [])


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100):
        checkpoints.save(tmp_path, step, ARRAYS, keep=2)
    assert checkpoints.steps(tmp_path) == [10, 100]


def test_a_flipped_bit_in_any_file_is_noticed(saved):
    rng = np.random.default_rng(0)
    files = [path for path in (saved / "30").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        for place in rng.integers(len(whole), size=5):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            with pytest.raises(checkpoints.Unreadable, match="damaged"):
                checkpoints.load(saved, 30)
        path.write_bytes(whole)
    assert checkpoints.load(saved, 30)["step"] == 30


def truncate(path):
    largest = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def lose_a_file(path):
    max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size).unlink()


@pytest.mark.parametrize("damage", [truncate, empty, lose_a_file])
def test_a_damaged_step_is_skipped_with_a_message(saved, damage):
    damage(saved / "30")
    (step, arrays), (message,) = restored(saved)
    assert step == arrays["step"] == 20
    assert "30" in message
    assert "skipped" in message
    # It is put aside, so its number is free and it does not count as the newest again.
    assert checkpoints.steps(saved) == [10, 20]
    checkpoints.save(saved, 30, {"step": np.int32(31)}, keep=3)
    assert restored(saved)[0][1]["step"] == 31


def test_if_none_is_left_it_says_so_and_goes_on_saying_so(saved):
    for step in (10, 20, 30):
        truncate(saved / str(step))
    for _ in range(2):
        with pytest.raises(checkpoints.Unreadable, match="no readable checkpoint is left"):
            restored(saved)


def test_a_half_written_step_does_not_count(saved):
    shutil.copytree(saved / "30", saved / "40.saving")
    assert restored(saved)[0][0] == 30
    checkpoints.save(saved, 50, ARRAYS, keep=3)
    assert sorted(path.name for path in saved.iterdir()) == ["20", "30", "50"]


def test_a_full_disk_leaves_nothing_behind(saved):
    """A limit on the size of files fails the same calls as a disk without room."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoints.save(saved, 40, ARRAYS, keep=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in saved.iterdir()) == ["10", "20", "30"]
