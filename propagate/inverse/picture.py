"""The trade-off curve of a solution as a picture: a panel a condition, with its levels and where it is met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from propagate import plots

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

FAR = 20.0  # ratio of the largest to the smallest value from which on an axis shows magnitudes


def draw(table: xr.Dataset) -> Figure:
    """Each condition's value against the unknown; shaded where all are met.

    Example:
        >>> import propagate as pg
        >>> model = pg.Model("prenorm", depth=4, scaling=pg.ScaleInit(0.0), logit_std=0.0)
        >>> found = pg.solve(model, "scaling.exponent", [pg.GradientGain(below=2.0)], between=(0, 1))
        >>> draw(found.table).axes[0].get_title()
        'gradient_gain'
    """
    (dim,) = table.dims
    names = [str(name) for name in table.data_vars if not str(name).endswith("_met")]
    met = np.all([table[f"{name}_met"].to_numpy() for name in names], axis=0)
    x = table[dim].to_numpy()
    with plots.style():
        figure, axes = plots.panels(1, len(names), width=min(plots.PAGE, 2.4 * len(names) + 0.6), height=2.1)
        for axis, name in zip(axes[0], names, strict=True):
            _panel(axis, x, table[name], met)
            axis.set(title=name, xlabel=table.attrs["unknown"])
            if float(x[0]) > 0 and float(x[-1] / x[0]) > FAR:
                axis.set_xscale("log")
    return figure


def _panel(axis: Any, x: Any, values: xr.DataArray, met: Any) -> None:
    axis.plot(x, values.to_numpy(), color=plots.COLOURS["prenorm"])
    for level in ("above", "below"):
        if level in values.attrs:
            axis.axhline(values.attrs[level], color=plots.COLOURS["postnorm"], linewidth=0.8, linestyle=(0, (4, 2)))
    for left, right in _runs(met):
        axis.axvspan(x[left], x[right], color=plots.COLOURS["spannorm"], alpha=0.18, linewidth=0)
    finite = values.to_numpy()[np.isfinite(values.to_numpy())]
    if finite.size and finite.min() > 0 and finite.max() / finite.min() > FAR:
        axis.set_yscale("log")


def _runs(met: Any) -> list[tuple[int, int]]:
    """First and last places of neighbours that are met.

    Example:
        >>> _runs([True, True, False, True])
        [(0, 1), (3, 3)]
    """
    found: list[tuple[int, int]] = []
    for place, here in enumerate(met):
        if here:
            first = found.pop()[0] if found and found[-1][1] == place - 1 else place
            found.append((first, place))
    return found
