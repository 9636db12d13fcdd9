"""What is taken away from a page: one netCDF file of all that it shows, and the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from propagate.explorer.state import State
from propagate.explorer.words import code
from propagate.table import STREAM, provenance

if TYPE_CHECKING:
    import xarray as xr

THEORY, MEASURED = ("variance", "deviation", "grad_variance", "grad_deviation"), "measured"


def dataset(state: State, theory: Mapping[str, xr.Dataset], measured: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Over `line` (a placement, or one of its streams) and `block`, the theory and beside it, as far as there is any,
    the simulation: `measured_<name>`, its standard error `measured_<name>_se` and the means of logarithms.

    Example:
        >>> import propagate as pg
        >>> state = State(placements=("prenorm", "residual"), depth=2)
        >>> theory = {name: pg.predict(state.model(name), state.start) for name in state.placements}
        >>> found = dataset(state, theory, {})
        >>> found.variance.dims, found.line.values.tolist()
        (('line', 'block'), ['prenorm', 'residual 1', 'residual 2', 'residual joined'])
    """
    import xarray as xr

    parts = []
    for name, table in theory.items():
        both = table[[column for column in THEORY if column in table]]
        if name in measured:
            seen = measured[name]
            columns = [str(column) for column in seen.data_vars if seen[column].dims == table.variance.dims]
            both = both.merge(seen[columns].rename({column: f"{MEASURED}_{column}" for column in columns}))
        if STREAM in both.dims:
            labels = [f"{name} {stream}" for stream in both[STREAM].to_numpy()]
            parts.append(both.drop_vars(STREAM).rename({STREAM: "line"}).assign_coords(line=labels))
        else:
            parts.append(both.expand_dims(line=[name]))
    found = xr.concat(parts, "line", join="exact", data_vars="all", coords="minimal", compat="equals")
    order = found.transpose("line", "block", ...)
    return order.assign_attrs({"state": state.query, "code": code(state)} | provenance())


def netcdf(state: State, theory: Mapping[str, xr.Dataset], measured: Mapping[str, xr.Dataset]) -> bytes:
    """The same as a file."""
    return bytes(dataset(state, theory, measured).to_netcdf(engine="scipy"))


def picture(theory: Mapping[str, xr.Dataset], measured: Mapping[str, xr.Dataset]) -> bytes:
    """`propagate.plot` of the tables, as a PNG.

    Example:
        >>> import propagate as pg
        >>> picture({"prenorm": pg.predict(pg.Model("prenorm", depth=2))}, {})[1:4]
        b'PNG'
    """
    from propagate.picture import plot
    from propagate.plots import render

    return render(plot(*theory.values(), *(measured[name] for name in theory if name in measured)), "png")
