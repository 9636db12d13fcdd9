"""Conditions on a network: a number that the theory predicts, and the levels that it must lie between.

Write one of your own as a frozen dataclass with `above`, `below`, `name` and `value(at)`, from a `Point` to a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from propagate.checks import LARGEST, ModelError, choice, integer, shown
from propagate.inverse.point import Point

Level = float | None


class Condition(Protocol):
    """What `solve` can be asked for."""

    @property
    def above(self) -> Level:
        """The least value; None is none."""
        ...

    @property
    def below(self) -> Level:
        """The largest value; None is none."""
        ...

    @property
    def name(self) -> str:
        """Of its column in the table."""
        ...

    def value(self, at: Point) -> float:
        """What is predicted there, `at.moments` being the table of `predict`. ModelError where nothing is."""
        ...


def check_levels(condition: Any) -> None:
    """ModelError unless one of two levels is given, each a number and in order.

    Example:
        >>> Distinct(above=0.5, below=0.1)
        Traceback (most recent call last):
        propagate.checks.ModelError: Distinct needs above <= below, got above=0.5, below=0.1
    """
    kind = type(condition).__name__
    for name in ("above", "below"):
        level = getattr(condition, name)
        if level is None:
            continue
        if isinstance(level, bool) or not isinstance(level, int | float) or not abs(level) <= LARGEST:
            raise ModelError(f"{name} of {kind} must be a finite number, got {shown(level)}")
    if condition.above is not None and condition.below is not None and condition.above > condition.below:
        raise ModelError(f"{kind} needs above <= below, got above={condition.above}, below={condition.below}")


@dataclass(frozen=True)
class GradientGain:
    """How the gradient's variance at the embedding compares with that at the last block.

    Attributes:
        above, below: the levels.

    Raises:
        ModelError: for levels that are no numbers in order.

    Example:
        >>> GradientGain(above=0.5, below=2.0).name
        'gradient_gain'
    """

    above: Level = None
    below: Level = None

    def __post_init__(self) -> None:
        check_levels(self)

    @property
    def name(self) -> str:
        return "gradient_gain"

    def value(self, at: Point) -> float:
        found = at.moments.grad_variance
        return float(found[0] / found[-1])


@dataclass(frozen=True)
class StreamGain:
    """How the variance of the stream that leaves the last block compares with that at the embedding.

    Attributes:
        above, below: the levels.

    Raises:
        ModelError: for levels that are no numbers in order.

    Example:
        >>> StreamGain(below=10.0).name
        'stream_gain'
    """

    above: Level = None
    below: Level = None

    def __post_init__(self) -> None:
        check_levels(self)

    @property
    def name(self) -> str:
        return "stream_gain"

    def value(self, at: Point) -> float:
        found = at.moments.variance
        return float(found[-1] / found[0])


@dataclass(frozen=True)
class Distinct:
    """1 - correlation of two tokens in the stream that leaves the last block; 0 is rank collapse.

    Attributes:
        above, below: the levels.

    Raises:
        ModelError: for levels that are no numbers in order.

    Example:
        >>> Distinct(above=0.1).name
        'distinct'
    """

    above: Level = None
    below: Level = None

    def __post_init__(self) -> None:
        check_levels(self)

    @property
    def name(self) -> str:
        return "distinct"

    def value(self, at: Point) -> float:
        if at.model.tokens == 1:
            raise ModelError("tokens must be at least 2 for Distinct, got 1")
        deviation, variance = at.last("deviation", "variance")
        return deviation / variance


@dataclass(frozen=True)
class AttentionShare:
    """The part of the gradient of one token's output that reaches the inputs of other tokens, which attention carries.

    Attributes:
        above, below: the levels, from 0 to 1.

    Raises:
        ModelError: for levels that are no numbers in order.

    Example:
        >>> AttentionShare(above=0.05).name
        'attention_share'
    """

    above: Level = None
    below: Level = None

    def __post_init__(self) -> None:
        check_levels(self)

    @property
    def name(self) -> str:
        return "attention_share"

    def value(self, at: Point) -> float:
        _ = at.moments  # with its checks and warnings
        return at.attention_share


@dataclass(frozen=True)
class FirstStep:
    """By how much the optimiser's first step moves the stream that leaves the last block, to first order.

    That is the part of the change that lies along the loss's gradient: root mean square per token and coordinate, over
    that of the stream. "Of order one" is a level of about 1; a learning rate asks for far less.

    Attributes:
        above, below: the levels.
        matrix: the matrices of this name alone, such as "attention_out"; None is all of them together.

    Raises:
        ModelError: for levels that are no numbers in order.

    Example:
        >>> FirstStep(below=0.1, matrix="ffn_out").name
        'first_step[ffn_out]'
    """

    above: Level = None
    below: Level = None
    matrix: str | None = None

    def __post_init__(self) -> None:
        check_levels(self)
        if self.matrix is not None and not isinstance(self.matrix, str):
            raise ModelError(f"matrix of FirstStep must be a name, got {shown(self.matrix)}")

    @property
    def name(self) -> str:
        return "first_step" + (f"[{self.matrix}]" if self.matrix else "")

    def value(self, at: Point) -> float:
        falls = at.step.first_order_fall
        if self.matrix is not None:
            choice("matrix", self.matrix, tuple(str(name) for name in falls["matrix"].values))
            falls = falls.sel(matrix=self.matrix)
        entries = at.model.tokens * at.model.width
        gradient, variance = at.last("grad_variance", "variance")
        moved = float(falls.sum()) / entries / math.sqrt(gradient * variance)
        return moved * float(at.setting.optimizer.lr)


@dataclass(frozen=True)
class Growth:
    """The exponent with which another condition's number grows with the depth or the width, between two sizes.

    Attributes:
        of: the other condition; its levels have no part in this.
        above, below: levels of the exponent; a number that is bounded has exponents near 0.
        over: "depth" or "width".
        sizes: between which two.

    Raises:
        ModelError: for levels that are no numbers in order, or sizes that are not two.

    Example:
        >>> Growth(GradientGain(), below=0.02, sizes=(64, 128)).name
        'growth_of_gradient_gain'
    """

    of: Any
    above: Level = None
    below: Level = None
    over: Literal["depth", "width"] = "depth"
    sizes: tuple[int, int] = (64, 128)

    def __post_init__(self) -> None:
        check_levels(self)
        check_condition(self.of)
        choice("over", self.over, ("depth", "width"))
        if not isinstance(self.sizes, tuple) or len(self.sizes) != 2:
            raise ModelError(f"sizes of Growth must be two {self.over}s, (small, large), got {shown(self.sizes)}")
        small, large = (integer("sizes", size) for size in self.sizes)
        if small >= large:
            raise ModelError(f"sizes of Growth must be (small, large), got {shown(self.sizes)}")

    @property
    def name(self) -> str:
        return f"growth_of_{self.of.name}"

    def value(self, at: Point) -> float:
        small, large = (float(self.of.value(at.sized(self.over, size))) for size in self.sizes)
        if not (small > 0 and large > 0):
            raise ModelError(f"{self.of.name} must be positive to grow by a power, got {small:g} and {large:g}")
        return math.log(large / small) / math.log(self.sizes[1] / self.sizes[0])


def check_condition(condition: Any) -> None:
    """ModelError unless it is a condition."""
    levels, name = (hasattr(condition, "above") and hasattr(condition, "below")), getattr(condition, "name", None)
    if not (levels and isinstance(name, str) and callable(getattr(condition, "value", None))):
        known = "GradientGain, StreamGain, Distinct, AttentionShare, FirstStep, Growth"
        raise ModelError(
            f"a condition must be one of {known} or have above, below, name and value(at), got {shown(condition)}"
        )
    check_levels(condition)
