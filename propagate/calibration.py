"""Are the errors that theory and simulation state of the right size? What the scores of many right theories say.

Were every error stated as large as it is, scores would be standard normal: root mean square 1, one in 22 beyond 2, one
in 370 beyond 3. Fewer say that errors are stated too wide, more that they are too narrow. Scores of one cell are of the
same draws, and those of neighbouring blocks hardly differ: their number says little of how much is known. So the cells
in which any lies that far are counted beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from propagate.table import FURTHER

if TYPE_CHECKING:
    import xarray as xr

FAR = (2.0, 3.0)  # |z| whose frequency is set beside what chance gives


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
        if name in FURTHER:
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
        By group: `scores`, `rms`, `beyond_2`, `beyond_3`, `cells` and `cells_beyond_3`, of which any score is;
        `beyond_2_by_chance`, `beyond_3_by_chance`.

    Example:
        >>> of_cell = {"variance": {"scores": 4, "squares": 9.0, "beyond_2": 1, "beyond_3": 0, "detects": 0.1}}
        >>> calibration([{"by_quantity": of_cell}, {}], lambda row, quantity: quantity)["variance"]["rms"]
        1.5
    """
    found: dict[str, dict[str, Any]] = {}
    cells: dict[str, dict[int, bool]] = {}
    for number, row in enumerate(rows):
        for quantity, of_cell in row.get("by_quantity", {}).items():
            group = key(row, quantity)
            total = found.setdefault(group, {"scores": 0, "squares": 0.0, "beyond_2": 0, "beyond_3": 0})
            for name in total:
                total[name] += of_cell[name]
            seen = cells.setdefault(group, {})
            seen[number] = seen.get(number, False) or of_cell["beyond_3"] > 0
    for group, total in found.items():
        squares, scores = total.pop("squares"), total["scores"]
        total["rms"] = round(math.sqrt(squares / scores), 2) if scores else 0.0
        total |= {f"beyond_{limit:g}_by_chance": round(scores * beyond(limit), 1) for limit in FAR}
        total |= {"cells": len(cells[group]), "cells_beyond_3": sum(cells[group].values())}
    return found


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
