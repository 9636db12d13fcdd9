"""The table of a network's first steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from propagate.montecarlo.statistics import Floats, Summary
from propagate.quantities import quantity_of
from propagate.table import BY_MATRIX, STREAM, table

if TYPE_CHECKING:
    import xarray as xr

OF_A_STEP = ("loss", "logit_change")
"""Quantities that blocks do not have."""
OF_THE_FIRST = ("first_order_fall",)
"""Quantities that only the first step has."""


def table_of_steps(summary: Summary, depth: int, steps: int, attributes: dict[str, Any]) -> xr.Dataset:
    """A Dataset over `step` and what `table` has."""
    import xarray as xr

    variables, matrices = summary.variables(), summary.parts(BY_MATRIX)
    dims = (STREAM,) if variables["variance"].ndim > 2 else ()
    of_a_step = {name: values for name, values in variables.items() if quantity_of(name).name in OF_A_STEP}
    fixed = {name: values for name, values in variables.items() if quantity_of(name).name in OF_THE_FIRST}
    varying = {name: values for name, values in variables.items() if name not in (of_a_step | fixed)}

    def at(values: dict[str, Floats]) -> xr.Dataset:
        return table(values, depth, attributes, dims, matrices)

    by_step = [at(fixed | {name: values[step] for name, values in varying.items()}) for step in range(steps + 1)]
    whole = xr.concat(by_step, dim=xr.Variable("step", range(steps + 1)), combine_attrs="override")
    whole = whole.assign({name: whole[name].isel(step=0, drop=True) for name in fixed})
    for name, values in of_a_step.items():
        whole[name] = "step", values
        whole[name].attrs["long_name"] = quantity_of(name).meaning
    return whole
