"""Who is answered: this machine's own browser, from the explorer's own page, and nobody else.

A page of another site can make a browser send requests to 127.0.0.1, and by pointing a name of its own there
("DNS rebinding") make them look as if they came from the same origin. Such a request names the wrong host, or another
origin, or says that it comes from another site (Fetch Metadata, https://www.w3.org/TR/fetch-metadata/); whichever it
is, it is refused before any application sees it, web sockets included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN_SITE = ("", "none", "same-origin")
"""What `Sec-Fetch-Site` says of a request of the page itself, of an address that was typed, or of no browser."""


def own_hosts(port: int) -> tuple[str, str]:
    """The hosts under which the explorer is answered.

    Example:
        >>> own_hosts(5006)
        ('127.0.0.1:5006', 'localhost:5006')
    """
    return f"127.0.0.1:{port}", f"localhost:{port}"


def is_stranger(headers: Mapping[str, str], port: int) -> bool:
    """Whether a request is refused, by its headers.

    Example:
        >>> is_stranger({"Host": "127.0.0.1:5006"}, 5006)
        False
        >>> is_stranger({"Host": "evil.example:5006"}, 5006)
        True
        >>> is_stranger({"Host": "127.0.0.1:5006", "Origin": "http://127.0.0.1:8888"}, 5006)
        True
    """
    host, origin = headers.get("Host", ""), headers.get("Origin")
    if host not in own_hosts(port) or (origin is not None and origin != f"http://{host}"):
        return True
    return headers.get("Sec-Fetch-Site", "") not in OWN_SITE


def refuse_strangers(application: Any, port: int) -> None:
    """Put the refusal before all rules of a Tornado application."""
    from tornado.routing import Matcher, Rule
    from tornado.web import RequestHandler

    class Strangers(Matcher):  # type: ignore[misc]
        def match(self, request: Any) -> dict[str, Any] | None:
            return {} if is_stranger(request.headers, port) else None

    class Refusal(RequestHandler):  # type: ignore[misc]
        def prepare(self) -> None:
            self.set_status(403)
            self.set_header("Content-Type", "text/plain")
            self.finish("propagate explore answers its own page alone: paste its address into the browser's bar.\n")

    application.default_router.rules.insert(0, Rule(Strangers(), Refusal))
