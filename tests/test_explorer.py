"""The explorer without its page: one state makes an address, networks, code and commands; its curves are the verbs'."""

import dataclasses
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate import cli, cli_output
from propagate.explorer import curves, job, readout, takeaway
from propagate.explorer.curves import Curves, Moments, Plan, Refused
from propagate.explorer.growing import Growth
from propagate.explorer.latest import Latest
from propagate.explorer.state import ALIKE, MASKED, MIXED, State
from propagate.explorer.waits import Stopped, Waits, ending
from propagate.explorer.words import code, commands
from propagate.watching import watched

STATES = {
    "default": State(),
    "one of each": State(
        placements=("residual", "deepnorm"),
        depth=7,
        width=128,
        tokens=4,
        exponent=0.37,
        activation="swiglu",
        mask="window",
        logit_std=0.5,
        covariance=0.15,
        optimizer="muon",
        lr=0.02,
        distinct=0.01,
        gain=10.0,
        draws=16,
    ),
    "experts": State(
        placements=("prenorm",), depth=3, tokens=4, exponent=0.0, experts="8:2", mask="causal", optimizer="muon"
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_an_address_says_the_whole_state(name: str) -> None:
    state = STATES[name]
    assert State.of_query(state.query) == state == State.of_query("?" + state.query)
    for field in dataclasses.fields(State):  # no field is left out: dropping it gives the default
        kept = "&".join(part for part in state.query.split("&") if not part.startswith(f"{field.name}="))
        if field.name == "tokens" and state.most_tokens < State.tokens:
            with pytest.raises(pg.ModelError, match="tokens must be at most"):
                State.of_query(kept)
        else:
            assert getattr(State.of_query(kept), field.name) == field.default


BAD = {
    "depth=129": "depth must be at most 128",
    "depth=x": "depth must be a whole number, got 'x'",
    "tokens=32&mask=causal": "tokens must be at most 16 with a mask",
    "tokens=16&experts=8:2": "tokens must be at most 8 with experts",
    "exponent=nan": "exponent must be finite",
    "exponent=1.5": "exponent must be at most 1",
    "placements=prenorm,prenorm": "placements must be 1 to 4 different names",
    "placements=spanorm": "did you mean spannorm",
    "activation=relo": "did you mean relu",
    "lr=0": "lr must be positive",
    "width=100": "width must be one of 64, 128",
    "experts=2:1": "experts must be one of none, 4:1",
    "colour=red": "the address must say fields of placements",
}


@pytest.mark.parametrize("query", BAD)
def test_an_address_that_makes_no_sense_is_refused_by_name(query: str) -> None:
    with pytest.raises(pg.ModelError, match=BAD[query]):
        State.of_query(query)


@pytest.mark.parametrize("name", STATES)
def test_code_makes_the_networks_of_the_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as printed, but for verbs that note what they are given."""
    state, seen = STATES[name], dict[str, Any]()

    def noting(verb: str) -> Any:
        return lambda *args, **options: seen.setdefault(verb, []).append((args, options)) or xr.Dataset()

    for verb in ("predict", "simulate", "predict_step", "compare", "report", "plot"):
        monkeypatch.setattr(pg, verb, noting(verb), raising=False)
    exec(code(state), {})
    models = [state.model(placement) for placement in state.placements]
    assert [args for args, _ in seen["predict"]] == [(model, state.start) for model in models]
    assert seen["simulate"] == [((model, state.start), {"draws": state.draws}) for model in models]
    steps = [] if state.experts != "none" else [((model, state.rule, state.start), {}) for model in models]
    assert seen.get("predict_step", []) == steps


@pytest.mark.parametrize("name", STATES)
def test_command_lines_make_the_networks_of_the_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, seen = STATES[name], list[Any]()
    monkeypatch.setattr(pg, "simulate", lambda model, **options: seen.append((model, options)), raising=False)
    monkeypatch.setattr(cli_output, "show", lambda *_: None)
    monkeypatch.setattr(cli, "show", lambda *_: None)
    for line in commands(state, "simulate").splitlines():
        monkeypatch.setattr(sys, "argv", line.split())
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert [model for model, _ in seen] == [state.model(placement) for placement in state.placements]
    for _, options in seen:
        assert pg.Start(covariance=options["covariance"]) == state.start
        assert options["draws"] == state.draws


def test_curves_are_what_the_verbs_say() -> None:
    state = State(placements=("spannorm", "siamesenorm"), depth=5, optimizer="muon", lr=0.03)
    for name in state.placements:
        model = state.model(name)
        table = pg.predict(model, state.start)
        xr.testing.assert_equal(curves.moments(state, name).table, table)
        [*streams] = curves.lines(table)
        one = table.isel(stream=0) if "stream" in table.dims else table
        np.testing.assert_array_equal(streams[0].distinct, one.deviation / one.variance)
        asked = [pg.AttentionShare(above=0), pg.FirstStep(above=0)]
        found = pg.solve(model, "depth", asked, between=(5, 6), start=state.start, optimizer=state.rule, points=3)
        first = found.table.isel(depth=0)
        assert curves.share(state, name).value == float(first.attention_share)
        assert curves.step(state, name).moved == pytest.approx(float(first.first_step), rel=1e-12)
    step = pg.predict_step(state.model("spannorm"), state.rule, state.start)
    outputs = curves.step(state, "spannorm").outputs
    assert outputs["ffn_in"] == pytest.approx(float(step.own_change.sel(matrix="ffn_in").mean()) ** 0.5)
    assert outputs["ffn_out"] != pytest.approx(float(step.own_change.sel(matrix="ffn_in").mean()) ** 0.5)


@pytest.mark.parametrize("placement", ["postnorm", "spannorm"])
def test_critical_depths_are_the_first_that_miss_a_level(placement: str) -> None:
    """Beside a count, depth by depth, that shares nothing with the search; levels next to it give other depths."""
    state = State(distinct=0.1, gain=2.0, tokens=4)
    found = curves.critical(state, placement, exponent=0.0)
    tables = [pg.predict(state.model(placement, depth=depth, scaling=None), state.start) for depth in range(1, 20)]
    apart = [float(table.deviation[-1] / table.variance[-1]) for table in tables]
    gains = [abs(np.log(float(table.grad_variance[0]))) for table in tables]

    def first(level: float, factor: float) -> tuple[int, int]:
        collapse = next(depth for depth, value in enumerate(apart, 1) if value < level)
        return collapse, next(depth for depth, value in enumerate(gains, 1) if value > np.log(factor))

    assert (found.collapse, found.gradient) == first(0.1, 2.0)
    assert found.collapse != first(0.2, 2.0)[0]
    assert found.gradient != first(0.1, 1.5)[1]


@pytest.mark.parametrize("what", ["critical", "moments", "step"])
def test_what_nobody_waits_for_ends(what: str) -> None:
    """Between two blocks of a walk, and between two matrices of a step that is drawn; and it is not kept."""
    state, asked = State(placements=("spannorm",), depth=2, tokens=4, mask="causal", optimizer="adam"), list[bool]()
    calls = {
        "critical": lambda: curves.critical(state, "spannorm", 0.25),
        "moments": lambda: curves.moments(state, "spannorm"),
        "step": lambda: pg.predict_step(state.model("spannorm"), state.rule, state.start),
    }
    most = {"critical": 30, "moments": 4, "step": 8}[what]  # a walk of two blocks tells of six
    with watched(ending(lambda: len(asked) == most or asked.append(True) is not None)), pytest.raises(Stopped):
        calls[what]()
    assert len(asked) == most


def test_curves_that_grow_are_those_that_come() -> None:
    """What is told of while a walk is under way is in the table at its end, to rounding; what is not known is not."""
    state, told = State(placements=("siamesenorm",), depth=3, tokens=4, mask="causal"), list[Any]()
    growth = Growth("siamesenorm", 3, Waits(bool, bool, told.append), pause=0.0)
    with watched(growth):
        table = curves.moments(state, "siamesenorm", curves.point_of(state, "siamesenorm", curves.QUICK)).table
    assert [(one.direction, one.block) for one in told] == [
        *(("forward", block) for block in range(4)),
        *(("backward", block) for block in range(3, -1, -1)),
    ]
    final = curves.lines(table)
    for line, end in zip(told[-1].lines, final, strict=True):
        for name in ("variance", "grad_variance", "distinct"):
            np.testing.assert_allclose(getattr(line, name), getattr(end, name), rtol=1e-12)
        assert line.stream == end.stream
    half = told[2].lines[0]
    np.testing.assert_allclose(half.variance[:3], final[0].variance[:3], rtol=1e-12)
    assert np.isnan(half.variance[3])
    assert np.isnan(half.grad_variance).all()
    exact = curves.lines(curves.moments(state, "siamesenorm").table)[0]  # of more draws: other numbers
    assert not np.allclose(final[0].distinct, exact.distinct, rtol=1e-12)


def test_the_page_says_what_is_still_to_come() -> None:
    state = State(placements=("prenorm", "spannorm"), depth=2, tokens=4, mask="causal")
    plan = Curves().plan(state)
    first = plan.first[0]()
    said = readout.coming(state, {"prenorm": first}, {}, {}, {}, {}, {}, [[], []])
    assert said.startswith("still to come: curves of spannorm; curves of prenorm from more draws (now within 0.")
    assert said.endswith("; attention's share; first step; critical depths")
    final = curves.moments(state, "prenorm")
    both = {"prenorm": final, "spannorm": dataclasses.replace(final, placement="spannorm")}
    shares, steps = (dict.fromkeys(state.placements) for _ in range(2))
    here = curves.Critical("prenorm", 0.25, 1, 1, 64)
    known = [[dataclasses.replace(here, exponent=exponent) for exponent in curves.GRID]] * 2
    rest: Any = (shares, steps, dict.fromkeys(state.placements, here), {}, known)
    assert readout.coming(state, both, {}, *rest) == ""
    assert readout.coming(state, {"prenorm": final}, {}, *rest) == "still to come: curves of spannorm"


def test_what_the_theory_refuses_is_told_and_the_rest_goes_on() -> None:
    state = State(placements=("prenorm",), depth=1, tokens=2, experts="4:1", optimizer="muon")
    plan = Curves().plan(state)
    found = [call() for call in (*plan.first, *plan.then[:2])]
    assert [type(one).__name__ for one in found] == ["Moments", "Share", "Refused"]
    assert "with Muon does not cover experts" in found[2].why
    text = readout.rows(["prenorm"], {}, {}, {}, {}, {}, {("prenorm", "first step"): found[2]})
    assert text.count("<td>–</td>") == 1


def test_what_is_slow_is_shown_quickly_first_and_better_later() -> None:
    """With a mask few samples come first and more later; where tokens are alike all comes at once."""
    plan = Curves().plan(State(placements=("spannorm",), depth=2, mask="causal", tokens=4))
    first, later = plan.first[0](), [one for call in plan.then[:2] if isinstance(one := call(), Moments)]
    assert isinstance(first, Moments)
    assert [first.quick, *(one.quick for one in later)] == [True, False]
    assert float(first.table.deviation_se[-1]) > float(later[0].table.deviation_se[-1])
    assert State().alike
    assert [(State.clamped(**kind).deepest, State.clamped(**kind).tokens) for kind in ({"mask": "causal"}, {})] == [
        (MASKED[0], 16),
        (ALIKE[0], 32),
    ]
    assert State.clamped(experts="8:2", depth=128).depth == MIXED[0]


class Recorded:
    """What a page would be told, and a plan of calls that say their names."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.told, self.seconds, self.ended = list[Any](), seconds, threading.Event()

    def plan(self, wish: int, waits: Any) -> Plan:
        def call(name: str) -> str:
            time.sleep(self.seconds)
            return f"{wish}{name}"

        return Plan([lambda: call("a"), lambda: call("b")], [lambda: call("c"), lambda: call("d")])

    def deliver(self, wish: int, results: list[Any], warned: tuple[str, ...]) -> None:
        self.told += results
        if not results:
            self.ended.set()


def test_only_the_newest_wish_is_computed() -> None:
    page, gate = Recorded(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate.wait)
        latest: Latest[int] = Latest(pool, page.plan, page.deliver)
        for wish in range(100):
            latest.ask(wish)
        gate.set()
        assert page.ended.wait(10)
    assert page.told == ["99a", "99b", "99c", "99d"]
    assert not latest.busy


def test_what_is_shown_first_is_finished_even_while_a_slider_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propagate.explorer.latest.PATIENCE", 60.0)
    page = Recorded()
    with ThreadPoolExecutor(1) as pool:
        latest: Latest[int] = Latest(pool, page.plan, lambda *told: (page.deliver(*told), moved(latest)))

        def moved(latest: Latest[int]) -> None:
            if len(page.told) == 1:
                latest.ask(2)

        monkeypatch.setattr("propagate.explorer.latest.SLICE", 0.0)
        latest.ask(1)
        assert page.ended.wait(10)
    assert page.told == ["1a", "1b", "2a", "2b", "2c", "2d"]


def test_a_closed_page_is_told_nothing_more() -> None:
    page, gate = Recorded(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate.wait)
        latest: Latest[int] = Latest(pool, page.plan, page.deliver)
        latest.ask(1)
        latest.close()
        latest.ask(2)
        gate.set()
    assert page.told == []
    assert not latest.busy


def test_a_failing_call_is_told_and_the_next_is_made() -> None:
    page = Recorded()
    with ThreadPoolExecutor(1) as pool:
        latest: Latest[int] = Latest(pool, lambda *_: Plan([lambda: 1 // 0], [lambda: "after"]), page.deliver)
        latest.ask(1)
        assert page.ended.wait(10)
    assert isinstance(page.told[0], ZeroDivisionError)
    assert page.told[1] == "after"


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """Threads in place of a job's processes."""
    from contextlib import nullcontext

    from propagate.montecarlo import workers

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(workers, "process_pool", lambda _: nullcontext(pool))
        monkeypatch.setattr(workers, "ended_at_once", lambda _: nullcontext())
        yield pool


SMALL = State(placements=("spannorm", "prenorm"), depth=2, width=64, tokens=4, draws=16)


def test_a_job_tells_its_progress_and_gives_what_simulate_gives(threads: ThreadPoolExecutor) -> None:
    told = list[Any]()
    one = job.Job(SMALL, told.append)
    one.start()
    assert one.wait(60)
    counts = [item.done for item in told if isinstance(item, job.Progress)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 32)
    points = [item for item in told if isinstance(item, job.Points)]
    assert [item.placement for item in points] == ["spannorm", "prenorm"]
    assert told[-1] == job.Ended("done")
    direct = pg.simulate(SMALL.model("prenorm"), SMALL.start, draws=16, progress=False)
    xr.testing.assert_equal(points[1].measured, direct)
    assert "Theory and simulation agree" in points[1].verdict or "cannot tell" in points[1].verdict


def test_a_cancelled_job_ends_without_its_work(threads: ThreadPoolExecutor) -> None:
    told, gate = list[Any](), threading.Event()
    threads.submit(gate.wait)  # the worker is taken: the job waits for its first answer
    one = job.Job(SMALL, told.append)
    one.start()
    time.sleep(0.05)
    one.cancel()
    assert one.wait(10)
    assert told[-1] == job.Ended("cancelled")
    assert not any(isinstance(item, job.Points) for item in told)
    gate.set()


def test_what_goes_wrong_in_a_job_is_told(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Future[Any]:
        raise pg.ModelError("no such luck")

    monkeypatch.setattr(pg, "simulate", broken, raising=False)
    told = list[Any]()
    one = job.Job(SMALL, told.append)
    one.start()
    assert one.wait(10)
    assert told[-1] == job.Ended("no such luck")


def test_the_file_holds_what_is_shown(tmp_path: Any) -> None:
    state = dataclasses.replace(SMALL, placements=("prenorm", "residual"))
    theory = {name: pg.predict(state.model(name), state.start) for name in state.placements}
    seen = pg.simulate(state.model("residual"), state.start, draws=4, progress=False)
    path = tmp_path / "explorer.nc"
    path.write_bytes(takeaway.netcdf(state, theory, {"residual": seen}))
    table = xr.load_dataset(path)
    assert State.of_query(table.attrs["state"]) == state
    assert table.attrs["code"] == code(state)
    np.testing.assert_array_equal(table.variance.sel(line="prenorm"), theory["prenorm"].variance)
    np.testing.assert_array_equal(table.grad_deviation.sel(line="residual 2"), theory["residual"].grad_deviation[:, 1])
    np.testing.assert_array_equal(table.measured_variance_se.sel(line="residual 1"), seen.variance_se[:, 0])
    assert np.isnan(table.measured_variance.sel(line="prenorm")).all()


def test_nothing_from_outside_is_markup() -> None:
    bad = "<img src=x onerror=alert(1)>"
    with pytest.raises(pg.ModelError) as refused:
        State.of_query(f"placements={bad}")
    why = Refused(bad, "moments", bad)
    for text in (
        readout.notes([str(refused.value)]),
        readout.listing(bad),
        readout.rows([bad], {}, {}, {}, {}, {}, {(bad, "moments"): why}),
    ):
        assert "<img" not in text
        assert "&lt;img" in text
