"""What the theory says of a state: pure functions of it, in the order in which a page wants them.

First the moments at every block, attention's share and the first step; then the depth at which a network collapses or
its gradient is lost, at the exponent that was chosen and at others. Each is one short call, so that a newer wish can
come between any two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.checks import ModelError
from propagate.explorer.growing import Growth, Line
from propagate.explorer.kept import Kept
from propagate.explorer.state import State
from propagate.explorer.waits import UNENDING, Waits, ending
from propagate.inverse.conditions import Distinct, FirstStep, GradientGain
from propagate.inverse.point import Point
from propagate.inverse.unknown import Setting
from propagate.placement import placement as placement_of
from propagate.scaling import ScaleInit
from propagate.table import JOINED, STREAM
from propagate.watching import Watch, watched

if TYPE_CHECKING:
    import xarray as xr

    Floats = np.ndarray[Any, np.dtype[np.float64]]

QUICK = 16  # samples of attention's logits where tokens are not alike, in what is shown first
SCANNED = 9  # depths, before crossings are refined
GRID = (0.0, 1.0, 0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875)
"""Exponents of the map, the coarse ones first."""
MOMENTS, SHARE, STEP, CRITICAL = "moments", "attention's share", "first step", "critical depth"
NETWORK = ("width", "tokens", "activation", "mask", "logit_std", "experts", "covariance")
DEPENDS = {
    MOMENTS: (*NETWORK, "depth"),
    SHARE: (*NETWORK, "depth"),
    STEP: (*NETWORK, "depth", "optimizer"),
    CRITICAL: (*NETWORK, "distinct", "gain"),
}
"""The fields of a state that each result depends on, beside placement and exponent; a step is kept at rate 1."""
FEW = 72  # blocks, of all placements together, of which attention's share and the first step come with the curves
MOST_KEPT = 512  # results of one page


@dataclass(frozen=True)
class Moments:
    """The table of `predict`; `quick` where one with more samples follows."""

    placement: str
    table: xr.Dataset
    quick: bool = False


@dataclass(frozen=True)
class Share:
    """Attention's share of the gradient."""

    placement: str
    value: float


@dataclass(frozen=True)
class Step:
    """The first step: how far it moves the last stream, and the outputs of each kind of matrix (rms over blocks)."""

    placement: str
    moved: float
    outputs: dict[str, float]


@dataclass(frozen=True)
class Critical:
    """The least depths at which two tokens count as collapsed and the gradient as lost; None: none up to `deepest`."""

    placement: str
    exponent: float
    collapse: int | None
    gradient: int | None
    deepest: int


@dataclass(frozen=True)
class Refused:
    """What the theory refuses, and why."""

    placement: str
    what: str
    why: str


Result = Moments | Share | Step | Critical | Refused
Call = Callable[[], Result]


def lines(table: xr.Dataset) -> list[Line]:
    """The streams of a table of `predict`.

    Example:
        >>> state = State(placements=("residual",), depth=2)
        >>> [line.stream for line in lines(moments(state, "residual").table)]
        ['1', '2']
    """
    if STREAM in table.dims:
        names = [str(name) for name in table[STREAM].to_numpy() if name != JOINED]
        return [dataclasses.replace(lines(table.sel({STREAM: name}))[0], stream=name) for name in names]
    block, variance, gradient = (table[name].to_numpy() for name in ("block", "variance", "grad_variance"))
    return [Line("", block, variance, gradient, (table.deviation / table.variance).to_numpy())]


def point_of(state: State, placement: str, samples: int | None = None) -> Point:
    """A placement's network, of which every prediction is made once."""
    model = state.model(placement)
    return Point(Setting(model, state.rule), state.start, (model.width, model.depth), samples=samples)


def moments(state: State, placement: str, at: Point | None = None) -> Moments:
    """Variance, gradient and collapse at every block.

    Raises:
        ModelError: as `predict`.

    Example:
        >>> found = moments(State(depth=4), "spannorm").table
        >>> found.sizes["block"], round(float(found.variance[-1]), 6)
        (5, 1.0)
    """
    at = at or point_of(state, placement)
    return Moments(placement, at.table, quick=at.samples is not None)


def share(state: State, placement: str, at: Point | None = None) -> Share:
    """See `propagate.AttentionShare`.

    Example:
        >>> 0 < share(State(depth=4), "spannorm").value < 1
        True
    """
    return Share(placement, (at or point_of(state, placement)).attention_share)


def step(state: State, placement: str, at: Point | None = None) -> Step:
    """See `propagate.FirstStep` and `propagate.predict_step`.

    Raises:
        ModelError: for what has no first step in the theory, such as Muon's with experts.

    Example:
        >>> found = step(State(depth=4, optimizer="muon", lr=0.1), "spannorm")
        >>> round(found.outputs["query"], 9)
        0.1
    """
    at = at or point_of(state, placement)
    moved = FirstStep().value(at)
    change = at.step.own_change  # at rate 1
    rms = np.nanmean(change.transpose(..., "matrix").to_numpy().reshape(-1, change.sizes["matrix"]), axis=0) ** 0.5
    names = [str(name) for name in change["matrix"].to_numpy()]
    return Step(placement, moved, dict(zip(names, map(float, rms * state.lr), strict=True)))


