"""How far a run has come."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called as work is done."""

    def __call__(self, count: int, note: str = ...) -> None: ...


def silent(count: int, note: str = "") -> None:
    """Shows nothing."""


@contextmanager
def progress_bar(show: bool | None, total: int, done: int, what: str = "draws") -> Iterator[Advance]:
    """A bar on standard error, moved by a number of draws or steps, with the time left; by default only on a terminal.

    Example:
        >>> with progress_bar(False, total=8, done=0) as advance:
        ...     advance(8, "loss 5.5")
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield silent
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)

        def advance(count: int, note: str = "") -> None:
            bar.update(task, advance=count, description=f"{what}, {note}" if note else what)

        yield advance
