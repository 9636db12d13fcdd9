"""Every core of this machine: a thread for batches of draws on each, with linear algebra that keeps to it.

Threads of linear algebra that wait for one another cost more than they bring at the widths of one draw, most of all
where other processes want the cores too: 15 times the time of a single thread was seen on two cores. What the
environment says of other libraries' threads is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from propagate.threads import cores, one_thread_each

TASKS = 32
"""Batches that a run is cut into for an executor, at least: enough to keep several workers busy."""


def batch_of(most: int, draws: int, executor: Executor | None) -> int:
    """Draws of a batch: as many as may be, and for an executor few enough for `TASKS` batches.

    Example:
        >>> batch_of(50, 64, None), batch_of(100, 64, None)
        (50, 64)
    """
    return min(most, math.ceil(draws / TASKS) if executor else draws)


def threads_for(backend: str, batches: int, taken: int, most: int) -> int:
    """How many batches run beside one another where nobody says: one a core that this process may use, if they fit.

    Batches are as large as memory allows, and of small networks there is one: to cut it would cost time.

    Args:
        backend: with CuPy one thread feeds the device.
        batches: how many there are.
        taken: bytes of one.
        most: bytes there are.

    Example:
        >>> threads_for("cupy", 8, taken=1, most=2), threads_for("numpy", 8, taken=2**30, most=2**30)
        (1, 1)
    """
    return 1 if backend != "numpy" else max(1, min(cores(), batches, most // (2 * max(taken, 1))))


@contextmanager
def in_threads(executor: Executor | None, count: int) -> Iterator[Executor | None]:
    """The executor, if there is one; else so many threads, or None for one, with linear algebra in one thread each.

    Example:
        >>> with in_threads(None, 2) as pool:
        ...     print(pool.submit(abs, -1).result())
        1
    """
    if executor is not None:
        yield executor
        return
    with one_thread_each():
        if count == 1:
            yield None
            return
        with ThreadPoolExecutor(count) as pool:
            yield pool


def one_thread() -> None:
    """Linear algebra of this process has one thread from now on."""
    threadpool_limits(1)
