"""What a customer's URL may make this service connect to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

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
        "https://user@bücher.example/a",
        "https://@x.example/a",
        "http://localhost/a",
        "http://a.localhost./a",
        "http://db.internal/a",
        "http://x.cluster.local/a",
        "http://printer.local/a",
        "http://x.example:22/a",
        "http://x.example:99999/a",
        "http://[::1",
        "http://x.example\\@127.0.0.1/a",
        "http://127.0.0.1\\.x.example/a",
        "http://x.example/a\r\nHost: y.example",
        "http://x.example/" + "a" * 9000,
        "http://x_.\u2488.example:x/",
        "http://①②⑦.0.0.1/a",
        "http://ⓛocalhost/a",
        "http://[::127.0.0.1]/a",
        "http://[::ffff:0:7f00:1]/a",
        "http://[2001:0:7f00:1::]/a",
        "http://[100::1]/a",
        "http://198.18.0.1/a",
        "http://192.0.2.1/a",
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
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine, which counts as routable for once."""
    monkeypatch.setattr(fetching, "routable", lambda _: True)
    with HTTPServer(("127.0.0.1", 0), _Answers) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_the_address_that_was_looked_at_is_the_one_connected_to(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere at the second look is not looked up a second time."""
    port = int(server.rpartition(":")[2])
    looks: list[str] = []
    resolve = socket.getaddrinfo

    def rebinding(host: str, *rest: Any, **more: Any) -> Any:
        if host == "x.example":
            looks.append(host)
            host = "127.0.0.1" if len(looks) == 1 else "127.0.0.2"
        elif not host.replace(".", "").isdigit():
            raise AssertionError(host)
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    content = bytearray()
    fetch(f"http://x.example:{port}/file", 1000, content.extend)
    assert (len(content), looks) == (1000, ["x.example"])


def test_what_may_not_stand_in_a_request_is_encoded(server: str, asked: list[tuple[str, str]]) -> None:
    for path in ("/a b?c=d e", "/ä?ö=%20", "/a%2Fb?c=%C3%A4&d=[1]", "?q"):
        fetch(server + path, 100_000, bytearray().extend)
    host = server.removeprefix("http://")
    assert asked == [
        ("/a%20b?c=d%20e", host),
        ("/%C3%A4?%C3%B6=%20", host),
        ("/a%2Fb?c=%C3%A4&d=[1]", host),
        ("/?q", host),
    ]


def test_content_is_fetched_within_its_limit(server: str) -> None:
    content = bytearray()
    fetch(f"{server}/file", 1000, content.extend)
    assert content == b"x" * 1000
    for path, reason in (("/large", "TooLarge"), ("/moved", "HTTP302")):
        with pytest.raises(UnavailableError, match=reason):
            fetch(server + path, 1000, bytearray().extend)
