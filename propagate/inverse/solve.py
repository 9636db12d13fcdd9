"""Which value of a number in a network's description meets stated conditions, by theory alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from propagate.checks import ModelError, shown
from propagate.inverse.conditions import Condition, check_condition
from propagate.inverse.crossings import Band, Interval, common, intervals
from propagate.inverse.point import Point
from propagate.inverse.unknown import Axis, Setting, axis_of
from propagate.inverse.words import refusals, verdict_of
from propagate.model import Model, check_model
from propagate.optimizers import Optimizer, check_optimizer
from propagate.start import Start
from propagate.table import provenance
from propagate.transfer import Transfer, as_transfer, factors_by_kind

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

POINTS = 17  # of the scan


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        unknown: the path of the number.
        intervals: where all conditions are met, in order; none where they cannot all be met.
        value: of all that meet them, that nearest to what the model has (the least, where it has none); None if none
            does.
        nearest: `value`, or else where the condition that is missed by most is missed by least.
        setting: with `nearest` in place: its `model`, `optimizer` and `transfer`.
        table: the trade-off curve: over the unknown every condition's value, and whether it is met.
        verdict: all of it in words.
    """

    unknown: str
    intervals: tuple[tuple[float, float], ...]
    value: float | None
    nearest: float
    setting: Setting
    table: xr.Dataset
    verdict: str

    @property
    def met(self) -> bool:
        """Whether any value meets all conditions."""
        return self.value is not None

    @property
    def model(self) -> Model:
        """The network with `nearest` in place."""
        return self.setting.model

    @property
    def lowest(self) -> float | None:
        """The least value that meets all conditions."""
        return self.intervals[0][0] if self.intervals else None

    @property
    def highest(self) -> float | None:
        """The largest value that meets all conditions."""
        return self.intervals[-1][1] if self.intervals else None

    def plot(self) -> Figure:
        """The trade-off, a panel a condition, shaded where all are met; `propagate.plot(solution.table)`."""
        from propagate.picture import plot

        return plot(self.table)

    def __str__(self) -> str:
        from propagate.inverse.words import text

        return text(self.table, self.verdict)

    __repr__ = __str__


def solve(
    model: Model,
    unknown: str,
    conditions: Sequence[Condition],
    *,
    between: tuple[float, float],
    start: Start | None = None,
    optimizer: Optimizer | None = None,
    transfer: str | Transfer | None = None,
    base: tuple[int, int] | None = None,
    points: int = POINTS,
) -> Solution:
    """The values of one number in a network's description for which the theory's predictions meet conditions.

    A predicted number need not rise or fall steadily with the unknown: it is scanned, then every crossing of a level
    is refined, to 1e-5 of the range, and every turn that may touch one. What turns twice between two points of the scan
    is not seen: more `points` see more.

    Args:
        model: the network; what it has at the path is where a search begins.
        unknown: path of the number: a field of the model ("depth", "ffn_gain", "logit_std"), of one of its descriptions
            ("scaling.exponent", "placement.alpha", "attention.value_gain"), of the optimiser ("optimizer.lr") or of the
            rule of transfer ("transfer.exponent").
        conditions: `GradientGain`, `StreamGain`, `Distinct`, `AttentionShare`, `FirstStep`, `Growth`, or one's own.
        between: where it is looked for. If both ends are positive and a factor of 20 or more apart, points are spread
            over magnitudes.
        start: what enters the network.
        optimizer, transfer: of the first step, if a condition is on it.
        base: (width, depth) at which the rule of transfer changes nothing; by default the model's own.
        points: of the scan.

    Returns:
        A `Solution`. If no value meets all conditions that is no error: its table is the trade-off, its verdict says
        what each condition needs. Where the theory refuses a value, no condition on it is met there.

    Raises:
        ModelError: for a path that leads to no number, conditions that are none, ends that are not in order, or a
            network that the theory refuses wherever it was looked.

    Example: the weakest ScaleInit that keeps the gradient of 24 blocks within a factor of 2.
        >>> from propagate.inverse.conditions import Distinct, GradientGain
        >>> from propagate.scaling import ScaleInit
        >>> model = Model("prenorm", depth=24, scaling=ScaleInit(0.0), logit_std=0.0)
        >>> found = solve(model, "scaling.exponent", [GradientGain(below=2.0)], between=(0, 1))
        >>> round(found.value, 3), found.model.scaling.exponent == found.value
        (0.502, True)

    Example: small gains of the FFN keep the gradient in bounds, large ones keep tokens apart, none does both.
        >>> found = solve(model, "ffn_gain", [GradientGain(below=12.0), Distinct(above=0.2)], between=(0.1, 2))
        >>> found.met, bool(found.table.gradient_gain_met.any()), bool(found.table.distinct_met.any())
        (False, True, True)
    """
    check_model(model)
    if optimizer is not None:
        check_optimizer(optimizer)
    rule = None if transfer is None else as_transfer(transfer)
    setting = Setting(model, optimizer, rule)
    now, whole = setting.number(unknown)
    axis = axis_of(between, whole)
    asked = _conditions(conditions)
    if isinstance(points, bool) or not isinstance(points, int) or not 3 <= points <= 10_000:
        raise ModelError(f"points must be a whole number from 3 to 10000, got {shown(points)}")
    neutral = (model.width, model.depth) if base is None else base
    factors_by_kind(model, rule, neutral)  # refuses a base that is none
    search = _Search(setting, unknown, Start.of(start), neutral, asked)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scanned = axis.points(points)
        for x in scanned:
            for condition in asked:
                search.value(condition, x)
        search.check_any()
        met = [intervals(partial(search.value, one), scanned, axis, Band(one.above, one.below)) for one in asked]
        found = reduce(common, met)
        value = _nearest(found, now)
        ends = {end for each in met for pair in each for end in pair} | ({value} if value is not None else set())
        rows = {x: [search.value(one, x) for one in asked] for x in sorted({*scanned, *ends})}
    for category, message in {(warning.category, str(warning.message)) for warning in caught}:
        warnings.warn(message, category, stacklevel=2)
    best = value if value is not None else _compromise(rows, asked)
    table = _table(search, rows, axis)
    verdict = verdict_of(unknown, asked, met, found, value, best, rows[best], axis) + refusals(rows, search.refused)
    table = table.assign_attrs(verdict=verdict, met=int(value is not None), nearest=best)
    return Solution(unknown, tuple(found), value, best, setting.replaced(unknown, best), table, verdict)


