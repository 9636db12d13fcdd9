"""Where witnesses meet: a predicted table against a measured one, quantity by quantity, block by block.

Knows tables, not witnesses: a prediction can come from a paper or another tool, as long as it has the names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from propagate.checks import THRESHOLD as THRESHOLD
from propagate.checks import checked_threshold as checked_threshold
from propagate.checks import number, shown
from propagate.comparisons import comparison
from propagate.divergence import first_out_of_band
from propagate.model import ModelError
from propagate.quantities import QUANTITIES, Quantity, column_of, quantity_of
from propagate.scores import detectable, score
from propagate.table import JOINED, STREAM
from propagate.verdicts import AGREES, CANNOT_TELL, RESOLUTION, of_quantity, together

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]


def compare(
    prediction: xr.Dataset,
    measurement: xr.Dataset,
    *,
    threshold: float = THRESHOLD,
    resolution: float = RESOLUTION,
) -> xr.Dataset:
    """Judge a measurement by a prediction: they agree, they disagree, or the measurement cannot tell.

    A quantity whose mean logarithm was measured (`log_<name>`) is compared on the log scale, with the geometric mean;
    the others by their arithmetic mean, and so is `param_grad`: queries and keys of few heads and tokens vary between
    draws at any width, and it is their expectation that is predicted. `z` is the normal score at which the difference
    would just be rejected: the standard error over draws, times Student's quantile of draws - 1 degrees of freedom, and
    the prediction's stated finite-width allowance, times z, in quadrature. A prediction's own standard error,
    `<name>_se`, counts as part of its allowance. Its bias is taken off the difference: `log_<name>_bias` on the log
    scale, else `<name>_bias`. Where the prediction has `<name>_spread`, the standard deviation of the logarithm over
    draws is judged by it.

    Agreement takes more than a small |z|: everywhere, any theory that says something else by `resolution` or more must
    be one that the same measurement rejects. Where it is not, for too few draws, too large an allowance, or because
    there is no number to compare, the measurement cannot tell. Of covariances `resolution` is a share of themselves, or
    of a quarter of the variance where that is more. What is the same but for rounding agrees.

    A quantity over further dimensions, such as `token_variance` over tokens, is judged entry by entry; at each block
    the entry with the largest |z| stands for all. But each matrix's gradient is a quantity of its own,
    `param_grad[query]` for instance, and what a sublayer gives, `call_variance[attention1]`, where both tables have it
    (`predict_calls` and `trace`); where there are streams both are found under "joined".

    Args:
        prediction: a table with any of the quantities over `block`, and `<name>_allowance` where it is not exact.
        measurement: a table with the same and `<name>_se`, and `draws` in its attributes.
        threshold: largest |z| that still agrees.
        resolution: the relative error that must be one that would have been rejected.

    Returns:
        A Dataset over `quantity` and `block`, and over `stream` where the tables have it: `predicted`, `measured`,
        `standard_error`, `allowance`, `relative_error` (less the bias) and `detectable`, the smallest such error that
        would have been rejected, these four relative to `scale`: the prediction, for a covariance the variance;
        `unresolved`, the relative error beyond which every other theory would have been, to be held against
        `resolution`; `z`. Over `quantity`: `worst_z`, `verdict` ("agrees", "disagrees", "cannot tell") and `agrees`,
        whether it is the first. In `attrs`: `verdict` and `agrees`, as 0 or 1, of all quantities together;
        `cannot_tell`, in words the quantity and block that is least resolved, "" where all are; and
        `first_divergence`, in words the first place out of the band: forward block by block, the sublayers before the
        stream that they make, then the gradient from the last block back; "" if there is none. Entries with nothing to
        compare are NaN: where a prediction says nothing, nothing can be told. A measurement that is no number where one
        was predicted disagrees, with z infinite.

    Raises:
        ModelError: if the tables share no quantity, their blocks or streams differ, or the threshold or resolution is
            not positive.

    Example: a wrong prediction is found out.
        >>> import xarray as xr
        >>> said = xr.Dataset({"variance": ("block", [1.0, 2.0])})
        >>> seen = xr.Dataset({"variance": ("block", [1.0, 1.0]), "variance_se": ("block", [0.1, 0.1])})
        >>> verdict = compare(said, seen.assign_attrs(draws=50))
        >>> verdict.attrs["verdict"], verdict.attrs["first_divergence"]
        ('disagrees', 'block 1, the stream: variance is 1, predicted 2 (allowed: 22 %)')

    Example: three draws cannot tell.
        >>> verdict = compare(said, seen.assign_attrs(draws=3))
        >>> verdict.attrs["verdict"]
        'cannot tell'
        >>> verdict.attrs["cannot_tell"]
        'variance at block 1: the smallest error that would have been rejected is a factor of 7.3'
    """
    import xarray as xr

    threshold, resolution = checked_threshold(threshold), number("resolution", resolution, positive=True)
    for name, given in (("prediction", prediction), ("measurement", measurement)):
        if not isinstance(given, xr.Dataset):
            raise ModelError(f"{name} must be an xarray.Dataset, got {shown(given)}")
        if "block" not in given.dims:
            raise ModelError(f"{name} must have the dimension block, got {', '.join(map(str, given.dims)) or 'none'}")
    prediction, measurement = _apart(prediction), _apart(measurement)
    quantities = _shared(prediction, measurement)
    names = [quantity.label for quantity in quantities]
    if not names:
        judged = (name for name, quantity in QUANTITIES.items() if quantity.judged)
        raise ModelError(f"the tables share none of {', '.join(judged)}")
    if prediction.sizes["block"] != measurement.sizes["block"]:
        raise ModelError(
            f"the tables differ in depth: {prediction.sizes['block'] - 1} and {measurement.sizes['block'] - 1} blocks"
        )
    if prediction.sizes.get(STREAM) != measurement.sizes.get(STREAM):
        raise ModelError(
            f"the tables differ in streams: {prediction.sizes.get(STREAM, 1)} and {measurement.sizes.get(STREAM, 1)}"
        )
    places = ("block", STREAM) if STREAM in measurement.dims else ("block",)
    draws = int(measurement.attrs.get("draws", 2**31))
    rows = [_judge(quantity, prediction, measurement, places, draws, threshold) for quantity in quantities]
    columns = {key: (("quantity", *places), np.array([row[key] for row in rows])) for key in rows[0]}
    coords = {STREAM: measurement[STREAM].to_numpy()} if STREAM in measurement.coords else {}
    result = xr.Dataset(columns, coords={"quantity": names, "block": np.arange(prediction.sizes["block"])} | coords)
    verdicts = [of_quantity(row["z"], row["unresolved"], threshold, resolution) for row in rows]
    agree = [one == AGREES for one in verdicts]
    result = result.assign(
        worst_z=np.abs(result.z).max(places), verdict=("quantity", verdicts), agrees=("quantity", agree)
    )
    shared = {key: measurement.attrs[key] for key in ("model", "draws", "seed", "device") if key in measurement.attrs}
    overall = together(verdicts)
    result = result.assign_attrs(agrees=int(overall == AGREES), verdict=overall, threshold=threshold, **shared)
    result = result.assign_attrs(resolution=resolution, cannot_tell=_least_resolved(result))
    return result.assign_attrs(first_divergence=str(first_out_of_band(result) or ""))


def _least_resolved(judged: xr.Dataset) -> str:
    """In words, where the measurement tells least, if anywhere it cannot tell."""
    doubtful = judged.verdict == CANNOT_TELL
    if not doubtful.any():
        return ""
    unresolved = judged.unresolved.fillna(-1.0).where(doubtful, -2.0)
    at = judged.isel(unresolved.argmax(list(unresolved.dims)))
    stream = f" of stream {at[STREAM].item()}" if STREAM in at.coords else ""
    place = f"{at['quantity'].item()}{stream} at block {at['block'].item()}"
    if np.isnan(at.z):
        return f"{place}: nothing to compare"
    return f"{place}: the smallest error that would have been rejected is {_words(at)}"


def _words(at: xr.Dataset) -> str:
    smallest = float(at.detectable)
    if not quantity_of(str(at["quantity"].item())).positive:
        return f"{smallest * float(at.scale):.2g}"
    return f"{100 * smallest:.2g} %" if smallest < 1 else f"a factor of {1 + smallest:.2g}"


def _apart(table: xr.Dataset) -> xr.Dataset:
    """With a column for each matrix and each sublayer call, such as `param_grad[query]`, in place of dimensions."""
    columns, dimensions = {}, set()
    for column, values in table.data_vars.items():
        quantity, kind = column_of(str(column))
        if not quantity.apart or not set(quantity.dims) <= set(values.dims):
            continue
        (dimension,) = quantity.dims
        dimensions.add(dimension)
        for entry in values[dimension].to_numpy().tolist() if quantity.judged else ():
            one = values.sel({dimension: entry}, drop=True)
            if STREAM in table.coords:
                one = one.where(table[STREAM] == JOINED).transpose("block", ...)
            columns[quantity.of_entry(str(entry)).column(kind)] = one
    return table.drop_dims(dimensions).assign(columns) if dimensions else table


def _shared(prediction: xr.Dataset, measurement: xr.Dataset) -> list[Quantity]:
    """What both tables have, in the order of the records; each matrix's gradient is one. Then the spreads."""
    order, judged = list(QUANTITIES), [one for one in QUANTITIES.values() if one.judged]
    columns = [quantity for quantity, kind in map(column_of, map(str, prediction)) if kind == "value"]
    values = [one for one in columns if one.judged and one.label in measurement]
    spreads = [one.of_spread() for one in judged if one.column("log_se") in measurement]
    return sorted(values, key=lambda one: order.index(one.name)) + [one for one in spreads if one.label in prediction]


