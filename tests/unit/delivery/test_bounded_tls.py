"""TLS through memory: what arrives is what was sent, and a server that sends messages without content is cut off."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.delivery import bounded_tls
from relay.delivery.bounded_tls import BoundedTls, send_whole
from tests.support.certificates import write_pair
from tests.support.clock import Clock

Serve = Callable[[Callable[[socket.socket], None]], socket.socket]
PATIENCE = 30.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    certificate, key = write_pair(Path(tmp_path_factory.mktemp("tls")), name="x.example")
    return str(certificate), str(key)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts what serves one end of a connection; gives the other end."""
    threads: list[threading.Thread] = []
    ours: list[socket.socket] = []

    def start(work: Callable[[socket.socket], None]) -> socket.socket:
        client, server = socket.socketpair()

        def run() -> None:
            with server:
                try:
                    work(server)
                except OSError:
                    return

        threads.append(threading.Thread(target=run, daemon=True))
        ours.append(client)
        threads[-1].start()
        return client

    yield start
    for client in ours:
        client.close()
    for thread in threads:
        thread.join(PATIENCE)


@pytest.fixture
def trusting(pair: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pair[0])
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def under_tls(pair: tuple[str, str], work: Callable[[ssl.SSLSocket], None]) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)

    def run(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as sock:
            work(sock)

    return run


def read_all(tls: BoundedTls, most: int = 5_000) -> bytes:
    pieces = []
    while piece := tls.recv(most):
        assert len(piece) <= most
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("octets", [0, 1, 16_384, 1_000_000])
def test_what_arrives_is_what_was_sent(
    serve: Serve, pair: tuple[str, str], trusting: ssl.SSLContext, octets: int, announced: bool
) -> None:
    """In both directions, and whether or not the end is announced."""
    body = os.urandom(octets)

    def echo(sock: ssl.SSLSocket) -> None:
        got = b""
        while len(got) < octets:
            got += sock.recv(65_536)
        sock.sendall(got)
        if announced:
            sock.unwrap()

    tls = BoundedTls(serve(under_tls(pair, echo)), trusting, "x.example", time.monotonic() + PATIENCE)
    tls.sendall(body)
    assert read_all(tls) == body
    tls.close()


def test_a_certificate_is_verified_and_the_server_is_told(
    serve: Serve, pair: tuple[str, str], trusting: ssl.SSLContext
) -> None:
    said: list[str] = []

    def listen(plain: socket.socket) -> None:
        try:
            under_tls(pair, lambda sock: said.append(str(sock.recv(100))))(plain)
        except ssl.SSLError as error:
            said.append(str(error))

    for context, host in ((trusting, "y.example"), (ssl.create_default_context(), "x.example")):
        said.clear()
        with pytest.raises(ssl.SSLCertVerificationError):
            BoundedTls(serve(listen), context, host, time.monotonic() + PATIENCE)
        limit = time.monotonic() + PATIENCE
        while not said:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert "ALERT" in said[0].upper()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Plain\r\n\r\n", b"\x16\x03\x01\x00\x02\x02\x16"])
def test_what_is_no_handshake_is_an_error(serve: Serve, trusting: ssl.SSLContext, answer: bytes) -> None:
    with pytest.raises(OSError, match=r"."):
        BoundedTls(serve(lambda sock: sock.sendall(answer)), trusting, "x.example", time.monotonic() + PATIENCE)


def test_a_silent_server_is_waited_for_until_the_deadline(serve: Serve, trusting: ssl.SSLContext) -> None:
    ended = threading.Event()
    with pytest.raises(TimeoutError):
        BoundedTls(serve(lambda _: bool(ended.wait(PATIENCE)) and None), trusting, "x.example", time.monotonic() + 0.2)
    ended.set()


class _Endless:
    """Stands in for OpenSSL while messages come that are no content: no server here sends KeyUpdate at will."""

    def __init__(self, incoming: ssl.MemoryBIO) -> None:
        self._incoming = incoming

    def do_handshake(self) -> None:
        return

    def read(self, most: int) -> bytes:
        octets = self._incoming.read(most)
        if not octets.strip(b"k"):
            raise ssl.SSLWantReadError
        return octets.strip(b"k")


class _Context:
    def wrap_bio(self, incoming: ssl.MemoryBIO, _outgoing: ssl.MemoryBIO, **_: Any) -> _Endless:
        return _Endless(incoming)


@pytest.mark.parametrize("content", [b"", b"some content" * 100])
def test_messages_without_content_come_to_an_end(serve: Serve, content: bytes) -> None:
    """However much content came before them."""
    sent = []

    def flood(sock: socket.socket) -> None:
        sock.sendall(content)
        while True:
            sock.sendall(b"k" * 1_000)
            sent.append(1_000)

    tls = BoundedTls(serve(flood), _Context(), "x.example", time.monotonic() + PATIENCE)  # type: ignore[arg-type]
    with pytest.raises(ConnectionAbortedError, match="without end"):
        read_all(tls, 65_536)
    tls.close()
    # What the kernel holds of a connection was sent and not read.
    assert sum(sent) < bounded_tls._MOST_BESIDE + 2_000_000


def test_what_is_there_is_read_without_waiting(serve: Serve, pair: tuple[str, str], trusting: ssl.SSLContext) -> None:
    told, ended = threading.Event(), threading.Event()

    def talk(sock: ssl.SSLSocket) -> None:
        told.wait(PATIENCE)
        sock.sendall(b"hello")
        ended.wait(PATIENCE)

    tls = BoundedTls(serve(under_tls(pair, talk)), trusting, "x.example", time.monotonic() + PATIENCE)
    with pytest.raises(BlockingIOError):
        tls.recv_now(100)
    told.set()
    assert tls.recv(2) == b"he"
    assert tls.recv_now(100) == b"llo"
    with pytest.raises(BlockingIOError):
        tls.recv_now(100)
    tls.settimeout(-1)
    with pytest.raises(TimeoutError):
        tls.recv(100)
    ended.set()
    tls.close()


class _Reluctant:
    """A socket that takes an octet a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sent = b""

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= 10

    def send(self, octets: memoryview) -> int:
        self._clock.now += 1
        self.sent += octets[:1]
        return 1


def test_who_takes_a_little_now_and_then_has_until_the_deadline(clock: Clock) -> None:
    sock = _Reluctant(clock)
    send_whole(sock, b"0123456789", clock.now + 10)  # type: ignore[arg-type]
    assert sock.sent == b"0123456789"
    with pytest.raises(TimeoutError):
        send_whole(sock, b"x" * 11, clock.now + 10)  # type: ignore[arg-type]
    assert len(sock.sent) == 20
