"""HTTP calls over connections that stay open, against servers on real sockets."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from relay.calls import CALL_ERRORS, Calls


class Endpoint(http.server.ThreadingHTTPServer):
    """Remembers what was asked of it, and over how many connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections = 0
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.closes = False
        #: Said behind each response, unasked.
        self.babble = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.server.closes:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        if self.server.babble:
            time.sleep(0.05)  # not with the response, which would swallow it
            self.wfile.write(self.server.babble)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def calls(url: str) -> Calls:
    return Calls(url, cafile=None, connect_seconds=5.0, read_seconds=5.0)


def test_one_connection_serves_one_call_after_another(endpoint: Endpoint) -> None:
    made = calls(endpoint.url)
    assert [made.post(b"%d" % number, {"X-Number": str(number)}) for number in range(3)] == [
        (200, b"0"),
        (200, b"1"),
        (200, b"2"),
    ]
    assert [headers["X-Number"] for _, _, headers, _ in endpoint.requests] == ["0", "1", "2"]
    assert endpoint.connections == 1
    made.close()


def test_a_connection_that_the_server_closes_is_not_used_again(endpoint: Endpoint) -> None:
    endpoint.closes = True
    made = calls(endpoint.url)
    assert [made.post(b"x", {})[0] for _ in range(3)] == [200, 200, 200]
    assert endpoint.connections == 3


def test_what_comes_unasked_is_never_the_answer_to_the_next_call(endpoint: Endpoint) -> None:
    endpoint.babble = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
    made = calls(endpoint.url)
    answers = []
    for number in range(3):
        answers.append(made.post(b"%d" % number, {}))
        assert made._idle[0][1].sock.recv(1, socket.MSG_PEEK) == b"H"  # it has arrived
    assert answers == [(200, b"0"), (200, b"1"), (200, b"2")]
    assert endpoint.connections == 3
    made.close()


def test_a_connection_that_the_server_left_is_not_used_again(endpoint: Endpoint) -> None:
    made = calls(endpoint.url)
    made.post(b"x", {})
    made._idle[0][1].sock.shutdown(socket.SHUT_RD)
    assert made.post(b"y", {}) == (200, b"y")
    assert endpoint.connections == 2
    made.close()


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = calls(endpoint.url)
    made.post(b"x", {})
    monkeypatch.setattr("relay.calls._IDLE_SECONDS", -1.0)
    made.post(b"x", {})
    assert endpoint.connections == 2
    made.close()


def test_nobody_there_is_an_error_of_the_call(endpoint: Endpoint) -> None:
    with pytest.raises(CALL_ERRORS):
        calls("http://127.0.0.1:9/").post(b"x", {})


@pytest.mark.parametrize("url", ["ftp://x/", "nothing", "http://", "http://h:99999/", "http://h:x/"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        calls(url)
