"""While no worker serves, clients of a real listener hear so; as soon as one does, they are left alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from relay.process.absence import PATIENCE_SECONDS, REPLY, Absence
from tests.support.clock import Clock


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def absence(listener: socket.socket, *, implicit_tls: bool = False) -> Absence:
    return Absence([(listener.fileno(), implicit_tls)])


def test_clients_wait_for_a_while_before_they_are_turned_away(clock: Clock, listener: socket.socket) -> None:
    absent = absence(listener)
    clock.now += PATIENCE_SECONDS - 0.1
    assert absent.descriptors() == []
    clock.now += 0.2
    (descriptor,) = absent.descriptors()
    assert absent.descriptors() == [descriptor], "one copy for the whole absence"
    absent.end()


@pytest.mark.parametrize(("implicit_tls", "heard"), [(False, REPLY), (True, b"")])
def test_all_waiting_clients_get_421_and_are_closed(
    clock: Clock, listener: socket.socket, implicit_tls: bool, heard: bytes
) -> None:
    absent = absence(listener, implicit_tls=implicit_tls)
    clock.now += PATIENCE_SECONDS
    clients = [socket.create_connection(listener.getsockname(), 20) for _ in range(3)]
    ready = absent.descriptors()
    assert absent.present(ready)
    absent.turn_away(ready)
    for client in clients:
        with client:
            assert b"".join(iter(lambda client=client: client.recv(100), b"")) == heard
    absent.end()


def test_somebody_who_serves_ends_it_and_the_next_absence_counts_anew(clock: Clock, listener: socket.socket) -> None:
    absent = absence(listener)
    clock.now += PATIENCE_SECONDS
    ready = absent.descriptors()
    absent.attend(served=True)
    assert not absent.present(ready)
    absent.turn_away(ready)
    for expected in (0, 0, 1):
        absent.attend(served=False)
        assert len(absent.descriptors()) == expected
        clock.now += PATIENCE_SECONDS / 2
    absent.end()


def test_the_listener_itself_stays_open(clock: Clock, listener: socket.socket) -> None:
    absent = absence(listener)
    clock.now += PATIENCE_SECONDS
    absent.turn_away(absent.descriptors())
    absent.end()
    with socket.create_connection(listener.getsockname(), 20):
        served, _ = listener.accept()
        served.close()
