"""A claim: a statement, the number measured here, the bound it has to meet, its controls."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Claim(NamedTuple):
    """One statement that can fail.

    `claims(config, results)` of an experiment returns a list of these. A control is an override of
    the config, `{"reference": "forward", "sweep.seed": (0,)}`, under which the claim of the same
    name must be refuted: the wrong direction, the missing weight, a coefficient of zero. The engine
    runs the controls and says whether they did.
    """

    name: str
    """A few words, unique within the experiment, lower case with hyphens."""
    source: str
    """Paper and place: `Schulman 2020, first table`."""
    statement: str
    """What the source says, in one sentence; or that only the shape is known and not the number."""
    measured: ArrayLike
    """What came out: a number, or an array of them."""
    low: ArrayLike = -np.inf
    """The claim holds if `low <= measured <= high` everywhere; a NaN refutes it."""
    high: ArrayLike = np.inf
    controls: tuple[Mapping[str, Any], ...] = ()
    """Overrides of the config that must refute the claim; at least one."""
    published: ArrayLike | None = None
    """The published number or numbers, None where the source gives none."""

    @property
    def supported(self) -> bool:
        """Whether the measured numbers lie within the bound."""
        measured = np.asarray(self.measured, dtype=float)
        return bool(np.all((self.low <= measured) & (measured <= self.high)))


def verdict(supported: bool) -> str:
    """The word for it."""
    return "supported" if supported else "refuted"


def record(claim: Claim, controls: list[dict[str, Any]]) -> dict[str, Any]:
    """A claim as it stands in claims.json; open ends of the bound are null."""
    return {
        "name": claim.name,
        "source": claim.source,
        "statement": claim.statement,
        "published": None if claim.published is None else _plain(claim.published),
        "measured": _plain(claim.measured),
        "bound": [_plain(claim.low), _plain(claim.high)],
        "verdict": verdict(claim.supported),
        "controls": controls,
    }


def shown(entry: dict[str, Any]) -> str:
    """Measured, bound and published numbers of a claim of claims.json, in one line.

    >>> shown({"measured": 0.25, "bound": [None, 0.5], "published": 0.3})
    '0.25 (bound: at most 0.5; published: 0.3)'
    """
    low, high = entry["bound"]
    if low is None:
        bound = f"at most {_short(high)}"
    elif high is None:
        bound = f"at least {_short(low)}"
    else:
        bound = f"{_short(low)} to {_short(high)}"
    published = "" if entry["published"] is None else f"; published: {_short(entry['published'])}"
    return f"{_short(entry['measured'])} (bound: {bound}{published})"


def _short(value: Any) -> str:
    """A number, a few of them, or the range of many."""
    if not isinstance(value, list):
        return "none" if value is None else f"{value:.4g}"
    numbers = np.asarray(value, dtype=object).ravel().tolist()
    if len(numbers) <= 6:
        return f"[{', '.join(map(_short, numbers))}]"
    finite = [number for number in numbers if number is not None]
    return f"{len(numbers)} numbers from {_short(min(finite))} to {_short(max(finite))}"


def _plain(value: ArrayLike) -> Any:
    """Numbers for JSON, where infinity and NaN do not exist: both are null."""
    array = np.asarray(value, dtype=float)
    return np.where(np.isfinite(array), array, None).tolist()
