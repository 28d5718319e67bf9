"""Connections that carry no mail: the latest used first, none that has ended, none for longer than it may be kept."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from relay.delivery import smtp_connections
from relay.delivery.smtp_client import SmtpConnection
from relay.delivery.smtp_connections import IDLE_SECONDS, MOST_MAILS, QUIT_SECONDS, KeptConnections
from tests.support.clock import Clock

Connect = Callable[[], tuple[SmtpConnection, socket.socket]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes connections, each with its other end."""
    with ExitStack() as stack:

        def connect() -> tuple[SmtpConnection, socket.socket]:
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            return SmtpConnection(ours), stack.enter_context(theirs)

        yield connect


@pytest.fixture
def kept() -> KeptConnections:
    return KeptConnections()


@pytest.fixture
def quits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SmtpConnection, float]]:
    """The connections that are ended in order, and until when each waits for the host's answer."""
    quits: list[tuple[SmtpConnection, float]] = []
    monkeypatch.setattr(SmtpConnection, "quit", lambda connection, until: quits.append((connection, until)))
    return quits


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Callable[[], None], float]]:
    """The looks at connections that are idle: what is called, and after how long."""
    planned: list[tuple[Callable[[], None], float]] = []

    def run_once(_: str, work: Callable[[], None], *, after: float) -> None:
        planned.append((work, after))

    monkeypatch.setattr(smtp_connections, "run_once", run_once)
    return planned


def test_the_latest_used_carries_the_next_mail(connect: Connect, kept: KeptConnections, clock: Clock) -> None:
    connections = [connect() for _ in range(2)]
    for connection, _ in connections:
        kept.keep(connection)
    assert [kept.take(), kept.take(), kept.take()] == [connections[1][0], connections[0][0], None]


@pytest.mark.parametrize("said", [b"", b"421 4.4.2 too long\r\n", b"250 odd\r\n"])
def test_one_that_the_host_has_closed_or_spoken_on_carries_none(
    connect: Connect, kept: KeptConnections, clock: Clock, said: bytes
) -> None:
    well, (ended, theirs) = connect()[0], connect()
    kept.keep(well)
    kept.keep(ended)
    if said:
        theirs.sendall(said)
    else:
        theirs.close()
    assert kept.take() is well
    assert ended._socket.fileno() == -1


def test_one_that_was_kept_for_too_long_carries_none(connect: Connect, kept: KeptConnections, clock: Clock) -> None:
    connection, _ = connect()
    kept.keep(connection)
    clock.now += IDLE_SECONDS
    assert kept.take() is connection
    kept.keep(connection)
    clock.now += IDLE_SECONDS + 1.0
    assert kept.take() is None
    assert connection._socket.fileno() == -1


def test_one_that_has_carried_its_share_is_ended(
    connect: Connect, kept: KeptConnections, clock: Clock, quits: list[tuple[SmtpConnection, float]]
) -> None:
    (one, _), (other, _) = connect(), connect()
    one.mails, other.mails = MOST_MAILS - 1, MOST_MAILS
    kept.keep(one)
    kept.keep(other)
    assert quits == [(other, clock.now + QUIT_SECONDS)]
    assert [kept.take(), kept.take()] == [one, None]


def test_those_that_are_idle_are_ended(
    connect: Connect,
    kept: KeptConnections,
    clock: Clock,
    quits: list[tuple[SmtpConnection, float]],
    planned: list[tuple[Callable[[], None], float]],
) -> None:
    (one, _), (other, _) = connect(), connect()
    kept.keep(one)
    clock.now += 1.0
    kept.keep(other)
    ((look, after),) = planned
    assert after == IDLE_SECONDS
    clock.now += after - 1.0
    look()
    assert [connection for connection, _ in quits] == [one]
    assert len(planned) == 2  # the other one is idle later
    clock.now += after
    planned[1][0]()
    assert [connection for connection, _ in quits] == [one, other]
    assert len(planned) == 2
    kept.keep(connect()[0])
    assert len(planned) == 3


def test_at_the_end_all_wait_for_the_host_together_as_long_as_one(
    connect: Connect, kept: KeptConnections, clock: Clock, quits: list[tuple[SmtpConnection, float]]
) -> None:
    connections = [connect()[0] for _ in range(3)]
    for connection in connections:
        kept.keep(connection)
    kept.close()
    assert {connection for connection, _ in quits} == set(connections)
    assert {until for _, until in quits} == {clock.now + QUIT_SECONDS}
    assert kept.take() is None
