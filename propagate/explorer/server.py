"""The explorer as a server for this machine alone."""

from __future__ import annotations

import socket
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

from propagate.checks import ModelError
from propagate.explorer.state import State
from propagate.explorer.strangers import own_hosts, refuse_strangers

HOST = "127.0.0.1"
STYLES = "static/extensions/panel/"
UNUSED = 1000  # milliseconds after which the session of a closed tab ends
TEMPLATE = """\
{% extends base %}
{% block postamble %}<meta name="viewport" content="width=device-width, initial-scale=1">{% endblock %}
"""


class Explorer:
    """A server that is ready to start.

    Args:
        state: that an address without one shows.
        port: to listen on; 0 is any that is free.

    Attributes:
        port: that it listens on.
        pages: of tabs that are open.

    Raises:
        ModelError: without Panel, or for a port that is taken.
    """

    def __init__(self, state: State, port: int = 0) -> None:
        pn = panel()
        self._first = state
        self.pages: weakref.WeakSet[Any] = weakref.WeakSet()
        self._pool = ThreadPoolExecutor(1, "theory")
        pn.extension(loading_indicator=False, notifications=False)
        self.port = port or free_port()
        try:
            self._server = pn.io.server.get_server(
                {"/": self._page},
                port=self.port,
                address=HOST,
                websocket_origin=list(own_hosts(self.port)),
                title="propagate explore",
                location=False,
                show=False,
                start=False,
                verbose=False,
                check_unused_sessions_milliseconds=UNUSED // 2,
                unused_session_lifetime_milliseconds=UNUSED,
            )
        except OSError as error:
            raise ModelError(f"port must be one that is free, got {self.port}: {error.strerror or error}") from None
        refuse_strangers(self._server._tornado, self.port)

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}/"

    def run(self) -> None:
        """Answer until interrupted; then all work ends."""
        try:
            self._server.start()
            self._server.io_loop.start()
        finally:
            self.close()

    def stop(self) -> None:
        """From another thread: `run` returns."""
        self._server.io_loop.add_callback(self._server.io_loop.stop)

    def close(self) -> None:
        """End all work and answer no more."""
        for page in list(self.pages):
            page.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._server.stop(wait=False)

    def _page(self) -> Any:
        """A tab's page, from the state that its address says."""
        import panel as pn

        from propagate.explorer.page import Page

        doc, state, said = pn.state.curdoc, self._first, ""
        doc.template_variables["dist_url"] = STYLES  # else style sheets are asked of a server elsewhere
        asked = [(name, value.decode(errors="replace")) for name, values in _arguments(pn) for value in values]
        if asked:
            try:
                state = State.of_query(urlencode(asked))
            except ModelError as error:
                said = str(error)
        page = Page(state, self._pool, doc.add_next_tick_callback, address=True, said=said)
        self.pages.add(page)
        doc.on_session_destroyed(lambda _: self._gone(page))
        template = pn.Template(TEMPLATE)
        template.add_panel("explorer", page.view())
        return template

    def _gone(self, page: Any) -> None:
        page.close()
        self.pages.discard(page)


def _arguments(pn: Any) -> list[tuple[str, list[bytes]]]:
    return [(name, values) for name, values in pn.state.session_args.items() if not name.startswith("bokeh-")]


def panel() -> Any:
    """Panel, if it is there.

    Raises:
        ModelError: says what to install.
    """
    try:
        import panel as pn
    except ModuleNotFoundError as error:
        raise ModelError(f"the explorer needs {error.name}: pip install 'propagate[explore]'") from None
    return pn


def free_port() -> int:
    """A port of this machine that nobody listens on.

    Example:
        >>> 1024 < free_port() < 65536
        True
    """
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
