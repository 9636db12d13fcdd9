"""Pictures of tables: theory as lines, simulation as points with 95 % error bars. Pure helpers, no global state.

One colour a placement (Okabe and Ito's palette, told apart with any colour vision), one line style and marker a
scaling, in every picture.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from propagate import columns as narrow

COLOURS = {
    "prenorm": "#0072B2",
    "postnorm": "#D55E00",
    "spannorm": "#009E73",
    "periln": "#CC79A7",
    "deepnorm": "#E69F00",
    "layernormscaling": "#56B4E9",
}
OTHER = "#000000"
SCALED: dict[str, Any] = {"linestyle": (0, (4, 2)), "marker": "s", "filled": False}
UNSCALED: dict[str, Any] = {"linestyle": "-", "marker": "o", "filled": True}
CONFIDENCE = 1.96  # standard errors: 95 % of a normal distribution
COLUMN, PAGE = narrow.WIDTH, 7.0  # widths in inches
BAND, LINE = "finite-width allowance", 1.2  # its name in legends, and a line's width in points
BLOCK_AXIS = "block (0: the embedding)"
STYLE = Path(__file__).with_name("propagate.mplstyle")


def style() -> AbstractContextManager[None]:
    """Within it, artists are made in the package's style sheet; the user's own settings come back afterwards.

    In a notebook, `matplotlib.pyplot.style.use("propagate.propagate")` takes the same sheet for good. Within
    `propagate.columns.column()` all text has the size that a column wants.

    Example:
        >>> with style():
        ...     matplotlib.rcParams["font.size"]
        8.0
    """
    context: AbstractContextManager[None] = matplotlib.rc_context(narrow.TEXT if narrow.narrow() else None, STYLE)
    return context


class _Picture(Figure):
    """A figure that a notebook shows, whichever backend is or is not loaded."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


