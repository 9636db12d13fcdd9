"""What a long prediction tells while it is under way, to one who shows it as it grows and who may end it.

A walk through a network takes a second where tokens differ and blocks are many. Whoever waits for it on a page sees its
blocks one by one, and when nobody waits any more it ends between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Watch = Callable[[str, int, Any], None]
"""Told a direction ("forward", "backward"), a block, and the moments of the streams that leave it or of the cotangents
that arrive there; or "between", a number and None where work goes on that is no walk. What it raises ends the work."""

_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Predictions made inside, on this thread, tell this one.

    Example: a forward walk of two blocks, then backward.
        >>> import propagate as pg
        >>> told = []
        >>> with watched(lambda direction, block, moments: told.append((direction, block))):
        ...     _ = pg.predict(pg.Model("prenorm", depth=2))
        >>> told
        [('forward', 0), ('forward', 1), ('forward', 2), ('backward', 2), ('backward', 1), ('backward', 0)]
    """
    before = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(before)


def _nobody(direction: str, block: int, moments: Any) -> None: ...


def watch() -> Watch:
    """Who is to be told."""
    return _WATCH.get() or _nobody


def is_watched() -> bool:
    """Whether somebody is to be told, of one walk at a time."""
    return _WATCH.get() is not None