def critical(state: State, placement: str, exponent: float) -> Critical:
    """The least depths at which the levels of collapse and of the gradient are not kept, by `propagate.solve`.

    Args:
        state: whose own depth and exponent have no part in it.
        placement: a name.
        exponent: of ScaleInit.

    Raises:
        ModelError: where the theory refuses every depth.

    Example: unscaled PostNorm against SpanNorm.
        >>> [critical(State(), name, exponent=0.0).collapse for name in ("postnorm", "spannorm")]
        [4, 8]
    """
    import propagate as pg

    scaling = ScaleInit(exponent) if exponent else None
    model = state.model(placement, depth=state.deepest, scaling=scaling)
    asked: list[Any] = [Distinct(above=state.distinct), GradientGain(above=1 / state.gain, below=state.gain)]
    found = pg.solve(model, "depth", asked, between=(1, state.deepest), start=state.start, points=SCANNED)
    collapse, gradient = (_first_missed(found.table, one.name) for one in asked)
    return Critical(placement, exponent, collapse, gradient, state.deepest)


def _first_missed(table: xr.Dataset, name: str) -> int | None:
    """The depth behind the first run of those that meet a condition; both sides of each crossing are in the table."""
    kept = 0
    for depth, met in zip(table.depth.to_numpy(), table[f"{name}_met"].to_numpy(), strict=True):
        if not met:
            return kept + 1
        kept = int(depth)
    return None


def interpolated(known: list[Critical], exponent: float) -> Critical | None:
    """About where the critical depths lie, from exponents on both sides; None where those are not known.

    Example:
        >>> ends = [Critical("spannorm", 0.0, 4, 9, 128), Critical("spannorm", 0.5, 16, None, 128)]
        >>> interpolated(ends, 0.25)
        Critical(placement='spannorm', exponent=0.25, collapse=8, gradient=None, deepest=128)
    """
    low = max((one for one in known if one.exponent <= exponent), key=lambda one: one.exponent, default=None)
    high = min((one for one in known if one.exponent >= exponent), key=lambda one: one.exponent, default=None)
    if low is None or high is None:
        return None
    if low is high:
        return low
    part = (exponent - low.exponent) / (high.exponent - low.exponent)

    def between(a: int | None, b: int | None) -> int | None:
        return None if a is None or b is None else round(math.exp((1 - part) * math.log(a) + part * math.log(b)))

    depths = between(low.collapse, high.collapse), between(low.gradient, high.gradient)
    return Critical(low.placement, exponent, *depths, low.deepest)


@dataclass(frozen=True)
class Plan:
    """Calls in order: those whose results are shown first, and those that refine or add."""

    first: list[Call]
    then: list[Call]


class Curves:
    """Plans for one page, which keep what was found: what does not depend on the field that was changed comes at once.

    Example: a rate is a factor of the step, and of nothing else.
        >>> curves, state = Curves(), State(placements=("spannorm",), depth=2)
        >>> table, _, step = (call() for call in curves.plan(state).first)
        >>> again, _, larger = (call() for call in curves.plan(dataclasses.replace(state, lr=2e-5)).first)
        >>> again.table is table.table, larger.moved == 2 * step.moved
        (True, True)
    """

    def __init__(self) -> None:
        self._kept: Kept[Result] = Kept(MOST_KEPT)

    def plan(self, state: State, waits: Waits = UNENDING) -> Plan:
        """What to call for a state; `waits` ends what nobody waits for any more, and is shown what takes long."""
        quick = None if state.alike or state.experts != "none" else QUICK  # samples have no part beside routers
        unit = dataclasses.replace(state, lr=1.0)
        at = {name: point_of(unit, name, quick) for name in state.placements}
        here = state.exponent

        def call(what: str, name: str, make: Callable[[], Any], *more: Any, watch: Watch | None = None) -> Call:
            asked = partial(_tried, what, name, make, watch or ending(waits.stopped))
            return partial(self._kept.made, _key(state, what, name, *more), asked)

        def curves(name: str) -> Call:
            watch = ending(waits.late) if state.alike else Growth(name, state.depth, waits)
            return call(MOMENTS, name, partial(moments, state, name, at[name]), here, quick, watch=watch)

        first = [curves(name) for name in at]
        then: list[Call] = []
        shares = [call(SHARE, name, partial(share, state, name, at[name]), here) for name in at]
        steps = [call(STEP, name, partial(step, unit, name, at[name]), here) for name in at]
        few = state.alike and state.depth * len(at) <= FEW
        (first if few else then).extend(shares)
        if quick:
            then += [call(MOMENTS, name, partial(moments, state, name), here, None) for name in at]
        slow = state.optimizer in ("adam", "sign")  # which draw hidden units
        (first if few and not slow else then).extend(partial(_at_rate, one, state.lr) for one in steps)
        for exponent in dict.fromkeys((here, *GRID)):
            for name in at:
                then.append(call(CRITICAL, name, partial(critical, state, name, exponent), exponent))
        return Plan(first, then)

    def map_of(self, state: State, placement: str) -> list[Critical]:
        """The critical depths that are known of a placement, by exponent."""
        exponents = sorted({*GRID, state.exponent})
        known = [self._kept.known(_key(state, CRITICAL, placement, exponent)) for exponent in exponents]
        return [one for one in known if isinstance(one, Critical)]


def _key(state: State, what: str, placement: str, *more: Any) -> Hashable:
    """All that a result depends on; of the placement the equations, which a notebook may define anew."""
    return what, placement_of(placement), *more, *[getattr(state, field) for field in DEPENDS[what]]


def _at_rate(call: Call, rate: float) -> Result:
    found = call()
    if not isinstance(found, Step):
        return found
    return Step(found.placement, rate * found.moved, {name: rate * size for name, size in found.outputs.items()})


def _tried(what: str, placement: str, call: Callable[[], Any], watch: Watch) -> Result:
    try:
        with watched(watch):
            found: Result = call()
    except ModelError as error:
        return Refused(placement, what, str(error))
    return found