def panels(rows: int, columns: int, *, width: float = PAGE, height: float = 2.8, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, shape (rows, columns); sizes in inches, of a page's width or, within
    `propagate.columns.column()`, of a column's.

    Example:
        >>> figure, axes = panels(1, 2)
        >>> axes.shape
        (1, 2)
    """
    figure = _Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if narrow.narrow():
        return figure, narrow.place(figure, rows, columns, height, **options)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def colour(placement: str) -> str:
    """The colour of a placement; black for one that has none of its own.

    Example:
        >>> colour("Span-Norm")
        '#009E73'
    """
    return COLOURS.get("".join(c for c in placement.lower() if c.isalnum()), OTHER)


def theory_line(
    axes: Any, x: Any, y: Any, *, placement: str, scaled: bool = False, allowance: Any = None, **options: Any
) -> Any:
    """A line, and around it the band allowed to a network of finite width, `y exp(-allowance) ... y exp(allowance)`.

    Example:
        >>> _, axes = panels(1, 1)
        >>> theory_line(axes[0, 0], [0, 1], [1.0, 2.0], placement="prenorm").get_color()
        '#0072B2'
    """
    shown = {"color": colour(placement), "linestyle": (SCALED if scaled else UNSCALED)["linestyle"]} | options
    if allowance is not None:
        low, high = np.asarray(y) * np.exp(-np.asarray(allowance)), np.asarray(y) * np.exp(np.asarray(allowance))
        axes.fill_between(x, low, high, color=shown["color"], alpha=0.13, linewidth=0)
    (line,) = axes.plot(x, y, **shown)
    return line


def simulation_points(
    axes: Any,
    x: Any,
    y: Any,
    error: Any,
    *,
    placement: str = "",
    scaled: bool = False,
    logarithmic: bool = False,
    shade: str | None = None,
) -> Any:
    """Points with 95 % error bars of the mean. With `logarithmic`, `y` and `error` are of the natural logarithm.

    `shade` is a colour in place of the placement's.

    Example: the geometric mean of e^0 +- 0.1.
        >>> _, axes = panels(1, 1)
        >>> bars = simulation_points(axes[0, 0], [0], [0.0], [0.1], placement="prenorm", logarithmic=True)
        >>> bars[0].get_ydata().tolist()
        [1.0]
    """
    mean, half = np.asarray(y, dtype=float), CONFIDENCE * np.asarray(error, dtype=float)
    if logarithmic:
        low, high, mean = np.exp(mean - half), np.exp(mean + half), np.exp(mean)
    else:
        low, high = mean - half, mean + half
    kind = SCALED if scaled else UNSCALED
    shade = shade or colour(placement)
    return axes.errorbar(
        x,
        mean,
        yerr=[mean - low, high - mean],
        linestyle="none",
        marker=kind["marker"],
        markersize=3.4,
        markerfacecolor=shade if kind["filled"] else "white",
        markeredgecolor=shade,
        markeredgewidth=0.8,
        ecolor=shade,
        elinewidth=0.8,
        zorder=3,
    )


def key(placements: tuple[str, ...] = (), *, scalings: bool = True, band: bool = True, prefix: str = "") -> list[Any]:
    """Handles for a legend that says what colour, line and marker mean.

    Example:
        >>> [handle.get_label() for handle in key(("PreNorm",), scalings=False, band=False)]
        ['PreNorm']
    """
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], color=colour(name), linewidth=2.5, label=name) for name in placements]
    if scalings:
        for label, kind in (("no scaling", UNSCALED), ("ScaleInit(0.5)", SCALED)):
            face = "0.3" if kind["filled"] else "white"
            look: dict[str, Any] = {
                "marker": kind["marker"],
                "markersize": 3.4,
                "markerfacecolor": face,
                "markeredgecolor": "0.3",
            }
            handles.append(Line2D([], [], color="0.3", linestyle=kind["linestyle"], label=prefix + label, **look))
    if band:
        handles.append(Patch(color="0.4", alpha=0.25, linewidth=0, label=BAND))
    return handles


def entry(label: str, **look: Any) -> Line2D:
    """A handle for one more line of a legend.

    Example:
        >>> entry("1 / tokens", linestyle=":").get_linestyle()
        ':'
    """
    shown: dict[str, Any] = {"color": "0.3", "linewidth": 1.0, "label": label} | look
    return Line2D([], [], **shown)


def legend(figure: Figure, handles: list[Any], columns: int = 6) -> Any:
    """One legend for all panels, in rows beneath them, so that it hides nothing; call it when all is drawn.

    The finite-width allowance is left out where it is nowhere wider than a line.

    Example:
        >>> legend(panels(1, 1)[0], [entry("theory")]).get_texts()[0].get_text()
        'theory'
    """
    handles = [handle for handle in handles if handle.get_label() != BAND or _has_a_band(figure)]
    if narrow.narrow():
        columns = narrow.legend_fits([handle.get_label() for handle in handles])
        figure.set_figheight(figure.get_figheight() + 0.15 * -(-len(handles) // columns))
    return figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(columns, len(handles)),
        columnspacing=1.2,
        handlelength=2.2,
    )


def _has_a_band(figure: Figure) -> bool:
    """Whether an allowance is drawn wider than its line somewhere in view."""
    wide = 2 * LINE * figure.dpi / 72
    return any(
        _thickness(axes, path.vertices) > wide
        for axes in figure.axes
        for band in axes.collections
        if isinstance(band, FillBetweenPolyCollection)
        for path in band.get_paths()
    )


def _thickness(axes: Any, corners: Any) -> float:
    """Of a filled band, in dots, within its axes; its corners go along one edge and back along the other."""
    axes.get_ylim()  # limits are settled when they are asked for
    bottom, top = axes.transAxes.transform([(0, 0), (0, 1)])[:, 1]
    heights = np.clip(axes.transData.transform(corners)[:, 1], bottom, top)
    count = (len(heights) - 3) // 2
    one, other = heights[1 : count + 1], heights[count + 2 : 2 * count + 2][::-1]
    return float(np.nanmax(np.abs(one - other), initial=0.0))


def render(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a "png" (200 dots an inch) or "svg" file; the same figure gives the same bytes.

    Example:
        >>> render(panels(1, 1)[0], "png")[1:4]
        b'PNG'
    """
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    buffer = io.BytesIO()
    narrow.finish(figure)
    with style():
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()
