"""Curves that are shown while their walk is under way: of the blocks that it has come past, as they will remain.

Where tokens differ, a walk through many blocks takes longer than a page may wait. The stream's curves grow from the
embedding on, and then the gradient's from the last block back.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic as clock
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.explorer.waits import Stopped, Waits

if TYPE_CHECKING:
    from propagate.theory.tokens.gram import Gram

    Floats = np.ndarray[Any, np.dtype[np.float64]]

PAUSE = 0.08  # seconds between two pictures


@dataclass(frozen=True)
class Line:
    """One stream of a table against the block.

    Attributes:
        stream: its name, "" where there is one alone.
        block, variance, grad_variance, distinct: arrays over blocks; the last is 1 - correlation.
    """

    stream: str
    block: Floats
    variance: Floats
    grad_variance: Floats
    distinct: Floats


@dataclass(frozen=True)
class Growing:
    """Curves of a placement as far as they are known, NaN elsewhere.

    Attributes:
        placement: its name.
        lines: of each stream.
        direction: of the walk, "forward" or "backward".
        block: at which it is.
    """

    placement: str
    lines: tuple[Line, ...]
    direction: str
    block: int


class Growth:
    """Hears of a walk, and tells of it from time to time.

    Example: a causal mask; what is told of first is the embedding's variance.
        >>> import propagate as pg
        >>> from propagate.watching import watched
        >>> told = list[Growing]()
        >>> growth = Growth("prenorm", 2, Waits(bool, bool, told.append), pause=0.0)
        >>> with watched(growth):
        ...     _ = pg.predict(pg.Model("prenorm", depth=2, tokens=4, causal=True), samples=16)
        >>> told[0].lines[0].variance, [one.block for one in told]
        (array([ 1., nan, nan]), [0, 1, 2, 2, 1, 0])
    """

    def __init__(self, placement: str, depth: int, waits: Waits, pause: float = PAUSE) -> None:
        self._placement, self._depth, self._waits, self._pause = placement, depth, waits, pause
        self._told = clock()
        self._found: dict[str, Floats] = {}  # (streams, blocks)

    def __call__(self, direction: str, block: int, moments: Any) -> None:
        if self._waits.late():
            raise Stopped
        grams = [moments[i][i] for i in range(len(moments))] if moments else []
        if direction == "forward":
            self._keep(block, len(grams), variance="variance", distinct="deviation", of=grams)
            self._found["distinct"][:, block] /= self._found["variance"][:, block]
        elif direction == "backward":
            self._keep(block, len(grams), grad_variance="variance", of=grams)
        if self._found and clock() - self._told >= self._pause:
            self._waits.tell(Growing(self._placement, self._lines(), direction, block))
            self._told = clock()

    def _keep(self, block: int, streams: int, of: list[Gram | Any], **names: str) -> None:
        """Means over tokens, their pairs and evaluations, as the table has them."""
        from propagate.theory.token_resolved import statistics
        from propagate.theory.tokens.gram import Gram

        like = next((gram for gram in of if isinstance(gram, Gram)), None)
        for name, quantity in names.items():
            row = self._found.setdefault(name, np.full((streams, self._depth + 1), np.nan))
            for stream, gram in enumerate(of):
                row[stream, block] = 0.0 if like is None else statistics([gram], like)[quantity].mean()

    def _lines(self) -> tuple[Line, ...]:
        blocks, none = np.arange(self._depth + 1, dtype=float), np.full(self._depth + 1, np.nan)
        streams = len(self._found["variance"])
        rows = {name: self._found.get(name, [none] * streams) for name in ("variance", "grad_variance", "distinct")}
        names = [str(i + 1) for i in range(streams)] if streams > 1 else [""]
        return tuple(Line(name, blocks, *(np.array(rows[of][i]) for of in rows)) for i, name in enumerate(names))
