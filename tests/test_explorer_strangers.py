"""Requests from other origins are answered by no page."""

import threading
import urllib.error
import urllib.request
from typing import Any

import pytest

from propagate.explorer.strangers import is_stranger, own_hosts, refuse_strangers

PORT = 5006
OWN, EVIL = own_hosts(PORT), "evil.example:5006"
ANSWERED = {
    "typed": {"Host": OWN[0], "Sec-Fetch-Site": "none"},
    "no browser": {"Host": OWN[1]},
    "own page": {"Host": OWN[0], "Origin": f"http://{OWN[0]}", "Sec-Fetch-Site": "same-origin"},
}
REFUSED = {
    "another name that leads here": {"Host": EVIL},
    "the same, and its own origin": {"Host": EVIL, "Origin": f"http://{EVIL}", "Sec-Fetch-Site": "same-origin"},
    "another site's script": {"Host": OWN[0], "Origin": "https://evil.example"},
    "another port of this machine": {"Host": OWN[0], "Origin": "http://127.0.0.1:8888"},
    "its other name": {"Host": OWN[0], "Origin": f"http://{OWN[1]}"},
    "a file": {"Host": OWN[0], "Origin": "null"},
    "another site's picture or link": {"Host": OWN[0], "Sec-Fetch-Site": "cross-site"},
    "another port's picture": {"Host": OWN[0], "Sec-Fetch-Site": "same-site"},
    "no host": {},
    "another port": {"Host": "127.0.0.1:80"},
}


def test_strangers_are_told_by_their_headers() -> None:
    assert [name for name, headers in ANSWERED.items() if is_stranger(headers, PORT)] == []
    assert [name for name, headers in REFUSED.items() if not is_stranger(headers, PORT)] == []


def test_a_server_answers_its_own_page_alone() -> None:
    """Any path, before the application sees it; without the rule the same requests are answered."""
    pytest.importorskip("tornado", reason="tornado is absent: install the extra [explore]")
    for guarded in (True, False):
        with served(guarded) as (port, seen):
            for headers in REFUSED.values():
                if not headers:
                    continue
                moved = {name: value.replace(str(PORT), str(port)) for name, value in headers.items()}
                assert status(port, moved) == (403 if guarded else 200)
            assert len(seen) == (0 if guarded else len(REFUSED) - 1)
            assert status(port, {}) == 200


class served:
    """A Tornado application of one handler that answers everything, on a thread."""

    def __init__(self, guarded: bool) -> None:
        self.guarded, self.seen, self.ready = guarded, list[str](), threading.Event()

    def __enter__(self) -> tuple[int, list[str]]:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.ready.wait(10)
        return self.port, self.seen

    def __exit__(self, *_: Any) -> None:
        self.loop.add_callback(self.loop.stop)
        self.thread.join(10)

    def _run(self) -> None:
        import asyncio

        from tornado.httpserver import HTTPServer
        from tornado.ioloop import IOLoop
        from tornado.netutil import bind_sockets
        from tornado.web import Application, RequestHandler

        asyncio.set_event_loop(asyncio.new_event_loop())
        seen = self.seen

        class All(RequestHandler):
            def get(self) -> None:
                seen.append(self.request.uri)

        application = Application([(".*", All)])
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        if self.guarded:
            refuse_strangers(application, self.port)
        server = HTTPServer(application)
        server.add_sockets(sockets)
        self.loop = IOLoop.current()
        self.ready.set()
        self.loop.start()
        server.stop()


def status(port: int, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/any/path", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
