"""How far a run has come: a bar on a terminal, a line every few seconds where standard error is a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock
from typing import Protocol

PAUSE = 5.0
"""Seconds between two lines."""


class Advance(Protocol):
    """Called as work is done; `more` is work that was not known of before."""

    def __call__(self, count: int, note: str = ..., *, more: int = ...) -> None: ...


def silent(count: int, note: str = "", *, more: int = 0) -> None:
    """Shows nothing."""


@contextmanager
def progress_bar(show: bool | None, total: int, done: int, what: str = "draws") -> Iterator[Advance]:
    """Progress on standard error, with the time left; `show` None means only on a terminal.

    Args:
        show: whether.
        total, done: how much there is, and how much of it was done before.
        what: there is so much of.

    Example:
        >>> with progress_bar(False, total=8, done=0) as advance:
        ...     advance(8, "loss 5.5")
    """
    terminal = sys.stderr.isatty()
    if not (terminal if show is None else show):
        yield silent
        return
    if not terminal:
        yield Lines(total, done, what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, lock = bar.add_task(what, total=total, completed=done), Lock()

        def advance(count: int, note: str = "", *, more: int = 0) -> None:
            nonlocal total
            with lock:
                total += more
                bar.update(task, total=total, advance=count, description=f"{what}, {note}" if note else what)

        yield advance


class Lines:
    """A line every few seconds.

    Example:
        >>> advance = Lines(total=8, done=2, what="draws")
        >>> advance.line(6, seconds=12.0), advance.line(6, seconds=12.0, note="loss 5.5")
        ('draws: 6 of 8, 0:00:06 left', 'draws: 6 of 8, 0:00:06 left, loss 5.5')
    """

    def __init__(self, total: int, done: int, what: str) -> None:
        self.total, self.begun_with, self.done, self.what = total, done, done, what
        self.begun = self.last = time.monotonic()
        self.lock = Lock()

    def __call__(self, count: int, note: str = "", *, more: int = 0) -> None:
        with self.lock:
            self.total, self.done, now = self.total + more, self.done + count, time.monotonic()
            if now - self.last >= PAUSE:
                self.last = now
                print(self.line(self.done, now - self.begun, note), file=sys.stderr, flush=True)

    def line(self, done: int, seconds: float, note: str = "") -> str:
        """What is said after so many seconds."""
        here = done - self.begun_with
        left = f", {timedelta(seconds=round(seconds * (self.total - done) / here))} left" if here else ""
        return f"{self.what}: {done} of {self.total}{left}{', ' if note else ''}{note}"