def _judge(
    quantity: Quantity,
    prediction: xr.Dataset,
    measurement: xr.Dataset,
    places: tuple[str, ...],
    draws: int,
    threshold: float,
) -> dict[str, Floats]:
    """Columns of one quantity over the places: where it has further dimensions, of the entry with the largest |z|."""
    one = comparison(quantity, prediction, measurement, places, draws)
    smallest = detectable(one.error, one.allowance, draws, threshold)
    with np.errstate(invalid="ignore"):
        unresolved = np.where(one.difference == 0, 0.0, (np.abs(one.difference) + smallest) / one.unit)
    found = {
        "predicted": one.predicted,
        "measured": one.measured,
        "scale": one.scale,
        "standard_error": one.error,
        "allowance": one.allowance,
        "relative_error": one.difference,
        "detectable": smallest,
        "unresolved": np.nan_to_num(unresolved, nan=np.inf, posinf=np.inf),
        "z": score(one.difference, one.error, one.allowance, draws),
    }
    found["z"] = np.where(np.isinf(one.difference), np.inf, found["z"])  # what is no number agrees with nothing
    nothing = np.isnan(one.difference)
    found["z"][nothing] = found["detectable"][nothing] = np.nan
    found["unresolved"][nothing] = np.where(one.expected, np.inf, np.nan)[nothing]
    shape = one.predicted.shape[: len(places)]
    rows = {key: values.reshape(math.prod(shape), -1) for key, values in found.items()}
    worst = np.nan_to_num(np.abs(rows["z"]), nan=-1.0, posinf=np.inf).argmax(axis=1)
    chosen = {key: values[np.arange(len(values)), worst] for key, values in rows.items()}
    for key in ("detectable", "unresolved"):
        chosen[key] = np.fmax.reduce(rows[key], axis=1)
    return {key: values.reshape(shape) for key, values in chosen.items()}