def _conditions(conditions: Any) -> list[Any]:
    if not isinstance(conditions, Sequence) or isinstance(conditions, str) or not conditions:
        raise ModelError(f"conditions must be a list of conditions, got {shown(conditions)}")
    for condition in conditions:
        check_condition(condition)
    names = [condition.name for condition in conditions]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"conditions must be on different numbers, got two on {twice}: give both levels to one")
    return list(conditions)


@dataclass(eq=False)
class _Search:
    """Conditions' values by the unknown's, each found once; NaN where the theory refuses, and why."""

    setting: Setting
    unknown: str
    start: Start
    base: tuple[int, int]
    conditions: list[Any]

    def __post_init__(self) -> None:
        self.points: dict[float, Point | None] = {}
        self.values: dict[tuple[str, float], float] = {}
        self.refused: list[ModelError] = []
        self.steps: dict[Any, Any] = {}

    def value(self, condition: Any, x: float) -> float:
        key = condition.name, x
        if key not in self.values:
            at = self._at(x)
            self.values[key] = math.nan if at is None else self._tried(lambda: float(condition.value(at)), math.nan)
        return self.values[key]

    def _at(self, x: float) -> Point | None:
        if x not in self.points:
            self.points[x] = self._tried(
                lambda: Point(self.setting.replaced(self.unknown, x), self.start, self.base, self.steps), None
            )
        return self.points[x]

    def _tried(self, made: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return made()
        except ModelError as error:
            self.refused.append(error)
            return otherwise

    def check_any(self) -> None:
        """ModelError if a condition has no value anywhere."""
        for condition in self.conditions:
            if all(math.isnan(value) for (name, _), value in self.values.items() if name == condition.name):
                raise self.refused[0] if self.refused else ModelError(f"{condition.name} is no number anywhere")


def _nearest(found: Sequence[Interval], now: float | None) -> float | None:
    if not found:
        return None
    if now is None:
        return found[0][0]
    return min((min(max(now, low), high) for low, high in found), key=lambda x: abs(x - now))


def _compromise(rows: dict[float, list[float]], conditions: Sequence[Any]) -> float:
    """Where the condition that is missed by most is missed by least."""
    return min(rows, key=lambda x: max(_missed(v, one) for v, one in zip(rows[x], conditions, strict=True)))


def _missed(value: float, condition: Any) -> float:
    """By how much, as a logarithm of a ratio where there is one; 0 if it is met."""
    if math.isnan(value):
        return math.inf
    missed = 0.0
    for level, sign in ((condition.above, 1.0), (condition.below, -1.0)):
        if level is None or sign * (level - value) <= 0:
            continue
        missed = abs(math.log(value / level)) if value > 0 < level else abs(value - level) / max(abs(level), 1.0)
    return missed


def _table(search: _Search, rows: dict[float, list[float]], axis: Axis) -> xr.Dataset:
    import xarray as xr

    dim = search.unknown.rpartition(".")[2]
    variables: dict[str, Any] = {}
    for i, one in enumerate(search.conditions):
        values = [row[i] for row in rows.values()]
        levels = {name: level for name in ("above", "below") if (level := getattr(one, name)) is not None}
        variables[one.name] = dim, values, levels | {"condition": repr(one)}
        variables[f"{one.name}_met"] = dim, [Band(one.above, one.below).holds(value) for value in values]
    attributes: dict[str, Any] = {"witness": "solve", "unknown": search.unknown, "model": repr(search.setting.model)}
    attributes |= {name: repr(own) for name in ("optimizer", "transfer") if (own := getattr(search.setting, name))}
    attributes |= {"low": axis.low, "high": axis.high}
    return xr.Dataset(variables, {dim: list(rows)}, attributes | provenance())
