"""What is answered over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from wsgiref.types import WSGIEnvironment

from relay.core.frozen import frozen

#: WSGI's environment and its way to begin a response (PEP 3333).
Environ = WSGIEnvironment
StartResponse = Callable[[str, list[tuple[str, str]]], object]

#: Nothing that is answered here may be kept by a cache, or be of use in another page.
NOT_KEPT: Final = (
    ("Cache-Control", "no-store, no-cache, must-revalidate, private, max-age=0"),
    ("Pragma", "no-cache"),
    ("Expires", "0"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Robots-Tag", "noindex, nofollow"),
)


@frozen
class Response:
    """One response. `route`: a word of ours, for metrics."""

    route: str
    status: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = NOT_KEPT

    def fields(self) -> list[tuple[str, str]]:
        """All fields of its header but Date."""
        return [*self.headers, ("Content-Length", str(len(self.body)))]


def text(route: str, status: str, line: str) -> Response:
    """A response for people and logs: one line, without anything of the request."""
    body = f"{line}\n".encode()
    return Response(route, status=status, body=body, headers=(("Content-Type", "text/plain; charset=utf-8"), *NOT_KEPT))


NOT_FOUND: Final = text("none", "404 Not Found", "Not found")
