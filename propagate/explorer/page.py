"""One page: its state, its widgets, its curves, and the work behind them, which ends with it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from threading import RLock
from typing import Any

from propagate.checks import ModelError
from propagate.explorer import curves as theory_of
from propagate.explorer import readout, takeaway
from propagate.explorer.controls import Controls
from propagate.explorer.curves import MOMENTS, Critical, Curves, Moments, Refused, Share, Step, interpolated, lines
from propagate.explorer.growing import Growing, Line
from propagate.explorer.job import Ended, Job, Points, Progress
from propagate.explorer.latest import Latest
from propagate.explorer.plots import Plots
from propagate.explorer.state import State
from propagate.explorer.words import code, commands
from propagate.picture import colours_of

Later = Callable[[Callable[[], None]], Any]
TO_ADDRESS = "window.history.replaceState(null, '', '?' + cb_obj.value)"
TO_CLIPBOARD = "navigator.clipboard.writeText(text.value)"
COMPUTING = "computing …"
STYLE = """
.readout { overflow-x: auto; }
.readout table { border-collapse: collapse; font-size: 13px; }
.readout th, .readout td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
.readout th { font-weight: 600; }
.readout th:first-child, .readout td:first-child { text-align: left; }
.status { font-size: 12px; color: #666; }
.notes { margin: 4px 0; padding-left: 18px; font-size: 12px; color: #444; }
.listing { overflow-x: auto; font-size: 12px; margin: 4px 0; }
"""
GRID = """
:host { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
"""
BESIDE = """
:host { display: grid !important; grid-template-columns: 270px minmax(0, 1fr); align-items: start; }
@media (max-width: 700px) { :host { grid-template-columns: minmax(0, 1fr); } }
"""


class Page:
    """What one tab, or one cell of a notebook, shows.

    Args:
        state: the first.
        pool: one thread for theory, which pages share.
        later: calls a function where widgets may be changed.
        moved: called after each change of the curves (in notebooks, to send them).
        address: whether the browser's address is its own, and follows the state.
        said: what there is to say about the state's own address.
    """

    def __init__(
        self,
        state: State,
        pool: Executor,
        later: Later,
        *,
        moved: Callable[[], object] = bool,
        address: bool = False,
        said: str = "",
    ) -> None:
        import panel as pn

        self.state, self._later, self._moved, self._lock = state, later, moved, RLock()
        self._said, self._refusal, self._closed = [said] if said else [], "", False
        self._found: dict[str, Moments] = {}
        self._growing: dict[str, Growing] = {}
        self._drawn: dict[str, Sequence[Line]] = {}
        self._before: set[str] = set()  # placements whose curves are of an earlier state
        self._shares, self._steps, self._here = dict[str, Share](), dict[str, Step](), dict[str, Critical]()
        self._refused: dict[tuple[str, str], Refused] = {}
        self._measured: dict[Any, Points] = {}  # by the network, its start and the draws
        self._notes: list[str] = []
        self._saves: list[Any] = []
        self._job: Job | None = None
        self._of: State | None = None  # that the curves show
        self._curves, self.plots = Curves(), Plots()
        self.controls = Controls(state, self.change)
        self.latest: Latest[State] = Latest(pool, self._curves.plan, self._told)
        stretched: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": (4, 8)}
        self._table, self._noted = (pn.pane.HTML("", stylesheets=[STYLE], **stretched) for _ in range(2))
        self._status = pn.pane.HTML(readout.status(COMPUTING), stylesheets=[STYLE], **stretched)
        self._run = pn.widgets.Button(label="Simulate", color="primary", width=90, margin=(4, 8))
        self._cancel = pn.widgets.Button(label="Cancel", width=80, margin=(4, 8), disabled=True)
        self._bar = pn.indicators.Progress(value=0, max=100, active=False, width=150, margin=(14, 8))
        self._progress = pn.pane.Str("", margin=(10, 8))
        self._address = pn.widgets.TextInput(value=state.query, visible=False)
        self._texts = {name: pn.widgets.TextAreaInput(visible=False) for name in ("code", "command line")}
        self._listings = {name: pn.pane.HTML("", stylesheets=[STYLE], **stretched) for name in self._texts}
        self._run.on_click(lambda _: self.simulate())
        self._cancel.on_click(lambda _: self.cancel())
        if address:
            self._address.jscallback(value=TO_ADDRESS)
        self._say()
        self.latest.ask(state)

    def view(self) -> Any:
        """All of it, as a Panel layout that becomes one column where it is narrow."""
        import panel as pn

        wide = {"sizing_mode": "stretch_width"}
        copies: list[Any] = []
        for name, text in self._texts.items():
            button = pn.widgets.Button(label=f"Copy {name}", width=150, margin=(4, 8))
            button.js_on_click(args={"text": text}, code=TO_CLIPBOARD)
            copies.append(button)
        for name, made in (("netCDF", self._netcdf), ("figure", self._picture)):
            filename = f"explorer.{'nc' if name == 'netCDF' else 'png'}"
            looks: dict[str, Any] = {"label": f"Save {name}", "width": 150, "margin": (4, 8)}
            self._saves.append(pn.widgets.FileDownload(callback=made, filename=filename, **looks))
        run = pn.FlexBox(self.controls.widgets["draws"], self._run, self._cancel, self._bar, self._progress)
        panes = [pn.pane.Bokeh(one, **wide) for one in self.plots.figures.values()]
        hidden = [self._address, *self._texts.values()]
        listings = pn.Card(*self._listings.values(), title="Code and command line", collapsed=True, margin=8, **wide)
        main = pn.Column(
            self._status,
            self._table,
            self._noted,
            pn.Column(*panes, stylesheets=[GRID], margin=(0, 8, 0, 0), **wide),
            run,
            pn.FlexBox(*copies, *self._saves),
            listings,
            *hidden,
            **wide,
        )
        side = pn.Column(
            pn.pane.HTML("<b>propagate explore</b>", margin=(8, 8, 0, 8)),
            *self.controls.groups(),
            **wide,
        )
        return pn.Column(side, main, stylesheets=[BESIDE], **wide)

    def change(self, fields: dict[str, Any]) -> None:
        """Somebody changed a field; sizes follow as far as they must."""
        try:
            self.state = State.clamped(**asdict(self.state) | fields)
        except ModelError as error:
            self._refusal = str(error)
        else:
            self._refusal, self._said = "", []
            self._status.object = readout.status(COMPUTING)
            self.latest.ask(self.state)
        self.controls.show(self.state)
        self._say()

    def simulate(self) -> None:
        """Begin to simulate what is shown, unless that is being done."""
        if self._closed or (self._job is not None and self._job.running):
            return
        job = Job(self.state, lambda told: self._hand(partial(self._heard, job, told)))
        self._job, self._run.disabled, self._cancel.disabled = job, True, False
        self._bar.active = True
        self._progress.object = "starting processes"
        job.start()

    def cancel(self) -> None:
        """Give up the simulation."""
        if self._job is not None:
            self._job.cancel()

    def close(self) -> None:
        """Nobody looks any more: all work ends."""
        with self._lock:
            self._closed = True
        self.latest.close()
        self.cancel()

    @property
    def busy(self) -> bool:
        """Whether any work is done for it."""
        return self.latest.busy or (self._job is not None and self._job.running)

    def _told(self, state: State, results: list[Any], warned: tuple[str, ...]) -> None:
        """On the thread of theory: have them shown."""
        self._hand(partial(self._show, state, results, warned))

    def _hand(self, shown: Callable[[], None]) -> None:
        """On any thread: have something shown, unless nobody looks any more, when there is nothing to show it on."""
        with self._lock:
            if not self._closed:
                self._later(shown)

    def _show(self, state: State, results: list[Any], warned: tuple[str, ...]) -> None:
        if self._closed:
            return
        if state != self._of:
            self._begin(state)
        self._notes += warned
        for result in results:
            self._keep(state, result)
        kinds = {type(result) for result in results}
        if kinds & {Moments, Growing, Refused}:
            self._draw()
        if Step in kinds:
            self.plots.show_steps(self._steps, self._colours)
        if Critical in kinds:
            self._draw_map()
        said = COMPUTING if state != self.state else self._coming() if results else ""  # of a newer state nothing yet
        self._status.object = readout.status(said)
        self._say()
        self._moved()

    def _keep(self, state: State, result: Any) -> None:
        match result:
            case Moments(placement, table):
                self._found[placement], self._drawn[placement] = result, lines(table)
                self._growing.pop(placement, None)
                self._before.discard(placement)
            case Growing(placement, drawn):
                self._growing[placement], self._drawn[placement] = result, drawn
                self._before.discard(placement)
            case Share(placement):
                self._shares[placement] = result
            case Step(placement):
                self._steps[placement] = result
            case Critical(placement, exponent):
                if exponent == state.exponent:
                    self._here[placement] = result
            case Refused(placement, what, why):
                self._refused[placement, what] = result
                if what == MOMENTS:
                    self._drawn.pop(placement, None)
                self._notes.append(f"{placement}, {what}: {why}")
            case error:
                self._notes.append(f"{type(error).__name__}: {error}")

    def _begin(self, state: State) -> None:
        """Results of another state begin to come; each curve stays, but faint, until it is replaced."""
        self._of = state
        self._colours = colours_of(list(state.placements))
        self._found, self._growing, self._before = {}, {}, set(self._drawn)
        self._shares, self._steps, self._refused, self._notes = {}, {}, {}, []
        self._address.value = state.query
        about = {name: interpolated(self._curves.map_of(state, name), state.exponent) for name in state.placements}
        self._here = {name: one for name, one in about.items() if one is not None}
        self.plots.show_steps({}, self._colours)
        self._draw_map()

    def _draw(self) -> None:
        assert self._of is not None
        self._drawn = {name: self._drawn[name] for name in self._of.placements if name in self._drawn}
        self.plots.show_theory(self._drawn, self._colours, self._of.distinct, self._before)
        self._draw_points()

    def _draw_points(self) -> None:
        if self._of is not None:
            seen = {name: points.measured for name, points in self._seen(self._of).items()}
            self.plots.show_points(seen, self._colours)

    def _draw_map(self) -> None:
        assert self._of is not None
        known = {name: self._curves.map_of(self._of, name) for name in self._of.placements}
        self.plots.show_map(known, self._colours, self._of.deepest)
        self.plots.show_here(self._here, self._of.exponent, self._colours, self._of.deepest)

    @property
    def _theory(self) -> dict[str, Any]:
        """The tables that there are."""
        return {name: found.table for name, found in self._found.items()}

    def _coming(self) -> str:
        """What is still to come, in words."""
        assert self._of is not None
        state = self._of
        map_of = [self._curves.map_of(state, name) for name in state.placements]
        return readout.coming(
            state, self._found, self._growing, self._shares, self._steps, self._here, self._refused, map_of
        )

    def _seen(self, state: State) -> dict[str, Points]:
        """What was simulated of the networks of a state."""
        found = {name: self._measured.get(_network(state, name)) for name in state.placements}
        return {name: points for name, points in found.items() if points is not None}

    def _heard(self, job: Job, told: Progress | Points | Ended) -> None:
        """Of a job."""
        if self._closed:
            return
        match told:
            case Progress(done, total):
                self._bar.active, self._bar.value = done == 0, round(100 * done / total)
                self._progress.object = f"{done} of {total} networks" if done else "starting processes"
            case Points(placement):
                self._measured[_network(job.state, placement)] = told
                self._draw_points()
            case Ended(how):
                self._run.disabled, self._cancel.disabled = False, True
                self._bar.active, self._bar.value, self._progress.object = False, 0, how
        self._say()
        self._moved()

    def _say(self) -> None:
        """The table, the messages and the texts."""
        state = self._of or self.state
        colours = colours_of(list(state.placements))
        self._table.object = readout.rows(
            state.placements, colours, self._theory, self._shares, self._steps, self._here, self._refused
        )
        for save in self._saves:
            save.disabled = all((name, MOMENTS) in self._refused for name in state.placements)
        verdicts = [f"{name}: {points.verdict}" for name, points in self._seen(state).items()]
        self._noted.object = readout.notes([*self._said, *filter(None, [self._refusal]), *self._notes, *verdicts])
        for name, text in (("code", code(state)), ("command line", commands(state))):
            if self._texts[name].value != text:
                self._texts[name].value = text
                self._listings[name].object = readout.listing(text)

    def _measured_tables(self) -> dict[str, Any]:
        return {name: points.measured for name, points in self._seen(self._of or self.state).items()}

    def _final(self) -> dict[str, Any]:
        """The tables to be kept: where first ones alone are shown, better ones are made before that."""
        state, tables = self._of or self.state, dict[str, Any]()
        for name in state.placements:
            found = self._found.get(name)
            if (name, MOMENTS) not in self._refused:
                tables[name] = (theory_of.moments(state, name) if found is None or found.quick else found).table
        return tables

    def _netcdf(self) -> io.BytesIO:
        return io.BytesIO(takeaway.netcdf(self._of or self.state, self._final(), self._measured_tables()))

    def _picture(self) -> io.BytesIO:
        return io.BytesIO(takeaway.picture(self._final(), self._measured_tables()))


def _network(state: State, placement: str) -> Any:
    return state.model(placement), state.start, state.draws
