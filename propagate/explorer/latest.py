"""Short calls behind a page, the newest wish first: what nobody waits for any more is not computed.

A plan is called a slice of time at a time, on a thread that all pages share, so that no page waits long for another,
and what came of a slice is delivered together. When a newer wish comes, what was to be shown first is still finished
unless it takes long: a slider that keeps moving would otherwise never see a whole picture. All the rest is dropped.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from propagate.explorer.curves import Plan
from propagate.explorer.waits import Stopped, Waits

PATIENCE = 0.5  # seconds that a newer wish waits for the first part of an older one
SLICE = 0.08  # seconds after which what there is is delivered

PACKAGE = str(Path(__file__).parent.parent)

Wish = TypeVar("Wish")


class Latest(Generic[Wish]):
    """The newest wish of one page, and the calls that are left of it.

    Args:
        pool: where calls are made; one thread, since warnings are caught around each.
        plan: of a wish, given who waits for it.
        deliver: is told of a wish's results, where a call failed the exception, and of warnings; at the end of no
            results. It is called on the pool's thread, and never after `close`.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> told = []
        >>> with ThreadPoolExecutor(1) as pool:
        ...     latest = Latest(pool, lambda wish, waits: Plan([lambda: wish + 1], []), lambda *of: told.append(of))
        ...     latest.ask(1)
        ...     while latest.busy:
        ...         time.sleep(0.01)
        >>> told
        [(1, [2], ()), (1, [], ())]
    """

    def __init__(
        self,
        pool: Executor,
        plan: Callable[[Wish, Waits], Plan],
        deliver: Callable[[Wish, list[Any], tuple[str, ...]], None],
    ) -> None:
        self._pool, self._plan, self._deliver = pool, plan, deliver
        self._lock = Lock()
        self._wishes: deque[Wish] = deque(maxlen=1)
        self._running = self._closed = False
        self._first: deque[Callable[[], Any]] = deque()
        self._then: deque[Callable[[], Any]] = deque()
        self._begun = 0.0
        self._of: Wish | None = None

    @property
    def busy(self) -> bool:
        """Whether calls are being made, or wait."""
        return self._running

    def ask(self, wish: Wish) -> None:
        """Wish for something in place of what was wished for before."""
        with self._lock:
            if self._closed:
                return
            self._wishes.append(wish)
            begin, self._running = not self._running, True
        if begin:
            self._pool.submit(self._turn)

    def close(self) -> None:
        """Nothing is wanted any more."""
        with self._lock:
            self._closed = True
            self._wishes.clear()
            self._first.clear()
            self._then.clear()

    def _newer(self) -> bool:
        return self._closed or bool(self._wishes)

    def _late(self) -> bool:
        return self._closed or (bool(self._wishes) and time.monotonic() - self._begun > PATIENCE)

    def _tell(self, part: Any) -> None:
        """Of a result that is being made."""
        if not self._closed:
            wish: Any = self._of
            self._deliver(wish, [part], ())

    def _turn(self) -> None:
        """Calls of one wish, for a slice of time; then it is another page's turn."""
        call, results = self._next(), []
        if call is None:
            return
        wish: Any = self._of
        begun = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            while call is not None:
                try:
                    results.append(call())
                except Stopped:
                    pass
                except Exception as error:  # a defect: the page says so, and goes on
                    results.append(error)
                in_time = time.monotonic() - begun < SLICE and not self._newer()
                call = self._first.popleft() if in_time and self._first else None
        if results and not self._closed:
            said = dict.fromkeys(str(one.message) for one in caught if _own(one))
            self._deliver(wish, results, tuple(said))
        self._pool.submit(self._turn)

    def _next(self) -> Callable[[], Any] | None:
        """The next call; None when there is none, and nothing runs any more."""
        finished = None
        with self._lock:
            if self._wishes and (self._late() or not self._first):
                self._of = self._wishes.pop()
                plan = self._plan(self._of, Waits(self._newer, self._late, self._tell))
                self._first, self._then, self._begun = deque(plan.first), deque(plan.then), time.monotonic()
            calls = self._first or self._then
            if calls:
                return calls.popleft()
            self._running = False
            finished = None if self._closed else self._of
        if finished is not None:
            self._deliver(finished, [], ())
        return None


def _own(warning: warnings.WarningMessage) -> bool:
    """Whether the theory warns, and not another library, maybe on another thread."""
    return issubclass(warning.category, UserWarning) and warning.filename.startswith(PACKAGE)
