"""Where a measurement first leaves a prediction. Knows tables, not witnesses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from propagate.checks import THRESHOLD, checked_threshold
from propagate.model import ModelError
from propagate.table import BY_CALL, BY_MATRIX, STREAM

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
    of the measurement and of the prediction, where they have any. Forward comes first, block by block: the sublayers
    in the order of their calls, then the stream; after that the gradient, from the last block back. What the two
    tables hold over different dimensions is left out, and where nothing is predicted. A measurement that is no number
    where one is predicted is a divergence.

    None says that nothing leaves the band, however wide few draws make it; `compare` says what they could have shown.

    Args:
        prediction: a table such as `predict_calls` gives; that of `predict` names blocks only.
        measurement: a table such as `trace` gives.
        tolerance: relative difference that is of no interest.
        threshold: standard errors that may be chance.

    Raises:
        ModelError: for tables of different depth or with nothing to compare, or a bad tolerance or threshold.

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
    several, compared = STREAM in prediction.dims and STREAM in measurement.dims, False
    for (block, call, name), stream in product(
        _places(prediction, measurement), measurement[STREAM].to_numpy().tolist() if several else [""]
    ):
        tables = [table.sel({STREAM: stream}) if several else table for table in (prediction, measurement)]
        found = _judged(tables[0], tables[1], block, call, name, tolerance, threshold)
        if isinstance(found, Divergence):
            return dataclasses.replace(found, quantity=_of_stream(found.quantity, stream if name[:4] != "call" else ""))
        compared |= found
    if not compared:
        raise ModelError("the tables must share a quantity that is a number somewhere, got nothing to compare")
    return None


def _of_stream(quantity: str, stream: str) -> str:
    return f"{quantity} of stream {stream}" if stream else quantity


def first_out_of_band(judged: xr.Dataset) -> Divergence | None:
    """The same of a table that `compare` gave: the first place whose |z| is not below its threshold, or None."""
    quantities = [str(name) for name in judged.quantity.values]
    back = [name for name in quantities if name.startswith(("grad_", BY_MATRIX))]
    forward = [name for name in quantities if name not in back]
    of_calls = [name for name in forward if name.split("[")[0] in BY_CALL]
    of_calls.sort(key=_order_of(of_calls))  # call by call, and each call's variance first
    blocks = range(judged.sizes["block"])
    places = [(block, name) for block in blocks for name in dict.fromkeys([*of_calls, *forward])]
    places += [(block, name) for block in reversed(blocks) for name in back]
    out = (abs(judged.z) >= judged.attrs["threshold"]).transpose("quantity", "block", ...).to_numpy()
    for block, name in places:
        broken = out[quantities.index(name), block]
        if not broken.any():
            continue
        at = judged.sel(quantity=name).isel(block=block)
        at = at.isel({STREAM: int(broken.argmax())}) if broken.ndim else at
        kind, _, call = name.rstrip("]").partition("[")
        place = "gradient" if name in back else call or "sum"
        kind = name if name in back else kind.removeprefix("call_")
        kind = _of_stream(kind, str(at[STREAM].item()) if STREAM in at.coords and not call else "")
        return Divergence(block, place, kind, float(at.predicted), float(at.measured), float(at.detectable))
    return None


def _order_of(names: list[str]) -> Callable[[str], tuple[int, int]]:
    calls = list(dict.fromkeys(name.split("[")[1] for name in names))
    return lambda name: (calls.index(name.split("[")[1]), BY_CALL.index(name.split("[")[0]))


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
            for name in shared(BY_CALL):
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
) -> Divergence | bool:
    """What lies out of the band at one place, if anything; or whether there was anything to compare."""

    def at(table: xr.Dataset, column: str, default: float = 0.0) -> float:
        if column not in table:
            return default
        values = table[column].isel(block=block)
        return float(values.sel(call=call) if "call" in values.dims else values)

    predicted, measured = at(prediction, name), at(measurement, name)
    if math.isnan(predicted):
        return False
    scale = abs(at(prediction, name.replace("covariance", "variance")))
    error = math.hypot(at(measurement, f"{name}_se"), at(prediction, f"{name}_se")) / scale if scale > 0 else 0.0
    stated = at(prediction, f"{name}_allowance") + abs(at(prediction, f"{name}_bias"))
    allowed = tolerance + stated + threshold * (0.0 if math.isnan(error) else error)
    if measured == predicted:
        difference = 0.0
    elif name.endswith("covariance"):
        difference = abs(measured - predicted) / scale if scale > 0 else math.inf
    else:
        difference = abs(math.log(measured / predicted)) if measured > 0 and predicted > 0 else math.inf
    if difference <= allowed:  # what is no number never is
        return True
    return Divergence(block, call, name.removeprefix("call_"), predicted, measured, allowed)
