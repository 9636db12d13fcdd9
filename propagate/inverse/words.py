"""A solution in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from propagate.inverse.crossings import Interval
from propagate.inverse.unknown import Axis

if TYPE_CHECKING:
    import xarray as xr

ROWS = 13  # of a printed table, about


def verdict_of(
    unknown: str,
    conditions: Sequence[Any],
    met: Sequence[Sequence[Interval]],
    common: Sequence[Interval],
    value: float | None,
    best: float,
    values: Sequence[float],
    axis: Axis,
) -> str:
    """What was found, in a few sentences.

    Args:
        unknown: the path of the number.
        conditions: what was asked.
        met: where each is met.
        common: where all are.
        value: the solution, if there is one.
        best: that, or the compromise.
        values: of the conditions there.
        axis: where it was looked for.
    """
    there = ", ".join(f"{one.name} is {_number(value)}" for one, value in zip(conditions, values, strict=True))
    if value is not None:
        where = _places(common, axis)
        return f"{unknown} = {_number(value)} meets {_all(conditions)}: {there}. They are met {where}."
    needs = [f"{level_of(one)} {_needs(own, axis)}" for one, own in zip(conditions, met, strict=True)]
    looked = f"between {_number(axis.low)} and {_number(axis.high)}"
    return (
        f"No {unknown} {looked} meets {_all(conditions)}: {'; '.join(needs)}."
        f" Nearest is {unknown} = {_number(best)}: {there}."
    )


def refusals(rows: Mapping[float, Sequence[float]], errors: Sequence[Exception]) -> str:
    """Where a condition had no number, and the first reason; nothing where all had.

    Example:
        >>> refusals({1: [0.5], 2: [math.nan]}, [ValueError("too deep")])
        ' At 1 of 2 values it has no number (too deep).'
    """
    without = sum(any(map(math.isnan, row)) for row in rows.values())
    reason = f" ({errors[0]})" if errors else ""
    return f" At {without} of {len(rows)} values it has no number{reason}." if without else ""


def level_of(condition: Any) -> str:
    """A condition, as an inequality.

    Example:
        >>> from propagate.inverse.conditions import GradientGain
        >>> level_of(GradientGain(above=0.5, below=2.0)), level_of(GradientGain(below=2.0))
        ('0.5 <= gradient_gain <= 2', 'gradient_gain <= 2')
    """
    above, below = condition.above, condition.below
    if above is not None and below is not None:
        return f"{_number(above)} <= {condition.name} <= {_number(below)}"
    if above is not None:
        return f"{condition.name} >= {_number(above)}"
    return f"{condition.name} <= {_number(below)}" if below is not None else str(condition.name)


def _needs(found: Sequence[Interval], axis: Axis) -> str:
    if not found:
        return "is met nowhere"
    return f"is met {_places(found, axis)}"


def _places(found: Sequence[Interval], axis: Axis) -> str:
    """Intervals in words.

    Example:
        >>> _places([(0.0, 0.5)], Axis(0.0, 1.0, False))
        'up to 0.5'
    """
    parts = []
    for low, high in found:
        if (low, high) == (axis.low, axis.high):
            return "anywhere"
        if low == high:
            parts.append(f"at {_number(low)}")
        elif low == axis.low:
            parts.append(f"up to {_number(high)}")
        elif high == axis.high:
            parts.append(f"from {_number(low)}")
        else:
            parts.append(f"from {_number(low)} to {_number(high)}")
    return " and ".join(parts)


def _all(conditions: Sequence[Any]) -> str:
    return " and ".join(map(level_of, conditions))


def _number(value: float) -> str:
    return "no number" if math.isnan(value) else f"{value:.4g}"


def rows(table: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Names of columns, and rows at some of the values of the unknown; a value that is not met stands in brackets."""
    (dim,) = table.dims
    names = [str(name) for name in table.data_vars if not str(name).endswith("_met")]
    count = table.sizes[dim]
    chosen = sorted({round(i * (count - 1) / (ROWS - 1)) for i in range(ROWS)} | _at(table, str(dim)))
    lines = []
    for i in chosen:
        at = table.isel({dim: i})
        cells = [_number(float(at[name])) for name in names]
        cells = [cell if bool(at[f"{name}_met"]) else f"({cell})" for name, cell in zip(names, cells, strict=True)]
        lines.append([_number(float(at[dim])), *cells])
    return [str(table.attrs["unknown"]), *names], lines


def _at(table: xr.Dataset, dim: str) -> set[int]:
    """The row of the solution, or of the compromise."""
    return {int(abs(table[dim].to_numpy() - table.attrs["nearest"]).argmin())}


def text(table: xr.Dataset, verdict: str) -> str:
    """The trade-off and the verdict, for a terminal."""
    head, lines = rows(table)
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    printed = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *lines)]
    return "\n".join([*printed, "(in brackets: not met)", verdict])
