"""Clients that take as long as they can: they starve no other client, cost little, and are sent away in time."""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.dialogue_stage import Stage
from tests.support.sockets import read_to_end

#: How many, and from how many addresses; together they are as many as may come in, but for a few.
SLOW_CLIENTS = 300
ADDRESSES = ("127.0.0.50", "127.0.0.51", "127.0.0.52")
SLOW_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
#: What one of them may cost, in octets: its greenlet, its session, its buffers.
MOST_EACH = 60_000

LOGIN = b"EHLO x\r\nAUTH PLAIN " + base64.b64encode(b"\0user\0good") + b"\r\n"
#: What each kind of slow client says at once, and then an octet at a time.
OPENINGS = (
    b"",
    b"EHLO slow.examp",
    b"EHLO x\r\nAUTH LOGIN\r\n",
    LOGIN + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nSubject: ",
    LOGIN + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 90000 LAST\r\n",
)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A server whose clients have SLOW_SECONDS for everything."""
    settings = {"max_connections": SLOW_CLIENTS + 20, "max_connections_per_address": SLOW_CLIENTS // len(ADDRESSES)}
    pace = {"command": SLOW_SECONDS, "connection": 600.0, "data_grace": SLOW_SECONDS, "data_rate": 1000.0}
    pace["data_pause"] = SLOW_SECONDS
    with Stage(tmp_path, {"slow": {"settings": settings, "pace": pace}}, linger_seconds=2.0) as made:
        yield made


def connect(stage: Stage, address: str) -> socket.socket:
    return stage.connect("slow", source=address)


def read_to_the_end(client: socket.socket) -> bytes:
    """Everything that the relay said before it closed."""
    client.settimeout(PATIENCE_SECONDS)
    return read_to_end(client)


def send_a_mail(stage: Stage) -> bytes:
    """A quick client's whole conversation; what it was told."""
    with connect(stage, "127.0.0.1") as client:
        client.sendall(LOGIN + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n")
        client.sendall(b"Subject: quick\r\n\r\nHello\r\n.\r\nQUIT\r\n")
        return read_to_the_end(client)


def test_slow_clients_starve_no_other_and_are_sent_away(stage: Stage) -> None:
    process = psutil.Process(stage.pid)
    assert b"\r\n250 2.0.0 Ok: queued" in send_a_mail(stage)
    with contextlib.ExitStack() as stack:
        before = process.memory_info().rss
        slow = [stack.enter_context(connect(stage, ADDRESSES[number % 3])) for number in range(SLOW_CLIENTS)]
        for number, client in enumerate(slow):
            client.sendall(OPENINGS[number % len(OPENINGS)])
        # Their address is full; others are not concerned.
        with connect(stage, ADDRESSES[0]) as late:
            assert read_to_the_end(late).startswith(b"421 4.7.0 Too many connections from your address")
        until = time.monotonic() + SLOW_SECONDS / 2
        quick = 0
        while time.monotonic() < until:
            for client in slow:
                client.send(b"x")
            assert b"\r\n250 2.0.0 Ok: queued" in send_a_mail(stage)
            quick += 1
            time.sleep(0.2)
        assert quick > 1
        grown = process.memory_info().rss - before
        assert grown < SLOW_CLIENTS * MOST_EACH, f"{grown / SLOW_CLIENTS:.0f} octets each"
        # The octets that dribble in buy no time worth mentioning.
        endings = [read_to_the_end(client) for client in slow]
    assert sum(said.endswith(b"421 4.4.2 Timed out waiting for the client\r\n") for said in endings) == SLOW_CLIENTS
    with contextlib.ExitStack() as stack:
        # Their places are free again.
        again = [stack.enter_context(connect(stage, ADDRESSES[0])) for _ in range(20)]
        assert {client.recv(4) for client in again} == {b"220 "}
    assert "Traceback" not in stage.log()


def test_who_was_quick_in_message_data_may_not_pause_for_long(stage: Stage) -> None:
    with connect(stage, "127.0.0.1") as client:
        client.sendall(LOGIN + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n")
        # By their average, half a megabyte would be good for more than eight minutes.
        client.sendall(b"x" * 998 * 500 + b"\r\n")
        assert read_to_the_end(client).endswith(b"421 4.4.2 Timed out waiting for the client\r\n")
