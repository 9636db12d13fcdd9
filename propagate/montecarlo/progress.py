"""How far a run has come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(show: bool | None, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, moved by a number of draws; by default only on a terminal.

    Example:
        >>> with progress_bar(False, total=8, done=0) as advance:
        ...     advance(8)
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("draws", total=total, completed=done)
        yield lambda count: bar.advance(task, count)
