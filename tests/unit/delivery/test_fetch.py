"""What a customer's URL may make this service connect to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from relay.delivery import fetch as fetching
from relay.delivery.fetch import RefusedUrlError, UnavailableError, fetch


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x.example/a",
        "file:///etc/passwd",
        "//x.example/a",
        "https://user@x.example/a",
        "https://user:secret@x.example/a",
        "http://localhost/a",
        "http://a.localhost./a",
        "http://db.internal/a",
        "http://x.cluster.local/a",
        "http://printer.local/a",
        "http://x.example:22/a",
        "http://x.example:99999/a",
        "http://[::1",
        "http://127.0.0.1/a",
        "http://127.1/a",
        "http://2130706433/a",
        "http://0x7f000001/a",
        "http://0177.0.0.1/a",
        "http://0.0.0.0/a",
        "http://10.0.0.1/a",
        "http://172.16.0.1/a",
        "http://192.168.1.1/a",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/a",
        "http://224.0.0.1/a",
        "http://255.255.255.255/a",
        "http://[::]/a",
        "http://[::1]/a",
        "http://[::ffff:127.0.0.1]/a",
        "http://[::ffff:10.0.0.1]/a",
        "http://[2002:7f00:1::]/a",
        "http://[64:ff9b::7f00:1]/a",
        "http://[fc00::1]/a",
        "http://[fe80::1%25lo]/a",
        "http://[ff02::1]/a",
    ],
)
def test_what_is_never_fetched(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any, **__: Any) -> socket.socket:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises((RefusedUrlError, UnavailableError)):
        fetch(url, 100, bytearray().extend)


def test_one_private_address_of_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(RefusedUrlError):
        fetch("http://x.example/a", 100, bytearray().extend)


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
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
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine, which counts as routable for once."""
    monkeypatch.setattr(fetching, "routable", lambda _: True)
    with HTTPServer(("127.0.0.1", 0), _Answers) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_content_is_fetched_within_its_limit(server: str) -> None:
    content = bytearray()
    fetch(f"{server}/file", 1000, content.extend)
    assert content == b"x" * 1000
    for path, reason in (("/large", "TooLarge"), ("/moved", "HTTP302")):
        with pytest.raises(UnavailableError, match=reason):
            fetch(server + path, 1000, bytearray().extend)
