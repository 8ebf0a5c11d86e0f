"""Sweeps: axes, their product, and the groups of points that one compiled program serves.

An axis is a name and a tuple of labels. Axes are multiplied, except those that are zipped, which
advance together along one dimension. An axis is *traced* if its labels are numbers that a program
takes as an argument, *static* if each label has a program of its own, and a *label* axis if it only
names points; points that agree in all static axes form a group.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jdiv.checks import known

Label = bool | int | float | str


class Sweep(NamedTuple):
    """The grid of a sweep."""

    axes: dict[str, tuple[Label, ...]]
    """Labels by axis, in the order of the dimensions."""
    dims: dict[str, tuple[str, ...]]
    """Axes by dimension: the axis itself, or those that are zipped, named after their first."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension; `()` without axes, which is a sweep of one point."""
        return tuple(len(self.axes[dim]) for dim in self.dims)

    def rows(self, dim: str) -> list[tuple[Label, ...]]:
        """The labels at each place of a dimension, of all axes that are zipped along it."""
        return list(zip(*(self.axes[axis] for axis in self.dims[dim]), strict=True))

    def points(self) -> Iterator[dict[str, Label]]:
        """Every point, the last dimension fastest.

        >>> list(sweep({"a": (1, 2), "b": ("x", "y"), "c": (3, 4)}, ("a,c",)).points())[1]
        {'a': 1, 'c': 3, 'b': 'y'}
        """
        for place in itertools.product(*map(range, self.shape)):
            yield {
                axis: self.axes[axis][i]
                for i, together in zip(place, self.dims.values(), strict=True)
                for axis in together
            }


class Group(NamedTuple):
    """Points that differ in traced axes only: one program computes all of them."""

    static: dict[str, Label]
    """Labels of the static axes."""
    traced: dict[str, np.ndarray]
    """`[points]` labels of the traced ones."""
    index: np.ndarray
    """`[points]` which points of the sweep they are."""


def sweep(axes: Mapping[str, Sequence[Label]], zipped: Sequence[str] = ()) -> Sweep:
    """The grid of these axes; an entry "a,b" of `zipped` makes a and b advance together.

    >>> sweep({"beta": (0.1, 1.0), "seed": (0, 1, 2)}).shape
    (2, 3)
    """
    axes = {name: axis(name, labels) for name, labels in axes.items()}
    for name in axes:
        # Of zipped axes the first names the dimension; the others may repeat themselves.
        if not any(name in map(str.strip, entry.split(",")[1:]) for entry in zipped):
            _refuse_repetition(name, axes[name])
    together = {name: (name,) for name in axes}
    for entry in zipped:
        names = tuple(name.strip() for name in entry.split(","))
        for name in names:
            known(f"zipped {entry!r}", name, axes)
            if together.pop(name, None) != (name,):
                raise ValueError(f"zipped {entry!r}: {name} is in it twice or in another entry")
        lengths = {name: len(axes[name]) for name in names}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {n}" for name, n in lengths.items())
            raise ValueError(f"zipped {entry!r}: axes must have the same length, got {listed}")
        together[names[0]] = names
    dims = {name: together[name] for name in axes if name in together}
    ordered = {name: axes[name] for names in dims.values() for name in names}
    return Sweep(ordered, dims)


def axis(name: str, labels: Sequence[Label]) -> tuple[Label, ...]:
    """The labels, checked: some, of one type, no NaN; integers mixed with floats become floats.

    >>> axis("beta", (1, 0.5))
    (1.0, 0.5)
    """
    labels = tuple(labels)
    if not labels:
        raise ValueError(f"{name} must have at least one value, got none")
    kinds = {type(label) for label in labels}
    if kinds == {int, float}:
        labels, kinds = tuple(map(float, labels)), {float}
    if len(kinds) > 1 or not kinds < {bool, int, float, str}:
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"{name} must hold numbers or strings of one type, got {listed}")
    if any(label != label for label in labels):
        raise ValueError(f"{name} must hold numbers, got nan")
    return labels


def _refuse_repetition(name: str, labels: tuple[Label, ...]) -> None:
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"{name} must hold different values, got {twice!r} more than once")


def override(name: str, given: Sequence[Any], default: Sequence[Label]) -> tuple[Label, ...]:
    """What a command line gives for a tuple of labels, in the type that its config has.

    A string may hold several labels with commas between, and "0:64" are the integers 0 to 63.

    >>> override("seed", ("0:3", 7), (0, 1)), override("name", ("kl,alpha",), ("kl",))
    ((0, 1, 2, 7), ('kl', 'alpha'))
    """
    kind = type(default[0])
    parts = [
        part
        for entry in given
        for part in (entry.split(",") if isinstance(entry, str) else (entry,))
    ]
    return tuple(label for part in parts for label in _parse(name, part, kind))


def _parse(name: str, part: Any, kind: type) -> Sequence[Label]:
    """One entry of an override as labels."""
    if kind is int and isinstance(part, str) and ":" in part:
        try:
            start, stop = (int(end) for end in part.split(":"))
        except ValueError:
            raise ValueError(f"{name} takes ranges as start:stop, got {part!r}") from None
        return range(start, stop)
    if kind is float and type(part) is int:
        return (float(part),)
    if kind is str and type(part) in (int, float, bool):
        return (str(part),)
    if type(part) is not kind:
        raise TypeError(f"{name} must hold values of type {kind.__name__}, got {part!r}")
    return (part.strip(),) if kind is str else (part,)


def groups(sweep: Sweep, traced: Collection[str], named: Collection[str] = ()) -> list[Group]:
    """The points by their static labels, in the order in which these first occur.

    Axes in `named` only give the points their names: no program sees them.

    >>> grid = sweep({"beta": (0.1, 1.0), "name": ("kl", "alpha")})
    >>> [(group.static, group.index.tolist()) for group in groups(grid, ("beta",))]
    [({'name': 'kl'}, [0, 2]), ({'name': 'alpha'}, [1, 3])]
    """
    gathered: dict[tuple, list[tuple[int, dict[str, Label]]]] = {}
    for i, point in enumerate(sweep.points()):
        static = tuple(
            (name, point[name]) for name in point if name not in traced and name not in named
        )
        gathered.setdefault(static, []).append((i, point))
    return [
        Group(
            static=dict(static),
            traced={
                name: np.array([point[name] for _, point in members])
                for name in sweep.axes
                if name in traced
            },
            index=np.array([i for i, _ in members]),
        )
        for static, members in gathered.items()
    ]


def size(sweep: Sweep) -> int:
    """How many points there are."""
    return math.prod(sweep.shape)
