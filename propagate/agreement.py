"""Where witnesses meet: a predicted table against a measured one, quantity by quantity, block by block.

Knows tables, not witnesses: a prediction can come from a paper or another tool, as long as it has the names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from propagate.checks import THRESHOLD as THRESHOLD
from propagate.checks import checked_threshold as checked_threshold
from propagate.divergence import first_out_of_band
from propagate.model import ModelError
from propagate.table import BY_CALL, BY_MATRIX, FURTHER, JOINED, QUANTITIES, STREAM, further

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]
ROUNDING = 1e-9  # relative differences below this are arithmetic, not evidence
SINGLE = 1e-5  # the same of a trace in single precision or less


def compare(prediction: xr.Dataset, measurement: xr.Dataset, *, threshold: float = THRESHOLD) -> xr.Dataset:
    """Judge a measurement by a prediction.

    A quantity whose mean logarithm was measured (`log_<name>`) is compared on the log scale, with the geometric mean;
    the others by their arithmetic mean, and so is `param_grad`: queries and keys of few heads and tokens vary between
    draws at any width, and it is their expectation that is predicted. The error of a comparison is the standard error
    over draws and the prediction's stated finite-width allowance, added in quadrature. `z` is the normal score of the
    resulting t statistic with draws - 1 degrees of freedom, so that few draws do not pass for certainty. A prediction's
    own standard error, `<name>_se`, counts as part of its allowance. Its bias is taken off the difference:
    `log_<name>_bias` on the log scale, else `<name>_bias`. Where the prediction has `<name>_spread`, the standard
    deviation of the logarithm over draws is judged by it.

    A quantity over further dimensions, such as `token_variance` over tokens, is judged entry by entry; at each block
    the entry with the largest |z| stands for all. But each matrix's gradient is a quantity of its own,
    `param_grad[query]` for instance, and what a sublayer gives, `call_variance[attention1]`, where both tables have it
    (`predict_calls` and `trace`); where there are streams both are found under "joined".

    Args:
        prediction: a table with any of the quantities over `block`, and `<name>_allowance` where it is not exact.
        measurement: a table with the same and `<name>_se`, and `draws` in its attributes.
        threshold: largest |z| that still agrees.

    Returns:
        A Dataset over `quantity` and `block`, and over `stream` where the tables have it: `predicted`, `measured`,
        `standard_error`, `allowance` (the last two relative to the prediction, for a covariance to the variance),
        `relative_error` (less the bias), `z`; over `quantity`: `worst_z` and `agrees`; in `attrs`, `agrees` as 0 or 1,
        and `first_divergence`, in words the first place out of the band: forward block by block, the sublayers before
        the stream that they make, then the gradient from the last block back; "" if there is none. Entries with
        nothing to compare are NaN.

    Raises:
        ModelError: if the tables share no quantity, their blocks or streams differ, or the threshold is not positive.

    Example: a wrong prediction is found out.
        >>> import xarray as xr
        >>> said = xr.Dataset({"variance": ("block", [1.0, 2.0])})
        >>> seen = xr.Dataset({"variance": ("block", [1.0, 1.0]), "variance_se": ("block", [0.1, 0.1])})
        >>> verdict = compare(said, seen.assign_attrs(draws=50))
        >>> verdict.attrs["agrees"], verdict.attrs["first_divergence"]
        (0, 'block 1, the stream: variance is 1, predicted 2 (allowed: 20 %)')
    """
    import xarray as xr

    threshold = checked_threshold(threshold)
    for name, given in (("prediction", prediction), ("measurement", measurement)):
        if not isinstance(given, xr.Dataset):
            raise ModelError(f"{name} must be an xarray.Dataset, got {given!r}")
        if "block" not in given.dims:
            raise ModelError(f"{name} must have the dimension block, got {', '.join(map(str, given.dims)) or 'none'}")
    prediction, measurement = _apart(prediction), _apart(measurement)
    names = _names(prediction, measurement)
    if not names:
        raise ModelError(f"the tables share none of {', '.join(QUANTITIES)}")
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
    rows = [_judge(name, prediction, measurement, places, draws) for name in names]
    columns = {key: (("quantity", *places), np.array([row[key] for row in rows])) for key in rows[0]}
    coords = {STREAM: measurement[STREAM].to_numpy()} if STREAM in measurement.coords else {}
    result = xr.Dataset(columns, coords={"quantity": names, "block": np.arange(prediction.sizes["block"])} | coords)
    worst = np.abs(result.z).max(places).fillna(0.0)
    result["worst_z"], result["agrees"] = worst, worst < threshold
    shared = {key: measurement.attrs[key] for key in ("model", "draws", "seed", "device") if key in measurement.attrs}
    result = result.assign_attrs(agrees=int(bool(result.agrees.all())), threshold=threshold, **shared)
    return result.assign_attrs(first_divergence=str(first_out_of_band(result) or ""))


def _apart(table: xr.Dataset) -> xr.Dataset:
    """With a column for each matrix and each sublayer call, such as `param_grad[query]`, in place of dimensions."""
    for dimension, names in (("matrix", (BY_MATRIX,)), ("call", BY_CALL)):
        if dimension not in table.dims:
            continue
        columns = {
            f"{name}[{entry}]{str(column).removeprefix(name)}": values.sel({dimension: entry}, drop=True)
            for column, values in table.data_vars.items()
            if dimension in values.dims and (name := _stem(str(column), names))
            for entry in values[dimension].to_numpy().tolist()
        }
        if STREAM in table.coords:
            joined = table[STREAM] == JOINED
            columns = {name: column.where(joined).transpose("block", ...) for name, column in columns.items()}
        table = table.drop_dims(dimension).assign(columns)
    return table


def _stem(column: str, names: tuple[str, ...]) -> str:
    """The name that a column begins with, whatever follows; "" if none."""
    return next((name for name in names if column in (name, f"{name}_se", f"{name}_allowance")), "")


def _names(prediction: xr.Dataset, measurement: xr.Dataset) -> list[str]:
    """What both tables have, in the order of the names; each matrix's gradient is one. Then the spreads."""
    known = (*BY_CALL, *QUANTITIES, *FURTHER)
    columns = [str(name) for name in prediction if str(name).endswith("]") or "[" not in str(name)]
    named = [name for wanted in known for name in columns if name.split("[")[0] == wanted]
    spreads = [name for name in QUANTITIES if f"{name}_spread" in prediction and f"log_{name}_se" in measurement]
    return [name for name in named if name in measurement] + [f"{name}_spread" for name in spreads]


