"""The standard picture of tables: each quantity against block, theory as lines and measurements as points."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from propagate import plots
from propagate.checks import ModelError, choice, shown
from propagate.quantities import QUANTITIES
from propagate.table import JOINED, STREAM

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

SHOWN = ("variance", "deviation", "grad_variance", "grad_deviation")
SPARE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot(*tables: xr.Dataset, quantities: Collection[str] = SHOWN) -> Figure:
    """The tables of any witness in one picture, a panel a quantity, on logarithmic axes.

    Predictions are lines, with the band allowed to a network of finite width; simulations and traces are points, with
    95 % error bars where the table has standard errors. Tables of one placement share a colour; of several streams all
    are drawn. Show it in a notebook as it is, or `figure.savefig(...)`.

    Args:
        tables: of `predict`, `simulate` or `trace`; or the one of a `coordinate_check`, a panel a matrix against size,
            or of a `solve`, a panel a condition against the unknown.
        quantities: of "variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation", and
            those of your own that are registered; what no table has, such as deviations of one token, is left out.

    Raises:
        ModelError: for no table, something else than a table, or an unknown quantity.

    Example:
        >>> import propagate as pg
        >>> figure = plot(pg.predict(pg.Model("spannorm", depth=4)), quantities=["variance", "grad_variance"])
        >>> [axes.get_title() for axes in figure.axes]
        ['variance', 'grad_variance']
    """
    if len(tables) == 1 and getattr(tables[0], "attrs", {}).get("witness") == "coordinate check":
        from propagate.coordinates.picture import draw

        return draw(tables[0])
    if len(tables) == 1 and getattr(tables[0], "attrs", {}).get("witness") == "solve":
        from propagate.inverse.picture import draw as draw_trade_off

        return draw_trade_off(tables[0])
    for table in tables:
        if not hasattr(table, "data_vars") or "block" not in table.dims:
            raise ModelError(f"plot needs tables of predict, simulate or trace, got {type(table).__name__}")
    if not tables:
        raise ModelError("plot needs one table or more, got none")
    if isinstance(quantities, str) or not isinstance(quantities, Collection):
        raise ModelError(f"quantities must be a collection of names, got {shown(quantities)}")
    for name in quantities:
        choice("quantities", name, tuple(name for name, one in QUANTITIES.items() if one.judged and not one.dims))
    found = [name for name in quantities if any(name in table for table in tables)]
    with plots.style():
        figure, axes = plots.panels(1, max(len(found), 1), width=plots.PAGE, height=2.4)
        colours = colours_of([_label(table) for table in tables])
        for axis, name in zip(axes[0], found, strict=False):
            for table in tables:
                if name in table:
                    _draw(axis, name, table, colours[_label(table)])
            axis.set_title(name)
            axis.set_xlabel("block")
            axis.xaxis.get_major_locator().set_params(integer=True)
            if QUANTITIES[name].positive:
                axis.set_yscale("log")
        handles = [plots.entry(label, color=colour, linewidth=2.5) for label, colour in colours.items()]
        handles += [plots.entry("theory"), plots.entry("measured", linestyle="none", marker="o", markersize=3.4)]
        plots.legend(figure, handles)
    return figure


def _draw(axis: Any, name: str, table: xr.Dataset, colour: str) -> None:
    if STREAM in table[name].dims:
        for stream in table[STREAM].to_numpy():
            if stream != JOINED:
                _draw(axis, name, table.sel({STREAM: stream}), colour)
        return
    quantity = QUANTITIES[name]
    if table.attrs.get("witness") == "theory":
        allowance = table.get(quantity.column("allowance")) if quantity.positive else None
        plots.theory_line(axis, table.block, table[name], placement="", allowance=allowance, color=colour)
        return
    points = table.isel(block=slice(None, None, max(1, table.sizes["block"] // 12)))
    logarithmic = quantity.column("log") in table
    column = quantity.column("log" if logarithmic else "value")
    error = points.get(quantity.column("log_se" if logarithmic else "se"), 0.0 * points[column])
    plots.simulation_points(axis, points.block, points[column], error, logarithmic=logarithmic, shade=colour)


def _label(table: xr.Dataset) -> str:
    """The placement's name, or what was traced."""
    placement = re.match(r"Model\(placement=(\w+)", str(table.attrs.get("model", "")))
    return placement[1] if placement else str(table.attrs.get("model", table.attrs.get("witness", "measured")))


def colours_of(labels: list[str]) -> dict[str, str]:
    """A placement's own colour, where it has one that no other took."""
    found: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        own = plots.colour(label)
        free = [colour for colour in SPARE if colour not in found.values()]
        found[label] = own if own != plots.OTHER and own not in found.values() else (free or [plots.OTHER])[0]
    return found
