"""The curves that a browser draws: Bokeh's figures, whose data change as results come."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from propagate.explorer.curves import Critical, Step
from propagate.explorer.growing import Line
from propagate.explorer.state import DISTINCT, STEEPEST
from propagate.plots import CONFIDENCE
from propagate.table import JOINED, STREAM

PANELS = {
    "variance": "variance of the stream",
    "grad_variance": "variance of the gradient",
    "distinct": "1 - correlation of two tokens",
}
DASHES = ("solid", "dashed", "dotted")
POINTS = 12  # blocks that get a point, about
FAINT, OLD = 0.2, ", before"  # of a curve that is to be replaced
HEIGHT = 250
EDGE = 0.02  # room before the first block and behind the last, where points have bars too
SMALLEST = 1e-300  # what lies below it has no place on a logarithmic axis


@dataclass(frozen=True)
class Point:
    """Of a measured quantity: its mean, geometric where it is closer to log-normal, and a 95 % interval."""

    x: float
    y: float
    low: float
    high: float


def measured_points(table: Any, quantity: str) -> list[Point]:
    """The points of a simulation, at some of its blocks; of several streams all.

    The interval of 1 - correlation is that of a ratio of which either part may err: at most so wide.

    Args:
        table: of `simulate`.
        quantity: a key of `PANELS`.
    """
    if STREAM in table.dims:
        names = [name for name in table[STREAM].to_numpy() if name != JOINED]
        return [point for name in names for point in measured_points(table.sel({STREAM: name}), quantity)]
    some = table.isel(block=slice(None, None, max(1, table.sizes["block"] // POINTS)))
    over, under = ("deviation", "variance") if quantity == "distinct" else (quantity, None)
    mean, error = some[f"log_{over}"].to_numpy().copy(), some[f"log_{over}_se"].to_numpy().copy()
    if under:
        mean -= some[f"log_{under}"].to_numpy()
        error += some[f"log_{under}_se"].to_numpy()
    half = CONFIDENCE * np.nan_to_num(error)
    found = zip(some.block.to_numpy(), np.exp(mean), np.exp(mean - half), np.exp(mean + half), strict=True)
    return [Point(*map(float, one)) for one in found if one[1] > SMALLEST]


def span(values: Iterable[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis that shows all values, and at least a factor of 4.

    Example: what is constant but for rounding lies in the middle.
        >>> span([1.0, 1.0000000001])
        (0.5, 2.0)
    """
    seen = [value for value in values if SMALLEST < value < math.inf]
    if not seen:
        return 0.1, 1.0
    margin = max(1.2, (max(seen) / min(seen)) ** 0.06)
    low, high = min(seen) / margin, max(seen) * margin
    if high / low >= 4:
        return low, high
    middle = float(f"{math.sqrt(low * high):.6g}")
    return middle / 2, middle * 2


