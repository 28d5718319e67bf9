"""Who is slow is cut off, at each step of a connection; an error of the application's is said so."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest

from relay.web.http_handler import HttpHandler
from relay.web.server import Admission, WebServer
from tests.support.certificates import write_pair

#: For what is cut off after a fraction of a second; a machine may be busy.
PATIENCE = 30.0


class _Quick(HttpHandler):
    line_seconds = 0.3
    request_seconds = 0.3


class _Connections:
    def __init__(self) -> None:
        self.open = 0

    def enter(self) -> int:
        self.open += 1
        return self.open

    def name(self, slot: int, origin: bytes) -> int:
        return self.open

    def leave(self, slot: int) -> None:
        self.open -= 1


class _NoProxies:
    def trust(self, peer: str) -> bool:
        return False

    def client_of(self, sock: object) -> None:
        raise AssertionError


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = environ["wsgi.input"].read(100_000)
    if environ["PATH_INFO"] == "/large":
        start_response("200 OK", [("Content-Length", "50000000")])
        return [b"x" * 50_000_000]
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class Running:
    """A server in this process, for clients on gevent's sockets."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.connections = _Connections()
        admission = Admission(
            self.connections,
            most_per_origin=5,
            origin_of=str.encode,
            proxies=_NoProxies(),  # type: ignore[arg-type]  # it is never asked
            shared=lambda _: False,
        )
        self.server = WebServer(application, admission, None if context is None else lambda: context, _Quick)
        self.server.handshake_seconds = 0.3
        listener = gevent.socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        self.address = listener.getsockname()
        self.greenlet = gevent.spawn(self.server.serve, [listener], 5.0)

    def connect(self) -> Any:
        client = gevent.socket.create_connection(self.address)
        client.settimeout(PATIENCE)
        return client


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.server.drain()
    assert made.greenlet.get(timeout=PATIENCE) == 0
    assert made.connections.open == 0


def closed(client: Any) -> bytes:
    """What comes until the end; fails if that doesn't come."""
    octets = b""
    try:
        while received := client.recv(65_536):
            octets += received
    except ConnectionError:
        pass
    client.close()
    return octets


@pytest.mark.parametrize(
    ("at_once", "dribbled"),
    [
        (b"", b""),
        (b"", b"GET /" + b"x" * 10_000),
        (b"GET / HTTP/1.1\r\n", b"X-Long: " + b"x" * 10_000),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b""),
        (b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n", b"x" * 5000),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 2000),
        (b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b""),  # answered, and kept
    ],
    ids=["nothing", "line", "header", "half a header", "body", "chunks", "after an answer"],
)
def test_slow_clients_are_cut_off(running: Running, at_once: bytes, dribbled: bytes) -> None:
    client = running.connect()
    client.sendall(at_once)
    until = time.monotonic() + PATIENCE
    for number in range(len(dribbled)):
        assert time.monotonic() < until
        try:
            client.sendall(dribbled[number : number + 1])
        except ConnectionError:
            break
        gevent.sleep(0.01)
        if not running.connections.open:
            break
    closed(client)


def test_a_client_that_reads_nothing_is_cut_off(running: Running) -> None:
    client = running.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
    until = time.monotonic() + PATIENCE
    while running.connections.open == 0 and time.monotonic() < until:
        gevent.sleep(0.01)
    while running.connections.open and time.monotonic() < until:
        gevent.sleep(0.01)
    assert running.connections.open == 0
    client.close()


def test_a_handshake_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # as in a process that gevent has patched
    context.load_cert_chain(*write_pair(tmp_path))
    running = Running(context)
    client = running.connect()
    assert closed(client) == b""
    plain = running.connect()
    plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert b"HTTP" not in closed(plain)
    running.server.drain()
    assert running.greenlet.get(timeout=PATIENCE) == 0
