"""Where witnesses meet: a predicted table against a measured one, quantity by quantity, block by block.

Knows tables, not witnesses: a prediction can come from a paper or another tool, as long as it has the names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from propagate.model import ModelError
from propagate.table import BY_MATRIX, QUANTITIES

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]
THRESHOLD = 4.0
ROUNDING = 1e-9  # relative differences below this are arithmetic, not evidence


def compare(prediction: xr.Dataset, measurement: xr.Dataset, *, threshold: float = THRESHOLD) -> xr.Dataset:
    """Judge a measurement by a prediction.

    A quantity whose mean logarithm was measured (`log_<name>`) is compared on the log scale, with the geometric mean;
    the others by their arithmetic mean, and so is `param_grad`: queries and keys of few heads and tokens vary between
    draws at any width, and it is their expectation that is predicted. The error of a comparison is the standard error
    over draws and the prediction's stated finite-width allowance, added in quadrature. `z` is the normal score of the
    resulting t statistic with draws - 1 degrees of freedom, so that few draws do not pass for certainty. Where the
    prediction has `<name>_spread`, the standard deviation of the logarithm over draws is judged by it.

    Args:
        prediction: a table with any of the quantities over `block`, and `<name>_allowance` where it is not exact.
        measurement: a table with the same and `<name>_se`, and `draws` in its attributes.
        threshold: largest |z| that still agrees.

    Returns:
        A Dataset over `quantity` and `block`: `predicted`, `measured`, `standard_error`, `allowance` (the last two
        relative to the prediction, for a covariance to the variance), `relative_error`, `z`; over `quantity` (each
        matrix's gradient is one, `param_grad[query]` for instance):
        `worst_z` and `agrees`; in `attrs`, `agrees` as 0 or 1. Entries with nothing to compare are NaN.

    Raises:
        ModelError: if the tables share no quantity, their blocks differ, or the threshold is not positive.

    Example: a wrong prediction is found out.
        >>> import xarray as xr
        >>> said = xr.Dataset({"variance": ("block", [1.0, 2.0])})
        >>> seen = xr.Dataset({"variance": ("block", [1.0, 1.0]), "variance_se": ("block", [0.1, 0.1])})
        >>> compare(said, seen.assign_attrs(draws=50)).attrs["agrees"]
        0
    """
    import xarray as xr

    threshold = checked_threshold(threshold)
    for name, given in (("prediction", prediction), ("measurement", measurement)):
        if not isinstance(given, xr.Dataset):
            raise ModelError(f"{name} must be an xarray.Dataset, got {given!r}")
        if "block" not in given.dims:
            raise ModelError(f"{name} must have the dimension block, got {', '.join(map(str, given.dims)) or 'none'}")
    prediction, measurement = _by_matrix(prediction), _by_matrix(measurement)
    names = _names(prediction, measurement)
    if not names:
        raise ModelError(f"the tables share none of {', '.join(QUANTITIES)}")
    if prediction.sizes["block"] != measurement.sizes["block"]:
        raise ModelError(
            f"the tables differ in depth: {prediction.sizes['block'] - 1} and {measurement.sizes['block'] - 1} blocks"
        )
    draws = int(measurement.attrs.get("draws", 2**31))
    rows = [_judge(name, prediction, measurement, draws) for name in names]
    columns = {key: (("quantity", "block"), np.array([row[key] for row in rows])) for key in rows[0]}
    result = xr.Dataset(columns, coords={"quantity": names, "block": np.arange(prediction.sizes["block"])})
    worst = np.abs(result.z).max("block").fillna(0.0)
    result["worst_z"], result["agrees"] = worst, worst < threshold
    shared = {key: measurement.attrs[key] for key in ("model", "draws", "seed", "device") if key in measurement.attrs}
    return result.assign_attrs(agrees=int(bool(result.agrees.all())), threshold=threshold, **shared)


def checked_threshold(threshold: float) -> float:
    """The threshold, if it is one.

    Raises:
        ModelError: unless it is a positive number.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold > 0:
        raise ModelError(f"threshold must be a positive number, got {threshold!r}")
    return float(threshold)


def _by_matrix(table: xr.Dataset) -> xr.Dataset:
    """With a column for each matrix, `param_grad[query]` for instance, in place of a dimension."""
    if "matrix" not in table.dims:
        return table
    return table.drop_dims("matrix").assign(
        {
            str(name).replace(BY_MATRIX, f"{BY_MATRIX}[{matrix}]"): values.sel(matrix=matrix, drop=True)
            for name, values in table.data_vars.items()
            if "matrix" in values.dims
            for matrix in values.matrix.to_numpy().tolist()
        }
    )


def _names(prediction: xr.Dataset, measurement: xr.Dataset) -> list[str]:
    """What both tables have, in the order of `QUANTITIES`; each matrix's is one. Then the spreads."""
    named = [str(name) for wanted in QUANTITIES for name in prediction if str(name).split("[")[0] == wanted]
    spreads = [name for name in QUANTITIES if f"{name}_spread" in prediction and f"log_{name}_se" in measurement]
    return [name for name in named if name in measurement] + [f"{name}_spread" for name in spreads]


def _judge(name: str, prediction: xr.Dataset, measurement: xr.Dataset, draws: int) -> dict[str, Floats]:
    predicted = _values(prediction, name)
    scale = np.abs(_values(prediction, name.replace("covariance", "variance")))
    allowance = _values(prediction, f"{name}_allowance", default=np.zeros_like(predicted))
    if name.endswith("_spread"):
        measured = _values(measurement, f"log_{name.removesuffix('_spread')}_se") * math.sqrt(draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.log(measured / predicted)
        error = np.full_like(predicted, 1 / math.sqrt(2 * (draws - 1)))
        compared = predicted > ROUNDING
    elif f"log_{name}" in measurement and not name.startswith(BY_MATRIX):
        measured = np.exp(_values(measurement, f"log_{name}"))
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.log(measured / predicted)
        error = _values(measurement, f"log_{name}_se")
        # a deviation this far below the variance is the rounding of arrays, and its logarithm means nothing
        floor = np.abs(_values(prediction, name.replace("deviation", "variance")))
        compared = predicted > 1e-12 * floor
    else:
        measured = _values(measurement, name)
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.where(measured == predicted, 0.0, (measured - predicted) / scale)  # 0 of 0 is right
            error = _values(measurement, f"{name}_se") / scale
        compared = np.isfinite(predicted)
    return {
        "predicted": predicted,
        "measured": measured,
        "standard_error": error,
        "allowance": allowance,
        "relative_error": difference,
        "z": np.where(compared, _score(difference, error, allowance, draws), np.nan),
    }


def _score(difference: Floats, error: Floats, allowance: Floats, draws: int) -> Floats:
    from scipy import stats

    total = np.sqrt(error**2 + allowance**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = stats.t.logsf(np.abs(difference) / total, draws - 1)
    score = -stats.norm.ppf(np.exp(np.maximum(tail, -700)))
    score = np.where(np.abs(difference) < ROUNDING, 0.0, np.sign(difference) * score)
    return np.where(np.isfinite(difference), score, np.inf)  # a measurement that is no number agrees with nothing


def _values(dataset: xr.Dataset, name: str, default: Any = None) -> Floats:
    if name not in dataset:
        if default is None:
            raise ModelError(f"the table has no {name}")
        return np.asarray(default, dtype=float)
    values = dataset[name]
    if values.dims != ("block",):
        raise ModelError(f"{name} must have the one dimension block, got {values.dims}; select first")
    return np.asarray(values.to_numpy(), dtype=float)
