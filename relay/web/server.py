"""Listening sockets of HTTP: takes in as many clients as may be, and lets requests finish when the process ends."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import TYPE_CHECKING, Final, Protocol
from wsgiref.types import WSGIApplication

import gevent
import gevent.socket
import structlog
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from relay.core import metrics
from relay.web.http_handler import HttpHandler

if TYPE_CHECKING:
    from greenlet import greenlet

log = structlog.get_logger(__name__)

_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
_CROWDED: Final = b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"


class Connections(Protocol):
    """Counts connections of all processes (`relay.server.connection_table`)."""

    def enter(self) -> int | None:
        """A slot, None where there are as many as there may be."""

    def name(self, slot: int, origin: bytes) -> int:
        """How many this origin has now."""

    def leave(self, slot: int) -> None:
        """The connection is closed."""


class Proxies(Protocol):
    """The clients that begin with a PROXY header (`relay.server.trusted_proxies`)."""

    def trust(self, peer: str) -> bool:
        """Whether this one does."""

    def client_of(self, sock: gevent.socket.socket) -> str | None:
        """Reads the header. Raises an Exception where it is none."""


class Admission:
    """Which clients are served."""

    def __init__(
        self,
        connections: Connections,
        *,
        most_per_origin: int,
        origin_of: Callable[[str], bytes],
        proxies: Proxies,
        shared: Callable[[str], bool],
    ) -> None:
        """`origin_of`: the origin that an address is counted for. `shared`: whether an address is that of a proxy,
        which has the connections of many clients."""
        self._connections = connections
        self._most_per_origin = most_per_origin
        self._origin_of = origin_of
        self._proxies = proxies
        self._shared = shared

    def enter(self) -> int | None:
        """See Connections."""
        return self._connections.enter()

    def leave(self, slot: int) -> None:
        """See Connections."""
        self._connections.leave(slot)

    def client_of(self, sock: gevent.socket.socket, peer: str) -> str:
        """Whose connection it is. Raises an Exception where a proxy's header is missing."""
        return (self._proxies.client_of(sock) or peer) if self._proxies.trust(peer) else peer

    def crowded(self, slot: int, client: str) -> bool:
        """Whether this client has more connections than it may, with this one."""
        return not self._shared(client) and self._connections.name(slot, self._origin_of(client)) > (
            self._most_per_origin
        )


class WebServer:
    """Serves one application on several sockets."""

    #: Seconds that a TLS handshake may take.
    handshake_seconds = 10.0
    #: Seconds that a greenlet gets to put its connection away when the time for the drain is over.
    kill_seconds = 1.0

    def __init__(
        self,
        application: WSGIApplication,
        admission: Admission,
        tls_context: Callable[[], ssl.SSLContext] | None,
        handler: type[HttpHandler] = HttpHandler,
    ) -> None:
        """`tls_context`: what a handshake that begins now is made with; None: there is none. `handler`: the class of
        connections, which has their time limits."""
        self._application = application
        self._admission = admission
        self._tls_context = tls_context
        self.handler = handler
        self.draining = False
        self._drained = Event()
        self._servers: list[_HttpListener] = []
        self._handlers: dict[greenlet, HttpHandler] = {}

    def serve(self, listeners: Sequence[socket.socket], drain_seconds: float) -> int:
        """Serves until `drain` is called, and then until what is being answered is, or so many seconds are over; how
        many requests were not answered."""
        if not self.draining:
            self._servers = [_HttpListener(listener, self._application, self) for listener in listeners]
            for server in self._servers:
                server.start()
            log.info("web_ready", tls=self._tls_context is not None)
        self._drained.wait()
        gevent.sleep(0)
        with gevent.Timeout(drain_seconds, False):  # type: ignore[arg-type]  # gevent: no exception
            while self._handlers:
                gevent.sleep(0.02)
        left = len(self._handlers)
        gevent.killall(list(self._handlers), timeout=self.kill_seconds)
        return left

    def drain(self) -> None:
        """Accepts no client from now on, and closes the connections that wait for a request."""
        self.draining = True
        for server in self._servers:
            server.close()
        for serving, handler in list(self._handlers.items()):
            if handler.idle:
                gevent.kill(serving)
        self._drained.set()

    def handle(self, server: _HttpListener, sock: gevent.socket.socket, peer: tuple[object, ...]) -> None:
        """One connection, from its first octet to its last."""
        slot = self._admission.enter()
        try:
            if slot is None:
                metrics.CONNECTIONS_REFUSED.labels("full").inc()
                self._turn_away(sock, _FULL)
                return
            client = self._admission.client_of(sock, str(peer[0]))
            if self._admission.crowded(slot, client):
                metrics.CONNECTIONS_REFUSED.labels("address").inc()
                self._turn_away(sock, _CROWDED)
                return
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            if self._tls_context is not None:
                with gevent.Timeout(self.handshake_seconds):
                    sock = self._tls_context().wrap_socket(sock, server_side=True)
            self._converse(server, sock, client)
        except (OSError, gevent.Timeout, gevent.GreenletExit):
            return  # the client is gone, or was too slow, or this process ends
        except Exception as error:  # noqa: BLE001 - the top of the greenlet: beyond it the error would be lost
            log.warning("http_connection_failed", cause=type(error).__name__)
        finally:
            sock.close()
            if slot is not None:
                self._admission.leave(slot)

    def _converse(self, server: _HttpListener, sock: gevent.socket.socket, client: str) -> None:
        handler = self.handler(sock, client, server, lambda: self.draining)
        serving = gevent.getcurrent()
        self._handlers[serving] = handler
        try:
            handler.handle()
        finally:
            del self._handlers[serving]

    def _turn_away(self, sock: gevent.socket.socket, response: bytes) -> None:
        """Without waiting: the send buffer of a new socket always has room for that."""
        if self._tls_context is None:
            with contextlib.suppress(OSError):
                sock.setblocking(False)
                sock.send(response)


class _HttpListener(WSGIServer):
    #: Several processes accept from one socket: one that is free takes one client, not a hundred.
    max_accept = 1

    def __init__(self, listener: socket.socket, application: WSGIApplication, owner: WebServer) -> None:
        self._owner = owner
        # Without a name gevent would look one up.
        super().__init__(
            listener, application, log=None, error_log=None, environ={"SERVER_NAME": "relay", "wsgi.multiprocess": True}
        )

    # The stubs know an address as text alone.
    def handle(self, sock: gevent.socket.socket, address: tuple[object, ...]) -> None:  # type: ignore[override]
        """One connection, in a separate greenlet."""
        self._owner.handle(self, sock, address)

    # Not None in the stubs.
    def do_read(self) -> tuple[gevent.socket.socket, tuple[object, ...]] | None:  # type: ignore[override]
        """The next client; None when there is none, or none that there is a descriptor for."""
        try:
            return super().do_read()
        except OSError as error:
            if error.errno in self.fatal_errors:
                raise
            log.error("http_accept_failed", reason=type(error).__name__)
            self.stop_accepting()
            self._timer = self.loop.timer(0.1)
            self._timer.start(self._start_accepting_if_started)  # type: ignore[attr-defined,call-arg]
            return None
