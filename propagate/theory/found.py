"""What a walk gives a table, at either resolution."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class Found(NamedTuple):
    """Of a prediction.

    Attributes:
        columns: of the table.
        several: whether they have an axis of streams.
        matrices: names along that axis of `param_grad`, if it was asked for.
        calls: moments of every call, (block, replica, moment) by name, if they were asked for.
    """

    columns: dict[str, NDArray[Any]]
    several: bool
    matrices: list[str]
    calls: dict[str, NDArray[Any]]
