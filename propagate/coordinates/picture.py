"""The picture of a coordinate check: a panel a matrix, measured points with bars, the wanted slope as a line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate import plots
from propagate.coordinates.fits import Finding, findings

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

COLUMNS, MOST = 5, 25  # panels
LEAST = 3.0  # factor that a vertical axis covers to either side at least
FINE, WRONG, UNSURE = "#0072B2", "#D55E00", "#7F7F7F"
SHADES = {"agrees": FINE, "disagrees": WRONG, "cannot tell": UNSURE}


def draw(table: xr.Dataset) -> Figure:
    """The responses of every matrix, then what leaves the network; where there are too many, those that depart first.

    Example:
        >>> import propagate as pg
        >>> model = pg.Model("prenorm", depth=1, heads=2, tokens=4)
        >>> check = pg.coordinate_check(model, optimizer=pg.Adam(lr=1e-3), widths=(16, 32), steps=1, draws=2)
        >>> [axis.get_title().split()[0] for axis in draw(check.table).axes][:3]
        ['embedding', 'query', 'key']
    """
    shown = [one for one in findings(table) if one.quantity != "gain"]
    if len(shown) > MOST:
        shown = sorted(shown, key=lambda one: one.verdict != "disagrees")[:MOST]
    columns = min(COLUMNS, max(len(shown), 1))
    rows = math.ceil(len(shown) / columns) or 1
    reach = max([LEAST, *(_reach(_curve(table, one)[0]) for one in shown)])
    with plots.style():
        figure, axes = plots.panels(rows, columns, height=1.0 + 1.25 * rows, sharex=True)
        for axis, one in zip(axes.flat, shown, strict=False):
            panel(axis, table, one, reach)
        for place, axis in enumerate(axes.flat):
            axis.set_visible(place < len(shown))
            if place < len(shown) <= place + columns:  # the lowest of its column
                axis.set_xlabel(table.attrs["along"])
                axis.tick_params(labelbottom=True)
        handles = [
            plots.entry(f"measured, {word}", color=SHADES[verdict], linestyle="none", marker="o", markersize=3.4)
            for verdict, word in (("agrees", "as wanted"), ("disagrees", "departs"), ("cannot tell", "unsure"))
        ]
        handles += [plots.entry("wanted slope"), plots.entry("by the rule's factors", linestyle=":")]
        plots.legend(figure, handles, columns=5)
    return figure


def panel(axis: Any, table: xr.Dataset, one: Finding, reach: float) -> None:
    """One curve against size, the wanted slope and, where it is another, that of the rule's own factors.

    `reach` is the factor that the vertical axis covers to either side of the curve's middle.
    """
    sizes, low = table["size"].to_numpy(), float(table["size"].min())
    logarithms, errors = _curve(table, one)
    dense = np.geomspace(low, float(sizes.max()), 20)
    start = float(np.exp(logarithms[0]))
    axis.plot(dense, start * (dense / low) ** one.wanted, color="0.3", linewidth=1.0, zorder=1)
    if not math.isnan(one.rule) and abs(one.rule - one.wanted) > 0.02:
        axis.plot(dense, start * (dense / low) ** one.rule, color="0.3", linewidth=1.0, linestyle=":", zorder=1)
    plots.simulation_points(axis, sizes, logarithms, errors, logarithmic=True, shade=SHADES[one.verdict])
    middle = math.exp((logarithms.max() + logarithms.min()) / 2) if np.isfinite(logarithms).all() else 1.0
    axis.set(xscale="log", yscale="log", ylim=(middle / reach, middle * reach))
    marked = sizes[:: math.ceil(len(sizes) / 4)]
    axis.set_xticks(marked, [str(size) for size in marked])
    axis.minorticks_off()
    axis.set_title(f"{one.name}\n{one.slope}", fontsize=7, color=SHADES[one.verdict])


def _curve(table: xr.Dataset, one: Finding) -> tuple[Any, Any]:
    """Mean logarithms by size, and their standard errors."""
    at = table.sel({"whole" if one.quantity == "change" else "name": one.name}, drop=True).sel(step=one.step)
    return at[f"log_{one.quantity}"].to_numpy(), at[f"log_{one.quantity}_se"].to_numpy()


def _reach(logarithms: Any) -> float:
    return 1.3 * math.exp((logarithms.max() - logarithms.min()) / 2) if np.isfinite(logarithms).all() else LEAST
