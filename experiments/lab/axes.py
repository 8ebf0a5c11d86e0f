"""What an axis, or a field of a config, may hold: declared once, refused in one line::

    AXES = {"scheme": labels, "beta": positive, "generator": one_of(TABLE), "seed": seeds}
    FIELDS = {"iterations": at_least(300)}

Axes of numbers are *traced*: their labels are arguments of one program. Axes of words, and those
wrapped in `static`, are *static*: each label has a program of its own. A *label* axis only names
the rows of a zipped sweep; no program sees it.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.lab import settings
from jdiv import checks


class Axis(NamedTuple):
    """What is allowed, and how a program takes it."""

    refuse: Callable[[str, Any], None]
    """`refuse(name, label)` raises a ValueError that says what is allowed."""
    role: str = "traced"
    """`traced`, `static` or `label`."""


def _number(must: str, allowed: Callable[[Any], bool]) -> Axis:
    def refuse(name: str, value: Any) -> None:
        if isinstance(value, str) or not allowed(value):
            raise ValueError(f"{name} must {must}, got {value!r}")

    return Axis(refuse)


real = _number("be a number", lambda x: True)
positive = _number("be positive", lambda x: x > 0)
non_negative = _number("not be negative", lambda x: x >= 0)
fraction = _number("be between 0 and 1", lambda x: 0 <= x <= 1)
proper_fraction = _number("be at least 0 and below 1", lambda x: 0 <= x < 1)
seeds = _number("not be negative", lambda x: x >= 0)
"""The random key of a point."""


def at_least(least: float) -> Axis:
    """Numbers from `least` on."""
    return _number(f"be at least {least}", lambda x: x >= least)


count = at_least(1)
"""How many: states, draws, iterations."""
process = {"states": count, "actions": count, "branches": count, "discount": proper_fraction}
"""The fields of a random process, whose states have so many successors."""


def in_order(config: ConfigDict, less: str, more: str) -> None:
    """Refuses a field that is larger than another one: `in_order(config, "branches", "states")`."""
    low, high = settings.field(config, less), settings.field(config, more)
    if low > high:
        raise ValueError(f"config.{less} must be at most config.{more} = {high}, got {low}")


def above(low: float) -> Axis:
    """Numbers above `low`."""
    return _number(f"be above {low}", lambda x: x > low)


def between(low: float, high: float) -> Axis:
    """Numbers from `low` to `high`, both included."""
    return _number(f"be between {low} and {high}", lambda x: low <= x <= high)


def inside(low: float, high: float) -> Axis:
    """Numbers between `low` and `high`, both excluded."""
    return _number(f"be above {low} and below {high}", lambda x: low < x < high)


def one_of(names: Collection[Any]) -> Axis:
    """One of these names, each with a program of its own."""

    def refuse(name: str, value: Any) -> None:
        if value not in names:
            checks.known(name, str(value), [str(allowed) for allowed in names])

    return Axis(refuse, "static")


def each(element: Axis) -> Axis:
    """For a field that is a tuple: the same for each of its elements."""

    def refuse(name: str, value: Any) -> None:
        for part in value:
            element.refuse(name, part)

    return Axis(refuse, "static")


def static(axis: Axis) -> Axis:
    """The same values, but each has a program of its own: sizes, counts of steps."""
    return axis._replace(role="static")


labels = Axis(lambda name, label: None, "label")
"""Names for the rows of a zipped sweep."""
