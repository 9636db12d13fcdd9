"""Batches of draws on many workers: other threads, processes, GPUs or machines, through any `Executor`.

with pg.process_pool(8) as pool:                                  # this machine, one GPU a process if there are GPUs
    pg.simulate(model, draws=4096, executor=pool)

with dask.distributed.Client("scheduler:8786") as client:         # a cluster that runs Dask
    pg.simulate(model, draws=4096, executor=client.get_executor())

with mpi4py.futures.MPIPoolExecutor() as pool:                    # a cluster that runs MPI
    pg.simulate(model, draws=4096, executor=pool)
"""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from propagate.checks import ModelError, integer
from propagate.montecarlo.backend import choose_backend
from propagate.montecarlo.cores import one_thread

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h

MOST_WORKERS = 1024  # processes of one machine

Result = TypeVar("Result")


class Numbers(Protocol):
    """A queue that several workers can read."""

    def get(self) -> int: ...


def in_order(
    executor: Executor | None, task: Callable[[range], Result], batches: Iterable[range]
) -> Iterator[tuple[range, Result]]:
    """Each batch with its result, in the order of the batches, whichever worker is done first.

    Without an executor the batches are run here, one after another, each when it is asked for. If the iteration ends
    early, batches that have not begun are cancelled.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(2) as pool:
        ...     list(in_order(pool, sum, [range(3), range(4)]))
        [(range(0, 3), 3), (range(0, 4), 6)]
    """
    if executor is None:
        for batch in batches:
            yield batch, task(batch)
        return
    futures = [(batch, executor.submit(task, batch)) for batch in batches]
    try:
        for batch, future in futures:
            yield batch, future.result()
    finally:
        for _, future in futures:
            future.cancel()


def use_device(numbers: Numbers) -> None:
    """Initialiser of a worker: take a number from a queue, and the CUDA device of that number for all that follows.

    Linear algebra has one thread there. With more workers than devices, devices are shared in turn; where there is no
    device, none is taken.

    Args:
        numbers: holds 0, 1, 2, ..., one for each worker.

    Example: one GPU a worker, from a pool of your own. (`process_pool` does just this.)
        >>> import multiprocessing
        >>> from concurrent.futures import ProcessPoolExecutor
        >>> context = multiprocessing.get_context("spawn")
        >>> numbers = context.SimpleQueue()
        >>> for number in range(4):
        ...     numbers.put(number)
        >>> pool = ProcessPoolExecutor(4, mp_context=context, initializer=use_device, initargs=(numbers,))
        >>> pool.shutdown()
    """
    number = numbers.get()
    one_thread()
    _keep_freed_memory()
    if choose_backend("auto").name == "cupy":
        import cupy

        cupy.cuda.Device(number % cupy.cuda.runtime.getDeviceCount()).use()


def _keep_freed_memory() -> None:
    """Where the C library is glibc: arrays come and go, and giving pages back each time takes a third of the time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(parameter, 2**30)


@contextmanager
def ended_at_once(pool: ProcessPoolExecutor | None) -> Iterator[None]:
    """Whatever goes wrong inside, an interrupt above all, ends a pool's processes without waiting for their tasks.

    Example:
        >>> with ended_at_once(None):
        ...     pass
    """
    try:
        yield
    except BaseException as error:
        if pool is not None:
            _end(pool)
        if isinstance(error, BrokenExecutor):
            raise ModelError("one of the workers was ended before its work was: is there too little memory?") from None
        raise


def _end(pool: ProcessPoolExecutor) -> None:
    """Python 3.14 has `terminate_workers`; before it, a pool must forget what was cancelled before its workers end."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    until = time.monotonic() + 0.5
    while any(item.future.cancelled() for item in list(pool._pending_work_items.values())) and time.monotonic() < until:
        time.sleep(0.01)
    for process in processes:
        process.terminate()


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes for `simulate(executor=...)`, each with a CUDA device of its own where there are enough.

    A script that makes one must be importable: keep its work under `if __name__ == "__main__":`.

    Raises:
        ModelError: unless `workers` is a whole number from 1 to 1024.

    Example:
        >>> with process_pool(2) as pool:
        ...     pool.submit(abs, -1).result()
        1
    """
    workers = integer("workers", workers, at_most=MOST_WORKERS)
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    numbers: Any = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=use_device, initargs=(numbers,))
