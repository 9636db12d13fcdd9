"""The tables of all cells as one, over the axes of the grid; what a cell does not have is NaN (of words, nothing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.checks import ModelError
from propagate.sweeps.cells import Axis, Cell
from propagate.table import JOINED, STREAM

if TYPE_CHECKING:
    import xarray as xr


def assembled(axes: Sequence[Axis], cells: Sequence[Cell], tables: Sequence[xr.Dataset], prefix: str) -> xr.Dataset:
    """One verb's tables as one.

    Coordinates inside are all that any cell has: numbers in order, words in the order in which they first occur. Where
    some networks have several streams, those of one have it under "joined".

    Args:
        axes: of the grid.
        cells: all of them.
        tables: of each cell.
        prefix: before every column's name.

    Example: networks of unequal depth.
        >>> import propagate as pg
        >>> axes = [Axis("depth", "depth", (1, 2))]
        >>> models = [pg.Model("postnorm", depth=depth) for depth in (1, 2)]
        >>> cells = [Cell((i,), model, "") for i, model in enumerate(models)]
        >>> found = assembled(axes, cells, [pg.predict(model) for model in models], "")
        >>> found.variance.values.round(9).tolist()
        [[1.0, 1.0, nan], [1.0, 1.0, 1.0]]
    """
    import xarray as xr

    tables = _same_streams(tables)
    inside = {dim: _union([table_labels(table, dim) for table in tables if dim in table.dims]) for dim in _dims(tables)}
    places = {dim: {label: i for i, label in enumerate(labels)} for dim, labels in inside.items()}
    shape = tuple(len(axis.values) for axis in axes)
    variables: dict[str, Any] = {}
    for name in dict.fromkeys(str(name) for table in tables for name in table.data_vars):
        held = [(cell, table[name]) for cell, table in zip(cells, tables, strict=True) if name in table]
        dims, attrs = tuple(map(str, held[0][1].dims)), held[0][1].attrs
        if any(set(array.dims) != set(dims) for _, array in held):
            raise ModelError(f"{name} must have the same dimensions in every cell, got {dims} in some only")
        words = held[0][1].dtype.kind in "OUST"
        sizes = tuple(len(inside[dim]) for dim in dims)
        whole: Any = np.full(shape + sizes, "" if words else np.nan, object if words else float)
        for cell, array in held:
            at = [[places[dim][label] for label in table_labels(array, dim)] for dim in dims]
            whole[(*cell.place, *np.ix_(*at))] = array.transpose(*dims).to_numpy() if dims else array.to_numpy()[()]
        variables[prefix + name] = (*(axis.name for axis in axes), *dims), whole.astype(str) if words else whole, attrs
    coords = {axis.name: axis.labels for axis in axes}
    coords |= {dim: labels for dim, labels in inside.items() if any(dim in table.coords for table in tables)}
    return xr.Dataset(variables, coords, _common([table.attrs for table in tables]))


def table_labels(table: xr.Dataset | xr.DataArray, dim: str) -> list[Any]:
    """The coordinates along a dimension; numbers where it has none, as tokens have."""
    return list(table[dim].to_numpy().tolist())


def _same_streams(tables: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """With the dimension `stream` in all, where some have it."""
    wanted = {str(name) for table in tables for name in table.data_vars if STREAM in table[name].dims}
    if not wanted:
        return list(tables)
    return [
        table.assign({name: table[name].expand_dims({STREAM: [JOINED]}, axis=-1) for name in wanted & set(table)})
        if STREAM not in table.dims
        else table
        for table in tables
    ]


def _dims(tables: Sequence[xr.Dataset]) -> list[str]:
    return list(dict.fromkeys(str(dim) for table in tables for dim in table.dims))


def _union(coordinates: Sequence[list[Any]]) -> list[Any]:
    labels = dict.fromkeys(label for values in coordinates for label in values)
    numbers = all(isinstance(label, int | float) for label in labels)
    if numbers:
        return sorted(labels)
    last = [label for label in labels if label == JOINED]  # behind the streams that it joins
    return [label for label in labels if label != JOINED] + last


def _common(attributes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all cells say alike."""
    first, *others = attributes
    return {key: value for key, value in first.items() if all(key in one and _same(one[key], value) for one in others)}


def _same(one: Any, other: Any) -> bool:
    return bool(np.all(np.asarray(one) == np.asarray(other)))
