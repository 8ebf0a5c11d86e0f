"""What of a sweep a claim is judged by: the values of the config's file, which a sweep may lack.

The bounds of a claim belong to the sweep that the config's file has at this scale. A run may sweep
other values: then a claim is judged by the points of the file, and what more there is is left out;
if one of them is missing it is not tested, with the reason. A claim's `needs` say that it looks at
some values of an axis only, or that it holds for any. Of the axis `seed` any values serve that are
as many. Controls are run with the sweep of the file, whatever the run sweeps.
"""

from typing import Any

import xarray as xr

from experiments.lab import sweeps
from experiments.lab.claims import Claim
from experiments.lab.job import Job
from experiments.lab.records import Refused

Row = tuple[sweeps.Label, ...]
"""Labels of one place of a dimension: as many as axes are zipped along it."""


def lacking(job: Job, claim: Claim) -> str | None:
    """Why the sweep of a job cannot test a claim, or None."""
    for dim, axes in job.own.dims.items():
        if job.grid.dims.get(dim) != axes:
            return f"needs config.zipped to have {','.join(axes)!r}"
        here, needed = job.grid.rows(dim), _needed(job, claim, dim)
        if _any_serve(claim, axes):
            if "seed" in set(axes) - set(claim.needs) and len(here) < len(needed):
                return f"needs {len(needed)} values of seed, the sweep has {len(here)}"
        elif missing := [row for row in needed if row not in here]:
            return f"needs {_shown(axes, missing[0])}"
    for name, own in job.own_fields.items():
        if own not in job.grid.axes[name]:
            return f"needs {_shown((name,), (own,))}"
    for override in claim.reruns:
        try:
            job.changed(override, job.folder)
        except Refused as error:
            return f"a control cannot be run: {error}"
    return None


def chosen(job: Job, claim: Claim, results: xr.Dataset) -> xr.Dataset:
    """The results that a claim is judged by."""
    places = {}
    for dim, axes in job.own.dims.items():
        if not _any_serve(claim, axes):
            here = job.grid.rows(dim)
            places[dim] = [here.index(row) for row in _needed(job, claim, dim)]
    return results.sel(job.own_fields).drop_vars(list(job.own_fields)).isel(places)


def chosen_of_control(job: Job, claim: Claim, results: xr.Dataset) -> xr.Dataset:
    """The results of a control that a claim is judged by; an axis that it changed is taken whole.

    `job` is the control's.
    """
    places = {}
    for dim, axes in job.grid.dims.items():
        kept = {axis: values for axis, values in claim.needs.items()
                if axis in axes and job.grid.axes[axis] == job.own.axes[axis]}  # fmt: skip
        places[dim] = [
            place for place, row in enumerate(job.grid.rows(dim)) if _is_needed(kept, axes, row)
        ]
    return results.isel(places)


def _needed(job: Job, claim: Claim, dim: str) -> list[Row]:
    """The places of the file's sweep that a claim looks at."""
    axes = job.own.dims[dim]
    return [row for row in job.own.rows(dim) if _is_needed(claim.needs, axes, row)]


def _is_needed(needs: dict[str, Any], axes: tuple[str, ...], row: Row) -> bool:
    return all(
        needs.get(axis, ...) is ... or label in needs[axis]
        for axis, label in zip(axes, row, strict=True)
    )


def _any_serve(claim: Claim, axes: tuple[str, ...]) -> bool:
    """Whether the claim holds for any values of these zipped axes."""
    return any(claim.needs.get(axis, ... if axis == "seed" else ()) is ... for axis in axes)


def _shown(axes: tuple[str, ...], row: Row) -> str:
    """`variant = 'KL', weight = 0.1`."""
    return ", ".join(f"{axis} = {label!r}" for axis, label in zip(axes, row, strict=True))
