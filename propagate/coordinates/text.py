"""A coordinate check as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from propagate.readable import aligned

if TYPE_CHECKING:
    from propagate.coordinates.check import CoordinateCheck

COLUMNS = ("matrix", "quantity", "step", "exponent", "wanted", "by the rule", "verdict")


def rows(check: CoordinateCheck) -> list[tuple[str, ...]]:
    """A row an exponent that was judged."""
    return [
        (
            one.name,
            one.quantity,
            str(one.step),
            str(one.slope),
            f"{'<= ' * one.at_most}{one.wanted + 0.0:.2g}",
            "" if math.isnan(one.rule) else f"{_plain(one.rule):.2f}",
            "DEPARTS" if one.verdict == "disagrees" else one.verdict.replace("agrees", "as wanted"),
        )
        for one in check.findings
    ]


def _plain(value: float) -> float:
    """No minus before a nought."""
    return 0.0 if abs(value) < 5e-3 else value


def text(check: CoordinateCheck) -> str:
    """The exponents of a check in columns, and its verdict."""
    attrs, sizes = check.table.attrs, ", ".join(map(str, check.table["size"].values))
    head = f"Coordinate check over {attrs['along']}s {sizes}; {attrs['draws']} networks each; 95 % intervals"
    return "\n".join([head, aligned(COLUMNS, rows(check)), check.summary])
