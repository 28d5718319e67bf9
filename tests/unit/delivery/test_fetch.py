"""What is fetched of an attachment's URL. tests/unit/delivery/test_outbound_http.py has what is never asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from relay.delivery.fetch import fetch
from relay.delivery.outbound_http import Outbound, UnavailableError

#: This machine counts as routable for once.
HERE = Outbound(is_routable=lambda _: True)


class _Answers(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Host"]))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
            return
        content = b"x" * (1000 if self.path == "/file" else 100_000)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def asked() -> list[tuple[str, str]]:
    """Target and Host of each request."""
    _Answers.asked.clear()
    return _Answers.asked


@pytest.fixture
def server() -> Iterator[str]:
    """A server on this machine."""
    with HTTPServer(("127.0.0.1", 0), _Answers) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_what_may_not_stand_in_a_request_is_encoded(server: str, asked: list[tuple[str, str]]) -> None:
    for path in ("/a b?c=d e", "/ä?ö=%20", "/a%2Fb?c=%C3%A4&d=[1]", "?q"):
        fetch(server + path, 100_000, bytearray().extend, HERE)
    host = server.removeprefix("http://")
    assert asked == [
        ("/a%20b?c=d%20e", host),
        ("/%C3%A4?%C3%B6=%20", host),
        ("/a%2Fb?c=%C3%A4&d=[1]", host),
        ("/?q", host),
    ]


def test_content_is_fetched_within_its_limit(server: str) -> None:
    content = bytearray()
    fetch(f"{server}/file", 1000, content.extend, HERE)
    assert content == b"x" * 1000
    for path, reason in (("/large", "TooLarge"), ("/moved", "HTTP302")):
        with pytest.raises(UnavailableError, match=reason):
            fetch(server + path, 1000, bytearray().extend, HERE)
