"""What a table may hold: one record a quantity, from which its columns, its dimensions and its judgement are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["value", "se", "allowance", "bias", "log", "log_se", "log_bias"]
"""The columns of a quantity: its mean over networks and that of its logarithm, with their standard errors; of a
prediction also what it allows, and its bias."""
PATTERNS: dict[Kind, str] = {
    "value": "{}",
    "se": "{}_se",
    "allowance": "{}_allowance",
    "bias": "{}_bias",
    "log": "log_{}",
    "log_se": "log_{}_se",
    "log_bias": "log_{}_bias",
}


@dataclass(frozen=True)
class Quantity:
    """One quantity over blocks.

    Attributes:
        name: of its column.
        meaning: in words, a column's `long_name`.
        dims: dimensions besides `block` and `stream`.
        streams: it is one of each stream, where a placement has several.
        positive: it is never negative. What may be, such as a covariance, is judged relative to something else, since a
            difference relative to next to nothing says nothing.
        scale: "log", and its mean logarithm is measured too, for what is closer to log-normal at depth: a difference is
            a ratio. "linear": a difference is relative to the value.
        mean: on the log scale, which mean is judged: "geometric", or "arithmetic" where the expectation is predicted
            whatever its logarithm does.
        relative_to: name of the quantity that is its scale, if it is not positive (none: differences are absolute); of
            a positive one, that whose rounding leaks into it.
        pairs: it is of two tokens, so that of one token there is none.
        backward: it lies on the way back, from the last block to the first.
        judged: `compare` judges it, where both tables have it.
        short: what it is called where a call is named beside it; "" is its name.
        entry: of one that has an own column for each entry of its dimension, the entry's label.
        spread: the standard deviation over networks of its logarithm, in place of itself.

    Raises:
        ValueError: for a quantity on the log scale that may be negative.

    Example:
        >>> drift = Quantity("drift", "E x_ti", positive=False, scale="linear", relative_to="variance")
        >>> drift.column("allowance"), drift.column("log_se")
        ('drift_allowance', 'log_drift_se')
    """

    name: str
    meaning: str = ""
    dims: tuple[str, ...] = ()
    streams: bool = True
    positive: bool = True
    scale: Literal["log", "linear"] = "log"
    mean: Literal["geometric", "arithmetic"] = "geometric"
    relative_to: str = ""
    pairs: bool = False
    backward: bool = False
    judged: bool = True
    short: str = ""
    entry: str = ""
    spread: bool = False

    def __post_init__(self) -> None:
        if self.scale == "log" and not self.positive:
            raise ValueError(f"scale must be 'linear' for {self.name}, which may be negative, got 'log'")

    @property
    def label(self) -> str:
        """What it is called in a verdict: the name of its own column."""
        return f"{self.name}{'_spread' if self.spread else ''}{f'[{self.entry}]' if self.entry else ''}"

    @property
    def axes(self) -> tuple[str, ...]:
        """Dimensions of its columns besides `block` and `stream`."""
        return () if self.entry else self.dims

    @property
    def apart(self) -> bool:
        """Whether each entry of its dimension is judged as a quantity of its own, of which a block may have none."""
        return bool(self.dims) and not self.streams

    def column(self, kind: Kind = "value") -> str:
        """The name of one of its columns.

        Example:
            >>> QUANTITIES["param_grad"].of_entry("query").column("se")
            'param_grad[query]_se'
        """
        return PATTERNS[kind].format(self.label)

    def of_entry(self, label: str) -> Quantity:
        """One entry of its dimension as a quantity of its own."""
        return replace(self, entry=label)

    def of_spread(self) -> Quantity:
        """The spread of its logarithm as a quantity of its own."""
        return replace(self, spread=True)

    def of_value(self) -> Quantity:
        """Of a spread, the quantity whose logarithm's it is."""
        return replace(self, spread=False)

    @property
    def reference(self) -> Quantity | None:
        """The quantity of `relative_to`, of the same entry."""
        return replace(QUANTITIES[self.relative_to], entry=self.entry) if self.relative_to else None


QUANTITIES: dict[str, Quantity] = {}
"""Every quantity by name, in the order in which they are judged and printed."""

_COLUMNS: dict[str, tuple[Quantity, Kind]] = {}
"""Every column of theirs by name."""


def register(quantity: Quantity) -> Quantity:
    """Make a quantity known to tables and to those that judge them. Returns it.

    Raises:
        ValueError: for a name that stands for something else, or a `relative_to` that is not known.

    Example: where a model's activations are sparse, of a user's own measurement. `compare` judges it by this record.
        >>> register(Quantity("zeros", "share of coordinates that are 0", scale="linear")).column("se")
        'zeros_se'
    """
    if QUANTITIES.get(quantity.name, quantity) != quantity or (
        quantity.name not in QUANTITIES and quantity.name in _COLUMNS
    ):
        raise ValueError(f"name must be a new one, got {quantity.name!r}, which means {_meaning(quantity.name)}")
    if quantity.relative_to and quantity.relative_to not in QUANTITIES:
        raise ValueError(f"relative_to must be one of {', '.join(QUANTITIES)}, got {quantity.relative_to!r}")
    QUANTITIES[quantity.name] = quantity
    for one in (quantity, quantity.of_spread()):
        _COLUMNS.update({one.column(kind): (one, kind) for kind in PATTERNS})
    return quantity


