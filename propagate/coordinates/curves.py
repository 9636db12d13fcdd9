"""What one network's first steps show of its coordinates: root mean squares by name, whoever measured them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

Steps = list[float]
"""Of steps 0, 1, ..."""


@dataclass(frozen=True)
class Matrix:
    """What is known of a matrix besides its numbers, on one network.

    Attributes:
        fan_in, fan_out: its sides.
        kind: "embedding", "hidden", "branch_out" or "unembedding"; "" where nobody knows.
        lr, multiplier, eps: its own rate, multiplier and eps of Adam's; NaN where nobody knows.
    """

    fan_in: int = 0
    fan_out: int = 0
    kind: str = ""
    lr: float = math.nan
    multiplier: float = math.nan
    eps: float = math.nan


@dataclass(frozen=True)
class Coordinates:
    """Root mean squares of one network, by the name of a matrix (of a parameter) in the order of the forward pass.

    Attributes:
        matrices: what is known of each.
        response: of what its change makes of its first input, over that of the input.
        own_change: the same, not over the input's.
        output_change: of its output's change.
        gain: at step 0, of its output over that of its input; NaN where it has no such input.
        gradient: of its gradient's entries at step 0.
        whole: of the change of the "stream", the "logits" or the "output".
    """

    matrices: dict[str, Matrix] = field(default_factory=dict)
    response: dict[str, Steps] = field(default_factory=dict)
    own_change: dict[str, Steps] = field(default_factory=dict)
    output_change: dict[str, Steps] = field(default_factory=dict)
    gain: dict[str, float] = field(default_factory=dict)
    gradient: dict[str, float] = field(default_factory=dict)
    whole: dict[str, Steps] = field(default_factory=dict)


def geometric(values: Iterable[float]) -> float:
    """The geometric mean; 0 where one is 0.

    Example:
        >>> round(geometric([1.0, 4.0]), 9), geometric([0.0, 4.0])
        (2.0, 0.0)
    """
    found = list(values)
    if any(value == 0 for value in found):
        return 0.0
    return math.exp(sum(map(math.log, found)) / len(found))
