"""A few calls of a function at a time, in threads, whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from propagate.threads import cores

X = TypeVar("X")
Y = TypeVar("Y")


def in_turn(function: Callable[[X], Y], items: Iterable[X], at_once: int) -> Generator[Y]:
    """What the function makes of each item, in order; NumPy computes in several threads at a time.

    No more than `at_once` items are begun and not yet handed out, nor more than there are cores: so many results are
    in memory, as long as the caller keeps none. Linear algebra should have one thread, see `threads`, and a caller that
    may stop early closes the generator, which waits for what is begun.

    Raises:
        Exception: what a call raises, when its turn comes.

    Example:
        >>> list(in_turn(abs, (-1, -2, -3), at_once=2))
        [1, 2, 3]
    """
    threads = min(at_once, cores())
    if threads == 1:
        yield from map(function, items)
        return
    begun: deque[Future[Y]] = deque()
    with ThreadPoolExecutor(threads, "theory") as pool:
        for item in items:
            if len(begun) == threads:
                yield begun.popleft().result()
            begun.append(pool.submit(copy_context().run, function, item))  # under the caller's `np.errstate`
        while begun:
            yield begun.popleft().result()
