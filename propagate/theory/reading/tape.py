"""Cotangents on their way back along the steps of a block, of whatever kind they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

S = TypeVar("S")  # a stream
C = TypeVar("C")  # a cotangent
Step = tuple[S, S, Callable[[C], C]]
"""A stream, one it was made from, and how the first one's cotangent reaches the second."""


def sent_back(steps: Sequence[Step[S, C]], ends: Iterable[tuple[S, C]], add: Callable[[C, C], C]) -> dict[S, C]:
    """What arrives at each stream that anything reaches.

    Args:
        steps: in the order in which they were made.
        ends: streams and the cotangents that enter there.
        add: the sum of two cotangents at one stream.

    Example: z = y + x with y = 3 x.
        >>> steps = [("y", "x", lambda g: 3 * g), ("z", "y", lambda g: g), ("z", "x", lambda g: g)]
        >>> sent_back(steps, [("z", 1)], lambda a, b: a + b)["x"]
        4
    """
    arrived: dict[S, C] = {}
    for stream, cotangent in ends:
        arrived[stream] = add(arrived[stream], cotangent) if stream in arrived else cotangent
    for made, stream, pull in reversed(steps):
        if made in arrived:
            part = pull(arrived[made])
            arrived[stream] = add(arrived[stream], part) if stream in arrived else part
    return arrived
