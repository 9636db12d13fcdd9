"""Are the errors that theory and simulation state of the right size? What the scores of many right theories say.

Were every error stated as large as it is, scores would be standard normal: root mean square 1, one in 22 beyond 2, one
in 370 beyond 3. Fewer say that errors are stated too wide, more that they are too narrow.

Scores of one cell are of the same draws, and those of neighbouring blocks hardly differ: their number says little of
how much is known. How many are independent is seen from cell to cell: the mean square of k independent scores has a
relative variance of 2 / k. (Of the 74 scores of a cell of the full matrix, 4 or 5 are.) A root mean square then has a
standard error of 1 / sqrt(2 k), and where one cell's scores lie far, many do together: a count has the variance that
chance gives to independent ones, times the scores for each independent one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from propagate.quantities import quantity_of

if TYPE_CHECKING:
    import xarray as xr

FAR = (2.0, 3.0)  # |z| whose frequency is set beside what chance gives
COLUMNS = ("scores", "independent", "rms", "rms_se", "beyond_3", "beyond_3_by_chance", "beyond_3_sd")
"""Of `calibration`, those that are shown, before the number of cells."""


def scores_of(judged: xr.Dataset) -> dict[str, dict[str, float]]:
    """By quantity: how many `scores`, the sum of their `squares`, how many `beyond_2`, `beyond_3`; and `detects`, the
    relative error beyond which any other theory would have been rejected at every block.

    Scores are counted of moments over all tokens. Of a token's own only the largest is kept at each block; and what is
    exact on both sides, such as what enters, has score 0 and is not counted.

    Args:
        judged: what `compare` gave.
    """
    found: dict[str, dict[str, float]] = {}
    for name in judged["quantity"].values.tolist():
        if quantity_of(name).axes:
            continue
        one = judged.sel(quantity=name)
        size = abs(one.z).fillna(0.0)
        found[name] = {
            "scores": int((size > 0).sum()),
            "squares": round(float((size**2).where(size > 0).sum()), 3),
            **{f"beyond_{limit:g}": int((size > limit).sum()) for limit in FAR},
            "detects": round(float(one.unresolved.fillna(0.0).max()), 4),
        }
    return found


def calibration(rows: Iterable[dict[str, Any]], key: Callable[[dict[str, Any], str], str]) -> dict[str, dict[str, Any]]:
    """Totals of the scores of many cells, in groups.

    Args:
        rows: of a `verification.Report`; those without scores are left out.
        key: the group of a cell's quantity.

    Returns:
        By group: `scores`, how many are `independent`, in all cells as in the mean group; `rms` and its standard error
        `rms_se`, were errors stated as large as they are; `beyond_2` and `beyond_3`, `..._by_chance`, and `..._sd`, the
        standard deviation of such a count; `cells` and `cells_beyond_3`, of which any score is.

    Example:
        >>> of_cell = {"variance": {"scores": 4, "squares": 9.0, "beyond_2": 1, "beyond_3": 0, "detects": 0.1}}
        >>> calibration([{"by_quantity": of_cell}, {}], lambda row, quantity: quantity)["variance"]["rms"]
        1.5
    """
    cells: dict[str, dict[int, dict[str, float]]] = {}
    for number, row in enumerate(rows):
        for quantity, of_cell in row.get("by_quantity", {}).items():
            total = cells.setdefault(key(row, quantity), {}).setdefault(number, dict.fromkeys(COUNTED, 0))
            for name in COUNTED:
                total[name] += of_cell[name]
    each = _independent([[cell for cell in of_group.values() if cell["scores"]] for of_group in cells.values()])
    return {group: _totals(list(of_group.values()), each) for group, of_group in cells.items()}


COUNTED = ("scores", "squares", "beyond_2", "beyond_3")


def _totals(cells: list[dict[str, float]], each: float) -> dict[str, Any]:
    """Of one group, with so many independent scores in each of its cells that has any."""
    total: dict[str, Any] = {name: sum(cell[name] for cell in cells) for name in COUNTED}
    squares, scores = total.pop("squares"), total["scores"]
    independent = sum(min(each, cell["scores"]) for cell in cells)
    total["independent"] = round(independent, 1)
    total["rms"] = round(math.sqrt(squares / scores), 2) if scores else 0.0
    total["rms_se"] = round(math.sqrt(0.5 / independent), 2) if scores else 0.0
    for limit in FAR:
        chance = scores * beyond(limit)
        total[f"beyond_{limit:g}_by_chance"] = round(chance, 1)
        total[f"beyond_{limit:g}_sd"] = round(math.sqrt(chance * scores / independent), 1) if scores else 0.0
    return total | {"cells": len(cells), "cells_beyond_3": sum(cell["beyond_3"] > 0 for cell in cells)}


def _independent(groups: list[list[dict[str, float]]]) -> float:
    """How many scores of a cell are independent, from how its mean square differs among the cells of a group; 1 where
    no two can be compared.
    """
    of_cells = [[cell["squares"] / cell["scores"] for cell in cells] for cells in groups if len(cells) > 1]
    spreads = [statistics.variance(means) / statistics.mean(means) ** 2 for means in of_cells if any(means)]
    return max(2 / statistics.mean(spreads), 1.0) if any(spreads) else 1.0


def beyond(limit: float) -> float:
    """How often a standard normal number lies beyond a limit, on either side."""
    return math.erfc(limit / math.sqrt(2))


def detected(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By quantity: the relative error beyond which a wrong theory would have been rejected at every block, in the
    `median` cell, in 19 of 20, and in the `worst`.

    Example:
        >>> rows = [{"by_quantity": {"variance": {"detects": share}}} for share in (0.01, 0.02, 0.3)]
        >>> detected(rows)["variance"]
        {'median': 0.02, 'most': 0.3, 'worst': 0.3}
    """
    of: dict[str, list[float]] = {}
    for row in rows:
        for quantity, of_cell in row.get("by_quantity", {}).items():
            of.setdefault(quantity, []).append(of_cell["detects"])
    found = {}
    for quantity, values in of.items():
        values.sort()
        middle, most = values[len(values) // 2], values[min(math.ceil(0.95 * len(values)), len(values)) - 1]
        found[quantity] = {"median": middle, "most": most, "worst": values[-1]}
    return found
