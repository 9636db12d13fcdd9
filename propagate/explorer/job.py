"""Simulation behind a page, in processes of its own: it tells how far it is, and ends at once when it is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from propagate.checks import ModelError
from propagate.explorer.state import State
from propagate.explorer.waits import Stopped
from propagate.threads import cores

if TYPE_CHECKING:
    import xarray as xr

MOST_PROCESSES = 8


@dataclass(frozen=True)
class Progress:
    """Networks that are done, of how many."""

    done: int
    total: int


@dataclass(frozen=True)
class Points:
    """What was measured of a placement, beside its theory, and whether they agree, in words."""

    placement: str
    measured: xr.Dataset
    theory: xr.Dataset
    verdict: str


@dataclass(frozen=True)
class Ended:
    """Nothing more comes: "done", "cancelled", or what went wrong."""

    how: str


Tell = Callable[[Progress | Points | Ended], None]


class Job:
    """The simulation of every placement of a state.

    Args:
        state: what to simulate.
        tell: is told of progress, of each placement's points, and last, once, of the end; on threads of the job.

    Example:
        >>> Job(State(), print).running
        False
    """

    def __init__(self, state: State, tell: Tell) -> None:
        self.state, self._tell = state, tell
        self._lock, self._stopped = Lock(), False
        self._waiting: set[Future[Any]] = set()
        self._progress = Progress(0, state.draws * len(state.placements))
        self._thread = Thread(target=self._run, name="simulation", daemon=True)

    @property
    def running(self) -> bool:
        """Whether it has begun and has not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin, behind whoever calls."""
        self._thread.start()

    def cancel(self) -> None:
        """End its processes; what is being waited for is given up at once."""
        with self._lock:
            self._stopped = True
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_exception(Stopped())

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        from propagate.montecarlo.workers import ended_at_once, process_pool

        how = "done"
        try:
            with process_pool(processes()) as pool, ended_at_once(pool):
                self._tell(self._progress)
                for name in self.state.placements:
                    self._tell(self._points(name, _Counted(pool, self)))
        except Stopped:
            how = "cancelled"
        except Exception as error:  # told on the page, which is all that anybody sees
            how = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        self._tell(Ended("cancelled" if self._stopped else how))

    def _points(self, name: str, executor: Executor) -> Points:
        import propagate as pg
        from propagate.readable import verdict_in_words

        model, start = self.state.model(name), self.state.start
        theory = executor.submit(pg.predict, model, start).result()
        measured = pg.simulate(model, start, draws=self.state.draws, executor=executor, progress=False)
        return Points(name, measured, theory, verdict_in_words(pg.compare(theory, measured)))

    def _waits(self, future: Future[Any]) -> None:
        with self._lock:
            if self._stopped:
                raise Stopped
            self._waiting.add(future)

    def _settle(self, future: Future[Any], inner: Future[Any], draws: int) -> None:
        with self._lock:
            if future not in self._waiting:
                return  # given up
            self._waiting.remove(future)
            self._progress = progress = Progress(self._progress.done + draws, self._progress.total)
        if future.done():
            return
        error = Stopped() if inner.cancelled() else inner.exception()
        if error is not None:
            future.set_exception(error)
            return
        future.set_result(inner.result())
        if draws:
            self._tell(progress)


class _Counted(Executor):
    """An executor whose futures a job counts, and gives up when it is cancelled."""

    def __init__(self, pool: Executor, job: Job) -> None:
        self._pool, self._job = pool, job

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._job._waits(future)
        draws = sum(len(one) for one in args if isinstance(one, range))
        inner = self._pool.submit(function, *args, **options)
        inner.add_done_callback(lambda inner: self._job._settle(future, inner, draws))
        return future


def processes() -> int:
    """As many as this process may use cores.

    Example:
        >>> 1 <= processes() <= 8
        True
    """
    return max(1, min(cores(), MOST_PROCESSES))
