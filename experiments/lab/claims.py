"""Claims: statements that can fail, each a function of the results, with what must refute it::

    @claim(source="Auer et al. 2002", published=2.25, reruns=({"exploration": 0.0},))
    def slope(results):
        \"\"\"The slope of the regret, to the last printed digit.\"\"\"
        return equals(2.25, results.slope.mean("seed"), decimals=2)

The function's name is the claim's, its docstring the statement, the order of the file the report's.
It takes the results, and the config if it asks for it. Two kinds of controls must refute it:

* `reruns` change the computation and run it anew: overrides of the config, such as the wrong
  direction of KL, the missing weight, a coefficient of zero;
* `wrong` reads the same results in a wrong way: arguments of the function, such as another formula.

A claim is about the sweep of the config's file, and judged by nothing else: where a run sweeps
other values it is "not tested" (see `needs`). A claim that looks at a part of an axis, or holds for
any values, says so and is tested wherever it can be::

    @claim(..., needs={"policy": ("UCB1", "KL-UCB"), "instance": ...})
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from ml_collections import ConfigDict
from numpy.typing import ArrayLike


class Finding(NamedTuple):
    """What was measured and what it has to meet: `low <= measured <= high` everywhere."""

    measured: ArrayLike
    low: ArrayLike = -np.inf
    high: ArrayLike = np.inf

    @property
    def supported(self) -> bool:
        """Whether all numbers lie within their bounds; a NaN does not."""
        measured = np.asarray(self.measured, dtype=float)
        return bool(np.all((self.low <= measured) & (measured <= self.high)))


# ------------------------------------------------------------------------------------------ bounds


def between(low: ArrayLike, measured: ArrayLike, high: ArrayLike) -> Finding:
    """The numbers lie between these.

    >>> between(1, [1.5, 2.5], (2, 3)).supported
    True
    """
    return Finding(np.asarray(measured), np.asarray(low), np.asarray(high))


def at_most(high: ArrayLike, measured: ArrayLike) -> Finding:
    """The numbers are no larger than this."""
    return between(-np.inf, measured, high)


def at_least(low: ArrayLike, measured: ArrayLike) -> Finding:
    """The numbers are no smaller than this."""
    return between(low, measured, np.inf)


def equals(
    expected: ArrayLike,
    measured: ArrayLike,
    *,
    decimals: ArrayLike | None = None,
    tolerance: ArrayLike = 0.0,
) -> Finding:
    """The numbers are the expected ones, to so many decimals of them, or within a tolerance.

    >>> equals(0.545, 0.54543, decimals=3).supported, equals(0.545, 0.5456, decimals=3).supported
    (True, False)
    """
    if decimals is not None:
        tolerance = 0.501 * 10.0 ** -np.asarray(decimals)
    expected = np.asarray(expected)
    return between(expected - tolerance, measured, expected + tolerance)


def within(
    expected: ArrayLike,
    draws: xr.DataArray,
    *,
    over: str = "seed",
    errors: float = 4.0,
    behind: float = np.inf,
    rounding: ArrayLike = 0.0,
) -> Finding:
    """The mean of the draws is the expected one, within so many standard errors of the difference.

    The expected number is itself a mean over `behind` draws (infinitely many if it is exact), and
    was rounded by at most `rounding`.
    """
    spread = draws.std(over, ddof=1) * np.sqrt(1 / draws.sizes[over] + 1 / behind)
    return equals(expected, draws.mean(over), tolerance=errors * spread.values + rounding)


def together(*findings: Finding) -> Finding:
    """Several findings as one: all of them have to hold."""
    parts = [
        np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in finding)) for finding in findings
    ]
    return Finding(
        *(np.concatenate([part[i].ravel() for part in parts]) for i in range(len(Finding._fields)))
    )


# ------------------------------------------------------------------------------------------ claims


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement that can fail."""

    function: Callable[..., Finding]
    source: str
    published: ArrayLike | None
    reference: ArrayLike | None
    reruns: tuple[Mapping[str, Any], ...]
    wrong: tuple[Mapping[str, Any], ...]
    needs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The function's."""
        return self.function.__name__

    @property
    def statement(self) -> str:
        """The docstring, as one paragraph."""
        return " ".join(inspect.getdoc(self.function).split())

    def __call__(self, results: xr.Dataset, config: ConfigDict, **wrong: Any) -> Finding:
        """What is found in these results; `wrong` are arguments that a control changes."""
        if "config" in inspect.signature(self.function).parameters:
            wrong = {"config": config, **wrong}
        return self.function(results, **wrong)


