"""No connection under TLS keeps the thread, and no error of it counts for another one."""

from __future__ import annotations

import array
import contextlib
import fcntl
import itertools
import math
import random
import socket
import ssl
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import gevent.ssl
import pytest

from relay.core.tls_memory import TlsInMemory, put_tls_into_memory
from relay.smtp.transport import TlsWire
from tests.support.certificates import write_pair
from tests.support.key_updates import updates

# As in the processes of the relay.
put_tls_into_memory()

RELAY = Path(__file__).resolve().parents[3] / "relay"


@pytest.fixture(scope="module")
def server_context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path_factory.mktemp("tls")))
    return context


@pytest.fixture
def connect(server_context: ssl.SSLContext) -> Iterator[Callable[[], tuple[ssl.SSLSocket, socket.socket]]]:
    """Both ends of a new connection: the server's, under TLS and without blocking, and the client's, below TLS."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE

    with contextlib.ExitStack() as open_sockets:

        def connect() -> tuple[ssl.SSLSocket, socket.socket]:
            near, far = socket.socketpair()
            descriptor: list[int] = []
            shaking = threading.Thread(target=lambda: descriptor.append(client_context.wrap_socket(far).detach()))
            shaking.start()
            server = server_context.wrap_socket(near, server_side=True)
            shaking.join(20)
            server.settimeout(0.0)
            client = socket.socket(fileno=descriptor[0])
            open_sockets.callback(server.close)
            open_sockets.callback(client.close)
            return server, client

        yield connect


@pytest.mark.parametrize("use", [lambda broken: broken.send(b"x"), lambda broken: broken.sendall(b"x")])
def test_a_client_that_resets_breaks_no_other_connection(
    connect: Callable[[], tuple[ssl.SSLSocket, socket.socket]], use: Callable[[ssl.SSLSocket], object]
) -> None:
    healthy, _ = connect()
    broken, client = connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    for _ in range(3):
        with pytest.raises(OSError):  # noqa: PT011 - of which kind depends on the system
            use(broken)
        with pytest.raises(ssl.SSLWantReadError):
            healthy.recv(1)


@contextlib.contextmanager
def after_updates(context: ssl.SSLContext, count: int) -> Iterator[ssl.SSLSocket]:
    """The server's end of a connection on which so many KeyUpdate messages, and then `content`, have come."""
    near, far = socket.socketpair()
    with far:
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
        made: list[bytes] = []
        client = threading.Thread(target=lambda: made.append(updates(far.fileno(), count, b"content")))
        client.start()
        with context.wrap_socket(near, server_side=True) as server:
            client.join(60)
            far.setblocking(False)
            assert far.send(made[0]) == len(made[0]), "all of it is there at once"
            yield server


def waiting(server: ssl.SSLSocket) -> int:
    """Octets that have come and that are not read."""
    found = array.array("i", [0])
    fcntl.ioctl(server.fileno(), termios.FIONREAD, found)
    return found[0]


def by_wire(server: ssl.SSLSocket) -> bytes:
    """As a dialogue of SMTP reads."""
    wire = TlsWire(server)
    try:
        return wire.receive(4096, math.inf)
    finally:
        wire.close()


@pytest.mark.parametrize("read", [lambda server: server.recv(100), by_wire], ids=["socket", "wire"])
def test_messages_without_content_leave_the_others_their_turn(
    server_context: ssl.SSLContext, read: Callable[[ssl.SSLSocket], bytes]
) -> None:
    with after_updates(server_context, 5_000) as server:
        reading = gevent.spawn(read, server)
        seen = [waiting(server)]
        while not reading.ready():
            gevent.sleep(0)
            seen.append(waiting(server))
        assert reading.get() == b"content"
    assert seen[0] > 100_000
    assert max(before - after for before, after in itertools.pairwise(seen)) <= 2 * 16_896


def test_a_time_limit_holds_while_messages_without_content_come(server_context: ssl.SSLContext) -> None:
    with after_updates(server_context, 3_000) as server:
        assert waiting(server) > 50_000
        with pytest.raises(gevent.Timeout), gevent.Timeout(0):
            server.recv(100)
        assert waiting(server) > 10_000, "it ended in the middle"
        assert server.recv(100) == b"content", "nothing is lost by it"


