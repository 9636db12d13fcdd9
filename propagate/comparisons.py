"""One quantity of two tables on the scale on which it is judged: how far apart, and how well either is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.model import ModelError
from propagate.quantities import Kind, Quantity
from propagate.table import JOINED, STREAM

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]
ROUNDING = 1e-9  # relative differences below this are arithmetic, not evidence
SINGLE = 1e-5  # the same of a trace in single precision or less
FAINT = 1e-12  # share of the variance below which a deviation is the rounding of arrays
FAINT_SPREAD = 1e-8  # the same of the spread of a logarithm
LOST = 1e3  # how much more rounding may have made of it
SMALL_COVARIANCE = 0.25  # share of the variance: of a smaller covariance as large an error is of interest as of this


class Comparison(NamedTuple):
    """One quantity, over blocks, streams and whatever else it has.

    Attributes:
        predicted, measured: as the tables have them; of a logarithm, the geometric mean.
        difference: measured less predicted, on a log scale or relative to the prediction, less the predicted bias; of a
            covariance, and of a deviation that is predicted to be 0, relative to the variance. 0 where both are the
            same but for rounding, infinite where what was measured is no number, NaN where nothing was predicted or
            both are none.
        error: standard error of what was measured, on that scale.
        allowance: uncertainty of what was predicted.
        scale: what differences and errors are relative to.
        unit: what an error as large as the quantity is, in these terms.
        expected: whether there is something to compare; where there is nothing, as for what a call gives at block 0,
            that says nothing against either table.
    """

    predicted: Floats
    measured: Floats
    difference: Floats
    error: Floats
    allowance: Floats
    scale: Floats
    unit: Floats
    expected: NDArray[np.bool_]


def comparison(
    quantity: Quantity, prediction: xr.Dataset, measurement: xr.Dataset, places: tuple[str, ...], draws: int
) -> Comparison:
    """A quantity of both tables.

    Raises:
        ModelError: where a column that is needed is missing, or has other dimensions.
    """

    def values(dataset: xr.Dataset, kind: Kind, default: Any = None, of: Quantity = quantity) -> Floats:
        return _column(dataset, of.column(kind), (*places, *of.axes), default)

    predicted = values(prediction, "value")
    none, positive = np.zeros_like(predicted), quantity.positive
    if quantity.reference:
        whole = np.abs(values(prediction, "value", predicted if positive else None, quantity.reference))
    else:
        whole = np.abs(predicted) if positive else np.ones_like(predicted)
    scale = np.abs(predicted) if positive else whole
    faint = none  # where both are below it they are the same
    of_log = quantity.scale == "log" and quantity.mean == "geometric"
    geometric = of_log and quantity.column("log") in measurement
    rounding = ROUNDING if measurement.attrs.get("dtype", "float64") == "float64" else SINGLE
    with np.errstate(divide="ignore", invalid="ignore"):
        if quantity.spread:
            measured = values(measurement, "log_se", of=quantity.of_value()) * math.sqrt(draws)
            error = np.full_like(predicted, 1 / math.sqrt(2 * (draws - 1)) if draws > 1 else math.nan)
            difference, faint = np.log(measured / predicted), np.full_like(predicted, FAINT_SPREAD)
        elif geometric:
            measured, error = np.exp(values(measurement, "log")), values(measurement, "log_se")
            difference, faint = np.log(measured / predicted), FAINT * whole
            nil = (predicted == 0) & (whole > 0)  # a deviation: what leaks into it is a share of the variance
            scale, difference = np.where(nil, whole, scale), np.where(nil, measured / whole, difference)
            error = np.where(nil, error * measured / whole, error)
            if quantity.label in measurement:  # 0 in some draws, perhaps, where the mean logarithm is no number
                nothing = (np.abs(predicted) <= faint) & ~np.isfinite(measured)
                measured = np.where(nothing, values(measurement, "value"), measured)
        elif quantity.mean == "arithmetic":  # the logarithm of the mean: a prediction many times too large is found too
            measured = values(measurement, "value")
            error = values(measurement, "se") / measured
            difference = np.log(measured / predicted)
        else:
            measured = values(measurement, "value")
            error, difference = values(measurement, "se") / scale, (measured - predicted) / scale
        own = np.nan_to_num(values(prediction, "se", none) / scale)
        unit = np.ones_like(predicted) if positive else np.maximum(np.abs(predicted) / scale, SMALL_COVARIANCE)
    difference = difference - values(prediction, "log_bias" if geometric else "bias", none)
    same = (np.abs(difference) < rounding) | (measured == predicted)
    same |= (np.abs(predicted) <= faint) & (np.abs(measured) <= faint * LOST)
    known = np.isfinite(predicted), np.isfinite(measured)
    both = known[0] & known[1]
    difference = np.where(same & both, 0.0, np.where(both & ~np.isnan(difference), difference, np.inf))
    return Comparison(
        predicted=predicted,
        measured=measured,
        difference=np.where(np.isnan(predicted) | ~(known[0] | known[1]), np.nan, difference),
        error=error,
        allowance=np.hypot(values(prediction, "allowance", none), own),
        scale=scale,
        unit=unit,
        expected=known[0] | known[1] | _always(quantity, prediction, places, predicted.shape),
    )


def _always(
    quantity: Quantity, prediction: xr.Dataset, places: tuple[str, ...], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Where a quantity must have a value: everywhere but for what no block need have, and between the joined ends."""
    found = np.full(shape, not quantity.apart)
    if STREAM in places:
        found[1:-1, prediction[STREAM].to_numpy() == JOINED] = False
    return found


def _column(dataset: xr.Dataset, name: str, places: tuple[str, ...], default: Any = None) -> Floats:
    if name not in dataset:
        if default is None:
            raise ModelError(f"the table has no {name}")
        return np.asarray(default, dtype=float)
    values = dataset[name]
    if values.dims != places:
        expected = "one dimension block" if len(places) == 1 else f"dimensions {', '.join(places)}"
        raise ModelError(f"{name} must have the {expected}, got {values.dims}; select first")
    return np.asarray(values.to_numpy(), dtype=float)
