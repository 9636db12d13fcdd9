"""One quantity of two tables on the scale on which it is judged: how far apart, and how well either is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from propagate.model import ModelError
from propagate.table import BY_CALL, BY_MATRIX, JOINED, STREAM, further

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
    name: str, prediction: xr.Dataset, measurement: xr.Dataset, places: tuple[str, ...], draws: int
) -> Comparison:
    """A quantity of both tables.

    Raises:
        ModelError: where a column that is needed is missing, or has other dimensions.
    """

    def values(dataset: xr.Dataset, name: str, default: Any = None) -> Floats:
        return _column(dataset, name, (*places, *further(name)), default)

    predicted = values(prediction, name)
    none, of_covariance = np.zeros_like(predicted), "covariance" in name
    variance = np.abs(values(prediction, _variance_of(name), default=None if of_covariance else predicted))
    scale = variance if of_covariance else np.abs(predicted)
    faint = none  # where both are below it they are the same
    rounding = ROUNDING if measurement.attrs.get("dtype", "float64") == "float64" else SINGLE
    with np.errstate(divide="ignore", invalid="ignore"):
        if name.endswith("_spread"):
            measured = values(measurement, f"log_{name.removesuffix('_spread')}_se") * math.sqrt(draws)
            error = np.full_like(predicted, 1 / math.sqrt(2 * (draws - 1)) if draws > 1 else math.nan)
            difference, faint = np.log(measured / predicted), np.full_like(predicted, FAINT_SPREAD)
        elif f"log_{name}" in measurement and not name.startswith(BY_MATRIX):
            measured, error = np.exp(values(measurement, f"log_{name}")), values(measurement, f"log_{name}_se")
            difference, faint = np.log(measured / predicted), FAINT * variance
            nil = (predicted == 0) & (variance > 0)  # a deviation: what leaks into it is a share of the variance
            scale, difference = np.where(nil, variance, scale), np.where(nil, measured / variance, difference)
            error = np.where(nil, error * measured / variance, error)
            if name in measurement:  # which is 0 in some draws, perhaps, where the mean logarithm is no number
                nothing = (np.abs(predicted) <= faint) & ~np.isfinite(measured)
                measured = np.where(nothing, values(measurement, name), measured)
        elif name.startswith(BY_MATRIX):  # the logarithm of the mean: a prediction many times too large is found too
            measured = values(measurement, name)
            error = values(measurement, f"{name}_se") / measured
            difference = np.log(measured / predicted)
        else:
            measured = values(measurement, name)
            error, difference = values(measurement, f"{name}_se") / scale, (measured - predicted) / scale
        own = np.nan_to_num(values(prediction, f"{name}_se", default=none) / scale)
        unit = np.maximum(np.abs(predicted) / scale, SMALL_COVARIANCE) if of_covariance else np.ones_like(predicted)
    biased = f"log_{name}_bias" if f"log_{name}" in measurement else f"{name}_bias"
    difference = difference - values(prediction, biased, default=none)
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
        allowance=np.hypot(values(prediction, f"{name}_allowance", default=none), own),
        scale=scale,
        unit=unit,
        expected=known[0] | known[1] | _always(name, prediction, places, predicted.shape),
    )


def _variance_of(name: str) -> str:
    for word in ("covariance", "deviation"):
        name = name.replace(word, "variance")
    return name


def _always(name: str, prediction: xr.Dataset, places: tuple[str, ...], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where a quantity must have a value: everywhere but for what no block need have, and between the joined ends."""
    found = np.full(shape, not name.startswith((*BY_CALL, BY_MATRIX)))
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