def _judge(
    name: str, prediction: xr.Dataset, measurement: xr.Dataset, places: tuple[str, ...], draws: int
) -> dict[str, Floats]:
    def values(dataset: xr.Dataset, name: str, default: Any = None) -> Floats:
        return _column(dataset, name, (*places, *further(name)), default)

    predicted = values(prediction, name)
    scale = np.abs(values(prediction, name.replace("covariance", "variance")))
    allowance = values(prediction, f"{name}_allowance", default=np.zeros_like(predicted))
    with np.errstate(divide="ignore", invalid="ignore"):
        own = values(prediction, f"{name}_se", default=np.zeros_like(predicted)) / scale
    allowance = np.hypot(allowance, np.nan_to_num(own))
    if name.endswith("_spread"):
        measured = values(measurement, f"log_{name.removesuffix('_spread')}_se") * math.sqrt(draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.log(measured / predicted)
        error = np.full_like(predicted, 1 / math.sqrt(2 * (draws - 1)))
        compared = predicted > ROUNDING
    elif name.startswith(BY_MATRIX):  # the logarithm of the mean: a prediction many times too large is found out too
        measured = values(measurement, name)
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.where(measured == predicted, 0.0, np.log(measured / predicted))  # 0 of 0 is right
            error = values(measurement, f"{name}_se") / measured
        compared = np.isfinite(predicted)
    elif f"log_{name}" in measurement:
        measured = np.exp(values(measurement, f"log_{name}"))
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.log(measured / predicted)
        error = values(measurement, f"log_{name}_se")
        # a deviation this far below the variance is the rounding of arrays, and its logarithm means nothing
        floor = np.abs(values(prediction, name.replace("deviation", "variance")))
        compared = predicted > 1e-12 * floor
    else:
        measured = values(measurement, name)
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.where(measured == predicted, 0.0, (measured - predicted) / scale)
            error = values(measurement, f"{name}_se") / scale
        compared = np.isfinite(predicted)
    biased = f"log_{name}_bias" if f"log_{name}" in measurement else f"{name}_bias"
    difference = difference - values(prediction, biased, default=np.zeros_like(predicted))
    rounding = ROUNDING if measurement.attrs.get("dtype", "float64") == "float64" else SINGLE
    found = {
        "predicted": predicted,
        "measured": measured,
        "standard_error": error,
        "allowance": allowance,
        "relative_error": difference,
        "z": np.where(compared, _score(difference, error, allowance, draws, rounding), np.nan),
    }
    shape = predicted.shape[: len(places)]
    rows = {key: values.reshape(math.prod(shape), -1) for key, values in found.items()}
    worst = np.nan_to_num(np.abs(rows["z"]), nan=-1.0, posinf=np.inf).argmax(axis=1)  # over what else there is
    return {key: values[np.arange(len(values)), worst].reshape(shape) for key, values in rows.items()}


def _score(difference: Floats, error: Floats, allowance: Floats, draws: int, rounding: float) -> Floats:
    from scipy import stats

    total = np.sqrt(error**2 + allowance**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = stats.t.logsf(np.abs(difference) / total, draws - 1)
    score = -stats.norm.ppf(np.exp(np.maximum(tail, -700)))
    score = np.where(np.abs(difference) < rounding, 0.0, np.sign(difference) * score)
    return np.where(np.isfinite(difference), score, np.inf)  # a measurement that is no number agrees with nothing


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
