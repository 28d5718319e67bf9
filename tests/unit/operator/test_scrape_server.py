"""Who connects to the metrics port and says nothing, or little, or very much."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket as green

from relay.operator import scrape_server
from relay.operator.scrape_server import MOST_CONNECTIONS, ScrapeServer


def application(_environ: object, start_response: object) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])  # type: ignore[operator]
    return [b"metrics"]


@pytest.fixture
def server() -> Iterator[ScrapeServer]:
    server = ScrapeServer(("127.0.0.1", 0), application)
    server.start()
    yield server
    server.stop()


def connect(server: ScrapeServer) -> socket.socket:
    return green.create_connection(("127.0.0.1", server.server_port), timeout=20)  # type: ignore[no-any-return]


def scrape(server: ScrapeServer) -> bytes:
    with connect(server) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_the_silent_take_no_more_than_a_few_places(server: ScrapeServer) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(300)]
        assert scrape(server).endswith(b"metrics")
        assert len(server._open) <= MOST_CONNECTIONS
        # The oldest are closed, not left hanging.
        for client in silent[: 300 - MOST_CONNECTIONS]:
            assert client.recv(1) == b""
        assert scrape(server).endswith(b"metrics")


@pytest.mark.parametrize(
    "said", [b"", b"GET /metr", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_a_connection_ends_after_its_time(server: ScrapeServer, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Silent, in the midst of a request, or kept open after one."""
    monkeypatch.setattr(scrape_server, "CONNECTION_SECONDS", 0.1)
    with connect(server) as client:
        client.sendall(said)
        b"".join(iter(lambda: client.recv(4096), b""))
    gevent.sleep(0)
    assert not server._open


def test_an_endless_dribble_ends_too(server: ScrapeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape_server, "CONNECTION_SECONDS", 0.2)
    with connect(server) as client, contextlib.suppress(OSError):
        client.sendall(b"GET / HTTP/1.1\r\n")
        while not server._open:
            gevent.sleep(0.001)
        for _ in range(10_000):
            client.sendall(b"X: y\r\n")
            gevent.sleep(0.01)
            if not server._open:
                break
    gevent.sleep(0)
    assert not server._open
