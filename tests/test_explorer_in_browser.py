"""The explorer in a browser: it loads, follows its sliders, simulates, and a closed tab leaves no work behind.

Needs the extra [explore], Playwright and a Chromium that is installed (Debian's `chromium`); skipped elsewhere.
"""

import asyncio
import http.client
import io
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr

import propagate as pg
from propagate.explorer.state import State

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")]
pytest.importorskip("panel", reason="Panel is absent: install the extra [explore]")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is absent")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

WAIT = 120_000  # milliseconds, on a machine that does other things too
SMALL = State(placements=("postnorm", "spannorm"), depth=6, width=64, tokens=4, draws=16)
SOURCES = """
name => {
  const found = [];
  for (const model of Bokeh.documents[0]._all_models.values())
    if (model.type == "Figure" && model.title.text.startsWith(name))
      for (const one of model.renderers) found.push(Object.fromEntries(
        [...Object.entries(one.data_source.data)].map(([k, v]) => [k, [...v].map(x => x && x.length !== undefined
          && typeof x != "string" ? [...x] : x)])));
  return found;
}
"""
SET = """
([label, value]) => {
  for (const model of Bokeh.documents[0]._all_models.values())
    if (model.title == label) { model.value = value; return true; }
  return false;
}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """The explorer on a thread of its own."""
    made, ready = list[Any](), threading.Event()

    def run() -> None:
        from propagate.explorer.server import Explorer

        asyncio.set_event_loop(asyncio.new_event_loop())
        made.append(Explorer(SMALL))
        ready.set()
        made[0].run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(120)
    yield made[0]
    made[0].stop()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        one = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture
def tab(server: Any, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens tabs; at the end nothing went wrong in any of them, and none asked anybody else for anything."""
    wrong, contexts = list[str](), list[Any]()

    def opened(query: str = "", width: int = 1280) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, accept_downloads=True)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.address)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: None if own(asked.url) else wrong.append(asked.url))
        page.goto(server.address + query, timeout=WAIT)
        page.wait_for_selector(".readout")
        return page

    def own(address: str) -> bool:
        return address.startswith((server.address, "blob:" + server.address, "data:"))

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def until(true: Callable[[], Any], seconds: float = WAIT / 1000) -> Any:
    """What it says, once that is something."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return found


def curves_of(page: Any, panel: str) -> list[list[float]]:
    """The lines of a panel, in the browser."""
    return page.evaluate(SOURCES, panel)[0]["ys"]


def drawn(page: Any, state: State) -> bool:
    """Whether the browser shows the theory of a state."""
    tables = [pg.predict(state.model(name), state.start) for name in state.placements]
    seen = curves_of(page, "variance of the gradient")
    return len(seen) == len(tables) and all(
        len(ys) == table.sizes["block"] and np.allclose(ys, table.grad_variance, rtol=1e-12)
        for ys, table in zip(seen, tables, strict=True)
    )


def address(page: Any) -> State:
    """The state that the browser's address says; asked of the page, for Playwright's own `url` may lag."""
    return State.of_query(page.evaluate("window.location.search"))


def choose(page: Any, label: str, value: Any) -> None:
    assert page.evaluate(SET, [label, value])


def test_it_loads_and_shows_the_theory(tab: Callable[..., Any]) -> None:
    page = tab()
    until(lambda: drawn(page, SMALL))
    text = until(lambda: "…" not in (said := page.inner_text(".readout")) and said)
    assert "spannorm" in text
    map_of = until(lambda: (found := page.evaluate(SOURCES, "critical depth")[0]["xs"]) and len(found[0]) > 3 and found)
    assert map_of[0] == sorted(map_of[0])


def test_a_slider_moves_the_curves_and_the_address(tab: Callable[..., Any]) -> None:
    """Dragged by the mouse; the address then opens the same state in another tab."""
    page = tab()
    until(lambda: drawn(page, SMALL))
    handle = page.locator(".bk-Slider", has_text="ScaleInit").locator(".noUi-handle").first
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 11):
        page.mouse.move(x + 8 * step, y)
    page.mouse.up()
    moved = until(lambda: (state := address(page)).exponent > SMALL.exponent + 0.1 and drawn(page, state) and state)
    assert moved.exponent > SMALL.exponent + 0.1
    assert not drawn(page, SMALL)
    other = tab("?" + moved.query)
    until(lambda: drawn(other, moved))


def test_every_choice_reaches_the_theory(tab: Callable[..., Any]) -> None:
    page, fields = tab(), {"depth": 9, "logit_std": 0.5, "covariance": 0.6}
    until(lambda: drawn(page, SMALL))
    for label, value in (("Depth", 9), ("Logits' standard deviation", 0.5), ("Covariance at the start", 0.6)):
        choose(page, label, value)
    choose(page, "Activation", "swiglu")
    state = State(**{**SMALL.__dict__, **fields, "activation": "swiglu"})
    until(lambda: drawn(page, state))
    until(lambda: address(page) == state)
    page.get_by_text("causal", exact=True).click()
    until(lambda: address(page).mask == "causal")


def test_two_tabs_do_not_meet(tab: Callable[..., Any], server: Any) -> None:
    one, two = tab(), tab("?placements=prenorm&depth=3")
    second = State(placements=("prenorm",), depth=3)
    until(lambda: drawn(one, SMALL) and drawn(two, second))
    choose(one, "Depth", 8)
    until(lambda: drawn(one, State(**{**SMALL.__dict__, "depth": 8})))
    assert drawn(two, second)
    assert len({id(page) for page in server.pages if not page._closed}) >= 2


def test_a_bad_address_is_told_in_words(tab: Callable[..., Any]) -> None:
    page = tab("?placements=<img%20src=x%20onerror=document.title=1>&depth=3")
    assert "placement" in until(lambda: page.inner_text(".notes"))
    assert "<img" in page.inner_text(".notes")
    assert page.locator("img[src=x]").count() == 0
    until(lambda: drawn(page, SMALL))


def test_simulation_brings_points_with_bars(tab: Callable[..., Any]) -> None:
    page = tab()
    until(lambda: drawn(page, SMALL))
    page.get_by_role("button", name="Simulate").click()
    points = until(lambda: len((found := page.evaluate(SOURCES, "variance of the gradient")[1])["y"]) == 14 and found)
    low, mean, high = (np.array(points[name]) for name in ("low", "y", "high"))
    assert np.all((low <= mean) & (mean <= high))
    inner = np.array(points["x"]) < SMALL.depth  # at the last block every network has the same cotangent
    assert np.all(low[inner] < high[inner])
    seen = pg.simulate(SMALL.model("postnorm"), SMALL.start, draws=16, progress=False)
    np.testing.assert_allclose(mean[:7], np.exp(seen.log_grad_variance), rtol=1e-9)
    until(lambda: "16 draws" in page.inner_text(".notes"))
    with page.expect_download() as saved:
        page.get_by_text("Save netCDF").click()
    table = xr.load_dataset(io.BytesIO(saved.value.path().read_bytes()))
    assert State.of_query(table.attrs["state"]) == SMALL
    np.testing.assert_array_equal(table.measured_grad_variance.sel(line="postnorm"), seen.grad_variance)
    with page.expect_download() as saved:
        page.get_by_text("Save figure").click()
    assert saved.value.path().read_bytes()[1:4] == b"PNG"


def test_code_and_command_line_are_copied(tab: Callable[..., Any]) -> None:
    from propagate.explorer.words import code, commands

    page = tab()
    for button, text in (("Copy code", code(SMALL)), ("Copy command line", commands(SMALL))):
        page.get_by_role("button", name=button).click()
        until(lambda text=text: page.evaluate("navigator.clipboard.readText()") == text)


LARGE = State(placements=("spannorm",), depth=128, width=1024, tokens=64, draws=256)


def processes() -> int:
    return len(multiprocessing.active_children())


def test_cancel_ends_a_simulation_at_once(tab: Callable[..., Any], server: Any) -> None:
    page = tab("?" + LARGE.query)
    page.get_by_role("button", name="Simulate").click()
    until(lambda: processes() > 0)
    page.get_by_role("button", name="Cancel").click()
    until(lambda: processes() == 0, 20)
    until(lambda: page.get_by_text("cancelled").count() == 1)
    assert page.get_by_role("button", name="Simulate").is_enabled()


def test_a_closed_tab_frees_its_work(tab: Callable[..., Any], server: Any) -> None:
    """Processes, theory and the session itself; an open tab keeps its own."""
    kept = tab()
    until(lambda: drawn(kept, SMALL))
    until(lambda: len(server.pages) == 1, 60)
    page = tab("?" + LARGE.query)
    page.get_by_role("button", name="Simulate").click()
    until(lambda: processes() > 0)
    gone = next(one for one in server.pages if one.state == LARGE)
    assert gone.busy
    page.close()
    until(lambda: not gone.busy and processes() == 0, 30)
    assert [one.state for one in server.pages] == [SMALL]
    choose(kept, "Depth", 5)
    until(lambda: drawn(kept, State(**{**SMALL.__dict__, "depth": 5})))


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(tab: Callable[..., Any], width: int) -> None:
    page = tab(width=width)
    until(lambda: drawn(page, SMALL))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [one.bounding_box() for one in page.locator(".bk-Figure").all()]
    assert len(boxes) == 5
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width + 1 for box in boxes)
    sides = {round(box["x"]) for box in boxes}
    assert (len(sides) == 1) == (width == 360)


def test_no_request_from_elsewhere_is_answered(server: Any) -> None:
    """Pages, scripts and web sockets; each of the same requests by the page itself is answered."""
    own = f"127.0.0.1:{server.port}"
    socket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    socket |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    before = len(server.pages)
    for path, more, answer in (("/", {}, 200), ("/static/js/bokeh.min.js", {}, 200), ("/ws", socket, 403)):
        for strange in ({"Host": f"evil.example:{server.port}"}, {"Origin": "http://evil.example"}):
            assert status(server.port, path, {"Host": own, **more, **strange}) == 403
        assert status(server.port, path, {"Host": own, **more, "Sec-Fetch-Site": "cross-site"}) == 403
        if answer == 200:
            assert status(server.port, path, {"Host": own, **more, "Origin": f"http://{own}"}) == 200
    assert len(server.pages) <= before + 1  # the one that was answered


def status(port: int, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse().status
