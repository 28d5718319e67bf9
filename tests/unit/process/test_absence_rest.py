"""The master in place of absent workers never spins over what it can't answer."""

from __future__ import annotations

import resource
import select
import socket
from collections.abc import Iterator

import pytest

from relay.process import absence
from relay.process.absence import REPLY, Absence


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


@pytest.fixture
def absent(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Absence]:
    monkeypatch.setattr(absence, "PATIENCE_SECONDS", 0.0)
    made = Absence([(listening.fileno(), False)])
    yield made
    made.end()


def ready(absent: Absence, seconds: float = 10.0) -> list[int]:
    return select.select(absent.descriptors(), [], [], seconds)[0]


def test_clients_get_421_while_no_worker_serves(absent: Absence, listening: socket.socket) -> None:
    with socket.create_connection(listening.getsockname(), 10) as client:
        absent.turn_away(ready(absent))
        assert client.recv(1000) == REPLY
    assert ready(absent, 0.0) == []


@pytest.mark.parametrize("trouble", ["accept", "copy", "shut down"])
def test_what_can_not_be_answered_is_left_alone_for_a_while(
    absent: Absence, listening: socket.socket, trouble: str
) -> None:
    """A client that waits keeps the socket readable: to try again at once would be a busy loop."""
    if trouble != "copy":
        absent.descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection(listening.getsockname(), 10):
        if trouble == "shut down":
            listening.shutdown(socket.SHUT_RDWR)
        else:
            with socket.socket() as lowest:
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
        try:
            absent.turn_away(ready(absent) if trouble != "copy" else absent.descriptors())
            assert absent.descriptors() == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_answers_again_after_that(
    absent: Absence, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absence, "REST_SECONDS", 0.0)
    with socket.create_connection(listening.getsockname(), 10) as client:
        absent._rest()
        absent.turn_away(ready(absent))
        assert client.recv(1000) == REPLY
