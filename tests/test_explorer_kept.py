"""What an explorer's page keeps between two states is what it would find anew, and nothing outlives its bound."""

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.explorer import curves
from propagate.explorer.curves import Critical, Curves, Moments, Refused, Share, Step
from propagate.explorer.kept import Kept
from propagate.explorer.state import State
from propagate.explorer.waits import Stopped

SMALL = State(placements=("prenorm",), depth=3, width=64, tokens=2, exponent=0.0, logit_std=0.0, distinct=0.5, gain=2.0)
OTHER: dict[str, Any] = {
    "placements": ("postnorm", "prenorm"),
    "depth": 4,
    "width": 128,
    "tokens": 4,
    "exponent": 0.5,
    "activation": "tanh",
    "mask": "causal",
    "logit_std": 1.0,
    "experts": "4:1",
    "covariance": 0.6,
    "optimizer": "muon",
    "lr": 0.02,
    "distinct": 0.1,
    "gain": 10.0,
    "draws": 16,
}
LEVELS = ("distinct", "gain")  # which critical depths alone depend on


def shown(kept: Curves, state: State, *, critical: bool = False) -> list[Any]:
    """What a page draws at once; and, if asked for, the critical depths at the exponent chosen."""
    plan = kept.plan(state)
    here = plan.then[: len(state.placements)] if critical else []
    return [plain(call()) for call in (*plan.first, *here)]


def plain(result: Any) -> Any:
    """Comparable, of a table the bytes."""
    if not isinstance(result, Moments):
        return result
    return result.placement, result.quick, {str(k): v.to_numpy().tobytes() for k, v in result.table.data_vars.items()}


@pytest.mark.parametrize("field", OTHER)
def test_a_field_changed_shows_what_a_new_page_shows(field: str) -> None:
    """And back again; a page that knew nothing before says the same, bit by bit."""
    changed, page, critical = dataclasses.replace(SMALL, **{field: OTHER[field]}), Curves(), field in LEVELS
    before = shown(page, SMALL, critical=critical)
    assert shown(page, changed, critical=critical) == shown(Curves(), changed, critical=critical)
    assert shown(page, SMALL, critical=critical) == before


@pytest.mark.parametrize("field", ["depth", "activation", "covariance", "optimizer", "gain"])
def test_a_field_that_is_forgotten_is_noticed(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    for what, fields in curves.DEPENDS.items():
        monkeypatch.setitem(curves.DEPENDS, what, tuple(name for name in fields if name != field))
    changed, page = dataclasses.replace(SMALL, **{field: OTHER[field]}), Curves()
    shown(page, SMALL, critical=field in LEVELS)
    assert shown(page, changed, critical=field in LEVELS) != shown(Curves(), changed, critical=field in LEVELS)


def test_what_is_kept_is_what_the_verbs_say() -> None:
    page = Curves()
    for exponent in (0.25, 0.5, 0.25):
        for lr in (1e-3, 1e-2):
            state = dataclasses.replace(SMALL, exponent=exponent, lr=lr)
            for call in page.plan(state).first:
                found = call()
                model = state.model(found.placement)
                if isinstance(found, Moments):
                    assert found.table.equals(pg.predict(model, state.start))
                elif isinstance(found, Step):
                    said = pg.predict_step(model, pg.SGD(lr=lr), state.start).own_change.sel(matrix="value")
                    np.testing.assert_allclose(found.outputs["value"], float(said.mean()) ** 0.5, rtol=1e-12)
                else:
                    assert isinstance(found, Share)


def test_a_rate_a_level_and_what_is_drawn_cost_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Curves()
    shown(page, SMALL)
    for verb in ("predict", "predict_step"):
        monkeypatch.setattr(pg, verb, None)
    for field in ("lr", "draws"):
        shown(page, dataclasses.replace(SMALL, **{field: OTHER[field]}))
    found = [call() for call in page.plan(dataclasses.replace(SMALL, gain=10.0)).first]
    assert not any(isinstance(one, Refused) for one in found)
    with pytest.raises(TypeError):
        shown(page, dataclasses.replace(SMALL, depth=4))


def test_the_map_is_of_the_state_that_is_shown() -> None:
    page = Curves()
    shown(page, SMALL, critical=True)
    [known] = page.map_of(SMALL, "prenorm")
    assert isinstance(known, Critical)
    assert page.map_of(dataclasses.replace(SMALL, lr=0.5, depth=9), "prenorm") == [known]
    assert page.map_of(dataclasses.replace(SMALL, gain=10.0), "prenorm") == []


def test_warnings_come_back_with_what_they_were_of() -> None:
    kept = Kept[int](most=2)

    def made() -> int:
        warnings.warn("beware", UserWarning, stacklevel=1)
        return 7

    for _ in range(2):
        with pytest.warns(UserWarning, match="beware") as caught:
            assert kept.made("a", made) == 7
        assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.made("b", lambda: 8)


def test_what_fails_is_not_kept() -> None:
    kept = Kept[int](most=2)
    with pytest.raises(Stopped):
        kept.made("a", lambda: (_ for _ in ()).throw(Stopped))
    assert kept.made("a", lambda: 1) == 1
    assert [kept.made(n, lambda n=n: n) for n in range(3)] == [0, 1, 2]
    assert kept.known("a") is None


@pytest.mark.slow
def test_a_moved_slider_makes_no_new_models_in_the_browser() -> None:
    """Bokeh looks through the whole page for each."""
    pytest.importorskip("panel", reason="Panel is absent: install the extra [explore]")
    from bokeh.document import Document

    from propagate.explorer.page import Page

    class Nobody:
        def submit(self, *_: Any) -> None: ...

    page = Page(SMALL, Nobody(), lambda show: show())  # type: ignore[arg-type]
    document = page.view().server_doc(Document())

    def models_after(**fields: Any) -> set[Any]:
        state = dataclasses.replace(SMALL, **fields)
        page._show(state, [call() for call in page._curves.plan(state).first], ())
        return set(document.models)

    before = models_after()
    axis = page.plots.figures["variance"].yaxis[0]
    drawn = list(axis.ticker.ticks)
    assert models_after(exponent=0.9, covariance=0.9, placements=("spannorm",), activation="tanh", depth=9) == before
    assert drawn
    assert axis.ticker.ticks != drawn
    document.add_root(page.plots.figures["variance"].__class__())  # the same count sees a model that is new
    assert set(document.models) != before
