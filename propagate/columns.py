"""Pictures at the width of a column, 3.3 inches, with text of 7 points: the same panels, laid out anew.

Within `column()` the style's text is of one size, and a grid of panels is broken into lines of one or two. A panel that
took its label from the first of its row, or from the ends of its column, then has one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FixedLocator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, POINTS = 3.3, 7.0
TEXT: Any = dict.fromkeys(
    ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), POINTS
)
LETTER = 0.6 * POINTS / 72  # inches, a letter of that size on average
AROUND = {1: 0.7, 2: 0.6}  # inches of a line, and of a panel's height, that labels take; by panels a line

_NARROW: ContextVar[bool] = ContextVar("narrow", default=False)


@contextmanager
def column() -> Iterator[None]:
    """Within it, pictures are drawn for a column.

    Example:
        >>> from propagate import plots
        >>> with column(), plots.style():
        ...     figure, axes = plots.panels(1, 3)
        >>> float(figure.get_figwidth()), axes.shape, len({axis.get_subplotspec().rowspan.start for axis in axes.flat})
        (3.3, (1, 3), 3)
    """
    token = _NARROW.set(True)
    try:
        yield
    finally:
        _NARROW.reset(token)


def narrow() -> bool:
    """Whether pictures are drawn for a column."""
    return _NARROW.get()


def lines(rows: int, columns: int) -> list[list[tuple[int, int] | None]]:
    """Where the panels of a grid go: (row, column) in lines of equal length, one or two.

    Two rows become two columns; of more, each is broken into lines of its own.

    Example:
        >>> lines(1, 3)
        [[(0, 0)], [(0, 1)], [(0, 2)]]
        >>> lines(2, 2)
        [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
        >>> lines(3, 3)[:2]
        [[(0, 0), (0, 1)], [(0, 2), None]]
    """
    if columns <= 2:
        return [[(row, place) for place in range(columns)] for row in range(rows)]
    if rows <= 2:
        return [[(row, place) for row in range(rows)] for place in range(columns)]
    broken: list[list[tuple[int, int] | None]] = []
    for row in range(rows):
        places: list[tuple[int, int] | None] = [(row, place) for place in range(columns)]
        places += [None] * (columns % 2)
        broken += [places[start : start + 2] for start in range(0, len(places), 2)]
    return broken


def place(figure: Figure, rows: int, columns: int, height: float, **options: Any) -> Any:
    """The panels of a grid, (rows, columns), in the lines of a column; the figure gets their height.

    Args:
        height: of the picture at the width of a page.
        options: those of `Figure.subplots`; ratios count where the grid stays as it is.
    """
    grid = lines(rows, columns)
    across = len(grid[0])
    as_it_is = columns <= 2
    each = 1.45 if across == 2 else max(1.5, 0.6 * height / rows)
    figure.set_size_inches(WIDTH, max(0.85 * height, 1.5) if as_it_is else each * len(grid))
    kept = dict(options.get("gridspec_kw") or {})
    kept |= {name: options[name] for name in ("height_ratios", "width_ratios") if name in options}
    cells = figure.add_gridspec(len(grid), across, **(kept if as_it_is else {}))
    axes = np.empty((rows, columns), dtype=object)
    where: dict[tuple[int, int], Any] = {}
    for line, places in enumerate(grid):
        for position, one in enumerate(places):
            if one is not None:
                first = {key: _first(axes, one, options.get(key, False)) for key in ("sharex", "sharey")}
                axes[one] = where[line, position] = figure.add_subplot(cells[line, position], **first)
    figure.panels_of_column = axes, where  # type: ignore[attr-defined]
    return axes


def _first(axes: Any, one: tuple[int, int], share: Any) -> Any:
    """The panel that another shares an axis with; None for the first of its kind."""
    row, place = one
    if share in (True, "all"):
        return axes[0, 0]
    if share == "row":
        return axes[row, 0]
    return axes[0, place] if share == "col" else None


def legend_fits(labels: list[str]) -> int:
    """How many columns of these labels a legend may have.

    Example:
        >>> legend_fits(["theory", "simulation"]), legend_fits(["the geometric mean at this width", "theory"])
        (2, 1)
    """
    widest = max(map(len, labels)) * LETTER + 0.45
    return max(1, min(len(labels), int(WIDTH / widest)))


def finish(figure: Figure) -> None:
    """Give each panel the labels that it had from others, once, broken where they are longer than the panel."""
    if not hasattr(figure, "panels_of_column"):
        return
    axes, where = figure.panels_of_column
    del figure.panels_of_column
    for (row, place), axis in np.ndenumerate(axes):
        axis.set_ylabel(axis.get_ylabel() or axes[row, 0].get_ylabel())
        axis.set_xlabel(axis.get_xlabel() or axes[-1, place].get_xlabel())
        if axes.shape[1] > 2:  # it no longer stands beneath the one that has it
            axis.title.set_text(axis.get_title() or axes[0, place].get_title())
    for (line, place), axis in where.items():
        below, left = where.get((line + 1, place)), where.get((line, place - 1))
        if _same(below, axis, "x"):
            axis.set_xlabel("")
            axis.tick_params(labelbottom=False)
        if _same(left, axis, "y"):
            axis.set_ylabel("")
            axis.tick_params(labelleft=False)
    across = 1 + max(position for _, position in where)
    down = 1 + max(line for line, _ in where)
    high = figure.get_figheight() / down - AROUND[across]
    wide = WIDTH / across - AROUND[across]
    for axis in where.values():
        for text, room in ((axis.yaxis.label, max(high, 0.8)), (axis.xaxis.label, wide), (axis.title, wide)):
            text.set_text(_broken(text.get_text(), room))
        if _crowded(axis, wide):
            axis.tick_params(axis="x", labelrotation=90)


def _same(neighbour: Any, axis: Any, name: str) -> bool:
    """Whether a panel beside another has the same axis, and says so."""
    if neighbour is None or not neighbour.get_visible():
        return False
    shared = getattr(axis, f"get_shared_{name}_axes")().joined(neighbour, axis)
    get = f"get_{name}label"
    return bool(shared and getattr(neighbour, get)() == getattr(axis, get)())


def _broken(text: str, room: float) -> str:
    """Text in lines that fit into so many inches; a formula stays whole.

    Example:
        >>> _broken("gradient variance at the embedding", 1.2)
        'gradient variance at\\nthe embedding'
    """
    if max(map(len, text.split("\n"))) * LETTER <= room:
        return text
    found = [""]
    for word in re.findall(r"(?:\$[^$]*\$|\S)+", text):
        longer = f"{found[-1]} {word}".strip()
        found = [*found[:-1], longer] if len(longer) * LETTER <= room or not found[-1] else [*found, word]
    return "\n".join(found)


def _crowded(axis: Any, room: float) -> bool:
    """Whether two of the labels that were given to ticks do not fit side by side."""
    if not isinstance(axis.xaxis.get_major_locator(), FixedLocator):
        return False
    ticks = axis.xaxis.get_majorticklocs()
    labels = axis.xaxis.get_major_formatter().format_ticks(ticks)
    places = axis.transData.transform([(tick, axis.get_ylim()[0]) for tick in ticks])
    across = axis.transAxes.inverted().transform(places)[:, 0] * room
    lengths = [(len(label) + 1) * LETTER for label in labels]
    return any(
        0 <= one <= room and abs(other - one) < (length + longer) / 2
        for one, other, length, longer in zip(across, across[1:], lengths, lengths[1:], strict=False)
    )
