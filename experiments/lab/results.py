"""Results with named dimensions, and the dataset they become.

An experiment returns arrays; one that has dimensions says their names where it is made::

    return {"loss": loss, "gap": labelled(gap, iteration=range(1, 101))}
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax import Array
from jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An array whose dimensions have names."""

    value: Array
    dims: tuple[str, ...]
    coordinates: tuple[tuple[str, tuple[Any, ...]], ...]


jax.tree_util.register_dataclass(
    Labelled, data_fields=["value"], meta_fields=["dims", "coordinates"]
)


def labelled(x: ArrayLike, *dims: str, **coordinates: Iterable[Any]) -> Labelled:
    """`x` with a name for each dimension; those given by keyword, which come last, have labels.

    >>> labelled(np.zeros((2, 3)), "state", action=("left", "stay", "right")).dims
    ('state', 'action')
    """
    labels = tuple((name, tuple(np.asarray(own).tolist())) for name, own in coordinates.items())
    dims = (*dims, *coordinates)
    if np.ndim(x) != len(dims):
        raise ValueError(f"an array of shape {np.shape(x)} is labelled with {len(dims)} {dims}")
    for name, values in labels:
        if np.shape(x)[dims.index(name)] != len(values):
            raise ValueError(f"{name} has {len(values)} labels, got an array of {np.shape(x)}")
    return Labelled(x, dims, labels)


class Dims(NamedTuple):
    """Dimensions of one result below those of the sweep, and their labels."""

    names: tuple[str, ...] = ()
    coordinates: tuple[tuple[str, tuple[Any, ...]], ...] = ()


Schema = dict[str, Dims]


Result = tuple[Dims, tuple[int, ...]]
"""A result's dimensions and, of those that the engine does not add, the shape."""


def found(outputs: Any, leading: tuple[str, ...] = ()) -> dict[str, Result]:
    """What a program returns for `[devices, lanes]` points.

    `leading` are dimensions that the engine adds in front.
    """
    if not isinstance(outputs, Mapping):
        raise ValueError(f"it must return a dict of arrays, got {type(outputs).__name__}")
    results = {}
    for name, x in outputs.items():
        own = Dims(x.dims, x.coordinates) if isinstance(x, Labelled) else Dims()
        shape = (x.value if isinstance(x, Labelled) else x).shape[2 + len(leading) :]
        if len(shape) != len(own.names):
            raise ValueError(f"{name} has the shape {shape}: say labelled({name}, ...)")
        results[name] = Dims(leading + own.names, own.coordinates), shape
    return results


def plain(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays alone."""
    return {name: x.value if isinstance(x, Labelled) else x for name, x in outputs.items()}


def to_json(schema: Schema) -> str:
    """A schema as text, to be kept beside the arrays."""
    return json.dumps(schema)


def from_json(text: str) -> Schema:
    """The schema of a text."""
    return {
        name: Dims(tuple(names), tuple((dim, tuple(labels)) for dim, labels in coordinates))
        for name, (names, coordinates) in json.loads(text).items()
    }


def dataset(
    arrays: Mapping[str, np.ndarray],
    schema: Schema,
    axes: Mapping[str, tuple[str, list[Any]]],
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """All points, with a labelled coordinate for each axis and each dimension that has labels."""
    variables = {name: ((*dims, *schema[name].names), x) for name, x in arrays.items()}
    coordinates: dict[str, Any] = dict(axes)
    for name in arrays:
        for dim, labels in schema[name].coordinates:
            labels = np.asarray(labels)
            if dim in coordinates and not np.array_equal(coordinates[dim], labels):
                raise ValueError(f"the labels of {dim} differ between {name} and another result")
            coordinates[dim] = labels
    return xr.Dataset(variables, coords=coordinates, attrs=attributes)
