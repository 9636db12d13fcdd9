"""Where a function of one variable lies between two levels: scanned, then refined. It need not be monotonic.

Between two neighbouring points of the scan a level that the function crosses is found by Brent's method, and a turn
that may touch a level by a bounded search. What turns twice between two neighbours is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from propagate.inverse.unknown import Axis

Function = Callable[[float], float]
Interval = tuple[float, float]
TURN = 12  # evaluations in search of a turn


@dataclass(frozen=True)
class Band:
    """Two levels that a value must lie between; None is none.

    Example: a value that is no number lies nowhere.
        >>> Band(0.5, 2.0).holds(1.0), Band(None, 2.0).holds(math.nan)
        (True, False)
    """

    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value lies between, the levels included."""
        inside = (self.above is None or value >= self.above) and (self.below is None or value <= self.below)
        return inside and not math.isnan(value)

    @property
    def sides(self) -> list[Band]:
        """Bands of one level each."""
        return [Band(*pair) for pair in ((self.above, None), (None, self.below)) if pair != (None, None)]

    @property
    def level(self) -> float:
        """Of a band of one level."""
        (level,) = (level for level in (self.above, self.below) if level is not None)
        return level


def intervals(function: Function, points: Sequence[float], axis: Axis, band: Band) -> list[Interval]:
    """Where the function lies in the band, from its values at these points and where they call for more.

    Args:
        function: cheap to ask twice at one point; NaN where it has no value.
        points: in order.
        axis: that they lie on.
        band: of values.

    Example: a parabola, twice through 1/4.
        >>> axis = Axis(-1.0, 1.0, whole=False)
        >>> found = intervals(lambda x: x * x, axis.points(5), axis, Band(above=0.25))
        >>> [(round(low, 3), round(high, 3)) for low, high in found]
        [(-1.0, -0.5), (0.5, 1.0)]
    """
    seen = sorted([*points, *_turns(function, points, axis, band)])
    pieces: list[Interval] = []
    for left, right in pairwise(seen):
        pieces += _within(function, left, right, axis, band)
    pieces += [(x, x) for x in seen if band.holds(function(x))]
    return joined(pieces)


def _within(function: Function, left: float, right: float, axis: Axis, band: Band) -> list[Interval]:
    """The parts of one gap in which the function lies in the band."""
    ends = function(left), function(right)
    edges: list[Interval] = []  # the last point on this side of an edge, and the first on the other
    for side in band.sides:
        if all(map(math.isfinite, ends)) and side.holds(ends[0]) != side.holds(ends[1]):
            edges.append(_crossing(function, side, left, right, axis))
    if math.isnan(ends[0]) != math.isnan(ends[1]):
        edges.append(_bisected(lambda x: math.isnan(function(x)), left, right, axis))
    edges.sort()
    starts, stops = [left, *(edge[1] for edge in edges)], [*(edge[0] for edge in edges), right]
    return [
        (start, stop)
        for start, stop in zip(starts, stops, strict=True)
        if start <= stop and band.holds(function(start)) and band.holds(function(stop))
    ]


def _crossing(function: Function, side: Band, left: float, right: float, axis: Axis) -> Interval:
    """Two points next to one another, on this side of a level and on the other."""
    from scipy.optimize import brentq

    if not axis.whole:
        scale, inverse = (math.log, math.exp) if axis.magnitudes else (_same, _same)
        tolerance = axis.tolerance(left, right) / (max(abs(left), abs(right)) if axis.magnitudes else 1.0)

        def above_level(t: float) -> float:
            return _number(function(inverse(t)) - side.level)

        try:
            root = inverse(brentq(above_level, scale(left), scale(right), xtol=tolerance))
            step = 2 * axis.tolerance(left, right)
            near, far = max(left, root - step), min(right, root + step)
            if side.holds(function(near)) != side.holds(function(far)):
                return near, far
        except ArithmeticError:  # no value somewhere between: halving finds an edge all the same
            pass
    return _bisected(lambda x: side.holds(function(x)), left, right, axis)


def _bisected(other: Callable[[float], bool], left: float, right: float, axis: Axis) -> Interval:
    """Where something changes between what it is on the left and what on the right, by halving."""
    start = other(left)
    while (middle := axis.middle(left, right)) is not None:
        if other(middle) == start:
            left = middle
        else:
            right = middle
    return left, right


def _turns(function: Function, points: Sequence[float], axis: Axis, band: Band) -> list[float]:
    """Between neighbours of points that turn just short of a level: the turn, if it passes it."""
    from scipy.optimize import minimize_scalar

    if axis.whole:
        return []
    found = []
    for left, middle, right in zip(points, points[1:], points[2:], strict=False):
        values = [function(x) for x in (left, middle, right)]
        for side in band.sides:
            sign = 1.0 if values[1] < side.level else -1.0  # the turn is looked for towards the level
            turn = sign * values[1] > max(sign * values[0], sign * values[2])
            if not all(map(math.isfinite, values)) or len({*map(side.holds, values)}) != 1 or not turn:
                continue
            best = minimize_scalar(
                lambda x, sign=sign: -sign * function(float(x)),
                bounds=(left, right),
                method="bounded",
                options={"maxiter": TURN, "xatol": axis.tolerance(left, right)},
            )
            found.append(float(best.x))
    return found


def _same(x: float) -> float:
    return x


def _number(value: float) -> float:
    if math.isnan(value):
        raise ArithmeticError
    return value


def joined(pieces: Iterable[Interval]) -> list[Interval]:
    """Intervals that touch, as one.

    Example:
        >>> joined([(2, 3), (0, 1), (1, 2), (5, 6)])
        [(0, 3), (5, 6)]
    """
    found: list[Interval] = []
    for low, high in sorted(pieces):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def common(one: Sequence[Interval], other: Sequence[Interval]) -> list[Interval]:
    """What lies in an interval of both.

    Example:
        >>> common([(0, 2), (3, 5)], [(1, 4)])
        [(1, 2), (3, 4)]
    """
    pairs = [(max(a[0], b[0]), min(a[1], b[1])) for a in one for b in other]
    return joined((low, high) for low, high in pairs if low <= high)
