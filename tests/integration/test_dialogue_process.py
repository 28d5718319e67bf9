"""The server in a separate process: memory, and the end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.dialogue_stage import Stage

LOGIN = b"EHLO client.example\r\nAUTH PLAIN AGFueQBnb29k\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
MEGABYTE = 1_000_000
#: What a connection may cost at most: a line, a read, what is in memory of a message, and what the allocator keeps.
ROOM = 12 * MEGABYTE


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    servers = {
        "open": {"pace": {"command": 1.0, "data_grace": 30.0}, "settings": {"max_message_size_bytes": 10 * MEGABYTE}},
        "drained": {},
        "drained-tls": {"tls": True},
        "cut-off": {"settings": {"drain_seconds": 2.5}},
        "full": {"settings": {"max_connections": 1}},
    }
    with Stage(tmp_path_factory.mktemp("process"), servers, linger_seconds=1.0) as made:
        yield made
        assert "Traceback" not in made.log()


class Client:
    """Reads replies."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = b""

    def say(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def reply(self) -> str:
        """The last line of the next reply; empty at the end of the stream."""
        while True:
            while b"\n" not in self._buffer:
                octets = self.socket.recv(65536)
                if not octets:
                    return ""
                self._buffer += octets
            line, _, self._buffer = self._buffer.partition(b"\n")
            if line[3:4] == b" ":
                return line.decode().rstrip("\r")

    def codes(self, count: int) -> list[int]:
        return [int(self.reply()[:3]) for _ in range(count)]


def resident(stage: Stage) -> int:
    return int(psutil.Process(stage.pid).memory_info().rss)


def greeted(stage: Stage, server: str = "open", *, implicit_tls: bool = False) -> Client:
    client = Client(stage.connect(server, implicit_tls=implicit_tls))
    client.say(LOGIN)
    assert client.codes(3) == [220, 250, 235]
    return client


def test_memory_is_bounded_whatever_a_client_sends(stage: Stage) -> None:
    warm = greeted(stage)
    warm.say(ENVELOPE + b"DATA\r\n" + b"x" * 3 * MEGABYTE + b"\r\n.\r\nQUIT\r\n")
    assert warm.codes(5) == [250, 250, 354, 250, 221]
    before = resident(stage)

    endless = Client(stage.connect("open"))
    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 - whichever call it is that fails
        while True:
            endless.say(b"x" * MEGABYTE)
            assert resident(stage) < before + ROOM
    assert resident(stage) < before + ROOM

    large = greeted(stage)
    large.say(ENVELOPE + b"DATA\r\n")
    assert large.codes(3) == [250, 250, 354]
    for _ in range(60):
        large.say(b"x" * MEGABYTE)
        assert resident(stage) < before + ROOM
    large.say(b"\r\n.\r\n")
    assert large.reply().startswith("552 5.3.4 ")

    large.say(ENVELOPE + b"BDAT 99999999999 LAST\r\n")
    assert large.codes(2) == [250, 250]
    for _ in range(60):
        large.say(b"x" * MEGABYTE)
        assert resident(stage) < before + ROOM
    large.socket.close()


def test_memory_is_bounded_for_one_that_never_reads(stage: Stage) -> None:
    before = resident(stage)
    client = greeted(stage)
    client.socket.settimeout(0.3)
    dropped = False
    while not dropped:
        try:
            client.say(b"EHLO x\r\n" * 5000)
        except TimeoutError:
            assert resident(stage) < before + ROOM
        except (ConnectionResetError, BrokenPipeError):
            dropped = True
    assert resident(stage) < before + ROOM


def test_one_too_many_is_turned_away(stage: Stage) -> None:
    first = greeted(stage, "full")
    second = Client(stage.connect("full"))
    assert second.reply().startswith("421 4.3.2 ")
    assert second.reply() == ""
    first.say(b"QUIT\r\n")
    assert [first.reply()[:3], first.reply()] == ["221", ""]
    greeted(stage, "full")


@pytest.mark.parametrize(("server", "tls"), [("drained", False), ("drained-tls", True)])
def test_drain(stage: Stage, server: str, tls: bool) -> None:
    """The idle hear 421 at once, TLS or not; the busy finish; no new client is let in; then the server ends."""
    stage.newly_accepted()
    silent = Client(stage.connect(server))
    assert silent.codes(1) == [220]
    idle = greeted(stage, server, implicit_tls=tls)
    sending = greeted(stage, server, implicit_tls=tls)
    sending.say(ENVELOPE + b"DATA\r\n")
    assert sending.codes(3) == [250, 250, 354]
    sending.say(b"half")
    committing = greeted(stage, server, implicit_tls=tls)
    committing.say(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<slow-1@d.example>\r\nDATA\r\n")
    assert committing.codes(3) == [250, 250, 354]
    committing.say(b"x\r\n.\r\n")
    chunking = greeted(stage, server, implicit_tls=tls)
    chunking.say(ENVELOPE + b"BDAT 4 LAST\r\nab")
    assert chunking.codes(2) == [250, 250]
    half_a_line = greeted(stage, server, implicit_tls=tls)
    half_a_line.say(b"NOOP\r\nNO")
    assert half_a_line.codes(1) == [250]

    stage.drain(server)
    for client in (idle, silent):
        assert client.reply().startswith("421 4.3.2 ")
        assert client.reply() == ""
    stage.drain(server)
    with pytest.raises(ConnectionRefusedError):
        stage.connect(server)

    sending.say(b" and half\r\n.\r\n")
    chunking.say(b"cd")
    half_a_line.say(b"OP\r\n")
    for client, codes in [
        (sending, [250, 421]),
        (chunking, [250, 421]),
        (half_a_line, [250, 421]),
        (committing, [250, 421]),
    ]:
        assert client.codes(2) == codes
        assert client.reply() == ""
    stage.wait_for_end(server)
    assert len(stage.newly_accepted()) == 3
    assert "cut off" not in stage.log()


def test_the_drain_has_an_end(stage: Stage) -> None:
    sending = greeted(stage, "cut-off")
    sending.say(ENVELOPE + b"DATA\r\nhalf")
    assert sending.codes(3) == [250, 250, 354]
    stage.drain("cut-off")
    assert sending.reply() == ""
    stage.wait_for_end("cut-off")
    assert "connections_cut_off" in stage.log()


def test_the_log_has_no_address(tmp_path: Path) -> None:
    with Stage(tmp_path, {"open": {}}) as stage:
        client = greeted(stage)
        client.say(ENVELOPE + b"DATA\r\nSubject: Confidential\r\n\r\nhush\r\n.\r\n")
        client.say(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<nobody>\r\nRCPT TO:<bug@d.example>\r\nDATA\r\n")
        assert client.codes(8) == [250, 250, 354, 250, 250, 553, 250, 354]
        client.say(b"hush\r\n.\r\nQUIT\r\n")
        assert client.codes(2) == [451, 221]
        log = stage.log()
    assert "unexpected_error" in log
    for secret in ("b.example", "d.example", "nobody", "Confidential", "hush", "AGFueQBnb29k", "good"):
        assert secret not in log
    assert "127.0.0.1" not in log.replace('"client":"127.0.0.1"', "")
