"""Where a measurement first leaves a prediction. Knows tables, not witnesses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from propagate.checks import LARGEST, THRESHOLD, checked_threshold, shown
from propagate.model import ModelError
from propagate.quantities import QUANTITIES, Kind, Quantity, quantity_of
from propagate.table import STREAM

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
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < LARGEST:
        raise ModelError(f"tolerance must be a positive number, got {shown(tolerance)}")
    for name, table in (("prediction", prediction), ("measurement", measurement)):
        if not hasattr(table, "data_vars") or "block" not in table.dims:
            raise ModelError(f"{name} must be a table over block, got {shown(table)}")
    if prediction.sizes["block"] != measurement.sizes["block"]:
        raise ModelError(
            f"the tables differ in depth: {prediction.sizes['block'] - 1} and {measurement.sizes['block'] - 1} blocks"
        )
    several, compared = STREAM in prediction.dims and STREAM in measurement.dims, False
    for (block, call, quantity), stream in product(
        _places(prediction, measurement), measurement[STREAM].to_numpy().tolist() if several else [""]
    ):
        tables = [table.sel({STREAM: stream}) if several else table for table in (prediction, measurement)]
        found = _judged(tables[0], tables[1], block, call, quantity, tolerance, threshold)
        if isinstance(found, Divergence):
            return dataclasses.replace(found, quantity=_words(quantity, stream))
        compared |= found
    if not compared:
        raise ModelError("the tables must share a quantity that is a number somewhere, got nothing to compare")
    return None


def _words(quantity: Quantity, stream: str) -> str:
    name = quantity.short or quantity.label
    return f"{name} of stream {stream}" if stream and quantity.streams else name


def first_out_of_band(judged: xr.Dataset) -> Divergence | None:
    """The same of a table that `compare` gave: the first place whose |z| is not below its threshold, or None."""
    quantities = [quantity_of(str(name)) for name in judged.quantity.values]
    places = _in_order(quantities, judged.sizes["block"])
    out = (abs(judged.z) >= judged.attrs["threshold"]).transpose("quantity", "block", ...).to_numpy()
    for block, quantity in places:
        broken = out[quantities.index(quantity), block]
        if not broken.any():
            continue
        at = judged.sel(quantity=quantity.label).isel(block=block)
        at = at.isel({STREAM: int(broken.argmax())}) if broken.ndim else at
        place = "gradient" if quantity.backward else quantity.entry or "sum"
        kind = _words(quantity, str(at[STREAM].item()) if STREAM in at.coords else "")
        return Divergence(block, place, kind, float(at.predicted), float(at.measured), float(at.detectable))
    return None


def _in_order(quantities: list[Quantity], blocks: int) -> list[tuple[int, Quantity]]:
    """Forward block by block, call by call and then the streams; then back."""
    of_calls = [quantity for quantity in quantities if quantity.entry and not quantity.backward]
    calls = list(dict.fromkeys(quantity.entry for quantity in of_calls))
    of_calls.sort(key=lambda quantity: calls.index(quantity.entry))  # within a call as they come: its variance first
    forward = [*of_calls, *(quantity for quantity in quantities if not (quantity.entry or quantity.backward))]
    back = [quantity for quantity in quantities if quantity.backward]
    places = [(block, quantity) for block in range(blocks) for quantity in forward]
    return places + [(block, quantity) for block in reversed(range(blocks)) for quantity in back]


def _places(prediction: xr.Dataset, measurement: xr.Dataset) -> Iterator[tuple[int, str, Quantity]]:
    """Blocks, calls and quantities in the order in which they are passed; what is of single tokens is left out."""

    def both(quantity: Quantity) -> bool:
        name = quantity.name
        return name in prediction and name in measurement and prediction[name].dims == measurement[name].dims

    shared = [quantity for quantity in QUANTITIES.values() if quantity.judged and both(quantity)]
    of_calls = [quantity for quantity in shared if quantity.dims == ("call",)]
    whole = [quantity for quantity in shared if not quantity.dims]
    calls = [call for call in measurement.call.values.tolist() if call in prediction.call.values] if of_calls else []
    blocks = range(measurement.sizes["block"])
    for block in blocks:
        yield from ((block, call, quantity) for call in calls for quantity in of_calls)
        yield from ((block, "sum", quantity) for quantity in whole if not quantity.backward)
    for block in reversed(blocks):
        yield from ((block, "gradient", quantity) for quantity in whole if quantity.backward)


def _judged(
    prediction: xr.Dataset,
    measurement: xr.Dataset,
    block: int,
    call: str,
    quantity: Quantity,
    tolerance: float,
    threshold: float,
) -> Divergence | bool:
    """What lies out of the band at one place, if anything; or whether there was anything to compare."""

    def at(table: xr.Dataset, kind: Kind = "value", of: Quantity = quantity) -> float:
        if of.column(kind) not in table:
            return 0.0
        values = table[of.column(kind)].isel(block=block)
        return float(values.sel(call=call) if "call" in values.dims else values)

    predicted, measured = at(prediction), at(measurement)
    if math.isnan(predicted):
        return False
    scale = abs(predicted)
    if not quantity.positive:
        scale = abs(at(prediction, of=quantity.reference)) if quantity.reference else 1.0
    error = math.hypot(at(measurement, "se"), at(prediction, "se")) / scale if scale > 0 else 0.0
    stated = at(prediction, "allowance") + abs(at(prediction, "bias"))
    allowed = tolerance + stated + threshold * (0.0 if math.isnan(error) else error)
    if measured == predicted:
        difference = 0.0
    elif not quantity.positive:
        difference = abs(measured - predicted) / scale if scale > 0 else math.inf
    else:
        difference = abs(math.log(measured / predicted)) if measured > 0 and predicted > 0 else math.inf
    if difference <= allowed:  # what is no number never is
        return True
    return Divergence(block, call, quantity.label, predicted, measured, allowed)