def claim(
    *,
    source: str,
    published: ArrayLike | None = None,
    reference: ArrayLike | None = None,
    reruns: tuple[Mapping[str, Any], ...] = (),
    wrong: tuple[Mapping[str, Any], ...] = (),
    needs: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Callable[..., Finding]], Claim]:
    """Makes a claim of a function of the results.

    `source` is the paper and the place. `published` are the numbers printed there or by its
    released code; `reference` those of an independent recomputation. Neither is what the function
    measures. `needs` are by axis the values that the function looks at, its wrong readings
    included, `...` if any will do; of an axis that is not named it needs all values of the config.
    """
    if not (reruns or wrong):
        raise TypeError(f"a claim needs a control, reruns or wrong (source {source!r})")

    def made(function: Callable[..., Finding]) -> Claim:
        parameters = inspect.signature(function).parameters
        unknown = {name for arguments in wrong for name in arguments} - set(parameters)
        if not function.__doc__ or unknown:
            lacks = f"the parameter {min(unknown)}" if unknown else "a docstring: its statement"
            raise TypeError(f"claim {function.__name__} lacks {lacks}")
        return Claim(function, source, published, reference, tuple(reruns), tuple(wrong),
                     dict(needs))  # fmt: skip

    return made


def claims_of(experiment: ModuleType) -> list[Claim]:
    """The claims of an experiment, in the order of its file."""
    return [value for value in vars(experiment).values() if isinstance(value, Claim)]


# ------------------------------------------------------------------------------------- claims.json


def record(
    claim: Claim, found: Finding, reruns: list[Finding], wrong: list[Finding]
) -> dict[str, Any]:
    """A claim as it stands in claims.json; open ends of the bound are null."""
    return {
        **_stated(claim),
        **_outcome(found),
        "bound": [_plain(found.low), _plain(found.high)],
        "reruns": [
            {"override": _as_json(override), **_outcome(control)}
            for override, control in zip(claim.reruns, reruns, strict=True)
        ],
        "wrong": [
            {"arguments": _as_json(arguments), **_outcome(control)}
            for arguments, control in zip(claim.wrong, wrong, strict=True)
        ],
    }


NOT_TESTED = "not tested"
"""The verdict on a claim that a run's sweep or config has no numbers for."""


def untested(claim: Claim, reason: str) -> dict[str, Any]:
    """A claim that was not tested as it stands in claims.json."""
    nothing = {"measured": None, "bound": [None, None], "reruns": [], "wrong": []}
    return {**_stated(claim), "verdict": NOT_TESTED, "reason": reason, **nothing}


def _stated(claim: Claim) -> dict[str, Any]:
    """What a claim says before anything was measured."""
    beside = {"published": claim.published, "reference": claim.reference}
    return {
        "name": claim.name,
        "source": claim.source,
        "statement": claim.statement,
        **{kind: None if x is None else _plain(x) for kind, x in beside.items()},
    }


def _as_json(control: Mapping[str, Any]) -> dict[str, Any]:
    """A control as JSON has it: tuples are lists."""
    return json.loads(json.dumps(control))


def _outcome(found: Finding) -> dict[str, Any]:
    verdict = "supported" if found.supported else "refuted"
    return {"measured": _plain(found.measured), "verdict": verdict}


def controls(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Both kinds of controls of a claim of claims.json."""
    return [*entry["reruns"], *entry["wrong"]]


def sound(entry: Mapping[str, Any]) -> bool:
    """Whether a claim of claims.json is supported and all of its controls refute it."""
    refuting = [control["verdict"] == "refuted" for control in controls(entry)]
    return entry["verdict"] == "supported" and bool(refuting) and all(refuting)


def failed(entry: Mapping[str, Any]) -> bool:
    """Whether a claim of claims.json is refuted, or one of its controls does not refute it."""
    return entry["verdict"] != NOT_TESTED and not sound(entry)


def shown(entry: Mapping[str, Any]) -> str:
    """Measured, bound, published and reference numbers of a claim of claims.json, in one line.

    >>> entry = {"measured": 0.25, "bound": [None, 0.5], "published": 0.3, "reference": None}
    >>> shown({"verdict": "supported", **entry})
    '0.25 (bound: at most 0.5; published: 0.3)'
    """
    if entry["verdict"] == NOT_TESTED:
        return entry["reason"]
    low, high = entry["bound"]
    if low is None:
        bound = f"at most {_short(high)}"
    elif high is None:
        bound = f"at least {_short(low)}"
    else:
        bound = f"{_short(low)} to {_short(high)}"
    beside = "".join(
        f"; {kind}: {_short(entry[kind])}"
        for kind in ("published", "reference")
        if entry[kind] is not None
    )
    return f"{_short(entry['measured'])} (bound: {bound}{beside})"


def _short(value: Any) -> str:
    """A number, a few of them, or the range of many."""
    if not isinstance(value, list):
        return "none" if value is None else f"{value:.4g}"
    numbers = np.asarray(value, dtype=object).ravel().tolist()
    if len(numbers) <= 6:
        return f"[{', '.join(map(_short, numbers))}]"
    finite = [number for number in numbers if number is not None]
    if not finite:
        return f"{len(numbers)} numbers, none finite"
    return f"{len(numbers)} numbers from {_short(min(finite))} to {_short(max(finite))}"


def _plain(value: ArrayLike) -> Any:
    """Numbers for JSON, where infinity and NaN do not exist: both are null."""
    array = np.asarray(value, dtype=float)
    return np.where(np.isfinite(array), array, None).tolist()