class Plots:
    """All panels of a page.

    Attributes:
        figures: by name: those of `PANELS`, "outputs" (of the first step) and "critical".
    """

    def __init__(self) -> None:
        from bokeh.models import ColumnDataSource, Span

        drawn = ("xs", "ys", "colour", "dash", "alpha", "line")
        self._lines = {name: ColumnDataSource(_columns(*drawn)) for name in PANELS}
        self._points = {name: ColumnDataSource(_columns("x", "y", "low", "high", "colour", "line")) for name in PANELS}
        self._outputs = ColumnDataSource(_columns("x", "y", "colour", "line"))
        self._map = ColumnDataSource(_columns("xs", "ys", "colour", "dash", "line"))
        self._here = ColumnDataSource(_columns("x", "y", "colour", "marker", "line"))
        self.figures = {name: self._panel(name, title) for name, title in PANELS.items()}
        self.figures["outputs"] = self._outputs_panel()
        self.figures["critical"] = self._critical_panel()
        self._level = Span(dimension="width", location=DISTINCT[1], line_dash="dotted", line_color="gray")
        self.figures["distinct"].add_layout(self._level)
        self._exponent = Span(dimension="height", location=0.0, line_dash="dotted", line_color="gray")
        self.figures["critical"].add_layout(self._exponent)

    def _figure(self, title: str, x: str | None, tooltips: list[tuple[str, str]], **axes: Any) -> Any:
        from bokeh.models import FixedTicker, HoverTool, PrintfTickFormatter
        from bokeh.plotting import figure

        one = figure(
            title=title,
            x_axis_label=x,
            height=HEIGHT,
            min_width=280,
            sizing_mode="stretch_width",
            toolbar_location=None,
            tools="",
            **axes,
        )
        one.add_tools(HoverTool(tooltips=tooltips))
        one.title.text_font_size = "13px"
        one.axis.axis_label_text_font_style = "normal"
        one.ygrid.grid_line_alpha = 0.6
        one.yaxis[0].ticker = one.ygrid[0].ticker = FixedTicker(ticks=[])
        one.yaxis[0].formatter = PrintfTickFormatter(format="%g")
        return one

    def _panel(self, name: str, title: str) -> Any:
        from bokeh.models import Whisker

        tips = [("", "@line"), ("block, value", "$x{0.0}, $y{0.000a}")]
        axes = {"x_range": (0, 1), "y_axis_type": "log", "y_range": (0.5, 2.0)}
        one = self._figure(title, "block (0: the embedding)", tips, **axes)
        looks: dict[str, Any] = {"color": "colour", "line_dash": "dash", "alpha": "alpha", "line_width": 2}
        one.multi_line("xs", "ys", source=self._lines[name], **looks)
        points = self._points[name]
        one.scatter("x", "y", source=points, size=6, fill_color="white", line_color="colour", line_width=1.5)
        bars = Whisker(base="x", upper="high", lower="low", source=points, line_color="colour")
        bars.upper_head.size = bars.lower_head.size = 4
        one.add_layout(bars)
        return one

    def _outputs_panel(self) -> Any:
        axes = {"x_range": ["query"], "y_axis_type": "log", "y_range": (0.5, 2.0)}
        tips = [("", "@line"), ("@x", "@y{0.000e}")]
        one = self._figure("first step: change of outputs (rms)", None, tips, **axes)
        one.scatter("x", "y", source=self._outputs, size=8, color="colour")
        one.xaxis.major_label_orientation = 0.6
        return one

    def _critical_panel(self) -> Any:
        axes = {"x_range": (0.0, STEEPEST), "y_axis_type": "log", "y_range": (0.9, 200.0)}
        tips = [("", "@line"), ("exponent, depth", "$x{0.00}, $y{0}")]
        title = "critical depth (dashed: gradient)"
        one = self._figure(title, "ScaleInit's exponent", tips, **axes)
        one.multi_line("xs", "ys", source=self._map, color="colour", line_dash="dash", line_width=1.5)
        one.scatter("x", "y", source=self._here, size=10, color="colour", marker="marker")
        return one

    def show_theory(
        self,
        drawn: Mapping[str, Sequence[Line]],
        colours: Mapping[str, str],
        level: float,
        before: Collection[str] = (),
    ) -> None:
        """The theory's lines, by placement; all others go. Those of `before` are of an earlier state, and faint."""
        rows = [(name, dash, line) for name, some in drawn.items() for line, dash in zip(some, DASHES, strict=False)]
        for quantity, source in self._lines.items():
            values = [np.where((y := getattr(line, quantity)) > SMALLEST, y, np.nan) for _, _, line in rows]
            source.data = {
                "xs": [line.block for _, _, line in rows],
                "ys": values,
                "colour": [colours[name] for name, _, _ in rows],
                "dash": [dash for _, dash, _ in rows],
                "alpha": [FAINT if name in before else 1.0 for name, _, _ in rows],
                "line": [f"{name} {line.stream}".strip() + OLD * (name in before) for name, _, line in rows],
            }
        self._level.location = level
        self._fit()

    def show_points(self, measured: Mapping[str, Any], colours: Mapping[str, str]) -> None:
        """Tables of `simulate` as points with error bars, by placement; all others go."""
        for quantity, source in self._points.items():
            rows = [(name, point) for name, table in measured.items() for point in measured_points(table, quantity)]
            source.data = {
                **{field: [getattr(point, field) for _, point in rows] for field in ("x", "y", "low", "high")},
                "colour": [colours[name] for name, _ in rows],
                "line": [f"{name}, simulated" for name, _ in rows],
            }
        self._fit()

    def _fit(self) -> None:
        """Axes that show what there is."""
        for quantity, one in self.figures.items():
            if quantity not in PANELS:
                continue
            drawn, points = self._lines[quantity].data, self._points[quantity].data
            values = [float(y) for ys in drawn["ys"] for y in ys]
            shown = [*values, *points["low"], *points["high"]]
            _scale(one, *span(shown))
            last = max((float(xs[-1]) for xs in drawn["xs"]), default=1.0)
            one.x_range.start, one.x_range.end = -EDGE * last, (1 + EDGE) * last

    def show_steps(self, steps: Mapping[str, Step], colours: Mapping[str, str]) -> None:
        """By how much the first step changes what each kind of matrix gives."""
        rows = [(name, matrix, y) for name, one in steps.items() for matrix, y in one.outputs.items() if y > SMALLEST]
        matrices = list(dict.fromkeys(matrix for _, matrix, _ in rows)) or ["query"]
        one = self.figures["outputs"]
        if list(one.x_range.factors) != matrices:
            one.x_range.factors = matrices
        self._outputs.data = {
            "x": [matrix for _, matrix, _ in rows],
            "y": [y for *_, y in rows],
            "colour": [colours[name] for name, *_ in rows],
            "line": [name for name, *_ in rows],
        }
        _scale(one, *span(y for *_, y in rows))

    def show_map(self, known: Mapping[str, list[Critical]], colours: Mapping[str, str], deepest: int) -> None:
        """Critical depths by exponent, those of collapse drawn through, those of the gradient dashed."""
        data = _columns("xs", "ys", "colour", "dash", "line")
        for name, row in known.items():
            for what, dash in (("collapse", "solid"), ("gradient", "dashed")):
                data["xs"].append([one.exponent for one in row])
                data["ys"].append([_height(getattr(one, what), deepest) for one in row])
                data["colour"].append(colours[name])
                data["dash"].append(dash)
                data["line"].append(f"{name}, {what}")
        self._map.data = data
        _scale(self.figures["critical"], 0.9, 1.7 * deepest)

    def show_here(
        self, here: Mapping[str, Critical], exponent: float, colours: Mapping[str, str], deepest: int
    ) -> None:
        """The exponent that is chosen, and its critical depths; a triangle where there is none up to the deepest."""
        data = _columns("x", "y", "colour", "marker", "line")
        for name, one in here.items():
            for what, marker in (("collapse", "circle"), ("gradient", "square")):
                depth = getattr(one, what)
                data["x"].append(one.exponent)
                data["y"].append(_height(depth, deepest))
                data["colour"].append(colours[name])
                data["marker"].append("triangle" if depth is None else marker)
                data["line"].append(f"{name}, {what}" + (f": none up to {deepest}" if depth is None else ""))
        self._here.data = data
        self._exponent.location = exponent


def ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis, a few.

    Example:
        >>> ticks(0.4, 9.0), ticks(0.5e-8, 2.0), ticks(0.24, 0.96)
        ([0.5, 1.0, 2.0, 5.0], [1e-08, 1e-06, 0.0001, 0.01, 1.0], [0.3, 0.5, 0.7])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 3:
        return _round(low, high, (1,), max(1, round((last - first) / 5)))
    found = _round(low, high, (1, 2, 5))
    return found if len(found) > 2 else _round(low, high, (1, 2, 3, 5, 7))


def _round(low: float, high: float, steps: Sequence[int], every: int = 1) -> list[float]:
    """These times powers of ten, or of every second, third, ... of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [float(f"{step}e{power}") for power in range(first - first % every, last + 1, every) for step in steps]
    return [tick for tick in found if low <= tick <= high]


def _scale(figure: Any, low: float, high: float) -> None:
    """Values are set, and no model is made: for a new one Bokeh looks through the whole page, which takes 0.1 s."""
    if (figure.y_range.start, figure.y_range.end) != (low, high) or not figure.yaxis[0].ticker.ticks:
        figure.y_range.start, figure.y_range.end = low, high
        figure.yaxis[0].ticker.ticks = ticks(low, high)


def _height(depth: int | None, deepest: int) -> float:
    return 1.25 * deepest if depth is None else float(depth)


def _columns(*names: str) -> dict[str, list[Any]]:
    return {name: [] for name in names}
