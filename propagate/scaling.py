"""Initialisation scalings: gains of a block's weight matrices as functions of its index and of the depth.

A gain multiplies the standard deviation of a Gaussian matrix, in the sense of `torch.nn.init`: entries have standard
deviation `gain / sqrt(fan_in)`. A scaling is one method, `gains(index, depth)`; `index` counts blocks from 1. Both
arguments may be numbers or SymPy symbols, so a scaling is written with plain arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

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
        ValueError: for an exponent that is not finite or a `per` that is not one of the two.

    Example:
        >>> ScaleInit(exponent=0.5).gains(index=1, depth=16).ffn_out
        0.25
    """

    exponent: float = 0.5
    per: Literal["block", "sublayer"] = "block"

    def __post_init__(self) -> None:
        if isinstance(self.exponent, bool) or not isinstance(self.exponent, int | float):
            raise ValueError(f"ScaleInit.exponent must be a number, got {self.exponent!r}")
        if not abs(self.exponent) < float("inf"):
            raise ValueError(f"ScaleInit.exponent must be finite, got {self.exponent!r}")
        if self.per not in ("block", "sublayer"):
            raise ValueError(f'ScaleInit.per must be "block" or "sublayer", got {self.per!r}')

    def gains(self, index: Number, depth: Number) -> Gains:
        count = depth if self.per == "block" else 2 * depth
        gain = count ** -Fraction(self.exponent).limit_denominator(10**6)
        return Gains(attention_out=gain, ffn_out=gain)
