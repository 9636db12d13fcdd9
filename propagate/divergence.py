"""Where a measurement first leaves a prediction. Knows tables, not witnesses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from propagate.agreement import THRESHOLD, checked_threshold
from propagate.model import ModelError

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Divergence:
    """The first place where a measurement leaves the band around a prediction.

    Attributes:
        block: index of the block.
        call: the sublayer call whose output leaves the band ("attention1", "ffn1", "norm2", ...); "sum" if every
            sublayer of the block was within it and the stream that they make is not; "gradient" on the way back.
        quantity: what left the band.
        predicted, measured, allowed: values, and the relative difference allowed (of a covariance: to the variance).
    """

    block: int
    call: str
    quantity: str
    predicted: float
    measured: float
    allowed: float

    def __str__(self) -> str:
        place = {"sum": "the stream", "gradient": "the gradient"}.get(self.call, self.call)
        return (
            f"block {self.block}, {place}: {self.quantity} is {self.measured:.4g}, predicted {self.predicted:.4g}"
            f" (allowed: {100 * self.allowed:.2g} %)"
        )


def first_divergence(
    prediction: xr.Dataset, measurement: xr.Dataset, *, tolerance: float = 0.1, threshold: float = THRESHOLD
) -> Divergence | None:
    """The first block and sublayer at which a measurement leaves the predicted band, or None.

    The band around a prediction is `tolerance`, the prediction's own `<name>_allowance` and `threshold` standard errors
    of the measurement, where it has any. Forward comes first, block by block: the sublayers in the order of their
    calls, then the stream; after that the gradient, from the last block back. What the two tables hold over different
    dimensions (a placement of several streams, traced in its first) is left out.

    Args:
        prediction: a table such as `predict_calls` gives; that of `predict` names blocks only.
        measurement: a table such as `trace` gives.
        tolerance: relative difference that is of no interest.
        threshold: standard errors that may be chance.

    Raises:
        ModelError: for tables of different depth, or a bad tolerance or threshold.

    Example: the second block's attention gives 4 where 1 was said.
        >>> import xarray as xr
        >>> names = {"call": ["attention1"], "block": [0, 1, 2]}
        >>> said = xr.Dataset({"call_variance": (("block", "call"), [[float("nan")], [1.0], [1.0]])}, names)
        >>> seen = xr.Dataset({"call_variance": (("block", "call"), [[float("nan")], [1.0], [4.0]])}, names)
        >>> print(first_divergence(said, seen))
        block 2, attention1: variance is 4, predicted 1 (allowed: 10 %)
    """
    checked_threshold(threshold)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance > 0:
        raise ModelError(f"tolerance must be a positive number, got {tolerance!r}")
    if prediction.sizes["block"] != measurement.sizes["block"]:
        raise ModelError(
            f"the tables differ in depth: {prediction.sizes['block'] - 1} and {measurement.sizes['block'] - 1} blocks"
        )
    for block, call, name in _places(prediction, measurement):
        found = _judged(prediction, measurement, block, call, name, tolerance, threshold)
        if found is not None:
            return found
    return None


def _places(prediction: xr.Dataset, measurement: xr.Dataset) -> Iterator[tuple[int, str, str]]:
    def shared(names: tuple[str, ...]) -> list[str]:
        both = [name for name in names if name in prediction and name in measurement]
        return [name for name in both if prediction[name].dims == measurement[name].dims]

    calls = []
    if shared(("call_variance",)):
        calls = [call for call in measurement.call.values.tolist() if call in prediction.call.values]
    blocks = range(measurement.sizes["block"])
    for block in blocks:
        for call in calls:
            for name in shared(("call_variance", "call_covariance")):
                yield block, call, name
        for name in shared(("variance", "covariance", "deviation")):
            yield block, "sum", name
    for block in reversed(blocks):
        for name in shared(("grad_variance", "grad_covariance")):
            yield block, "gradient", name


def _judged(
    prediction: xr.Dataset,
    measurement: xr.Dataset,
    block: int,
    call: str,
    name: str,
    tolerance: float,
    threshold: float,
) -> Divergence | None:
    def at(table: xr.Dataset, column: str, default: float = 0.0) -> float:
        if column not in table:
            return default
        values = table[column].isel(block=block)
        return float(values.sel(call=call) if "call" in values.dims else values)

    predicted, measured = at(prediction, name), at(measurement, name)
    scale = abs(at(prediction, name.replace("covariance", "variance")))
    if math.isnan(predicted) or math.isnan(measured) or scale == 0:
        return None
    error = at(measurement, f"{name}_se") / scale
    stated = at(prediction, f"{name}_allowance") + abs(at(prediction, f"{name}_bias"))
    allowed = tolerance + stated + threshold * (0.0 if math.isnan(error) else error)
    if name.endswith("covariance"):
        difference = abs(measured - predicted) / scale
    else:
        difference = abs(math.log(measured / predicted)) if measured > 0 else math.inf
    if difference <= allowed:
        return None
    return Divergence(block, call, name.removeprefix("call_"), predicted, measured, allowed)