def _meaning(column: str) -> str:
    known = quantity_of(column)
    return repr(known.meaning or known.name) if known.name == column else f"a column of {known.name}"


def quantity_of(column: str) -> Quantity:
    """The quantity that a column belongs to, whatever stands before or after its name.

    One that nobody has registered is not judged, and has no dimensions of its own.

    Example:
        >>> quantity_of("log_token_variance_se").dims, quantity_of("call_covariance[ffn1]_allowance").entry
        (('token',), 'ffn1')
    """
    return column_of(column)[0]


def column_of(column: str) -> tuple[Quantity, Kind]:
    """The quantity that a column belongs to, and which of its columns it is.

    Example:
        >>> quantity, kind = column_of("variance_spread_allowance")
        >>> quantity.label, kind
        ('variance_spread', 'allowance')
    """
    whole = re.fullmatch(r"([^\[]*)\[(.*)\]([^\]]*)", column)
    found = _COLUMNS.get(f"{whole[1]}{whole[3]}" if whole else column)
    if found is None:
        return Quantity(column, judged=False, scale="linear"), "value"
    return (found[0].of_entry(whole[2]), found[1]) if whole else found


for _one in (
    Quantity(
        "call_variance",
        "E y_ti^2 of what a sublayer call gives",
        dims=("call",),
        streams=False,
        scale="linear",
        short="variance",
    ),
    Quantity(
        "call_covariance",
        "E y_ti y_si, t != s, of what a sublayer call gives",
        dims=("call",),
        streams=False,
        positive=False,
        scale="linear",
        relative_to="call_variance",
        pairs=True,
        short="covariance",
    ),
    Quantity(
        "call_deviation",
        "call_variance - call_covariance, computed without cancellation",
        dims=("call",),
        streams=False,
        scale="linear",
        relative_to="call_variance",
        pairs=True,
        judged=False,
        short="deviation",
    ),
    Quantity("variance", "E x_ti^2: second moment per coordinate of the stream"),
    Quantity(
        "covariance",
        "E x_ti x_si, t != s: token-token second moment",
        positive=False,
        scale="linear",
        relative_to="variance",
        pairs=True,
    ),
    Quantity("deviation", "variance - covariance, computed without cancellation", relative_to="variance", pairs=True),
    Quantity("grad_variance", "E g_ti^2, g the cotangent of the stream", backward=True),
    Quantity(
        "grad_covariance",
        "E g_ti g_si, t != s",
        positive=False,
        scale="linear",
        relative_to="grad_variance",
        pairs=True,
        backward=True,
    ),
    Quantity(
        "grad_deviation",
        "grad_variance - grad_covariance, computed without cancellation",
        relative_to="grad_variance",
        pairs=True,
        backward=True,
    ),
    Quantity(
        "embedding_share",
        "E <x_l, x_0>^2 / (|x_l|^2 |x_0|^2): share of a token's stream that lies along its embedding x_0",
        scale="linear",
    ),
    Quantity("token_variance", "E x_ti^2 of each token t", dims=("token",)),
    Quantity("grad_token_variance", "E g_ti^2 of each token t", dims=("token",), backward=True),
    Quantity(
        "param_grad",
        "E |dLoss/dW|^2: squared Frobenius norm, W with entries of standard deviation gain / sqrt(fan_in)",
        dims=("matrix",),
        streams=False,
        mean="arithmetic",
        backward=True,
    ),
    Quantity("change", "mean square per coordinate of the stream's change since step 0", mean="arithmetic"),
    Quantity(
        "own_change",
        "mean square of what W's change since step 0 alone makes of W's inputs at step 0",
        dims=("matrix",),
        streams=False,
        mean="arithmetic",
    ),
    Quantity(
        "own_covariance",
        "the same, mean over pairs of tokens t != s of products: with own_change, the Gram matrix over tokens",
        dims=("matrix",),
        streams=False,
        positive=False,
        scale="linear",
        relative_to="own_change",
        pairs=True,
    ),
    Quantity(
        "output_change",
        "mean square of the change since step 0 of what W gives, inputs and W changed",
        dims=("matrix",),
        streams=False,
        mean="arithmetic",
    ),
    Quantity(
        "update_ratio",
        "Frobenius norm of W's change since step 0 over that of W at step 0",
        dims=("matrix",),
        streams=False,
        mean="arithmetic",
    ),
    Quantity(
        "spectral_ratio",
        "largest singular value of W's change since step 0 over that of W at step 0",
        dims=("matrix",),
        streams=False,
        judged=False,  # of nearly equal ones the largest lies above the others, by the root of tokens / width
    ),
    Quantity(
        "first_order_fall",
        "<dLoss/dW, -dW> of the first step: the fall of the loss by that matrix, to first order",
        dims=("matrix",),
        streams=False,
        scale="linear",  # relative to itself, though decay can make it negative
    ),
    Quantity("input_variance", "mean square of W's inputs at step 0", dims=("matrix",), streams=False, judged=False),
    Quantity("output_variance", "mean square of what W gives at step 0", dims=("matrix",), streams=False, judged=False),
    Quantity("loss", "of a step, before its update", streams=False, positive=False, scale="linear", judged=False),
    Quantity(
        "logit_change", "mean square of the logits' change since step 0", streams=False, scale="linear", judged=False
    ),
    Quantity("parameter_grad_norm", "of a block's parameters", streams=False, scale="linear", judged=False),
):
    register(_one)
