"""The standard picture of tables: each quantity against block, theory as lines and measurements as points."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate import plots
from propagate.checks import ModelError, choice, shown
from propagate.quantities import QUANTITIES, Quantity
from propagate.table import JOINED, STREAM

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

SHOWN = ("variance", "deviation", "grad_variance", "grad_deviation")
OF_TOKENS = ("token_variance", "grad_token_variance")
DISTINCT = Quantity("decorrelation", "1 - correlation of two tokens: deviation / variance", pairs=True, judged=False)
SPARE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot(
    *tables: xr.Dataset | Mapping[str, xr.Dataset | Iterable[xr.Dataset]], quantities: Collection[str] = ()
) -> Figure:
    """The tables of any witness in one picture, a panel a quantity, on logarithmic axes.

    Predictions are lines, with the band allowed to a network of finite width; simulations and traces are points, with
    95 % error bars where the table has standard errors. Tables of one placement share a colour; if some of its networks
    have a scaling, these are dashed lines and open points. Of several streams all are drawn. Show it in a notebook as
    it is, or `figure.savefig(...)`; `figure.axes` are the panels, to draw more into.

    Args:
        tables: of `predict`, `simulate` or `trace`, or mappings from labels to one of them or to several, which then
            share a colour; or the one of a `coordinate_check`, a panel a matrix against size, or of a `solve`, a panel
            a condition against the unknown. Those of one block, `table.isel(block=0)`, are drawn against token.
        quantities: of "variance", "covariance", "deviation", "grad_variance", "grad_covariance", "grad_deviation",
            "decorrelation" (1 - correlation, deviation / variance), and those of your own that are registered; against
            token, of "token_variance", "grad_token_variance". What no table has, such as deviations of one token, is
            left out. By default those of the stream and of the gradient that are never negative.

    Raises:
        ModelError: for no table, something else than a table, tables of which some are of one block, or an unknown
            quantity.

    Example:
        >>> import propagate as pg
        >>> figure = plot(pg.predict(pg.Model("spannorm", depth=4)), quantities=["variance", "grad_variance"])
        >>> [axes.get_title() for axes in figure.axes]
        ['variance', 'grad_variance']

    Example: what sets networks of one placement apart is said by their labels.
        >>> gains = {f"gain {gain}": pg.predict(pg.Model("prenorm", 2, ffn_gain=gain)) for gain in (0.5, 1.0)}
        >>> [text.get_text() for text in plot(gains).legends[0].get_texts()]
        ['gain 0.5', 'gain 1.0', 'theory']
    """
    first: Any = tables[0] if len(tables) == 1 else None
    witness = getattr(first, "attrs", {}).get("witness")
    if witness == "coordinate check":
        from propagate.coordinates.picture import draw

        return draw(first)
    if witness == "solve":
        from propagate.inverse.picture import draw as draw_trade_off

        return draw_trade_off(first)
    curves = _told_apart([curve for given in tables for curve in _curves(given)])
    against = _against([curve.table for curve in curves])
    if isinstance(quantities, str) or not isinstance(quantities, Collection):
        raise ModelError(f"quantities must be a collection of names, got {shown(quantities)}")
    known = _known(against)
    for name in quantities:
        choice("quantities", name, tuple(known))
    asked = quantities or (SHOWN if against == "block" else OF_TOKENS)
    found = [known[name] for name in asked if any(name in curve.table for curve in curves)]
    with plots.style():
        figure, axes = plots.panels(1, max(len(found), 1), width=plots.PAGE, height=2.4)
        colours = colours_of([curve.hue for curve in curves])
        for axis, quantity in zip(axes[0], found, strict=False):
            for curve in curves:
                if quantity.name in curve.table:
                    _draw(axis, quantity, curve.table, against, colour=colours[curve.hue], scaled=curve.scaled)
            axis.set_title(quantity.name)
            axis.set_xlabel(against)
            axis.xaxis.get_major_locator().set_params(integer=True)
            if quantity.positive:
                axis.set_yscale("log")
        plots.legend(figure, _handles(curves, colours))
    return figure


@dataclass(frozen=True)
class _Curve:
    """A table and how it is told from others: those of one hue have one colour, those with a scaling are dashed."""

    hue: str
    scaling: str
    table: Any

    @property
    def label(self) -> str:
        return ", ".join(filter(None, (self.hue, self.scaling)))

    @property
    def scaled(self) -> bool:
        return bool(self.scaling)

    @property
    def predicted(self) -> bool:
        return bool(self.table.attrs.get("witness") == "theory")


def _curves(given: Any, label: str = "") -> Iterator[_Curve]:
    """Of a table, of several, or of a mapping from labels to either. (A table is itself a mapping.)"""
    if hasattr(given, "data_vars"):
        hue, scaling = (label, "") if label else _described(given)
        yield _Curve(hue, scaling, _derived(given))
    elif isinstance(given, Mapping) and not label:
        for own, tables in given.items():
            yield from _curves(tables, str(own))
    elif label and isinstance(given, Iterable) and not isinstance(given, str):
        for table in given:
            if not hasattr(table, "data_vars"):
                raise ModelError(f"plot needs tables of predict, simulate or trace, got {type(table).__name__}")
            yield from _curves(table, label)
    else:
        raise ModelError(f"plot needs tables of predict, simulate or trace, got {type(given).__name__}")


def _told_apart(curves: list[_Curve]) -> list[_Curve]:
    """Scalings are shown where they set networks of one placement apart, and nowhere else."""
    found = {hue: {curve.scaling for curve in curves if curve.hue == hue} for hue in {curve.hue for curve in curves}}
    return [curve if len(found[curve.hue]) > 1 else replace(curve, scaling="") for curve in curves]


def _described(table: xr.Dataset) -> tuple[str, str]:
    """The placement's name, or what was traced; and the name of the network's scaling, if it has one."""
    model = str(table.attrs.get("model", ""))
    placement, scaling = re.match(r"Model\(placement=(\w+)", model), re.search(r"\bscaling=(?!None\b)(\w*)", model)
    if not placement:
        return str(table.attrs.get("model", table.attrs.get("witness", "measured"))), ""
    return placement[1], (scaling[1] or "scaled") if scaling else ""


def _derived(table: xr.Dataset) -> xr.Dataset:
    """The table with 1 - correlation, if it has what that is made of.

    Its error is that of a ratio of which either part may err: at most so wide.
    """
    if DISTINCT.name in table or not {"variance", "deviation"} <= set(table.data_vars):
        return table
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {DISTINCT.column(): table.deviation / table.variance}
    if "deviation_allowance" in table:
        columns[DISTINCT.column("allowance")] = table.deviation_allowance
    if {"log_variance", "log_deviation"} <= set(table.data_vars):
        columns[DISTINCT.column("log")] = table.log_deviation - table.log_variance
        columns[DISTINCT.column("log_se")] = table.log_deviation_se + table.log_variance_se
    return table.assign(columns)


def _against(tables: list[Any]) -> str:
    """What all of the tables are drawn against: "block", or "token" if they are of one block."""
    if not tables:
        raise ModelError("plot needs one table or more, got none")
    dims = {next((dim for dim in ("block", "token") if dim in table.dims), "") for table in tables}
    if "" in dims:
        raise ModelError("plot needs tables over blocks, or of one block over tokens, got one over neither")
    if len(dims) > 1:
        raise ModelError("plot needs tables over blocks, or of one block each over tokens, got some of either")
    return str(dims.pop())


def _known(against: str) -> dict[str, Quantity]:
    """The quantities that can be drawn, by name."""
    dims = () if against == "block" else (against,)
    found = {name: one for name, one in QUANTITIES.items() if one.judged and one.dims == dims}
    return found | ({DISTINCT.name: DISTINCT} if against == "block" else {})


def _draw(axis: Any, quantity: Quantity, table: Any, against: str, *, colour: str, scaled: bool) -> None:
    if STREAM in table[quantity.name].dims:
        for stream in table[STREAM].to_numpy():
            if stream != JOINED:
                _draw(axis, quantity, table.sel({STREAM: stream}), against, colour=colour, scaled=scaled)
        return
    places = _places(table, against)
    if table.attrs.get("witness") == "theory":
        allowance = table.get(quantity.column("allowance")) if quantity.positive else None
        look: dict[str, Any] = {"allowance": allowance, "color": colour, "scaled": scaled}
        plots.theory_line(axis, places, table[quantity.name], placement="", **look)
        return
    some = slice(None, None, max(1, table.sizes[against] // 12))
    points = table.isel({against: some})
    logarithmic = quantity.column("log") in table
    column = quantity.column("log" if logarithmic else "value")
    error = points.get(quantity.column("log_se" if logarithmic else "se"), 0.0 * points[column])
    look = {"scaled": scaled, "logarithmic": logarithmic, "shade": colour}
    plots.simulation_points(axis, places[some], points[column], error, **look)


def _places(table: Any, against: str) -> Any:
    """Blocks by their numbers, 0 being the embedding; tokens from 1."""
    return table[against].to_numpy() if against in table.coords else np.arange(1, table.sizes[against] + 1)


def _handles(curves: list[_Curve], colours: dict[str, str]) -> list[Any]:
    """The legend: what is seen, and nothing else."""
    handles = []
    for label, curve in {curve.label: curve for curve in curves}.items():
        dashes = (plots.SCALED if curve.scaled else plots.UNSCALED)["linestyle"]
        handles.append(plots.entry(label, color=colours[curve.hue], linewidth=2.0, linestyle=dashes))
    if any(curve.predicted for curve in curves):
        handles.append(plots.entry("theory"))
    if not all(curve.predicted for curve in curves):
        handles.append(plots.entry("measured", linestyle="none", marker="o", markersize=3.4))
    return handles


def colours_of(labels: list[str]) -> dict[str, str]:
    """A placement's own colour, where it has one that no other took."""
    found: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        own = plots.colour(label)
        free = [colour for colour in SPARE if colour not in found.values()]
        found[label] = own if own != plots.OTHER and own not in found.values() else (free or [plots.OTHER])[0]
    return found
