"""A listening socket that something has damaged serves clients again, or its process ends and is replaced."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest

from config.settings import Settings
from relay.limits.client import ProcessLimits
from relay.redis.link import RedisLink
from relay.server.accept_loop import AcceptLoop, Reserve
from relay.server.server import Server
from relay.server.sockets import Listener
from scripts.services import free_port
from tests.support.encounter import Services

SECONDS = 20.0


@pytest.fixture
def listening() -> Iterator[gevent.socket.socket]:
    made = gevent.socket.socket()
    # A port that was asked for, as those of a service are: the kernel takes back any other one with the shutdown.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", free_port()))
    made.listen(10)
    made.setblocking(False)
    yield made
    made.close()


@pytest.fixture
def server() -> Server:
    link = RedisLink(None, verify_tls=True, timeout=1, pause=1)
    settings = Settings(database_url="postgresql://unused")
    return Server(settings, Services(), ProcessLimits(settings, link), certificate=None)


def greeted(address: tuple[str, int]) -> bool:
    """Whether a client that keeps trying is greeted within SECONDS."""
    with gevent.Timeout(SECONDS, False):  # type: ignore[arg-type]  # gevent: no exception
        while True:
            try:
                with gevent.socket.create_connection(address, SECONDS) as client:
                    if client.recv(4) == b"220 ":
                        return True
            except OSError:
                gevent.sleep(0.01)
    return False


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_a_socket_that_was_shut_down_listens_again(server: Server, listening: gevent.socket.socket, how: int) -> None:
    """All processes share it, and each of them can do that to all of them."""
    address = listening.getsockname()
    serving = gevent.spawn(server.serve, [Listener(listening, implicit_tls=False)])
    assert greeted(address)
    for _ in range(3):
        with socket.socket(fileno=os.dup(listening.fileno())) as another:
            another.shutdown(how)
        assert greeted(address)
    assert not serving.dead
    server.drain()
    serving.join(SECONDS)
    assert serving.successful()


def test_processes_that_share_it_all_find_it_listening(listening: gevent.socket.socket) -> None:
    """The second process finds it repaired, and does no harm."""
    taken: list[int] = []
    loops = []
    for number in range(2):
        shared = gevent.socket.socket(fileno=os.dup(listening.fileno()))
        shared.setblocking(False)
        loops.append(
            AcceptLoop(
                Listener(shared, implicit_tls=False),
                lambda client, _peer, number=number: (taken.append(number), client.sendall(b"220 ")),
                Reserve(),
                lambda: pytest.fail("lost"),
            )
        )
    for loop in loops:
        loop.start()
    listening.shutdown(socket.SHUT_RDWR)
    for _ in range(5):
        assert greeted(listening.getsockname())
    assert len(taken) >= 5
    for loop in loops:
        loop.close()


@pytest.mark.parametrize("damage", [errno.EBADF, errno.ENOTSOCK])
def test_a_process_that_lost_its_socket_drains(server: Server, listening: gevent.socket.socket, damage: int) -> None:
    """Its end is what makes the master replace it; the clients that it has are served to their end."""
    serving = gevent.spawn(server.serve, [Listener(listening, implicit_tls=False)])
    address = listening.getsockname()
    with gevent.socket.create_connection(address, SECONDS) as client:
        assert client.recv(1000).startswith(b"220 ")
        client.sendall(b"NO")
        gevent.sleep(0.01)
        (loop,) = server._accept_loops
        number = listening.fileno()
        if damage == errno.EBADF:
            os.close(number)
        else:
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), number)
        # A closed descriptor is forgotten by epoll, so nothing would call it.
        loop.loop.run_callback(loop._do_read)
        client.sendall(b"OP\r\nQUIT\r\n")
        said = b""
        while octets := client.recv(1000):
            said += octets
        assert said.startswith(b"250 ")
    serving.join(SECONDS)
    assert serving.successful()
    if damage == errno.EBADF:
        listening.detach()
