"""The unknown: a number somewhere in a network's description, by its path, and the axis that it is looked for on."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from propagate.checks import ModelError, integer, shown
from propagate.model import SHORTHAND, Model

WIDE = 20.0  # ratio of the ends from which on points are spread over magnitudes
BESIDE = ("optimizer", "transfer")
"""What a first step has beside the model; an unknown may lie there, too."""


@dataclass(frozen=True)
class Setting:
    """What an unknown may be a number of.

    Attributes:
        model: the network.
        optimizer, transfer: of a first step.
    """

    model: Model
    optimizer: Any = None
    transfer: Any = None

    def replaced(self, path: str, value: Any) -> Setting:
        """With another value of the number at this path.

        Raises:
            ModelError: as whatever it is a field of refuses the value.

        Example:
            >>> from propagate.scaling import ScaleInit
            >>> setting = Setting(Model("prenorm", depth=4, scaling=ScaleInit(0.0)))
            >>> setting.replaced("scaling.exponent", 0.5).model.scaling.exponent
            0.5
        """
        head, _, rest = path.partition(".")
        if head in BESIDE:
            return dataclasses.replace(self, **{head: _replaced(getattr(self, head), rest, value)})
        return dataclasses.replace(self, model=_replaced(self.model, path, value))

    def with_values(self, values: Mapping[str, Any]) -> Setting:
        """With other values of several fields: those of the model itself together, then those of its descriptions.

        Raises:
            ModelError: for a path that leads to no field, or as whatever has the field refuses the value.

        Example:
            >>> from propagate.scaling import ScaleInit
            >>> setting = Setting(Model("prenorm", depth=4, scaling=ScaleInit(0.0)))
            >>> setting.with_values({"scaling.exponent": 0.5, "width": 96, "heads": 12}).model.heads
            12
        """
        own: dict[str, Any] = {path: value for path, value in values.items() if "." not in path}
        for path in own:
            _check_field(path, self.model, path)
        found = dataclasses.replace(self, model=dataclasses.replace(self.model, **own))
        for path, value in values.items():
            if path not in own:
                found.check_field(path)
                found = found.replaced(path, value)
        return found

    def check_field(self, path: str) -> Any:
        """What has the field at this path.

        Raises:
            ModelError: for a path that leads to no field.
        """
        owner: Any = self if path.partition(".")[0] in BESIDE else self.model
        *heads, last = path.split(".")
        for at, head in enumerate(heads):
            _check_field(path, owner, head)
            owner = getattr(owner, head)
            if owner is None:
                raise ModelError(f"{path!r} needs {'.'.join(heads[: at + 1])}=, which is None")
        _check_field(path, owner, last)
        return owner

    def number(self, path: str) -> tuple[float | None, bool]:
        """The number at this path, None where that is its default; and whether it must be whole.

        Raises:
            ModelError: for a path that leads to no number.

        Example:
            >>> Setting(Model("deepnorm", depth=4)).number("placement.alpha")
            (None, False)
            >>> Setting(Model("deepnorm", depth=4)).number("depth")
            (4, True)
        """
        if not isinstance(path, str) or not path:
            raise ModelError(
                f"unknown must be the path of a number, such as 'scaling.exponent' or 'depth', got {shown(path)}"
            )
        return _number(path, self.check_field(path), path.rpartition(".")[2])


def _check_field(path: str, owner: Any, name: str) -> None:
    kind = type(owner).__name__
    if not dataclasses.is_dataclass(owner):
        raise ModelError(f"an unknown must be the path of a field, but {kind} has none, got {shown(path)}")
    names = [field.name for field in dataclasses.fields(owner) if field.init]
    if name not in names:
        known = f"the fields {', '.join(names)}" if names else "no fields"
        raise ModelError(f"an unknown must be the path of a field, but {kind} has {known}, got {shown(path)}")


def _number(path: str, owner: Any, name: str) -> tuple[float | None, bool]:
    value = getattr(owner, name)
    try:
        kind = typing.get_type_hints(type(owner)).get(name, type(value))
    except (NameError, TypeError):  # of a class inside a function
        kind = type(value)
    kinds = set(typing.get_args(kind)) or {kind}
    whole = int in kinds and float not in kinds
    if not kinds & {int, float, Any} or isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ModelError(f"unknown must be the path of a number, got {path!r}, which is {shown(value)}")
    return value, whole


def _replaced(owner: Any, path: str, value: Any) -> Any:
    head, _, rest = path.partition(".")
    new = _replaced(getattr(owner, head), rest, value) if rest else value
    short: dict[str, Any] = {}
    if isinstance(owner, Model) and rest:  # the short fields of a description say what it says, until it is replaced
        defaults = {field.name: field.default for field in dataclasses.fields(owner)}
        short = {name: defaults[name] for name in SHORTHAND.get(head, {})}
    return dataclasses.replace(owner, **short, **{head: new})


@dataclass(frozen=True)
class Axis:
    """Where an unknown is looked for.

    Attributes:
        low, high: the ends.
        whole: it must be a whole number.

    Example:
        >>> Axis(1, 100, whole=True).points(5), Axis(0.0, 1.0, whole=False).points(3)
        ([1, 3, 10, 32, 100], [0.0, 0.5, 1.0])
    """

    low: float
    high: float
    whole: bool

    @property
    def magnitudes(self) -> bool:
        """Whether points are spread over magnitudes: both ends are positive, and a factor of 20 or more apart."""
        return self.low > 0 and self.high / self.low >= WIDE

    def points(self, count: int) -> list[float]:
        """So many points, or fewer whole ones, the ends among them."""
        spread = np.geomspace if self.magnitudes else np.linspace
        inner = [float(x) for x in spread(self.low, self.high, count)[1:-1]]
        found = [self.low, *inner, self.high]
        return sorted({round(x) for x in found}) if self.whole else found

    def middle(self, left: float, right: float) -> float | None:
        """A point between; None where none is left."""
        if self.whole:
            return (round(left) + round(right)) // 2 if right - left > 1 else None
        if right - left <= self.tolerance(left, right):
            return None
        return math.sqrt(left * right) if self.magnitudes else (left + right) / 2

    def tolerance(self, left: float, right: float) -> float:
        """How well an end of an interval between is found."""
        return FINE * (max(abs(left), abs(right)) if self.magnitudes else self.high - self.low)


FINE = 1e-5


def axis_of(between: Any, whole: bool) -> Axis:
    """The axis of an unknown.

    Raises:
        ModelError: unless `between` is two finite numbers, the first the smaller; whole ones where the unknown is.

    Example:
        >>> axis_of((0, 1), whole=False)
        Axis(low=0.0, high=1.0, whole=False)
    """
    if not isinstance(between, tuple | list) or len(between) != 2:
        raise ModelError(f"between must be two numbers, (low, high), got {shown(between)}")
    ends: list[float] = []
    for end in between:
        if whole:
            ends.append(integer("between", end))
            continue
        if isinstance(end, bool) or not isinstance(end, int | float | np.number) or not math.isfinite(end):
            raise ModelError(f"between must be two finite numbers, got {shown(between)}")
        ends.append(float(end))
    if not ends[0] < ends[1]:
        raise ModelError(f"between must be (low, high) with low < high, got {shown(between)}")
    return Axis(ends[0], ends[1], whole)
