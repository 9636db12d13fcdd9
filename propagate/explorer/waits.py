"""What a call behind a page may ask and tell while it is under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from propagate.watching import Watch


class Stopped(Exception):
    """Nobody wants this any more."""


class Waits(NamedTuple):
    """Those who wait for the calls of a plan.

    Attributes:
        stopped: whether nobody waits any more.
        late: the same of what is shown first, which is finished unless that takes long.
        tell: shows a part of a result at once.
    """

    stopped: Callable[[], bool]
    late: Callable[[], bool]
    tell: Callable[[Any], object]


UNENDING = Waits(stopped=bool, late=bool, tell=bool)
"""They wait for all of it, and want no parts."""


def ending(stopped: Callable[[], bool]) -> Watch:
    """Ends a prediction when nobody waits for it.

    Example:
        >>> ending(lambda: True)("forward", 0, None)
        Traceback (most recent call last):
        propagate.explorer.waits.Stopped
    """

    def watch(direction: str, block: int, moments: Any) -> None:
        if stopped():
            raise Stopped

    return watch
