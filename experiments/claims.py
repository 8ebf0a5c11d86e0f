"""A claim: a paper's statement, the number measured here, the bound it has to meet, its controls."""

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
        "published": None if claim.published is None else np.asarray(claim.published).tolist(),
        "measured": _plain(claim.measured),
        "bound": [_plain(claim.low), _plain(claim.high)],
        "verdict": verdict(claim.supported),
        "controls": controls,
    }


def _plain(value: ArrayLike) -> Any:
    """Numbers for JSON, in which infinity and NaN do not exist: an infinite bound is null."""
    array = np.asarray(value, dtype=float)
    return np.where(np.isinf(array), None, array).tolist() if array.ndim else _number(array.item())


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