def test_whatever_the_sizes_all_octets_arrive_both_ways(server_context: ssl.SSLContext) -> None:
    """With a client that reads slowly, so that what is encrypted has to wait."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE
    chance = random.Random(1)
    sent = [chance.randbytes(size) for size in (1, 16_384, 3, 65_537, 1_000_000, 2, 300_000)]
    near, far = socket.socketpair()

    def echo() -> None:
        with client_context.wrap_socket(far) as client:
            for octets in sent:
                received = b""
                while len(received) < len(octets):
                    received += client.recv(chance.randrange(1, 100_000))
                client.sendall(received)
            with contextlib.suppress(OSError):
                client.unwrap()  # the server doesn't wait for it

    thread = threading.Thread(target=echo)
    thread.start()
    with server_context.wrap_socket(near, server_side=True) as server:
        for octets in sent:
            server.sendall(octets)
            with memoryview(bytearray(len(octets))) as back:
                filled = 0
                while filled < len(back):
                    filled += server.recv_into(back[filled:])
                assert back == octets
        assert server.recv(1) == b""
    thread.join(20)


def test_what_waits_is_sent_before_anything_else(connect: Callable[[], tuple[ssl.SSLSocket, socket.socket]]) -> None:
    """A client that doesn't read, a reply that is given up, and another one."""
    server, client = connect()
    while server.send(b"a" * 60_000):
        pass
    client.setblocking(False)
    held = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            held += client.recv(1_000_000)
    assert server.send(b"b" * 100) == 100
    with contextlib.suppress(BlockingIOError):
        while True:
            held += client.recv(1_000_000)
    # Whole records, one behind the other: none is torn or comes twice.
    lengths = []
    while held:
        assert held[:3] == b"\x17\x03\x03"
        lengths.append(int.from_bytes(held[3:5]))
        held = held[5 + lengths[-1] :]
    assert lengths[-1] == 100 + 17
    assert max(lengths) <= 16_384 + 17


class Talking:
    """In the place of OpenSSL's state, which answers something to each piece: OpenSSL itself does so under TLS 1.2."""

    def __init__(self, outgoing: ssl.MemoryBIO) -> None:
        self._outgoing = outgoing

    def read(self, _size: int) -> bytes:
        self._outgoing.write(bytes(1_000))
        raise ssl.SSLWantReadError

    def pending(self) -> int:
        return 0


def test_answers_to_a_client_that_reads_none_have_a_bound() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = TlsInMemory(near, Talking(outgoing), incoming, outgoing)
        for _ in range(1_000):
            far.send(b"x")
            try:
                tls.read(100)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLWantWriteError:
                break
        else:
            pytest.fail("there is no bound")
        assert len(tls.unsent) <= 65_536 + 1_000


def test_a_client_learns_what_was_wrong_with_the_handshake(server_context: ssl.SSLContext) -> None:
    context = ssl.create_default_context()
    near, far = socket.socketpair()

    def shake() -> None:
        with pytest.raises(ssl.SSLError), context.wrap_socket(far, server_hostname="x.example"):
            pass

    client = threading.Thread(target=shake)
    client.start()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"), server_context.wrap_socket(near, server_side=True) as server:
        server.recv(1)
    client.join(20)


def test_every_socket_under_gevent_has_its_tls_in_memory(
    connect: Callable[[], tuple[ssl.SSLSocket, socket.socket]],
) -> None:
    server, _ = connect()
    assert type(server._sslobj) is TlsInMemory
    assert server.version() == "TLSv1.3"
    assert server.cipher()
    assert server.context is not None


def test_each_process_under_gevent_puts_tls_into_memory() -> None:
    patching, moved = (
        {str(path.relative_to(RELAY)) for path in RELAY.rglob("*.py") if f"\n{call}()\n" in path.read_text("utf-8")}
        for call in ("monkey.patch_all", "put_tls_into_memory")
    )
    assert patching == moved != set()
