"""The explorer in a notebook's cell."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from propagate.explorer.server import panel
from propagate.explorer.state import State


def explore(**fields: Any) -> Any:
    """The explorer as a widget: sliders on a network's description, and its theory drawn as they move.

    `propagate explore` is the same in a browser of its own. It needs Panel: `pip install 'propagate[explore]'`.

    Args:
        fields: of what is chosen at first: `placements` (a tuple of up to four names), `depth`, `width`, `tokens`,
            `exponent` (of ScaleInit), `activation`, `mask` ("none", "causal", "window"), `logit_std`, `experts`
            ("none" or such as "8:2"), `covariance`, `optimizer`, `lr`, `distinct`, `gain`, `draws`; see
            `propagate.explorer.state.State`.

    Returns:
        A Panel layout, which a notebook shows where it is the value of a cell.

    Raises:
        ModelError: without Panel, or for a field that is none or a value that it cannot have.

    Example:
        >>> explore(depth=0)
        Traceback (most recent call last):
        propagate.checks.ModelError: depth must be at least 1, got 0
    """
    try:
        state = State(**fields)
    except TypeError as error:
        from propagate.checks import ModelError

        raise ModelError(str(error).removeprefix("State.__init__() ")) from None
    pn = panel()
    from propagate.explorer.page import Page

    pn.extension()
    pool, loop = ThreadPoolExecutor(1, "theory"), _loop()
    panes: list[Any] = []
    page = Page(state, pool, loop.call_soon_threadsafe, moved=lambda: pn.io.push_notebook(*panes))
    view = page.view()
    panes += view.select(pn.pane.Bokeh)
    return view


def _loop() -> asyncio.AbstractEventLoop:
    """The loop of the notebook's kernel; outside of one, a loop that nobody runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.new_event_loop()
