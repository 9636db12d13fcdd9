"""The cells of a sweep: every combination of the values of some fields, as networks, before any work."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from propagate.checks import ModelError, shown
from propagate.inverse.unknown import Setting
from propagate.model import Model

MOST = 10**6  # cells
INSIDE = ("block", "stream", "matrix", "call", "step", "token", "quantity", "name")
"""Dimensions of the verbs' tables, which an axis must not be called."""


@dataclass(frozen=True)
class Axis:
    """One field and the values that it takes.

    Attributes:
        path: of the field.
        name: of the dimension.
        values: in order.
    """

    path: str
    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[Any]:
        """Coordinates: numbers and words as they are, anything else as it is printed."""
        plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)
        return list(self.values) if plain else [_word(value) for value in self.values]


@dataclass(frozen=True)
class Cell:
    """One network of the grid.

    Attributes:
        place: its place along every axis.
        model: the network.
        label: in words.
    """

    place: tuple[int, ...]
    model: Model
    label: str


def axes_of(over: Any) -> list[Axis]:
    """The axes of a grid.

    Args:
        over: by the path of a field of the model, several values.

    Raises:
        ModelError: for anything else, or values that are the same twice.

    Example:
        >>> [(axis.name, axis.labels) for axis in axes_of({"scaling.exponent": (0, 0.5), "placement": ["prenorm"]})]
        [('exponent', [0, 0.5]), ('placement', ['prenorm'])]
    """
    if not isinstance(over, Mapping) or not over:
        raise ModelError(
            f"over must map paths of fields to several values, such as {{'depth': (4, 8)}}, got {shown(over)}"
        )
    lasts = [str(path).rpartition(".")[2] for path in over]
    axes = []
    for (path, values), last in zip(over.items(), lasts, strict=True):
        if not isinstance(path, str) or not path:
            raise ModelError(f"over must map paths of fields to values, got {shown(path)}")
        several = isinstance(values, list | tuple | range) or (isinstance(values, np.ndarray) and values.ndim == 1)
        if not several or not 0 < len(values) <= MOST:
            raise ModelError(f"{path} of over must be several values, at most {MOST}, got {shown(values)}")
        short = last not in INSIDE and lasts.count(last) == 1
        axis = Axis(path, last if short else path.replace(".", "_"), tuple(_plain(value) for value in values))
        if len({repr(label) for label in axis.labels}) < len(axis.values):
            raise ModelError(f"{path} of over must have no value twice, got {shown(list(axis.values))}")
        axes.append(axis)
    return axes


def cells_of(model: Model, axes: list[Axis]) -> list[Cell]:
    """Every network of the grid, the last axis fastest.

    Raises:
        ModelError: names the cell, the field and what is allowed, for a network that cannot be made.

    Example:
        >>> [cell.label for cell in cells_of(Model("prenorm", depth=2), axes_of({"depth": (2, 4)}))]
        ['depth=2', 'depth=4']
    """
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST:
        raise ModelError(f"over must make at most {MOST} cells, got {count}")
    found = []
    for place in itertools.product(*(range(len(axis.values)) for axis in axes)):
        chosen = {axis.path: axis.values[i] for axis, i in zip(axes, place, strict=True)}
        label = ", ".join(f"{axis.name}={axis.labels[i]}" for axis, i in zip(axes, place, strict=True))
        try:
            found.append(Cell(place, Setting(model).with_values(chosen).model, label))
        except ModelError as error:
            raise ModelError(f"cell {label} of over: {error}") from None
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _plain(value: Any) -> Any:
    """A number of NumPy as Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
