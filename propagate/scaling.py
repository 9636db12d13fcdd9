"""Initialisation scalings: gains of a block's weight matrices as functions of its index and of the depth.

A gain multiplies the standard deviation of a Gaussian matrix, in the sense of `torch.nn.init`: entries have standard
deviation `gain / sqrt(fan_in)`. A scaling is one method, `gains(index, depth)`; `index` counts blocks from 1. Both
arguments may be numbers or SymPy symbols, so a scaling is written with plain arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

from propagate.checks import ModelError, choice, number, shown

STEEPEST = 10  # exponent of ScaleInit: of a hundred blocks' gain it leaves 1e-20
Number = Any  # an int, a float or a SymPy expression: the equations do not care which


@dataclass(frozen=True)
class Gains:
    """Factors on the standard deviation of the matrices of one block.

    Attributes:
        query, key: the attention's query and key projections; their product multiplies the logits.
        value: the attention's value projection.
        attention_out: the attention's output projection.
        ffn_in: the FFN's input matrices (both of them in a gated FFN).
        ffn_gate: a further factor on the gate's own matrix of a gated FFN.
        ffn_out: the FFN's output matrix.

    Example:
        >>> Gains(value=2.0) * Gains(value=3.0, ffn_out=0.5)
        Gains(query=1.0, key=1.0, value=6.0, attention_out=1.0, ffn_in=1.0, ffn_gate=1.0, ffn_out=0.5)
    """

    query: Number = 1.0
    key: Number = 1.0
    value: Number = 1.0
    attention_out: Number = 1.0
    ffn_in: Number = 1.0
    ffn_gate: Number = 1.0
    ffn_out: Number = 1.0

    def __mul__(self, other: Gains) -> Gains:
        return Gains(
            self.query * other.query,
            self.key * other.key,
            self.value * other.value,
            self.attention_out * other.attention_out,
            self.ffn_in * other.ffn_in,
            self.ffn_gate * other.ffn_gate,
            self.ffn_out * other.ffn_out,
        )


def product_of_gains(sources: Iterable[Scaling | None], index: int, depth: int) -> Gains:
    """The gains of one block that all of these give together, those that are None left out; see `checked_gains`.

    Example:
        >>> product_of_gains((ScaleInit(0.5), None, ScaleInit(0.5)), 1, 4).ffn_out
        0.25
    """
    gains = Gains()
    for source in sources:
        if source is not None:
            gains = gains * checked_gains(source, index, depth)
    return gains


def checked_gains(source: Scaling, index: int, depth: int) -> Gains:
    """The gains of one block, as a placement or a scaling gives them.

    Raises:
        ModelError: unless they are Gains of finite numbers of at least 0.

    Example:
        >>> checked_gains(ScaleInit(0.5), 1, 4).ffn_out
        0.5
    """
    gains = source.gains(index, depth)
    if not isinstance(gains, Gains):
        raise ModelError(f"gains({index}, {depth}) of {shown(source)} must be propagate.Gains, got {shown(gains)}")
    for name, value in gains.__dict__.items():
        if type(value) is float and value == 1.0:
            continue
        try:
            number(name, value, positive=False)
        except ModelError as error:
            raise ModelError(f"gains({index}, {depth}) of {shown(source)}: {error}") from None
    return gains


class Scaling(Protocol):
    """Anything with `gains(index, depth)` is a scaling."""

    def gains(self, index: Number, depth: Number) -> Gains:
        """Gains of block `index` (1 ... depth) in a network of `depth` blocks."""
        ...


@dataclass(frozen=True)
class ScaleInit:
    """Output projections of attention and FFN scaled by a power of the depth.

    The SpanNorm paper (arXiv:2601.22580) couples the placement to a depth-dependent initialisation whose published
    formula we have not seen. This is a family to compare, not the paper's constant.

    Attributes:
        exponent: k in `n ** -k`; 0 means no scaling.
        per: `n` counts "block"s (n = depth) or "sublayer"s (n = 2 depth).

    Raises:
        ModelError: for an exponent that is no number between -10 and 10, or a `per` that is not one of the two.

    Example:
        >>> ScaleInit(exponent=0.5).gains(index=1, depth=16).ffn_out
        0.25
    """

    exponent: float = 0.5
    per: Literal["block", "sublayer"] = "block"

    def __post_init__(self) -> None:
        if isinstance(self.exponent, bool) or not isinstance(self.exponent, int | float):
            raise ModelError(f"ScaleInit.exponent must be a number, got {shown(self.exponent)}")
        if not abs(self.exponent) < float("inf"):
            raise ModelError(f"ScaleInit.exponent must be finite, got {shown(self.exponent)}")
        if abs(self.exponent) > STEEPEST:
            raise ModelError(
                f"ScaleInit.exponent must lie between -{STEEPEST} and {STEEPEST}, got {shown(self.exponent)}"
            )
        choice("ScaleInit.per", self.per, ("block", "sublayer"))

    def gains(self, index: Number, depth: Number) -> Gains:
        count = depth if self.per == "block" else 2 * depth
        gain = count ** -Fraction(self.exponent).limit_denominator(10**6)
        return Gains(attention_out=gain, ffn_out=gain)


def log(x: Number) -> Number:
    """Natural logarithm of a number or of a SymPy expression.

    Example:
        >>> log(1)
        0.0
    """
    if isinstance(x, int | float):
        return math.log(x)
    import sympy

    return sympy.log(x)
