import itertools

import numpy as np
import pytest

from experiments.lab import sweeps
from tests.checks import refused


def test_points_are_the_product_in_order():
    axes = {"a": (1, 2), "b": ("x", "y", "z"), "c": (0.5,)}
    expected = [
        dict(zip(axes, labels, strict=True)) for labels in itertools.product(*axes.values())
    ]
    assert list(sweeps.sweep(axes).points()) == expected
    assert sweeps.size(sweeps.sweep(axes)) == 6


def test_zipped_axes_advance_together():
    grid = sweeps.sweep({"a": (1, 2), "b": ("x", "y", "z"), "c": (3, 4)}, ("c,a",))
    expected = [{"c": c, "a": a, "b": b} for b in "xyz" for c, a in ((3, 1), (4, 2))]
    assert grid.dims == {"b": ("b",), "c": ("c", "a")}
    assert list(grid.points()) == [{"b": p["b"], "c": p["c"], "a": p["a"]} for p in expected]


def test_a_zipped_axis_may_repeat_itself():
    grid = sweeps.sweep({"a": (1, 2, 3), "b": (0.0, 1.0, 0.0)}, ("a,b",))
    assert list(grid.points())[2] == {"a": 3, "b": 0.0}


def test_no_axes_are_one_point():
    assert list(sweeps.sweep({}).points()) == [{}]
    (group,) = sweeps.groups(sweeps.sweep({}), ())
    assert group.index.tolist() == [0]


def test_groups_hold_every_point_once_with_its_labels():
    grid = sweeps.sweep(
        {"name": ("kl", "alpha"), "beta": (0.1, 1.0), "size": (4, 8), "seed": (0, 1, 2)},
        ("beta,size",),
    )
    points = list(grid.points())
    groups = sweeps.groups(grid, ("beta", "seed"))
    assert [group.static for group in groups] == [
        {"name": name, "size": size} for name in ("kl", "alpha") for size in (4, 8)
    ]
    seen = np.concatenate([group.index for group in groups])
    assert sorted(seen) == list(range(len(points)))
    for group in groups:
        for place, index in enumerate(group.index):
            traced = {name: labels[place] for name, labels in group.traced.items()}
            assert {**group.static, **traced} == points[index]


@pytest.mark.parametrize(
    ("axes", "zipped", "words"),
    [
        ({"beta": ()}, (), ["beta", "at least one"]),
        ({"beta": (1.0, "x")}, (), ["beta", "one type"]),
        ({"beta": (1.0, 1.0)}, (), ["beta", "1.0 more than once"]),
        ({"beta": (float("nan"),)}, (), ["beta", "nan"]),
        ({"beta": (None,)}, (), ["beta", "NoneType"]),
        ({"a": (1, 2), "b": (1,)}, ("a,b",), ["a 2, b 1"]),
        ({"beta": (1, 2), "b": (1, 2)}, ("beta,bata",), ["bata", "did you mean beta"]),
        ({"a": (1, 2), "b": (1, 2)}, ("a,b", "b,a"), ["twice or in another"]),
    ],
)
def test_refuses(axes, zipped, words):
    refused((ValueError, TypeError), words, lambda: sweeps.sweep(axes, zipped))


@pytest.mark.parametrize(
    ("given", "default", "expected"),
    [
        ((0.3,), (0.1, 0.2), (0.3,)),
        ((1, 2.5), (0.1,), (1.0, 2.5)),
        (("0:4",), (0, 1), (0, 1, 2, 3)),
        (("kl, alpha",), ("kl",), ("kl", "alpha")),
        ((3,), ("kl",), ("3",)),
        ((True,), (False, True), (True,)),
    ],
)
def test_an_override_takes_the_type_of_the_axis(given, default, expected):
    labels = sweeps.override("axis", given, default)
    assert labels == expected
    assert [type(label) for label in labels] == [type(label) for label in expected]


@pytest.mark.parametrize(("given", "default"), [(("x",), (0.1,)), ((1.5,), (1,)), ((1,), (True,))])
def test_an_override_of_another_type_is_refused(given, default):
    refused(
        TypeError,
        ["axis", type(default[0]).__name__],
        lambda: sweeps.override("axis", given, default),
    )


@pytest.mark.parametrize("given", ["0:x", "0:4:2", ":3"])
def test_a_range_is_start_and_stop(given):
    refused(ValueError, ["axis", "start:stop"], lambda: sweeps.override("axis", (given,), (0,)))
