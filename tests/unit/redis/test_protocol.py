"""Commands and replies over a real pair of sockets: in pieces, dribbling, cut off; and what errors say."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from relay.redis.protocol import ErrorReply, RespConnection, pack


@pytest.fixture
def ends() -> Iterator[tuple[RespConnection, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    theirs.settimeout(20)
    with ours, theirs:
        yield RespConnection(ours), theirs


def test_a_command_goes_out_as_it_is_meant() -> None:
    assert pack(("SET", b"\0\r\n", "ü", 5)) == b"*4\r\n$3\r\nSET\r\n$3\r\n\0\r\n\r\n$2\r\n\xc3\xbc\r\n$1\r\n5\r\n"


def test_replies_come_in_their_order_whatever_the_pieces(ends: tuple[RespConnection, socket.socket]) -> None:
    connection, server = ends
    connection.send(pack(("PING",)), 20.0)
    assert server.recv(100) == b"*1\r\n$4\r\nPING\r\n"
    replies = b"+OK\r\n:5\r\n$-1\r\n$4\r\n\r\n\0x\r\n*2\r\n:1\r\n*0\r\n-ERR no\r\n"
    for octet in replies:
        server.send(bytes([octet]))
    found = [connection.receive() for _ in range(6)]
    assert found[:5] == [b"OK", 5, None, b"\r\n\0x", [1, []]]
    assert isinstance(found[5], ErrorReply)


class Dribbling:
    """A socket whose other side says one octet a second, for ever. No real one: a second is a call here."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.octets = itertools.chain([b"$"], itertools.repeat(b"5"))

    def send(self, octets: bytes) -> int:
        return len(octets)

    def recv(self, _size: int) -> bytes:
        self.now += 1.0
        assert self.now < 1030.0
        return next(self.octets)


def test_a_reply_that_dribbles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is for the whole of it: the socket's own limit begins anew with each octet."""
    server = Dribbling()
    monkeypatch.setattr(time, "monotonic", lambda: server.now)
    connection = RespConnection(server)
    connection.send(pack(("PING",)), 5.0)
    with pytest.raises(TimeoutError):
        connection.receive()
    assert server.now < 1010.0


def test_a_server_that_closes_is_an_error_and_no_reply(ends: tuple[RespConnection, socket.socket]) -> None:
    connection, server = ends
    connection.send(pack(("PING",)), 20.0)
    server.send(b"$100\r\nhalf of it")
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError):
        connection.receive()


def test_a_command_larger_than_the_buffers_goes_out_whole(ends: tuple[RespConnection, socket.socket]) -> None:
    connection, server = ends
    command = pack(("SET", "x", b"y" * 3_000_000))
    received = bytearray()

    def read() -> None:
        while len(received) < len(command):
            received.extend(server.recv(65536))

    reading = threading.Thread(target=read)
    reading.start()
    connection.send(command, 20.0)
    reading.join(20)
    assert received == command


@pytest.mark.parametrize(
    ("text", "code", "command"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM", ""),
        ("NOPERM User relay has no permissions to run the 'zadd' command", "NOPERM", "ZADD"),
        ("NOPERM User relay has no permissions to run the 'config|get' command", "NOPERM", "CONFIG|GET"),
        ("ERR ACL failure in script: no permissions to run the 'get' command", "NOPERM", "GET"),
        ("ERR Script attempted to access keys that do not hash to the same slot", "CROSSSLOT", ""),
        ("ERR syntax error", "ERR", ""),
        ("", "", ""),
        ("x" * 500, "x" * 40, ""),
    ],
)
def test_what_an_error_is_called(text: str, code: str, command: str) -> None:
    error = ErrorReply(text)
    assert (error.code, error.command) == (code, command)
