"""An error of one connection under TLS does not count for another of the same thread."""

from __future__ import annotations

import _ssl
import ast
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent.ssl
import pytest

from relay.core import tls_errors
from relay.core.tls_errors import IsolatedSocket, isolate_tls_errors
from tests.support.certificates import write_pair

RELAY = Path(__file__).resolve().parents[3] / "relay"


@pytest.fixture
def connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], tuple[ssl.SSLSocket, socket.socket]]]:
    """Both ends of a new connection: the server's, under TLS and without blocking, and the client's, below TLS."""
    monkeypatch.setattr(gevent.ssl.SSLContext, "sslsocket_class", gevent.ssl.SSLContext.sslsocket_class)
    isolate_tls_errors()
    server_context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*write_pair(tmp_path))
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


def test_the_queue_is_empty_after_any_failure(connect: Callable[[], tuple[ssl.SSLSocket, socket.socket]]) -> None:
    """With every release of Python: the error is put into the queue by a function that never empties it."""

    def fail(_: object) -> None:
        with contextlib.suppress(ValueError):
            _ssl.txt2obj("no such object")
        raise BrokenPipeError

    healthy, _ = connect()
    broken, _ = connect()
    with contextlib.suppress(BrokenPipeError):
        fail(broken)
    with pytest.raises(ssl.SSLError) as stale:
        healthy.recv(1)
    assert not isinstance(stale.value, ssl.SSLWantReadError), "the queue was empty"

    with pytest.raises(BrokenPipeError):
        tls_errors._isolated(fail)(broken)
    with pytest.raises(ssl.SSLWantReadError):
        healthy.recv(1)


def test_all_methods_that_use_openssl_are_isolated(
    connect: Callable[[], tuple[ssl.SSLSocket, socket.socket]],
) -> None:
    """Also those of a later gevent."""
    (kind,) = (
        node
        for node in ast.parse(Path(gevent.ssl.__file__).read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "SSLSocket"
    )
    methods = {
        method.name
        for method in kind.body
        if isinstance(method, ast.FunctionDef)
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) == "self._sslobj"
        and node.attr in {"read", "write", "do_handshake", "shutdown"}
    }
    assert methods == {"read", "write", "send", "do_handshake", "unwrap"}
    server, _ = connect()
    assert type(server) is IsolatedSocket
    for name in methods:
        assert getattr(server, name).__wrapped__ is getattr(gevent.ssl.SSLSocket, name)


def test_each_process_under_gevent_isolates_them() -> None:
    patching, isolating = (
        {str(path.relative_to(RELAY)) for path in RELAY.rglob("*.py") if f"\n{call}()\n" in path.read_text("utf-8")}
        for call in ("monkey.patch_all", "isolate_tls_errors")
    )
    assert patching == isolating != set()
